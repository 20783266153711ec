"""What the book consists of: its pages in order, its addresses, its results; and how figures are written."""

import json
import re
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parent.parent


def repository() -> str:
    """The repository's address, from the one place that decides it."""
    # By hand, because tomllib came with Python 3.11.
    return re.search(r'^Repository = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[1]


def site() -> str:
    """Where GitHub publishes the pages of the repository."""
    owner, name = repository().split("/")[-2:]
    return f"https://{owner}.github.io/{name}/"


def pages() -> list[str]:
    """The pages of the book in the order of its table of contents, the first page first, without file endings."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
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


def result(name: str) -> dict:
    """A file of `results/`."""
    return json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))


def results(pattern: str) -> list[dict]:
    """The files of `results/` whose names match a pattern, by name."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "results").glob(f"{pattern}.json"))]


def signed(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def folded(title: str, text: str, page: str) -> str:
    """Text that a reader opens, as GitHub or as the book writes it."""
    if page == "README.md":
        return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"
    return f":::{{dropdown}} {title}\n{text}\n:::"
