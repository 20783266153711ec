"""The live figure of chapter 6: drawing, completing and regrowing a digit."""

import re

import pytest
import torch
from live_pages import FIGURES, INK, change, figure, running, scripts, settled
from torch.distributions import Normal

import vnca
from vnca import export
from vnca.vae import bernoulli_log_likelihood

NAME = re.search(r'data-model="([\w-]+)', FIGURES["inpaint"])[1]
GROWTH = len(vnca.load(NAME).decoder.schedule()) - 1  # steps
PARTS = '<script src="live/inpainter.js"></script><script src="live/drawing.js"></script>'
LOAD = f"""
    const engine = await vncaLive.Engine.load("{NAME}");
    const encoder = await vncaLive.Encoder.load("{NAME}-encoder");
    const inpainter = new vncaLive.Inpainter(engine, encoder, new vncaLive.Random(4));
"""
PIXELS = """(index) => {
    const canvas = document.querySelectorAll("canvas")[index];
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return [...data].filter((_, i) => i % 4 < 3);
}"""


@pytest.fixture
def parts(opened):
    """A page with the samplers and the pen, without the figure."""
    return opened(scripts("kernel", NAME, f"{NAME}-encoder") + PARTS)


@pytest.fixture
def still(opened):
    """The figure at its last step; nothing moves by itself."""
    page = running(opened(figure("inpaint"), reduced_motion="reduce"))
    page.get_by_text("Completion 1, in the cells").wait_for()
    return page


def pixels(page, index: int) -> list[int]:
    """The red, green and blue of a screen's pixels."""
    return page.evaluate(f"({PIXELS})({index})")


def redrawn(page, index: int, before: list[int]) -> None:
    """Waits until a screen shows something else."""
    page.wait_for_function(f"before => ({PIXELS})({index}).join() !== before.join()", arg=before)


def digit(seed: int = 0) -> torch.Tensor:
    """A binary image that the model itself drew, `(784,)`."""
    return vnca.load(NAME).sample(1, torch.Generator().manual_seed(seed)).round().flatten()


# The samplers.


def test_the_ratio_is_that_of_the_chapter(opened, folder):
    export.export(NAME, folder / "live" / "models", float32=True)
    model, x = vnca.load(NAME), digit()
    z = torch.randn(2, model.latent_size, generator=torch.Generator().manual_seed(1))
    page = opened(scripts("kernel", NAME, f"{NAME}-encoder") + PARTS)
    found = page.evaluate(
        f"""async ([x, z, other]) => {{{LOAD}
            const image = Float32Array.from(x), {{ finish }} = vncaLive;
            const q = finish(encoder.encode(image));
            const of = (z) => ({{ z: Float32Array.from(z), logits: finish(inpainter.decode(Float32Array.from(z))) }});
            return inpainter.logRatio(image, q, of(z), of(other));
        }}""",
        [x.tolist(), *z.tolist()],
    )
    with torch.no_grad():
        image = x.view(1, 1, 28, 28).expand(2, -1, -1, -1)
        q = model.encode(image)
        scores = Normal(0.0, 1.0).log_prob(z).sum(1) + bernoulli_log_likelihood(model.decode(z), image)
        scores -= q.log_prob(z).sum(1)
    expected = (scores[1] - scores[0]).item()
    assert abs(expected) > 1, "the test needs latents that differ"
    assert abs(found - expected) < 1e-4 * scores.abs().max()


def test_completions_keep_the_observed_pixels_and_differ(parts):
    x = digit(17)
    observed = torch.ones(28, 28, dtype=torch.int)
    observed[8:20, 8:20] = 0
    found = parts.evaluate(
        f"""async ([x, observed]) => {{{LOAD}
            const {{ finish }} = vncaLive;
            const image = Float32Array.from(x), mask = Uint8Array.from(observed);
            const zeros = new Float32Array(engine.latentSize);
            finish(inpainter.learn(12));
            let chains = finish(inpainter.begin(image, mask, 4)), moved = 0;
            for (let turn = 0; turn < 30; turn++) {{
                chains = finish(inpainter.turns(image, mask, chains, turn < 2));
                if (turn >= 2) moved += chains.filter((chain) => chain.accepted).length;
            }}
            return {{
                moved: moved / (4 * 28),
                drawn: chains.map((chain) => [...chain.whole]),
                shown: chains.map((chain) => [...inpainter.probabilities(image, mask, chain.logits)]),
                fits: chains.map((chain) => inpainter.logLikelihood(image, mask, chain.logits)),
                mean: inpainter.logLikelihood(image, mask, finish(inpainter.decode(zeros))),
            }};
        }}""",
        [x.tolist(), observed.flatten().tolist()],
    )
    seen = observed.flatten() == 1
    for pictures in (torch.tensor(found["drawn"]), torch.tensor(found["shown"])):
        assert (pictures[:, seen] == x[seen]).all()
        assert ((pictures >= 0) & (pictures <= 1)).all()
    shown = torch.tensor(found["shown"])[:, ~seen]
    assert (shown.std(dim=0) > 0.1).sum() > 10, "the completions hardly differ"
    assert set(torch.tensor(found["drawn"]).unique().tolist()) <= {0, 1}
    assert 0 < found["moved"] < 1
    assert min(found["fits"]) > found["mean"]


