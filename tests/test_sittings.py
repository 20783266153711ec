"""An evaluation in several sittings gives what one in a single sitting does."""

import json

import in_sittings
import pytest
import torch
from safetensors.torch import load_file

import vnca
from vnca import data, evaluation, hardware

NAME, IMAGES = "conv-mnist-small", 20
pytestmark = pytest.mark.skipif(
    not hardware.has_bfloat16(torch.device("cpu")), reason="this machine does not multiply in bfloat16"
)


@pytest.fixture
def images(tmp_path, monkeypatch):
    found = torch.rand(IMAGES, 1, 28, 28, generator=torch.Generator().manual_seed(0)).round()
    monkeypatch.setattr(in_sittings, "RESULTS", tmp_path)
    monkeypatch.setattr(data, "load", lambda name, split: torch.utils.data.TensorDataset(found))
    return found


def test_sittings_add_up_to_the_evaluation(images, tmp_path, monkeypatch, capsys):
    kept, whole = tmp_path / f"{NAME}-sittings.safetensors", in_sittings.Sittings.save
    in_sittings.main([NAME, "--minutes", "0"])
    assert f"0 of {IMAGES} images" in capsys.readouterr().out and not load_file(kept)["iwaes"].isfinite().any()
    monkeypatch.setattr(in_sittings, "SAVE_SECONDS", -1.0)  # after each image

    def cut(sittings):
        whole(sittings)
        if sittings.done.sum() == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(in_sittings.Sittings, "save", cut)
    with pytest.raises(KeyboardInterrupt):
        in_sittings.main([NAME, "--minutes", "10"])
    before = load_file(kept)["iwaes"]
    assert before.isfinite().sum() == 7
    monkeypatch.setattr(in_sittings.Sittings, "save", whole)
    in_sittings.main([NAME, "--minutes", "10"])
    assert not kept.exists()
    result, of_each = json.loads((tmp_path / f"{NAME}.json").read_text()), load_file(tmp_path / f"{NAME}.safetensors")
    wanted = evaluation.bounds(vnca.load(NAME), images, 128, bfloat16=True)
    assert result["images"] == IMAGES and result["num_samples"] == 128 and result["name"] == NAME
    assert torch.equal(of_each["iwaes"], wanted.iwaes.float()) and torch.equal(of_each["elbos"], wanted.elbos.float())
    assert (result["nats"], result["standard_error"]) == (wanted.nats, wanted.standard_error)
    assert torch.equal(before[before.isfinite()], wanted.iwaes[before.isfinite()]), "and nothing was computed again"


def test_sittings_of_other_images_are_refused(images, tmp_path):
    in_sittings.main([NAME, "--minutes", "0"])
    images[0] = 1 - images[0]
    with pytest.raises(SystemExit, match="is of another evaluation: .*pixels"):
        in_sittings.main([NAME, "--minutes", "0"])
