"""Measure what chapters take, and write it into the boxes at their heads.

    python benchmarks/time_chapters.py 06-inpainting

Executes the chapters of these names, or without names all of the table of contents, each in full and in a process of
its own, and writes `results/chapters.json`, which keeps what other kinds of machines took. Run it on a machine that
does nothing else and has the MNIST digits.
"""

import argparse
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
from vnca.files import write_json, write_text

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "results" / "chapters.json"
EXECUTE = "--execute"  # what the program tells itself, in the process of one chapter
IN_WORDS = {"bfloat16 autocast": "fast in 16 bits", "float16 autocast": "fast in 16 bits", "float32": "32 bits only"}
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
    """The line on time and memory in the box at a chapter's head, the fastest machine first."""
    measured = json.loads(RESULT.read_text())[name]
    machines = sorted(measured, key=lambda machine: measured[machine]["seconds"])
    taken = []
    for machine in machines:
        name, precision = machine.rsplit(", ", 1)
        figures = measured[machine]
        taken.append(
            f"{figures['seconds'] / 60:.1f} minutes and {figures['gigabytes']:.1f} GB on {name} ({IN_WORDS[precision]})"
        )
    return f"**Time and memory**: {'; '.join(taken)}."


def fill(path: Path) -> None:
    """Put the measured figures into the chapter."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = LINE.sub(lambda _: opening_line(path.stem), cell.source)
    write_text(path, nbformat.writes(notebook) + "\n")


def main(arguments: list[str] | None = None) -> int:
    sys.path.insert(0, str(ROOT / "scripts"))
    import contents

    paths = {path.stem: path for path in contents.chapters()}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chapters", nargs="*", help="names of notebooks, without their ending", metavar="CHAPTER")
    names = parser.parse_args(arguments).chapters or list(paths)
    for name in names:
        if name not in paths:
            parser.error(f"no chapter {name!r}: there are {', '.join(paths)}")
    measured = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    machine = hardware.describe(torch.device("cpu"))
    about = {
        "data": data.load("binarized-mnist", "test").name,  # without it chapters take the small digits, and less time
        "date": datetime.date.today().isoformat(),
        "commit": hardware.commit(),
    }
    for name in names:
        # Each in a process of its own, because the peak memory of finished children is a maximum over all of them.
        command = [sys.executable, __file__, EXECUTE, paths[name]]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        measured.setdefault(name, {})[machine] = json.loads(done.stdout.splitlines()[-1]) | about
        print(name, measured[name][machine], flush=True)
        write_json(RESULT, measured)
        fill(paths[name])
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == [EXECUTE]:
        print(json.dumps(execute(Path(sys.argv[2]))))
    else:
        sys.exit(main())
