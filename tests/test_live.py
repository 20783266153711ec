"""The live figures in a browser: the same numbers as torch, and demos that nothing brings down.

What holds for every demo is tested here, and the first one; each other has a file of its own.
"""

import copy
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import time

import export_live
import pytest
import torch
from chapters import ROOT
from live_pages import FIGURES, INK, LIVE, PAGES, change, error, figure, middle, running, scripts, settled, stir
from test_built_book import DESKTOP, PATIENCE, PHONE
from torch.distributions import kl_divergence

import live
import vnca
from vnca import cells, export, growing, pretrained
from vnca.__main__ import main
from vnca.decoders import ConvDecoder
from vnca.vae import VAE, Encoder, ModelConfig, build

ACTIONS = 400  # at random, to each demo
THUMB = 40  # px beside a canvas that a finger draws on, to scroll by
SECONDS = 60 if os.environ.get("CI") == "true" else 4  # for all of them, at most
SMALL = {  # sizes that are no multiples of the kernel's tiles
    "doubling": ModelConfig("doubling", 5, 1, {"hidden": 6, "steps": 2, "residual_blocks": 1}),
    "persistent": ModelConfig("persistent", 5, 1, {"hidden": 6, "steps": 2, "residual_blocks": 1, "max_steps": 10}),
    "regrowing": ModelConfig("regrowing", 2, 2, {"channels": 7, "hidden": 5, "min_steps": 2, "max_steps": 4}),
}

GROW = """async ([name, z]) => {
    const engine = await vncaLive.Engine.load(name);
    vncaLive.finish(engine.grow(Float32Array.from(z)));
    return Array.from({ length: engine.channels }, (_, channel) => [...engine.readChannel(channel)]);
}"""
HEAL = """async ([name, z]) => {
    const engine = await vncaLive.Engine.load(name);
    vncaLive.finish(engine.grow(Float32Array.from(z)));
    engine.damage(10, 12, 7, 7);
    for (let i = 0; i < 40; i++) vncaLive.finish(engine.step());
    return Array.from({ length: engine.channels }, (_, channel) => [...engine.readChannel(channel)]);
}"""
ENCODE = """async ([name, image]) => {
    const encoder = await vncaLive.Encoder.load(name);
    const { mean, logScale } = vncaLive.finish(encoder.encode(Float32Array.from(image)));
    return [[...mean], [...logScale]];
}"""


def rounded(model):
    """The model as its scripts have it: doubling cells in 14 bits, the encoder in 10, each output channel scaled."""
    model = copy.deepcopy(model)
    for part, largest in ((model.decoder, 8191), (model.encoder, 511)):
        for parameter in part.parameters():
            if parameter.ndim > 1:
                others = tuple(range(1, parameter.ndim))
                scale = parameter.data.abs().amax(dim=others, keepdim=True) / largest
                parameter.data = (parameter.data / scale).round() * scale
    return model


def last_state(model, z):
    with torch.no_grad():
        *_, state = model.decoder.grow(z)
    return state


# The same numbers as torch.


@pytest.mark.parametrize("kernel", ["kernel", "plain"])
@pytest.mark.parametrize("name", export_live.MODELS)
@pytest.mark.parametrize("float32", [False, True], ids=["shipped", "float32"])
def test_a_growth_and_the_encoder_agree_with_torch(opened, folder, name, kernel, float32):
    export.export(name, folder / "live" / "models", float32)
    model = vnca.load(name)
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(1, model.latent_size, generator=generator)
    image = (torch.rand(1, 1, 28, 28, generator=generator) > 0.8).float()
    with torch.no_grad():
        posterior = model.encode(image)
    page = opened(scripts(kernel, name, f"{name}-encoder"))
    grown = page.evaluate(GROW, [name, z[0].tolist()])
    mean, log_scale = page.evaluate(ENCODE, [f"{name}-encoder", image.flatten().tolist()])
    assert not page.problems
    assert error(grown, last_state(model if float32 else rounded(model), z)) < 1e-5
    assert error(grown, last_state(model, z)) < (1e-5 if float32 else 1e-3)
    with torch.no_grad():
        of_script = model.encode(image) if float32 else rounded(model).encode(image)
    assert error(mean, of_script.mean) < 1e-5
    assert error(log_scale, of_script.stddev.log()) < 1e-5
    assert kl_divergence(of_script, posterior).sum() < 0.01, "nats: the Gaussian in the page, and that of torch"


