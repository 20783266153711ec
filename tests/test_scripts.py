"""The scripts that build the book and fill README."""

import json
from types import SimpleNamespace

import build_book
import pytest
import readme

RUN = {
    "name": "doubling-mnist",
    "model": "doubling",
    "data": "binarized-mnist",
    "split": "test",
    "nats": -84.5678,
    "elbo": -88.1,
    "standard_error": 0.217,
    "num_samples": 128,
    "images": 10_000,
    "updates": 100_000,
    "parameters": {"encoder": 5_000_000, "decoder": 1_182_208},
    "hardware": "one H200",
    "minutes": 61.4,
}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Writes results into a repository of its own."""
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()

    def write(**changes):
        run = {**RUN, **changes}
        (tmp_path / "results" / f"{run['name']}.json").write_text(json.dumps(run))

    return write


def test_own_results_come_first_best_on_top(results):
    results()
    results(name="worse", nats=-90.0)
    rows = [line for line in readme.render_results().splitlines() if line.startswith("| ") and "model" not in line]
    assert rows[0] == (
        "| **doubling VNCA** | **−84.57** ± 0.22 (128 samples, 10,000 images) | −88.10 | 1,182,208 "
        "| 100,000 updates, 61 min, one H200 | [doubling-mnist](results/doubling-mnist.json) |"
    )
    assert "−90.00" in rows[1]
    assert len(rows) == 2 + len(readme.PUBLISHED)


def test_other_data_never_share_a_table_with_published_figures(results):
    results(data="digits", nats=-60.0)
    published, own = readme.render_results().split("`digits`, test split")
    assert "no run of this repository is recorded yet" in published
    assert "−60.00" in own and "Palm" not in own


def test_benchmarks_are_no_results(results, tmp_path):
    (tmp_path / "results" / "speed.json").write_text('{"name": "speed", "seconds": 3}')
    assert "speed" not in readme.render_results()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A small repository whose build does nothing but note that it ran; `repository.output` is what it computed."""
    root = tmp_path / "repository"
    for folder in ("vnca", "book/_ext"):
        (root / folder).mkdir(parents=True)
    (root / "vnca" / "vae.py").write_text("old")
    output = root / "_build" / "output"
    monkeypatch.setattr(build_book, "ROOT", root)
    monkeypatch.setattr(build_book, "BUILD", root / "_build")
    monkeypatch.setattr(build_book, "STAMP", root / "_build" / "computed-with")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("VNCA_DATA", str(tmp_path / "data"))

    here = SimpleNamespace(root=root, output=output, data=tmp_path / "data", status=0, while_running=lambda: None)

    def run(command, **_):
        if "build" in command:
            output.touch()
            here.while_running()
        return SimpleNamespace(returncode=here.status)

    monkeypatch.setattr(build_book.subprocess, "run", run)
    return here


def kept(repository) -> bool:
    """Whether the output of one build is still there when the next begins."""
    repository.output.write_text("mark")
    build_book.build()
    return repository.output.read_text() == "mark"


def test_output_is_kept_while_nothing_changes(repository):
    build_book.build()
    assert kept(repository)


@pytest.mark.parametrize("name", ["vnca/vae.py", "vnca/pretrained/small/model.safetensors"])
def test_output_is_dropped_after_a_change(repository, name):
    build_book.build()
    (repository.root / name).parent.mkdir(parents=True, exist_ok=True)
    (repository.root / name).write_text("new")
    assert not kept(repository)
    assert kept(repository)


def test_output_is_dropped_after_a_change_of_the_environment(repository, monkeypatch):
    build_book.build()
    monkeypatch.setattr(build_book, "installed", lambda: ["torch==99"])
    assert not kept(repository)
    assert kept(repository)


def test_output_is_dropped_when_data_come_or_go(repository):
    build_book.build()
    repository.data.mkdir()
    (repository.data / "binarized_mnist_train.amat").write_text("0 1")
    assert not kept(repository)
    (repository.data / "binarized_mnist_train.amat").unlink()
    assert not kept(repository)


def test_a_change_while_the_chapters_run_counts_for_the_next_build(repository):
    repository.while_running = lambda: (repository.root / "vnca" / "vae.py").write_text("new")
    build_book.build()
    repository.while_running = lambda: None
    assert not kept(repository)


def test_a_build_with_warnings_fails_again_when_repeated(repository, capsys):
    repository.status = 1
    repository.while_running = (repository.root / "_build" / ".doctrees").mkdir
    assert build_book.main() == 1
    assert not (repository.root / "_build" / ".doctrees").exists()
    assert "not built cleanly" in capsys.readouterr().err
