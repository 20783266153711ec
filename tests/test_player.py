"""The film player: its page fragment, and what it does in a browser."""

import base64
import contextlib
import io
import os
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from test_built_book import PATIENCE

from vnca import player, plotting


def growth(count: int = 6) -> list[torch.Tensor]:
    """Flat grey frames on growing grids; frame t has the grey 51 t."""
    return [torch.full((1, 2 ** min(t + 1, 4), 2 ** min(t + 1, 4)), t / 5) for t in range(count)]


def png(fragment: str, key: str) -> np.ndarray:
    data = re.search(key + r'"data:image/png;base64,([^"]+)"', fragment).group(1)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


class Balance(HTMLParser):
    """Fails on an end tag that does not close the last open one; keeps attributes by tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.seen = [], {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs)
        self.seen.setdefault(tag, []).append(dict(attrs))
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_fragment_is_well_formed_whatever_the_texts():
    nasty = 'a "quoted" </script><script>alert(1)</script> & <b>'
    fragment = plotting.film(growth(3), alt=nasty, labels=[nasty, "<!--", "{x} %s"])._repr_html_()
    seen = Balance(fragment).seen
    assert {tag: len(found) for tag, found in seen.items()} == {"div": 1, "style": 1, "img": 1, "script": 1}
    assert seen["img"][0]["alt"] == nasty
    assert "id" not in seen["div"][0]
    assert "http" not in fragment


def test_sprite_holds_every_frame_and_poster_is_the_last():
    frames = growth(6)
    fragment = plotting.film(frames, alt="growth")._repr_html_()
    sprite = png(fragment, '"sprite": ')
    assert sprite.shape == (2 * 16, 3 * 16)
    for index in range(6):
        row, column = divmod(index, 3)
        assert (sprite[row * 16 :, column * 16 :][:16, :16] == 51 * index).all()
    assert (png(fragment, "src=") == 255).all()
    first = plotting.film(frames, alt="growth", poster=0)._repr_html_()
    assert (png(first, "src=") == 0).all()


def test_colors_of_a_small_film_are_exact():
    frames = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    sprite = png(plotting.film(frames, alt="colors")._repr_html_(), '"sprite": ')
    expected = (frames * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(sprite[:8, 8:16], expected[1])
    np.testing.assert_array_equal(sprite[8:, 8:16], expected[4])
    assert (sprite[8:, 16:] == 255).all()


def test_a_large_color_film_keeps_256_colors():
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(30, 3, 8, 8, generator=generator).repeat_interleave(8, 2).repeat_interleave(8, 3)
    frames = (frames + 0.15 * torch.rand(30, 3, 64, 64, generator=generator)).clamp(0, 1)
    fragment = plotting.film(frames, alt="colors")._repr_html_()
    assert len(fragment) <= player.MAX_BYTES
    data = base64.b64decode(re.search(r'"sprite": "data:image/png;base64,([^"]+)"', fragment).group(1))
    image = Image.open(io.BytesIO(data))
    assert image.mode == "P", "small enough for full color: the test needs a larger film"
    shown = np.asarray(image.convert("RGB"))[:64, :64].astype(float) / 255
    assert np.abs(shown - frames[0].permute(1, 2, 0).numpy()).mean() < 0.1


def test_too_large_a_film_is_refused_with_advice():
    with pytest.raises(ValueError, match=r"400 frames of 64x64 takes \d+ kB, the limit is 300 kB; give fewer"):
        plotting.film(torch.rand(400, 64, 64), alt="noise")


def test_the_same_film_gives_the_same_page_and_another_gives_another():
    base = plotting.film(growth(), alt="growth")._repr_html_()
    assert plotting.film(growth(), alt="growth")._repr_html_() == base
    names = {re.search(r'data-film="(\w+)"', base).group(1)}
    for other in (
        plotting.film(growth(5), alt="growth"),
        plotting.film(growth(), alt="another"),
        plotting.film(growth(), alt="growth", fps=4),
        plotting.film(growth(), alt="growth", poster=0),
        plotting.film(growth(), alt="growth", scale=3),
        plotting.film(growth(), alt="growth", labels=list("abcdef")),
    ):
        names.add(re.search(r'data-film="(\w+)"', other._repr_html_()).group(1))
    assert len(names) == 7


def test_scale_is_whole_and_within_the_page():
    def width(film):
        return int(re.search(r'alt="a" width="(\d+)"', film._repr_html_()).group(1))

    assert width(plotting.film(torch.rand(2, 32, 32), alt="a")) == 288
    assert width(plotting.film(torch.rand(2, 28, 28), alt="a")) == 280
    assert width(plotting.film(torch.zeros(2, 400, 300), alt="a")) == 300
    assert width(plotting.film(torch.rand(2, 28, 28), alt="a", scale=3)) == 84


def test_repr_says_what_it_is():
    assert repr(plotting.film(growth(), alt="a digit grows")) == "Film(6 frames of 16x16: a digit grows)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": []}, "no images"),
        ({"frames": torch.rand(8, 8)}, "leading dimension"),
        ({"frames": torch.rand(2, 2, 8, 8)}, r"got \(2, 8, 8\)"),
        ({"frames": [torch.rand(3, 3), torch.rand(8, 8)]}, "frame 0 of 3x3 does not fit 8x8"),
        ({"alt": "  "}, "alt text"),
        ({"labels": ["one"]}, "6 frames need as many labels, got 1"),
        ({"fps": 0}, "fps must be above zero, got 0"),
        ({"fps": float("nan")}, "fps must be above zero"),
        ({"poster": 6}, "poster must be among the 6 frames, got 6"),
        ({"poster": -7}, "got -7"),
        ({"scale": 0}, "scale must be a whole number"),
        ({"scale": 2.5}, "scale must be a whole number"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        plotting.film(**{"frames": growth(), "alt": "growth", **arguments})


def need(found, what: str):
    """A browser test needs a browser: without one it is skipped, but never in CI."""
    if not found:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must run the browser tests, and {what} is missing")
        pytest.skip(f"{what} is missing")
    return found


@pytest.fixture(scope="module")
def browser():
    playwright = None
    with contextlib.suppress(ImportError):
        from playwright import sync_api as playwright
    need(playwright, "the Python package playwright")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    with playwright.sync_playwright() as driver:
        paths = [*map(shutil.which, names), driver.chromium.executable_path]
        path = need(next((path for path in paths if path and os.path.exists(path)), None), "Chromium or Chrome")
        instance = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield instance
        instance.close()


@pytest.fixture
def films(tmp_path, browser):
    """Opens a page of films from a file, as a reader does; fails on any error or request of that page."""
    trouble, contexts = [], []

    def look(*bodies, **options):
        path = tmp_path / "page.html"
        path.write_text("<!doctype html><html lang=en><meta charset=utf-8><title>Films</title>" + "\n".join(bodies))
        contexts.append(browser.new_context(**options))
        contexts[-1].set_default_timeout(PATIENCE)
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("console", lambda message: message.type == "error" and trouble.append(message.text))
        page.on(
            "request",
            lambda request: request.url.startswith(("file:", "data:")) or trouble.append(request.url),
        )
        page.goto(path.as_uri())
        return page

    yield look
    for context in contexts:
        context.close()
    assert trouble == []


def grey(page, index: int = 0) -> int:
    """The grey in the middle of a film's canvas."""
    return page.evaluate(
        "i => document.querySelectorAll('canvas')[i].getContext('2d').getImageData(7, 7, 1, 1).data[0]", index
    )