@pytest.mark.parametrize("kernel", ["kernel", "plain"])
@pytest.mark.parametrize("kind", SMALL)
def test_sizes_that_fill_no_tile(opened, folder, kind, kernel):
    torch.manual_seed(0)
    model = build(SMALL[kind]).eval()
    for parameter in model.decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pretrained.save(model, SMALL[kind], folder / "odd")
    assert (
        main(["export", "--weights", str(folder / "odd"), "--out", str(folder / "live" / "models"), "--float32"]) == 0
    )
    z, image = torch.randn(1, model.latent_size), torch.rand(1, 1, 28, 28)
    page = opened(scripts(kernel, "odd", "odd-encoder"))
    assert error(page.evaluate(GROW, ["odd", z[0].tolist()]), last_state(model, z)) < 1e-5
    with torch.no_grad():
        posterior = model.encode(image)
    healed = cells.damage(last_state(model, z), 10, 12, 7)
    with torch.no_grad():
        for _ in range(40):  # until cells that age are grown up
            healed = model.decoder.step(healed)
    assert error(page.evaluate(HEAL, ["odd", z[0].tolist()]), healed) < 1e-5
    mean, log_scale = page.evaluate(ENCODE, ["odd-encoder", image.flatten().tolist()])
    assert error(mean, posterior.mean) < 1e-5
    assert error(log_scale, posterior.stddev.log()) < 1e-5


@pytest.fixture
def automaton(folder):
    """A growing automaton with random weights, and its script."""
    torch.manual_seed(1)
    automaton = growing.GrowingAutomaton(channels=14, hidden=30, fire_rate=1)
    torch.nn.init.normal_(automaton.change.weight, std=0.1)
    script = export.automaton_script(automaton, "automaton", size=22, float32=True)
    (folder / "live" / "models" / "automaton.js").write_text(script)
    return automaton


@pytest.mark.parametrize("kernel", ["kernel", "plain"])
def test_an_automaton_agrees_with_torch(opened, automaton, kernel):
    state = growing.single_cell(batch=1, channels=14, size=22)
    with torch.no_grad():
        for _ in range(12):
            state = automaton(state)
    assert 4 < growing.living(state).sum() < 22 * 22, "the test needs cells of both kinds"
    found = opened(scripts(kernel, "automaton")).evaluate("""async () => {
        const engine = await vncaLive.Engine.load("automaton");
        engine.plant(11, 11);
        for (let i = 0; i < 12; i++) vncaLive.finish(engine.step());
        return Array.from({ length: 14 }, (_, channel) => [...engine.readChannel(channel)]);
    }""")
    assert error(found, state) < 1e-5


def test_about_as_many_cells_fire_as_the_rate_says(opened, automaton):
    share = opened(scripts("kernel", "automaton")).evaluate("""async () => {
        const engine = await vncaLive.Engine.load("automaton");
        for (let channel = 0; channel < 14; channel++) engine.writeChannel(channel, new Float32Array(22 * 22).fill(1));
        engine.fireRate = 0.3;
        const before = engine.snapshot().channels[5];
        vncaLive.finish(engine.step());
        return engine.readChannel(5).filter((value, cell) => value !== before[cell]).length / before.length;
    }""")
    assert 0.2 < share < 0.4


def test_what_the_engine_does_to_cells(opened):
    name = export_live.MODELS[0]
    model = vnca.load(name)
    z = torch.randn(1, model.latent_size)
    page = opened(scripts("kernel", name))
    found = page.evaluate(
        """async ([name, z]) => {
            const engine = await vncaLive.Engine.load(name);
            const all = () => Array.from({ length: engine.channels }, (_, channel) => [...engine.readChannel(channel)]);
            engine.seed(Float32Array.from(z), 2);
            engine.writeCell(0, 1, engine.readCell(0, 1).map((value) => 2 * value));
            engine.double();
            engine.double();
            const doubled = all();
            const kept = engine.snapshot();
            engine.damage(5, 2, 9, 2);
            const damaged = all();
            engine.damageDisc(0, 7, 2);
            const disc = [...engine.readChannel(0)].map((value, cell) => Number(value !== damaged[0][cell]));
            engine.restore(kept);
            const refused = [() => engine.seed([1]), () => engine.clear(33), () => engine.readCell(8, 0),
                () => engine.logits()].map((act) => { try { act(); } catch (error) { return error.message; } });
            return { doubled, damaged, disc, restored: all(), refused };
        }""",
        [name, z[0].tolist()],
    )
    state = cells.seed(z, 2)
    state[:, :, 0, 1] *= 2
    state = cells.double(cells.double(state))
    assert error(found["doubled"], state) == error(found["restored"], state) == 0
    state[:, :, 5:, 2:4] = 0
    assert error(found["damaged"], state) == 0
    row, col = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    assert found["disc"] == (row**2 + (col - 7) ** 2 <= 4).int().flatten().tolist()
    assert all(found["refused"])


