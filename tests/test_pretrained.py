"""Weights: what is saved loads again and gives equal outputs; damaged or missing files are named."""

import json
from pathlib import Path

import pytest
import torch

import vnca
from vnca import files, pretrained


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    config = vnca.ModelConfig("doubling", 4, 2, {"hidden": 4, "steps": 1})
    model = vnca.build(config)
    torch.nn.init.normal_(model.decoder.update.layers[-1].weight)
    pretrained.save(model, config, tmp_path / "run")
    return model, tmp_path / "run"


def test_what_is_saved_loads_with_equal_outputs(saved):
    model, folder = saved
    loaded = vnca.load(folder)
    assert not loaded.training
    z = torch.randn(3, 4)
    assert torch.equal(loaded.decode(z), model.decode(z))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_shipped_weights_load_and_sample_by_their_names():
    for name in vnca.available():
        assert vnca.load(name).sample(2, torch.Generator().manual_seed(0)).shape == (2, 1, 28, 28)


def test_an_unknown_name_lists_the_names(saved, monkeypatch):
    monkeypatch.setattr(pretrained, "FOLDER", saved[1].parent)
    assert vnca.available() == ["run"]
    assert vnca.load("run").latent_size == 4
    with pytest.raises(ValueError, match="no weights named 'tripling-mnist': shipped weights are run"):
        vnca.load("tripling-mnist")


def test_a_path_is_never_taken_for_a_name(saved, monkeypatch, tmp_path):
    model, folder = saved
    config = vnca.ModelConfig("doubling", 4, 2, {"hidden": 4, "steps": 1})
    monkeypatch.setattr(pretrained, "FOLDER", folder.parent)  # where "run" is shipped
    pretrained.save(model, config, tmp_path / "here" / "run")
    monkeypatch.chdir(tmp_path / "here")
    for path in ("./run", Path("run"), tmp_path / "here" / "run", str(tmp_path / "here" / "run")):
        assert pretrained.find(path).resolve() == tmp_path / "here" / "run"
    with pytest.raises(ValueError, match=r"'run' names both shipped weights and a folder here: give \./run for the"):
        vnca.load("run")
    (tmp_path / "here" / "run" / "model.safetensors").unlink()
    assert pretrained.find("run") == folder, "a folder without a model is no other meaning"
    monkeypatch.chdir(folder.parent)
    assert pretrained.find("run") == folder, "nor is the folder of the shipped weights itself"
    for nothing in ("./walk", Path("walk"), ""):
        with pytest.raises(ValueError, match="no weights named"):
            pretrained.find(nothing)


def test_weights_that_are_not_finite_are_refused(saved):
    model, folder = saved
    with torch.no_grad():
        model.decoder.update.layers[-1].weight[0] = torch.nan
    pretrained.save(model, vnca.ModelConfig("doubling", 4, 2, {"hidden": 4, "steps": 1}), folder)
    with pytest.raises(ValueError, match="cannot be read, .* holds numbers that are not finite"):
        vnca.load(folder)


def test_a_weight_of_another_shape_is_named(saved):
    model, folder = saved
    pretrained.save(model, vnca.ModelConfig("doubling", 4, 2, {"hidden": 5, "steps": 1}), folder)
    with pytest.raises(ValueError, match=r"size mismatch for decoder\.update"):
        vnca.load(folder)


@pytest.mark.parametrize("steps", [2.5, "two", None])
def test_a_number_of_steps_that_is_none_is_refused(saved, steps):
    model, folder = saved
    pretrained.save(model, vnca.ModelConfig("doubling", 4, 2, {"hidden": 4, "steps": steps}), folder)
    with pytest.raises(ValueError, match=f"steps is a whole number .*, not {steps!r}"):
        vnca.load(folder)


def test_it_is_known_which_weights_were_rounded(saved):
    model, folder = saved
    assert pretrained.stored_as(folder) == "float32"
    files.write_tensors(folder / "model.safetensors", {k: v.half() for k, v in model.state_dict().items()})
    assert pretrained.stored_as(folder) == "float16"


def test_a_failing_write_leaves_the_old_weights(saved, monkeypatch):
    model, folder = saved
    before = (folder / "model.safetensors").read_bytes()

    def half(path, content):
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="disk full"):
        pretrained.save(model, vnca.ModelConfig(), folder)
    monkeypatch.undo()
    assert (folder / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"], "no half is left"


def _truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def _wrong_config(folder):
    (folder / "config.json").write_text(json.dumps({"model": {"latent_size": 8, "encoder_width": 2}}))


def _unknown_field(folder):
    (folder / "config.json").write_text(json.dumps({"model": {"colour": "blue"}}))


@pytest.mark.parametrize(
    "spoil", [_truncate, _wrong_config, _unknown_field, lambda f: (f / "config.json").write_text("{")]
)
def test_damaged_files_are_one_clear_error(saved, spoil):
    _, folder = saved
    spoil(folder)
    with pytest.raises(ValueError, match="cannot be read, train or copy the") as error:
        vnca.load(folder)
    assert "\n" not in str(error.value)
