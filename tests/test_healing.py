"""Damage and healing: the functions of the package, and the benchmark on cells whose figures are known beforehand."""

import json
import math
from functools import partial

import healing as benchmark
import pytest
import torch
from torch import nn

from vnca import ConvDecoder, DoublingDecoder, RegrowingDecoder, cells, data, healing, pretrained
from vnca.decoders import CellDecoder
from vnca.vae import VAE, ModelConfig, build

LOGIT = math.log(3)  # a probability of 3/4


def with_random_update(decoder):
    """A decoder whose cells change, as untrained ones do not."""
    torch.manual_seed(0)
    nn.init.normal_(decoder.update.layers[-1].weight, std=0.3)
    return decoder


# ------------------------------------------------------------------------------------------------ the package


@pytest.mark.parametrize("decoder", [DoublingDecoder(4, 6, 2, 1), RegrowingDecoder(4, 6, 2, 2)])
def test_a_grown_state_goes_on_step_by_step(decoder):
    with_random_update(decoder)
    z = torch.randn(2, 4)
    state = healing.grown(decoder, z)
    assert torch.equal(healing.image(state), decoder(z))
    states = list(healing.go_on(decoder, state, 3))
    assert len(states) == 4 and states[0] is state
    for before, after in zip(states, states[1:], strict=False):
        assert torch.equal(after, before + decoder.update(before)) and not torch.equal(after, before)


def test_what_cannot_go_on_is_refused_at_once():
    decoder = RegrowingDecoder(4, 4, 1, 1)
    with pytest.raises(ValueError, match="ConvDecoder has no cells"):
        healing.go_on(ConvDecoder(4, 1), torch.zeros(1, 4, 32, 32), 1)
    with pytest.raises(ValueError, match="ConvDecoder has no cells"):
        healing.grown(ConvDecoder(4, 1), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="have 4 channels, not 5"):
        healing.go_on(decoder, torch.zeros(1, 5, 32, 32), 1)
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        healing.go_on(decoder, torch.zeros(4, 32, 32), 1)
    with pytest.raises(ValueError, match="at least 0, not -1"):
        healing.go_on(decoder, torch.zeros(1, 4, 32, 32), -1)
    with pytest.raises(ValueError, match="32 x 32 cells, not from"):
        healing.image(torch.zeros(1, 4, 16, 16))


@pytest.mark.parametrize("share, size", [(0, 0), (0.25, 16), (0.5, 23), (0.75, 28), (1, 32)])
def test_the_size_of_a_hole_comes_closest_to_its_share(share, size):
    assert healing.hole_size(share) == size


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="between 0 and 1"):
        healing.hole_size(share)


def test_corners_cover_all_places_where_the_hole_fits():
    corners = healing.random_corners(500, 28, torch.Generator().manual_seed(0))
    assert sorted(corners.unique().tolist()) == [0, 1, 2, 3, 4]
    assert len(corners.unique(dim=0)) == 25
    assert torch.equal(corners, healing.random_corners(500, 28, torch.Generator().manual_seed(0)))
    assert healing.random_corners(3, 32, torch.Generator()).tolist() == [[0, 0]] * 3


@pytest.mark.parametrize("n, size", [(-1, 4), (2, 0), (2, 33)])
def test_a_hole_that_does_not_fit_is_refused(n, size):
    with pytest.raises(ValueError, match=f"not {n} and {size}"):
        healing.random_corners(n, size, torch.Generator())


def test_each_grid_is_damaged_at_its_own_place():
    state = torch.randn(2, 3, 8, 8)
    before = state.clone()
    damaged, hole = healing.damage_each(state, torch.tensor([[0, 1], [5, 4]]), 3)
    assert torch.equal(state, before)
    assert torch.equal(damaged, torch.cat([cells.damage(state[:1], 0, 1, 3), cells.damage(state[1:], 5, 4, 3)]))
    assert hole.shape == (2, 1, 8, 8) and torch.equal(hole.expand_as(state), damaged == 0)
    with pytest.raises(ValueError, match=r"2 grids need corners \(2, 2\), not \(1, 2\)"):
        healing.damage_each(state, torch.tensor([[0, 1]]), 3)


def test_differences_flips_and_their_means():
    undamaged = torch.full((2, 1, 2, 2), LOGIT)
    logits = torch.tensor([[LOGIT, 0.0], [-LOGIT, LOGIT]]).expand(2, 1, 2, 2)
    assert healing.difference(logits, undamaged)[0, 0].tolist() == [[0, pytest.approx(0.25)], [pytest.approx(0.5), 0]]
    assert healing.flips(logits, undamaged)[0, 0].tolist() == [[False, True], [True, False]]
    where = torch.tensor([[[[True, True], [False, False]]], [[[False, False], [False, False]]]])
    means = healing.mean_where(healing.difference(logits, undamaged), where)
    assert means[0].item() == pytest.approx(0.125) and means[1].isnan()