def test_latents_are_standard_normal_and_follow_from_the_seed(opened):
    one, again, other = opened(scripts("kernel")).evaluate(
        "() => [7, 7, 8].map((seed) => [...new vncaLive.Random(seed).normal(4000)])"
    )
    assert one == again != other
    z = torch.tensor(one)
    assert abs(z.mean()) < 0.06 and abs(z.std() - 1) < 0.04
    assert abs((z.abs() < 1).float().mean() - 0.683) < 0.03


# The files.


def test_models_in_the_pages_are_the_shipped_ones():
    stored = {path.name: path.read_text() for path in (LIVE / "models").glob("*.js")}
    made = export_live.model_scripts()
    assert stored.keys() == made.keys()
    assert [name for name in made if made[name] != stored[name]] == [], "run: python scripts/export_live.py"


def test_every_demo_has_a_still():
    demos = {path.stem.removeprefix("demo-") for path in LIVE.glob("demo-*.js")}
    assert demos == export_live.STILLS.keys() == {path.stem for path in (LIVE / "stills").glob("*.png")}


def test_the_kernel_is_what_its_source_compiles_to(npm):
    subprocess.run(["npm", "run", "build"], cwd=npm, check=True, capture_output=True)
    built = npm.parent / "book" / "_static" / "live" / "kernel.js"
    assert built.read_bytes() == (LIVE / "kernel.js").read_bytes(), "run npm ci && npm run build in live/"


def test_what_the_pages_cannot_run_is_not_exported():
    stretched = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Unflatten(1, (1, 2, 2)), torch.nn.Tanh())
    model = VAE(Encoder(4, 1), ConvDecoder(4, 1))
    model.decoder.layers = stretched
    with pytest.raises(ValueError, match="do not know the layer Tanh"):
        export.decoder_script(model, "name")
    model.decoder = torch.nn.Identity()
    with pytest.raises(ValueError, match="no decoder of the class Identity"):
        export.decoder_script(model, "name")
    model.decoder = vnca.DoublingDecoder(4, 4, steps=1)
    model.decoder.update.layers[0].bias.data[0] = torch.inf
    with pytest.raises(ValueError, match="the weights of name are not all finite numbers"):
        export.decoder_script(model, "name")
    model.decoder.update = growing.GrowingAutomaton(channels=4, hidden=4)
    with pytest.raises(ValueError, match="no update of the class GrowingAutomaton"):
        export.decoder_script(model, "name")
    learned = build(ModelConfig("conv", 4, 1, {"width": 1}, components=2))
    with pytest.raises(ValueError, match="draw latents from the standard normal, but odd has a prior"):
        export.decoder_script(learned, "odd")
    for model in (learned, build(ModelConfig("conv", 4, 1, {"width": 1}))):
        with pytest.raises(ValueError, match="no prior of the class (MixturePrior|StandardNormal)"):
            export.prior_script(model, "odd")


def test_weights_too_large_for_float16_are_exported_in_float32_alone():
    automaton = growing.GrowingAutomaton(channels=4, hidden=4)
    with torch.no_grad():
        automaton.change.weight[0] = 70_000
    with pytest.raises(ValueError, match="weight is 70000, and float16 ends at 65504: export with float32=True"):
        export.automaton_script(automaton, "name", size=8)
    assert '"precision": "float32"' in export.automaton_script(automaton, "name", size=8, float32=True)


def test_a_page_gets_its_stills_and_an_unknown_figure_stops_the_build():
    spec = importlib.util.spec_from_file_location("live_figures", ROOT / "book" / "_ext" / "live_figures.py")
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    div = '<div class="live" data-live="grow" data-model="m" data-alt="A &quot;7&quot;">\n<p>Still.</p>\n</div>'
    context = {"body": f"<p>a</p>{div}<p>b</p>", "pathto": lambda path, resource: f"../{path}"}
    extension.add_stills(None, "book/page", "page.html", context, None)
    still = '<img class="live-still" src="../_static/live/stills/grow.png" alt="A &quot;7&quot;">'
    assert context["body"] == f"<p>a</p>{div.replace('>', f'>{still}', 1)}<p>b</p>"
    with pytest.raises(ValueError, match="no .*nothing.png"):
        extension.add_stills(None, "page", "", {**context, "body": div.replace("grow", "nothing")}, None)


