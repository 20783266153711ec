"""The built pages in a browser, served and as files: whole without a network, readable on a phone and in the dark.

They need a built book (`make book`) and Chromium or Chrome. Where one is missing they are skipped and say so; with
CI=true in the environment they fail instead.
"""

import functools
import http.server
import os
import re
import threading

import contents
import pytest
from axe_playwright_python.sync_playwright import Axe
from chapters import CHAPTERS, ROOT

BUILT = ROOT / "_build" / "html"
LARGEST_OUTPUT = 300_000
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}
PATIENCE = 90_000  # ms; a machine that is busy takes long for what a reader does not wait for
RULES = {  # of axe: those of WCAG 2, levels A and AA, and good practice
    "runOnly": ["wcag2a", "wcag2aa", "best-practice"],
    "resultTypes": ["violations"],
    # How docutils marks up a list of references.
    "rules": {
        rule: {"enabled": False} for rule in ("aria-allowed-role", "aria-deprecated-role", "aria-required-children")
    },
}
# Formulas and code have thousands of elements, and their colors from the theme: they would take most of the time.
CHECKED = {"include": [[".bd-article"]], "exclude": [["mjx-container"], ["div.highlight"]]}
PAGES = [f"{page}.html" for page in (*contents.pages(), "genindex", "search")]


def missing(reason: str) -> None:
    """Skip on a reader's machine, fail in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def book():
    if not (BUILT / "index.html").exists():
        missing("the book is not built: run make book first")
    return BUILT


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module", params=["served", "files"])
def address(request, book):
    """Where the pages are: a server on this machine, or the folder itself."""
    if request.param == "files":
        yield book.as_uri()
        return
    handler = functools.partial(QuietHandler, directory=str(book))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module", params=PAGES)
def opened(request, browser, address):
    """A page that has loaded, and everything that went wrong while it did; several tests look at it."""
    page = browser.new_page(viewport=DESKTOP, color_scheme="light")
    page.set_default_timeout(PATIENCE)
    page.problems = []
    inside = (address, "data:", "blob:")
    page.on("request", lambda r: None if r.url.startswith(inside) else page.problems.append(f"asked for {r.url}"))
    page.on("requestfailed", lambda r: page.problems.append(f"did not get {r.url}"))
    page.on("response", lambda r: page.problems.append(f"{r.status} for {r.url}") if r.status >= 400 else None)
    page.on("console", lambda m: page.problems.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto(f"{address}/{request.param}", wait_until="load")
    page.wait_for_function("!document.querySelector('.math') || window.MathJax?.startup?.promise")
    page.evaluate("() => window.MathJax?.startup?.promise")
    yield page
    page.close()


@pytest.fixture
def visit(opened):
    """The page, in the light and on a desktop again, whatever an earlier test did to it."""
    opened.emulate_media(color_scheme="light")
    opened.set_viewport_size(DESKTOP)
    return opened


def test_page_needs_nothing_from_outside_and_reports_no_error(visit):
    visit.mouse.wheel(0, 100_000)  # pictures that load when they are seen
    visit.wait_for_load_state("networkidle")
    assert not visit.problems


def test_math_is_set(visit):
    raw = visit.evaluate(
        "[...document.querySelectorAll('.bd-article .math')]"
        ".filter(e => !e.querySelector('mjx-container svg')).map(e => e.textContent)"
    )
    assert not raw, "raw TeX on the page"
    assert visit.locator("mjx-merror, [data-mjx-error]").count() == 0


def test_every_picture_says_what_it_shows(visit):
    alts = visit.evaluate("[...document.querySelectorAll('.bd-article img')].map(e => [e.src.slice(0, 99), e.alt])")
    # Without alt text of their own, outputs get the path of their file.
    silent = [src for src, alt in alts if len(alt.strip()) < 5 or re.search(r"_images/|\.(png|gif|webp|svg)$", alt)]
    assert not silent


def test_pictures_stay_as_they_are_in_the_dark(visit):
    visit.emulate_media(color_scheme="dark")
    visit.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    changed = visit.evaluate(
        "[...document.querySelectorAll('.bd-article .cell_output img, .bd-article img.figure-card')]"
        ".filter(e => getComputedStyle(e).filter !== 'none'"
        " || getComputedStyle(e).backgroundColor !== 'rgb(255, 255, 255)').map(e => e.alt)"
    )
    assert not changed, "dimmed, inverted or see-through in the dark"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_accessible(visit, address, scheme):
    if not address.startswith("file:") or visit.locator(".bd-article").count() == 0:
        pytest.skip("the page is the same where it is served, or it is the theme's own")
    visit.emulate_media(color_scheme=scheme)
    visit.wait_for_function(f"document.documentElement.dataset.theme === '{scheme}'")
    visit.wait_for_timeout(500)  # colors change gradually
    found = Axe().run(visit, context=CHECKED, options=RULES)
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone(visit, scheme):
    visit.emulate_media(color_scheme=scheme)
    visit.set_viewport_size(PHONE)
    visit.wait_for_timeout(200)
    width = visit.evaluate("document.documentElement.scrollWidth")
    wide = visit.evaluate(
        "[...document.querySelectorAll('.bd-article *')]"
        f".filter(e => e.getBoundingClientRect().right > {PHONE['width']})"
        ".slice(0, 5).map(e => e.outerHTML.slice(0, 99))"
    )
    assert width <= PHONE["width"], f"the page is {width} pixels wide, among the causes: {wide}"


def test_a_click_on_the_title_of_a_solution_opens_it(visit):
    title = visit.locator(".solution.dropdown > .admonition-title").first
    if title.count() == 0:
        pytest.skip("there is no solution on the page")
    solution, address = title.locator(".."), visit.url
    assert title.locator("a").count() == 0, "a link would take a click, and Enter would close another solution"
    title.scroll_into_view_if_needed()
    box = title.bounding_box()
    for hidden in (False, True):
        visit.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert ("toggle-hidden" in solution.get_attribute("class")) is hidden
    assert visit.url == address, "and leads nowhere"


def test_page_shows_no_error_no_warning_and_no_dead_widget(visit):
    assert visit.locator(".output.traceback, .output.stderr").all_text_contents() == []
    assert visit.locator("script[type='application/vnd.jupyter.widget-view+json']").count() == 0


def test_cell_outputs_are_small(visit):
    sizes = visit.evaluate("[...document.querySelectorAll('.cell_output')].map(e => e.outerHTML.length)")
    assert max(sizes, default=0) <= LARGEST_OUTPUT


def test_picture_files_are_small(book):
    large = {path.name: path.stat().st_size for path in (book / "_images").glob("*")}
    assert not {name: size for name, size in large.items() if size > LARGEST_OUTPUT}


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)
def test_launch_button_opens_a_notebook_that_exists(book, path):
    html = (book / path.relative_to(ROOT).with_suffix(".html")).read_text()
    links = set(re.findall(r"https://colab\.research\.google\.com/github/[^\"#]+", html))
    assert links == {contents.colab(path.relative_to(ROOT).as_posix())}
