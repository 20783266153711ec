"""What a training run is: its configuration, and the configurations with a name."""

import math
import os
from dataclasses import asdict, dataclass, replace

from vnca.checks import differences
from vnca.vae import ModelConfig


@dataclass(frozen=True)
class TrainConfig:
    """All that determines a run. It ends after `updates` updates or after `minutes` of training, whichever is given.

    Attributes:
        model: the model to build.
        data: a data set of `vnca.data`.
        split: the part of it to train on.
        updates: steps of the optimizer, or None. With 0 of them a run only fits a learned prior.
        batch_size: images an update, over all processes together.
        learning_rate: Adam's, at its peak.
        minutes: length of the run in minutes of training, or None. The schedule fits itself to it, so such a run ends
            with a learning rate of zero too; but how far it gets depends on the machine, so it is not reproducible.
        warmup: updates over which the learning rate rises from zero.
        schedule: what the learning rate does then: `"cosine"` falls to zero along a cosine, `"constant"` stays.
        kl_warmup: updates over which the weight of the KL term rises from zero to one.
        clip: the largest norm of the gradient; a longer one is scaled down to it.
        ema: decay of the exponential moving average of the weights, which is what is kept and evaluated; 0 for none.
        init_from: weights to start from, a name or a folder as `vnca.load` takes it, instead of random ones. A path
            object is kept as text.
        encoder_from: weights whose encoder to start with, likewise.
        lessons: what the update of a regrowing decoder learns on small grids first, see `vnca.objectives.CoarseToFine`:
            pairs of the side of the grid and the number of updates, which count among those of the run.
        planted: whether wounded cells with a genome also get that of another image, see `vnca.objectives`.
        samples: of the latent for each image. With more than one the loss is the importance-weighted bound.
        seed: of the initial weights and of every random choice.

    Raises:
        ValueError: if a value is out of range.
    """

    model: ModelConfig
    data: str
    split: str
    updates: int | None
    batch_size: int
    learning_rate: float
    minutes: float | None = None
    warmup: int = 100
    schedule: str = "cosine"
    kl_warmup: int = 500
    clip: float = 10.0
    ema: float = 0.999
    init_from: str | os.PathLike | None = None
    encoder_from: str | os.PathLike | None = None
    lessons: tuple[tuple[int, int], ...] = ()
    planted: bool = False
    samples: int = 1
    seed: int = 0

    def __post_init__(self):
        object.__setattr__(self, "lessons", tuple(map(tuple, self.lessons)))  # JSON has lists only
        for name in ("init_from", "encoder_from"):
            value = getattr(self, name)
            if isinstance(value, os.PathLike):  # as text with a separator in it, it still means a path
                path = os.fspath(value)
                object.__setattr__(self, name, path if os.path.dirname(path) else os.path.join(os.curdir, path))
        if (self.updates is None) == (self.minutes is None):
            raise ValueError(f"a run has updates or minutes, one of the two, not {self.updates} and {self.minutes}")
        fewest = 0 if self.model.components else 1
        for name, least in (("updates", fewest), ("batch_size", 1), ("warmup", 0), ("kl_warmup", 0), ("samples", 1)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise ValueError(f"{name} is a whole number, at least {least}, not {value}")
        for name in ("learning_rate", "clip", "minutes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is a positive number, not {value}")
        if self.schedule not in ("cosine", "constant"):
            raise ValueError(f"the schedule is 'cosine' or 'constant', not {self.schedule!r}")
        if self.samples > 1 and self.kl_warmup:
            raise ValueError(
                f"the importance-weighted bound has no KL term to warm up: with {self.samples} samples kl_warmup is 0, "
                f"not {self.kl_warmup}"
            )
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema lies in [0, 1), but is {self.ema}")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is a whole number from 0 to {2**32 - 1}, not {self.seed}")

    def fraction_at(self, update: int, seconds: float) -> float:
        """How much of the run is done after `update` updates and `seconds` seconds of training: 0 to 1."""
        if self.updates is None:
            return min(1.0, seconds / (60 * self.minutes))
        return min(1.0, update / self.updates) if self.updates else 1.0

    def learning_rate_at(self, update: int, fraction: float) -> float:
        """The learning rate of update `update` (from 0), when `fraction` of the run is done."""
        rising = min(1.0, (update + 1) / max(1, self.warmup))
        falling = 0.5 * (1 + math.cos(math.pi * fraction)) if self.schedule == "cosine" else 1.0
        return self.learning_rate * rising * falling

    def kl_weight_at(self, update: int) -> float:
        """The weight of the KL term in update `update` (from 0)."""
        return min(1.0, (update + 1) / max(1, self.kl_warmup))

    def changed(self, **options: object) -> "TrainConfig":
        """This configuration with other values, where they are not None.

        Minutes replace updates, and updates minutes. Whole weights to start from replace those of an encoder.

        Raises:
            ValueError: if a value is out of range, or both minutes and updates are given.
        """
        given = {name: value for name, value in options.items() if value is not None}
        if "minutes" in given:
            given.setdefault("updates", None)
        elif "updates" in given:
            given["minutes"] = None
        if "init_from" in given:
            given.setdefault("encoder_from", None)
        return replace(self, **given)

    def to_dict(self) -> dict:
        """Everything but the model, as JSON values."""
        return {key: value for key, value in asdict(self).items() if key != "model"}

    def differences(self, other: "TrainConfig") -> list[str]:
        """In words, where another configuration differs from this one."""
        return differences(vars(other), vars(self))


