"""Measure the live figures of the book's pages in a headless browser, by the WebAssembly kernel and without it.

    python benchmarks/live.py

For each shipped small model: steps a second on 32 x 32 cells, milliseconds of computing for a whole growth and for an
encoding, and the longest slice, for which the page has to wait. For the decoder without cells: milliseconds for an
image, and the longest slice. For each demo: bytes to transfer, as files and as a server compresses them, milliseconds
from the start of its script to the first picture, and the longest work in a frame.
The figures go into `results/live.json`. Run it on a machine that does nothing else.
"""

import argparse
import datetime
import gzip
import re
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from vnca import files, hardware

ROOT = Path(__file__).resolve().parent.parent
LIVE = ROOT / "book" / "_static" / "live"
RESULT = ROOT / "results" / "live.json"
KERNELS = {"kernel": "WebAssembly SIMD", "plain": "plain JavaScript"}
# What the book promises: of the WebAssembly kernel, and of every demo.
FEWEST_STEPS, LONGEST_GROWTH, LONGEST_SLICE, LONGEST_WAIT, MOST_BYTES = 100, 150, 16, 300, 600_000

TAKEN = """
    const random = new vncaLive.Random(0);
    const time = (work) => {
        const started = performance.now();
        let longest = 0, done = false;
        while (!done) {
            const before = performance.now();
            done = work.next().done;
            longest = Math.max(longest, performance.now() - before);
        }
        return { all: performance.now() - started, longest };
    };
    const taken = (make) => Array.from({ length: repeats + 1 }, () => time(make())).slice(1); // the first one warms up
"""
CELLS = """async ([name, encoderName, repeats]) => {%s
    const engine = await vncaLive.Engine.load(name);
    const encoder = await vncaLive.Encoder.load(encoderName);
    const image = Float32Array.from({ length: engine.imageSize ** 2 }, () => Number(random.uniform() < 0.2));
    const growths = taken(() => engine.grow(random.normal(engine.latentSize)));
    const encodings = taken(() => encoder.encode(image));
    engine.seed(random.normal(engine.latentSize), engine.largest);
    const steps = taken(function* () { for (let i = 0; i < 20; i++) yield* engine.step(); });
    return { growths, encodings, steps };
}""".replace("%s", TAKEN)
IMAGES = """async ([name, repeats]) => {%s
    const decoder = await vncaLive.Decoder.load(name);
    return taken(() => decoder.decode(random.normal(decoder.latentSize)));
}""".replace("%s", TAKEN)

# Before any script of the page: when the demo runs, and how long the work in its frames takes.
WATCH = """
    const wanted = window.requestAnimationFrame.bind(window);
    window.frames_taken = [];
    window.requestAnimationFrame = (work) => wanted((now) => {
        const started = performance.now();
        work(now);
        window.frames_taken.push(performance.now() - started);
    });
    new MutationObserver(() => {
        if (document.querySelector("[data-state='running']")) window.running_at ??= performance.now();
    }).observe(document, { subtree: true, attributes: true });
"""


def measure_cells(page, name: str, encoder: str, repeats: int) -> dict[str, float]:
    """Medians over repeats of the work of cells and of an encoder, in a page that has loaded the scripts of both."""
    found = page.evaluate(CELLS, [name, encoder, repeats])
    middle = {work: statistics.median(run["all"] for run in runs) for work, runs in found.items()}
    return {
        "steps_per_second": round(20_000 / middle["steps"]),
        "growth_ms": round(middle["growths"], 1),
        "encoding_ms": round(middle["encodings"], 2),
        "longest_slice_ms": round(statistics.median(run["longest"] for runs in found.values() for run in runs), 2),
    }


def measure_decoder(page, name: str, repeats: int) -> dict[str, float]:
    """The same of a decoder that has no cells."""
    runs = page.evaluate(IMAGES, [name, repeats])
    return {
        "decoding_ms": round(statistics.median(run["all"] for run in runs), 2),
        "longest_slice_ms": round(statistics.median(run["longest"] for run in runs), 2),
    }


def demos() -> dict[str, str]:
    """Each live figure of the book: the element that asks for it, by its name."""
    pages = [*(ROOT / "book").glob("*.md"), *(ROOT / "book").glob("*.ipynb")]
    element = re.compile(r'<div class="live" data-live="([\w-]+)"[^>]*>')
    return {match[1]: match[0] for page in pages for match in element.finditer(page.read_text().replace('\\"', '"'))}


