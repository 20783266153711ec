"""The panel of chapter 6 in a real JupyterLab, in Chromium: run all, drag a slider, press play, and see the pictures.

Where no browser is installed the test is skipped and says so; with CI=true in the environment it fails instead.
"""

import base64
import io
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import numpy as np
import pytest
from chapters import ROOT
from chromium import find_browser, launch
from PIL import Image
from test_built_book import PATIENCE, missing

from vnca.widgets import HOLE_COLOR

CHAPTER = ROOT / "book" / "06-inpainting.ipynb"
CELLS = ("install", "imports", "data", "panel")
CHAPTER_PATIENCE = 600_000  # ms: these cells have more to compute than the panel

# JupyterLab looks for news and for its own new versions, and would ask; here is no network and nobody to answer.
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    # Or cells out of sight would not be on the page.
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
}
OPTIONS = (
    "--no-browser",
    "--allow-root",
    "--ServerApp.ip=127.0.0.1",
    "--ServerApp.port_retries=0",
    "--LabApp.extension_manager=readonly",
    "--LabApp.news_url=",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
)


@pytest.fixture
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        program = find_browser(playwright)
        if program is None:
            missing("no browser found: install Chromium or Chrome, or run .venv/bin/playwright install chromium")
        running = launch(playwright, program)
        yield running
        running.close()


@pytest.fixture
def lab(tmp_path):
    """JupyterLab with the chapter alone and settings of its own; the address of the chapter."""
    root, settings = tmp_path / "root", tmp_path / "settings"
    root.mkdir()
    for name, content in SETTINGS.items():
        path = settings / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    nbformat.write(shortened(nbformat.read(CHAPTER, as_version=4)), root / "chapter.ipynb")
    token, port, log = secrets.token_hex(), free_port(), tmp_path / "jupyterlab.log"
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces"),
        "JUPYTER_TOKEN": token,
    }
    command = [
        sys.executable,
        "-m",
        "jupyter",
        "lab",
        *OPTIONS,
        f"--ServerApp.port={port}",
        f"--ServerApp.root_dir={root}",
    ]
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=root)
        try:
            wait_for(f"http://127.0.0.1:{port}/api", server, log)
            yield f"http://127.0.0.1:{port}/lab/tree/chapter.ipynb?token={token}"
        finally:
            server.terminate()  # it ends its kernels
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def shortened(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The panel of the chapter and the cells that it builds on. The whole chapter runs elsewhere."""
    found = {cell.id: cell for cell in notebook.cells}
    notebook.cells = [found[name] for name in CELLS]
    return notebook


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(address, timeout=10).close()
            return
        except OSError:
            assert server.poll() is None, f"JupyterLab ended: {log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"JupyterLab does not answer: {log.read_text()[-2000:]}"
            time.sleep(0.2)


SHOWN = "[...document.querySelector('.vnca-pictures').querySelectorAll('img')].map(e => [e.alt, e.src])"
RECORD = f"""() => {{
    window.seen = [];
    const note = () => window.seen.push({SHOWN});
    const page = document.querySelector('.vnca-pictures').closest('.jupyter-widgets');
    new MutationObserver(note).observe(page, {{childList: true, subtree: true}});
}}"""

FITS = """() => {
    const output = document.querySelector('.vnca-pictures').closest('.jp-OutputArea-output');
    const ends = [...output.querySelectorAll('img, .widget-slider')].map(e => e.getBoundingClientRect().right);
    return output.clientWidth < 500 && Math.max(...ends) <= output.getBoundingClientRect().right;
}"""


class Panel:
    """The panel on a page, used as a person would."""

    def __init__(self, page):
        self.page = page

    def pictures(self) -> dict[str, np.ndarray]:
        """The pixels shown, by what they say they are."""
        return {alt: pixels(source) for alt, source in self.page.evaluate(SHOWN)}

    def drag(self, name: str, share: float) -> int:
        """Drag a slider's handle to that share of its length; the value it says it has then."""
        slider = self.page.locator(".widget-slider", has=self.page.get_by_text(name, exact=True)).first
        slider.scroll_into_view_if_needed()
        handle = slider.locator(".noUi-handle").bounding_box()
        track = slider.locator(".noUi-target").bounding_box()
        height = handle["y"] + handle["height"] / 2
        mouse = self.page.mouse
        mouse.move(handle["x"] + handle["width"] / 2, height)
        mouse.down()
        mouse.move(track["x"] + share * track["width"], height, steps=25)
        mouse.up()
        return int(slider.locator(".widget-readout").inner_text())

    def wait_for(self, text: str) -> None:
        """Until one of the pictures says that it shows this."""
        self.page.locator(f".vnca-pictures img[alt*='{text}']").first.wait_for()


def pixels(source: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))))


def first_row_of_hole(pictures: dict[str, np.ndarray]) -> int:
    (damaged,) = (picture for alt, picture in pictures.items() if "with a hole" in alt)
    orange = (np.abs(damaged / 255 - np.array(HOLE_COLOR)) < 0.01).all(axis=-1)
    return orange.any(axis=1).argmax() * 28 // len(damaged)


@pytest.fixture
def panel(browser, lab, tmp_path):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE)
    page.goto(lab)
    idle = page.locator("#jp-main-statusbar").get_by_text(re.compile(r"Python 3.* \| Idle"))
    idle.wait_for()  # before that, running would bring up a dialog to choose a kernel
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    page.locator(".vnca-pictures").first.wait_for(timeout=CHAPTER_PATIENCE)
    idle.wait_for(timeout=CHAPTER_PATIENCE)
    yield Panel(page)
    page.screenshot(path=tmp_path / "jupyterlab.png")  # pytest keeps it for a while
    page.close()


def test_dragging_a_slider_and_playing_change_the_pictures(panel):
    before = panel.pictures()
    panel.page.evaluate(RECORD)
    row = panel.drag("Row", 0.55)
    panel.wait_for(f"at row {row},")
    after = panel.pictures()
    assert first_row_of_hole(before) != first_row_of_hole(after) == row
    assert len(after) == 5
    assert sum(np.array_equal(one, two) for one, two in zip(before.values(), after.values(), strict=True)) == 1

    last = panel.drag("Steps", 1)
    panel.drag("Steps", 0)
    panel.wait_for("after 0 steps")
    panel.page.evaluate("window.seen = []")
    panel.page.locator(".widget-play button").first.click()
    panel.wait_for(f"after {last} steps")
    seen = panel.page.evaluate("window.seen")
    assert all(len(pictures) == 5 for pictures in seen), "the page is never without its pictures"
    regrown = [pictures[2] for pictures in seen]
    steps = [int(re.search(r"after (\d+) step", alt)[1]) for alt, _ in regrown]
    assert steps == sorted(steps)
    assert len({source for _, source in regrown}) >= 5, "frame by frame, though a busy machine may leave some out"
    assert panel.page.locator(".jp-OutputArea [data-mime-type='application/vnd.jupyter.error']").count() == 0
    panel.page.set_viewport_size({"width": 760, "height": 900})
    panel.page.wait_for_function(FITS)
