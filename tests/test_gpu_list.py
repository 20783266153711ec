"""The rehearsal of the work that wants a GPU: every line runs at tiny size and leaves what is to be carried away."""

import json

import gpu_list
import pytest

import vnca
from vnca.checkpoints import NAME as CHECKPOINT


@pytest.mark.parametrize("line", gpu_list.LINES)
def test_every_line_runs_at_tiny_size(line, tmp_path):
    out = tmp_path / "out"
    rest = ["--tiny", "--out", str(out), "--work", str(tmp_path / "runs")]
    if line in ("prior", "best"):  # goes on from the weights of an earlier line
        assert gpu_list.main(["doubling", *rest]) == 0
    assert gpu_list.main([line, *rest]) == 0
    if line in gpu_list.NAMES:
        name = gpu_list.NAMES[line][1]
        assert vnca.load(out / name).sample(1).shape == (1, 1, 28, 28)
        assert json.loads((out / f"{name}.json").read_text())["images"] == 4
        assert not list(out.rglob(CHECKPOINT)), "checkpoints are too large to carry"


def test_what_would_fail_again_is_not_called_unfinished(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_list, "vnca", lambda arguments: 2)
    command = ["conv", "--tiny", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "runs")]
    with pytest.raises(SystemExit) as failure:
        gpu_list.main(command)
    assert failure.value.code == 2


def test_an_evaluation_that_was_cut_is_unfinished(tmp_path, monkeypatch):
    def cut(arguments):
        try:
            gpu_list.signal.raise_signal(gpu_list.signal.SIGALRM)
        except KeyboardInterrupt:
            return 1

    monkeypatch.setattr(gpu_list, "vnca", cut)
    command = ["conv", "--tiny", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "runs"), "--seconds", "1000"]
    assert gpu_list.main(command) == gpu_list.UNFINISHED
    gpu_list.signal.alarm(0)


def cut_after(updates, command, monkeypatch):
    """Call a line and let its time be up after so many updates."""
    step = gpu_list.training._Run.step

    def cut(run):
        step(run)
        if run.update == updates:
            gpu_list.signal.raise_signal(gpu_list.signal.SIGALRM)

    with monkeypatch.context() as patch:
        patch.setattr(gpu_list.training._Run, "step", cut)
        assert gpu_list.main([*command, "--seconds", "1000"]) == gpu_list.UNFINISHED
    gpu_list.signal.alarm(0)


def test_a_line_that_was_cut_goes_on(tmp_path, monkeypatch):
    command = ["small", "--tiny", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "runs")]
    cut_after(2, command, monkeypatch)
    run = json.loads((tmp_path / "out" / "doubling-mnist-small" / "config.json").read_text())["run"]
    assert run["updates"] == 2, "what was cut is carried away as it is"
    assert gpu_list.main(command) == 0
    run = json.loads((tmp_path / "out" / "doubling-mnist-small" / "config.json").read_text())["run"]
    assert run["updates"] == 4


def test_a_line_goes_on_from_shipped_weights_of_its_own_name(tmp_path, monkeypatch):
    """Also when it was cut and its own run, of the same name, lies among the earlier ones."""
    assert gpu_list.main(["doubling", "--tiny", "--out", str(tmp_path / "shipped")]) == 0
    monkeypatch.setattr(gpu_list.training.pretrained, "FOLDER", tmp_path / "shipped")
    command = ["doubling", "--tiny", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "runs")]
    command += ["--init-from", "doubling-mnist", "--learning-rate", "1e-5"]
    cut_after(2, command, monkeypatch)
    assert gpu_list.main(command) == 0
    config = json.loads((tmp_path / "out" / "doubling-mnist.json").read_text())
    assert config["config"]["training"]["init_from"] == "doubling-mnist"
    assert config["config"]["training"]["learning_rate"] == 1e-5
    assert config["updates"] == 4 and config["before"][0]["updates"] == 4
