"""What models cost: counted arithmetic, and tiny runs of the programs that measure it."""

import json
from dataclasses import replace
from functools import partial

import pytest
import recipes
import scaling
import torch
import train_step
from torch import nn

from vnca import ConvDecoder, DoublingDecoder, RegrowingDecoder
from vnca.arithmetic import cell_updates, multiply_adds, training_flops
from vnca.vae import ModelConfig, build, elbo_terms


def test_the_papers_arithmetic():
    """10,912 cell-updates, 12.9 billion multiply-adds and 77 GFLOP an image."""
    decoder = DoublingDecoder()
    weights = sum(p.numel() for name, p in decoder.named_parameters() if name.endswith("weight"))
    assert cell_updates(decoder) == 10_912
    assert multiply_adds(decoder, (256,)) == 10_912 * weights == 12_872_318_976
    flops = training_flops(build(ModelConfig()))
    assert 77.0e9 < flops < 77.7e9  # the encoder is less than a hundredth of it


def test_multiply_adds_of_layers():
    assert multiply_adds(nn.Linear(3, 5), (3,)) == 15
    assert multiply_adds(nn.Conv2d(2, 4, 3, padding=1), (2, 6, 7)) == 2 * 4 * 9 * 6 * 7
    assert multiply_adds(nn.Conv2d(2, 4, 5, stride=2, padding=2), (2, 8, 8)) == 2 * 4 * 25 * 4 * 4
    assert multiply_adds(nn.ELU(), (3,)) == 0


def test_multiply_adds_leave_the_module_as_it_was():
    decoder = RegrowingDecoder(channels=2, hidden=3, min_steps=2, max_steps=2)
    assert multiply_adds(decoder, (2,)) == cell_updates(decoder) * (2 * 3 * 9 + 3 * 2) == 2 * 32**2 * 60
    assert all(p.device == torch.device("cpu") for p in decoder.parameters())


def test_only_cells_are_counted():
    with pytest.raises(ValueError, match="ConvDecoder has no cells"):
        cell_updates(ConvDecoder(latent_size=4, width=2))


def test_the_obvious_model_is_the_packages_model():
    config = train_step.MODELS["tiny"]
    ours, plain = build(config), train_step.plain_model(config)
    train_step.start_moving(ours)
    with torch.no_grad():
        for theirs, parameter in zip(plain.parameters(), ours.parameters(), strict=True):
            theirs.copy_(parameter)
    x, z = torch.rand(2, 1, 28, 28).round(), torch.randn(2, 4)
    torch.testing.assert_close(plain.decode(z), ours.decode(z))
    noise = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    log_likelihood, kl = elbo_terms(ours, x, torch.Generator().manual_seed(0))
    torch.testing.assert_close(plain.loss(x, noise), (kl - log_likelihood).mean())


def test_a_matrix_product_is_a_1_by_1_convolution():
    layer, x = nn.Conv2d(3, 5, 1), torch.randn(2, 3, 4, 6)
    expected = layer(x)
    layer.__class__ = train_step.MatrixProduct
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("row", ["plain", "ours", "ours+recompute", "ours+matrix"])
def test_steps_of_all_rows_train(row, monkeypatch):
    models = []
    monkeypatch.setattr(train_step, "start_moving", models.append)
    base, *changes = row.split("+")
    make = train_step.plain_step if base == "plain" else partial(train_step.our_step, changes=set(changes))
    step = make(train_step.MODELS["tiny"], 2, torch.device("cpu"))
    before = [p.clone() for p in models[0].parameters()]
    step()
    # The layer that starts at zero lets nothing through to the cells' other layers at first.
    assert sum(not torch.equal(p, q) for p, q in zip(models[0].parameters(), before, strict=True)) >= 3
    assert all(p.isfinite().all() for p in models[0].parameters())
    products = [m for m in models[0].modules() if isinstance(m, train_step.MatrixProduct)]
    assert len(products) == (9 if "matrix" in changes else 0)


def test_train_step_writes_figures_and_failures(tmp_path, capsys):
    """A row that fails says why and leaves the others alone: on a CPU, the one that wants a CUDA graph."""
    rows = ["product", "plain", "ours"] + ([] if torch.cuda.is_available() else ["ours+graph"])
    assert train_step.main(["--tiny", "--out", str(tmp_path), "--rows", *rows]) == 0
    (path,) = tmp_path.iterdir()
    result = json.loads(path.read_text())
    assert result["threads"] == torch.get_num_threads() and result["torch"] == torch.__version__
    (step,) = result["steps"]
    assert (step["model"], step["batch_size"], list(step["rows"])) == ("tiny", 2, rows)
    ours, plain, product = step["rows"]["ours"], step["rows"]["plain"], step["rows"]["product"]
    flops = 2 * training_flops(build(train_step.MODELS["tiny"]))
    assert ours["flops_per_second"] == pytest.approx(flops / ours["seconds"])
    assert ours["images_per_second"] == pytest.approx(2 / ours["seconds"])
    assert ours["times_plain"] == pytest.approx(plain["seconds"] / ours["seconds"])
    assert ours["of_product"] == pytest.approx(ours["flops_per_second"] / product["flops_per_second"])
    assert ours["peak_bytes"] > 1e7
    assert "operations" not in plain and "operations" not in product
    seconds = [operation["seconds"] for operation in ours["operations"]]
    assert seconds == sorted(seconds, reverse=True) and sum(seconds) > 0
    calls = {operation["name"]: operation["calls"] for operation in ours["operations"]}
    if not torch.cuda.is_available():
        assert calls["aten::convolution_backward"] == 5 * 10 + 5, "5 steps of 10 layers, and the encoder's 5"
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*rows, "the time of ours", ours["operations"][0]["name"]])
    if "ours+graph" in rows:
        assert "CUDA" in step["rows"]["ours+graph"]["failed"]


