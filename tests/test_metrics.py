"""The figures of a run: what is written where, after kills too, and the one progress line."""

import io
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vnca import metrics
from vnca.pictures import image_grid


def record(update, **changes):
    return {
        "update": update,
        "fraction": update / 1000,
        "seconds": update / 2,
        "loss": 200.0 - update / 10,
        "nats": -210.0,
        "kl": 3.0,
        "learning_rate": 1e-3,
        "images_per_second": 123.4,
    } | changes


def log(folder, *updates, start=0):
    with metrics.Metrics(folder, start) as out:
        for update in updates:
            out.log(record(update))


def board(folder):
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    return events.Reload()


def steps(folder, tag):
    return [event.step for event in board(folder).Scalars(tag)]


def test_records_come_back_and_every_line_is_json(tmp_path):
    log(tmp_path, 20, 40)
    assert metrics.read(tmp_path) == [record(20), record(40)]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [record(20), record(40)]


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path):
    with metrics.Metrics(tmp_path, 0) as out:
        out.log(record(20, loss=math.nan, nats=-math.inf))

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse)["loss"] is None
    (back,) = metrics.read(tmp_path)
    assert math.isnan(back["loss"]) and back["kl"] == 3.0


def test_tensorboard_has_every_number_in_a_group(tmp_path):
    log(tmp_path, 20, 40)
    events = board(tmp_path)
    assert set(events.Tags()["scalars"]) == {
        "bound/loss",
        "bound/nats",
        "bound/kl",
        "optimizer/learning_rate",
        "run/images_per_second",
        "run/fraction",
        "run/seconds",
    }
    assert [(e.step, e.value) for e in events.Scalars("bound/loss")] == [(20, 198), (40, 196)]


def test_tensorboard_shows_the_samples(tmp_path):
    images = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with metrics.Metrics(tmp_path, 0) as out:
        out.samples(7, images)
    (event,) = board(tmp_path).Images("samples")
    assert event.step == 7
    shown = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)).convert("L"))
    np.testing.assert_array_equal(shown, image_grid(images, columns=2))


def test_a_resumed_run_overwrites_what_came_after_its_checkpoint(tmp_path):
    log(tmp_path, 20, 40, 60)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"update": 80, "lo')  # torn by the kill
    log(tmp_path, 60, 80, start=50)
    assert [r["update"] for r in metrics.read(tmp_path)] == [20, 40, 60, 80]
    assert steps(tmp_path, "bound/loss") == [20, 40, 60, 80]
    assert [path.name for path in tmp_path.glob("*.part")] == []


def test_a_torn_event_does_not_hide_the_resumed_run(tmp_path):
    log(tmp_path, 20, 40)
    (events,) = (tmp_path / "tensorboard").iterdir()
    events.write_bytes(events.read_bytes()[:-9])
    log(tmp_path, 60, start=40)
    assert steps(tmp_path, "bound/loss")[0] == 20 and steps(tmp_path, "bound/loss")[-1] == 60


def test_records_of_a_killed_run_are_all_there(tmp_path):
    """A record that `log` returned from is on disk, in the lines and in TensorBoard."""
    script = (
        "import os, signal, sys; from pathlib import Path; from vnca.metrics import Metrics\n"
        "out = Metrics(Path(sys.argv[1]), 0)\n"
        "for update in range(1, 31):\n"
        "    out.log({'update': update, 'fraction': update / 100, 'seconds': update, 'loss': 1.0, 'nats': -1.0,\n"
        "             'images_per_second': 1.0})\n"
        "os._exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    assert [r["update"] for r in metrics.read(tmp_path)] == list(range(1, 31))
    assert steps(tmp_path, "bound/loss") == list(range(1, 31))


def test_read_leaves_out_a_torn_last_line(tmp_path):
    log(tmp_path, 20)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"update": 40')
    assert [r["update"] for r in metrics.read(tmp_path)] == [20]


@pytest.mark.parametrize("content", [None, "", '{"update": 20'])
def test_a_folder_without_records_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(ValueError, match=f"{tmp_path.name} has no metrics of a run"):
        metrics.read(tmp_path)


@pytest.mark.parametrize("damage", ["nonsense\n", "[]\n", '{"loss": 1}\n', '{"update": null}\n'])
def test_a_damaged_line_is_named(tmp_path, damage):
    log(tmp_path, 20)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(damage)
    before = (tmp_path / "metrics.jsonl").read_text()
    for use in (metrics.read, lambda folder: metrics.Metrics(folder, 20)):
        with pytest.raises(ValueError, match=r"line 2 of .*metrics.jsonl is not a record"):
            use(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_a_line_is_printed_for_every_tenth_record_and_the_last(tmp_path, capsys):
    log(tmp_path, *range(40, 1001, 40))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[-1] for line in lines] == ["update 400", "update 800", "update 1,000"]
    assert lines[0] == " 40%  05:00 left  ELBO -210.00 nats  loss 160.00  123 images/s  update 400"


def test_a_terminal_gets_one_line_that_is_redrawn(tmp_path, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    log(tmp_path, 100, 200)
    shown = terminal.getvalue()
    assert shown.count("\n") == 1 and "\r" in shown
    last = shown.strip().split("\r")[-1]
    assert last == " 20% |##        | 06:40 left  ELBO -210.00 nats  loss 180.00  123 images/s"


def test_the_time_left_follows_the_machine_that_goes_on(tmp_path, capsys):
    """A run that took 900 s for its first half and now does a tenth in 10 s has 40 s left."""
    with metrics.Metrics(tmp_path, 500) as out:
        out.count = metrics.PRINT_EVERY - 2
        out.log(record(500, fraction=0.5, seconds=900.0))
        out.log(record(600, fraction=0.6, seconds=910.0))
    assert "00:40 left" in capsys.readouterr().err
