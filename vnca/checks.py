"""What several modules ask of what they are given, in words for people."""

import operator

from torch import Tensor


def whole(**values: object) -> list[int]:
    """The values as `int`, be they Python's or NumPy's; raises `ValueError` with the name of one that is not whole."""
    found = []
    for name, value in values.items():
        try:
            found.append(operator.index(value))
        except TypeError:
            raise ValueError(f"{name} is a whole number (an int), not {value!r}") from None
    return found


def require_tensor(what: str, value: object) -> None:
    """Raise `ValueError` unless a value, of which `what` says "images are", is a tensor."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{what} a torch.Tensor, not a {type(value).__name__}: torch.as_tensor makes one of an array")


def differences(there: dict, now: dict) -> list[str]:
    """In words, where the settings of something saved, `there`, differ from those of `now`."""
    return [
        f"{name} is {there.get(name)!r} there, {now.get(name)!r} now"
        for name in {**there, **now}
        if there.get(name) != now.get(name)
    ]
