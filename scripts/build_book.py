"""Build the book into `_build/html`: execute the chapters that changed, two at a time, then make the pages.

An unchanged chapter is not executed again, unless what it computed could have changed: the package, the shipped
weights, the environment or the data in reach. Then everything in `_build` is made anew.
"""

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import contents
import nbformat
import yaml
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.executors.utils import ExecutionResult, single_nb_execution
from nbclient.exceptions import DeadKernelError

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
STAMP = BUILD / "computed-with"
CACHE = BUILD / ".jupyter_cache"  # where the builder looks for executed notebooks
AT_ONCE = 2  # chapters: with a core for each, two need less time together than one after the other on both


def digest_of_files(paths) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(ROOT)}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def data_in_reach() -> list[str]:
    """The files of binarized MNIST, the chapters' data set, that `vnca.data.load` finds without downloading."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vnca"
    folders = [cache, *(Path(root).expanduser() for root in [os.environ.get("VNCA_DATA")] if root)]
    names = ("binarized_mnist_*.amat*", "binarized_mnist/binarized_mnist_*.amat*", "binarized_mnist/*.bits")
    found = [path for folder in folders for name in names for path in folder.glob(name)]
    # The cache also keeps parsed copies of files that lie elsewhere, named with a dash: those follow from the files.
    return sorted(f"{path.name} {path.stat().st_size}" for path in found if "-" not in path.name)


def code_in_use() -> str:
    """A digest of the package, the shipped weights and the builder's own extension."""
    folders = (ROOT / "vnca", ROOT / "book" / "_ext")
    found = [path for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts]
    return digest_of_files(filter(Path.is_file, found))


def installed() -> list[str]:
    """The packages of the environment with their versions."""
    return sorted(f"{package.metadata['Name']}=={package.version}" for package in importlib.metadata.distributions())


def computed_with(code: str) -> str:
    """What the output of a chapter depends on besides the chapter."""
    return "\n".join([sys.version, code, *installed(), *data_in_reach()])


def execute_chapters() -> None:
    """Execute the chapters that the cache does not hold, so that the builder, which takes one at a time, finds them.

    A chapter that fails is left to the builder, which says where and why.
    """
    waiting = [path for path in contents.chapters() if not is_executed(path)]
    # Before torch is imported in a kernel: more threads than cores wait for each other most of the time.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // AT_ONCE)))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = {pool.submit(execute, path): path for path in waiting}
        for done in as_completed(running):
            path = running[done]
            try:
                result = done.result()
            except DeadKernelError:  # perhaps for want of memory: the builder tries again, with nothing beside it
                print(f"{path.name}: its kernel died", flush=True)
                continue
            print(f"{path.name}: {'failed' if result.err else 'executed'} after {result.time:.0f} s", flush=True)
            if result.err is None:
                bundle = CacheBundleIn(result.nb, str(path), data={"execution_seconds": result.time})
                get_cache(CACHE).cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def is_executed(path: Path) -> bool:
    """Whether the cache holds a chapter with the code that it has now."""
    try:
        get_cache(CACHE).match_cache_notebook(nbformat.read(path, as_version=4))
    except KeyError:
        return False
    return True


def execute(path: Path) -> ExecutionResult:
    """Execute a chapter as the builder would, alone in a folder."""
    notebook = nbformat.read(path, as_version=4)
    seconds = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["execute"]["timeout"]  # for a cell
    with tempfile.TemporaryDirectory() as folder:
        return single_nb_execution(notebook, cwd=folder, timeout=seconds, allow_errors=False)


def build() -> int:
    # Read once: what changes while the chapters run has not taken part.
    code = code_in_use()
    if BUILD.exists() and (not STAMP.is_file() or STAMP.read_text() != computed_with(code)):
        print("The package, its weights, the environment or the data changed: executing every chapter anew.")
        shutil.rmtree(BUILD)
    if not BUILD.exists():
        # The first import of matplotlib on a machine talks about its fonts; no page should show that.
        subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], check=True)
        BUILD.mkdir()
        STAMP.write_text(computed_with(code))
    execute_chapters()
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    status = subprocess.run([jupyter_book, "build", str(ROOT), "-W", "-n", "--keep-going"]).returncode
    # Once more: a chapter that downloads its data changes what is in reach.
    STAMP.write_text(computed_with(code))
    return status


def main() -> int:
    started = time.monotonic()
    if status := build():
        # Sphinx warns only about pages it reads: make the next build read them all, so that it fails as well.
        shutil.rmtree(BUILD / ".doctrees", ignore_errors=True)
        print("The book was not built cleanly: see the warnings above.", file=sys.stderr)
        return status
    print(f"Built in {time.monotonic() - started:.0f} s. Open {BUILD / 'html' / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
