"""Evaluation: means and errors over images, noise that depends on its place alone, and evaluations that are cut."""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from test_vae import RoughEncoder, exact  # noqa: F401 - a fixture

import vnca
from vnca import data, evaluation, files, pretrained
from vnca.__main__ import main
from vnca.seeds import seed_of
from vnca.vae import ModelConfig, build

CONFIG = ModelConfig("doubling", 4, 1, {"hidden": 1, "steps": 0})  # next to no work


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build(CONFIG)


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    """The folder of a run on the built-in digits."""
    folder = tmp_path_factory.mktemp("run")
    run = {"updates": 1, "images_seen": 8, "minutes": 0.1, "hardware": "a CPU", "commit": None}
    pretrained.save(model, CONFIG, folder, training={"data": "digits"}, run=run)
    return str(folder)


def binary(count):
    return torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(0)).round()


def generator(*parts):
    return torch.Generator().manual_seed(seed_of(*parts))


def figures(result):
    """A result without what depends on the clock."""
    result = json.loads(json.dumps(result))
    return {key: value for key, value in result.items() if key != "date"} | {
        "evaluation": {key: value for key, value in result["evaluation"].items() if key != "minutes"}
    }


def test_bounds_are_means_with_standard_errors_over_images(model):
    images = binary(20)
    result = evaluation.bounds(model, images, num_samples=50, seed=5)
    with torch.no_grad():
        elbos = [
            vnca.elbo(model, part, generator(5, "elbo", first, 0))
            for first, part in ((0, images[:16]), (16, images[16:]))
        ]
        iwaes = [vnca.iwae(model, x[None], 50, generator=generator(5, "iwae", i, 0)) for i, x in enumerate(images)]
    elbo, iwae = torch.cat(elbos), torch.cat(iwaes)
    assert result.elbo == pytest.approx(elbo.mean().item(), rel=1e-6)
    assert result.elbo_standard_error == pytest.approx((elbo.std() / 20**0.5).item(), rel=1e-4)
    assert result.nats == pytest.approx(iwae.mean().item(), rel=1e-6)
    assert result.standard_error == pytest.approx((iwae.std() / 20**0.5).item(), rel=1e-4)
    assert (result.images, result.num_samples) == (20, 50)


@pytest.mark.parametrize("num_samples", [1, 3, 64, 65, 200])
def test_the_bound_of_an_image_is_put_together_from_all_its_samples(num_samples, model):
    """The mean of all weights p(x, z) / q(z | x), written out, with the noise of every unit."""
    images = binary(5)
    ours = evaluation.bounds(model, images, num_samples, seed=1).nats
    expected = []
    together = max(1, 64 // num_samples)
    with torch.no_grad():
        for first in range(0, 5, together):
            x, weights = images[first : first + together], []
            q = model.encode(x)
            for block in range(math.ceil(num_samples / 64)):
                noise = generator(1, "iwae", first, block)
                for _ in range(min(64, num_samples - 64 * block)):
                    z = q.mean + q.stddev * torch.randn(q.mean.shape, generator=noise)
                    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
                    pixels = torch.distributions.Bernoulli(logits=model.decode(z)).log_prob(x).flatten(1).sum(1)
                    weights.append((prior + pixels - q.log_prob(z).sum(1)).double())
            assert len(weights) == num_samples
            expected.append(torch.stack(weights).exp().mean(0).log())
    assert ours == pytest.approx(torch.cat(expected).mean().item(), rel=1e-6)


def test_figures_of_an_image_do_not_depend_on_the_number_of_images(model):
    images = binary(20)
    nats = [evaluation.bounds(model, images[:count], 64).nats for count in (10, 20)]
    rest = [vnca.iwae(model, images[i : i + 1], 64, generator=generator(0, "iwae", i, 0)).item() for i in range(10, 20)]
    assert nats[1] == pytest.approx((10 * nats[0] + sum(rest)) / 20, rel=1e-6)


def test_a_wider_proposal_takes_a_share_of_what_the_image_added():
    posterior = torch.distributions.Normal(torch.tensor([[3.0, -1.0, 0.0]]), torch.tensor([[0.1, 0.5, 1.0]]))
    found = evaluation.wider(posterior, 0.25)
    assert torch.equal(found.mean, posterior.mean)
    expected = torch.tensor([[(1 + 99 / 4) ** -0.5, (1 + 3 / 4) ** -0.5, 1.0]])
    torch.testing.assert_close(found.stddev, expected)
    assert torch.equal(evaluation.wider(posterior, 1.0).stddev, posterior.stddev)


def test_wider_proposals_bring_the_bound_nearer_to_the_likelihood_where_posteriors_are_too_narrow(exact):  # noqa: F811
    model, x, log_px = exact
    narrow = vnca.VAE(RoughEncoder(model.decoder, 0.2), model.decoder, model.prior)
    images = x.repeat(300, 1, 1, 1)  # to see the mean of the bound
    plain, wide = (evaluation.bounds(narrow, images, 4, trust=trust) for trust in (1.0, 0.2))
    assert torch.equal(plain.elbos, wide.elbos), "the ELBO is the posterior's own"
    plain, wide = ((each.iwaes.view(300, 6) - log_px) for each in (plain, wide))
    error = wide.std(dim=0) / 300**0.5
    assert (wide.mean(dim=0) - plain.mean(dim=0) > 3 * error).all()
    assert (wide.mean(dim=0) < 3 * error).all(), "it is still below"


def test_few_latents_are_decoded_at_once_whatever_the_number_of_samples(model, monkeypatch):
    sizes = []
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda z: sizes.append(len(z)) or decode(z))
    evaluation.bounds(model, binary(40), 300)
    assert max(sizes) <= 16 and sum(sizes) == 40 * 301


