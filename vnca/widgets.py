"""Sliders of chapter 6: a hole in a digit, its completions, and how the cells grow into it.

`InpaintingPanel` is a panel of ipywidgets for JupyterLab, Notebook, VS Code and Colab. It needs a kernel, so a built
page shows `static_sequence` in its place: tag the panel's cell `skip-execution`. What executes notebooks without a
reader, as the book's builder does, passes over such a cell; people's front ends run it.
"""

import asyncio
import html
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cached_property
from typing import NamedTuple

import ipywidgets
import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor

from vnca import healing, plotting
from vnca.decoders import IMAGE_SIZE, DoublingDecoder, RegrowingDecoder
from vnca.inpainting import QuickInpainter, inpaint
from vnca.pictures import data_url, to_pixels
from vnca.priors import standard_normal
from vnca.regrowth import cells_of, regrow
from vnca.seeds import seed_of
from vnca.vae import VAE, require_pixels

__all__ = ["InpaintingPanel", "Pictures", "Regrowth", "Settings", "static_sequence"]

SAMPLE_LONGER = "Sample longer"
HOLE_COLOR = (0.90, 0.62, 0.0)  # Okabe and Ito's orange: neither ink nor paper
ENLARGED = 4  # times, in each direction
MOST_STEPS = 1000
REMEMBERED = 32  # holes whose completions are kept
NO_PATH = (None, [], iter(()))  # of a regrowth: its settings, the frames so far, the states to come


class Settings(NamedTuple):
    """What the controls say.

    Attributes:
        image: which image, from 0.
        row, col: the hole's upper left pixel.
        size: side of the hole in pixels; what reaches past the border is cut off, and 0 is no hole.
        completion: which completion, from 0.
        temperature: scale of the latent's noise, see `Regrowth`.
        steps: steps the cells have taken since the damage, at most 1,000.
    """

    image: int = 0
    row: int = 8
    col: int = 8
    size: int = 12
    completion: int = 0
    temperature: float = 1.0
    steps: int = 0


class Pictures(NamedTuple):
    """What the panel shows, each with values in [0, 1].

    Attributes:
        original: the image, `(1, 28, 28)`.
        damaged: the image with the hole in orange, `(3, 28, 28)`.
        regrown: observed pixels as they are; in the hole, what the cells show, `(1, 28, 28)`.
        difference: absolute difference of original and regrown, `(1, 28, 28)`.
        uncertainty: standard deviation of the pixels' probabilities over the completions, at most 0.5, `(1, 28, 28)`.
    """

    original: Tensor
    damaged: Tensor
    regrown: Tensor
    difference: Tensor
    uncertainty: Tensor


class _Completed(NamedTuple):
    """Completions of one hole: what the encoder makes of them, `(K, D)` each, and whether they were sampled longer."""

    mean: Tensor
    stddev: Tensor
    noise: Tensor
    longer: bool


