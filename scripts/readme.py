"""Fill the generated parts of README.md and of pages of the book, each between its markers; write the model cards.

The chapters come from `_toc.yml`, tables from `results/*.json`, the picture of growing digits from the shipped weights.
Run it after any of them changed: python scripts/readme.py
"""

import re
import sys
from collections.abc import Callable

import contents
import nbformat
from model_cards import cards, render_models
from results_table import render_results
from tables_of_bounds import render_gap, render_gaps, render_proposals, render_recipes, render_samples, render_sharing
from tables_of_cells import render_completions, render_healing, render_inpainting
from tables_of_speed import render_chapters, render_scaling, render_steps

PICTURE = contents.ROOT / "book" / "_static" / "growth.png"

ALT = (
    "Four digits, one to a row, growing from left to right: two by two cells that are all alike, the same four once "
    "they differ, then four by four, eight by eight, sixteen by sixteen, and the finished image of twenty-eight by "
    "twenty-eight pixels"
)

CAPTION = (
    "Four digits grow from random latents. Each begins as two by two cells that are all alike; every cell follows the "
    "same learned rule and sees only its neighbors; four times each cell becomes four."
)


def growth_frames(name: str, digits: int = 4) -> list:
    """The pixels of digits drawn from the prior: their seeds, and the end of each stage of growth, digit by digit."""
    import torch

    import vnca
    from vnca.decoders import crop

    model = vnca.load(name)
    z = model.draw(digits, torch.Generator().manual_seed(0))
    with torch.no_grad():
        states = list(model.decoder.grow(z))
        stages = {state.shape[-1]: state for state in states}  # the last state of each size
        *small, last = [state[:, :1].sigmoid() for state in (states[0], *stages.values())]
    return [stage[digit] for digit in range(digits) for stage in (*small, crop(last))]


def draw_growth() -> None:
    """Draw the picture from the best shipped weights of a doubling decoder, or say that there are none."""
    import vnca
    from vnca import files, plotting

    names = [name for name in vnca.available() if name.startswith(("best", "doubling"))]  # sorted: the best ones first
    if not names:
        print("vnca/pretrained holds no weights of a doubling decoder: the picture is left out.")
        return
    plotting.use_style()
    frames = growth_frames(names[0])
    with files.replacing(PICTURE) as beside:
        plotting.show_images(frames, columns=len(frames) // 4).savefig(beside, format="png")
    print(f"Drew {PICTURE.relative_to(contents.ROOT)} with {names[0]}.")


def render_picture(page: str) -> str:
    if not PICTURE.exists():
        return ""
    if page == "README.md":
        return f"![{ALT}]({PICTURE.relative_to(contents.ROOT)})"
    return f"```{{figure}} _static/growth.png\n:alt: {ALT}\n:figclass: figure-card\n\n{CAPTION}\n```"


PARTS: dict[str, Callable[[str], str]] = {
    "growth": render_picture,
    "chapters": lambda _: render_chapters(),
    "results": render_results,
    "models": lambda _: render_models(),
    "healing": render_healing,
    "inpainting": lambda _: render_inpainting(),
    "completions": lambda _: render_completions(),
    "gap": lambda _: render_gap(),
    "proposals": lambda _: render_proposals(),
    "gaps": lambda _: render_gaps(),
    "samples": lambda _: render_samples(),
    "sharing": lambda _: render_sharing(),
    "recipes": lambda _: render_recipes(),
    "scaling": lambda _: render_scaling(),
    "steps": lambda _: render_steps(),
}


def with_parts(text: str, page: str) -> str:
    """The text with what stands between markers made anew."""
    for name, render in PARTS.items():
        pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        if pattern.search(text):
            body = render(page)
            text = pattern.sub(lambda match, body=body: match[1] + (body + "\n" if body else "") + match[2], text)
    return text


def filled(page: str) -> str:
    """The text of a page, or of a notebook's file, with its generated parts made anew."""
    if not page.endswith(".ipynb"):
        return with_parts((contents.ROOT / page).read_text(encoding="utf-8"), page)
    notebook = nbformat.read(contents.ROOT / page, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = with_parts(cell.source, page)
    return nbformat.writes(notebook) + "\n"


PAGES = (
    "README.md",
    "book/intro.md",
    "book/03-doubling-decoder.ipynb",
    "book/04-training.ipynb",
    "book/05-healing.ipynb",
    "book/06-inpainting.ipynb",
    "book/07-past-the-paper.ipynb",
    "book/models.md",
)


def main() -> int:
    from vnca import files

    draw_growth()
    for page in PAGES:
        files.write_text(contents.ROOT / page, filled(page))
        print(f"Filled {page}.")
    for path, text in cards().items():
        files.write_text(path, text)
        print(f"Wrote {path.relative_to(contents.ROOT)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
