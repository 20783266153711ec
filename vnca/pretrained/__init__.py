"""Weights that come with the package, and the format of every folder with weights.

Such a folder holds `config.json`, whose entry `"model"` is a `ModelConfig`, and `model.safetensors`. Runs of
`python -m vnca train` write the same format, so `load` takes the name of shipped weights or the path of a folder.
Runs write float32. Some shipped weights were rounded to float16 to be half as large; `stored_as` tells which. A test
holds all weights, as they are shipped, to their recorded figures.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from vnca import files
from vnca.vae import VAE, ModelConfig, build

FOLDER = Path(__file__).parent


def available() -> list[str]:
    """The names of the shipped weights, sorted."""
    return sorted(path.parent.name for path in FOLDER.glob("*/model.safetensors"))


def find(name: str | os.PathLike) -> Path:
    """The folder of shipped weights, or of a run if `name` is the path of one.

    A path object, and text with a separator in it, always mean a path.

    Raises:
        ValueError: if there is neither, with the names that there are; or both, so that a name alone does not tell.
    """
    shipped = FOLDER / name if isinstance(name, str) and name in available() else None
    folder = Path(name)
    found = bool(os.fspath(name)) and all((folder / file).is_file() for file in ("model.safetensors", "config.json"))
    if shipped is not None and found and not folder.samefile(shipped):
        raise ValueError(
            f"{name!r} names both shipped weights and a folder here: give ./{name} for the folder, or rename it"
        )
    if shipped is not None:
        return shipped
    if found:
        return folder
    names = ", ".join(available()) or "none yet"
    raise ValueError(
        f"no weights named {os.fspath(name)!r}: shipped weights are {names}; "
        "or give a folder with config.json and model.safetensors"
    )


def load(name: str | os.PathLike) -> VAE:
    """A trained model, in eval mode, in float32 on the CPU.

    Args:
        name: one of `available()`, or the path of a folder that `python -m vnca train` wrote.

    Raises:
        ValueError: if there are no such weights (the message lists the names), a name means two folders, or the files
            are damaged.
    """
    folder = find(name)
    config = read_model_config(folder)
    try:
        model = build(config)
        weights = load_file(folder / "model.safetensors")
        model.load_state_dict({key: value.float() for key, value in weights.items()})
        if broken := [key for key, value in weights.items() if not value.isfinite().all()]:
            raise ValueError(f"{broken[0]} holds numbers that are not finite")
    except (TypeError, ValueError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split("\n\t", 2)[:2])  # torch names the weight in a second line
        raise ValueError(f"the weights in {folder} cannot be read, train or copy them again: {reason}") from None
    return model.eval()


def stored_as(folder: Path) -> str:
    """The type in which a folder keeps its weights: `"float32"`, or `"float16"` where they were rounded."""
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        kinds = {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118 - not a dict
    (kind,) = {kind for kind in kinds if kind.is_floating_point}
    return str(kind).removeprefix("torch.")


def read_config(folder: Path) -> dict:
    """The `config.json` of a folder with weights.

    Raises:
        ValueError: if it cannot be read, or has no entry `"model"`.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config["model"], dict):
            raise TypeError("its entry 'model' is not an object")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read, train or copy the weights again: {error!r}") from None
    return config


def read_model_config(folder: Path) -> ModelConfig:
    """The model's configuration in a folder with weights.

    Raises:
        ValueError: if it cannot be read.
    """
    try:
        return ModelConfig(**read_config(folder)["model"])
    except TypeError as error:
        raise ValueError(f"the weights in {folder} cannot be read, train or copy them again: {error}") from None


def require_pair(folder: Path, config: dict) -> None:
    """Raise `ValueError` if the weights in a folder are not those of a config that was read before.

    A running training may replace both in between. It writes the weights before the config, so where they say of which
    update they are, it cannot be missed.
    """
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        update = (file.metadata() or {}).get("update")
    recorded = config["run"].get("updates")
    if update is not None and update != str(recorded):
        raise ValueError(
            f"the weights in {folder} are of update {update}, and its config.json of update {recorded}: a training was "
            "writing them just now, or was killed there. Repeat the command, or go on with that training by --resume"
        )


def save(model: VAE, config: ModelConfig, folder: str | os.PathLike, **more: object) -> None:
    """Write a model so that `load` reads it: `config.json` with the model's configuration and `more`, and the weights.

    Each file is written beside and renamed, so that a reader finds the old one or the new one, never a half. The
    weights come first; `require_pair` tells a reader in between.

    Args:
        model: the model.
        config: its configuration.
        folder: where to write; made if it is not there.
        more: further entries of `config.json`. If its `run` counts `updates`, the weights say of which they are.

    Raises:
        OSError: if the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    updates = more.get("run", {}).get("updates")
    metadata = {} if updates is None else {"update": str(updates)}
    files.write_tensors(folder / "model.safetensors", model.state_dict(), metadata)
    files.write_json(folder / "config.json", {"model": asdict(config), **more})
