"""The panel of chapter 6 without a front end: its pictures, what it computes, and how it keeps up with its sliders."""

import asyncio
import base64
import io
import re
import threading
import time
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient
from PIL import Image

import vnca
from vnca import widgets
from vnca.decoders import crop
from vnca.widgets import Coalesced, InpaintingPanel, Regrowth, Settings

CHANNELS = 6


def some_model(decoder=None) -> vnca.VAE:
    """Random weights: pictures that differ wherever anything differs."""
    torch.manual_seed(0)
    decoder = decoder or vnca.RegrowingDecoder(CHANNELS, 8, min_steps=3, max_steps=5)
    torch.nn.init.normal_(decoder.update.layers[-1].weight, std=0.1)
    return vnca.VAE(vnca.Encoder(CHANNELS, width=1), decoder)


def some_images(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(1)).round()


@pytest.fixture
def panel():
    return InpaintingPanel(some_model(), some_images(), num_completions=5, num_quick=4, max_steps=12)


@pytest.fixture
def calls(monkeypatch):
    """Which sampler was called, the quick one or the whole, every time one was."""
    seen = []

    def counted(name, sampler):
        return lambda *arguments: seen.append(name) or sampler(*arguments)

    monkeypatch.setattr(widgets.QuickInpainter, "__call__", counted("quick", widgets.QuickInpainter.__call__))
    monkeypatch.setattr(widgets, "inpaint", counted("whole", widgets.inpaint))
    return seen


def updates_of(regrowth: Regrowth) -> list:
    """The list grows by the batch size of each step that is computed from now on."""
    seen = []
    regrowth.model.decoder.update.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    return seen


def in_html(panel: InpaintingPanel) -> tuple[list[str], list[np.ndarray]]:
    """The texts and the pixels of the pictures, as a front end gets them."""
    page = panel.figures.value
    alts = re.findall(r'<img alt="([^"]*)"', page)
    pixels = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in re.findall(r"base64,([^\"]+)", page)
    ]
    assert len(alts) == len(pixels) == 5
    return alts, pixels


def changed(before: widgets.Pictures, after: widgets.Pictures) -> set[str]:
    return {name for name in before._fields if not torch.equal(getattr(before, name), getattr(after, name))}


# ---------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("hole", [(0, 0, 28), (3, 9, 7), (20, 25, 10), (27, 27, 1)])
def test_the_hole_is_where_the_sliders_say_and_all_else_is_kept(panel, hole):
    panel.row.value, panel.col.value, panel.size.value = hole
    pictures = panel.settle()
    inside = torch.zeros(1, 28, 28, dtype=torch.bool)
    inside[:, hole[0] : hole[0] + hole[2], hole[1] : hole[1] + hole[2]] = True
    image = some_images()[0]
    assert torch.equal(pictures.original, image)
    orange = torch.tensor(widgets.HOLE_COLOR)[:, None]
    assert torch.equal(pictures.damaged[:, inside[0]], orange.expand(3, int(inside.sum())))
    assert torch.equal(pictures.damaged[:, ~inside[0]], image[:, ~inside[0]].expand(3, -1))
    assert torch.equal(pictures.regrown[~inside], image[~inside])
    assert not torch.equal(pictures.regrown[inside], image[inside])
    assert torch.equal(pictures.difference, (image - pictures.regrown).abs())
    assert (pictures.uncertainty[inside] > 0).all()
    assert (pictures.uncertainty <= 0.5).all()
    assert not pictures.uncertainty[~inside].any()


def test_without_a_hole_nothing_differs_and_nothing_is_uncertain(panel):
    panel.size.value = 0
    pictures = panel.settle()
    assert torch.equal(pictures.regrown, pictures.original)
    assert not pictures.difference.any()
    assert not pictures.uncertainty.any()


