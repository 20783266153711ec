"""The second live figure of chapter 2: two grids, and seeds that carry the number of a slider."""

import pytest
import torch
from export_live import NUMBERED
from live_pages import INK, change, figure, middle, on_paper, running, scripts
from test_built_book import PHONE

from vnca import growing

TWO, TURNED = NUMBERED
GROW = """async ([name, steps, rate, z]) => {
    const engine = await vncaLive.Engine.load(name);
    engine.fireRate = rate;
    engine.plant(11, 11, z);
    for (let step = 0; step < steps; step++) vncaLive.finish(engine.step());
    return Array.from({ length: 4 }, (_, channel) => [...engine.readChannel(channel)]);
}"""
HEAL = """async ([name, z]) => {
    const engine = await vncaLive.Engine.load(name);
    const shown = () => Array.from({ length: 4 }, (_, channel) => [...engine.readChannel(channel)]);
    const grow = () => { for (let step = 0; step < 100; step++) vncaLive.finish(engine.step()); };
    engine.plant(11, 11, z);
    grow();
    const states = [shown()];
    engine.damageDisc(11, 11, 2);
    states.push(shown());
    grow();
    return [...states, shown()];
}"""
SHOWN = """() => [...document.querySelectorAll("canvas")].map(
    (canvas) => [...canvas.getContext("2d").getImageData(0, 0, 22, 22).data])"""
WHOLE = 16  # of the mean distance of colors: less than where a picture is half done
NUMBERS = torch.linspace(1, -1, 9).tolist()


def amiss(page, grid: int) -> dict[float, float]:
    """How far a grid is from showing the toadstools with some numbers: the mean distance of colors, up to 255."""
    shown = torch.tensor(page.evaluate(SHOWN)[grid]).view(22, 22, 4)[..., :3]
    return {z: (shown - on_paper(growing.toadstool(z=z))).abs().mean().item() for z in NUMBERS}


def grown(page, grid: int, z: float):
    """Waits until a grid shows a toadstool; how many steps a second there are depends on the machine."""
    for _ in range(200):
        found = amiss(page, grid)
        if min(found, key=found.get) == z and found[z] < WHOLE:
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"20 s, and this is amiss: {found}")


def drag(page, z: float):
    page.get_by_label("z of the next seed").fill(str(round(100 * z)))


@pytest.mark.parametrize("kernel", ["kernel", "plain"])
@pytest.mark.parametrize(("name", "z"), [(TWO, -1.0), (TURNED, 0.3)])
def test_the_shipped_automata_agree_with_torch(opened, kernel, name, z):
    automaton = growing.load(name)
    automaton.fire_rate = 1
    state = growing.seed_with(torch.tensor([z]))
    with torch.no_grad():
        for _ in range(30):
            state = automaton(state)
    found = opened(scripts(kernel, name)).evaluate(GROW, [name, 30, 1, z])
    assert (torch.tensor(found).view(4, 22, 22) - state[0, :4]).abs().max() < 0.03  # its weights are rounded


@pytest.mark.parametrize("z", [0.975, 0.025, -0.725])
def test_numbers_between_those_learned_grow_their_pictures_in_the_page(opened, z):
    page = opened(scripts("kernel", TWO, TURNED))
    errors = [
        (torch.tensor(page.evaluate(GROW, [name, 60, 0.5, z])).view(4, 22, 22) - growing.toadstool(z=z)).square().mean()
        for name in (TURNED, TWO)
    ]
    assert errors[0] < 0.01
    assert errors[0] < errors[1] or abs(z) > 0.9, "near the numbers that it learned, the other rule does well, too"


def test_both_grids_follow_the_slider(opened):
    page = running(opened(figure("seeds")))
    page.get_by_label("Speed").fill("120")
    grown(page, 1, z=0)
    assert amiss(page, 0)[0] > WHOLE, "the rule on the left never learned this number"
    # Each rule at numbers at which it is sharp: on the right those in the middle, on the left the two that it learned.
    for grid, z in ((1, 0.5), (1, -0.5), (0, 1), (0, -1)):
        drag(page, z)
        grown(page, grid, z)
    assert page.get_by_label("z of the next seed").get_attribute("aria-valuetext") == "−1.00"
    assert not page.problems


def test_what_is_erased_grows_back_as_what_it_was(opened):
    page = running(opened(figure("seeds")))
    page.get_by_label("Speed").fill("120")
    drag(page, -0.5)
    grown(page, 1, z=-0.5)
    page.get_by_role("button", name="Pause").click()
    page.wait_for_function("document.querySelector('.live-readout').textContent.includes('paused')")
    whole = amiss(page, 1)[-0.5]
    page.get_by_label("z of the next seed").evaluate("slider => { slider.value = 100; }")  # no cell reads the slider
    page.mouse.click(*middle(page, canvas=1))
    assert amiss(page, 1)[-0.5] > whole
    page.get_by_role("button", name="Play").click()
    page.wait_for_timeout(1500)
    found = amiss(page, 1)
    assert min(found, key=found.get) == -0.5
    assert not page.problems


@pytest.mark.parametrize("z", [0.5, -0.5])
def test_a_wound_heals_by_more_than_half(opened, z):
    states = opened(scripts("kernel", TURNED)).evaluate(HEAL, [TURNED, z])
    whole, wounded, healed = (
        (torch.tensor(s).view(4, 22, 22) - growing.toadstool(z=z)).square().mean() for s in states
    )
    assert healed < (whole + wounded) / 2


def test_seeds_with_other_numbers_are_planted_by_touch_on_a_phone(opened):
    page = running(opened(figure("seeds"), viewport=PHONE, has_touch=True, is_mobile=True))
    page.get_by_label("Speed").fill("120")
    page.get_by_role("button", name="plants").tap()
    before = page.evaluate(SHOWN)
    page.touchscreen.tap(*middle(page, canvas=1))
    change(page, page.evaluate(INK))
    assert page.evaluate(SHOWN)[1] != before[1]
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert not page.problems