class Regrowth:
    """Completions of a hole in an image, and how the cells of each grow into the hole; the panel without its sliders.

    A completion k is an image x_k with the missing pixels painted in by `vnca.inpaint`. Its latent is
    z_k = mean(x_k) + temperature * stddev(x_k) * noise_k with the mean and standard deviation of q(z | x_k): at
    temperature 1 a sample of the posterior, at 0 its mean, above 1 bolder than the model. The grid grown from z_k loses
    the cells of the hole and goes on step by step.

    Nothing is computed twice while its settings stay: a step more costs a step. The noise depends on the hole alone, so
    the same settings give the same pictures.

    Args:
        model: a `VAE` whose decoder is made of cells (regrowing or doubling).
        images: `(N, 1, 28, 28)` in [0, 1].
        num_completions: completions of a hole by the whole sampler.
        num_quick: completions of a quick estimate, which the time of a redraw depends on. As many can be looked at.
        seed: of all randomness.

    Raises:
        ValueError: if the decoder has no cells, `images` has another shape, no images or pixels outside [0, 1], or
            unless `2 <= num_quick <= num_completions`.
    """

    def __init__(self, model: VAE, images: Tensor, num_completions: int = 16, num_quick: int = 4, seed: int = 0):
        if not isinstance(model.decoder, DoublingDecoder | RegrowingDecoder):
            raise ValueError(f"a {type(model.decoder).__name__} has no cells that could grow again: take a VNCA")
        if images.ndim != 4 or images.shape[1:] != (1, IMAGE_SIZE, IMAGE_SIZE) or not len(images):
            raise ValueError(f"images have the shape (N, 1, 28, 28) with N >= 1, not {tuple(images.shape)}")
        if not 2 <= num_quick <= num_completions:
            raise ValueError(f"regrowth needs 2 <= num_quick <= num_completions, not {num_quick} and {num_completions}")
        require_pixels(images)
        # A copy of its own, laid out in memory as its states are: half the time on a CPU.
        self.model = deepcopy(model).eval().to(memory_format=torch.channels_last)
        self.images = images.to(next(model.parameters()))
        self.num_completions, self.num_quick = num_completions, num_quick
        self.seed = seed
        self._completed: OrderedDict[tuple, _Completed] = OrderedDict()
        self._grown: tuple = (None, None)  # settings, states
        self._path = NO_PATH

    @cached_property
    def _quick(self) -> QuickInpainter:
        """Made when it is first asked for: it decodes hundreds of images, and a still figure needs none of them."""
        return QuickInpainter(self.model, Generator().manual_seed(seed_of("widget", self.seed)))

    @torch.no_grad()
    def pictures(self, settings: Settings) -> Pictures:
        """The pictures of these settings.

        Raises:
            ValueError: if a setting is out of range.
        """
        self._require(settings)
        original, observed = self.images[settings.image], self.observed(settings)  # (1, 28, 28)
        grown = self._grow(settings)
        regrown = torch.where(observed, original, self._frame(grown, settings))
        probabilities = _probabilities(grown[1])  # (K, 1, 28, 28)
        return Pictures(
            original=original,
            damaged=torch.where(observed, original, original.new_tensor(HOLE_COLOR)[:, None, None]),
            regrown=regrown,
            difference=(original - regrown).abs(),
            uncertainty=probabilities.std(dim=0, correction=0).masked_fill(observed, 0),
        )

    def observed(self, settings: Settings) -> Tensor:
        """The mask `(1, 28, 28)`, True outside of the hole."""
        mask = torch.ones(1, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.bool, device=self.images.device)
        mask[:, settings.row : settings.row + settings.size, settings.col : settings.col + settings.size] = False
        return mask

    def is_quick(self, settings: Settings) -> bool:
        """Whether the completions of this hole are, so far, a quick estimate."""
        return not self._complete(settings).longer

    def sample_longer(self, settings: Settings) -> None:
        """Replace the completions of this hole by those of the whole sampler, which takes seconds."""
        self._require(settings)
        self._completed[_hole(settings)] = self._sample(settings, longer=True)

    def _require(self, settings: Settings) -> None:
        last = IMAGE_SIZE - 1
        highest = {"image": len(self.images) - 1, "row": last, "col": last, "size": IMAGE_SIZE}
        highest |= {"completion": self.num_quick - 1, "steps": MOST_STEPS}
        for name, value in settings._asdict().items():
            if name in highest and not 0 <= value <= highest[name]:
                raise ValueError(f"{name} lies between 0 and {highest[name]}, not {value}")
            if not value >= 0:
                raise ValueError(f"{name} is at least 0, not {value}")

    def _complete(self, settings: Settings) -> _Completed:
        hole = _hole(settings)
        if hole not in self._completed:
            self._completed[hole] = self._sample(settings, longer=False)
        self._completed.move_to_end(hole)
        if len(self._completed) > REMEMBERED:
            self._completed.popitem(last=False)
        return self._completed[hole]

    @torch.no_grad()
    def _sample(self, settings: Settings, longer: bool) -> _Completed:
        generator = Generator().manual_seed(seed_of("widget", self.seed, *_hole(settings)))
        x, observed = self.images[settings.image, None], self.observed(settings)[None]
        if longer:
            painted = inpaint(self.model, x, observed, self.num_completions, generator)
        else:
            painted = self._quick(x, observed, self.num_quick, generator)
        painted = painted[:, 0]  # (K, 1, 28, 28)
        # The encoder learned from images of 0 and 1, so the missing pixels are drawn, not left grey.
        drawn = torch.bernoulli(painted.cpu(), generator=generator).to(painted.device)
        posterior = self.model.encode(torch.where(observed, x, drawn))
        noise = standard_normal(posterior.mean.shape, posterior.mean, generator)
        return _Completed(posterior.mean, posterior.stddev, noise, longer)

    def _grow(self, settings: Settings) -> tuple[tuple, Tensor]:
        """The grids grown from all completions, `(K, C, 32, 32)`, and what identifies them."""
        completed = self._complete(settings)
        key = (_hole(settings), completed.longer, settings.temperature)
        if self._grown[0] != key:
            z = completed.mean + settings.temperature * completed.stddev * completed.noise  # (K, D)
            self._grown = (key, healing.grown(self.model.decoder, z))
        return self._grown

    def _frame(self, grown: tuple[tuple, Tensor], settings: Settings) -> Tensor:
        """What the cells of one completion show so many steps after the damage, `(1, 28, 28)`."""
        key = (grown[0], settings.completion)
        (last, frames, states), self._path = self._path, NO_PATH  # put back below: an interrupted generator is dead
        if last != key:
            state, region = grown[1][settings.completion, None], cells_of(self.observed(settings)[None])
            # A generator: each step is taken when it is first asked for.
            frames, states = [], regrow(self.model.decoder, state, region, None, MOST_STEPS)
        while len(frames) <= settings.steps:
            frames.append(_probabilities(next(states))[0])
        self._path = (key, frames, states)
        return frames[settings.steps]


