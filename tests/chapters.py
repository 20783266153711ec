"""What tests ask of the chapters: their list, their cells, and the code they teach."""

from pathlib import Path

import contents
import nbformat

ROOT = Path(__file__).resolve().parent.parent


CHAPTERS = contents.chapters()
"""The notebooks of the table of contents, in its order."""


def read(name: str) -> nbformat.NotebookNode:
    """The notebook of that file name in `book/`."""
    return nbformat.read(ROOT / "book" / name, as_version=4)


def definitions(name: str) -> dict:
    """Run every cell tagged "definition" of a chapter, in order, in one fresh namespace, and return it."""
    cells = [cell for cell in read(name).cells if "definition" in cell.metadata.get("tags", [])]
    if not cells:
        raise ValueError(f"{name} has no cell tagged 'definition'")
    namespace = {"__name__": Path(name).stem}
    for cell in cells:
        code = compile(cell.source, f"{name}[{cell.id}]", "exec")
        exec(code, namespace)
    return namespace