@dataclass(frozen=True)
class Preset:
    """A configuration with a name.

    Attributes:
        config: the configuration.
        purpose: what it is for, in one line.
        minutes: how long it took.
        nats: the importance-weighted bound it reached on the test set.
        hardware: where. None, as the two figures are, for a run that has not been made yet.
    """

    config: TrainConfig
    purpose: str
    minutes: float | None = None
    nats: float | None = None
    hardware: str | None = None

    def expected(self) -> str:
        """What to expect, in words."""
        if self.minutes is None:
            return "no measured run yet"
        bound = f", {self.nats:.1f} nats".replace("-", "−") if self.nats is not None else ""
        minutes = f"{self.minutes:.0f} minute{'s' if round(self.minutes) != 1 else ''}"
        if self.minutes < 0.5:
            minutes = "less than a minute"
        return f"{minutes} on {self.hardware}{bound}"


SMALL = ModelConfig("doubling", 64, 8, {"hidden": 64, "steps": 4})
# The authors' code (revision 036578c of its repository) differs in that it pads images to 32 x 32 and scores all 1,024
# pixels, here the decoder is cropped to the 784 of the image; and in that it multiplies in float32 everywhere.
PAPER = TrainConfig(
    model=ModelConfig(),
    data="binarized-mnist",
    split="train+valid",
    updates=100_000,
    batch_size=32,
    learning_rate=1e-4,
    warmup=0,
    schedule="constant",
    kl_warmup=0,
    ema=0.0,
)
REGROW = replace(
    PAPER,
    model=ModelConfig("regrowing", 128),
    batch_size=128,
    clip=1.0,
)

BEST = replace(PAPER, updates=21_063, batch_size=64, learning_rate=4e-4, warmup=500, schedule="cosine", ema=0.999)
REFINE = replace(
    BEST,
    model=ModelConfig(components=150, correlated=32),
    updates=5000,
    batch_size=32,
    learning_rate=2e-4,
    warmup=100,
    init_from="doubling-mnist",
    samples=5,
)
REFINE_PLAIN = replace(
    REFINE,
    model=PAPER.model,
    updates=None,
    minutes=70.0,
    batch_size=16,
    learning_rate=4e-5,  # of 1e-4 the few updates that two cores can make do not recover
    warmup=50,
    ema=0.98,
)
FIT_PRIOR = replace(REFINE, updates=0, samples=1)
REFINE_SMALL = replace(
    REFINE,
    model=replace(SMALL, components=500),
    updates=None,
    minutes=60.0,
    batch_size=16,
    learning_rate=5e-4,
    ema=0.998,
    init_from="doubling-mnist-small",
)

MATURE_SMALL = TrainConfig(
    ModelConfig("regrowing", 32, 8, {"channels": 64, "hidden": 64, "min_steps": 16, "max_steps": 24}),
    "binarized-mnist",
    "train+valid",
    updates=None,
    minutes=70.0,
    batch_size=32,
    learning_rate=2e-3,
    kl_warmup=0,
    clip=1.0,
    ema=0.998,
    encoder_from="conv-mnist-small",
    lessons=((8, 2500), (16, 3000), (32, 1200)),
)

PERSIST_SMALL = TrainConfig(
    replace(SMALL, decoder="persistent", decoder_options=SMALL.decoder_options | {"min_steps": 4, "max_steps": 8}),
    "binarized-mnist",
    "train+valid",
    updates=None,
    minutes=120.0,
    batch_size=32,
    learning_rate=1e-3,
    warmup=200,
    kl_warmup=0,
    clip=5.0,
    ema=0.997,
    init_from="doubling-mnist-small",
)

