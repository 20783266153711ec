"""Every chapter as Colab runs it, and at its worst: alone in a folder, where torch is installed and the package is
not, without data, and without a network to get them from.

The first cell of the chapter installs the package from the repository's address, which git is told to find in this
checkout. So what is installed is the last commit; changes that are not committed do not take part. The chapter then
has to do with the digits that come with scikit-learn. (With MNIST the chapters run elsewhere: pytest runs the folder
`book` itself.)
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import contents
import nbformat
import pytest
from chapters import CHAPTERS, ROOT, read

UNTOUCHED = ("torch", "torchvision", "numpy")
NO_ANSWER = "http://127.0.0.1:9"  # a proxy that is not there


def without_network() -> list[str]:
    """The words before a command that take its network away, where this machine has the right to; else none.

    Jupyter talks to its kernels over the loopback device, which a fresh network has to switch on.
    """
    for flags in ("-n", "-rn"):
        words = ["unshare", flags, "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
        try:
            if subprocess.run([*words, "true"], capture_output=True).returncode == 0:
                return words
        except OSError:  # there is no such program, as on a Mac
            break
    return []


class Machine:
    """A virtual environment with everything that is installed here, except the package, and no data in reach."""

    def __init__(self, folder: Path):
        self.folder, self.alone = folder, without_network()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        self.python = folder / "venv" / Path(sys.executable).relative_to(sys.prefix)
        self.packages = Path(self.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            # Links, because copies would take gigabytes.
            if not entry.name.startswith(("vnca", "__editable__", "__pycache__")):
                (self.packages / entry.name).symlink_to(entry)

    def environment(self) -> dict:
        settings = {
            "VNCA_DATA": str(self.folder / "nowhere"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            # git finds the repository's address in this checkout, whoever owns that.
            "GIT_CONFIG_COUNT": "2",
            "GIT_CONFIG_KEY_0": f"url.{ROOT.as_uri()}.insteadOf",
            "GIT_CONFIG_VALUE_0": contents.repository(),
            "GIT_CONFIG_KEY_1": "safe.directory",
            "GIT_CONFIG_VALUE_1": "*",
            # pip may take nothing else from anywhere: what is installed has to be enough, and stays as it is.
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # which is how this variable says that there is none
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        if not self.alone:
            proxies = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
            settings |= {**dict.fromkeys(proxies, NO_ANSWER), "no_proxy": "localhost,127.0.0.1"}
        return {**{k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}, **settings}

    def run(self, *arguments, **options) -> subprocess.CompletedProcess:
        """Run its Python, and show what it printed where that fails."""
        command = [*self.alone, self.python, *arguments]
        done = subprocess.run(command, env=self.environment(), capture_output=True, text=True, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def versions(self) -> dict:
        code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {UNTOUCHED}}}))"
        return json.loads(self.run("-c", code).stdout)

    def forget_package(self):
        if list(self.packages.glob("vnca-*.dist-info")):
            self.run("-m", "pip", "uninstall", "--quiet", "--yes", "vnca")


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    if not (ROOT / ".git").exists():
        pytest.skip("this copy of the repository has no git history that pip could install from")
    return Machine(tmp_path_factory.mktemp("colab"))


def test_nothing_is_in_reach(machine):
    code = "import urllib.request as r; r.urlopen('http://example.com', timeout=20)"
    with pytest.raises(AssertionError, match="URLError"):
        machine.run("-c", code)
    assert not Path(machine.environment()["VNCA_DATA"]).exists()


def printed(path: Path) -> str:
    """What the cells of an executed notebook printed."""
    cells = nbformat.read(path, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)
def test_chapter_runs_alone(machine, path, tmp_path):
    machine.forget_package()
    before = machine.versions()
    shutil.copy(path, tmp_path)
    run_notebook = ["-m", "pytest", "--nbmake", "--nbmake-timeout=900", "-p", "no:cacheprovider", "--overwrite"]
    machine.run(*run_notebook, path.name, cwd=tmp_path)
    where = machine.run("-c", "import vnca; print(vnca.__file__)", cwd=tmp_path).stdout.strip()
    assert Path(where).parent == machine.packages / "vnca"
    assert machine.versions() == before
    asks_for_others = any('fallback="digits"' in cell.source for cell in read(path.name).cells)
    assert ("the built-in set, because" in printed(tmp_path / path.name)) == asks_for_others
