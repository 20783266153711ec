"""The figures of a run while it trains: `metrics.jsonl`, TensorBoard and one progress line."""

import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from vnca import files
from vnca.pictures import image_grid

NAME = "metrics.jsonl"
PRINT_EVERY = 10  # records between two lines where the output is no terminal

# TensorBoard shows one section for each group; what is not named here goes into "run".
GROUPS = {
    "loss": "bound",
    "nats": "bound",
    "log_likelihood": "bound",
    "kl": "bound",
    "learning_rate": "optimizer",
    "skipped": "optimizer",
}


def bound_name(record: dict) -> str:
    """What `nats` of a record is: the ELBO, unless more samples an image are named."""
    return f"bound of {record['samples']} samples" if record.get("samples", 1) > 1 else "ELBO"


class Metrics:
    """Writes the records of one run. Where several processes train together, one of them has it.

    Records of updates after `update`, which a killed run wrote after its last checkpoint, are dropped; so is a line
    that the kill tore. The resumed run makes them again; the means of its first record begin at the checkpoint.

    Args:
        folder: the run's folder, which exists.
        update: updates done so far.

    Raises:
        ValueError: if the `metrics.jsonl` of the folder cannot be read.
        OSError: if the folder cannot be written.
    """

    def __init__(self, folder: Path, update: int):
        # Here, because it takes 0.2 s and more, and only a run that trains needs it.
        from torch.utils.tensorboard import SummaryWriter

        _drop_after(folder / NAME, update)
        self.file = (folder / NAME).open("a", encoding="utf-8")
        self.board = SummaryWriter(folder / "tensorboard", purge_step=update + 1)
        self.bar = tqdm(
            total=1.0,
            disable=None,  # no bar where the output is no terminal
            miniters=0,
            bar_format="{percentage:3.0f}% |{bar:10}| {desc}",
        )
        self.start: tuple[float, float] | None = None  # fraction and seconds of the first record
        self.count = 0  # records so far

    def log(self, record: dict) -> None:
        """Write a record and show it.

        Args:
            record: numbers by name. At least `update`; `fraction` of the run that is done, 0 to 1; `seconds` of
                training so far; `loss`; `nats`, the ELBO or, with an entry `samples`, the importance-weighted bound of
                so many; `images_per_second`. A number that is not finite becomes `null` in `metrics.jsonl`, because
                JSON has no other word for it.
        """
        self.count += 1
        finite = {key: value if math.isfinite(value) else None for key, value in record.items()}
        self.file.write(json.dumps(finite) + "\n")
        self.file.flush()
        for key, value in record.items():
            if key != "update":
                self.board.add_scalar(f"{GROUPS.get(key, 'run')}/{key}", value, record["update"])
        self.board.flush()  # or a kill would lose up to two minutes of it
        self._show(record)

    def samples(self, update: int, images: Tensor) -> None:
        """Add a grid of pictures to TensorBoard: pixel probabilities `(N, 1, H, W)`."""
        grid = image_grid(images, columns=math.ceil(len(images) ** 0.5))  # (height, width)
        self.board.add_image("samples", grid, update, dataformats="HW")
        self.board.flush()

    def close(self) -> None:
        """Close the files and end the progress line."""
        self.bar.close()
        self.board.close()
        self.file.close()

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _show(self, record: dict) -> None:
        line = (  # with the bar it fits 80 columns
            f"{self._time_left(record)} left  {bound_name(record)} {record['nats']:.2f} nats  "
            f"loss {record['loss']:.2f}  {record['images_per_second']:.0f} images/s"
        )
        self.bar.set_description_str(line, refresh=False)
        self.bar.update(record["fraction"] - self.bar.n)
        if self.bar.disable and (self.count % PRINT_EVERY == 0 or record["fraction"] == 1):
            print(f"{record['fraction']:4.0%}  {line}  update {record['update']:,}", file=sys.stderr)

    def _time_left(self, record: dict) -> str:
        """From the speed since the first record, because the machine may not be the one the run began on."""
        fraction, seconds = record["fraction"], record["seconds"]
        self.start = self.start or (fraction, seconds)
        since = self.start if fraction > self.start[0] else (0.0, 0.0)
        if fraction <= since[0]:
            return "unknown time"
        return tqdm.format_interval(round((1 - fraction) * (seconds - since[1]) / (fraction - since[0])))


def read(folder: str | os.PathLike) -> list[dict]:
    """The records of a run, in the order of its updates. A last line that a kill tore is left out.

    Raises:
        ValueError: if the folder has no records, or they cannot be read.
    """
    path = Path(folder) / NAME
    records = [record for _, record in _complete_lines(path)] if path.is_file() else []
    if not records:
        raise ValueError(f"{folder} has no metrics of a run: give the folder that `python -m vnca train` wrote")
    return [{key: math.nan if value is None else value for key, value in record.items()} for record in records]


def _complete_lines(path: Path) -> Iterator[tuple[str, dict]]:
    """Each line and its record, without a last line that has no end."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            return
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("update"), int):
            raise ValueError(f"line {number} of {path} is not a record of a run: delete that line")
        yield line, record


def _drop_after(path: Path, update: int) -> None:
    if path.is_file():
        kept = [line for line, record in _complete_lines(path) if record["update"] <= update]
        files.write_text(path, "".join(kept))
