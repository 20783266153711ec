"""The benchmarks of missing pixels, `inpainting.py` and `completions.py`: where the figures are known beforehand."""

import json

import completions
import inpainting as benchmark
import pytest
import torch
from test_inpainting import model, seeded  # noqa: F401 - a fixture

import vnca
from vnca import evidence, masks, posterior, pretrained

CONFIG = vnca.ModelConfig("doubling", 4, 2, {"hidden": 4, "steps": 1})
MASKS = ("left half", "stroke")


@pytest.fixture
def bench(tmp_path, model, monkeypatch):  # noqa: F811 - the fixture
    """Runs a benchmark on few small images in a folder of its own; returns the rows of its table by model and mask."""
    pretrained.save(model, CONFIG, tmp_path / "run", training={"data": "binarized-mnist"})
    stripes = (torch.arange(784) % 7 < 3).float().view(1, 1, 28, 28)
    noisy = (stripes - (torch.rand(300, 1, 28, 28, generator=seeded(9)) < 0.1).float()).abs()
    parts = dict(zip(("train", "valid", "test"), noisy.split([200, 50, 50]), strict=True))

    def load(name, split):
        return vnca.data.ImageDataset(name, split, parts[split], torch.full((len(parts[split]),), -1))

    monkeypatch.setattr(benchmark.data, "load", load)
    monkeypatch.setattr(benchmark, "BATCH", 2)
    monkeypatch.setattr(posterior, "BANK", 16)

    def run(program, *more, out="table.json", weights=(str(tmp_path / "run"),)):
        arguments = [*weights, "--images", "5", "--masks", *MASKS, "--out", str(tmp_path / out), *more]
        assert program.main(arguments) == 0
        assert not list(tmp_path.glob("*.part*"))
        rows = json.loads((tmp_path / out).read_text())["rows"]
        return {(row["model"], row["mask"]): row for row in rows}

    run.folder = tmp_path
    return run


both = pytest.mark.parametrize("program", [benchmark, completions])


def without_dates(rows):
    keys = ("date", "commit", "machine", "minutes", "minutes_whole_images")
    return {place: {key: value for key, value in row.items() if key not in keys} for place, row in rows.items()}


@both
def test_a_benchmark_writes_a_row_for_each_model_and_mask(bench, program):
    rows = bench(program)
    assert set(rows) == {(name, mask) for name in ("pixel mean", "neighbors", "run") for mask in MASKS}
    for row in rows.values():
        if program is benchmark:
            assert row["nats_per_pixel"][0] < 0 < row["nats_per_pixel"][1]
        else:
            assert 0 < row["squared_error"][0] < 1


@pytest.mark.parametrize("baseline", ["pixel mean", "neighbors"])
def test_the_baselines_find_what_can_be_known(bench, baseline):
    # Stripes with a tenth of the pixels flipped: an entropy of 0.325 nats, a squared error of 0.09.
    assert bench(benchmark, weights=())[baseline, "left half"]["nats_per_pixel"][0] == pytest.approx(-0.325, abs=0.04)
    row = bench(completions, out="errors.json", weights=())[baseline, "left half"]
    assert row["squared_error"][0] == pytest.approx(0.09, abs=0.02)
    assert row["promised_error"][0] == pytest.approx(0.09, abs=0.02)


def test_a_row_is_made_of_both_likelihoods_and_their_bounds(bench, monkeypatch):
    def ask(_, x, observed, num_samples, generator, *, chains, iterations):
        seen = observed.flatten(1).sum(dim=1).float()
        return evidence.Evidence(-seen, 2 - seen if chains else None, torch.full_like(x, 0.5))

    monkeypatch.setattr(evidence, "evidence", ask)
    rows = bench(benchmark)
    for mask in MASKS:  # whole images have -784 nats, so each missing pixel has -1
        row = rows["run", mask]
        assert row["nats_per_pixel"] == [pytest.approx(-1), pytest.approx(0, abs=1e-6)]
        width = (2 / (~masks.MASKS[mask](5)).flatten(1).sum(dim=1)).mean().item()
        assert row["bounds"]["lower"][0] == pytest.approx(-1 - width)
        assert row["bounds"]["upper"][0] == pytest.approx(-1 + width)