def test_a_turn_without_missing_pixels_changes_no_image(parts):
    whole = parts.evaluate(
        f"""async (x) => {{{LOAD}
            const image = Float32Array.from(x), mask = new Uint8Array(784).fill(1);
            vncaLive.finish(inpainter.learn(1));
            const [chain] = vncaLive.finish(inpainter.begin(image, mask, 1));
            return [...inpainter.probabilities(image, mask, chain.logits)];
        }}""",
        digit().tolist(),
    )
    assert whole == digit().tolist()


# The pen.


@pytest.mark.parametrize("scale, row, col", [(1, 14, 14), (0.4, 5, 20), (1.3, 15, 13)])
def test_a_drawing_is_fitted_as_the_images_of_digits_are(parts, scale, row, col):
    stroke = [[row + scale * y, col + scale * x] for y, x in ((-9, -4), (-9, 5), (0, 5), (9, 0))]
    image = torch.tensor(
        parts.evaluate("stroke => [...new vncaLive.Drawing([stroke]).fitted()]", stroke),
    ).view(28, 28)
    assert set(image.unique().tolist()) == {0, 1}
    rows, cols = image.nonzero().T
    assert abs(rows.max() - rows.min() + 1 - 20) <= 1
    assert abs(rows.float().mean() - 13.5) < 1 and abs(cols.float().mean() - 13.5) < 1
    assert 1.5 < image.sum() / 45 < 3.5, "about two pixels wide"  # strokes 45 to 50 pixels long


def test_an_empty_pad_and_a_dot(parts):
    empty, dot = parts.evaluate(
        "() => [[], [[[3, 3]]]].map((strokes) => [...new vncaLive.Drawing(strokes).fitted()].filter(Boolean).length)"
    )
    assert empty == 0 and 0 < dot < 10


# The figure.


def test_drawing_by_mouse_and_by_keyboard(still):
    before = pixels(still, 1)
    still.get_by_role("button", name="Clear").click()
    still.wait_for_function("document.querySelectorAll('[aria-pressed=true]').length === 0")
    box = still.locator("canvas").first.bounding_box()
    still.mouse.move(box["x"] + 100, box["y"] + 60)
    still.mouse.down()
    still.mouse.move(box["x"] + 120, box["y"] + 300, steps=5)
    still.mouse.up()
    redrawn(still, 1, before)
    still.locator("canvas").first.focus()
    before = pixels(still, 0)
    still.keyboard.press("ArrowLeft")
    still.keyboard.press("Enter")
    redrawn(still, 0, before)
    assert not still.problems


def test_observed_pixels_stay_in_every_picture(still):
    original, *others = (pixels(still, index) for index in (1, 2, 3, 7, 8, 9, 10))
    at = [3 * i + c for i in range(784) for c in range(3) if not (8 <= i // 28 < 20 and 8 <= i % 28 < 20)]
    for other in others:
        assert [other[i] for i in at] == [original[i] for i in at]
        assert other != original
    for empty in (4, 5):  # difference and uncertainty
        shown = torch.tensor(pixels(still, empty))[at].view(-1, 3)
        assert (shown == shown[0]).all()


def test_every_knob_changes_the_pictures(still):
    settled(still)
    for label, value in (
        ("Row", 4),
        ("Column", 12),
        ("Size", 16),
        ("Completion", 3),
        ("Temperature", 0),
        ("Steps", GROWTH + 1),
        ("Steps", 5),
    ):
        before = still.evaluate(INK)
        still.get_by_label(label, exact=True).fill(str(value))
        change(still, before)
    assert still.get_by_label("Size").get_attribute("aria-valuetext") == "16 × 16"
    assert still.get_by_label("Steps").get_attribute("aria-valuetext") == f"growing, step 5 of {GROWTH}"
    still.get_by_label("Size").fill("0")
    still.wait_for_function("document.querySelectorAll('figcaption')[2].textContent.includes(' 0 pixels')")
    assert pixels(still, 1) == pixels(still, 2)
    still.locator("canvas").nth(2).click()
    still.wait_for_function("document.querySelectorAll('figcaption')[2].textContent.includes(' 64 pixels')")
    assert not still.problems


def test_pictures_of_an_earlier_hole_are_pale_until_new_ones_are_there(still):
    still.wait_for_function("!document.querySelector('.live-old')")
    pale = still.get_by_label("Row", exact=True).evaluate(
        """async (row) => {
            row.value = 2;
            row.dispatchEvent(new Event("input", { bubbles: true }));
            let pale = 0; // the most at any time; the new pictures take more than two frames
            for (let frame = 0; frame < 3; frame++) {
                await new Promise(requestAnimationFrame);
                pale = Math.max(pale, document.querySelectorAll(".live-old").length);
            }
            return pale;
        }"""
    )
    assert pale == 4 + 4, "four pictures about the cells, and the completions"
    still.wait_for_function("!document.querySelector('.live-old')")


def test_sampling_longer_counts_turns_and_comes_to_rest(still):
    still.get_by_role("button", name="Sample longer").click()
    still.wait_for_function(
        "document.querySelector('.live-panel').textContent.includes('20 of 20 turns of Metropolis-within-Gibbs')"
    )
    still.wait_for_function("document.querySelector('.live-readout').textContent.includes('paused')")
    before = still.evaluate(INK)
    still.wait_for_timeout(400)
    assert still.evaluate(INK) == before
    assert not still.problems


def test_a_missing_part_of_the_demo_is_named(opened, folder):
    (folder / "live" / "inpainter.js").unlink()
    page = opened(figure("inpaint"))
    page.wait_for_selector("[data-state='failed'] [role=status]")
    assert "live/inpainter.js" in page.get_by_role("status").inner_text()