STILL = {"reduced_motion": "reduce"}


def page_of(count: int = 6, **arguments) -> str:
    return plotting.film(growth(count), alt="a growth", **arguments)._repr_html_()


def stands_still(page) -> bool:
    """True if no film moves within 0.3 s; long films only, as a film rests for a second at its end."""
    values = "[...document.querySelectorAll('input')].map(slider => slider.value)"
    before = page.evaluate(values)
    page.wait_for_timeout(300)
    return page.evaluate(values) == before


def test_browser_plays_when_seen_and_pauses(films):
    page = films(page_of(count=100, fps=15))
    button = page.get_by_role("button")
    button.get_by_text("Pause").wait_for()
    page.wait_for_function("document.querySelector('input').value === '2'")
    assert not stands_still(page)
    button.click()
    assert button.text_content() == "Play"
    assert stands_still(page)
    button.click()
    assert not stands_still(page)


def test_browser_play_button_changes_one_film_only(films):
    page = films(page_of(fps=30), page_of(fps=29), **STILL)
    page.locator("canvas").nth(1).wait_for()
    assert (grey(page, 0), grey(page, 1)) == (255, 255)
    page.get_by_role("button", name="Play").nth(1).click()
    page.wait_for_function("document.querySelectorAll('input')[1].value === '3'")
    page.get_by_role("button", name="Pause").click()
    index = int(page.get_by_role("slider").nth(1).input_value())
    assert grey(page, 1) == 51 * index
    assert grey(page, 0) == 255


def test_browser_same_film_twice_has_two_players(films):
    page = films(page_of(), page_of(), **STILL)
    page.locator("canvas").nth(1).wait_for()
    assert page.locator("canvas").count() == page.get_by_role("button").count() == 2
    page.get_by_role("slider").first.fill("1")
    assert (grey(page, 0), grey(page, 1)) == (51, 255)


