"""What the tests of the live figures share: a browser, small pages with one figure each, and what readers do to them.

The pages load `book/_static/live` from a folder, so they need Chromium or Chrome but no built book. What is missing on
a reader's machine skips its tests; with CI=true in the environment they fail instead.
"""

import json
import re
import shutil
import subprocess

import pytest
import torch
from chapters import ROOT
from chromium import find_browser, launch
from export_live import PAPER
from test_built_book import DESKTOP, PATIENCE, missing

LIVE = ROOT / "book" / "_static" / "live"
INK = "[...document.querySelectorAll('canvas')].map((canvas) => canvas.toDataURL()).join()"


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        program = find_browser(playwright)
        if program is None:
            missing("no browser found: install Chromium or Chrome, or run .venv/bin/playwright install chromium")
        running = launch(playwright, program)
        yield running
        running.close()


@pytest.fixture(scope="session")
def npm(tmp_path_factory):
    """A copy of `live/` with what its lock file names, next to an empty `book/_static/live`."""
    if shutil.which("npm") is None:
        missing("no npm found: install Node to rebuild the kernel")
    root = tmp_path_factory.mktemp("npm")
    folder = root / "live"
    shutil.copytree(ROOT / "live", folder, ignore=shutil.ignore_patterns("node_modules"))
    (root / "book" / "_static" / "live").mkdir(parents=True)
    install = subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, capture_output=True, text=True)
    if install.returncode:
        missing(f"npm could not install what live/package-lock.json names: {install.stderr[-500:]}")
    return folder


@pytest.fixture
def folder(tmp_path):
    """A copy of the live figures' files, to break or to fill."""
    shutil.copytree(LIVE, tmp_path / "live")
    return tmp_path


@pytest.fixture
def opened(browser, folder):
    """Opens pages in that folder; keeps everything that goes wrong, and every request that leaves the folder."""
    contexts = []

    def visit(html: str, init: str = "", **options):
        path = folder / "page.html"
        path.write_text(f'<!doctype html><html lang="en" data-theme="light"><meta charset="utf-8">{html}</html>')
        context = browser.new_context(**{"viewport": DESKTOP, **options})
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.problems = []
        inside = (folder.as_uri(), "data:")
        page.on("request", lambda r: None if r.url.startswith(inside) else page.problems.append(f"asked for {r.url}"))
        page.on("console", lambda m: page.problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        if init:
            page.add_init_script(init)
        page.goto(path.as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()


def scripts(kernel: str, *models: str) -> str:
    """The scripts of the engine, for pages without a figure."""
    names = ("live", kernel, "network", "engine", *(f"models/{name}" for name in models))
    return "".join(f'<script src="live/{name}.js"></script>' for name in names)


def _found() -> dict[str, tuple[str, str]]:
    """By the name of a demo: the page of the book that asks for it, and the element that does."""
    texts = {path.stem: path.read_text() for path in (ROOT / "book").glob("*.md")}
    for path in (ROOT / "book").glob("*.ipynb"):
        texts[path.stem] = "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])
    element = re.compile(r'<div class="live" data-live="([\w-]+)".*?</div>', re.DOTALL)
    return {match[1]: (page, match[0]) for page, text in texts.items() for match in element.finditer(text)}


PAGES = {demo: page for demo, (page, _) in _found().items()}
FIGURES = {demo: element for demo, (_, element) in _found().items()}


def figure(demo: str = "grow") -> str:
    """A page with one figure, as the built book has it."""
    still = f'<img class="live-still" src="live/stills/{demo}.png" alt="A still"><p>'
    return (
        '<title>A page</title><meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="stylesheet" href="live/live.css"><script defer src="live/live.js"></script><main><h1>A page</h1>'
        f'<article class="bd-article">{FIGURES[demo].replace("<p>", still, 1)}</article></main>'
    )


def running(page):
    """The page, once its demo runs."""
    page.wait_for_selector("[data-state='running'] canvas")
    return page


def settled(page) -> str:
    """The pictures, once all of them have stayed as they are for half a second."""
    before = page.evaluate(INK)
    for _ in range(40):
        page.wait_for_timeout(500)
        if (now := page.evaluate(INK)) == before:
            return now
        before = now
    raise AssertionError("20 s, and the pictures still change")


def change(page, before: str) -> str:
    """Waits until the pictures differ from earlier ones."""
    page.wait_for_function(f"before => {INK} !== before", arg=before)
    return page.evaluate(INK)


def stir(page) -> None:
    """Presses every button of the figure once."""
    page.evaluate("document.querySelectorAll('.live button:enabled').forEach((button) => button.click())")


def middle(page, canvas: int = 0) -> tuple[float, float]:
    """Where the middle of a canvas is."""
    box = page.locator("canvas").nth(canvas).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def on_paper(picture: torch.Tensor) -> torch.Tensor:
    """What a page shows of premultiplied colors and opacity `(4, H, W)`: colors `(H, W, 3)` up to 255."""
    colors = 255 * picture[:3] + (1 - picture[3]) * torch.tensor(PAPER)[:, None, None]
    return colors.permute(1, 2, 0)


def error(found, expected: torch.Tensor) -> float:
    """The largest difference, as a share of the largest value expected."""
    return ((torch.tensor(found).view_as(expected) - expected).abs().max() / expected.abs().max()).item()
