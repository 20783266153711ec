"""Pictures and figures: what is drawn is what was given, and wrong input is named."""

import base64
import io
import json
import math
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image

from vnca import pictures, plotting


@pytest.fixture(autouse=True)
def _restore_style():
    with plt.rc_context():
        yield


def rendered(figure) -> np.ndarray:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return np.asarray(Image.open(file))


def test_grid_places_pictures_row_by_row_with_white_between():
    images = torch.tensor([0.0, 0.2, 0.4]).view(3, 1, 1, 1).expand(3, 1, 2, 3)
    grid = plotting.image_grid(images, columns=2, pad=1)
    expected = np.full((7, 9), 255, dtype=np.uint8)
    expected[1:3, 1:4] = 0
    expected[1:3, 5:8] = 51
    expected[4:6, 1:4] = 102
    assert grid.dtype == np.uint8
    np.testing.assert_array_equal(grid, expected)


def test_grid_takes_every_kind_of_picture():
    grey = torch.rand(4, 1, 5, 5)
    expected = plotting.image_grid(grey)
    np.testing.assert_array_equal(plotting.image_grid(grey[:, 0]), expected)
    np.testing.assert_array_equal(plotting.image_grid(list(grey)), expected)
    np.testing.assert_array_equal(plotting.image_grid(grey.numpy()), expected)
    np.testing.assert_array_equal(plotting.image_grid(grey.requires_grad_()), expected)
    color = plotting.image_grid(grey.expand(4, 3, 5, 5))
    np.testing.assert_array_equal(color, np.repeat(expected[..., None], 3, axis=-1))
    bits = torch.tensor([[[True, False]]])
    np.testing.assert_array_equal(plotting.image_grid(bits, pad=0), [[255, 0]])
    np.testing.assert_array_equal(plotting.image_grid(torch.tensor([[[7, 9]]], dtype=torch.uint8), pad=0), [[7, 9]])
    half = torch.tensor([[[0.0, 0.5, 1.0]]], dtype=torch.bfloat16)
    np.testing.assert_array_equal(plotting.image_grid(half, pad=0), [[0, 128, 255]])


def test_values_outside_the_range_are_clipped():
    image = torch.tensor([[[-3.0, 0.0, 1.0, 7.0, torch.inf]]])
    np.testing.assert_array_equal(plotting.image_grid(image, pad=0), [[0, 0, 255, 255, 255]])


def test_premultiplied_rgba_is_laid_on_white():
    rgba = torch.zeros(1, 4, 1, 3)
    rgba[0, :, 0, 1] = torch.tensor([0.4, 0.0, 0.2, 0.4])  # 40 % opaque
    rgba[0, :, 0, 2] = torch.tensor([0.0, 0.0, 1.0, 1.0])
    np.testing.assert_array_equal(plotting.image_grid(rgba, pad=0), [[[255, 255, 255], [255, 153, 204], [0, 0, 255]]])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(28, 28), r"got \(28,\); a single image needs"),
        (torch.rand(3, 2, 8, 8), r"got \(2, 8, 8\)"),
        (torch.rand(1, 1, 1, 8, 8), r"got \(1, 1, 8, 8\)"),
        (torch.rand(1, 1, 0, 8), r"got \(1, 0, 8\)"),
        (torch.rand(0, 1, 8, 8), "no images"),
        ([], "no images"),
        (torch.full((1, 1, 2, 2), torch.nan), "NaN"),
        (torch.ones(1, 1, 2, 2, dtype=torch.int64), "int64"),
        ([torch.rand(1, 4, 4), torch.rand(1, 8, 8)], "one size"),
        ([torch.rand(1, 4, 4), torch.rand(3, 4, 4)], "all grey or all color"),
    ],
)
def test_wrong_images_are_named(images, message):
    with pytest.raises(ValueError, match=message):
        plotting.image_grid(images)


@pytest.mark.parametrize("columns", [0, -1, 1.5])
def test_columns_must_be_a_whole_number(columns):
    with pytest.raises(ValueError, match=f"columns must be .* got {columns}"):
        plotting.image_grid(torch.rand(2, 1, 4, 4), columns)


def test_png_holds_the_grid_and_nothing_is_left_beside(tmp_path):
    images = torch.rand(5, 1, 6, 6)
    path = tmp_path / "samples.png"
    path.write_bytes(b"an older file")
    plotting.save_png(images, path, columns=3)
    with Image.open(path) as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), plotting.image_grid(images, 3))
    assert [p.name for p in tmp_path.iterdir()] == ["samples.png"]


