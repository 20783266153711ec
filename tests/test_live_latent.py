"""The live figure of chapter 1: a decoder without cells, and the pad on which readers walk through its latents."""

import re

import export_live
import pytest
import torch
from live_pages import INK, change, error, figure, middle, running, scripts, settled
from test_built_book import PHONE

import vnca
from vnca import export, pretrained
from vnca.decoders import ConvDecoder
from vnca.vae import VAE, ModelConfig, build

NAME = export_live.WALKED
ODD = ModelConfig("conv", 5, 1, {"width": 1})  # sizes that are no multiples of the kernel's tiles
DECODE = """async ([name, z]) => {
    const decoder = await vncaLive.Decoder.load(name);
    return [...vncaLive.finish(decoder.decode(Float32Array.from(z)))];
}"""
SHOWN = """() => [...document.querySelectorAll("canvas")[1].getContext("2d").getImageData(0, 0, 28, 28).data]"""


def rounded(model: VAE) -> VAE:
    """The model as a script in int12 has it: a scale for each output channel, and 2047 steps of it up and down."""
    for layer in model.decoder.layers:
        if hasattr(layer, "weight"):
            output = 1 if isinstance(layer, torch.nn.ConvTranspose2d) else 0
            others = [dimension for dimension in range(layer.weight.ndim) if dimension != output]
            scale = layer.weight.detach().abs().amax(dim=others, keepdim=True) / 2047
            layer.weight.data = (layer.weight / scale).round() * scale
    return model


@torch.no_grad()
def decoded(model: VAE, z: torch.Tensor) -> torch.Tensor:
    return model.decode(z)


@pytest.mark.parametrize("kernel", ["kernel", "plain"])
@pytest.mark.parametrize("float32", [False, True], ids=["shipped", "float32"])
def test_the_decoder_agrees_with_torch(opened, folder, kernel, float32):
    if float32:
        export.export(NAME, folder / "live" / "models", float32=True)
    model = vnca.load(NAME)
    z = torch.randn(1, model.latent_size, generator=torch.Generator().manual_seed(3))
    page = opened(scripts(kernel, NAME))
    found = page.evaluate(DECODE, [NAME, z[0].tolist()])
    assert not page.problems
    assert error(found, decoded(model, z)) < (1e-5 if float32 else 1e-3)
    assert error(found, decoded(model if float32 else rounded(model), z)) < 1e-5


@pytest.mark.parametrize("kernel", ["kernel", "plain"])
def test_sizes_that_fill_no_tile(opened, folder, kernel):
    torch.manual_seed(0)
    model = build(ODD).eval()
    pretrained.save(model, ODD, folder / "odd")
    export.export(folder / "odd", folder / "live" / "models", float32=True)
    z = torch.randn(1, 5)
    page = opened(scripts(kernel, "odd"))
    assert error(page.evaluate(DECODE, ["odd", z[0].tolist()]), decoded(model, z)) < 1e-5


def test_a_latent_of_another_size_is_refused(opened):
    with pytest.raises(Exception, match="a latent of this model has 32 numbers, not 3"):
        opened(scripts("kernel", NAME)).evaluate(DECODE, [NAME, [1, 2, 3]])


def test_the_numbers_that_change_most_come_first_and_silent_ones_are_left_out():
    torch.manual_seed(0)
    decoder = ConvDecoder(latent_size=4, width=2)
    with torch.no_grad():
        decoder.layers[0].weight *= torch.tensor([1.0, 0.0, 9.0, 0.001])
    numbers, pixels = zip(*export.telling_latents(decoder), strict=True)
    assert numbers == (2, 0)
    assert pixels[0] > pixels[1] >= 0


def latents(page) -> tuple[float, float]:
    """Where the point is, as the words below the pad say."""
    caption = page.locator(".live figcaption").first.inner_text().replace("−", "-")
    return tuple(float(value) for value in re.findall(r"is (-?\d+\.\d)", caption))


def test_the_point_is_dragged_across_the_pad(opened):
    page = running(opened(figure("latent")))
    settled(page)
    x, y = middle(page)
    width = page.locator("canvas").first.bounding_box()["width"]
    before = page.evaluate(SHOWN)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + width / 3, y + width / 6, steps=5)
    page.wait_for_function(f"before => String(({SHOWN})()) !== String(before)", arg=before)
    page.mouse.up()
    assert latents(page) == (2.0, -1.0)
    assert re.fullmatch(r"Now: an image in \d+\.\d ms", page.locator(".live-readout").inner_text())
    page.mouse.move(x, y)
    assert latents(page) == (2.0, -1.0), "nobody holds it any more"
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 3 * width, y - 3 * width)
    page.mouse.up()
    assert latents(page) == (3.0, 3.0), "it stays on the pad"
    assert not page.problems


def test_the_pad_by_keyboard_and_what_the_page_shows_at_the_origin(opened):
    page = running(opened(figure("latent")))
    page.get_by_role("button", name="To the origin").click()
    settled(page)
    assert latents(page) == (0.0, 0.0)
    white = 255 * decoded(vnca.load(NAME), torch.zeros(1, 32)).sigmoid()[0, 0, :, :, None]
    assert (torch.tensor(page.evaluate(SHOWN)).view(28, 28, 4)[..., :3] - white).abs().max() < 2
    page.locator("canvas").first.focus()
    for key, place in (("ArrowRight", (0.1, 0.0)), ("ArrowUp", (0.1, 0.1)), ("ArrowLeft", (0.0, 0.1))):
        page.keyboard.press(key)
        assert latents(page) == place
    for _ in range(40):
        page.keyboard.press("ArrowDown")
    assert latents(page) == (0.0, -3.0)
    assert page.evaluate("scrollY") == 0
    assert not page.problems


def test_the_pad_by_touch_on_a_phone(opened):
    page = running(opened(figure("latent"), viewport=PHONE, has_touch=True, is_mobile=True))
    page.get_by_role("button", name="To the origin").tap()
    before = page.evaluate(INK)
    x, y = middle(page)
    page.touchscreen.tap(x + page.locator("canvas").first.bounding_box()["width"] / 6, y)
    change(page, before)
    assert latents(page) == pytest.approx((1.0, 0.0), abs=0.15)  # a finger touches whole pixels
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert not page.problems


def test_the_numbers_are_chosen_and_never_twice_the_same(opened):
    page = running(opened(figure("latent")))
    across, up = page.get_by_label("Across"), page.get_by_label("Up")
    first, second, third = (str(number) for number, _ in export.telling_latents(vnca.load(NAME).decoder)[:3])
    assert (across.input_value(), up.input_value()) == (first, second)
    assert across.locator("option").count() == 21
    there = latents(page)
    across.select_option(second)
    settled(page)
    assert (across.input_value(), up.input_value()) == (second, first)
    assert latents(page) == there[::-1], "the digit stays, seen from its other side"
    before = page.evaluate(SHOWN)
    up.select_option(third)
    settled(page)
    assert page.evaluate(SHOWN) == before, "to choose a number changes none"
    page.get_by_role("button", name="Another digit").click()
    page.wait_for_function(f"before => String(({SHOWN})()) !== String(before)", arg=before)
    assert not page.problems
