"""Runs: what they leave behind, how they stop and resume, and what they refuse."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file

import vnca
from vnca import checkpoints, hardware, pretrained, training
from vnca.__main__ import main
from vnca.vae import ModelConfig, build

TINY = training.TrainConfig(
    model=ModelConfig("doubling", 4, 2, {"hidden": 4, "steps": 1}),
    data="digits",
    split="train",
    updates=8,
    batch_size=4,
    learning_rate=1e-3,
    warmup=2,
    kl_warmup=4,
)


PRESETS = dict(training.PRESETS)


@pytest.fixture(autouse=True)
def tiny_presets(monkeypatch):
    monkeypatch.setattr(training, "PRESETS", {"quick": TINY})


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def stop_after(monkeypatch, updates):
    """Let the next run behave as if Ctrl-C came during update `updates`."""
    step = training._Run.step

    def interrupted(run):
        if run.update == updates - 1:
            signal.raise_signal(signal.SIGINT)
        return step(run)

    monkeypatch.setattr(training._Run, "step", interrupted)


def test_a_run_leaves_its_files_and_evaluate_and_sample_work_on_them(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", "--preset", "quick", "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {
        "checkpoint.safetensors",
        "config.json",
        "metrics.jsonl",
        "model.safetensors",
        "samples.png",
    }
    config = json.loads((out / "config.json").read_text())
    assert config["training"]["data"] == "digits" and config["run"]["images_seen"] == 32
    result = tmp_path / "result.json"
    assert main(["evaluate", "--weights", str(out), "--num-samples", "2", "--limit", "5", "--out", str(result)]) == 0
    written = json.loads(result.read_text())
    assert written["images"] == 5 and written["num_samples"] == 2 and math.isfinite(written["nats"])
    assert f"{written['nats']:.2f}" in capsys.readouterr().out
    assert main(["sample", "--weights", str(out), "--out", str(tmp_path / "s.png"), "--n", "3"]) == 0
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_built_from_its_json(name):
    config = json.loads(json.dumps(asdict(PRESETS[name])))
    model = ModelConfig(**config.pop("model"))
    assert training.TrainConfig(model=model, **config) == PRESETS[name]
    assert build(model).sample(1).shape == (1, 1, 28, 28)
    assert config["data"] in vnca.data.NAMES and config["split"] in vnca.data.SPLITS


def test_weights_of_unknown_origin_cannot_be_evaluated(tmp_path, capsys):
    pretrained.save(build(TINY.model), TINY.model, tmp_path)
    assert main(["evaluate", "--weights", str(tmp_path)]) == 2
    assert "does not say on which data" in one_line_error(capsys)


def test_training_lowers_the_loss(tmp_path):
    config = replace(TINY, updates=40, batch_size=16, learning_rate=5e-3, kl_warmup=1)
    training.train(config, tmp_path / "run")
    lines = metrics(tmp_path / "run")
    assert [line["update"] for line in lines] == [20, 40]
    assert lines[-1]["nats"] > lines[0]["nats"] + 20


def test_a_stopped_run_resumes_to_bit_identical_weights(tmp_path, monkeypatch):
    training.train(TINY, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            training.train(TINY, tmp_path / "parts")
    assert json.loads((tmp_path / "parts" / "config.json").read_text())["run"]["updates"] == 3
    vnca.load(tmp_path / "parts")
    training.train(TINY, tmp_path / "parts", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_resume_repeats_no_line_of_the_metrics(tmp_path, monkeypatch):
    config = replace(TINY, updates=50)
    with monkeypatch.context() as patch:
        stop_after(patch, 30)
        with pytest.raises(KeyboardInterrupt):
            training.train(config, tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:  # what a killed run may leave
        file.write(json.dumps({"update": 40}) + "\n" + '{"upda')
    training.train(config, tmp_path, resume=True)
    assert [line["update"] for line in metrics(tmp_path)] == [20, 40, 50]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_a_real_run_leaves_a_loadable_checkpoint(tmp_path, number):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "vnca", "train", "--preset", "quick", "--updates", "100000", "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").stat().st_size:
        assert time.monotonic() < deadline and process.poll() is None, "the run did not start"
        time.sleep(0.1)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in stderr and "--resume" in stdout
    vnca.load(out)
    done = json.loads((out / "config.json").read_text())["run"]["updates"]
    assert done >= 20 and f"stopped after update {done}" in stdout


def test_a_loss_that_is_not_finite_stops_the_run_with_advice(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training, "PRESETS", {"quick": replace(TINY, learning_rate=1e30, updates=50)})
    out = tmp_path / "run"
    assert main(["train", "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert "is not finite" in error and "--learning-rate below 1e+30" in error and "Traceback" not in error
    assert all(value.isfinite().all() for value in weights(out).values()), "the last good weights stay"


def test_the_seed_decides_over_images_and_noise():
    images = torch.rand(40, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    runs = [training._Run(replace(TINY, seed=seed), None, images) for seed in (0, 0, 1)]
    batches = [run.batch() for run in runs]
    assert torch.equal(batches[0], batches[1]) and not torch.equal(batches[0], batches[2])
    for run in runs:
        run.step()
    noise = [torch.rand(5, generator=run.noise) for run in runs]
    assert torch.equal(noise[0], noise[1]) and not torch.equal(noise[0], noise[2])


@pytest.mark.parametrize("there", [True, False])
def test_autocast_is_used_where_the_machine_has_bfloat16(there, monkeypatch):
    monkeypatch.setattr(hardware, "has_bfloat16", lambda device: there)
    types = []
    run = training._Run(TINY, None, torch.zeros(4, 1, 28, 28))
    run.model.decoder.update.layers[0].register_forward_hook(lambda *call: types.append(call[-1].dtype))
    run.step()
    assert set(types) == {torch.bfloat16 if there else torch.float32}
    assert ("bfloat16" in hardware.describe(torch.device("cpu"))) == there


def test_every_image_is_seen_once_an_epoch():
    config = replace(TINY, batch_size=5)
    images = torch.arange(20.0).view(20, 1, 1, 1).expand(20, 1, 28, 28) / 20
    run = training._Run(config, None, images)
    for _ in range(2):
        seen = []
        for _ in range(4):
            seen += (run.batch()[:, 0, 0, 0] * 20).round().tolist()
            run.update += 1
        assert sorted(seen) == list(range(20))


def test_schedules_rise_and_fall():
    config = replace(TINY, updates=100, warmup=10, kl_warmup=50)
    rates = [config.learning_rate_at(update) for update in range(100)]
    assert max(rates) <= 1e-3 and rates[0] < rates[9] and rates[-1] < 1e-5
    assert [config.kl_weight_at(update) for update in (0, 24, 49, 99)] == [0.02, 0.5, 1, 1]


def one_line_error(capsys):
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and "Traceback" not in error
    return error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--preset", "slow", "--out", "x"], "unknown preset 'slow'; there are quick"),
        (["train", "--updates", "0", "--out", "x"], "updates is at least 1, not 0"),
        (["train", "--seed", "4294967296", "--out", "x"], "seed is a whole number from 0 to 4294967295"),
        (["train", "--learning-rate", "nan", "--out", "x"], "learning_rate is a positive number, not nan"),
        (["train", "--resume", "--out", "x"], "no run in x to resume"),
        (["evaluate", "--weights", "nothing", "--out", "no/x.json"], "lies in one that does not exist"),
        (["sample", "--weights", "nothing", "--out", "."], "--out . is a folder"),
        (["sample", "--weights", "nothing", "--out", "x.png", "--seed", "-1"], "--seed is a whole number"),
        (["evaluate", "--weights", "nothing"], "no weights named 'nothing'"),
        (["sample", "--weights", "nothing", "--out", "x.png"], "no weights named 'nothing'"),
        (["sample", "--weights", "nothing", "--out", "x.png", "--n", "0"], "--n is at least 1, not 0"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in one_line_error(capsys)
    assert not list(tmp_path.iterdir()), "nothing was written"


def test_a_folder_with_files_is_not_overwritten_without_being_told(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", "--out", str(out)]) == 0
    before = (out / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert main(["train", "--out", str(out), "--seed", "1"]) == 2
    assert "--resume" in (error := one_line_error(capsys)) and "--overwrite" in error
    assert (out / "model.safetensors").read_bytes() == before
    assert main(["train", "--out", str(out), "--seed", "1", "--overwrite"]) == 0
    assert (out / "model.safetensors").read_bytes() != before


def test_a_checkpoint_of_another_configuration_is_refused_with_the_difference(tmp_path, capsys):
    assert main(["train", "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["train", "--out", str(tmp_path / "run"), "--resume", "--seed", "7"]) == 2
    assert "seed is 0 there, 7 now" in one_line_error(capsys)


def test_resume_takes_the_configuration_of_the_run(tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert main(["train", "--out", str(out), "--updates", "6", "--seed", "5"]) == 1
    assert main(["train", "--out", str(out), "--resume"]) == 0
    run = json.loads((out / "config.json").read_text())
    assert (run["run"]["updates"], run["training"]["updates"], run["training"]["seed"]) == (6, 6, 5)


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {}}', '{"model": {}, "training": {"colour": 1}}'])
def test_a_damaged_configuration_is_named(tmp_path, capsys, content):
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "model.safetensors").write_text("")
    for command in (["train", "--resume", "--out"], ["evaluate", "--weights"]):
        assert main([*command, str(tmp_path)]) == 2
        assert str(tmp_path) in one_line_error(capsys)


def test_overwrite_keeps_the_old_run_until_there_is_data(tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    assert main(["train", "--out", str(out)]) == 0
    before = (out / "model.safetensors").read_bytes()

    def gone(*_):
        raise vnca.data.DataError("the data set is gone", "")

    monkeypatch.setattr(training.data, "load", gone)
    assert main(["train", "--out", str(out), "--overwrite"]) == 1
    assert (out / "model.safetensors").read_bytes() == before


def test_a_damaged_checkpoint_is_named(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", "--out", str(out)]) == 0
    path = out / checkpoints.NAME
    path.write_bytes(path.read_bytes()[:200])
    capsys.readouterr()
    assert main(["train", "--out", str(out), "--resume"]) == 2
    assert str(path) in one_line_error(capsys)


def test_pixels_outside_0_to_1_are_refused(tmp_path, capsys, monkeypatch):
    images = torch.utils.data.TensorDataset(255 * torch.ones(8, 1, 28, 28), torch.zeros(8))
    monkeypatch.setattr(training.data, "load", lambda *_: images)
    assert main(["train", "--out", str(tmp_path / "run")]) == 2
    assert "from 255 to 255: divide 8-bit images by 255" in one_line_error(capsys)


def test_images_of_another_shape_are_refused(tmp_path, capsys, monkeypatch):
    images = torch.utils.data.TensorDataset(torch.ones(8, 1, 32, 32), torch.zeros(8))
    monkeypatch.setattr(training.data, "load", lambda *_: images)
    assert main(["train", "--out", str(tmp_path / "run")]) == 2
    assert "(B, 1, 28, 28), not (4, 1, 32, 32)" in one_line_error(capsys)