def as_on_a_gpu(monkeypatch, samples=256):
    """Let the CPU take units together as a GPU does, with at most so many samples in a group."""
    units_at_once, gpu = evaluation._units_at_once, torch.device("cuda")
    monkeypatch.setattr(evaluation, "GPU_SAMPLES", samples)
    monkeypatch.setattr(evaluation, "CPU_CHUNK", samples)
    monkeypatch.setattr(evaluation, "_units_at_once", lambda bound, count, device: units_at_once(bound, count, gpu))


@pytest.mark.parametrize("num_samples", [1, 3, 10, 50, 64, 100, 300])
def test_groups_of_units_have_as_many_samples_wherever_they_begin(num_samples):
    together = max(1, evaluation.UNIT // num_samples)
    units = list(evaluation._units(1200 * together, num_samples))
    for bound in ("elbo", "iwae"):
        sizes = [unit.size for unit in units if unit.bound == bound]
        count = evaluation._units_at_once(bound, num_samples, torch.device("cuda"))
        groups = {sum(sizes[first : first + count]) for first in range(len(sizes) - count)}
        assert len(groups) == 1 and 0.75 < groups.pop() / evaluation.GPU_SAMPLES <= 1


@pytest.mark.parametrize("prior", [{}, {"components": 3}, {"components": 3, "correlated": 2}], ids=str)
@pytest.mark.parametrize("num_samples", [3, 10, 64, 100, 300])
def test_units_that_go_together_have_the_same_values(num_samples, prior, tmp_path, monkeypatch):
    torch.manual_seed(0)
    model, images = build(replace(CONFIG, **prior)), binary(43)
    for parameter in model.prior.parameters():
        torch.nn.init.normal_(parameter)
    units, expected = list(evaluation._units(43, num_samples)), []
    with torch.no_grad():
        for bound, first, last, samples, block in units:
            x, noise = images[first:last], generator(2, bound, first, block)
            value = vnca.elbo(model, x, noise) if bound == "elbo" else vnca.iwae(model, x, samples, None, noise)
            expected += value.tolist()

    def values(done):
        """The values of an evaluation that goes on from the first of the expected ones."""
        kept = evaluation.Kept(tmp_path / "kept", {})
        kept.save(expected[:done], 0.0)
        evaluation.bounds(model, images, num_samples, seed=2, kept=kept)
        return kept.load()[0]

    assert values(0) == pytest.approx(expected, rel=1e-6)
    as_on_a_gpu(monkeypatch)
    for count in (0, 1, 3, 4, 6):  # the first three are those of the ELBO, and 1, 4 and 6 lie within a group
        done = sum(unit.images for unit in units[:count])
        together = values(done)
        assert together[:done] == expected[:done] and together == pytest.approx(expected, rel=1e-5)


def test_the_units_of_a_group_are_decoded_at_once(model, monkeypatch):
    sizes, calls = [], []
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda z: sizes.append(len(z)) or decode(z))
    as_on_a_gpu(monkeypatch)
    evaluation.bounds(model, binary(43), 100, progress=lambda *call: calls.append(call))
    assert sizes == [43] + 21 * [200] + [100]  # two images of 64 + 36 samples
    assert [done for done, _ in calls] == [0, *range(43, 43 * 101, 200), 43 * 101]


def test_progress_counts_all_samples(model):
    calls = []
    evaluation.bounds(model, binary(18), 70, progress=lambda *call: calls.append(call))
    assert calls[:4] == [(0, 18 * 71), (16, 18 * 71), (18, 18 * 71), (18 + 64, 18 * 71)]
    assert calls[-1] == (18 * 71, 18 * 71) and calls == sorted(set(calls))


def test_a_limit_draws_at_random_and_reproducibly():
    images = torch.arange(1000.0).view(1000, 1, 1, 1)
    chosen = evaluation.choose(images, 50).flatten()
    assert len(chosen.unique()) == 50 and 300 < chosen.mean() < 700
    assert torch.equal(chosen, evaluation.choose(images, 50).flatten())
    assert evaluation.choose(images, None) is images and evaluation.choose(images, 2000) is images


def test_numbers_of_numpy_are_as_good_as_those_of_python(model):
    ours, theirs = (evaluation.bounds(model, binary(3), whole(4), whole(1)) for whole in (int, np.int64))
    assert ours.nats == theirs.nats
    with pytest.raises(ValueError, match="num_samples is a whole number"):
        evaluation.bounds(model, binary(3), 4.0)
    with pytest.raises(ValueError, match="limit is a whole number"):
        evaluation.choose(binary(9), 6.5)


