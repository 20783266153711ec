"""What a result in `results/` says about a model: its traits, its sizes, and the figures expected on more images."""

from contents import results, signed

MODELS = {
    "doubling": "doubling VNCA",
    "persistent": "doubling VNCA, trained to stay",
    "conv": "convolutional VAE",
    "regrowing": "regrowing (non-doubling) VNCA",
}

LEARNED = "learned prior"  # among the traits of a model


def runs_of(run: dict) -> list[dict]:
    """A run and those whose weights it started from, all the way back."""
    return [run, *(earlier for before in run.get("before", []) for earlier in runs_of(before))]


def traits(run: dict) -> list[str]:
    """What sort of model a run trained, together with those that it began with: the decoder first, then additions."""
    config = run["config"]
    trainings = [config["training"], *(earlier.get("training", {}) for earlier in runs_of(run)[1:])]
    additions = {
        "cells with genome and age": "channels" in config["model"]["decoder_options"],
        "planted genomes": config["training"].get("planted", False),
        LEARNED: config["model"].get("components", 0) > 0,
        "importance-weighted training": any(training.get("samples", 1) > 1 for training in trainings),
    }
    return [MODELS[run["model"]], *(name for name, added in additions.items() if added)]


def kind(run: dict) -> str:
    """The traits of a model in a line."""
    return ", ".join(traits(run))


def sizes_of(decoder: int, prior: int) -> str:
    """The parameters of a generative model: those of the decoder and, where it has any, of the prior."""
    return f"{decoder:,} + {prior:,}" if prior else f"{decoder:,}"


def trust_of(run: dict) -> float:
    """The trust of the proposals that a result drew its latents from; 1 stands for the posterior itself."""
    return run["evaluation"].get("trust", 1.0)


def all_runs() -> list[dict]:
    return [result for result in results("*") if "nats" in result]  # benchmarks have none


def measured_runs() -> list[dict]:
    """The results of all models, drawn from the posterior, by the names of their files."""
    return [run for run in all_runs() if trust_of(run) == 1]


def wider_runs() -> list[dict]:
    """Results from wider proposals, of models that have one from the posterior of as many images and samples."""
    keys = ("name", "data", "split", "images", "num_samples")
    plain = [[run[key] for key in keys] for run in measured_runs()]
    return [run for run in all_runs() if trust_of(run) < 1 and [run[key] for key in keys] in plain]


def wider_name(run: dict) -> str:
    """The name of the file in `results/` for a result from wider proposals."""
    return f"{run['name']}-trust-{trust_of(run):g}"


def expected_on_all(run: dict) -> dict:
    """A result with the figures that it can be expected to have on more images.

    A model that was measured on few images, against another one on the same, has the other's figures on all images plus
    the mean differences. Where no other one can tell, the result is returned as it is.
    """
    against = run.get("against", {})
    for other in measured_runs():
        same = other["name"] == against.get("name") and other["num_samples"] == run["num_samples"]
        if same and other["images"] > run["images"]:
            # Over images, as in all rows: how far the other one may be off, and the difference.
            error = (other["standard_error"] ** 2 + against["difference_standard_error"] ** 2) ** 0.5
            return run | {
                "nats": other["nats"] + against["difference"],
                "elbo": other["elbo"] + against["elbo_difference"],
                "standard_error": error,
                "images": other["images"],
                "measured": run,
            }
    return run


def note_on_expected(run: dict) -> str:
    """How the figures of `expected_on_all` came about."""
    measured, against = run["measured"], run["against"]
    more, error = against["difference"], against["difference_standard_error"]
    name, other = f"`{run['name']}`", f"`{against['name']}`"
    return (
        f"{name} was measured on {measured['images']:,} images only, on which it has {signed(measured['nats'])}. "
        f"On the same images {other} has {signed(against['nats'])}: the difference is {signed(more)} ± {error:.2f}, "
        f"image by image. {other} has {signed(run['nats'] - more)} on all {run['images']:,}. So {name} can be expected "
        f"to have {signed(run['nats'])} on these."
    )
