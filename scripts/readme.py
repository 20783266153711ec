"""Fill the generated parts of README.md and book/intro.md, each between its markers.

The chapters come from `_toc.yml`, the results from `results/*.json`, the picture of growing digits from the shipped
weights. Run it after any of them changed: python scripts/readme.py
"""

import json
import re
import sys
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "book" / "_static" / "growth.png"
ALT = (
    "Four digits, one to a row, growing from left to right: two by two cells, then four by four, eight by eight, "
    "sixteen by sixteen, and the finished image of twenty-eight by twenty-eight pixels"
)

CAPTION = (
    "Four digits grow from random latents. Each begins as two by two cells that are all alike; every cell follows the "
    "same learned rule and sees only its neighbors; four times each cell becomes four."
)

MODELS = {"doubling": "doubling VNCA", "conv": "convolutional VAE"}

# Published figures, all in nats per image on the test set of MNIST.
PAPER = "[Palm et al. 2022](https://openreview.net/forum?id=7fFO4cMBx_9)"
REPRODUCTION = "[Aillet and Sondén 2023](https://openreview.net/forum?id=d7-ns6SZqp)"
PUBLISHED = [
    ("doubling VNCA", "−84.15", REPRODUCTION),
    ("doubling VNCA", "−84.23", PAPER),
    ("convolutional VAE", "−84.64", REPRODUCTION),
    ("non-doubling VNCA", "−89.3", REPRODUCTION),
    ("non-doubling VNCA", "−90.97", PAPER),
]


def repository() -> str:
    """The repository's address, from the one place that decides it."""
    # By hand, because tomllib came with Python 3.11.
    return re.search(r'^Repository = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]


def pages() -> list[str]:
    """The pages of the book in the order of its table of contents, the first page first, without file endings."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    return [toc["root"], *(entry["file"] for part in toc["parts"] for entry in part["chapters"])]


def chapters() -> list[Path]:
    """The notebooks of the book, in the order of its table of contents."""
    return [path for page in pages() if (path := ROOT / f"{page}.ipynb").exists()]


def title(notebook: Path) -> str:
    """The first heading of a chapter."""
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "markdown" and (heading := re.search(r"^# (.+)$", cell.source, re.MULTILINE)):
            return heading[1].strip()
    raise ValueError(f"{notebook.relative_to(ROOT)} has no heading that begins with '# '")


def colab(path: str) -> str:
    """The address that opens a notebook of this repository in Colab."""
    return f"{repository().replace('https://github.com', 'https://colab.research.google.com/github')}/blob/main/{path}"


def render_chapters() -> str:
    lines = ["| | Chapter | Run it |", "|---|---|---|"]
    for number, notebook in enumerate(chapters(), start=1):
        path = notebook.relative_to(ROOT).as_posix()
        badge = f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab(path)})"
        lines.append(f"| {number} | [{title(notebook)}]({path}) | {badge} |")
    return "\n".join(lines)


def signed(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def own_row(run: dict) -> str:
    parameters = run["parameters"]["decoder"]
    return (
        f"| **{MODELS[run['model']]}** "
        f"| **{signed(run['nats'])}** ± {run['standard_error']:.2f} ({run['num_samples']} samples, "
        f"{run['images']:,} images) | {signed(run['elbo'])} "
        f"| {parameters:,} | {run['updates']:,} updates, {run['minutes']:,.0f} min, {run['hardware']} "
        f"| [{run['name']}](results/{run['name']}.json) |"
    )


def render_results() -> str:
    """One table for each data set and split; the published figures stand with the set they were measured on."""
    runs = [json.loads(path.read_text()) for path in sorted((ROOT / "results").glob("*.json"))]
    runs = [run for run in runs if "nats" in run]  # benchmarks have none
    groups = {("binarized-mnist", "test"): []}
    for run in sorted(runs, key=lambda run: -run["nats"]):
        groups.setdefault((run["data"], run["split"]), []).append(run)
    parts = []
    for (data, split), group in groups.items():
        note = "" if group else "; no run of this repository is recorded yet"
        lines = [f"`{data}`, {split} split{note}:", ""]
        lines += ["| model | nats | ELBO | decoder parameters | training | from |", "|---|---|---|---|---|---|"]
        lines += [own_row(run) for run in group]
        if (data, split) == ("binarized-mnist", "test"):
            lines += [f"| {model} | {nats} | | | | {source} |" for model, nats, source in PUBLISHED]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def growth_frames(name: str, digits: int = 4) -> list:
    """The pixels of digits drawn from the prior, at the end of every stage of their growth, digit by digit."""
    import torch

    import vnca
    from vnca.decoders import crop

    model = vnca.load(name)
    z = torch.randn(digits, model.latent_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stages = {state.shape[-1]: state for state in model.decoder.grow(z)}  # the last state of each size
        *small, last = [stages[size][:, :1].sigmoid() for size in sorted(stages)]
    return [stage[digit] for digit in range(digits) for stage in (*small, crop(last))]


def draw_growth() -> None:
    """Draw the picture from the first shipped weights of a doubling decoder, or say that there are none."""
    import vnca
    from vnca import plotting

    names = [name for name in vnca.available() if name.startswith("doubling")]
    if not names:
        print("vnca/pretrained holds no weights of a doubling decoder: the picture is left out.")
        return
    plotting.use_style()
    frames = growth_frames(names[0])
    plotting.show_images(frames, columns=len(frames) // 4).savefig(PICTURE)
    print(f"Drew {PICTURE.relative_to(ROOT)} with {names[0]}.")


def render_picture(page: str) -> str:
    if not PICTURE.exists():
        return ""
    if page == "README.md":
        return f"![{ALT}]({PICTURE.relative_to(ROOT)})"
    return f"```{{figure}} _static/growth.png\n:alt: {ALT}\n:figclass: figure-card\n\n{CAPTION}\n```"


def filled(page: str) -> str:
    """The text of a page with its generated parts made anew."""
    text = (ROOT / page).read_text()
    parts = {
        "growth": lambda: render_picture(page),
        "chapters": render_chapters,
        "results": render_results,
    }
    for name, render in parts.items():
        pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        if pattern.search(text):
            body = render()
            text = pattern.sub(lambda match, body=body: match[1] + (body + "\n" if body else "") + match[2], text)
    return text


PAGES = ("README.md", "book/intro.md")


def main() -> int:
    draw_growth()
    for page in PAGES:
        (ROOT / page).write_text(filled(page))
        print(f"Filled {page}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