def test_bad_input_is_named(model, weights):
    with pytest.raises(ValueError, match="at least 2 images, not 1"):
        evaluation.bounds(model, torch.zeros(1, 1, 28, 28))
    with pytest.raises(ValueError, match="at least 1 image, not 0"):
        evaluation.choose(torch.zeros(5, 1, 28, 28), 0)
    with pytest.raises(ValueError, match="go from 2 to 2"):
        evaluation.bounds(model, torch.full((2, 1, 28, 28), 2.0))
    with pytest.raises(ValueError, match="num_samples is at least 1, not 0"):
        evaluation.bounds(model, torch.zeros(2, 1, 28, 28), 0)
    for trust in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match=f"trust is above 0 and at most 1, not {trust}"):
            evaluation.bounds(model, torch.zeros(2, 1, 28, 28), trust=trust)
    with pytest.raises(ValueError, match="seed is a whole number from 0 to 4294967295, not -1"):
        evaluation.evaluate(weights, seed=-1)


def test_bfloat16_is_used_when_asked_for_and_recorded(weights, monkeypatch):
    monkeypatch.setattr(evaluation.hardware, "has_bfloat16", lambda device: True)
    full = evaluation.evaluate(weights, 4, 10)
    rough = evaluation.evaluate(weights, 4, 10, bfloat16=True)
    assert full["evaluation"]["precision"] == "float32"
    assert rough["evaluation"]["precision"] == "bfloat16 autocast"
    assert rough["nats"] != full["nats"] and rough["nats"] == pytest.approx(full["nats"], rel=1e-2)
    monkeypatch.setattr(evaluation.hardware, "has_bfloat16", lambda device: False)
    with pytest.raises(ValueError, match="does not multiply in bfloat16"):
        evaluation.evaluate(weights, 4, 10, bfloat16=True)


def cut_after(monkeypatch, units):
    """Let the next evaluation end as if Ctrl-C came during its unit number `units`, counted from 0."""
    bound, calls = evaluation._bound, []

    def interrupted(*arguments):
        if len(calls) == units:
            raise KeyboardInterrupt
        calls.append(arguments)
        return bound(*arguments)

    monkeypatch.setattr(evaluation, "_bound", interrupted)


@pytest.mark.parametrize("units", [0, 1, 2, 7])
def test_an_evaluation_that_was_cut_goes_on_to_the_same_figures(units, weights, tmp_path, monkeypatch):
    whole = evaluation.evaluate(weights, 100, 20)
    out = tmp_path / "result.json"
    with monkeypatch.context() as patch:
        cut_after(patch, units)
        with pytest.raises(KeyboardInterrupt):
            evaluation.evaluate(weights, 100, 20, out=out)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json.part.safetensors"]
    calls = []
    rest = evaluation.evaluate(weights, 100, 20, out=out, progress=lambda *call: calls.append(call))
    assert len(calls) == 2 + 40 - units + 1, "the units that were done are not done again"
    assert figures(rest) == figures(whole) == figures(json.loads(out.read_text()))
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.fixture(scope="module")
def others(weights, tmp_path_factory):
    """The folder of another run on the same data."""
    torch.manual_seed(1)
    folder, config = tmp_path_factory.mktemp("others"), pretrained.read_config(pretrained.find(weights))
    model = build(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    pretrained.save(model, CONFIG, folder, training=config["training"], run=config["run"])
    return str(folder)


@pytest.mark.parametrize(
    "values", [torch.zeros(3), torch.zeros(500), torch.zeros(16, 1), torch.tensor(1.0), torch.full((16,), math.nan)]
)
def test_kept_values_that_no_evaluation_makes_are_refused(weights, tmp_path, capsys, values):
    out = tmp_path / "result.json"
    arguments = ["evaluate", "--weights", weights, "--limit", "20", "--num-samples", "4", "--out", str(out)]
    whole = evaluation.evaluate(weights, 4, 20)
    kept = Path(f"{out}.part.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        cut_after(patch, 1)
        assert main(arguments) == 1
    with safe_open(kept, framework="pt") as file:
        metadata = file.metadata()
    files.write_tensors(kept, {"values": values.double()}, metadata)
    capsys.readouterr()
    assert main(arguments) == 2
    assert "start anew" in capsys.readouterr().err and not out.exists()
    assert main([*arguments, "--overwrite"]) == 0
    assert figures(json.loads(out.read_text())) == figures(whole)


def test_an_evaluation_of_other_steps_is_not_gone_on_with(weights, others, tmp_path, monkeypatch):
    config, model, out = pretrained.read_config(pretrained.find(others)), pretrained.load(others), tmp_path / "o.json"
    longer = replace(CONFIG, decoder_options={**CONFIG.decoder_options, "steps": 2})
    pretrained.save(model, longer, tmp_path / "longer", training=config["training"], run=config["run"])
    with monkeypatch.context() as patch:
        cut_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            evaluation.evaluate(others, 4, 20, out=out)
    with pytest.raises(ValueError, match="another evaluation: model is"):
        evaluation.evaluate(str(tmp_path / "longer"), 4, 20, out=out)


def test_a_result_says_which_weights_and_which_code(weights):
    evaluated = evaluation.evaluate(weights, 2, 5)["evaluation"]
    assert evaluated["weights"] == evaluation.digest(pretrained.load(weights).state_dict().values())
    assert "commit" in evaluated


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "metrics.jsonl"])
@pytest.mark.parametrize("command", ["evaluate", "sample"])
def test_no_file_of_the_weights_is_replaced(weights, capsys, command, name):
    path = Path(weights) / name
    before = path.read_bytes() if path.exists() else None
    assert main([command, "--weights", weights, "--out", str(path)]) == 2
    assert "would replace a file of the weights" in capsys.readouterr().err
    assert (path.read_bytes() if path.exists() else None) == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("command", [["evaluate"], ["sample"], ["inpaint", "--image", "x.png", "--mask", "y.png"]])
