"""The benchmark of sharing: its models, its rows, and what it keeps when it is cut."""

import json

import pytest
import sharing
import torch


@pytest.fixture(scope="module")
def cells():
    return sharing.chapter()


def test_decoders_differ_in_what_they_share_and_encoders_in_nothing(cells):
    one, staged, convolutional = (sharing.newborn(cells, decoder, seed=0) for decoder in sharing.DECODERS)
    parameters = [sum(p.numel() for p in model.decoder.parameters()) for model in (one, staged)]
    assert parameters[1] == 5 * parameters[0]
    assert type(convolutional.decoder).__name__ == "ConvDecoder"
    for other in (staged, convolutional):
        for a, b in zip(one.encoder.parameters(), other.encoder.parameters(), strict=True):
            assert torch.equal(a, b)
    another = next(sharing.newborn(cells, "one rule", seed=1).encoder.parameters())
    assert not torch.equal(another, next(one.encoder.parameters()))


def test_each_row_is_kept_and_measured_once(cells, tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "NUM_SAMPLES", 2)
    monkeypatch.setattr(sharing, "chapter", lambda: cells)
    out = tmp_path / "sharing.json"

    def run(*options):
        arguments = ["--seeds", "0", "--updates", "2", "--limit", "3", "--out", str(out), *options]
        assert sharing.main(arguments) == 0
        return json.loads(out.read_text())["rows"]

    first = run("--decoders", "convolutional")
    assert [row["decoder"] for row in first] == ["convolutional"]
    rows = run()
    assert rows[0] == first[0], "not measured anew"
    assert [row["decoder"] for row in rows] == ["convolutional", "one rule", "a rule for each stage"]
    for row in rows:
        assert (row["updates"], row["elbo_images"], row["num_samples"]) == (2, 3, 2)
        assert -1000 < row["elbo"] < 0 and -1000 < row["bound"] < 0
        assert row["elbo_standard_error"] > 0
