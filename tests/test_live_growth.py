"""The live figure of chapter 3: a growth to stop anywhere, and a seed with one cell changed."""

import pytest
import torch
from live_pages import INK, change, error, figure, running, scripts

import vnca
from vnca import cells, export

NAME = "doubling-mnist-small"


def screen(page, index: int) -> str:
    return page.locator("canvas").nth(index).evaluate("canvas => canvas.toDataURL()")


def side(page, index: int) -> int:
    return page.locator("canvas").nth(index).evaluate("canvas => canvas.width")


@pytest.fixture
def still(opened):
    """The figure at the end of a growth; nothing moves by itself."""
    page = running(opened(figure("growth"), reduced_motion="reduce"))
    page.get_by_text("the upper left cell is c").wait_for()
    return page


def test_the_growth_with_a_changed_cell_is_that_of_torch(opened, folder):
    export.export(NAME, folder / "live" / "models", float32=True)
    model = vnca.load(NAME)
    z, other = torch.randn(2, 1, model.latent_size, generator=torch.Generator().manual_seed(2))
    found = opened(scripts("kernel", NAME)).evaluate(
        """async ([name, z, other]) => {
            const engine = await vncaLive.Engine.load(name);
            for (const [event] of engine.schedule) {
                vncaLive.finish(engine.perform(event, Float32Array.from(z)));
                if (event === "seed") engine.writeCell(1, 0, Float32Array.from(other));
            }
            return engine.snapshot().channels.map((channel) => [...channel]);
        }""",
        [NAME, z[0].tolist(), other[0].tolist()],
    )
    state = cells.seed(z)
    state[:, :, 1, 0] = other
    with torch.no_grad():
        for event, _ in model.decoder.schedule()[1:]:
            state = cells.double(state) if event == "double" else state + model.decoder.update(state)
    assert error(found, state) < 1e-5


def test_it_grows_once_and_stops(opened):
    page = running(opened(figure("growth")))
    page.wait_for_function("document.querySelector('.live-readout').textContent.includes('steps/s')")
    page.get_by_role("button", name="Play", exact=True).wait_for()
    moment = page.get_by_label("Moment")
    assert moment.get_attribute("aria-valuetext") == "step 20 of 20, 32 × 32 cells"
    page.get_by_role("button", name="Play", exact=True).click()
    page.wait_for_function("document.querySelector('input').value < 20")
    assert not page.problems


def test_moments_by_mouse_and_keyboard(still):
    moment = still.get_by_label("Moment")
    texts = {0: "seed, 2 × 2 cells", 4: "step 4 of 20, 2 × 2 cells", 5: "doubling 1 of 4, 4 × 4 cells"}
    for value, text in texts.items():
        moment.fill(str(value))
        assert moment.get_attribute("aria-valuetext") == text
        assert side(still, 3) == side(still, 4) == (4 if value == 5 else 2)
    marks = still.locator("datalist option").evaluate_all("options => options.map((option) => Number(option.value))")
    assert marks == [5, 10, 15, 20]
    moment.focus()
    still.keyboard.press("End")
    assert side(still, 3) == 32
    assert not still.problems


def test_one_cell_decides_and_none_does_not(still):
    assert screen(still, 3) != screen(still, 4)
    assert "upper left" in still.locator("figcaption").nth(4).inner_text()
    whole, seen = screen(still, 3), {screen(still, 4)}
    for cell in ("upper right", "lower left", "lower right"):
        before = still.evaluate(INK)
        still.get_by_role("button", name=cell).click()
        change(still, before)
        assert still.get_by_role("button", name=cell).get_attribute("aria-pressed") == "true"
        seen.add(screen(still, 4))
    assert len(seen) == 4
    before = still.evaluate(INK)
    still.get_by_role("button", name="none").click()
    change(still, before)
    assert screen(still, 3) == screen(still, 4) == whole
    assert not still.problems


def test_the_way_between_two_digits(still):
    ends = [screen(still, 0), screen(still, 1)]
    assert screen(still, 3) == ends[0]
    before = still.evaluate(INK)
    still.get_by_label("From a to b").fill("50")
    change(still, before)
    assert screen(still, 3) not in ends
    # Many wishes at once leave no backlog: the last one is drawn, and nothing more, until no frame is asked for.
    still.evaluate(
        """() => {
            const screen = document.querySelectorAll("canvas")[3], context = CanvasRenderingContext2D.prototype;
            const put = context.putImageData, frame = window.requestAnimationFrame;
            window.drawn = window.asked = 0;
            context.putImageData = function (...picture) {
                if (this.canvas === screen) window.drawn += 1;
                put.apply(this, picture);
            };
            window.requestAnimationFrame = (act) => {
                window.asked += 1;
                return frame((now) => {
                    window.asked -= 1;
                    act(now);
                });
            };
            const input = [...document.querySelectorAll("input")][1];
            for (let value = 0; value <= 100; value++) {
                input.value = value;
                input.dispatchEvent(new Event("input"));
            }
        }"""
    )
    still.wait_for_function("end => document.querySelectorAll('canvas')[3].toDataURL() === end", arg=ends[1])
    still.wait_for_function("window.asked === 0", polling=100)
    assert 1 <= still.evaluate("window.drawn") <= 3
    still.get_by_role("button", name="New digits").click()
    still.wait_for_function("end => document.querySelectorAll('canvas')[1].toDataURL() !== end", arg=ends[1])
    assert not still.problems


def test_every_channel_can_be_seen(still):
    seen = {screen(still, 3)}
    for channel in (1, 31, 63):
        still.get_by_label("Channel").fill(str(channel))
        seen.add(screen(still, 3))
        assert f"Channel {channel}: blue is negative" in still.locator(".live-panel").inner_text()
    assert len(seen) == 4
    digit, hidden = screen(still, 0), screen(still, 3)
    still.evaluate("document.documentElement.dataset.theme = 'dark'")
    still.wait_for_function("before => document.querySelectorAll('canvas')[3].toDataURL() !== before", arg=hidden)
    assert screen(still, 0) == digit, "digits are white on black in every theme"
    assert not still.problems
