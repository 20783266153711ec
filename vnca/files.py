"""Files that are whole or not there: written beside and renamed. And a lock, for a folder that one process writes."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

try:
    import fcntl
except ImportError:  # Windows has other locks, which are not used here
    fcntl = None


def resolved(path: str | os.PathLike) -> Path:
    """What a path leads to, through all symbolic links; raises `OSError` where they lead in a circle."""
    end = Path(os.path.realpath(path))  # `Path.resolve` has no one error for circles in all versions of Python
    if end.is_symlink():
        raise OSError(f"{path} is a symbolic link that leads to itself; give the name of a file")
    return end


def require_place(path: str | os.PathLike, option: str) -> None:
    """Refuse, before long work begins, a path at whose end no file could be written; `option` is what it is named by.

    Raises:
        ValueError: if it is a folder, a device or a pipe, or lies in a folder that does not exist.
        OSError: if it is a circle of links.
    """
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"{option} {path} is a folder or lies in one that does not exist; give a file's name")
    if resolved(path).exists() and not path.is_file():
        raise ValueError(f"{option} {path} is a device or a pipe, which cannot be replaced; give a file's name")


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A path beside `path` to write to: it takes the place of `path` at the end of the block, or vanishes on an error.

    Where `path` is a symbolic link, what it points to is replaced. A file that is replaced keeps its permissions.

    Raises:
        OSError: if the folder does not exist or cannot be written, or `path` is a folder, a device, a pipe or a circle
            of links.
    """
    path = resolved(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file")
    permissions = path.stat().st_mode & 0o777 if path.exists() else None
    if permissions is not None and not path.is_file():
        raise OSError(f"{path} is a device or a pipe, which cannot be replaced; give the name of a file")
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")  # two processes never write the same one
    try:
        yield beside
        with open(beside, "rb+") as written:
            os.fsync(written.fileno())  # else a machine that stops may keep the new name without its content
        if permissions is not None:
            beside.chmod(permissions)
        os.replace(beside, path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a full disk, which Python reports without a name
            error.filename = str(path)
        raise
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def locked(path: str | os.PathLike) -> Iterator[None]:
    """Hold a lock on a small file, which is made if it is not there, and stays.

    The system releases the lock when the process ends, however it ends. On Windows, and on shared disks that have no
    locks, nothing is locked.

    Raises:
        BlockingIOError: if another process, or another block of this one, holds the lock.
        OSError: if the file cannot be written.
    """
    if fcntl is None:
        yield
        return
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # this disk has no locks
            pass
        yield


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file; raises `OSError` as `replacing` does."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, content: object) -> None:
    """Write a JSON file; raises `OSError` as `replacing` does."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_tensors(
    path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file from tensors on any device; raises `OSError` as `replacing` does."""
    on_cpu = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with replacing(path) as beside:
        beside.write_bytes(save(on_cpu, metadata))  # `save_file` makes files that only their owner can read