def _hole(settings: Settings) -> tuple:
    return settings.image, settings.row, settings.col, settings.size


def _probabilities(states: Tensor) -> Tensor:
    return healing.image(states).sigmoid()  # (B, C, 32, 32) -> (B, 1, 28, 28)


class Coalesced:
    """Serves many changes with few calls: only the newest matters, and none is kept waiting behind old ones.

    A front end sends one message for each change, and a kernel works through them one by one. If each were answered by
    a slow action, they would pile up. So a change that comes after a pause is served at once, while its message is
    handled, because Colab loses what is sent later (googlecolab/colabtools, issue 3373). A change right behind the last
    action had been waiting, and others may wait behind it: all of them are taken in first, and served together from the
    event loop. Without an event loop there is no queue, and each change is served at once.

    JupyterLab handles the messages of widgets beside running cells, in another thread, hence the lock.

    Args:
        action: what a change calls for; it looks up by itself what is wanted now.
    """

    GATHER = 0.03  # seconds; a front end's next message takes longer than those that wait already

    def __init__(self, action: Callable[[], None]):
        self.lock = threading.RLock()
        self._action = action
        self._waiting = False
        self._armed = False
        self._served = -float("inf")  # when the last action ended

    def request(self, change: object = None) -> None:
        """Something changed; takes what a widget's `observe` passes."""
        self._waiting = True
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.serve()
            return
        if time.monotonic() - self._served > self.GATHER:
            self.serve()
        elif not self._armed:
            self._armed = True
            loop.call_later(self.GATHER, self._serve_late)

    def _serve_late(self) -> None:
        self._armed = False
        self.serve()

    def serve(self) -> None:
        """Serve now what waits, if anything does."""
        with self.lock:
            if not self._waiting:
                return
            self._waiting = False
            try:
                self._action()
            finally:
                self._served = time.monotonic()