def test_a_pipe_is_refused_before_the_work_begins(weights, tmp_path, capsys, monkeypatch, command):
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(pretrained, "load", lambda *_: pytest.fail("the work began"))
    assert main([*command, "--weights", weights, "--out", str(tmp_path / "pipe")]) == 2
    assert "pipe is a device or a pipe" in capsys.readouterr().err


def test_two_models_are_compared_image_by_image(weights, others):
    result, other = evaluation.evaluate(weights, 10, 20, against=others), evaluation.evaluate(others, 10, 20)
    against = result["against"]
    images = evaluation.choose(evaluation.data.binarize(evaluation.data.load("digits", "test").tensors[0]), 20)
    ours, theirs = (evaluation.bounds(pretrained.load(folder), images, 10).iwaes for folder in (weights, others))
    difference = ours - theirs
    assert against["name"] == other["name"] and against["nats"] == other["nats"] and against["elbo"] == other["elbo"]
    assert against["difference"] == pytest.approx(result["nats"] - other["nats"])
    assert against["difference"] == pytest.approx(difference.mean().item())
    assert against["difference_standard_error"] == pytest.approx((difference.std() / 20**0.5).item())
    assert against["elbo_difference"] == pytest.approx(result["elbo"] - other["elbo"])
    assert figures({**result, "against": None}) == figures({**evaluation.evaluate(weights, 10, 20), "against": None})