def test_failed_png_keeps_the_older_file(tmp_path):
    path = tmp_path / "samples.png"
    path.write_bytes(b"an older file")
    with pytest.raises(ValueError, match="no images"):
        plotting.save_png([], path)
    assert path.read_bytes() == b"an older file"
    with pytest.raises(FileNotFoundError):
        plotting.save_png(torch.rand(1, 1, 4, 4), tmp_path / "missing" / "samples.png")


@pytest.mark.parametrize("titles", [None, list("abcdefghij")])
def test_every_picture_is_seen_whole(titles):
    """Flat pictures, each of its own grey: the area drawn in that grey is that of one picture, for each alike."""
    plotting.use_style()
    greys = np.arange(10, 210, 20, dtype=np.uint8)
    images = np.broadcast_to(greys[:, None, None], (10, 28, 28))
    pixels = rendered(plotting.show_images(images, titles=titles, columns=4))
    counts = [int((pixels[..., :3] == grey).all(-1).sum()) for grey in greys]
    side = 0.8 * plt.rcParams["figure.dpi"]
    assert min(counts) > (side - 2) ** 2
    assert max(counts) < (side + 2) ** 2
    assert (pixels[..., 3] == 255).all()


def test_pictures_are_enlarged_without_smoothing():
    plotting.use_style()
    images = (torch.rand(4, 1, 7, 7, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    pixels = rendered(plotting.show_images(images, scale=2))
    assert np.unique(pixels).tolist() == [0, 255]


def test_figures_are_not_shown_twice():
    plt.close("all")
    plotting.show_images(torch.rand(2, 1, 4, 4))
    assert plt.get_fignums() == []


def test_titles_must_match():
    with pytest.raises(ValueError, match="3 images need as many titles, got 2"):
        plotting.show_images(torch.rand(3, 1, 4, 4), titles=["a", "b"])
    with pytest.raises(ValueError, match="same proportions"):
        plotting.show_images([torch.rand(4, 4), torch.rand(4, 8)])


def test_strip_draws_every_grid_size_equally_large():
    plotting.use_style()
    sizes = [2, 4, 8, 16, 32]
    frames = [torch.full((1, size, size), 5 * size, dtype=torch.uint8) for size in sizes]
    figure = plotting.strip(frames, [f"{size}×{size}" for size in sizes])
    assert [text.get_text() for text in figure.axes[0].texts] == ["2×2", "4×4", "8×8", "16×16", "32×32"]
    pixels = rendered(figure)[..., 0]
    counts = [int((pixels == 5 * size).sum()) for size in sizes]
    assert max(counts) - min(counts) < 0.05 * max(counts)
    assert len(plotting.strip(frames, list("abcde"), columns=2).axes[0].images) == 5


def test_a_page_of_pictures_is_crisp_and_small(tmp_path):
    plotting.use_style()
    figure = plotting.show_images(torch.rand(64, 1, 28, 28))  # noise compresses worst
    figure.savefig(tmp_path / "page.png", bbox_inches="tight")
    with Image.open(tmp_path / "page.png") as image:
        assert 900 <= image.width <= 1100
    assert (tmp_path / "page.png").stat().st_size <= 300_000


def test_style_is_white_and_told_apart():
    plotting.use_style()
    figure, axes = plt.subplots()
    lines = [axes.plot([0, 1], [n, n])[0] for n in range(len(plotting.COLORS))]
    assert len({line.get_color() for line in lines}) == len(lines)
    assert not axes.spines["top"].get_visible() and not axes.spines["right"].get_visible()
    pixels = rendered(figure)
    assert pixels[0, 0].tolist() == [255, 255, 255, 255]
    assert (pixels[..., 3] == 255).all()
    plt.close(figure)


def test_smaller_frames_become_blocks_of_copies():
    small, large = np.array([[1, 2], [3, 4]], np.uint8), np.zeros((4, 4), np.uint8)
    stacked = pictures.stack_enlarged([small, large])
    np.testing.assert_array_equal(stacked[0], [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]])
    np.testing.assert_array_equal(stacked[1], large)
    with pytest.raises(ValueError, match="frame 0 of 3x3 does not fit 4x4"):
        pictures.stack_enlarged([np.zeros((3, 3), np.uint8), large])
    with pytest.raises(ValueError, match="frame 0 of 2x4 does not fit 4x4"):
        pictures.stack_enlarged([np.zeros((2, 4), np.uint8), large])


def states_from(directions: torch.Tensor, spreads: list[float], sizes: list[int]) -> list[torch.Tensor]:
    """Cell states whose cells vary along given directions (3, C) with given standard deviations."""
    generator = torch.Generator().manual_seed(3)
    states = []
    for size in sizes:
        amounts = torch.randn(size * size, 3, generator=generator) * torch.tensor(spreads)
        states.append((amounts @ directions).T.reshape(-1, size, size) + 5)
    return states


def test_hidden_colors_follow_the_directions_of_most_variance():
    directions = torch.linalg.qr(torch.randn(8, 3, generator=torch.Generator().manual_seed(1)))[0].T  # (3, 8)
    states = states_from(directions, [9.0, 3.0, 1.0], [2, 4, 32])
    frames = plotting.hidden_colors(states)
    assert [tuple(frame.shape) for frame in frames] == [(3, 2, 2), (3, 4, 4), (3, 32, 32)]
    assert all(frame.dtype == torch.float32 for frame in frames)
    colors = torch.cat([frame.flatten(1) for frame in frames], dim=1)  # (3, cells)
    amounts = directions @ torch.cat([state.flatten(1) - 5 for state in states], dim=1)  # (3, cells)
    for color, amount in zip(colors, amounts, strict=True):
        assert torch.corrcoef(torch.stack([color, amount]))[0, 1].abs() > 0.98
        assert color.min() == 0 and color.max() == 1
        # Robust scaling: 1 % of the cells at each end, so no outlier decides the range.
        assert 0.005 < (color == 0).float().mean() < 0.02
        assert 0.005 < (color == 1).float().mean() < 0.02


def test_hidden_colors_are_the_same_every_time_and_for_one_cell_everywhere():
    states = states_from(torch.eye(3, 6), [3.0, 2.0, 1.0], [4, 16])
    first = plotting.hidden_colors(states)
    for left, right in zip(first, plotting.hidden_colors(iter(states)), strict=True):
        assert torch.equal(left, right)
    states.append(states[0].repeat(1, 2, 1))
    *_, stacked = plotting.hidden_colors(states)
    assert torch.equal(stacked[:, :4], stacked[:, 4:])


def test_hidden_colors_do_not_flip_when_the_states_do_not():
    """The largest loading is positive: a cell with more of that channel is brighter in that color."""
    states = states_from(torch.eye(3, 6), [9.0, 3.0, 1.0], [16])
    (frame,) = plotting.hidden_colors(states)
    for channel in range(3):
        pair = torch.stack([frame[channel].flatten(), states[0][channel].flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.95


def test_hidden_colors_of_equal_cells_are_finite():
    for frame in plotting.hidden_colors([torch.ones(4, 2, 2), torch.ones(4, 4, 4)]):
        assert frame.isfinite().all()


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ([], "got none"),
        ([torch.rand(1, 4, 2, 2)], r"got \[\(1, 4, 2, 2\)\]"),
        ([torch.rand(2, 4, 4)], r"C >= 3, got \[\(2, 4, 4\)\]"),
        ([torch.rand(4, 2, 2), torch.rand(5, 2, 2)], "same C"),
        ([torch.full((4, 2, 2), torch.nan)], "finite"),
    ],
)
def test_hidden_colors_name_wrong_states(states, message):
    with pytest.raises(ValueError, match=message):
        plotting.hidden_colors(states)


def record(update, total=100, **changes):
    """A record of the metrics, as a run writes it."""
    kl = 20.0 * update / total
    record = {"update": update, "fraction": update / total, "nats": -100 - 400 / update, "kl": kl}
    return record | {"loss": 100 + 400 / update - 0.5 * kl} | changes


def drawn(figure) -> dict:
    """What each line of a figure shows, by its label."""
    lines = [line for axes in figure.axes for line in axes.lines]
    return {line.get_label(): line for line in lines}


def test_curves_show_the_records(tmp_path):
    records = [record(update) for update in range(1, 101)]
    figure = plotting.curves(records)
    lines = drawn(figure)
    np.testing.assert_array_equal(lines["ELBO"].get_xdata(), range(1, 101))
    np.testing.assert_array_equal(lines["ELBO"].get_ydata(), [r["nats"] for r in records])
    np.testing.assert_array_equal(lines["negative loss"].get_ydata(), [-r["loss"] for r in records])
    np.testing.assert_array_equal(figure.axes[1].lines[0].get_ydata(), [r["kl"] for r in records])
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    for same in (str(tmp_path), tmp_path):
        np.testing.assert_array_equal(drawn(plotting.curves(same))["ELBO"].get_ydata(), lines["ELBO"].get_ydata())


def test_the_first_records_of_a_run_do_not_flatten_the_curves():
    bottom, top = plotting.curves([record(update) for update in range(1, 101)]).axes[0].get_ylim()
    assert -150 < bottom < -100 - 400 / 11 and -100 < top < -80


@pytest.mark.parametrize("gap", [math.nan, math.inf])
def test_curves_leave_gaps_for_records_that_are_not_finite(gap):
    records = [record(update) for update in range(1, 101)]
    records[50] = record(51, nats=gap, loss=gap, kl=gap)
    assert np.isfinite(plotting.curves(records).axes[0].get_ylim()).all()


def test_one_record_is_seen():
    plotting.use_style()
    pixels = rendered(plotting.curves([record(20)]))
    assert (pixels[..., :3] == (0xD5, 0x5E, 0x00)).all(-1).sum() > 4, "the KL term, whose color is in no legend"


def test_curves_need_records(tmp_path):
    with pytest.raises(ValueError, match="at least one record of a run, got none"):
        plotting.curves([])
    with pytest.raises(ValueError, match="has no metrics of a run"):
        plotting.curves(tmp_path)


NOTEBOOK = """
from vnca import plotting
plot = plotting.LivePlot()
shown = []
draw = plot._picture
plot._picture = lambda: shown.append(len(plot.records)) or draw()
for update in range(1, 301):
    plot({"update": update, "fraction": update / 300, "nats": -100 - 400 / update, "loss": 100.0, "kl": 20.0})
print(shown)
"""


def test_a_notebook_keeps_the_last_of_few_pictures():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK)])
    NotebookClient(notebook, timeout=120).execute()
    outputs = notebook.cells[0].outputs
    (picture,) = [output for output in outputs if output.output_type == "display_data"]
    (printed,) = [output.text for output in outputs if output.output_type == "stream"]
    shown = json.loads(printed)
    assert shown[0] == 1 and shown[-1] == 300 and len(shown) < 30, "the first, the last, and few between"
    assert picture.metadata["image/png"]["alt"].startswith("Learning curves up to update 300, where the ELBO is -101.3")
    with Image.open(io.BytesIO(base64.b64decode(picture.data["image/png"]))) as image:
        assert image.width > 600