class InpaintingPanel(ipywidgets.VBox):
    """Sliders for a hole in a digit, and side by side: original, damaged, regrown, difference and uncertainty.

    While sliders move, the completions are a quick estimate, and the panel says so; a button asks the whole sampler.
    Play lets the cells take step after step.

    Args:
        model, images, num_completions, num_quick, seed: as for `Regrowth`.
        labels: what the menu calls the images; numbers from 1 if left out.
        max_steps: the most steps after the damage.

    Raises:
        ValueError: as `Regrowth` does; if there is not one label for each image, or two are the same; if `max_steps` is
            below 1 or above 1,000.

    >>> from vnca import Encoder
    >>> model = VAE(Encoder(latent_size=4, width=1), RegrowingDecoder(channels=4, hidden=4))
    >>> panel = InpaintingPanel(model, torch.rand(2, 1, 28, 28), labels=["one", "two"])
    >>> panel.size.value = 0
    >>> panel.settle().difference.any()
    tensor(False)
    """

    def __init__(
        self,
        model: VAE,
        images: Tensor,
        labels: Sequence[str] | None = None,
        *,
        num_completions: int = 16,
        num_quick: int = 4,
        max_steps: int = 40,
        seed: int = 0,
    ):
        self.regrowth = Regrowth(model, images, num_completions, num_quick, seed)
        labels = [str(index + 1) for index in range(len(images))] if labels is None else [*map(str, labels)]
        if not len(labels) == len(set(labels)) == len(images):
            raise ValueError(f"{len(images)} images need as many labels, each another, not {labels}")
        if not 1 <= max_steps <= MOST_STEPS:
            raise ValueError(f"max_steps is from 1 to {MOST_STEPS:,}, not {max_steps}")
        start, last = Settings(steps=max_steps // 2), IMAGE_SIZE - 1
        self.image = ipywidgets.Dropdown(options=[(label, index) for index, label in enumerate(labels)])
        self.row = ipywidgets.IntSlider(start.row, min=0, max=last)
        self.col = ipywidgets.IntSlider(start.col, min=0, max=last)
        self.size = ipywidgets.IntSlider(start.size, min=0, max=IMAGE_SIZE)
        self.completion = ipywidgets.IntSlider(start.completion + 1, min=1, max=num_quick)
        self.temperature = ipywidgets.FloatSlider(start.temperature, min=0, max=2, step=0.1, readout_format=".1f")
        self.steps = ipywidgets.IntSlider(start.steps, min=0, max=max_steps)
        self.play = ipywidgets.Play(value=start.steps, min=0, max=max_steps, interval=150)
        self.link = ipywidgets.jslink((self.play, "value"), (self.steps, "value"))
        self.longer = ipywidgets.Button(description=SAMPLE_LONGER, tooltip="More completions, of the whole sampler")
        self.figures = ipywidgets.HTML(layout=ipywidgets.Layout(width="100%"))
        self.shown: Pictures | None = None
        self._longer_wanted = False
        self._redraws = Coalesced(self._redraw)
        names = ("Digit", "Row", "Column", "Size", "Completion", "Temperature", "Steps")
        for control, name in zip(self._controls(), names, strict=True):
            control.description = name
            control.style = {"description_width": "7em"}
            control.layout = ipywidgets.Layout(width="auto")
            control.observe(self._redraws.request, "value")
        self.longer.on_click(self._sample_longer)
        hole = _column(self.image, self.row, self.col, self.size)
        cells = _column(self.completion, self.temperature, self.steps, _row(self.play, self.longer))
        super().__init__([_row(hole, cells), self.figures])
        self._redraws.request()

    def _controls(self) -> tuple[ipywidgets.Widget, ...]:
        """In the order of `Settings`."""
        return self.image, self.row, self.col, self.size, self.completion, self.temperature, self.steps

    @property
    def settings(self) -> Settings:
        """What the controls say."""
        settings = Settings(*(control.value for control in self._controls()))
        return settings._replace(completion=settings.completion - 1)  # people count from 1

    def settle(self) -> Pictures | None:
        """Draw what waits to be drawn, and return what is shown; None after an error."""
        self._redraws.serve()
        return self.shown

    def _redraw(self) -> None:
        settings, quick = self.settings, True
        longer, self._longer_wanted = self._longer_wanted, False  # a click from here on is for the next redraw
        try:
            if longer:
                self.regrowth.sample_longer(settings)
            self.shown = self.regrowth.pictures(settings)
            quick = self.regrowth.is_quick(settings)
            source = (
                f"{self.regrowth.num_quick} completions, a quick estimate"
                if quick
                else f"{self.regrowth.num_completions} completions of the whole sampler"
            )
            self.figures.value = _page(self.shown, settings, source)
        except BaseException as error:
            # A front end hides what fails in here, and the old pictures would pass for those of the new settings.
            self.shown = None
            reason = html.escape(str(error) or type(error).__name__)  # an interrupt has no message
            self.figures.value = f"<p>These settings were not drawn: {reason}</p>"
            raise
        finally:
            if not self._longer_wanted:  # else it stays as the click left it until the next redraw
                self.longer.disabled, self.longer.description = not quick, SAMPLE_LONGER

    def _sample_longer(self, button: ipywidgets.Button) -> None:
        self._longer_wanted = True
        button.disabled, button.description = True, "Sampling …"
        self._redraws.request()


def _row(*children: ipywidgets.Widget) -> ipywidgets.Box:
    """Side by side, or one below the other where the page is narrow."""
    return ipywidgets.Box(children, layout=ipywidgets.Layout(flex_flow="row wrap", align_items="center"))


def _column(*children: ipywidgets.Widget) -> ipywidgets.VBox:
    return ipywidgets.VBox(children, layout=ipywidgets.Layout(flex="1 1 17em", min_width="0"))


STYLE = """\
<style>
.vnca-pictures { display: flex; flex-wrap: wrap; max-width: 60em; margin: 1em -1em 0 0; line-height: 1.4; }
.vnca-pictures figure { flex: 0 0 max(8em, calc(20% - 1em)); margin: 0 1em 1em 0; }
.vnca-pictures img { display: block; width: 100%; image-rendering: pixelated; outline: 1px solid gray; }
.vnca-pictures figcaption { margin-top: 0.25em; font-variant-numeric: tabular-nums; }
.vnca-pictures figcaption b { display: block; }
.vnca-pictures + p { margin: 0; line-height: 1.4; }
</style>"""


def _page(pictures: Pictures, settings: Settings, source: str) -> str:
    """The pictures with captions, and what they belong to: one message, so that they are never of different settings.

    As HTML rather than `ipywidgets.Image`, whose pictures say nothing to those who cannot see them.
    """
    side, row, col = settings.size, settings.row, settings.col
    difference, uncertainty = (f"{_mean_in_hole(p, settings):.2f}" for p in (pictures.difference, pictures.uncertainty))
    steps = f"after {settings.steps} step{'s' * (settings.steps != 1)}"
    captions = {
        "original": ("Original", "as it was", "the digit as it was"),
        "damaged": (
            "Damaged",
            f"{side} × {side} pixels",
            f"the digit with a hole of {side} × {side} pixels at row {row}, column {col}",
        ),
        "regrown": ("Regrown", steps, f"what the cells show in the hole {steps}"),
        "difference": (
            "Difference",
            f"mean {difference}",
            f"how far original and regrown differ, {difference} on average in the hole",
        ),
        "uncertainty": (
            "Uncertainty",
            f"mean {uncertainty}",
            f"standard deviation over the completions, {uncertainty} on average in the hole",
        ),
    }
    bright = pictures._replace(uncertainty=2 * pictures.uncertainty)  # at most 0.5
    figures = "".join(
        f'<figure><img alt="{name}: {alt}" src="{_enlarged_url(getattr(bright, key))}">'
        f"<figcaption><b>{name}</b>{detail}</figcaption></figure>"
        for key, (name, detail, alt) in captions.items()
    )
    text = (
        f"Completion {settings.completion + 1}, uncertainty over {source}, at temperature {settings.temperature:.1f}. "
        "White is 1 in the difference and 0.5 in the uncertainty; means are over the hole."
    )
    return f'{STYLE}<div class="vnca-pictures">{figures}</div><p>{text}</p>'


def _mean_in_hole(picture: Tensor, settings: Settings) -> float:
    """The mean over the pixels of the hole; 0 where there is none."""
    hole = picture[:, settings.row : settings.row + settings.size, settings.col : settings.col + settings.size]
    return hole.mean().item() if hole.numel() else 0.0


def _enlarged_url(picture: Tensor) -> str:
    """The picture, enlarged, as a PNG in an address."""
    (pixels,) = to_pixels([picture])
    enlarged = pixels.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)  # for where the style does not reach
    return data_url(enlarged, optimize=False)  # a slider waits for it


