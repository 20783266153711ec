"""The live figure of chapter 2: the automaton of the toadstool, erased, planted, turned and fired at other rates."""

import export_live
import pytest
import torch
from live_pages import INK, change, figure, middle, on_paper, running, scripts
from test_built_book import PHONE

from vnca import growing

GROW = """async ([steps, rate, seeds]) => {
    const engine = await vncaLive.Engine.load("toadstool");
    engine.fireRate = rate;
    for (const [row, col] of seeds) engine.plant(row, col);
    for (let step = 0; step < steps; step++) vncaLive.finish(engine.step());
    return Array.from({ length: 4 }, (_, channel) => [...engine.readChannel(channel)]);
}"""
SHOWN = """() => [...document.querySelector("canvas").getContext("2d").getImageData(0, 0, 22, 22).data]"""
WHOLE = 6  # of what `amiss` says
STILL = "document.querySelector('.live-readout').textContent.includes('{}')"


def error(state) -> float:
    return (torch.tensor(state).view(4, 22, 22) - growing.toadstool()).square().mean().item()


def shown(page) -> torch.Tensor:
    """The pixels of the grid, `(22, 22, 3)`."""
    return torch.tensor(page.evaluate(SHOWN)).view(22, 22, 4)[..., :3]


def amiss(page) -> float:
    """How far the page is from showing the toadstool on paper: the mean distance of its colors, up to 255."""
    return (shown(page) - on_paper(growing.toadstool())).abs().mean().item()


def paused(page):
    page.get_by_role("button", name="Pause").click()
    page.wait_for_function(STILL.format("paused"))


def grown(page, most: float = WHOLE):
    """Waits until the toadstool is there; how many steps a second there are depends on the machine."""
    for _ in range(200):
        if amiss(page) < most:
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"20 s, and {amiss(page)} is amiss, not less than {most}")


@pytest.mark.parametrize("kernel", ["kernel", "plain"])
def test_the_shipped_automaton_agrees_with_torch(opened, kernel):
    automaton = growing.load("toadstool")
    automaton.fire_rate = 1
    state = growing.single_cell(1, 16, 22)
    with torch.no_grad():
        for _ in range(30):
            state = automaton(state)
    found = opened(scripts(kernel, "toadstool")).evaluate(GROW, [30, 1, [[11, 11]]])
    assert (torch.tensor(found).view(4, 22, 22) - state[0, :4]).abs().max() < 0.02  # its weights are rounded


@pytest.mark.parametrize(
    ("steps", "rate", "largest"), [(60, 0.5, 0.001), (1000, 0.5, 0.002), (60, 1, 0.001), (900, 0.05, 0.01)]
)
def test_it_grows_and_stays_at_every_firing_rate(opened, steps, rate, largest):
    found = opened(scripts("kernel", "toadstool")).evaluate(GROW, [steps, rate, [[11, 11]]])
    assert error(found) < largest


def test_every_seed_grows_a_toadstool_of_its_own(opened):
    page = opened(scripts("kernel", "toadstool"))
    one, two = (
        torch.tensor(page.evaluate(GROW, [60, 0.5, seeds])).view(4, 22, 22) for seeds in ([[4, 4]], [[4, 4], [16, 16]])
    )
    target = growing.toadstool()
    assert (one[:, :12, :12] - target[:, 7:19, 7:19]).square().mean() < 0.01, "the part for which there is room"
    assert one[3, 16:, 16:].abs().max() < 0.1
    assert (two[:, 12:, 12:] - target[:, 7:17, 7:17]).square().mean() < 0.01


def test_a_turned_toadstool_neither_turns_back_nor_dies(opened):
    page = running(opened(figure("automaton"), reduced_motion="reduce"))
    grown = shown(page)
    assert amiss(page) < WHOLE
    page.get_by_role("button", name="Turn the grid").click()
    turned = shown(page)
    assert torch.equal(turned, grown.rot90(-1))
    page.get_by_label("Speed").fill("120")
    page.get_by_role("button", name="Play").click()
    page.wait_for_timeout(2500)
    paused(page)
    after = shown(page).float()
    for other in (grown, turned, torch.tensor(export_live.PAPER).expand(22, 22, 3)):
        assert (after - other).abs().mean() > 10
    assert not page.problems


def test_what_is_erased_grows_back(opened):
    page = running(opened(figure("automaton")))
    page.get_by_label("Speed").fill("120")
    grown(page)
    paused(page)
    x, y = middle(page)
    page.mouse.move(x - 100, y - 60)
    page.mouse.down()
    page.mouse.move(x + 100, y - 60, steps=4)
    page.mouse.up()
    wounded = amiss(page)
    assert wounded > 2 * WHOLE
    page.get_by_role("button", name="Play").click()
    grown(page, most=wounded / 2)
    assert not page.problems


def test_planting_by_keyboard_in_an_empty_grid(opened):
    page = running(opened(figure("automaton")))
    # Both at once: the seed grows out of what a tap erases within three steps.
    page.evaluate(
        "() => { for (const name of ['Start over', 'Pause'])"
        " [...document.querySelectorAll('button')].find((button) => button.textContent === name).click(); }"
    )
    page.locator("canvas").focus()
    page.keyboard.press("Enter")  # the cursor begins on the seed
    page.get_by_role("button", name="Play").click()
    page.wait_for_function(STILL.format("at rest"))
    assert (shown(page) == torch.tensor(export_live.PAPER)).all()
    page.get_by_role("button", name="plants").click()
    assert page.get_by_role("button", name="plants").get_attribute("aria-pressed") == "true"
    page.get_by_label("Speed").fill("120")
    before = page.evaluate(INK)
    page.locator("canvas").focus()
    page.keyboard.press("Enter")
    change(page, before)
    grown(page)
    assert not page.problems


def test_the_grid_by_touch_on_a_phone_and_all_cells_firing(opened):
    page = running(opened(figure("automaton"), viewport=PHONE, has_touch=True, is_mobile=True))
    rate = page.get_by_label("Cells that fire")
    assert rate.get_attribute("aria-valuetext") == "50%"
    rate.fill("100")
    assert rate.get_attribute("aria-valuetext") == "all"
    page.get_by_label("Speed").fill("120")
    grown(page)
    page.get_by_role("button", name="Pause").tap()
    page.wait_for_function(STILL.format("paused"))
    before = page.evaluate(INK)
    page.touchscreen.tap(*middle(page))
    change(page, before)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert not page.problems
