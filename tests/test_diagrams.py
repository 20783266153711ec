"""Schematic diagrams: they can be read, and they show what the chapters say."""

import io
import itertools
import warnings
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path
from PIL import Image

from vnca import diagrams, plotting
from vnca.pictures import to_pixels

SIDES = (2, 4, 8, 16, 32)


def stages() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1, side, side, generator=generator) for side in SIDES]


FIGURES = {name: getattr(diagrams, name) for name in diagrams.__all__} | {
    "growth with pictures": lambda: diagrams.growth(stages())
}


@pytest.fixture(autouse=True)
def _restore_style():
    with plt.rc_context():
        yield


@pytest.fixture(scope="module", params=FIGURES)
def drawn(request):
    """Each figure, drawn without warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = FIGURES[request.param]()
        FigureCanvasAgg(figure).draw()
    return figure


def pixels(figure) -> np.ndarray:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return np.asarray(Image.open(file).convert("RGB"))


def texts(figure) -> dict:
    """The rectangle of each text, in pixels."""
    renderer = figure.canvas.get_renderer()
    return {text: text.get_window_extent(renderer) for text in figure.axes[0].texts if text.get_text()}


def patches(figure, kind: type) -> list:
    return [patch for patch in figure.axes[0].patches if isinstance(patch, kind)]


def levels(figure) -> dict[float, list[tuple[float, float]]]:
    """The bars of a figure by their place: bottom and top of each, downward."""
    bars = {}
    for bar in figure.axes[0].patches:
        bars.setdefault(bar.get_x(), []).append((bar.get_y(), bar.get_y() + bar.get_height()))
    return bars


def test_texts_lie_inside_the_figure(drawn):
    found = texts(drawn)
    assert len(found) >= 5
    for text, extent in found.items():
        inside = extent.x0 > 5 and extent.y0 > 5 and extent.x1 < drawn.bbox.x1 - 5 and extent.y1 < drawn.bbox.y1 - 5
        assert inside, text


def test_texts_overlap_neither_each_other_nor_pictures(drawn):
    found = texts(drawn)
    for (one, extent), (other, beside) in itertools.combinations(found.items(), 2):
        assert not extent.overlaps(beside), (one, other)
    for text, image in itertools.product(found, drawn.axes[0].images):
        assert not found[text].overlaps(image.get_window_extent()), text


def test_texts_fit_into_their_boxes(drawn):
    for box, (text, extent) in itertools.product(patches(drawn, FancyBboxPatch), texts(drawn).items()):
        frame = box.get_window_extent()
        if frame.overlaps(extent):
            assert frame.x0 + 3 < extent.x0 and extent.x1 < frame.x1 - 3, text
            assert frame.y0 + 3 < extent.y0 and extent.y1 < frame.y1 - 3, text


def test_no_arrow_crosses_a_text(drawn):
    for arrow, (text, extent) in itertools.product(patches(drawn, FancyArrowPatch), texts(drawn).items()):
        # Line and head, each without what closes its outline: that vertex stands at (0, 0).
        parts = arrow.get_transform().transform_path(arrow.get_path()).to_polygons(closed_only=False)
        assert not any(Path(part).intersects_bbox(extent, filled=False) for part in parts), text


def test_type_is_large_enough_for_a_phone(drawn):
    assert drawn.get_figwidth() <= 7
    assert min(text.get_fontsize() for text in texts(drawn)) >= 12


def test_background_is_white_up_to_the_border(drawn):
    picture = pixels(drawn)
    border = np.concatenate([picture[:6].reshape(-1, 3), picture[-6:].reshape(-1, 3), picture[:, :6].reshape(-1, 3)])
    assert (border == 255).all()
    assert (picture != 255).any()


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_style_of_the_book_changes_nothing(draw):
    plt.rcdefaults()
    before = pixels(draw())
    plotting.use_style()
    np.testing.assert_array_equal(pixels(draw()), before)


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_notebook_shows_a_figure_once(draw):
    open_before = plt.get_fignums()
    assert isinstance(draw(), plt.Figure)
    assert plt.get_fignums() == open_before


def test_bound_adds_up():
    left, right = levels(diagrams.bound()).values()
    (explained, zero), (elbo, start_of_cost) = left
    (evidence, top), (end_of_gap, start_of_gap) = right
    assert start_of_cost == pytest.approx(explained)  # the cost goes on where the likelihood ends
    assert start_of_gap == pytest.approx(evidence)
    assert end_of_gap == pytest.approx(elbo)  # log p(x) = ELBO + gap
    assert top == pytest.approx(zero)
    assert elbo < evidence < zero and elbo < explained < zero


def test_doubling_vnca_is_judged_once_and_the_others_over_a_range():
    figure = diagrams.three_lives()
    dots = Counter()
    for line in figure.axes[0].lines:
        if line.get_marker() == "o":
            dots.update(line.get_ydata())
    first, *others = (count for _, count in sorted(dots.items(), reverse=True))
    assert first == 1
    assert len(others) == 2 and min(others) > 2


def test_growth_draws_as_many_cells_as_there_are():
    figure = diagrams.growth()
    lines = [len(collection.get_segments()) for collection in figure.axes[0].collections]
    assert lines == [2 * (side - 1) for side in (*SIDES, 28)]
    assert all((image.get_array() == 255).all() for image in figure.axes[0].images)


def test_growth_shows_the_pictures_as_they_are():
    given = stages()
    figure = diagrams.growth(given)
    wanted = to_pixels([*given, given[-1][:, 2:-2, 2:-2]])
    assert len(figure.axes[0].images) == len(wanted)
    for image, picture in zip(figure.axes[0].images, wanted, strict=True):
        np.testing.assert_array_equal(image.get_array(), np.dstack([picture] * 3))
    # And on paper: in the middle of each cell of the first grid is its gray.
    paper, extent = pixels(figure), figure.axes[0].images[0].get_window_extent()
    for row, column in itertools.product((0, 1), (0, 1)):
        x = extent.x0 + (column + 0.5) * extent.width / 2
        y = len(paper) - extent.y1 + (row + 0.5) * extent.height / 2
        np.testing.assert_array_equal(paper[int(y), int(x)], wanted[0][row, column])


@pytest.mark.parametrize(
    "pictures",
    [
        [],
        stages()[:4],
        stages()[::-1],
        [picture[0] for picture in stages()],
        [picture.expand(3, -1, -1) for picture in stages()],
        [picture[None] for picture in stages()],
    ],
    ids=["none", "four", "backward", "no channel", "three channels", "batches"],
)
def test_growth_names_pictures_that_do_not_fit(pictures):
    with pytest.raises(ValueError, match=r"growth needs five pictures of the shapes \[\(1, 2, 2\), "):
        diagrams.growth(pictures)


def test_growth_names_what_is_no_number():
    broken = stages()
    broken[2][0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        diagrams.growth(broken)
