"""Weights that come with the package, and the format of every folder with weights.

Such a folder holds `config.json`, whose entry `"model"` is a `ModelConfig`, and `model.safetensors`. Runs of
`python -m vnca train` write the same format, so `load` takes the name of shipped weights or the path of a folder.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vnca.vae import VAE, ModelConfig, build

FOLDER = Path(__file__).parent


def available() -> list[str]:
    """The names of the shipped weights, sorted."""
    return sorted(path.parent.name for path in FOLDER.glob("*/model.safetensors"))


def find(name: str | os.PathLike) -> Path:
    """The folder of shipped weights, or of a run if `name` is the path of one.

    Raises:
        ValueError: if there is neither, with the names that there are.
    """
    name = os.fspath(name)
    for folder in (FOLDER / name, Path(name)) if name else ():
        if (folder / "model.safetensors").is_file() and (folder / "config.json").is_file():
            return folder
    names = ", ".join(available()) or "none yet"
    raise ValueError(
        f"no weights named {name!r}: shipped weights are {names}; "
        "or give a folder with config.json and model.safetensors"
    )


def load(name: str | os.PathLike) -> VAE:
    """A trained model, in eval mode, in float32 on the CPU.

    Args:
        name: one of `available()`, or the path of a folder that `python -m vnca train` wrote.

    Raises:
        ValueError: if there are no such weights (the message lists the names), or its files are damaged.
    """
    folder = find(name)
    try:
        config = json.loads((folder / "config.json").read_text())["model"]
        model = build(ModelConfig(**config))
        weights = load_file(folder / "model.safetensors")
        model.load_state_dict({key: value.float() for key, value in weights.items()})
    except (json.JSONDecodeError, KeyError, TypeError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the weights in {folder} cannot be read, train or copy them again: {reason}") from None
    return model.eval()


def save(model: VAE, config: ModelConfig, folder: str | os.PathLike, **more: object) -> None:
    """Write a model so that `load` reads it: `config.json` with the model's configuration and `more`, and the weights.

    Each file is written beside and renamed, so that a reader finds the old one or the new one, never a half.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {"model": asdict(config), **more})
    partial = folder / "model.safetensors.part"
    save_file({key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}, partial)
    os.replace(partial, folder / "model.safetensors")


def write_json(path: Path, content: object) -> None:
    """Write JSON beside and rename."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, path)
