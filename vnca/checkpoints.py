"""Checkpoints of a training run: one safetensors file with all that is needed to go on, written beside and renamed."""

import json
import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from vnca import files

NAME = "checkpoint.safetensors"


def save(folder: Path, parts: dict[str, nn.Module], optimizer: torch.optim.Optimizer, progress: dict) -> None:
    """Write modules by name, optimizer state and `progress` (JSON values) into one file: they never disagree."""
    tensors = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
    files.write_tensors(folder / NAME, tensors, {"progress": json.dumps(progress)})


def restore(folder: Path, parts: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict:
    """Put the checkpoint's modules and optimizer state in place and return its `progress`.

    Raises:
        ValueError: if there is no checkpoint in the folder, or it cannot be read.
    """
    path = folder / NAME
    if not path.is_file():
        raise ValueError(f"there is no checkpoint in {folder} to resume from; start again with --overwrite")
    try:
        with safe_open(path, framework="pt") as file:
            # Copies: a tensor that stays a view of the file would keep Windows from replacing it at the next save.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 - not a dict
            progress = json.loads((file.metadata() or {}).get("progress", "null"))
        _require_progress(progress)
        for name, part in parts.items():
            part.load_state_dict(_below(tensors, f"{name}."))
        state: dict[int, dict] = {}
        for key, value in _below(tensors, "optimizer.").items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        _require_state(state, optimizer, begun=progress["update"] > 0)
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        _lay_out_like_parameters(optimizer)
    except torch.OutOfMemoryError:
        raise  # the device is full, and the file may be sound
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the checkpoint {path} cannot be read ({reason}); start again with --overwrite") from None
    return progress


def _require_progress(progress: dict) -> None:
    """Raise `ValueError` or `TypeError` unless these are counts of updates and skipped ones, and seconds."""
    if not isinstance(progress, dict):
        raise ValueError(f"it has no progress of a run, but {progress}")
    counts = [progress["update"], progress["skipped"]]
    if not all(isinstance(count, int) and count >= 0 for count in counts) or not 0 <= progress["seconds"] < math.inf:
        raise ValueError(f"its progress is {progress}")


def _require_state(state: dict[int, dict], optimizer: torch.optim.Optimizer, begun: bool) -> None:
    """Raise `ValueError` unless there is a state for each weight, with its shape: else resuming would go astray."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if state.keys() != set(range(len(parameters) if begun else 0)):
        raise ValueError(f"it has the optimizer's state of {len(state)} weights, of {len(parameters)}")
    for index, parameter in enumerate(parameters if begun else ()):
        shapes = {key: tuple(value.shape) for key, value in state[index].items()}
        wanted = {"step": (), "exp_avg": tuple(parameter.shape), "exp_avg_sq": tuple(parameter.shape)}
        if shapes != wanted:
            raise ValueError(f"the optimizer's state of weight {index} has the shapes {shapes}, not {wanted}")


def _lay_out_like_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give each moment the memory layout of its parameter: fused Adam walks through both side by side in memory."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter).copy_(value)


def _below(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