@pytest.mark.parametrize(
    ("control", "value", "expected"),
    [
        ("image", 2, {"original", "damaged", "regrown", "difference", "uncertainty"}),
        ("row", 3, {"damaged", "regrown", "difference", "uncertainty"}),
        ("col", 12, {"damaged", "regrown", "difference", "uncertainty"}),
        ("size", 20, {"damaged", "regrown", "difference", "uncertainty"}),
        ("completion", 3, {"regrown", "difference"}),
        ("temperature", 0.4, {"regrown", "difference", "uncertainty"}),
        ("steps", 9, {"regrown", "difference"}),
    ],
)
def test_each_control_changes_what_it_is_there_for(panel, control, value, expected):
    before, page = panel.settle(), panel.figures.value
    getattr(panel, control).value = value
    assert changed(before, panel.settle()) == expected
    assert panel.figures.value != page


def test_the_cells_of_the_hole_die_and_the_update_goes_on(monkeypatch):
    """By hand, with completions that are known: all missing pixels white, and no noise."""
    monkeypatch.setattr(
        widgets.QuickInpainter,
        "__call__",
        lambda _, x, observed, n, *__: torch.where(observed, x, 1.0).expand(n, -1, -1, -1, -1),
    )
    model, images = some_model(), some_images()
    regrowth = Regrowth(model, images, num_quick=2)
    settings = Settings(image=1, row=20, col=4, size=9, temperature=0.0)
    with torch.no_grad():
        whole = images[1:2].clone()
        whole[..., 20:29, 4:13] = 1
        *_, state = model.decoder.grow(model.encode(whole).mean)
        state[:, :, 22:30, 6:15] = 0  # the cells of the hole's pixels; the image has two cells of border
        for steps in range(4):
            expected = images[1].clone()
            expected[:, 20:29, 4:13] = crop(state[:, :1]).sigmoid()[0, :, 20:29, 4:13]
            pictures = regrowth.pictures(settings._replace(steps=steps))
            torch.testing.assert_close(pictures.regrown, expected)
            # Without noise all completions are alike.
            torch.testing.assert_close(pictures.uncertainty, torch.zeros(1, 28, 28), atol=1e-6, rtol=0)
            state = state + model.decoder.update(state)
        noisy = regrowth.pictures(settings._replace(temperature=1.0))
    assert noisy.uncertainty[:, 20:, 4:13].min() > 1e-6


def test_a_doubling_decoder_has_cells_too():
    panel = InpaintingPanel(some_model(vnca.DoublingDecoder(CHANNELS, 8, steps=1)), some_images())
    before = panel.settle()
    panel.steps.value += 1
    assert changed(before, panel.settle()) == {"regrown", "difference"}


def test_the_same_settings_give_the_same_pictures_whatever_came_before(panel):
    settings = Settings(row=4, completion=2, temperature=0.7, steps=5)
    alone = Regrowth(some_model(), some_images(), num_completions=5).pictures(settings)
    for other in (Settings(), settings._replace(steps=9), settings._replace(completion=0), settings._replace(size=3)):
        panel.regrowth.pictures(other)
    assert not changed(alone, panel.regrowth.pictures(settings))
    other_seed = Regrowth(some_model(), some_images(), num_completions=5, seed=1).pictures(settings)
    assert changed(alone, other_seed) == {"regrown", "difference", "uncertainty"}


def test_the_callers_model_stays_as_it_is():
    model = some_model().train()
    layout = [parameter.stride() for parameter in model.parameters()]
    Regrowth(model, some_images()).pictures(Settings())
    assert model.training
    assert [parameter.stride() for parameter in model.parameters()] == layout


# --------------------------------------------------------------------------------- what is computed again


def test_a_step_more_costs_one_step_and_a_step_back_none(panel, calls):
    assert panel.steps.value == 6
    seen = updates_of(panel.regrowth)
    for steps in (7, 8, 9):
        panel.steps.value = steps
    assert seen == [1, 1, 1]
    for steps in (8, 0, 9):
        panel.steps.value = steps
    assert seen == [1, 1, 1]
    assert calls == []


def test_another_completion_or_temperature_needs_no_new_completions(panel, calls):
    panel.completion.value = 2
    panel.temperature.value = 0.3
    assert calls == []
    panel.row.value += 1
    assert len(calls) == 1
    panel.row.value -= 1  # the first hole is remembered
    assert len(calls) == 1


