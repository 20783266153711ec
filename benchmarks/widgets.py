"""Measure how long the panel of chapter 6 takes to redraw after a change, control by control.

    OMP_NUM_THREADS=2 python benchmarks/widgets.py

Each control runs through its values, as when it is dragged, with all steps after the damage on show: the dearest case.
The time is the kernel's: from the new value to the new page of pictures, without the way to the front end and back. The
figures go into `results/widgets.json`. Run it on a machine that does nothing else.
"""

import argparse
import asyncio
import datetime
import statistics
import sys
import time
from pathlib import Path

import torch

import vnca
from vnca import data, files, hardware
from vnca.widgets import Coalesced, InpaintingPanel

RESULT = Path(__file__).resolve().parent.parent / "results" / "widgets.json"
IMAGES = 10
LIMIT = 200  # ms, what the book promises


def values(panel: InpaintingPanel) -> dict[str, list]:
    """The values each control runs through."""
    return {
        "image": list(range(IMAGES)),
        "row": list(range(28)),
        "col": list(range(28)),
        "size": list(range(1, 29)),
        "completion": list(range(1, panel.completion.max + 1)),
        "temperature": [value / 10 for value in range(21)],
        "steps": list(range(panel.steps.max + 1)),
    }


def latencies(panel: InpaintingPanel, control: str, wanted: list) -> list[float]:
    """Milliseconds from each new value to its pictures, but for the first, which may be the value it had."""
    taken = []
    for value in wanted:
        before = panel.figures.value
        started = time.perf_counter()
        getattr(panel, control).value = value
        taken.append(1000 * (time.perf_counter() - started))
        if panel.figures.value == before and value != wanted[0]:
            raise RuntimeError(f"nothing was redrawn for {control} = {value}")
    return taken[1:]


def burst(panel: InpaintingPanel, changes: int) -> dict[str, float]:
    """So many changes at once, as from a slider that is faster than the cells: how many redraws, and how long."""
    redraws, pictures = [], panel.regrowth.pictures

    def counted(settings):
        redraws.append(settings)
        return pictures(settings)

    async def drag() -> float:
        await asyncio.sleep(2 * Coalesced.GATHER)
        started = time.perf_counter()
        for change in range(changes):
            panel.row.value, panel.col.value = change % 28, change % 27
        while (redraws[-1].row, redraws[-1].col) != (panel.row.value, panel.col.value):
            await asyncio.sleep(0.001)
        return time.perf_counter() - started

    panel.regrowth.pictures = counted
    seconds = asyncio.run(drag())
    panel.regrowth.pictures = pictures
    return {"changes": changes, "redraws": len(redraws), "seconds": round(seconds, 2)}


def summary(taken: list[float]) -> dict[str, float]:
    return {
        "changes": len(taken),
        "median_ms": round(statistics.median(taken), 1),
        "max_ms": round(max(taken), 1),
    }


def measure(weights: str) -> dict:
    """Everything that is measured, as the result file holds it."""
    test = data.load("binarized-mnist", "test", fallback="digits")
    chosen = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:IMAGES]
    panel = InpaintingPanel(vnca.load(weights), test.tensors[0][chosen])
    rows = {}
    for control, wanted in values(panel).items():
        panel.steps.value = panel.steps.max
        rows[control] = summary(latencies(panel, control, wanted))
    started = time.perf_counter()
    panel.longer.click()
    longer = time.perf_counter() - started
    rows["temperature, sampled longer"] = summary(latencies(panel, "temperature", values(panel)["temperature"]))
    return {
        "weights": weights,
        "quick_completions": panel.regrowth.num_quick,
        "completions": panel.regrowth.num_completions,
        "max_steps": panel.steps.max,
        "controls": rows,
        "burst": burst(panel, 50),
        "sample_longer_seconds": round(longer, 1),
        "data": test.name,
        "machine": hardware.machine(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "commit": hardware.commit(),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="?", default="regrowing-mnist-small", help="name or folder")
    parser.add_argument("--out", type=Path, default=RESULT, help="the result file (default: results/widgets.json)")
    options = parser.parse_args(arguments)
    result = measure(options.weights)
    print(f"{'control':27} {'changes':>7} {'median':>10} {'max':>10}")
    for control, row in result["controls"].items():
        over = "" if row["max_ms"] <= LIMIT else f"  over {LIMIT} ms"
        print(f"{control:27} {row['changes']:7} {row['median_ms']:7.1f} ms {row['max_ms']:7.1f} ms{over}")
    print(f"50 changes at once: {result['burst']['redraws']} redraws in {result['burst']['seconds']} s")
    print(f"the whole sampler: {result['sample_longer_seconds']} s")
    files.write_json(options.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
