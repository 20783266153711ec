"""Build the book into `_build/html`: execute the chapters that changed, then make the pages.

An unchanged chapter is not executed again, unless what it computed could have changed: the package, the shipped
weights, the environment or the data in reach. Then everything in `_build` is made anew.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
STAMP = BUILD / "computed-with"


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


def computed_with() -> str:
    """What the output of a chapter depends on besides the chapter."""
    package = [p for p in (ROOT / "vnca").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    files = digest_of_files([*package, ROOT / "requirements.txt"])
    return "\n".join([sys.version, files, *data_in_reach()])


def build() -> int:
    if STAMP.is_file() and STAMP.read_text() != computed_with():
        print("The package, its weights, the environment or the data changed: executing every chapter anew.")
        shutil.rmtree(BUILD)
    if not BUILD.exists():
        # The first import of matplotlib on a machine talks about its fonts; no page should show that.
        subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], check=True)
    command = [sys.executable, "-m", "jupyter_book", "build", str(ROOT), "-W", "-n", "--keep-going"]
    status = subprocess.run(command).returncode
    BUILD.mkdir(exist_ok=True)
    # Written last: a chapter that downloads its data changes what is in reach.
    STAMP.write_text(computed_with())
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