def test_a_script_draws_nothing(monkeypatch, capsys):
    def refuse(*_):
        raise AssertionError("drawn where nobody sees it")

    monkeypatch.setattr(plotting, "curves", refuse)
    plot = plotting.LivePlot()
    for update in (50, 100):
        plot(record(update))
    assert capsys.readouterr().out == ""


@pytest.fixture
def notebook(monkeypatch):
    """A pretended notebook: the pictures it was asked to show."""
    shown = []
    handle = SimpleNamespace(update=shown.append)
    monkeypatch.setattr(plotting, "get_ipython", lambda: SimpleNamespace(kernel=True))
    monkeypatch.setattr(plotting, "display", lambda picture, display_id: shown.append(picture) or handle)
    return shown


def test_a_live_plot_leaves_the_style_as_it_was(notebook):
    before = dict(plt.rcParams)
    plotting.LivePlot()(record(100))
    assert len(notebook) == 1 and dict(plt.rcParams) == before
    assert plt.get_fignums() == []


@pytest.mark.parametrize(("seconds", "expected"), [(0.01, [1, 11, 21, 31, 40]), (0.1, [1, 20, 39, 40])])
def test_pictures_take_at_most_a_twentieth_of_the_time(seconds, expected, notebook, monkeypatch):
    """One record every 0.1 s; a picture that takes 0.1 s is drawn every 2 s."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(plotting.time, "monotonic", lambda: clock.now)
    plot = plotting.LivePlot()

    def draw():
        clock.now += seconds
        return len(plot.records)

    monkeypatch.setattr(plot, "_picture", draw)
    for update in range(1, 41):
        plot(record(update, total=40))
        clock.now += 0.1001
    assert notebook == expected


def test_a_single_cell_has_no_directions_to_color():
    with pytest.raises(ValueError, match="at least two cells"):
        plotting.hidden_colors([torch.rand(8, 1, 1)])


def test_a_negative_pad_is_refused():
    with pytest.raises(ValueError, match="pad is at least 0 pixels, not -1"):
        pictures.image_grid(torch.rand(2, 4, 4), pad=-1)