# What readers do to the first demo.


def test_the_demo_grows_by_itself_and_heals_what_is_wounded(opened):
    page = running(opened(figure()))
    assert page.locator("canvas").is_visible() and not page.locator(".live-still").is_visible()
    before = change(page, page.evaluate(INK))
    page.get_by_role("button", name="Pause").click()
    page.wait_for_function("document.querySelector('.live-readout').textContent.includes('paused')")
    before = page.evaluate(INK)
    page.wait_for_timeout(300)
    assert page.evaluate(INK) == before, "paused, and it moves"
    x, y = middle(page)
    page.mouse.move(x - 40, y)
    page.mouse.down()
    page.mouse.move(x + 40, y + 20)
    page.mouse.up()
    wounded = change(page, before)
    assert "ounded" in page.locator("[aria-live]").inner_text()
    page.get_by_role("button", name="Play").click()
    change(page, wounded)
    page.get_by_role("button", name="New digit").click()
    page.get_by_role("button", name="Start over").click()
    page.get_by_label("Speed").fill("120")
    assert page.get_by_label("Speed").get_attribute("aria-valuetext") == "120 steps/s"
    page.wait_for_function("document.querySelector('.live-readout').textContent.includes('at rest')")
    page.get_by_role("button", name="Play").click()  # at rest nothing moves that could be paused
    page.get_by_role("button", name="Pause").wait_for()
    page.wait_for_function("document.querySelector('.live-readout').textContent.includes('at rest')")
    change(
        page,
        page.evaluate(f"() => {{ const now = {INK}; document.querySelectorAll('button')[1].click(); return now; }}"),
    )
    assert not page.problems