@pytest.mark.parametrize("units", [1, 22, 43])
def test_a_comparison_that_was_cut_goes_on_to_the_same_figures(units, weights, others, tmp_path, monkeypatch):
    whole, calls = evaluation.evaluate(weights, 64, 20, against=others), []
    out = tmp_path / "result.json"
    with monkeypatch.context() as patch:
        cut_after(patch, units)  # of 22 for each
        with pytest.raises(KeyboardInterrupt):
            evaluation.evaluate(weights, 64, 20, against=others, out=out)
    rest = evaluation.evaluate(weights, 64, 20, against=others, out=out, progress=lambda *call: calls.append(call))
    assert calls[-1] == (2 * 20 * 65,) * 2 and calls == sorted(calls)
    rest["against"].pop("minutes"), whole["against"].pop("minutes")
    assert figures(rest) == figures(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_what_is_kept_of_another_comparison_is_refused_at_once_and_is_gone_later(
    weights, others, tmp_path, monkeypatch
):
    out = tmp_path / "result.json"
    with monkeypatch.context() as patch:
        cut_after(patch, 30)  # in the second of two evaluations of 22 units
        with pytest.raises(KeyboardInterrupt):
            evaluation.evaluate(weights, 64, 20, against=others, out=out)
    assert len(list(tmp_path.iterdir())) == 2
    with monkeypatch.context() as patch:
        cut_after(patch, 0)  # so the work must not begin
        with pytest.raises(ValueError, match="another evaluation: weights is"):
            evaluation.evaluate(weights, 64, 20, against=weights, out=out)
    evaluation.evaluate(weights, 64, 20, out=out)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.fixture(scope="module")
def other_prior(weights, tmp_path_factory):
    """The folder of the same encoder and decoder with a learned prior."""
    torch.manual_seed(2)
    folder, config = tmp_path_factory.mktemp("prior"), pretrained.read_config(pretrained.find(weights))
    with_prior = replace(CONFIG, components=3)
    model = build(with_prior)
    for parameter in model.prior.parameters():
        torch.nn.init.normal_(parameter)
    model.load_state_dict(model.state_dict() | pretrained.load(weights).state_dict())
    pretrained.save(model, with_prior, folder, training=config["training"], run=config["run"])
    return str(folder)


@pytest.mark.parametrize("cut", [None, 5, 30])
def test_models_that_differ_in_their_prior_alone_share_what_is_decoded(
    cut, weights, other_prior, tmp_path, monkeypatch
):
    alone = [evaluation.evaluate(folder, 64, 20) for folder in (other_prior, weights)]
    sizes, decode, out = [], vnca.VAE.decode, tmp_path / "result.json"
    if cut is not None:
        with monkeypatch.context() as patch:
            cut_after(patch, cut)  # of 22 units for each
            with pytest.raises(KeyboardInterrupt):
                evaluation.evaluate(other_prior, 64, 20, against=weights, out=out)
    monkeypatch.setattr(vnca.VAE, "decode", lambda model, z: sizes.append(len(z)) or decode(model, z))
    both = evaluation.evaluate(other_prior, 64, 20, against=weights, out=out)
    assert [both["nats"], both["against"]["nats"]] == [each["nats"] for each in alone]
    assert [both["elbo"], both["against"]["elbo"]] == [each["elbo"] for each in alone]
    if cut is None:
        assert sum(sizes) == 20 * 65, "each latent once"


def test_models_with_other_steps_share_nothing(others, tmp_path):
    config, model = pretrained.read_config(pretrained.find(others)), pretrained.load(others)
    longer = replace(CONFIG, decoder_options={**CONFIG.decoder_options, "steps": 2})
    pretrained.save(model, longer, tmp_path, training=config["training"], run=config["run"])
    both, alone = evaluation.evaluate(str(tmp_path), 10, 20, against=others), evaluation.evaluate(others, 10, 20)
    assert both["against"]["nats"] == alone["nats"] and both["nats"] != alone["nats"]


def test_models_of_other_data_are_not_compared(weights, others, tmp_path):
    config = pretrained.read_config(pretrained.find(weights))
    pretrained.save(pretrained.load(others), CONFIG, tmp_path, training={"data": "mnist"}, run=config["run"])
    with pytest.raises(ValueError, match="of the same data can be compared, not of digits and mnist"):
        evaluation.evaluate(weights, 2, 5, against=str(tmp_path))


def test_the_command_line_prints_the_difference(weights, others, capsys):
    assert main(["evaluate", "--weights", weights, "--against", others, "--limit", "9", "--num-samples", "4"]) == 0
    assert re.search(
        r"^[+-][\d.]+ ± [\d.]+ nats, and ELBO [+-][\d.]+ ± [\d.]+, against others\d+ on the same images$",
        capsys.readouterr().out,
        re.MULTILINE,
    )


def test_what_is_kept_is_written_between_units(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "SAVE_SECONDS", 0.0)
    kept = []

    def progress(done, total):
        if done < total:
            kept.append(values_in(tmp_path / "result.json.part.safetensors"))

    evaluation.evaluate(weights, 100, 20, out=tmp_path / "result.json", progress=progress)
    assert kept == [0, 16, *range(20, 60)]


def values_in(kept):
    """How many values a file keeps, 0 where there is none."""
    if not kept.exists():
        return 0
    with safe_open(kept, framework="pt") as file:
        return len(file.get_tensor("values"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_samples": 101}, "num_samples is 100 there, 101 now"),
        ({"limit": 21}, "images is 20 there, 21 now"),
        ({"seed": 1}, "seed is 0 there, 1 now"),
        ({"bfloat16": True}, "precision is 'float32' there, 'bfloat16 autocast' now"),
        ({"trust": 0.5}, "trust is 1.0 there, 0.5 now"),
    ],
)
def test_what_is_kept_of_another_evaluation_is_refused(change, message, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation.hardware, "has_bfloat16", lambda device: True)
    out, same = tmp_path / "result.json", {"num_samples": 100, "limit": 20}
    with monkeypatch.context() as patch:
        cut_after(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            evaluation.evaluate(weights, **same, out=out)
    before = (tmp_path / "result.json.part.safetensors").read_bytes()
    with pytest.raises(ValueError, match=message) as error:
        evaluation.evaluate(weights, **same | change, out=out)
    assert "--overwrite" in str(error.value)
    assert (tmp_path / "result.json.part.safetensors").read_bytes() == before
    anew = evaluation.evaluate(weights, **same | change, out=out, overwrite=True)
    assert figures(anew) == figures(evaluation.evaluate(weights, **same | change))


def test_what_is_kept_of_other_weights_is_refused(weights, model, tmp_path, monkeypatch):
    other = tmp_path / "other"
    changed = build(CONFIG)
    config = pretrained.read_config(pretrained.find(weights))
    pretrained.save(changed, CONFIG, other, training=config["training"], run=config["run"])
    out = tmp_path / "result.json"
    with monkeypatch.context() as patch:
        cut_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            evaluation.evaluate(weights, 100, 20, out=out)
    with pytest.raises(ValueError, match="another evaluation: weights is '[0-9a-f]{16}' there, '[0-9a-f]{16}' now"):
        evaluation.evaluate(str(other), 100, 20, out=out)


def test_a_kept_file_without_metadata_is_called_so(weights, tmp_path):
    files.write_tensors(tmp_path / "result.json.part.safetensors", {"values": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"cannot be read \(it does not say of which evaluation it is\)"):
        evaluation.evaluate(weights, 2, 5, out=tmp_path / "result.json")


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_a_damaged_file_is_named(content, weights, tmp_path):
    kept = tmp_path / "result.json.part.safetensors"
    if content is None:
        files.write_tensors(kept, {"other": torch.zeros(2)}, {"evaluation": "{}"})
    else:
        kept.write_bytes(content)
    with pytest.raises(ValueError, match=r"part.safetensors cannot be read .* --overwrite"):
        evaluation.evaluate(weights, 2, 5, out=tmp_path / "result.json")


def test_a_folder_that_cannot_be_written_is_known_at_once(weights, tmp_path):
    def too_late(done, total):
        raise AssertionError("the work began")

    with pytest.raises(ValueError, match="lies in one that does not exist"):
        evaluation.evaluate(weights, 2, 5, out=tmp_path / "missing" / "result.json", progress=too_late)


def test_ctrl_c_says_how_to_go_on(weights, tmp_path, monkeypatch, capsys):
    for more, advice in ((["--out", str(tmp_path / "r.json")], "the same call goes on from here"), ([], "with --out")):
        with monkeypatch.context() as patch:
            cut_after(patch, 2)
            assert main(["evaluate", "--weights", weights, "--limit", "9", *more]) == 1
        assert advice in capsys.readouterr().out


def test_ctrl_c_at_the_first_moment_gives_advice_that_works(weights, tmp_path, monkeypatch, capsys):
    command = ["evaluate", "--weights", weights, "--limit", "9", "--out", str(tmp_path / "r.json")]
    assert main([*command, "--num-samples", "2"]) == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        cut_after(patch, 0)
        assert main([*command, "--num-samples", "3", "--overwrite"]) == 1
    assert "the same call without --overwrite goes on from here" in capsys.readouterr().out
    assert main([*command, "--num-samples", "3"]) == 0
    with monkeypatch.context() as patch:

        def interrupted(*arguments):
            raise KeyboardInterrupt

        patch.setattr(data, "load", interrupted)
        assert main([*command, "--num-samples", "4", "--overwrite"]) == 1
    assert "nothing was done yet" in capsys.readouterr().out


def test_a_result_tells_of_the_weights_it_read_and_not_of_later_ones(weights, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for path in pretrained.find(weights).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = pretrained.read_config(folder)

    def train_on(done, total):
        files.write_json(folder / "config.json", config | {"run": config["run"] | {"updates": 99_999}})

    result = evaluation.evaluate(str(folder), 2, 5, progress=train_on)
    assert pretrained.read_config(folder)["run"]["updates"] == 99_999
    assert result["updates"] == config["run"]["updates"]


def test_weights_that_a_training_replaces_meanwhile_are_not_taken_for_those_of_the_config(weights, tmp_path, capsys):
    folder = shutil.copytree(weights, tmp_path / "run")
    config = pretrained.read_config(folder)
    pretrained.save(
        pretrained.load(weights), CONFIG, folder, training=config["training"], run=config["run"] | {"updates": 7}
    )
    files.write_json(folder / "config.json", config)  # the one that was read before
    assert main(["evaluate", "--weights", str(folder), "--limit", "9", "--num-samples", "4"]) == 2
    error = capsys.readouterr().err
    assert "are of update 7, and its config.json of update 1" in error and error.count("\n") == 1


def test_the_command_line_goes_on_refuses_and_starts_anew(weights, tmp_path, monkeypatch, capsys):
    out = tmp_path / "result.json"
    command = ["evaluate", "--weights", weights, "--limit", "9", "--num-samples", "70", "--out", str(out)]
    with monkeypatch.context() as patch:
        cut_after(patch, 4)
        assert main(command) == 1
    capsys.readouterr()
    assert main([*command, "--seed", "3"]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and "seed is 0 there, 3 now" in error and not out.exists()
    assert main(command) == 0
    first = json.loads(out.read_text())
    assert figures(first) == figures(evaluation.evaluate(weights, 70, 9))
    with monkeypatch.context() as patch:
        cut_after(patch, 4)
        assert main(command) == 1
    assert main([*command, "--seed", "3", "--overwrite"]) == 0
    assert (
        figures(json.loads(out.read_text())) == figures(evaluation.evaluate(weights, 70, 9, seed=3)) != figures(first)
    )
    assert first["evaluation"]["seed"] == 0


def test_a_result_is_replaced_by_that_of_another_evaluation_only_when_told(weights, others, tmp_path, capsys):
    out = tmp_path / "result.json"
    same_name = str(shutil.copytree(weights, tmp_path / Path(others).name))
    command = ["evaluate", "--limit", "9", "--num-samples", "4", "--out", str(out), "--weights"]
    assert main([*command, weights, "--against", others]) == 0
    before = out.read_bytes()
    for arguments, reason in (
        ([others, "--against", others], "weights is '"),
        ([weights, "--against", weights], "against is '"),
        ([weights, "--against", same_name], "weights of against is '"),
        ([weights], "now. Give another name, or add --overwrite"),
        ([weights, "--against", others, "--seed", "3"], "seed is 0 there, 3 now"),
        ([weights, "--against", others, "--num-samples", "5"], "num_samples is 4 there, 5 now"),
        ([weights, "--against", others, "--limit", "8"], "images is 9 there, 8 now"),
        ([weights, "--against", others, "--trust", "0.5"], "trust is 1.0 there, 0.5 now"),
    ):
        capsys.readouterr()
        assert main([*command, *arguments]) == 2
        assert reason in (error := capsys.readouterr().err) and error.count("\n") == 1
    assert out.read_bytes() == before
    assert main([*command, weights, "--against", others]) == 0, "the same may be measured anew"
    assert main([*command, weights, "--overwrite"]) == 0
    assert main([*command, weights, "--against", others]) == 0, "and a comparison added"
    result = json.loads(out.read_text())
    del result["against"]["weights"]  # as in older results
    out.write_text(json.dumps(result))
    assert main([*command, weights, "--against", others]) == 0
    assert json.loads(out.read_text())["against"]["weights"] == evaluation.digest(
        pretrained.load(others).state_dict().values()
    )


def test_results_of_before_there_were_wider_proposals_drew_from_the_posterior(weights, tmp_path):
    out = tmp_path / "result.json"
    older = evaluation.evaluate(weights, 4, 9)
    del older["evaluation"]["trust"]
    out.write_text(json.dumps(older))
    with pytest.raises(ValueError, match=r"trust is 1\.0 there, 0\.5 now"):
        evaluation.evaluate(weights, 4, 9, trust=0.5, out=out)
    assert figures(evaluation.evaluate(weights, 4, 9, out=out)) == figures(evaluation.evaluate(weights, 4, 9))


def test_an_evaluation_from_wider_proposals_says_so(weights, model, tmp_path, capsys):
    out = tmp_path / "result.json"
    assert main(["evaluate", "--weights", weights, "--limit", "9", "--trust", "0.5", "--out", str(out)]) == 0
    assert "nats (128 importance samples from wider proposals, trust 0.5), ELBO" in capsys.readouterr().out
    result = json.loads(out.read_text())
    images = evaluation.choose(data.binarize(data.load("digits", "test").tensors[0]), 9)
    expected = evaluation.bounds(model, images, trust=0.5)
    assert (result["nats"], result["elbo"], result["evaluation"]["trust"]) == (expected.nats, expected.elbo, 0.5)
    assert main(["evaluate", "--weights", weights, "--limit", "9", "--trust", "2"]) == 2
    assert "trust is above 0 and at most 1, not 2.0" in capsys.readouterr().err


def test_the_bounds_of_each_image_are_written_where_they_are_asked_for(weights, others, tmp_path, capsys):
    each = tmp_path / "each.safetensors"
    command = ["evaluate", "--weights", weights, "--limit", "9", "--num-samples", "4", "--per-image", str(each)]
    assert main([*command, "--out", str(tmp_path / "result.json"), "--against", others]) == 0
    assert f"written to {each}" in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    with safe_open(each, framework="pt") as file:
        indices, elbos, iwaes = (file.get_tensor(name) for name in ("indices", "elbos", "iwaes"))
        identity = json.loads(file.metadata()["evaluation"])
    assert iwaes.mean().item() == pytest.approx(result["nats"]) and elbos.mean().item() == pytest.approx(result["elbo"])
    assert identity["weights"] == result["evaluation"]["weights"] and identity["num_samples"] == 4
    images = data.binarize(data.load("digits", "test").tensors[0])
    assert torch.equal(images[indices], evaluation.choose(images, 9)) and len(indices) == len(elbos) == len(iwaes) == 9
    assert main(command) == 0, "bounds are replaced by those of the same evaluation"
    before = each.read_bytes()
    for more, reason in (
        (["--seed", "3"], "seed is 0 there, 3 now"),
        (["--weights", others], "weights is '"),
        (["--trust", "0.5"], "trust is 1.0 there, 0.5 now"),
    ):
        assert main([*command, *more]) == 2
        error = capsys.readouterr().err
        assert "holds the bounds of another evaluation" in error and reason in error and error.count("\n") == 1
    assert each.read_bytes() == before
    assert main([*command, "--seed", "3", "--overwrite"]) == 0 and each.read_bytes() != before


def test_no_other_file_is_replaced_by_the_bounds_of_each_image(weights, tmp_path, capsys):
    picture, folder = tmp_path / "picture.safetensors", Path(weights)
    picture.write_bytes(b"\x89PNG")
    config = (folder / "config.json").read_bytes()
    command = [
        "evaluate",
        "--weights",
        weights,
        "--limit",
        "9",
        "--num-samples",
        "4",
        "--out",
        str(tmp_path / "r.json"),
    ]
    for path, reason in (
        (tmp_path / "r.json", "cannot hold the result and the bounds of each image, too: give two names"),
        (tmp_path / "r.json.part.safetensors", "go into a file NAME.safetensors (not .part), not into"),
        (folder / "config.json", "would replace a file of the weights"),
        (folder / "model.safetensors", "would replace a file of the weights"),
        (tmp_path / "bounds.json", "go into a file NAME.safetensors (not .part), not into"),
        (picture, "holds no bounds: give another name, or add --overwrite"),
        (tmp_path, "--per-image"),
    ):
        assert main([*command, "--per-image", str(path)]) == 2
        assert reason in (error := capsys.readouterr().err) and error.count("\n") == 1
    assert (folder / "config.json").read_bytes() == config and not (tmp_path / "r.json").exists()
    with pytest.raises(ValueError, match="NAME.safetensors"):
        evaluation.evaluate(weights, 4, 9, per_image=folder / "config.json")
    progress = []
    with pytest.raises(ValueError, match="per_image nowhere/b.safetensors is a folder or lies in one that does not"):
        evaluation.evaluate(
            weights, 4, 9, per_image="nowhere/b.safetensors", progress=lambda *call: progress.append(call)
        )
    with pytest.raises(ValueError, match="out .* is a folder"):
        evaluation.evaluate(weights, 4, 9, out=tmp_path, progress=lambda *call: progress.append(call))
    assert not progress, "it is known before the work begins"
    assert main([*command, "--per-image", str(picture), "--overwrite"]) == 0
    with safe_open(picture, framework="pt") as file:
        assert len(file.get_tensor("iwaes")) == 9


def test_what_was_kept_before_there_were_wider_proposals_is_gone_on_with(weights, tmp_path, monkeypatch):
    out, kept = tmp_path / "result.json", tmp_path / "result.json.part.safetensors"
    with monkeypatch.context() as patch:
        cut_after(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            evaluation.evaluate(weights, 100, 20, out=out)
    with safe_open(kept, framework="pt") as file:
        values, saved = file.get_tensor("values"), json.loads(file.metadata()["evaluation"])
    del saved["identity"]["trust"]
    files.write_tensors(kept, {"values": values}, {"evaluation": json.dumps(saved)})
    with pytest.raises(ValueError, match=r"trust is 1\.0 there, 0\.5 now"):
        evaluation.evaluate(weights, 100, 20, trust=0.5, out=out)
    calls = []
    evaluation.evaluate(weights, 100, 20, out=out, progress=lambda *call: calls.append(call))
    assert calls[0][0] > 0, "what was done is not done again"


@pytest.mark.parametrize(
    "wrong", [{"trust": 2.0}, {"num_samples": 0}, {"limit": 1}, {"num_samples": 4.5}, {"seed": 0.5}]
)
def test_wrong_settings_cost_nothing_that_was_kept(wrong, weights, tmp_path, monkeypatch):
    out, kept = tmp_path / "result.json", tmp_path / "result.json.part.safetensors"
    with monkeypatch.context() as patch:
        cut_after(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            evaluation.evaluate(weights, 100, 20, out=out)
    before = kept.read_bytes()
    with pytest.raises(ValueError, match=next(iter(wrong)) if "limit" not in wrong else "at least 2 images"):
        evaluation.evaluate(weights, **{"num_samples": 100, "limit": 20} | wrong, out=out, overwrite=True)
    assert kept.read_bytes() == before


def test_an_evaluation_that_replaces_another_and_was_cut_goes_on_without_being_told_again(
    weights, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "result.json"
    command = ["evaluate", "--weights", weights, "--limit", "20", "--num-samples", "100", "--out", str(out)]
    assert main([*command, "--seed", "3"]) == 0
    with monkeypatch.context() as patch:
        cut_after(patch, 5)
        assert main([*command, "--overwrite"]) == 1
    assert "stopped; the same call without --overwrite goes on from here" in capsys.readouterr().out
    assert main(command) == 0
    assert figures(json.loads(out.read_text())) == figures(evaluation.evaluate(weights, 100, 20))


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\xff", b"{}", b"[]", b'{"evaluation": 5}', b""])
def test_a_file_that_is_no_result_is_replaced_only_when_told(content, weights, tmp_path, capsys):
    out = tmp_path / "digit.png"
    out.write_bytes(content)
    command = ["evaluate", "--weights", weights, "--limit", "9", "--num-samples", "4", "--out", str(out)]
    assert main(command) == 2
    assert "digit.png is no result of an evaluation" in capsys.readouterr().err and out.read_bytes() == content
    assert main([*command, "--overwrite"]) == 0 and "nats" in json.loads(out.read_text())


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_real_evaluation_killed_at_random_moments_goes_on_to_the_same_figures(weights, tmp_path):
    arguments = ["evaluate", "--weights", weights, "--num-samples", "2000", "--limit", "60", "--out"]
    # Written after each unit, so that many kills hit the writing.
    script = "import sys; from vnca import evaluation; from vnca.__main__ import main; evaluation.SAVE_SECONDS = 0.0; "
    # Slow where it is to be killed: on a busy machine it would end before this test looks again.
    slow = "import time; save = evaluation.Kept.save; evaluation.Kept.save = lambda *a: (time.sleep(0.02), save(*a)); "
    end = "sys.exit(main(sys.argv[1:]))"
    out = tmp_path / "killed" / "result.json"
    out.parent.mkdir()
    kept = out.with_name("result.json.part.safetensors")
    chance, sizes = random.Random(0), [0]
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL, None):
        code = script + end if number is None else script + slow + end
        command = [sys.executable, "-c", code, *arguments, str(out)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if number is not None:
            deadline, enough = time.monotonic() + 120, sizes[-1] + chance.randint(1, 40)
            while values_in(kept) < enough:
                assert process.poll() is None and time.monotonic() < deadline, process.communicate()
                time.sleep(0.005)
            time.sleep(chance.uniform(0, 0.02))
            process.send_signal(number)
        _, error = process.communicate(timeout=120)
        assert process.returncode == {None: 0, signal.SIGINT: 1, signal.SIGKILL: -signal.SIGKILL}[number], error
        assert "Traceback" not in error
        if number is not None:
            sizes.append(values_in(kept))
    assert all(a < b for a, b in zip(sizes, sizes[1:], strict=False)), "each part went on from the one before"
    whole = evaluation.evaluate(weights, 2000, 60)
    assert figures(json.loads(out.read_text())) == figures(whole)
    assert [path.name for path in out.parent.iterdir()] == ["result.json"], "nothing is left beside the result"
