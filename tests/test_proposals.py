"""The benchmark of proposals: rows, what it keeps when it is cut, and what it refuses."""

import json

import proposals
import pytest
import torch

import vnca
from vnca import evaluation, hardware, pretrained
from vnca.vae import build

CONFIG = vnca.ModelConfig("doubling", 4, 1, {"hidden": 1, "steps": 0})  # next to no work


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Runs the benchmark on the few images of a made-up data set; returns its rows."""
    torch.manual_seed(0)
    pretrained.save(build(CONFIG), CONFIG, tmp_path / "run", training={"data": "binarized-mnist"})
    images = torch.rand(12, 1, 28, 28).round()

    def load(name, split):
        x = images if split == "test" else 1 - images
        return vnca.data.ImageDataset(name, split, x, torch.full((12,), -1))

    monkeypatch.setattr(proposals.data, "load", load)

    def run(*more, out="table.json"):
        assert proposals.main([str(tmp_path / "run"), "--out", str(tmp_path / out), *more]) == 0
        assert not list(tmp_path.glob("*.part*"))
        return json.loads((tmp_path / out).read_text())["rows"]

    run.folder, run.images = tmp_path, images
    return run


def without_dates(rows):
    return [{key: value for key, value in row.items() if key not in ("date", "commit", "minutes")} for row in rows]


def test_a_row_holds_both_bounds_and_their_difference_image_by_image(bench):
    (row,) = bench("--images", "7", "--trusts", "0.5")
    model, x = vnca.load(bench.folder / "run"), evaluation.choose(bench.images, 7)
    bfloat16 = hardware.has_bfloat16(hardware.best_device())  # as the benchmark chooses it
    assert row["precision"] == ("bfloat16 autocast" if bfloat16 else "float32")
    plain, wide = (evaluation.bounds(model, x, 128, trust=trust, bfloat16=bfloat16) for trust in (1.0, 0.5))
    gain = wide.iwaes - plain.iwaes
    assert (row["nats"], row["nats_wider"]) == (plain.nats, wide.nats)
    assert row["gain"] == [pytest.approx(gain.mean().item()), pytest.approx((gain.std() / 7**0.5).item())]
    assert (row["model"], row["split"], row["images"], row["trust"]) == ("run", "test", 7, 0.5)


def test_each_model_split_and_trust_has_a_row_and_a_new_measurement_takes_the_place_of_an_old_one(bench):
    bench("--trusts", "0.5", "0.25")
    bench("--split", "train", "--trusts", "0.5")
    rows = bench("--images", "5", "--trusts", "0.5")
    found = {(row["split"], row["trust"]): row["images"] for row in rows}
    assert found == {("test", 0.25): 12, ("train", 0.5): 12, ("test", 0.5): 5} and len(rows) == 3
    nats = {row["split"]: row["nats"] for row in rows}
    assert nats["train"] != nats["test"]


def test_a_measurement_that_was_cut_goes_on_to_the_same_figures(bench, monkeypatch):
    whole, weigh, calls = bench("--trusts", "0.5", out="whole.json"), evaluation._log_weights, []

    def cut_off(*arguments):
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return weigh(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "_log_weights", cut_off)
        with pytest.raises(KeyboardInterrupt):
            bench("--trusts", "0.5")
    calls.clear()
    monkeypatch.setattr(evaluation, "_log_weights", lambda *a: calls.append(1) or weigh(*a))
    assert without_dates(bench("--trusts", "0.5")) == without_dates(whole)
    assert len(calls) == 2 * (1 + 2 * 12) - 8, "each unit once, but for the one that was cut"


def test_weights_of_other_data_and_impossible_trusts_are_refused(bench, capsys):
    pretrained.save(build(CONFIG), CONFIG, bench.folder / "other", training={"data": "digits"})
    with pytest.raises(ValueError, match="was not trained on binarized-mnist"):
        proposals.main([str(bench.folder / "other"), "--trusts", "0.5", "--out", str(bench.folder / "table.json")])
    for text in ("0", "1", "-2"):
        with pytest.raises(SystemExit):
            bench("--trusts", text)
        assert f"a trust is between 0 and 1, not {text}" in capsys.readouterr().err