def test_bits_per_pixel_are_the_code_length():
    x = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 2, 2)
    assert healing.bits_per_pixel(torch.zeros(1, 1, 2, 2), x).item() == pytest.approx(1)
    expected = -(math.log2(0.75) + math.log2(0.25)) / 2
    assert healing.bits_per_pixel(torch.full((1, 1, 2, 2), LOGIT), x).item() == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------ the benchmark


class Cells(CellDecoder):
    """Cells that grow at once into an image of probability 3/4; `rule` gives the change from state and target."""

    channels = latent_size = 2

    def __init__(self, rule):
        super().__init__()
        self.target = nn.Parameter(torch.full((1, 2, 32, 32), LOGIT))
        self.rule = rule

    def grow(self, z):
        yield self.target.expand(len(z), -1, -1, -1)

    def update(self, state):
        return self.rule(state, self.target)


class ZeroEncoder(nn.Module):
    latent_size = 2

    def forward(self, x):
        return torch.zeros(len(x), 2), torch.zeros(len(x), 2)


def subject(rule, images=3):
    return benchmark.Subject("cells", VAE(ZeroEncoder(), Cells(rule)), torch.ones(images, 1, 28, 28))


def heals(state, target):
    return target - state


def heals_by_halves(state, target):
    return (target - state) / 2


def stays(state, target):
    return torch.zeros_like(state)


def drifts(state, target):
    return torch.ones_like(state)


def explodes(state, target):
    return 1e10 * state


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


def holes_in_the_image(part, size, images, rounds=1):
    """The share of the pixels that each round's holes cover, as the benchmark draws them: `(rounds, images)`."""
    generator = torch.Generator().manual_seed(benchmark.seed_of(benchmark.SEED, "holes", part))
    shares = []
    for _ in range(rounds):
        corners = healing.random_corners(images, size, generator)
        hole = healing.damage_each(torch.ones(images, 1, 32, 32), corners, size)[1]
        shares.append(hole[:, :, 2:30, 2:30].float().mean(dim=(1, 2, 3)))
    return torch.stack(shares)


def test_cells_that_heal_are_seen_to_heal():
    curve = benchmark.recovery(subject(heals), 0.25)
    assert curve["size"] == 16 and curve["steps"] == [*range(65), 80, 96, 128, 160, 192, 256]
    assert curve["error"]["inside"] == [pytest.approx(0.25)] + [0] * 70
    assert curve["flips"]["inside"] == [1] + [0] * 70
    assert curve["error"]["outside"] == curve["flips"]["outside"] == [0] * 71
    share = holes_in_the_image("recovery 25%", 16, 3)[0]
    assert curve["error"]["everywhere"][0] == pytest.approx(0.25 * share.mean().item(), rel=1e-4)
    assert curve["flips"]["everywhere"][0] == pytest.approx(share.mean().item(), rel=1e-4)
    assert curve["standard_error"][0] == pytest.approx(0.25 * share.std().item() / 3**0.5, rel=1e-4, abs=1e-7)
    assert curve["finite"] == [3] * 71


def test_the_way_back_is_followed_step_by_step():
    inside = benchmark.recovery(subject(heals_by_halves), 0.5)["error"]["inside"]
    for step in (1, 2, 5):
        logit = LOGIT * (1 - 0.5**step)
        assert inside[step] == pytest.approx(0.75 - 1 / (1 + math.exp(-logit)), rel=1e-3)


def test_cells_that_do_not_heal_are_seen_not_to():
    curve = benchmark.recovery(subject(stays), 0.75)
    assert curve["size"] == 28
    assert curve["error"]["inside"] == [pytest.approx(0.25)] * 71 and curve["error"]["outside"] == [0] * 71


def test_repeated_damage_adds_up_unless_it_heals():
    healed = benchmark.repeated(subject(heals))["rounds"]
    hurt = benchmark.repeated(subject(stays))["rounds"]
    assert [len(rounds) for rounds in (healed, hurt)] == [5, 5]
    share = holes_in_the_image("repeated damage", 16, 3, rounds=5).mean(dim=1).tolist()
    assert [curve["flips"]["everywhere"][0] for curve in healed] == pytest.approx(share, rel=1e-4)
    assert all(curve["error"]["everywhere"][1:] == [0] * 7 for curve in healed)
    ends = [curve["flips"]["everywhere"][-1] for curve in hurt]
    assert ends == sorted(ends) and ends[-1] > 2 * ends[0]
    assert hurt[1]["flips"]["outside"][-1] > 0 and healed[1]["flips"]["outside"][-1] == 0