def measure_demo(browser, folder: Path, div: str, repeats: int) -> dict[str, float]:
    """A demo on a page of its own, opened anew for each repeat."""
    page_path = folder / "demo.html"
    page_path.write_text(
        '<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="live/live.css">'
        "<script>started_at = performance.now()</script>"
        f'<script src="live/live.js" defer></script>{div}</div>'
    )
    waits, frames, loaded = [], [], set()
    for _ in range(repeats):
        page = browser.new_page()
        page.add_init_script(WATCH)
        page.on("requestfinished", lambda request: loaded.add(request.url))
        page.goto(page_path.as_uri())
        page.wait_for_function("window.running_at")
        page.wait_for_timeout(1000)
        waits.append(page.evaluate("running_at - started_at"))
        frames.append(page.evaluate("Math.max(...frames_taken)"))
        page.close()
    inside = folder.as_uri() + "/live/"
    contents = [(LIVE / url.removeprefix(inside)).read_bytes() for url in loaded if url.startswith(inside)]
    return {
        "bytes": sum(map(len, contents)),
        "bytes_compressed": sum(len(gzip.compress(content)) for content in contents),
        "first_life_ms": round(statistics.median(waits)),
        "longest_frame_ms": round(statistics.median(frames), 1),
    }


def measure(repeats: int) -> dict:
    """Everything that is measured, as the result file holds it."""
    sys.path.insert(0, str(ROOT / "scripts"))
    from chromium import find_browser, launch
    from export_live import ENCODED, MODELS, WALKED
    from playwright.sync_api import sync_playwright

    encoder = f"{ENCODED}-encoder"
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as scratch:
        program = find_browser(playwright)
        if program is None:
            raise ValueError("no browser found: install Chromium or Chrome, or run playwright install chromium")
        browser, folder = launch(playwright, program), Path(scratch).resolve()
        (folder / "live").symlink_to(LIVE)

        def opened(kernel: str, *models: str):
            scripts = ("live", kernel, "network", "engine", *(f"models/{model}" for model in models))
            tags = "".join(f'<script src="live/{script}.js"></script>' for script in scripts)
            (folder / "model.html").write_text(f'<!doctype html><meta charset="utf-8">{tags}')
            page = browser.new_page()
            page.goto((folder / "model.html").as_uri())
            return page

        rows: dict[str, dict] = {name: {} for name in MODELS}
        images: dict[str, dict] = {WALKED: {}}
        for kernel in KERNELS:
            for name in MODELS:
                with opened(kernel, name, encoder) as page:
                    rows[name][kernel] = measure_cells(page, name, encoder, repeats)
            with opened(kernel, WALKED) as page:
                images[WALKED][kernel] = measure_decoder(page, WALKED, repeats)
        result = {
            "models": rows,
            "decoders": images,
            "demos": {demo: measure_demo(browser, folder, div, repeats) for demo, div in demos().items()},
            "browser": f"Chromium {browser.version}, headless",
        }
        browser.close()
    return result | {
        "machine": hardware.machine(torch.device("cpu")),
        "date": datetime.date.today().isoformat(),
        "commit": hardware.commit(),
    }


def show(result: dict) -> None:
    """Print the figures, and which of them break a promise."""
    print(f"{'':24} {'kernel':17} {'steps/s':>8} {'growth':>10} {'encoding':>10} {'longest slice':>14}")
    for name, kernels in result["models"].items():
        for kernel, row in kernels.items():
            line = f"{name:24} {KERNELS[kernel]:17} {row['steps_per_second']:8} {row['growth_ms']:7.1f} ms"
            line += f" {row['encoding_ms']:7.2f} ms {row['longest_slice_ms']:11.2f} ms"
            slow = row["steps_per_second"] < FEWEST_STEPS or row["growth_ms"] > LONGEST_GROWTH
            print(line + ("  too slow" if kernel == "kernel" and slow else ""))
            if row["longest_slice_ms"] > LONGEST_SLICE:
                print(f"  a slice of more than {LONGEST_SLICE} ms")
    for name, kernels in result["decoders"].items():
        for kernel, row in kernels.items():
            line = f"an image {row['decoding_ms']:.2f} ms, longest slice {row['longest_slice_ms']:.2f} ms"
            print(f"{name:24} {KERNELS[kernel]:17} {line}")
    for name, demo in result["demos"].items():
        print(
            f"{name}: {demo['bytes']:,} bytes, compressed {demo['bytes_compressed']:,}; first life after "
            f"{demo['first_life_ms']} ms; longest work in a frame {demo['longest_frame_ms']} ms"
        )
        if demo["bytes_compressed"] > MOST_BYTES or demo["first_life_ms"] > LONGEST_WAIT:
            print(f"  more than {MOST_BYTES:,} bytes compressed or {LONGEST_WAIT} ms")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULT, help="the result file (default: results/live.json)")
    parser.add_argument("--repeats", type=int, default=15, help="of each measurement, for its median (default: 15)")
    options = parser.parse_args(arguments)
    result = measure(options.repeats)
    show(result)
    files.write_json(options.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
