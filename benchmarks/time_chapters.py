"""Measure what a chapter takes, and write it into the box at its head.

Executes each chapter of the table of contents in full, in a process of its own, and writes `results/chapters.json`. Run
it on a machine that does nothing else: python benchmarks/time_chapters.py
"""

import datetime
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import torch
from nbclient import NotebookClient

from vnca import data, hardware
from vnca.files import write_json

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "results" / "chapters.json"
LINE = re.compile(r"^\*\*Time and memory\*\*:.*$", re.MULTILINE)


def execute(path: Path) -> dict:
    """Run one chapter; its wall time and the peak memory of its kernel."""
    import resource  # not on Windows, where the tests import this file all the same

    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}  # as the builder runs it: with no file beside it
        NotebookClient(nbformat.read(path, as_version=4), timeout=None, resources=resources).execute()
    kilobytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # bytes on macOS
    gigabytes = kilobytes * (1 if sys.platform == "darwin" else 1024) / 1e9
    return {"seconds": round(time.monotonic() - started), "gigabytes": round(gigabytes, 1)}


def opening_line(name: str) -> str:
    """The line on time and memory in the box at a chapter's head."""
    measured = json.loads(RESULT.read_text())
    chapter = measured["chapters"][name]
    minutes = chapter["seconds"] / 60
    return (
        f"**Time and memory**: {minutes:.1f} minutes and {chapter['gigabytes']:.1f} GB on {measured['machine']}, "
        f"measured with the data set `{measured['data']}`."
    )


def fill(path: Path) -> None:
    """Put the measured figures into the chapter."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = LINE.sub(lambda _: opening_line(path.stem), cell.source)
    nbformat.write(notebook, path)


def main() -> int:
    sys.path.insert(0, str(ROOT / "scripts"))
    import readme

    paths = readme.chapters()
    chapters = {}
    for path in paths:
        # Each in a process of its own, because the peak memory of finished children is a maximum over all of them.
        done = subprocess.run([sys.executable, __file__, path], stdout=subprocess.PIPE, text=True, check=True)
        chapters[path.stem] = json.loads(done.stdout.splitlines()[-1])
        print(path.stem, chapters[path.stem], flush=True)
    result = {
        "chapters": chapters,
        "machine": hardware.machine(torch.device("cpu")),
        "data": data.load("binarized-mnist", "test", fallback="digits").name,
        "date": datetime.date.today().isoformat(),
        "commit": hardware.commit(),
    }
    write_json(RESULT, result)
    for path in paths:
        fill(path)
    return 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(execute(Path(sys.argv[1]))))
    else:
        sys.exit(main())
