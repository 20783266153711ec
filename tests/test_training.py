"""Runs: what they leave behind, how they stop and resume, and what they refuse."""

import errno
import functools
import io
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import vnca
from vnca import __main__ as command_line
from vnca import checkpoints, files, hardware, objectives, plotting, pretrained, training
from vnca.__main__ import main
from vnca.packing import PackedImages
from vnca.presets import PRESETS, Preset, TrainConfig
from vnca.vae import ModelConfig, build

CPU = torch.device("cpu")
TINY = TrainConfig(
    model=ModelConfig("doubling", 4, 2, {"hidden": 4, "steps": 1}),
    data="digits",
    split="train",
    updates=8,
    batch_size=4,
    learning_rate=1e-3,
    warmup=2,
    kl_warmup=4,
    ema=0.5,
)
REGROWING = replace(TINY, model=ModelConfig("regrowing", 4, 2, {"hidden": 4, "min_steps": 1, "max_steps": 3}))


@pytest.fixture(autouse=True)
def tiny_presets(monkeypatch):
    monkeypatch.setattr(command_line, "PRESETS", {"quick": Preset(TINY, "tiny")})


@pytest.fixture(autouse=True)
def forget_the_precision():
    """Accelerate keeps the arithmetic of the first run of a process for all others."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def run_of(config, images=None):
    images = torch.rand(40, 1, 28, 28, generator=torch.Generator().manual_seed(0)) if images is None else images
    return training._Run(config, None, images, Accelerator(cpu=True, mixed_precision=hardware.precision(CPU)))


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
    assert {path.name for path in out.iterdir()} - {training.LOCK} == {
        "checkpoint.safetensors",
        "config.json",
        "metrics.jsonl",
        "model.safetensors",
        "samples.png",
        "tensorboard",
    }
    board = EventAccumulator(str(out / "tensorboard")).Reload()
    assert [image.step for image in board.Images("samples")] == [8], "at the end, however short the run"
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
    config = json.loads(json.dumps(asdict(PRESETS[name].config)))
    model = ModelConfig(**config.pop("model"))
    assert TrainConfig(model=model, **config) == PRESETS[name].config
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


@pytest.mark.parametrize("config", [TINY, replace(TINY, ema=0.0), REGROWING], ids=["averaged", "plain", "pool"])
def test_a_stopped_run_resumes_to_bit_identical_weights(config, tmp_path, monkeypatch):
    training.train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            training.train(config, tmp_path / "parts")
    assert json.loads((tmp_path / "parts" / "config.json").read_text())["run"]["updates"] == 5
    vnca.load(tmp_path / "parts")
    training.train(config, tmp_path / "parts", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert same(load_file(tmp_path / "whole" / checkpoints.NAME), load_file(tmp_path / "parts" / checkpoints.NAME))


# The command line in a process of its own, with the tiny preset.
SCRIPT = """\
import sys
from vnca import __main__, hardware, training
from vnca.presets import Preset, TrainConfig
from vnca.vae import ModelConfig
model = ModelConfig("doubling", 4, 2, {"hidden": 4, "steps": 1})
__main__.PRESETS = {"quick": Preset(TrainConfig(model, "digits", "train", 8, 4, 1e-3, warmup=2, kl_warmup=4), "tiny")}
SETTINGS
sys.exit(__main__.main(sys.argv[1:]))
"""


def wait_for_changes(path, count, process):
    """Wait until a file was replaced so many times, or the process is over."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    while count and process.poll() is None:
        now = path.stat().st_mtime_ns if path.exists() else 0
        count -= now != before
        before = now
        time.sleep(0.001)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_run_killed_at_random_moments_goes_on_and_ends_with_the_same_weights(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.replace("SETTINGS", "training.LOG_EVERY = 5"))
    # A few updates between two checkpoints, so that kills hit the writing of one, too.
    command = [sys.executable, script, "train", "--updates", "150", "--checkpoint-minutes", "0.0005", "--out"]
    subprocess.run([*command, str(whole)], check=True, capture_output=True)
    checkpoint, chance, progress = killed / checkpoints.NAME, random.Random(0), [0]
    while progress[-1] < 150:
        resume = ["--resume"] if checkpoint.exists() else []
        process = subprocess.Popen([*command, str(killed), *resume], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if len(progress) < 4:
            wait_for_changes(checkpoint, chance.randint(3, 6), process)
            time.sleep(chance.uniform(0, 0.05))
            process.kill()
        _, error = process.communicate(timeout=120)
        assert process.returncode in (0, -signal.SIGKILL), error.decode()
        vnca.load(killed)
        progress.append(json.loads((killed / "config.json").read_text())["run"]["updates"])
        assert progress[-1] >= progress[-2], "nothing that was kept is lost"
    assert len(set(progress)) >= 4, "the run was killed several times on its way"
    assert same(weights(whole), weights(killed))
    assert [line["update"] for line in metrics(killed)] == [line["update"] for line in metrics(whole)]


LESSONS = """\
model = ModelConfig("regrowing", 4, 2, {"hidden": 4, "min_steps": 1, "max_steps": 3})
config = TrainConfig(model, "digits", "train", 8, 4, 1e-3, warmup=2, kl_warmup=4, lessons=((8, 4), (16, 4)))
__main__.PRESETS = {"quick": Preset(config, "tiny")}
"""


MIXTURE = """\
model = ModelConfig("doubling", 4, 2, {"hidden": 4, "steps": 1}, components=3, correlated=2)
config = TrainConfig(model, "digits", "train", 8, 4, 1e-3, warmup=2, kl_warmup=0, samples=2)
__main__.PRESETS = {"quick": Preset(config, "tiny")}
"""


@pytest.mark.parametrize(
    "more", ["", LESSONS, MIXTURE], ids=["doubling", "lessons and a pool", "mixture prior and 2 samples"]
)
def test_two_processes_do_what_one_does(tmp_path, more):
    script = tmp_path / "run.py"
    # In float32, because the rounding of short numbers could hide a difference.
    settings = "training.LOG_EVERY = 1; hardware.has_bfloat16 = lambda device: False\n"
    script.write_text(SCRIPT.replace("SETTINGS", settings + more))
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, launcher in (("one", [sys.executable]), ("two", two)):
        command = [*launcher, script, "train", "--updates", "20", "--batch-size", "16", "--out", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    ours, theirs = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert len(ours) == len(theirs) == 20
    assert [a["loss"] for a in ours] == pytest.approx([b["loss"] for b in theirs], rel=0, abs=1.5e-4)
    assert "2 processes" in json.loads((tmp_path / "two" / "config.json").read_text())["run"]["hardware"]


def test_a_persistent_decoder_begins_with_the_learned_prior_of_a_doubling_one(tmp_path):
    config = replace(TINY, model=replace(TINY.model, components=3))
    training.train(config, tmp_path / "doubling")
    options = TINY.model.decoder_options | {"min_steps": 1, "max_steps": 2}
    model = replace(config.model, decoder="persistent", decoder_options=options)
    started = run_of(replace(config, model=model, init_from=str(tmp_path / "doubling"))).objective.model
    theirs = vnca.load(tmp_path / "doubling")
    assert same(started.prior.state_dict(), theirs.prior.state_dict())


def test_a_persistent_decoder_begins_with_the_weights_of_a_doubling_one(tmp_path):
    training.train(TINY, tmp_path / "grown")
    options = TINY.model.decoder_options | {"min_steps": 1, "max_steps": 2}
    model = replace(TINY.model, decoder="persistent", decoder_options=options)
    config = replace(TINY, model=model, updates=1, learning_rate=1e-30, ema=0.0, init_from=str(tmp_path / "grown"))
    training.train(config, tmp_path / "staying")
    assert same(weights(tmp_path / "grown"), weights(tmp_path / "staying"))
    wider = replace(config, model=replace(model, decoder_options=options | {"hidden": 5}))
    with pytest.raises(ValueError, match="are of another model"):
        training.train(wider, tmp_path / "wider")


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
def test_a_signal_to_a_real_run_leaves_a_loadable_checkpoint(tmp_path, number, capsys):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "vnca", "train", "--preset", "quick", "--updates", "100000", "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").stat().st_size:
        assert time.monotonic() < deadline and process.poll() is None, "the run did not start"
        time.sleep(0.1)
    assert main(["train", "--resume", "--out", str(out)]) == 2
    assert "another run is writing" in one_line_error(capsys)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in stderr and "--resume" in stdout
    vnca.load(out)
    done = json.loads((out / "config.json").read_text())["run"]["updates"]
    assert done >= 20 and f"stopped after update {done}, the last one kept" in stdout


def test_a_run_whose_gradients_stay_infinite_stops_with_advice(tmp_path, capsys, monkeypatch):
    preset = Preset(replace(TINY, learning_rate=1e30, updates=50), "diverges")
    monkeypatch.setattr(command_line, "PRESETS", {"quick": preset})
    out = tmp_path / "run"
    assert main(["train", "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert "were not finite" in error and "learning rate below 1e+30" in error and "Traceback" not in error
    assert all(value.isfinite().all() for value in weights(out).values()), "the last good weights stay"


def test_a_run_that_ends_before_it_could_stop_says_that_it_diverged(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", "--out", str(out), "--updates", "5", "--learning-rate", "1e30"]) == 1
    error = capsys.readouterr().err
    assert (
        "images are not finite numbers" in error and "Traceback" not in error and "learning rate below 1e+30" in error
    )
    assert all(value.isfinite().all() for value in weights(out).values()), "the last good weights stay"


def test_one_update_that_is_not_finite_is_skipped_and_counted(monkeypatch):
    run = run_of(TINY)
    run.step()
    before = {key: value.clone() for key, value in run.objective.state_dict().items()}
    steps = run.optimizer.state_dict()["state"][0]["step"].clone()
    with monkeypatch.context() as patch:
        patch.setattr(run, "batch", lambda: torch.ones(4, 1, 28, 28))
        patch.setattr(run.objective, "draw", lambda x, *_: {"x": x, "noise": torch.full((4, 4), math.inf)})
        run.step()
    assert same(before, run.objective.state_dict())
    assert run.optimizer.state_dict()["state"][0]["step"] == steps
    run.step()
    assert not same(before, run.objective.state_dict())
    record = run.record(1.0)
    assert record["skipped"] == 1 and math.isfinite(record["loss"]) and run.skips.tolist() == [0, 1]


def spoil(monkeypatch, updates):
    """Let the gradients of these updates, counted from 0, be infinite."""
    draw = objectives.Elbo.draw

    def drawn(self, x, generator, host, update=0):
        found = draw(self, x, generator, host, update)
        return found | ({"noise": torch.full_like(found["noise"], math.inf)} if update in updates else {})

    monkeypatch.setattr(objectives.Elbo, "draw", drawn)


def test_a_skipped_update_at_the_end_costs_nothing_of_what_came_before(tmp_path, monkeypatch):
    spoil(monkeypatch, {7})
    model = training.train(TINY, tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["run"]
    assert (saved["updates"], saved["skipped"]) == (8, 1)
    assert same({key: value.cpu() for key, value in model.state_dict().items()}, weights(tmp_path))


def test_no_checkpoint_is_written_while_updates_are_skipped(tmp_path, monkeypatch):
    spoil(monkeypatch, {3, 4})
    written, save = [], training.checkpoints.save
    monkeypatch.setattr(
        training.checkpoints, "save", lambda *arguments: (written.append(arguments[-1]["update"]), save(*arguments))
    )
    training.train(TINY, tmp_path, checkpoint_minutes=1e-9)
    assert written == [0, 1, 2, 3, 6, 7, 8, 8], "after updates 4 and 5 there was none"


def test_what_a_killed_run_was_about_to_write_is_removed(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            training.train(TINY, tmp_path)
    (tmp_path / "model.safetensors.123.part").touch()
    training.train(TINY, tmp_path, resume=True)
    assert not list(tmp_path.glob("*.part"))
    (tmp_path / "model.safetensors.123.part").touch()
    training.train(TINY, tmp_path, overwrite=True)
    assert not list(tmp_path.glob("*.part"))


def test_what_is_not_of_a_run_is_neither_removed_nor_overwritten(tmp_path, capsys):
    foreign = tmp_path / "thesis.pdf.part"
    foreign.touch()
    assert main(["train", "--out", str(tmp_path), "--overwrite"]) == 2
    assert "holds thesis.pdf.part, and no run" in one_line_error(capsys)
    foreign.unlink()
    training.train(TINY, tmp_path)
    foreign.touch()
    training.train(TINY, tmp_path, resume=True)
    training.train(TINY, tmp_path, overwrite=True)
    assert foreign.exists()


def test_a_resumed_run_needs_no_more_the_weights_it_started_from(tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    training.train(TINY, first)
    config = replace(TINY, init_from=str(first))
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            training.train(config, second)
    before = json.loads((second / "config.json").read_text())["run"]["before"]
    shutil.rmtree(first)
    training.train(config, second, resume=True)
    assert json.loads((second / "config.json").read_text())["run"]["before"] == before and len(before) == 1


@pytest.mark.skipif(files.fcntl is None, reason="this system has no locks for it")
def test_a_folder_in_which_a_run_is_writing_is_left_alone(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", "--out", str(out)]) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    for option in ("--resume", "--overwrite"):
        capsys.readouterr()
        with files.locked(out / training.LOCK):
            assert main(["train", "--out", str(out), option]) == 2
        assert f"another run is writing in {out}" in one_line_error(capsys)
        assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    new = tmp_path / "new"
    new.mkdir()
    with files.locked(new / training.LOCK):
        assert main(["train", "--out", str(new)]) == 2
        assert "another run is writing" in one_line_error(capsys), "two that began in an empty folder"
    assert main(["train", "--out", str(out), "--overwrite"]) == 0


def test_a_run_that_came_and_went_meanwhile_stays(tmp_path, monkeypatch, capsys):
    load = training.data.load

    def meanwhile(*arguments):
        monkeypatch.setattr(training.data, "load", load)
        training.train(TINY, tmp_path)
        return load(*arguments)

    monkeypatch.setattr(training.data, "load", meanwhile)
    assert main(["train", "--out", str(tmp_path), "--seed", "1"]) == 2
    assert "already has files" in capsys.readouterr().err
    assert training.saved_config(tmp_path).seed == 0


def test_a_folder_with_nothing_but_a_lock_is_empty(tmp_path):
    (tmp_path / training.LOCK).touch()
    training.train(TINY, tmp_path)


def test_a_folder_with_what_systems_leave_everywhere_is_empty(tmp_path):
    for name in (".DS_Store", "Thumbs.db"):
        (tmp_path / name).touch()
    training.train(TINY, tmp_path)
    assert (tmp_path / ".DS_Store").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux tells of a process's memory")
def test_a_resumed_run_keeps_no_part_of_its_checkpoint_open(tmp_path):
    training.train(TINY, tmp_path)
    path = tmp_path / checkpoints.NAME
    run = run_of(TINY)
    run.out = tmp_path
    run.restore()
    assert run.update == 8
    with open("/proc/self/maps") as maps:
        assert str(path) not in maps.read(), "Windows would not let the next checkpoint take its place"


def test_a_clock_that_stands_still_ends_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(training.time, "monotonic", lambda: 5.0)
    training.train(TINY, tmp_path)
    assert metrics(tmp_path)[-1]["update"] == 8


def test_on_a_disk_without_locks_there_is_none(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    if files.fcntl is not None:
        monkeypatch.setattr(files.fcntl, "flock", flock)
    training.train(TINY, tmp_path)
    monkeypatch.setattr(files, "fcntl", None)
    training.train(TINY, tmp_path, overwrite=True)


def test_the_record_names_each_machine_that_trained(tmp_path, monkeypatch):
    def record(machine, updates=None):
        with monkeypatch.context() as patch:
            patch.setattr(hardware, "describe", lambda device: machine)
            patch.setattr(hardware, "commit", lambda: f"commit of {machine}")
            if updates is None:
                training.train(TINY, tmp_path, resume=True)
            else:
                stop_after(patch, updates)
                with pytest.raises(KeyboardInterrupt):
                    training.train(TINY, tmp_path, resume=updates > 2)
        run = json.loads((tmp_path / "config.json").read_text())["run"]
        return run["hardware"], run["commit"]

    assert record("GPU", 2)[0] == "GPU"
    assert record("GPU", 4)[0] == "GPU"
    both = ("GPU, then CPU", "commit of GPU, then commit of CPU")
    assert record("CPU") == both
    assert record("laptop") == both, "nothing was left to train"


@pytest.mark.parametrize(
    "parts, record",
    [
        (["a", "b", "a"], "a, then b, then a"),
        (["a", "a"], "a"),
        ([None, None], None),
        ([None, "a", None], "unknown, then a, then unknown"),
    ],
)
def test_a_record_of_parts_names_each_change(parts, record):
    assert functools.reduce(training._then, parts) == record


def test_the_scale_of_gradients_is_gone_on_with(tmp_path, monkeypatch):
    """It is that of float16, on GPUs only; its state is the same kind of thing on a CPU."""
    scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
    run, resumed = run_of(TINY), run_of(TINY)
    for each, its in ((run, scaler), (resumed, torch.amp.GradScaler("cpu"))):
        each.out = tmp_path
        monkeypatch.setattr(each.accelerator, "scaler", its)
    run.save()
    resumed.restore()
    assert resumed.accelerator.scaler.get_scale() == 4096.0 != torch.amp.GradScaler("cpu").get_scale()


def test_a_path_object_names_weights_to_start_from_and_is_kept_as_text(tmp_path, monkeypatch):
    training.train(TINY, tmp_path / "first")
    monkeypatch.chdir(tmp_path)
    for path in (Path("first"), tmp_path / "first"):
        config = replace(TINY, init_from=path)
        training.train(config, tmp_path / "second", overwrite=True)
        assert Path(training.saved_config(tmp_path / "second").init_from) == path
        assert os.path.dirname(config.init_from), "with a separator it is never taken for the name of shipped weights"


def test_a_config_that_cannot_be_kept_costs_no_earlier_run(tmp_path):
    training.train(TINY, tmp_path)
    before = (tmp_path / checkpoints.NAME).read_bytes()
    with pytest.raises(ValueError, match="cannot be kept as JSON: Object of type float32"):
        training.train(replace(TINY, learning_rate=np.float32(1e-3)), tmp_path, overwrite=True)
    assert (tmp_path / checkpoints.NAME).read_bytes() == before


@pytest.mark.parametrize("given", [["--updates", "2"], ["--minutes", "0.001"]])
def test_one_bound_of_a_run_takes_the_place_of_the_other(tmp_path, monkeypatch, given):
    for index, config in enumerate((TINY, replace(TINY, updates=None, minutes=1.0))):
        monkeypatch.setattr(command_line, "PRESETS", {"quick": Preset(config, "tiny")})
        assert main(["train", "--out", str(tmp_path / str(index)), *given]) == 0
    assert main(["train", "--out", str(tmp_path / "x"), "--updates", "2", "--minutes", "1"]) == 2


def test_weights_are_averaged_with_the_decay_given():
    run = run_of(replace(TINY, ema=0.75))
    weight = run.objective.model.decoder.update.layers[0].weight
    expected = None
    for _ in range(3):
        run.step()
        expected = weight.detach().clone() if expected is None else 0.75 * expected + 0.25 * weight.detach()
    assert torch.allclose(run.best.decoder.update.layers[0].weight, expected, rtol=1e-5)
    assert run_of(replace(TINY, ema=0.0)).averaged is None


def test_init_from_takes_weights_alone(tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["train", "--out", str(first)]) == 0
    run = run_of(replace(TINY, init_from=str(first)))
    assert same(run.objective.model.state_dict(), weights(first)) and run.update == 0
    assert not run.optimizer.state_dict()["state"], "Adam starts afresh"
    assert main(["train", "--out", str(second), "--init-from", str(first), "--updates", "2"]) == 0
    config = json.loads((second / "config.json").read_text())
    assert config["training"]["init_from"] == str(first)
    (before,) = config["run"]["before"]
    theirs = json.loads((first / "config.json").read_text())
    assert before == {"init_from": str(first), **theirs["run"], "training": theirs["training"]}
    capsys.readouterr()
    assert main(["train", "--out", str(tmp_path / "x"), "--init-from", "doubling-mnist-small"]) == 2
    error = one_line_error(capsys)
    assert "are of another model: latent_size is 64 there, 4 now; encoder_width is 8 there, 2 now; " in error
    assert "components" not in error, "which do not differ"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"colour": 1}}, "unexpected keyword argument 'colour'"),
        ({"run": 5}, "its entry 'run' is 5, no object"),
    ],
)
def test_damaged_weights_to_start_from_are_named(tmp_path, capsys, change, message):
    pretrained.save(build(TINY.model), TINY.model, tmp_path / "first")
    config = pretrained.read_config(tmp_path / "first")
    (tmp_path / "first" / "config.json").write_text(json.dumps(config | change))
    assert main(["train", "--out", str(tmp_path / "x"), "--init-from", str(tmp_path / "first")]) == 2
    assert message in (error := one_line_error(capsys)) and str(tmp_path / "first") in error


MIXTURE_OF_3 = replace(TINY, model=replace(TINY.model, components=3), kl_warmup=0, samples=2)


def test_a_learned_prior_begins_fitted_to_the_posteriors_and_is_trained():
    run = run_of(MIXTURE_OF_3)
    model, generator = run.objective.model, torch.Generator().manual_seed(0)
    posterior = model.encode(run.images[torch.arange(40)].float())
    z = posterior.mean + posterior.stddev * torch.randn(posterior.mean.shape, generator=generator)
    standard = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(dim=1)
    assert (model.prior.log_prob(z).mean() > standard.mean()).item(), "better than the standard normal"
    before = model.prior.mean.detach().clone()
    run.step()
    assert not torch.equal(model.prior.mean, before)


def test_weights_without_a_learned_prior_can_get_one_and_keep_it(tmp_path, capsys):
    plain, mixture = tmp_path / "plain", tmp_path / "mixture"
    training.train(TINY, plain)
    start = run_of(replace(MIXTURE_OF_3, init_from=str(plain))).objective.model
    theirs = weights(plain)
    assert all(torch.equal(start.state_dict()[key], value) for key, value in theirs.items())
    assert start.prior.mean.any(), "the prior is fitted"
    training.train(replace(MIXTURE_OF_3, init_from=str(plain)), mixture)
    again = run_of(replace(MIXTURE_OF_3, init_from=str(mixture))).objective.model
    assert same(again.state_dict(), weights(mixture)), "a prior that was learned is taken as it is"
    larger = replace(MIXTURE_OF_3, model=replace(TINY.model, components=5), init_from=str(mixture))
    start, theirs = run_of(larger).objective.model, weights(mixture)
    assert len(start.prior.mean) == 5 and start.prior.mean.any(), "one of another size is fitted"
    aslant = replace(larger, model=replace(TINY.model, components=3, correlated=2))
    assert run_of(aslant).objective.model.prior.mean.shape == (3, 2), "and one of another kind"
    kept = {key: value for key, value in start.state_dict().items() if not key.startswith("prior.")}
    assert same(kept, {key: theirs[key] for key in kept})
    with pytest.raises(ValueError, match="are of another model: components is 3 there, 0 now$"):
        run_of(replace(TINY, init_from=str(mixture)))


def test_a_run_without_updates_fits_the_prior_and_nothing_else(tmp_path):
    plain, fitted = tmp_path / "plain", tmp_path / "fitted"
    training.train(replace(TINY, updates=2), plain)
    training.train(replace(MIXTURE_OF_3, updates=0, samples=1, init_from=str(plain)), fitted)
    ours, theirs = weights(fitted), weights(plain)
    assert same({key: value for key, value in ours.items() if not key.startswith("prior.")}, theirs)
    assert ours["prior.mean"].any()
    run = json.loads((fitted / "config.json").read_text())["run"]
    assert (run["updates"], run["images_seen"]) == (0, 0) and run["before"][0]["updates"] == 2
    assert (fitted / "samples.png").exists()
    again = tmp_path / "again"
    more = replace(MIXTURE_OF_3, updates=0, samples=1, init_from=str(fitted), seed=1)
    training.train(more, again)
    assert not torch.equal(weights(again)["prior.mean"], ours["prior.mean"]), "a prior of the same size is fitted anew"
    with pytest.raises(ValueError, match="updates is a whole number, at least 1, not 0"):
        replace(TINY, updates=0)


def test_a_prior_is_fitted_to_the_posteriors_of_binary_images(monkeypatch):
    seen, encode = [], training.encode_in_chunks
    monkeypatch.setattr(training, "encode_in_chunks", lambda model, x, size: seen.append(x) or encode(model, x, size))
    images = torch.rand(40, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    run_of(MIXTURE_OF_3, images)
    assert ((seen[0] == 0) | (seen[0] == 1)).all() and (seen[0] - images).abs().mean() < 0.4


def test_resuming_puts_the_learned_prior_back_without_fitting_it_again(tmp_path, monkeypatch):
    training.train(MIXTURE_OF_3, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            training.train(MIXTURE_OF_3, tmp_path / "parts")
    monkeypatch.setattr(training, "_fit_prior", lambda *_: pytest.fail("it was fitted again"))
    training.train(MIXTURE_OF_3, tmp_path / "parts", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_a_log_says_that_its_bound_is_not_the_elbo(tmp_path, capsys):
    training.train(MIXTURE_OF_3, tmp_path / "several")
    assert "left  bound of 2 samples -" in capsys.readouterr().err
    (record,) = metrics(tmp_path / "several")
    assert record["samples"] == 2
    left, right = plotting.curves(tmp_path / "several").axes
    assert (left.get_title(), right.get_title()) == ("bound of 2 samples", "log-likelihood − bound")
    training.train(TINY, tmp_path / "one")
    assert "left  ELBO -" in capsys.readouterr().err
    assert "samples" not in metrics(tmp_path / "one")[0]


def test_the_importance_weighted_bound_has_no_kl_term_to_warm_up():
    with pytest.raises(ValueError, match="with 2 samples kl_warmup is 0, not 4"):
        replace(TINY, samples=2)
    with pytest.raises(ValueError, match="samples is a whole number, at least 1, not 0"):
        replace(TINY, samples=0)


def test_encoder_from_takes_the_encoder_of_a_model_with_another_decoder(tmp_path, capsys):
    first = tmp_path / "first"
    assert main(["train", "--out", str(first)]) == 0
    run, plain = run_of(replace(REGROWING, encoder_from=str(first))), run_of(REGROWING)
    theirs = {key: value for key, value in weights(first).items() if key.startswith("encoder.")}
    assert theirs and same(theirs, {key: run.objective.model.state_dict()[key] for key in theirs})
    assert same(run.objective.model.decoder.state_dict(), plain.objective.model.decoder.state_dict())
    with pytest.raises(ValueError, match="have another encoder, of 338,112 parameters, not .* same latent_size"):
        run_of(replace(REGROWING, encoder_from="doubling-mnist-small"))


def test_weights_to_start_from_are_not_given_the_encoder_of_others():
    config = PRESETS["regrow-small"].config
    assert config.encoder_from == "conv-mnist-small"
    assert config.changed(init_from="regrowing-mnist-small").encoder_from is None
    assert config.changed(updates=9000).encoder_from == "conv-mnist-small"


def test_a_run_that_would_end_among_its_lessons_is_refused(tmp_path):
    config = replace(REGROWING, lessons=((8, 4), (16, 4)), updates=7)
    with pytest.raises(ValueError, match="take 8 updates, so 7 would end among them"):
        training.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_whose_minutes_end_among_its_lessons_says_so(tmp_path, capsys):
    config = replace(REGROWING, lessons=((8, 100_000),), updates=None, minutes=0.005)
    training.train(config, tmp_path / "run")
    assert "the run ended among its lessons, after " in capsys.readouterr().out
    training.train(replace(REGROWING, lessons=((8, 2),), updates=3), tmp_path / "other")
    assert "among its lessons" not in capsys.readouterr().out


def test_lessons_leave_the_encoder_as_it_was_and_resume_as_if_never_stopped(tmp_path, monkeypatch):
    config = replace(REGROWING, lessons=((8, 2), (16, 2)), updates=7, ema=0.0)
    before = run_of(config).objective.model.encoder.state_dict()
    for updates in (4, 7):
        training.train(replace(config, updates=updates), tmp_path / str(updates))
    encoders = [
        {key.removeprefix("encoder."): v for key, v in weights(tmp_path / name).items() if key.startswith("encoder.")}
        for name in ("4", "7")
    ]
    assert same(encoders[0], before), "four lessons"
    assert not same(encoders[1], before), "and then the whole"

    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            training.train(config, tmp_path / "cut")
    training.train(config, tmp_path / "cut", resume=True)
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "7"))


def test_a_run_bounded_by_minutes_anneals_to_its_end(tmp_path, monkeypatch):
    seconds = count()  # on a clock that goes on by a second each time it is looked at
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    config = replace(TINY, updates=None, minutes=1.0)
    training.train(config, tmp_path / "run")
    run, lines = json.loads((tmp_path / "run" / "config.json").read_text())["run"], metrics(tmp_path / "run")
    assert 1 <= run["minutes"] < 1.1 and run["updates"] > 10
    assert lines[-1]["fraction"] == 1 and lines[-1]["learning_rate"] < 0.1 * TINY.learning_rate
    assert lines[-1]["update"] == run["updates"]


def test_recomputation_changes_no_weights(tmp_path):
    for recompute in (False, True):
        training.train(TINY, tmp_path / str(recompute), recompute=recompute)
    assert same(weights(tmp_path / "True"), weights(tmp_path / "False"))


def test_the_update_is_compiled_on_request(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(training, "compile_update", calls.append)
    training.train(TINY, tmp_path / "run", compiled=True)
    assert [type(decoder).__name__ for decoder in calls] == ["DoublingDecoder"]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_without_a_compiler_an_earlier_run_stays(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command_line, "PRESETS", {"quick": Preset(TINY, "tiny")})
    training.train(TINY, tmp_path)
    before = contents(tmp_path)
    capsys.readouterr()
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    monkeypatch.setattr("torch._inductor.config.fx_graph_cache", False)
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    assert main(["train", "--out", str(tmp_path), "--overwrite", "--compile"]) == 2
    error = one_line_error(capsys)
    assert "--compile failed" in error and "; train without it, or install a C++ compiler" in error
    assert contents(tmp_path) == before


def test_a_batch_larger_than_the_pool_costs_no_earlier_run(tmp_path):
    training.train(REGROWING, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="a batch of 1,100 images needs as many states of the pool, which has 1,024"):
        training.train(replace(REGROWING, batch_size=1100), tmp_path, overwrite=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("option", ["--recompute", "--compile"])
def test_what_is_for_cells_is_refused_for_other_decoders(option, tmp_path, capsys, monkeypatch):
    preset = Preset(replace(TINY, model=ModelConfig("conv", 4, 2, {"width": 1})), "no cells")
    monkeypatch.setattr(command_line, "PRESETS", {"quick": preset})
    assert main(["train", "--out", str(tmp_path / "run"), option]) == 2
    assert f"{option} is for decoders made of cells" in one_line_error(capsys)


def test_a_batch_of_more_images_than_there_are_is_told(tmp_path, capsys, monkeypatch):
    images = torch.utils.data.TensorDataset(torch.ones(3, 1, 28, 28), torch.zeros(3))
    monkeypatch.setattr(training.data, "load", lambda *_: images)
    training.train(replace(TINY, updates=1), tmp_path / "larger")
    assert "4 images a batch are more than there are: 3 are taken" in capsys.readouterr().out
    training.train(replace(TINY, updates=1, batch_size=3), tmp_path / "whole")
    assert "more than there are" not in capsys.readouterr().out


def test_the_seed_decides_over_images_and_noise():
    runs = [run_of(replace(TINY, seed=seed)) for seed in (0, 0, 1)]
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
    run = run_of(TINY)
    run.objective.model.decoder.update.layers[0].register_forward_hook(lambda *call: types.append(call[-1].dtype))
    run.step()
    assert set(types) == {torch.bfloat16 if there else torch.float32}
    assert ("bfloat16" in hardware.describe(CPU)) == there


@pytest.mark.parametrize(("capability", "precision"), [((8, 0), "bf16"), ((7, 5), "fp16"), ((6, 1), "no")])
def test_a_gpu_gets_the_arithmetic_it_has(capability, precision, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert hardware.precision(torch.device("cuda")) == precision


def test_every_image_is_seen_once_an_epoch():
    images = torch.arange(20.0).view(20, 1, 1, 1).expand(20, 1, 28, 28) / 20
    run = run_of(replace(TINY, batch_size=5), images)
    for _ in range(2):
        seen = []
        for _ in range(4):
            seen += (run.batch()[:, 0, 0, 0] * 20).round().tolist()
            run.update += 1
        assert sorted(seen) == list(range(20))


@pytest.mark.parametrize("binary", [True, False])
def test_packed_images_come_back_as_they_were(binary):
    images = torch.rand(5, 1, 7, 9, generator=torch.Generator().manual_seed(0))
    images = images.round() if binary else images
    packed = PackedImages(images, CPU)
    index = torch.tensor([4, 0, 0])
    assert torch.equal(packed[index], images[index]) and len(packed) == 5
    assert packed.stored.nbytes == (5 * 8 if binary else images.nbytes), "63 pixels take 8 bytes"


def test_schedules_rise_and_fall():
    config = replace(TINY, updates=100, warmup=10, kl_warmup=50)
    rates = [config.learning_rate_at(update, config.fraction_at(update, 0)) for update in range(100)]
    assert max(rates) <= 1e-3 and rates[0] < rates[9] and rates[-1] < 1e-5
    assert replace(config, schedule="constant").learning_rate_at(99, 0.99) == 1e-3
    timed = replace(config, updates=None, minutes=2.0)
    assert [timed.fraction_at(7, seconds) for seconds in (0, 60, 120, 150)] == [0, 0.5, 1, 1]
    assert [config.kl_weight_at(update) for update in (0, 24, 49, 99)] == [0.02, 0.5, 1, 1]


def one_line_error(capsys):
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and "Traceback" not in error
    return error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--preset", "slow", "--out", "x"], "unknown preset 'slow'; there are quick"),
        (["train", "--updates", "0", "--out", "x"], "updates is a whole number, at least 1, not 0"),
        (["train", "--seed", "4294967296", "--out", "x"], "seed is a whole number from 0 to 4294967295"),
        (["train", "--learning-rate", "nan", "--out", "x"], "learning_rate is a positive number, not nan"),
        (["train", "--minutes", "0", "--out", "x"], "minutes is a positive number, not 0"),
        (["train", "--minutes", "1", "--updates", "5", "--out", "x"], "updates or minutes, one of the two"),
        (["train", "--checkpoint-minutes", "0", "--out", "x"], "checkpoint_minutes is a positive number, not 0"),
        (["train", "--init-from", "nothing", "--out", "x"], "no weights named 'nothing'"),
        (["train", "--resume", "--out", "x"], "no run in x to resume"),
        (["evaluate", "--weights", "nothing", "--out", "no/x.json"], "lies in one that does not exist"),
        (["sample", "--weights", "nothing", "--out", "."], "--out . is a folder"),
        (["sample", "--weights", "nothing", "--out", "x.png", "--seed", "-1"], "--seed is a whole number"),
        (["evaluate", "--weights", "nothing"], "no weights named 'nothing'"),
        (["sample", "--weights", "nothing", "--out", "x.png"], "no weights named 'nothing'"),
        (["sample", "--weights", "nothing", "--out", "x.png", "--n", "0"], "--n is from 1 to 10000, not 0"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in one_line_error(capsys)
    assert not list(tmp_path.iterdir()), "nothing was written"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_console_without_some_characters_gets_the_others(encoding, monkeypatch):
    monkeypatch.setattr(command_line, "PRESETS", PRESETS)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True))
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert main(["sample", "--weights", "−", "--out", "x.png"]) == 2
    assert b", ?84.5 nats)" in sys.stdout.buffer.getvalue()
    assert b"no weights named '?'" in sys.stderr.buffer.getvalue()


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


@pytest.mark.parametrize("gone", [(checkpoints.NAME,), ("config.json",), (checkpoints.NAME, "config.json")])
def test_advice_on_what_cannot_be_resumed_leads_to_a_run(tmp_path, capsys, gone):
    out = tmp_path / "run"
    assert main(["train", "--out", str(out)]) == 0
    for name in gone:
        (out / name).unlink()
    capsys.readouterr()
    assert main(["train", "--out", str(out), "--resume"]) == 2
    assert "start again with --overwrite" in one_line_error(capsys)
    assert main(["train", "--out", str(out)]) == 2
    assert ("--resume" in one_line_error(capsys)) == (checkpoints.NAME not in gone)
    assert main(["train", "--out", str(out), "--overwrite"]) == 0


def test_a_folder_of_other_things_is_not_said_to_be_overwritable(tmp_path, capsys):
    (tmp_path / "thesis.pdf").touch()
    assert main(["train", "--out", str(tmp_path)]) == 2
    assert "holds thesis.pdf, and no run that could be overwritten; give another folder" in one_line_error(capsys)


def rewritten(path, progress=..., drop=(), cut=()):
    """Write a checkpoint again, with other progress, without some tensors, and with others cut to one number."""
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        metadata = file.metadata() if progress is ... else {"progress": json.dumps(progress)}
    kept = {key: value for key, value in tensors.items() if not key.endswith(drop or "nothing")}
    kept = {
        key: value.flatten()[:1].clone() if key.endswith(cut or "nothing") else value for key, value in kept.items()
    }
    save_file(kept, path, metadata)


@pytest.mark.parametrize(
    "change",
    [
        *({"progress": value} for value in ({}, [], None, {"update": 1})),
        {"progress": {"update": -5, "seconds": 1.0, "skipped": 0}},
        {"progress": {"update": 1.5, "seconds": 1.0, "skipped": 0}},
        {"progress": {"update": 4, "seconds": math.nan, "skipped": 0}},
        {"drop": (".0.step", ".0.exp_avg", ".0.exp_avg_sq")},
        {"drop": ".1.exp_avg_sq"},
        {"cut": ".exp_avg"},
    ],
    ids=str,
)
def test_a_checkpoint_with_something_wrong_in_it_is_not_gone_on_from(tmp_path, capsys, monkeypatch, change):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        assert main(["train", "--out", str(out)]) == 1
    rewritten(out / checkpoints.NAME, **change)
    capsys.readouterr()
    assert main(["train", "--out", str(out), "--resume"]) == 2
    error = one_line_error(capsys)
    assert checkpoints.NAME in error and "start again with --overwrite" in error


def test_a_full_device_is_not_called_a_damaged_checkpoint(tmp_path, monkeypatch):
    training.train(replace(TINY, updates=2), tmp_path / "run")

    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(checkpoints, "_lay_out_like_parameters", full)
    with pytest.raises(torch.OutOfMemoryError):
        training.train(replace(TINY, updates=2), tmp_path / "run", resume=True)


def test_a_checkpoint_without_metadata_is_called_so(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / checkpoints.NAME)
    with pytest.raises(ValueError, match=r"cannot be read \(it has no progress of a run, but None\)"):
        checkpoints.restore(tmp_path, {}, None)


@pytest.mark.parametrize("run", [None, [], {}])
def test_a_run_without_its_record_is_not_gone_on_with(tmp_path, capsys, monkeypatch, run):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        assert main(["train", "--out", str(out)]) == 1
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"run": run}))
    capsys.readouterr()
    assert main(["train", "--out", str(out), "--resume"]) == 2
    assert "does not record its run" in one_line_error(capsys)


@pytest.mark.parametrize(
    ("name", "value"), [("updates", 1.5), ("warmup", math.nan), ("batch_size", 1.5), ("seed", 1.5), ("samples", 2.0)]
)
def test_whole_numbers_are_whole(name, value):
    with pytest.raises(ValueError, match=f"{name} is a whole number"):
        replace(TINY, **{name: value})


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