def test_only_the_latest_holes_are_remembered(calls, monkeypatch):
    monkeypatch.setattr(widgets, "REMEMBERED", 2)
    regrowth = Regrowth(some_model(), some_images())
    for row in (0, 1, 2, 1, 2):
        regrowth.pictures(Settings(row=row))
    assert len(calls) == 3
    regrowth.pictures(Settings(row=0))
    assert len(calls) == 4


def test_dragging_is_quick_and_the_button_samples_longer(panel, calls):
    assert "over 4 completions, a quick estimate" in panel.figures.value
    panel.row.value = 5
    assert calls == ["quick"]
    before = panel.settle()
    panel.longer.click()
    assert calls[1:] == ["whole"]
    assert changed(before, panel.settle()) == {"regrown", "difference", "uncertainty"}
    assert "over 5 completions of the whole sampler" in panel.figures.value
    assert panel.longer.disabled
    panel.row.value = 6
    assert "a quick estimate" in panel.figures.value
    assert not panel.longer.disabled
    panel.row.value = 5
    assert "over 5 completions of the whole sampler" in panel.figures.value
    assert len(calls) == 3


# ------------------------------------------------------------------------------------------------ the page


def test_the_page_shows_the_pictures_and_says_what_they_belong_to(panel):
    panel.row.value, panel.col.value, panel.size.value, panel.steps.value = 2, 3, 10, 4
    alts, pixels = in_html(panel)
    pictures = panel.settle()
    for picture, shown in zip(pictures._replace(uncertainty=2 * pictures.uncertainty), pixels, strict=True):
        small = shown[:: widgets.ENLARGED, :: widgets.ENLARGED]
        small = small[None] if small.ndim == 2 else small.transpose(2, 0, 1)
        np.testing.assert_allclose(small / 255, picture.numpy(), atol=0.51 / 255)
    assert "10 × 10 pixels at row 2, column 3" in alts[1]
    assert "after 4 steps" in alts[2]
    inside = pictures.difference[:, 2:12, 3:13].mean()
    assert f"{inside:.2f} on average" in alts[3]
    assert f"<b>Difference</b>mean {inside:.2f}<" in panel.figures.value


def test_every_control_has_a_name_and_the_menu_the_labels():
    panel = InpaintingPanel(some_model(), some_images(), labels=["a seven", "<b>", "two"])
    assert [control.description for control in panel._controls()] == [
        "Digit",
        "Row",
        "Column",
        "Size",
        "Completion",
        "Temperature",
        "Steps",
    ]
    assert panel.image.options == (("a seven", 0), ("<b>", 1), ("two", 2))


def test_play_is_linked_to_the_steps_and_runs_them_one_by_one(panel):
    assert panel.link.source == (panel.play, "value")
    assert panel.link.target == (panel.steps, "value")
    assert (panel.play.min, panel.play.max) == (panel.steps.min, panel.steps.max) == (0, 12)
    panel.steps.value = 0
    frames = []
    for step in range(1, 13):  # what the front end does while it plays
        panel.steps.value = step
        frames.append(panel.settle().regrown)
        assert re.search(rf"after {step} steps?$", in_html(panel)[0][2])
    assert all(not torch.equal(one, two) for one, two in zip(frames, frames[1:], strict=False))