def static_sequence(
    model: VAE,
    image: Tensor,
    settings: Settings | None = None,
    *,
    steps: Sequence[int] = (0, 2, 5, 10, 20, 40),
    num_completions: int = 16,
    seed: int = 0,
) -> Figure:
    """What the panel shows, as one still figure for pages without a kernel; completions of the whole sampler.

    From left to right: original, damaged, regrown after each of the steps, and difference and uncertainty at the end.

    Args:
        model: as for `Regrowth`.
        image: `(1, 28, 28)` in [0, 1].
        settings: hole, completion and temperature (default: those the panel starts with); image and steps play no part.
        steps: the steps after the damage to show.
        num_completions, seed: as for `Regrowth`.

    Raises:
        ValueError: as `Regrowth` does, or if `steps` is empty.
    """
    if not len(steps):
        raise ValueError("static_sequence needs at least one number of steps")
    regrowth = Regrowth(model, image[None], num_completions, num_quick=num_completions, seed=seed)
    settings = (settings or Settings())._replace(image=0)
    regrowth.sample_longer(settings)
    sequence = [regrowth.pictures(settings._replace(steps=count)) for count in steps]
    last = sequence[-1]
    pictures = [last.original, last.damaged, *(each.regrown for each in sequence)]
    titles = ["original", "damaged", *(f"step {count}" for count in steps), "difference", "uncertainty"]
    return plotting.show_images(
        [*pictures, last.difference, 2 * last.uncertainty], titles=titles, columns=math.ceil(len(titles) / 2), scale=1.4
    )