def test_an_image_that_stays_has_the_same_bits_forever():
    figures = benchmark.stability(subject(stays))
    assert figures["steps"] == [0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    assert figures["bits_per_pixel"] == [pytest.approx(-math.log2(0.75), rel=1e-4)] * 11
    assert figures["drift_standard_error"] == figures["error"] == figures["flips"] == [0] * 11


def test_a_drift_is_measured_in_bits():
    subject_ = subject(drifts, images=2)
    subject_.images[1] = 0
    figures = benchmark.stability(subject_)
    for i, step in ((0, 0), (1, 1), (4, 10), (10, 1000)):
        p = 1 / (1 + math.exp(-LOGIT - step))
        ones = math.log2(1 + math.exp(-LOGIT - step))
        zeros = ones + (LOGIT + step) / math.log(2)
        assert figures["bits_per_pixel"][i] == pytest.approx((ones + zeros) / 2, rel=1e-4)
        assert figures["standard_error"][i] == pytest.approx((zeros - ones) / 2, rel=1e-4)
        assert figures["drift_standard_error"][i] == pytest.approx(step / math.log(2) / 2, rel=1e-4)
        assert figures["error"][i] == pytest.approx(p - 0.75, rel=1e-3, abs=1e-6)


def test_numbers_that_are_not_finite_have_no_mean():
    figures = benchmark.stability(subject(explodes))
    assert figures["finite"] == [3, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0]  # 1e10 to the fourth is too large
    assert figures["bits_per_pixel"][3:] == figures["standard_error"][3:] == figures["error"][3:] == [None] * 8
    assert None not in figures["bits_per_pixel"][:3]
    rounds = benchmark.repeated(subject(explodes))["rounds"]
    assert rounds[0]["finite"] == [3, 3, 3, 0, 0, 0, 0, 0] and rounds[1]["finite"] == [0] * 8


def test_no_damage_can_cut_out_what_is_not_finite():
    def one_cell_explodes(state, target):
        change = torch.zeros_like(state)
        change[:, :, 9, 9] = math.inf
        return change

    decoder, state = Cells(one_cell_explodes), torch.zeros(1, 2, 32, 32)
    hole = torch.ones(1, 1, 28, 28, dtype=torch.bool)
    ask = partial(benchmark.distances, undamaged=healing.image(state), hole=hole)
    values, last = benchmark.follow(decoder, state, (0, 1, 64), ask)
    assert values.shape == (3, 6, 1) and values[0, 0] == 0 and values[1:].isnan().all()
    assert last.isnan().all()  # as after 64 steps of cells that look at their neighbors


def test_one_image_that_is_not_finite_leaves_no_mean_but_a_count():
    def one_explodes(state, target):
        change = torch.zeros_like(state)
        change[0] = math.inf
        return change

    figures = benchmark.stability(subject(one_explodes))
    assert figures["finite"] == [3] + [2] * 10 and figures["bits_per_pixel"][1:] == [None] * 10


def test_a_hole_over_the_whole_image_has_no_outside():
    figures = benchmark.summary(torch.tensor([[0.5, math.nan, 0.5] * 2, [0.3, 0.1, 0.2] * 2]).mT[None].double(), [0])
    assert figures["error"] == {"inside": [0.4], "outside": [0.1], "everywhere": [0.35]}
    assert figures["finite"] == [2]


def test_chunks_do_not_change_the_figures(monkeypatch):
    whole = benchmark.recovery(subject(heals_by_halves, images=5), 0.25)
    monkeypatch.setitem(benchmark.CHUNKS, "cpu", 2)
    assert benchmark.recovery(subject(heals_by_halves, images=5), 0.25) == whole


# ------------------------------------------------------------------------------------------------ the program

CONFIGS = {
    "doubling": ModelConfig("doubling", 4, 1, {"hidden": 4, "steps": 1, "residual_blocks": 0}),
    "regrowing": ModelConfig("regrowing", 4, 1, {"hidden": 4, "min_steps": 2, "max_steps": 2}),
    "conv": ModelConfig("conv", 4, 1, {"width": 1}),
}


@pytest.fixture
def weights(tmp_path):
    """Untrained weights in a folder of their own, one for each decoder."""
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        pretrained.save(build(config), config, tmp_path / name, training={"data": "digits"})
    return tmp_path


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(benchmark, "STABILITY", (0, 50, 200, 1000))
    monkeypatch.setattr(benchmark, "RECOVERY", (0, 8, 16, 64, 256))
    monkeypatch.setattr(benchmark, "ROUND", (0, 8, 16, 64))


def test_the_program_measures_both_vncas_into_one_file(weights, short, capsys):
    out = weights / "healing.json"
    assert benchmark.main([str(weights / "doubling"), "--limit", "3", "--out", str(out)]) == 0
    assert benchmark.main([str(weights / "regrowing"), "--limit", "3", "--out", str(out)]) == 0
    entries = json.loads(out.read_text())
    assert list(entries) == ["doubling", "regrowing"]
    for name, growth in (("doubling", 5), ("regrowing", 2)):
        entry = entries[name]
        assert (entry["decoder"], entry["growth_steps"], entry["images"], entry["data"]) == (name, growth, 3, "digits")
        assert len(entry["weights_sha256"]) == 64 and entry["seed"] == 0
        assert list(entry["parts"]) == ["stability", "recovery 25%", "recovery 50%", "recovery 75%", "repeated"]
        for part in entry["parts"].values():
            assert {"minutes", "hardware", "commit", "date"} < part.keys()
        # untrained cells do not change: the damage stays, and nothing else happens
        stability = entry["parts"]["stability"]
        assert len(set(stability["bits_per_pixel"])) == 1 and stability["error"] == [0] * 4
        for part in ("recovery 25%", "recovery 50%", "recovery 75%"):
            curve = entry["parts"][part]
            assert len(set(curve["error"]["inside"])) == 1 and curve["error"]["inside"][0] > 0
            assert curve["error"]["outside"] == [0] * 5
    printed = capsys.readouterr().out
    assert "doubling: 3 images of digits test" in printed and "error, 75% damaged, outside" in printed
    assert '"finite": [3, 3, 3, 3]' in out.read_text()  # a list of numbers is one line


def test_a_cut_measurement_goes_on_and_a_finished_one_is_only_shown(weights, short, monkeypatch, capsys):
    out = weights / "healing.json"
    call = [str(weights / "regrowing"), "--limit", "2", "--out", str(out)]

    def cut(subject):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(benchmark.PARTS, "recovery 50%", cut)
        assert benchmark.main(call) == 1
    assert "goes on from here" in capsys.readouterr().out
    first = json.loads(out.read_text())["regrowing"]["parts"]
    assert list(first) == ["stability", "recovery 25%"]
    assert benchmark.main(call) == 0
    whole = out.read_text()
    parts = json.loads(whole)["regrowing"]["parts"]
    assert list(parts) == list(benchmark.PARTS) and parts["stability"] == first["stability"]
    with monkeypatch.context() as patch:
        for part in benchmark.PARTS:
            patch.setitem(benchmark.PARTS, part, cut)
        assert benchmark.main(call) == 0
        assert out.read_text() == whole
        assert benchmark.main([*call, "--overwrite"]) == 1  # begins anew
    assert json.loads(out.read_text()) == json.loads(whole)  # and loses nothing before it has something


def test_another_measurement_is_not_replaced_unasked(weights, short, capsys):
    out = weights / "healing.json"
    call = [str(weights / "regrowing"), "--out", str(out)]
    assert benchmark.main([*call, "--limit", "2"]) == 0
    assert benchmark.main([*call, "--limit", "3"]) == 2
    assert "images is 2 there, 3 now" in capsys.readouterr().err
    assert json.loads(out.read_text())["regrowing"]["images"] == 2
    assert benchmark.main([*call, "--limit", "3", "--overwrite"]) == 0
    assert json.loads(out.read_text())["regrowing"]["images"] == 3


@pytest.mark.parametrize(
    "name, limit, message",
    [
        ("conv", "2", "no cells that could heal: its decoder is 'conv'"),
        ("nothing", "2", "no weights named"),
        ("regrowing", "1", "at least 2 images, not 1"),
    ],
)
def test_bad_arguments_are_named_and_nothing_is_written(weights, name, limit, message, capsys):
    out = weights / "healing.json"
    assert benchmark.main([str(weights / name), "--limit", limit, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err and not out.exists()


def test_a_file_that_is_no_result_is_left_alone(weights, capsys):
    out = weights / "healing.json"
    out.write_text("[1, 2")
    assert benchmark.main([str(weights / "regrowing"), "--limit", "2", "--out", str(out)]) == 2
    assert "cannot be read" in capsys.readouterr().err and out.read_text() == "[1, 2"


def test_a_folder_that_does_not_exist_is_known_before_anything_is_measured(weights, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "PARTS", {"stability": lambda subject: pytest.fail("measured")})
    assert benchmark.main([str(weights / "regrowing"), "--limit", "2", "--out", str(weights / "no" / "h.json")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_missing_data_fail_with_code_1(weights, monkeypatch, capsys):
    def missing(name, split):
        raise data.DataError("no source answered", "Try again")

    monkeypatch.setattr(data, "load", missing)
    assert benchmark.main([str(weights / "regrowing"), "--limit", "2", "--out", str(weights / "h.json")]) == 1
    assert "no source answered" in capsys.readouterr().err