def test_a_gesture_whose_end_went_elsewhere_ends_at_the_next_move(opened):
    page = running(opened(figure()))
    page.get_by_role("button", name="Pause").click()
    page.wait_for_function("document.querySelector('.live-readout').textContent.includes('paused')")
    x, y = middle(page)
    page.mouse.move(x, y)
    before = page.evaluate(INK)
    page.mouse.down()
    wounded = change(page, before)
    mouse = page.context.new_cdp_session(page)
    for step in (20, 40, 60):  # no button is pressed any more, and nobody has said so
        mouse.send("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x + step, "y": y, "buttons": 0})
    page.wait_for_timeout(300)
    assert page.evaluate(INK) == wounded
    page.mouse.up()
    assert not page.problems


def test_the_demo_by_keyboard(opened):
    page = running(opened(figure()))
    page.get_by_role("button", name="Pause").click()
    page.wait_for_function("document.querySelector('.live-readout').textContent.includes('paused')")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.tagName") == "CANVAS"
    assert page.locator(".live-cursor").is_visible()
    place = page.locator(".live-cursor").bounding_box()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowUp")
    moved = page.locator(".live-cursor").bounding_box()
    assert moved["x"] < place["x"] and moved["y"] < place["y"]
    for key in ("Enter", " "):
        before = page.evaluate(INK)
        page.keyboard.press(key)
        change(page, before)
        page.keyboard.press("ArrowDown")
    assert page.evaluate("scrollY") == 0
    assert not page.problems


def test_the_demo_by_touch_on_a_phone_in_the_dark(opened):
    page = running(opened(figure(), viewport=PHONE, has_touch=True, is_mobile=True))
    page.get_by_role("button", name="Pause").tap()
    page.wait_for_function("document.querySelector('.live-readout').textContent.includes('paused')")
    before = page.evaluate(INK)
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    assert settled(page) == before, "a digit looks the same in the dark"
    page.touchscreen.tap(*middle(page))
    change(page, before)
    assert page.locator("canvas").bounding_box()["width"] <= PHONE["width"] - 2 * THUMB, "no room to scroll by"
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert not page.problems


# What holds for every demo.


def serious_violations(page, npm, part: str = "html") -> list[tuple[str, str]]:
    """What axe-core calls serious or critical in a part of the page: the rule, and the first element that breaks it."""
    page.add_script_tag(content=(npm / "node_modules" / "axe-core" / "axe.min.js").read_text())
    violations = page.evaluate("async (part) => (await axe.run(part)).violations", part)
    return [(v["id"], v["nodes"][0]["html"]) for v in violations if v["impact"] in ("serious", "critical")]


every_demo = pytest.mark.parametrize("demo", FIGURES)


@every_demo
def test_a_demo_reacts_and_sleeps_in_a_hidden_tab_and_out_of_sight(opened, demo):
    page = running(opened(figure(demo) + "<div style='height: 6000px'></div>"))
    assert page.locator("canvas").first.is_visible() and not page.locator(".live-still").is_visible()
    hide = (
        "hidden => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });"
        " document.dispatchEvent(new Event('visibilitychange')); }"
    )
    before = page.evaluate(INK)
    stir(page)
    change(page, before)
    for away, back in (
        (lambda: page.evaluate(hide, True), lambda: page.evaluate(hide, False)),
        (lambda: page.evaluate("scrollTo(0, 5000)"), lambda: page.evaluate("scrollTo(0, 0)")),
    ):
        stir(page)
        away()
        page.wait_for_timeout(300)
        before = page.evaluate(INK)
        page.wait_for_timeout(500)
        assert page.evaluate(INK) == before, "it computes where nobody looks"
        back()
        stir(page)
        change(page, before)
    assert not page.problems


@every_demo
def test_nothing_moves_by_itself_where_motion_is_unwelcome(opened, demo):
    page = running(opened(figure(demo), reduced_motion="reduce"))
    before = settled(page)
    play = page.get_by_role("button", name="Play", exact=True)
    if play.count():
        play.click()
    else:  # it never moves by itself
        stir(page)
    change(page, before)
    assert not page.problems


@every_demo
def test_two_starts_make_one_figure(opened, demo):
    twice = figure(demo) + '<script defer src="live/live.js"></script>'
    page = running(opened(twice))
    page.evaluate("vncaLive.start(); vncaLive.start()")
    page.wait_for_timeout(300)
    assert page.locator(".live-stage").count() == 1
    assert not page.problems


def disturb(page, dice: random.Random) -> None:
    """Does one thing at random to the figure of a page, or to the page around it."""
    kind = dice.choice(("point", "point", "point", "button", "input", "select", "keys", "size", "theme"))
    if kind == "size":
        return page.set_viewport_size(dice.choice((PHONE, DESKTOP, {"width": 700, "height": 300})))
    if kind == "theme":
        change_theme = "theme => { document.documentElement.dataset.theme = theme; }"
        return page.evaluate(change_theme, dice.choice(("light", "dark")))
    found = page.locator(f".live {'canvas' if kind in ('point', 'keys') else kind}").all()
    shown = [each for each in found if each.is_visible() and each.is_enabled()]
    if not shown:
        return
    one = dice.choice(shown)
    if kind == "point":
        one.scroll_into_view_if_needed()
        box = one.bounding_box()
        reach = 0.8 * box["width"]
        page.mouse.move(
            box["x"] + box["width"] / 2 + dice.uniform(-reach, reach),
            box["y"] + box["height"] / 2 + dice.uniform(-reach, reach),
        )
        dice.choice((page.mouse.down, page.mouse.up))()
    elif kind == "button":
        one.evaluate("button => button.click()")
    elif kind == "input":
        one.evaluate(
            """(input, share) => {
                if (input.type === "range") {
                    input.value = Number(input.min) + share * (input.max - input.min);
                    input.dispatchEvent(new Event("input", { bubbles: true }));
                } else {
                    input.click();
                }
            }""",
            dice.random(),
        )
    elif kind == "select":
        one.select_option(index=dice.randrange(one.locator("option").count()))
    else:
        one.focus()
        for _ in range(5):
            page.keyboard.press(dice.choice(("ArrowUp", "ArrowLeft", "ArrowDown", "Enter", " ", "Tab", "x")))


@every_demo
def test_a_demo_survives_random_input(opened, demo):
    page = running(opened(figure(demo)))
    dice = random.Random(0)
    until = time.monotonic() + SECONDS
    for _ in range(ACTIONS):
        disturb(page, dice)
        if time.monotonic() > until:
            break
    page.mouse.up()
    page.set_viewport_size(DESKTOP)
    before = page.evaluate(INK)
    stir(page)
    change(page, before)
    assert not page.problems


@every_demo
def test_a_browser_without_simd_runs_a_demo_too(opened, demo):
    page = running(opened(figure(demo), init="WebAssembly.validate = () => false"))
    assert page.evaluate("vncaLive.kernelBytes === undefined")
    before = page.evaluate(INK)
    stir(page)
    change(page, before)
    assert not page.problems


@every_demo
def test_without_javascript_there_is_the_still(opened, demo):
    page = opened(figure(demo), java_script_enabled=False)
    assert page.locator(".live-still").is_visible()
    assert page.locator(".live p").first.is_visible()


@pytest.mark.parametrize("theme", ["light", "dark"])
@every_demo
def test_axe_finds_no_serious_violation_nor_does_a_phone_scroll_sideways(opened, npm, demo, theme):
    page = running(opened(figure(demo), viewport=PHONE))
    colors = {"light": "#fff; color: #222", "dark": "#121212; color: #ddd"}[theme]
    page.evaluate(
        "([theme, style]) => { document.documentElement.dataset.theme = theme; document.body.style = style; }",
        [theme, f"background: {colors}"],
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert serious_violations(page, npm) == []


@every_demo
def test_a_missing_demo_leaves_the_still_and_says_so(opened, folder, demo):
    (folder / "live" / f"demo-{demo}.js").unlink()
    page = opened(figure(demo))
    page.wait_for_selector("[data-state='failed'] [role=status]")
    assert f"live/demo-{demo}.js" in page.get_by_role("status").inner_text()
    assert page.locator(".live-still").is_visible()


# Broken files.


def flip_a_weight(text: str) -> str:
    at = text.index('"weights"') + 5000
    return text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]


BROKEN = {
    "flipped": (flip_a_weight, "checksum", 0),
    "shortened": (lambda text: re.sub(r'("weights": ".{4000}).*?"', r'\1"', text), "bytes of weights", 0),
    "no base64": (lambda text: text.replace('"weights": "', '"weights": "!'), "base64", 0),
    "other format": (lambda text: text.replace('"format": 1', '"format": 9'), "format is 9", 0),
    "other layer": (lambda text: text.replace('"elu"', '"tanh"'), "tanh", 0),
    "cut": (lambda text: text[: len(text) // 2], "missing or damaged", 1),  # the browser reports the syntax error
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_damaged_model_leaves_the_still_and_says_why(opened, folder, case):
    damage, words, reports = BROKEN[case]
    path = folder / "live" / "models" / "persistent-mnist-small.js"
    path.write_text(damage(path.read_text()))
    page = opened(figure())
    page.wait_for_selector("[data-state='failed'] [role=status]")
    assert words in page.get_by_role("status").inner_text()
    assert page.locator(".live-still").is_visible()
    assert len(page.problems) == reports


@pytest.mark.parametrize("file", ["models/persistent-mnist-small", "engine", "kernel"])
def test_a_missing_file_leaves_the_still_and_says_which(opened, folder, file):
    (folder / "live" / f"{file}.js").unlink()
    page = opened(figure())
    page.wait_for_selector("[data-state='failed'] [role=status]")
    assert f"live/{file}.js" in page.get_by_role("status").inner_text()
    assert page.locator(".live-still").is_visible()
    assert all("ERR_FILE_NOT_FOUND" in problem for problem in page.problems)  # the browser's own report


# Speed and the built book.


def test_the_benchmark_measures_every_model_and_demo(browser, tmp_path):
    # A process of its own, because one process drives one Playwright.
    command = [sys.executable, live.__file__, "--out", str(tmp_path / "live.json"), "--repeats", "1"]
    subprocess.run(command, check=True, capture_output=True)
    result = json.loads((tmp_path / "live.json").read_text())
    assert set(result["models"]) == set(export_live.MODELS)
    assert set(result["decoders"]) == {export_live.WALKED}
    for row in result["models"].values():
        assert all(kernel["steps_per_second"] > 0 and kernel["growth_ms"] > 0 for kernel in row.values())
    assert set(result["demos"]) == set(export_live.STILLS)
    assert all(demo["bytes_compressed"] <= live.MOST_BYTES for demo in result["demos"].values())


@every_demo
def test_a_demo_runs_in_the_built_book(browser, npm, address, demo):
    page = browser.new_page(viewport=DESKTOP)
    page.set_default_timeout(PATIENCE)
    problems = []
    inside = (address, "data:", "blob:")
    page.on("request", lambda r: None if r.url.startswith(inside) else problems.append(f"asked for {r.url}"))
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(f"{address}/book/{PAGES[demo]}.html")
    page.locator(f"[data-live='{demo}']").scroll_into_view_if_needed()
    running(page)
    before = page.evaluate(INK)
    stir(page)
    change(page, before)
    assert not problems
    assert serious_violations(page, npm, ".live") == []
    page.close()