# -------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": torch.rand(3, 28, 28)}, r"\(N, 1, 28, 28\) with N >= 1, not \(3, 28, 28\)"),
        ({"images": torch.rand(0, 1, 28, 28)}, "N >= 1, not"),
        ({"images": 255 * torch.ones(3, 1, 28, 28)}, "divide 8-bit images by 255"),
        (
            {"model": vnca.VAE(vnca.Encoder(4, 1), vnca.ConvDecoder(4, 1))},
            "a ConvDecoder has no cells that could grow again",
        ),
        ({"num_quick": 1}, "2 <= num_quick <= num_completions, not 1 and 16"),
        ({"num_completions": 3}, "not 4 and 3"),
        ({"labels": ["one"]}, r"3 images need as many labels, each another, not \['one'\]"),
        ({"labels": ["one", "two", "one"]}, "each another"),
        ({"max_steps": 0}, "max_steps is from 1 to 1,000, not 0"),
        ({"max_steps": 1001}, "max_steps is from 1 to 1,000, not 1001"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        InpaintingPanel(**{"model": some_model(), "images": some_images(), **arguments})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(image=3), "image lies between 0 and 2, not 3"),
        (Settings(row=28), "row lies between 0 and 27, not 28"),
        (Settings(col=-1), "col lies between 0 and 27, not -1"),
        (Settings(size=29), "size lies between 0 and 28, not 29"),
        (Settings(completion=4), "completion lies between 0 and 3, not 4"),
        (Settings(temperature=-0.1), "temperature is at least 0, not -0.1"),
        (Settings(temperature=float("nan")), "temperature is at least 0, not nan"),
        (Settings(steps=-1), "steps lies between 0 and 1000, not -1"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    regrowth = Regrowth(some_model(), some_images())
    with pytest.raises(ValueError, match=message):
        regrowth.pictures(settings)
    with pytest.raises(ValueError, match=message):
        regrowth.sample_longer(settings)


def test_what_cannot_be_drawn_is_said_and_no_old_picture_stays(panel, monkeypatch):
    whole = panel.settle()
    pictures = Regrowth.pictures

    def broken(regrowth, settings):
        result = pictures(regrowth, settings)
        return result._replace(regrown=result.regrown * torch.nan) if settings.row == 5 else result

    monkeypatch.setattr(Regrowth, "pictures", broken)
    with pytest.raises(ValueError, match="NaN"):
        panel.row.value = 5
    assert "were not drawn: an image holds NaN" in panel.figures.value
    assert "<img" not in panel.figures.value
    assert panel.settle() is None
    panel.row.value = Settings().row
    assert not changed(whole, panel.settle())
    assert len(in_html(panel)[0]) == 5


def test_an_interrupted_regrowth_can_go_on(panel):
    def interrupt(*_):
        raise KeyboardInterrupt

    hook = panel.regrowth.model.decoder.update.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        panel.steps.value = 12
    assert "were not drawn: KeyboardInterrupt" in panel.figures.value
    hook.remove()
    panel.steps.value = 11
    fresh = Regrowth(some_model(), some_images())
    assert not changed(fresh.pictures(Settings(steps=11)), panel.settle())


# ------------------------------------------------------------------------------------------------- backlog


def counted(panel: InpaintingPanel) -> list[Settings]:
    """The settings of every redraw from now on."""
    seen, pictures = [], panel.regrowth.pictures

    def drawing(settings):
        seen.append(settings)
        return pictures(settings)

    panel.regrowth.pictures = drawing
    return seen


def test_fifty_changes_at_once_are_drawn_twice_and_the_newest_is_shown(panel, monkeypatch):
    seen, now = counted(panel), time.monotonic() + 2 * Coalesced.GATHER
    monkeypatch.setattr(widgets, "time", SimpleNamespace(monotonic=lambda: now))  # they come at once on any machine

    async def drag():
        for value in range(50):
            panel.row.value, panel.col.value = value % 25, value % 24
        assert len(seen) == 1  # the first at once, the others when no more wait
        await asyncio.sleep(5 * Coalesced.GATHER)

    asyncio.run(drag())
    assert len(seen) == 2
    assert (seen[1].row, seen[1].col) == (24, 1)
    assert "at row 24, column 1" in panel.figures.value


def test_a_change_after_a_pause_is_drawn_before_its_message_is_done(panel):
    async def change():
        await asyncio.sleep(2 * Coalesced.GATHER)
        panel.row.value = 21
        assert "at row 21" in panel.figures.value

    asyncio.run(change())


def test_settle_draws_what_waits(panel):
    async def change():
        panel.row.value = 3
        panel.row.value = 17
        panel.settle()
        assert "at row 17" in panel.figures.value

    asyncio.run(change())


def test_a_click_during_a_redraw_is_served_by_the_next_one(panel, calls):
    pictures, buttons = panel.regrowth.pictures, []
    clicking = threading.Thread(target=panel.longer.click)  # JupyterLab handles messages beside a running cell

    def drawing(settings):
        buttons.append((panel.longer.disabled, panel.longer.description))
        if len(buttons) == 1:
            clicking.start()
            while not panel._redraws._waiting:
                time.sleep(0.001)
        return pictures(settings)

    panel.regrowth.pictures = drawing
    panel.row.value = 5
    clicking.join()
    assert calls == ["quick", "whole"]
    assert buttons == [(False, widgets.SAMPLE_LONGER), (True, "Sampling …")]
    assert "over 5 completions of the whole sampler" in panel.figures.value
    assert (panel.longer.disabled, panel.longer.description) == (True, widgets.SAMPLE_LONGER)


def test_no_change_is_lost_between_threads():
    served, newest = [], [0]
    action = Coalesced(lambda: (time.sleep(0.002), served.append(newest[0])))

    def change():
        for _ in range(20):
            newest[0] += 1
            action.request()

    threads = [threading.Thread(target=change) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert served[-1] == newest[0] == 80


KERNEL = """
import torch, vnca, time
from vnca.widgets import InpaintingPanel
model = vnca.VAE(vnca.Encoder(4, width=1), vnca.RegrowingDecoder(4, 4, min_steps=3, max_steps=5))
panel = InpaintingPanel(model, torch.rand(2, 1, 28, 28).round())
seen, pictures = [], panel.regrowth.pictures
def slow(settings):
    time.sleep(0.1)
    seen.append(settings.row)
    return pictures(settings)
panel.regrowth.pictures = slow
print(panel.row.comm.comm_id)
"""


def test_a_kernel_with_fifty_messages_waiting_does_not_work_through_them():
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        printed = []

        def run(code):
            def keep(message):
                if message["msg_type"] == "stream":
                    printed.append(message["content"]["text"])

            reply = client.execute_interactive(code, output_hook=keep, timeout=120)
            assert reply["content"]["status"] == "ok", reply["content"]
            return "".join(printed).split()[-1]

        comm = run(KERNEL)
        for value in range(50):
            data = {"method": "update", "state": {"value": value % 28}, "buffer_paths": []}
            client.shell_channel.send(client.session.msg("comm_msg", {"comm_id": comm, "data": data}))
        # This request stands behind the fifty, and lets the event loop turn.
        run("import asyncio; await asyncio.sleep(1)")
        count, last = map(int, run("print(f'{len(seen)},{seen[-1]}')").split(","))
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert last == 49 % 28
    assert count < 25  # 2 on a machine that does nothing else


# ------------------------------------------------------------------------------------------ built pages


def test_static_sequence_shows_what_the_panel_would():
    figure = widgets.static_sequence(some_model(), some_images()[1], Settings(row=5), steps=(0, 3), num_completions=2)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == [
        "original",
        "damaged",
        "step 0",
        "step 3",
        "difference",
        "uncertainty",
    ]
    regrowth = Regrowth(some_model(), some_images()[1:2], num_completions=2, num_quick=2)
    regrowth.sample_longer(Settings(row=5))
    first, last = (regrowth.pictures(Settings(row=5, steps=steps)) for steps in (0, 3))
    expected = [last.original, last.damaged, first.regrown, last.regrown, last.difference, 2 * last.uncertainty]
    for image, picture in zip(axes.images, expected, strict=True):
        want = (picture.expand(3, -1, -1) * 255).round().permute(1, 2, 0)
        np.testing.assert_allclose(image.get_array(), want.numpy(), atol=1)


def test_static_sequence_needs_a_step():
    with pytest.raises(ValueError, match="at least one number of steps"):
        widgets.static_sequence(some_model(), some_images()[0], steps=())


def test_what_executes_notebooks_without_a_reader_passes_over_the_panel():
    """The book's builder runs notebooks as here; a panel would leave a slider that is dead on the page."""
    panel = nbformat.v4.new_code_cell("import ipywidgets; ipywidgets.IntSlider()")
    panel.metadata["tags"] = ["skip-execution"]
    after = nbformat.v4.new_code_cell("1 + 1")
    notebook = nbformat.v4.new_notebook(cells=[panel, after])
    NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    assert notebook.cells[0].outputs == []
    assert notebook.cells[1].outputs[0].data == {"text/plain": "2"}
    assert "widgets" not in notebook.metadata