PRESETS = {
    "quick": Preset(
        TrainConfig(
            model=ModelConfig("doubling", 32, 8, {"hidden": 32, "steps": 2}),
            data="digits",
            split="train",
            updates=1200,
            batch_size=32,
            learning_rate=2e-3,
            kl_warmup=200,
            ema=0.99,
        ),
        "a small VNCA on the built-in digits, to see everything work",
    ),
    "small": Preset(
        TrainConfig(SMALL, "binarized-mnist", "train+valid", 12_000, 64, 1.5e-3),
        "a VNCA for two CPU cores, of the size of `doubling-mnist-small`, which came of four shorter runs",
    ),
    "conv": Preset(
        TrainConfig(
            replace(SMALL, decoder="conv", decoder_options={"width": 8}),
            "binarized-mnist",
            "train+valid",
            20_000,
            64,
            1.5e-3,
        ),
        "the baseline: the encoder and latent of `small`, a convolutional decoder",
        minutes=17.0,
        nats=-86.4,
        hardware="one core of an AMD EPYC",
    ),
    "conv-wide": Preset(
        TrainConfig(
            ModelConfig("conv", 64, 16, {"width": 16}),
            "binarized-mnist",
            "train+valid",
            updates=None,
            minutes=85.0,
            batch_size=64,
            learning_rate=1e-3,
        ),
        "the baseline with about as many parameters in its decoder as the paper's VNCA",
        minutes=85.0,
        nats=-85.0,
        hardware="one core of an AMD EPYC",
    ),
    "refine-small": Preset(
        REFINE_SMALL,
        "what `small` trained, with a learned prior and the importance-weighted bound of 5 samples",
        minutes=60.0,
        hardware="two cores of an AMD EPYC",
    ),
    "finetune-small": Preset(
        replace(
            REFINE_SMALL,
            model=replace(SMALL, components=1000),
            minutes=25.0,
            learning_rate=2e-4,
            init_from="runs/refine-small",  # not shipped; `best-mnist-small` is what came of it
        ),
        "what `refine-small` trained in runs/refine-small, once more: twice the components, a lower learning rate",
        minutes=25.0,
        nats=-83.1,
        hardware="two cores of an AMD EPYC",
    ),
    "paper": Preset(PAPER, "the doubling VNCA with the recipe of Palm et al. 2022"),
    "best": Preset(
        BEST,
        "the paper's model with the best recipe so far",
        minutes=8.0,
        nats=-84.5,
        hardware="an NVIDIA H200",
    ),
    "refine": Preset(
        REFINE, "what `best` trained, with a learned prior and the importance-weighted bound of 5 samples"
    ),
    "refine-plain": Preset(
        REFINE_PLAIN,
        "what `best` trained, with the importance-weighted bound of 5 samples and the plain prior",
        minutes=70.0,
        hardware="two cores of an AMD EPYC",
    ),
    "fit-prior": Preset(
        FIT_PRIOR,
        "what `best` trained, with a learned prior and no further training",
        minutes=1.0,
        hardware="two cores of an AMD EPYC",
    ),
    "regrow": Preset(
        REGROW, "the regrowing (non-doubling) VNCA of Palm et al. 2022, trained as vnca.objectives.PersistentElbo says"
    ),
    "fit-prior-small": Preset(
        replace(FIT_PRIOR, model=replace(SMALL, components=100, correlated=24), init_from="doubling-mnist-small"),
        "what `small` trained, with a learned prior and no further training",
        minutes=1.0,
        hardware="one core of an AMD EPYC",
    ),
    "refit-small": Preset(
        replace(FIT_PRIOR, model=replace(SMALL, components=300, correlated=24), init_from="best-mnist-small"),
        "what `finetune-small` trained, with another prior, of Gaussians with full covariances",
        minutes=1.0,
        hardware="two cores of an AMD EPYC",
    ),
    "fit-prior-persist": Preset(
        replace(
            FIT_PRIOR,
            model=replace(PERSIST_SMALL.model, components=40, correlated=16),
            init_from="persistent-mnist-small",
        ),
        "what `persist-small` trained, with a learned prior small enough for the first page",
        minutes=0.45,
        hardware="one core of an Intel Xeon",
    ),
    "conv-small": Preset(
        TrainConfig(
            ModelConfig("conv", 32, 8, {"width": 8}),
            "binarized-mnist",
            "train+valid",
            updates=8000,
            batch_size=64,
            learning_rate=2e-3,
        ),
        "the encoder and latent of `regrow-small`, a convolutional decoder: the encoder to begin that with",
        minutes=4.0,
        nats=-88.0,
        hardware="one core of an AMD EPYC",
    ),
    "regrow-small": Preset(
        TrainConfig(
            ModelConfig("regrowing", 32, 8, {"hidden": 32, "min_steps": 16, "max_steps": 24}),
            "binarized-mnist",
            "train+valid",
            updates=16_000,
            batch_size=32,
            learning_rate=2e-3,
            kl_warmup=0,
            clip=1.0,
            encoder_from="conv-mnist-small",
            lessons=((8, 2000), (16, 2500), (32, 4000)),
        ),
        "the regrowing VNCA of chapter 5, in one run",
    ),
    "mature-small": Preset(
        MATURE_SMALL,
        "the regrowing VNCA of chapter 5 whose cells have a genome and an age",
        minutes=70.0,
        nats=-102.6,
        hardware="one or two cores of an AMD EPYC",
    ),
    "read-small": Preset(
        replace(MATURE_SMALL, minutes=120.0, lessons=((8, 2500), (16, 4000), (32, 1200)), planted=True),
        "as `mature-small`, but that wounded cells learn to read their genome",
    ),
    "persist-small": Preset(
        PERSIST_SMALL,
        "what `small` trained, with a pool and cells that age: the VNCA of the live pages that stays and heals",
    ),
}
