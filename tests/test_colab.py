"""Every chapter as Colab runs it: alone in a folder, where torch is installed and the package is not.

The first cell of the chapter installs the package from the repository's address, which git is told to find in this
checkout. So what is installed is the last commit; changes that are not committed do not take part.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import readme
from chapters import CHAPTERS, ROOT

UNTOUCHED = ("torch", "torchvision", "numpy")


class Machine:
    """A virtual environment with everything that is installed here, except the package."""

    def __init__(self, folder: Path):
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        self.python = folder / Path(sys.executable).relative_to(sys.prefix)
        self.packages = Path(self.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            # Links, because copies would take gigabytes.
            if not entry.name.startswith(("vnca", "__editable__", "__pycache__")):
                (self.packages / entry.name).symlink_to(entry)

    def environment(self) -> dict:
        settings = {
            # git finds the repository's address in this checkout, whoever owns that.
            "GIT_CONFIG_COUNT": "2",
            "GIT_CONFIG_KEY_0": f"url.{ROOT.as_uri()}.insteadOf",
            "GIT_CONFIG_VALUE_0": readme.repository(),
            "GIT_CONFIG_KEY_1": "safe.directory",
            "GIT_CONFIG_VALUE_1": "*",
            # pip may take nothing else from anywhere: what is installed has to be enough, and stays as it is.
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # which is how this variable says that there is none
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        return {**{k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}, **settings}

    def run(self, *arguments, **options) -> subprocess.CompletedProcess:
        """Run its Python, and show what it printed where that fails."""
        done = subprocess.run(
            [self.python, *arguments], env=self.environment(), capture_output=True, text=True, **options
        )
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
    return Machine(tmp_path_factory.mktemp("colab") / "venv")


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)
def test_chapter_runs_alone(machine, path, tmp_path):
    machine.forget_package()
    before = machine.versions()
    shutil.copy(path, tmp_path)
    run_notebook = ["-m", "pytest", "--nbmake", "--nbmake-timeout=900", "-p", "no:cacheprovider", path.name]
    machine.run(*run_notebook, cwd=tmp_path)
    where = machine.run("-c", "import vnca; print(vnca.__file__)", cwd=tmp_path).stdout.strip()
    assert Path(where).parent == machine.packages / "vnca"
    assert machine.versions() == before
