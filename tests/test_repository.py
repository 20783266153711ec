"""The repository as a reader meets it: addresses, badges, chapters as stored, and the generated parts of README."""

import ast
import re
import subprocess
from graphlib import TopologicalSorter

import contents
import model_cards
import pytest
import readme
import time_chapters as measure
import yaml
from chapters import CHAPTERS, ROOT, read

FIRST_CELL = f"""\
# In Colab this installs the book's package; elsewhere it is already there.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("vnca") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "git+{contents.repository()}"], check=True)"""

each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)


def text_files() -> list:
    """The files that git knows or would take, without pictures and weights."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    binary = {".png", ".gif", ".webp", ".jpg", ".mp4", ".safetensors", ".npz", ".gz"}
    paths = [ROOT / name for name in listed]
    return [path for path in paths if path.is_file() and path.suffix not in binary]


def code_cells(path) -> list:
    return [cell for cell in read(path.name).cells if cell.cell_type == "code"]


def test_table_of_contents_names_files_that_exist():
    endings = (".md", ".ipynb")
    missing = [page for page in contents.pages() if not any((ROOT / f"{page}{end}").is_file() for end in endings)]
    assert not missing, f"_toc.yml lists what is not there: {missing}"


def test_every_notebook_is_in_the_table_of_contents():
    assert sorted((ROOT / "book").glob("*.ipynb")) == sorted(CHAPTERS)


def test_addresses_agree_with_pyproject():
    expected = contents.repository().removeprefix("https://github.com/")
    owner, name = map(re.escape, expected.split("/"))
    address = re.compile(
        rf"(?:github\.com|colab\.research\.google\.com/github)[/:]({owner}/[\w.-]*\w|[\w.-]+/{name}\b[\w.-]*)"
    )
    wrong = [
        f"{path.relative_to(ROOT)}: {found}"
        for path in text_files()
        for found in address.findall(path.read_text())
        if found.removesuffix(".git") != expected
    ]
    assert not wrong, f"pyproject.toml says {expected}, but: {wrong}"


def test_configuration_points_at_the_repository():
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    assert config["repository"] == {"url": contents.repository(), "path_to_book": "", "branch": "main"}


def test_no_file_mentions_a_path_of_one_machine():
    # Put together here so that this file does not find itself.
    machine = re.compile("|".join(["/" + "home/", "/" + "Users/", "/" + "root/", "/" + "work/", "/" + "tmp/"]))
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in text_files()
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if machine.search(line)
    ]
    assert not found, found


@pytest.mark.parametrize("page", readme.PAGES)
def test_generated_parts_are_up_to_date(page):
    assert (ROOT / page).read_text() == readme.filled(page), "run: python scripts/readme.py"


def test_every_shipped_model_has_a_card_with_its_figures():
    written = {path: path.read_text() for path in (ROOT / "vnca" / "pretrained").glob("*/README.md")}
    assert written == model_cards.cards(), "run: python scripts/readme.py"


def test_the_example_of_readme_runs():
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    namespace = {}
    exec(example, namespace)
    assert namespace["bound"].shape == (4,)


@each_chapter
def test_chapter_is_stored_without_outputs(path):
    for cell in code_cells(path):
        assert cell.outputs == [], f"cell {cell.id} of {path.name} is stored with outputs"
        assert cell.execution_count is None, f"cell {cell.id} of {path.name} is stored with an execution count"


@each_chapter
def test_chapter_format(path):
    notebook = read(path.name)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    identifiers = [cell.id for cell in notebook.cells]
    assert len(set(identifiers)) == len(identifiers)


def bound_names(node: ast.AST) -> set[str]:
    """The names that code binds in its own scope: assigned, looped over, or defined there."""
    names = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            names.add(child.name)
        elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            names.add(child.id)
        elif not isinstance(child, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            names |= bound_names(child)
    return names


@each_chapter
def test_no_cell_gives_another_meaning_to_a_name_that_was_imported(path):
    # Else a reader who runs an earlier cell once more gets an error that makes no sense.
    trees = [ast.parse(cell.source) for cell in read(path.name).cells if cell.cell_type == "code"]
    imports = [node for tree in trees for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    imported = {(alias.asname or alias.name).split(".")[0] for node in imports for alias in node.names}
    assert "torch" in imported
    assert not imported & set().union(*map(bound_names, trees))


@each_chapter
def test_opening_tells_the_measured_minutes_and_memory(path):
    opening = read(path.name).cells[0].source
    assert measure.opening_line(path.stem) in opening, "run: python benchmarks/time_chapters.py"


@each_chapter
def test_a_chapter_that_has_its_figures_stays_as_it_is(path, tmp_path):
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    measure.fill(copy)
    assert copy.read_bytes() == path.read_bytes()
    assert list(tmp_path.iterdir()) == [copy]


@each_chapter
def test_first_cell_installs_the_package_only_where_it_is_missing(path):
    first = code_cells(path)[0]
    # As trees, because the formatter breaks the long line.
    assert ast.dump(ast.parse(first.source)) == ast.dump(ast.parse(FIRST_CELL))
    assert first.source.startswith(FIRST_CELL.splitlines()[0])
    assert "remove-output" in first.metadata.get("tags", [])


@each_chapter
def test_readme_and_chapter_carry_its_colab_badge(path):
    link = f"]({contents.colab(path.relative_to(ROOT).as_posix())})"
    assert link in (ROOT / "README.md").read_text()
    assert any(link in cell.source for cell in read(path.name).cells if cell.cell_type == "markdown")


@each_chapter
def test_chapter_has_a_summary_and_four_exercises_with_solutions(path):
    text = "\n".join(cell.source for cell in read(path.name).cells if cell.cell_type == "markdown")
    assert re.search(r"^## Summary", text, re.MULTILINE)
    exercises = re.findall(r"\{exercise(?:-start)?\}[^`]*?:label: ([\w-]+)", text)
    solutions = re.findall(r"\{solution(?:-start)?\} ([\w-]+)", text)
    assert len(exercises) >= 4
    assert sorted(exercises) == sorted(solutions)
    for label in solutions:
        assert re.search(rf"\{{solution(?:-start)?\}} {label}\n:class: dropdown", text), f"{label} is not folded"


def draws(source: str) -> bool:
    """Whether a cell calls, outside of functions it defines, what makes a still picture."""
    names = {"show", "subplots", "figure", "savefig", "imshow", "show_images", "strip", "curves"}
    todo, called = [ast.parse(source)], set()
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            called.add(getattr(node.func, "attr", None) or getattr(node.func, "id", None))
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            todo.extend(ast.iter_child_nodes(node))
    return bool(names & called)


@each_chapter
def test_cells_that_draw_say_what_the_picture_shows(path):
    for cell in code_cells(path):
        if draws(cell.source) and "remove-output" not in cell.metadata.get("tags", []):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(alt) > 20, f"cell {cell.id} of {path.name} draws a picture without alt text"


def test_the_citation_names_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)[1]


MODULES = sorted({path.stem for path in (ROOT / "vnca").glob("[a-z]*.py")} | {"pretrained"})


def imports_of(module: str) -> set[str]:
    """The modules of the package that one of them imports, at its head or within its functions."""
    path = ROOT / "vnca" / f"{module}.py"
    tree = ast.parse((path if path.exists() else path.with_suffix("") / "__init__.py").read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "vnca":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vnca."):
            found.add(node.module.split(".")[1])
    return found & set(MODULES)


def test_no_module_needs_one_that_needs_it():
    """So that the package can be read in an order in which nothing is used before it was seen."""
    order = list(TopologicalSorter({module: imports_of(module) for module in MODULES}).static_order())
    assert order.index("cells") < order.index("decoders") < order.index("vae") < order.index("training")


def test_the_short_way_through_the_book_names_sections_that_exist():
    intro = (ROOT / "book" / "intro.md").read_text(encoding="utf-8")
    (box,) = re.findall(r"```\{admonition\} If you have an hour.*?```", intro, flags=re.DOTALL)
    named = re.findall(r"\*([^*]+)\*", box)
    lines = [line for path in CHAPTERS for cell in read(path.name).cells for line in cell.source.splitlines()]
    headings = {line.lstrip("# ") for line in lines if re.match("##+ ", line)}
    assert len(named) > 5 and set(named) <= headings