def test_browser_keyboard_moves_frames_and_names_them(films):
    labels = [f"step {t}" for t in range(6)]
    page = films(page_of(labels=labels), **STILL)
    slider = page.get_by_role("slider", name="Frame")
    slider.wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "BUTTON"
    ring = """(() => {
      const style = getComputedStyle(document.activeElement);
      return [style.outlineStyle, style.outlineWidth, style.outlineColor];
    })()"""
    assert page.evaluate(ring) == ["solid", "3px", "rgb(0, 0, 0)"]
    page.keyboard.press("Tab")
    assert page.evaluate(ring) == ["solid", "3px", "rgb(0, 0, 0)"]
    page.keyboard.press("Home")
    assert (grey(page), slider.get_attribute("aria-valuetext")) == (0, "step 0")
    page.keyboard.press("ArrowRight")
    assert (grey(page), slider.get_attribute("aria-valuetext")) == (51, "step 1")
    assert page.get_by_text("step 1").is_visible()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelector('input').value === '3'")


def test_browser_scrubbing_stops_the_film(films):
    page = films(page_of(count=100, fps=15))
    page.get_by_role("button", name="Pause").wait_for()
    page.get_by_role("slider").fill("2")
    page.get_by_role("button", name="Play").wait_for()
    assert stands_still(page)
    assert grey(page) == 51 * 2


def test_browser_reduced_motion_stands_still_at_the_poster(films):
    page = films(page_of(count=100, fps=15, poster=2), **STILL)
    page.get_by_role("button", name="Play").wait_for()
    assert stands_still(page)
    assert grey(page) == 51 * 2


def test_browser_rests_off_screen(films):
    page = films("<div style='height: 300vh'></div>", page_of(count=100, fps=15, poster=1))
    page.get_by_role("button", name="Pause").wait_for()
    assert stands_still(page)
    assert grey(page) == 51
    page.locator("canvas").scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('input').value === '4'")
    assert not stands_still(page)
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(100)
    assert stands_still(page)


def test_browser_without_scripts_shows_the_poster(films):
    page = films(page_of(poster=3), java_script_enabled=False)
    image = page.get_by_role("img", name="a growth")
    assert image.is_visible()
    assert image.bounding_box()["width"] == 288
    shown = np.asarray(Image.open(io.BytesIO(image.screenshot())).convert("L"))
    assert (shown == 51 * 3).all()
    assert page.locator("canvas, button, input").count() == 0


def test_browser_poster_gives_way_to_a_named_canvas(films):
    page = films(page_of(), **STILL)
    page.locator("canvas").wait_for()
    assert page.locator("img").count() == 0
    assert page.get_by_role("img", name="a growth").count() == 1
    assert page.get_by_role("group", name="Film").count() == 1


def test_browser_leaves_no_names_behind(films):
    page = films("<script>const names = Object.getOwnPropertyNames(window)</script>", page_of())
    page.locator("canvas").wait_for()
    assert page.evaluate("Object.getOwnPropertyNames(window).filter(n => !names.includes(n))") == []


def test_browser_starts_when_a_notebook_inserts_it(films):
    """Notebooks put the fragment in by script and run its scripts again: in place, or from the page's head."""
    page = films("<main></main>", **STILL)
    page.evaluate(
        """fragment => {
          for (const home of ["place", "head"]) {
            const output = document.querySelector("main").appendChild(document.createElement("div"));
            output.innerHTML = fragment;
            const dead = output.querySelector("script");
            const live = document.createElement("script");
            live.textContent = dead.textContent;
            if (home === "place") dead.replaceWith(live); else document.head.appendChild(live).remove();
          }
        }""",
        page_of(),
    )
    page.locator("canvas").nth(1).wait_for()
    assert page.get_by_role("button").count() == 2


def test_browser_keeps_its_height_whatever_the_label(films):
    page = films(page_of(labels=["1", "a longer label of this frame", "3", "4", "5", "6"]), **STILL)
    slider = page.get_by_role("slider")
    slider.wait_for()
    boxes = []
    for value in "01":
        slider.fill(value)
        boxes.append((page.locator(".vnca-film").bounding_box(), slider.bounding_box()))
    assert boxes[0] == boxes[1]


def test_browser_fits_a_narrow_screen(films):
    page = films(
        page_of(scale=40, labels=["a rather long label of a frame"] * 6), viewport={"width": 390, "height": 800}
    )
    page.locator("canvas").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    box = page.locator("canvas").bounding_box()
    assert box["width"] == box["height"] <= 390


@pytest.mark.parametrize(("ground", "ink"), [("white", "rgb(20, 20, 20)"), ("black", "rgb(230, 230, 230)")])
def test_browser_takes_the_colors_of_the_page(films, ground, ink):
    page = films(f"<body style='background: {ground}; color: {ink}'>", page_of(), **STILL)
    button = page.get_by_role("button")
    button.wait_for()
    style = button.evaluate("node => [getComputedStyle(node).color, getComputedStyle(node).borderTopColor]")
    assert style == [ink, ink]


def test_numbers_of_numpy_make_a_film_too():
    frames = torch.rand(3, 1, 4, 4)
    ours = plotting.film(frames, labels=np.arange(3), alt="noise", fps=np.float32(8), poster=np.argmax([0, 1, 0]))
    plain = plotting.film(frames, labels=["0", "1", "2"], alt="noise", fps=8.0, poster=1)
    assert ours._repr_html_() == plain._repr_html_()