def test_the_bounds_are_around_the_estimate(bench):
    row = bench(benchmark, "--num-samples", "6")["run", "left half"]
    assert row["bounds"]["lower"][0] <= row["nats_per_pixel"][0] <= row["bounds"]["upper"][0]


def test_noise_of_the_estimates_does_not_count_as_error(bench, monkeypatch):
    def noisy(_, x, observed, num_samples, generator, *, chains, iterations):
        p = 0.1 + 0.8 * torch.rand(x.shape, generator=generator)  # in the mean 1/2, with a variance of 0.053
        return evidence.Evidence(None, None, p)

    monkeypatch.setattr(evidence, "evidence", noisy)
    rows = bench(completions)
    for mask in MASKS:
        row = rows["run", mask]
        assert row["squared_error"][0] == pytest.approx(0.25, abs=0.02)
        assert row["promised_error"][0] == pytest.approx(0.25, abs=0.02)
        behind = row["squared_error"][0] - rows["neighbors", mask]["squared_error"][0]
        assert row["behind_neighbors"][0] == pytest.approx(behind)


def test_errors_are_means_over_missing_pixels():
    x = torch.ones(2, 1, 28, 28)
    observed = masks.left_half(2)  # its left half is missing
    p = torch.where(observed, 7.0, 0.75)
    squared, promised = completions.errors(p, p, x, observed).T
    assert squared.tolist() == pytest.approx([0.0625] * 2) and promised.tolist() == pytest.approx([0.1875] * 2)


@both
def test_a_benchmark_that_was_cut_goes_on_to_the_same_figures(bench, program, monkeypatch):
    whole, ask, calls = bench(program, out="whole.json"), evidence.evidence, []
    total = {benchmark: 9, completions: 12}[
        program
    ]  # three batches for whole images and masks; two calls each for masks

    def cut_off(*arguments, **more):
        calls.append(1)
        if len(calls) == 5:  # in the middle of the first mask
            raise KeyboardInterrupt
        return ask(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(evidence, "evidence", cut_off)
        with pytest.raises(KeyboardInterrupt):
            bench(program)
    calls.clear()
    monkeypatch.setattr(evidence, "evidence", lambda *a, **more: calls.append(1) or ask(*a, **more))
    assert without_dates(bench(program)) == without_dates(whole)
    assert len(calls) == total - 4, "each batch once, but for the one that was cut"
    assert without_dates(bench(program)) == without_dates(whole)
    assert len(calls) == total - 4, "what is there is not measured again"
    bench(program, "--overwrite")
    assert len(calls) == 2 * total - 4


@both
def test_rows_of_other_images_do_not_get_into_one_table(bench, program):
    before = bench(program, weights=())
    with pytest.raises(ValueError, match=r"images is 5 there, 4 now; give another --out"):
        bench(program, "--images", "4", weights=())
    assert bench(program, weights=()) == before


def test_two_calls_at_once_lose_no_row_of_each_other(tmp_path):
    tables = [benchmark.Table(tmp_path / "table.json", torch.zeros(3, 1, 28, 28)) for _ in range(2)]
    for name, table in zip("ab", tables, strict=True):
        table.put({"model": name, "mask": "left half"})
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [row["model"] for row in rows] == ["a", "b"]


@pytest.mark.parametrize(("program", "count"), [(benchmark, 500), (completions, 128)])
def test_the_table_of_the_results_can_get_more_rows(program, count):
    assert benchmark.Table(program.RESULT, torch.zeros(count, 1, 28, 28)).rows


def test_the_neighbors_are_those_with_the_fewest_differences():
    train = (torch.rand(40, 784, generator=seeded()) < 0.5).float()
    x, observed = train[7].view(1, 1, 28, 28), masks.left_half(1)
    order = benchmark.nearest(x, observed, train, 3)[0]
    distances = ((train != train[7]) & observed.flatten()).sum(dim=1)
    assert order[0] == 7 and torch.equal(distances[order], distances.sort().values[:3])


@both
def test_a_model_of_other_data_is_not_compared(bench, program):
    pretrained.save(vnca.build(CONFIG), CONFIG, bench.folder / "run", training={"data": "digits"})
    with pytest.raises(ValueError, match="was not trained on binarized-mnist"):
        bench(program)