def test_medians_count_over_all_rounds():
    rounds = [
        {"flops": 6, "seconds": [1.0, 9.0], "peak_bytes": 5, "preparation_seconds": 2.0},
        {"flops": 6, "seconds": [2.0], "peak_bytes": 7, "preparation_seconds": 1.0},
    ]
    row = train_step.summarize(rounds, batch_size=4)
    assert (row["seconds"], row["images_per_second"], row["flops_per_second"]) == (2.0, 2.0, 3.0)
    assert (row["peak_bytes"], row["preparation_seconds"]) == (7, 1.0)
    assert row["rounds"][0] == {"steps": 2, "least": 1.0, "median": 5.0, "most": 9.0} and len(row["rounds"]) == 2
    assert train_step.summarize([*rounds, {"failed": "no memory"}], 4) == {"failed": "no memory"}


def test_a_row_that_takes_too_long_fails():
    assert train_step.in_a_process("ours", "tiny", 2, 0.0, limit=0.01) == {"failed": "took longer than 0 s"}


@pytest.mark.parametrize("row", ["theirs", "ours+faster", "plain+compile", "product+tf32", ""])
def test_rows_that_do_not_exist_are_refused(row, capsys):
    with pytest.raises(SystemExit):
        train_step.main(["--rows", row])
    assert f"{row!r} is no row" in capsys.readouterr().err


def test_recipes_go_on_where_they_were_cut(tmp_path, monkeypatch, capsys):
    def tiny(latents):
        config = replace(
            recipes.PRESETS["conv"].config,
            model=ModelConfig("conv", 2, 1, {"width": 1}, components=2),
            data="digits",
            split="train",
            updates=latents // 4,
            batch_size=4,
        )
        return {"one": config, "two": replace(config, kl_warmup=0, samples=2)}

    command = ["--work", str(tmp_path), "--out", str(tmp_path / "r.json"), "--latents", "8", "--limit", "3"]
    command += ["--num-samples", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(recipes, "recipes", lambda latents: {"one": tiny(latents)["one"]})
        assert recipes.main(command) == 0
    first = json.loads((tmp_path / "r.json").read_text())["rows"]["one"]
    monkeypatch.setattr(recipes, "recipes", tiny)
    assert recipes.main(command) == 0
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert list(rows) == ["one", "two"] and rows["one"] == first
    assert rows["two"]["training"]["samples"] == 2 and rows["two"]["images"] == 3
    assert "two" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "difference"),
    [
        ("--latents", "latents is 320000 there, 64 now"),
        ("--limit", "images is 1000 there, 64 now"),
        ("--num-samples", "num_samples is 128 there, 64 now"),
    ],
)
def test_rows_of_recipes_are_not_mixed_with_others(tmp_path, option, difference):
    out = tmp_path / "recipes.json"
    out.write_bytes(recipes.RESULT.read_bytes())
    command = ["--work", str(tmp_path), "--out", str(out)]
    assert recipes.main(command) == 0, "all rows are there"
    with pytest.raises(ValueError, match=f"{difference}; give another --out"):
        recipes.main([*command, option, "64"])
    assert out.read_bytes() == recipes.RESULT.read_bytes()


def test_all_recipes_decode_as_many_latents():
    untrained, *configs = recipes.recipes(recipes.LATENTS).values()
    assert untrained is None
    assert {c.updates * c.batch_size * c.samples for c in configs} == {recipes.LATENTS}
    assert [(c.model.components > 0, c.samples > 1) for c in configs] == [
        (False, False),
        (True, False),
        (False, True),
        (True, True),
    ]


def test_a_rehearsal_overwrites_no_figures(capsys):
    with pytest.raises(SystemExit):
        train_step.main(["--tiny"])
    assert "--tiny needs --out" in capsys.readouterr().err


def test_scaling_writes_every_axis_with_its_exponents(tmp_path, capsys):
    assert scaling.main(["--tiny", "--rounds", "1", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("scaling-*.json")
    axes = json.loads(path.read_text())["axes"]
    assert set(axes) == {"cells", "steps", "channels", "batch", "parameters (doubling)", "parameters (conv)"}
    assert all(point["seconds_per_image"] > 0 for axis in axes.values() for point in axis["points"])
    arithmetic = {name: axis["arithmetic_exponent"] for name, axis in axes.items()}
    assert arithmetic["steps"] == pytest.approx(1) and arithmetic["batch"] == pytest.approx(0)
    assert "of the arithmetic" in capsys.readouterr().out


def test_the_exponent_is_the_slope_of_the_upper_points():
    assert scaling.exponent([1, 2, 4, 8], [100, 4, 16, 64]) == pytest.approx(2)
