"""The scripts that build the book and fill README."""

import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import build_book
import contents
import model_cards
import nbformat
import pytest
import readme
import results_table
import runs
import tables_of_bounds
import tables_of_cells
import tables_of_speed
import torch
import yaml
from jupyter_cache import get_cache
from safetensors.torch import load_file

import vnca
from vnca import evaluation
from vnca.presets import PRESETS, TrainConfig
from vnca.vae import ModelConfig

RUN = {
    "name": "doubling-mnist",
    "model": "doubling",
    "data": "binarized-mnist",
    "split": "test",
    "nats": -84.5678,
    "elbo": -88.1,
    "standard_error": 0.217,
    "num_samples": 128,
    "images": 10_000,
    "updates": 100_000,
    "parameters": {"encoder": 5_000_000, "decoder": 1_182_208},
    "hardware": "one H200",
    "minutes": 61.4,
    "evaluation": {"precision": "float32"},
    "config": {"model": {"decoder_options": {}}, "training": {}},
}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Writes results into a repository of its own."""
    monkeypatch.setattr(contents, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()

    def write(**changes):
        run = {**RUN, **changes}
        (tmp_path / "results" / f"{run['name']}.json").write_text(json.dumps(run))

    return write


def published_vncas() -> list[float]:
    """The published figures of the doubling VNCA, in nats."""
    return [float(nats.replace("−", "-")) for model, nats, _ in results_table.PUBLISHED if model == "doubling VNCA"]


def rows_of(text: str) -> list[str]:
    return [
        line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| model", "| weights"))
    ]


def test_results_and_published_figures_stand_in_one_order_best_on_top(results):
    results()
    results(name="worse", nats=-90.0)
    *rows, trained, trained_worse = rows_of(results_table.render_results("README.md"))
    assert rows[5] == (
        "| **doubling VNCA** | **−84.57** ± 0.22 (128 samples) | −88.10 | 1,182,208 "
        "| [doubling-mnist](results/doubling-mnist.json) |"
    )
    figures = [row.split("|")[2].strip(" *")[:6].rstrip() for row in rows]
    assert figures[3:-2] == ["−84.15", "−84.23", "−84.57", "−84.64", "−89.3", "−90.00", "−90.97"]
    wanted = [row for row in rows if "not trained yet" in row]
    assert rows[-2:] == wanted, "and not the row of doubling-mnist, which is there"
    assert "| **doubling VNCA, learned prior, importance-weighted training**, the paper's size |" in wanted[0]
    assert "| 1,182,208 + 84,150 | preset `refine`, 5,000 updates of 32 images on a GPU |" in wanted[0]
    assert len(rows) == 4 + len(results_table.PUBLISHED)
    assert trained == "| `doubling-mnist` | 100,000 updates, 61 min | one H200 |" and "`worse`" in trained_worse


def test_a_model_evaluated_from_wider_proposals_has_a_second_row(results, tmp_path):
    results()
    assert "wider" not in results_table.render_results("README.md")
    evaluation = {"precision": "bfloat16 autocast", "trust": 0.7}
    text = json.dumps(RUN | {"nats": -84.1, "evaluation": evaluation})
    (tmp_path / "results" / "doubling-mnist-trust-0.7.json").write_text(text)
    text = results_table.render_results("README.md")
    rows = rows_of(text)
    own = [row for row in rows if row.startswith("| **doubling VNCA**")]
    assert own == [
        "| **doubling VNCA** | **−84.57** ± 0.22 (128 samples) | −88.10 | 1,182,208 "
        "| [doubling-mnist](results/doubling-mnist.json) |"
    ]
    assert rows[rows.index(own[0]) + 1] == (
        "| the same, *wider proposals* | −84.10 ± 0.22 (128 samples) | −88.10 | 1,182,208 "
        "| [doubling-mnist-trust-0.7](results/doubling-mnist-trust-0.7.json) |"
    ), "right below it, though published figures lie between the two"
    assert results_table.WIDER.format(trust=0.7) in text and "all others in 32: `doubling-mnist`." in text
    assert text.count("| `doubling-mnist` |") == 1, "it was trained once"
    assert "not in this repository" not in text
    plain = RUN | {"nats": -84.1, "evaluation": evaluation | {"program": "another"}}
    (tmp_path / "results" / "doubling-mnist-trust-0.7.json").write_text(json.dumps(plain))
    elsewhere = results_table.ELSEWHERE.format(names="`doubling-mnist-trust-0.7`")
    assert elsewhere in results_table.render_results("README.md")
    results(images=1000)
    assert "wider" not in results_table.render_results("README.md"), "nothing to compare it with"


def test_each_result_lies_where_the_tables_link_to():
    for path in (contents.ROOT / "results").glob("*.json"):
        if "nats" in (run := json.loads(path.read_text())):
            assert path.stem == (run["name"] if runs.trust_of(run) == 1 else runs.wider_name(run))


def test_figures_on_some_images_have_a_table_of_their_own(results, tmp_path):
    results(name="conv-mnist", model="conv", nats=-86.45)
    results(name="brief", images=1000, nats=-86.0)
    part = {"images": 1000, "nats": -85.67, "standard_error": 0.7, "elbo": -90.1, "num_samples": 128}
    found = {"start": "conv-mnist", "rows": {"not at all": part}}
    (tmp_path / "results" / "recipes.json").write_text(json.dumps(found))
    whole, some = results_table.render_results("README.md").split("`binarized-mnist`, test split, 1,000 images")
    assert "Palm" in whole and "brief" not in whole and "Palm" not in some
    assert "`conv-mnist` has −85.67 on them and −86.45 on all 10,000:" in some
    first, second = rows_of(some)[:2]
    assert "| **−85.67** ± 0.70 (128 samples) | −90.10 |" in first and "[conv-mnist](results/recipes.json)" in first
    assert "results/brief.json" in second


def test_others_of_as_few_images_are_not_called_easier(results, tmp_path):
    part = {"images": 1000, "nats": -85.67, "standard_error": 0.7, "elbo": -90.1, "num_samples": 128}
    results(name="conv-mnist", model="conv", nats=-86.45)
    results(name="brief", images=999)
    (tmp_path / "results" / "recipes.json").write_text(
        json.dumps({"start": "conv-mnist", "rows": {"not at all": part}})
    )
    assert "easier" not in results_table.render_results("README.md")


def test_how_models_were_trained_is_folded_as_the_page_can(results, monkeypatch):
    results()
    monkeypatch.setattr(contents, "repository", lambda: "https://example.org/book")
    assert "<details><summary>How ours were trained</summary>\n\n| weights" in results_table.render_results("README.md")
    assert ":::{dropdown} How ours were trained\n| weights" in results_table.render_results("book/04-training.ipynb")


def test_the_table_with_published_figures_is_in_sight_and_all_else_is_folded(results, monkeypatch):
    monkeypatch.setattr(contents, "repository", lambda: "https://example.org/book")
    results()
    results(name="brief", images=1000, evaluation={"precision": "bfloat16 autocast"})
    results(name="digits", data="digits")
    against = {"name": "doubling-mnist", "nats": -81.5, "difference": 1.2, "difference_standard_error": 0.3}
    results(name="few", images=256, nats=-80.0, against={**against, "elbo_difference": 2.0})
    seen, *below = results_table.render_results("README.md").split("<details><summary>")
    assert "Palm" in seen and "not trained yet" in seen and "results/few.json" in seen
    assert results_table.EXPECTED in seen and "all others in 32: `brief`." in seen
    assert [text.partition("<")[0] for text in below] == [
        "Figures on 1,000 images of binarized-mnist",
        "Figures on 10,000 images of digits",
        "How each expected figure was made",
        "How ours were trained",
    ]
    assert "results/brief.json" in below[0] and "`few` can be expected" in below[2]
    chapter = results_table.render_results("book/04-training.ipynb")
    assert chapter.count(":::{dropdown} ") == chapter.count("\n:::\n") + chapter.endswith("\n:::") == 4


def test_a_model_on_some_images_has_the_figures_that_another_one_lets_expect_on_all(results):
    against = {"name": "whole", "nats": -81.5, "difference": 1.234, "difference_standard_error": 0.3}
    brief = {"name": "brief", "images": 500, "num_samples": 128, "nats": -80.0, "elbo": -85.0}
    results(**brief, against={**against, "elbo_difference": 2.0})
    assert "expected" not in results_table.render_results("README.md"), "nothing is known of the other one"
    results(name="whole", nats=-83.08, num_samples=64)
    assert "expected" not in results_table.render_results("README.md"), "nothing is known for as many samples"
    results(name="whole", nats=-83.08, elbo=-88.5, standard_error=0.4, num_samples=128)
    results(name="between", nats=-81.0)
    text = results_table.render_results("README.md")
    assert "| **−81.85** ± 0.50 (128 samples, expected from 500 images) | −86.50 |" in text
    assert text.index("results/between.json") < text.index("results/brief.json") < text.index("results/whole.json")
    assert "`brief` was measured on 500 images only, on which it has −80.00." in text
    assert (
        "`whole` has −81.50: the difference is 1.23 ± 0.30, image by image. `whole` has −83.08 on all 10,000." in text
    )
    assert "`brief` can be expected to have −81.85 on these." in text


def test_figures_measured_in_16_bits_are_named(results):
    results(name="exact")
    assert "16 bits" not in results_table.render_results("README.md")
    results(name="rounded", evaluation={"precision": "bfloat16 autocast"})
    assert "\n\nEvaluated in 16 bits, all others in 32: `rounded`.\n\n" in results_table.render_results("README.md")


def test_training_updates_stand_beside_the_product_of_their_machine(results, tmp_path):
    row = {"images_per_second": 1234.4, "flops_per_second": 4e11, "peak_bytes": 2.34e9}
    rows = {"product": {"flops_per_second": 8e11}, "ours": row | {"times_plain": 2.5}, "ours+cudnn+graph": row}
    steps = [
        {"model": "paper", "batch_size": 8, "rows": rows},
        {"model": "paper", "batch_size": 9, "rows": {"ours": row, "ours+graph": {"failed": "no memory"}}},
        {"model": "small", "batch_size": 9, "rows": {"ours": row}},
    ]
    for name, hardware in (("a", "two cores"), ("b", "NVIDIA H200")):
        found = {"hardware": hardware, "steps": steps}
        (tmp_path / "results" / f"train_step-{name}.json").write_text(json.dumps(found))
    assert tables_of_speed.render_steps().splitlines()[2:] == [
        "| **`paper`, batches of 8**, NVIDIA H200 | | | | |",
        "| 16 bits, fused kernels | 1,234 | 50% | 2.5 | 2.3 GB |",
        "| **`paper`, batches of 9**, NVIDIA H200 | | | | |",
        "| 16 bits, fused kernels | 1,234 | 50% |  | 2.3 GB |",
        "| **`small`, batches of 9**, NVIDIA H200 | | | | |",
        "| 16 bits, fused kernels | 1,234 |  |  | 2.3 GB |",
        "| **`paper`, batches of 8**, two cores | | | | |",
        "| 16 bits, layer by layer | 1,234 | 50% | 2.5 | 2.3 GB |",
        "| **`paper`, batches of 9**, two cores | | | | |",
        "| 16 bits, layer by layer | 1,234 | 50% |  | 2.3 GB |",
        "| **`small`, batches of 9**, two cores | | | | |",
        "| 16 bits, layer by layer | 1,234 |  |  | 2.3 GB |",
    ]


def test_pages_of_the_book_link_to_the_repository(results, monkeypatch):
    results()
    monkeypatch.setattr(contents, "repository", lambda: "https://example.org/book")
    link = "[doubling-mnist](https://example.org/book/blob/main/results/doubling-mnist.json)"
    assert link in results_table.render_results("book/04-training.ipynb")


@pytest.mark.parametrize(
    ("model", "training", "name"),
    [
        ({"decoder_options": {"channels": 64}}, {}, "doubling VNCA, cells with genome and age"),
        ({"decoder_options": {}, "components": 9}, {"samples": 1}, "doubling VNCA, learned prior"),
        (
            {"decoder_options": {}, "components": 9},
            {"samples": 5},
            "doubling VNCA, learned prior, importance-weighted training",
        ),
    ],
)
def test_what_is_not_in_the_paper_is_in_the_name(results, model, training, name):
    results(config={"model": model, "training": training})
    assert f"| **{name}** |" in results_table.render_results("README.md")


def test_the_table_of_recipes_has_a_row_for_each_way_to_go_on(results, tmp_path):
    row = {"nats": -85.123, "standard_error": 0.25, "elbo": -90.0, "elbo_standard_error": 0.5, "images": 1000}
    row |= {"num_samples": 128, "hardware": "two cores"}
    found = {"start": "conv-mnist", "latents": 320_000, "rows": {"as before": row, "both": {**row, "nats": -83.0}}}
    (tmp_path / "results" / "recipes.json").write_text(json.dumps(found))
    table = tables_of_bounds.render_recipes().splitlines()
    assert table[2:4] == ["| as before | −85.12 ± 0.25 | −90.00 ± 0.50 |", "| both | −83.00 ± 0.25 | −90.00 ± 0.50 |"]
    assert "320,000 decoded latents" in table[-1] and "1,000 test images" in table[-1]


def test_parameters_of_a_prior_stand_beside_those_of_the_decoder(results):
    results(parameters={"encoder": 5, "decoder": 74_368, "prior": 129_000})
    assert "| 74,368 + 129,000 |" in results_table.render_results("README.md")


def test_the_gap_is_that_between_the_end_of_the_log_and_the_test_images(results, tmp_path):
    more = {"elbo_standard_error": 0.24, "images_seen": 1_200_000}
    results(**more)
    results(name="better", elbo=-87.0, **more)
    weighted = {"model": {"decoder_options": {}}, "training": {"samples": 5}}
    others = {"few": {"images": 1000}, "prior": {"updates": 0}, "weighted": {"config": weighted}}
    for name, changes in others.items():
        results(**{"name": name, **more, **changes})
    for name, last in {"doubling-mnist": -87.0, "better": -86.5}.items():
        folder = tmp_path / "vnca" / "pretrained" / name
        folder.mkdir(parents=True)
        elbos = [-300.0] * 10 + [last - 1, last + 1] * 20  # 40 records at the end of the run
        records = [json.dumps({"update": 20 * number, "nats": elbo}) for number, elbo in enumerate(elbos, start=1)]
        records.append(json.dumps({"update": 20 * len(elbos) + 3, "nats": -10.0}))  # of three batches only
        (folder / "metrics.jsonl").write_text("\n".join([*records, ""]))
    assert tables_of_bounds.render_gap().splitlines()[2:] == [
        "| `better` | −86.50 ± 0.16 | −87.00 ± 0.24 | 0.50 | 20 times |",
        "| `doubling-mnist` | −87.00 ± 0.16 | −88.10 ± 0.24 | 1.10 | 20 times |",
    ]


def test_the_table_of_sharing_has_the_mean_and_the_spread_of_runs(results, tmp_path):
    row = {"decoder": "one rule", "updates": 10, "parameters": 1234, "hardware": "two cores"}
    row |= {"elbo_images": 10_000, "bound_images": 1000, "num_samples": 16}
    figures = [(-101.0, -90.0), (-103.0, -91.0)]
    rows = [{**row, "updates": 40, "elbo": -80.0, "bound": -70.0}]  # one run: no spread
    rows += [{**row, "elbo": elbo, "bound": bound} for elbo, bound in figures]
    (tmp_path / "results" / "sharing.json").write_text(json.dumps({"data": "binarized-mnist", "rows": rows}))
    text = tables_of_bounds.render_sharing().splitlines()
    assert text[2:4] == [
        "| one rule | 1,234 | 10 | 2 | −102.0 ± 1.4 | −90.5 ± 0.7 |",
        "| one rule | 1,234 | 40 | 1 | −80.0 | −70.0 |",
    ]
    assert "10,000 test images" in text[-1] and "16 samples; two cores" in text[-1]


def test_a_black_hole_leaves_the_ink_that_was_in_it():
    # Two of ten pixels are hole, one of the two was ink: cells of one half are half wrong in the hole, black ones too.
    curve = {"error": {"everywhere": [0.1], "inside": [0.5]}, "flips": {"inside": [0.5]}}
    assert tables_of_cells.error_of_black(curve) == pytest.approx(0.1)


def test_the_table_of_proposals_shows_how_the_trust_was_chosen_and_what_it_brings(results, tmp_path):
    row = {"model": "small", "split": "train", "images": 60, "machine": "two cores", "precision": "float32"}
    rows = [{**row, "trust": trust, "gain": [gain, 0.04]} for trust, gain in ((0.5, -0.123), (0.8, 0.25))]
    row |= {"split": "test", "trust": 0.8, "images": 1000, "nats": -86.0, "nats_wider": -85.5}
    rows += [{**row, "gain": [0.5, 0.1]}, {**row, "model": "large", "gain": [0.75, 0.2], "precision": "bfloat16"}]
    found = {"data": "binarized-mnist", "num_samples": 128, "rows": rows}
    (tmp_path / "results" / "proposals.json").write_text(json.dumps(found))
    results(name="large", nats=-88.0)
    results(name="small", images=1000)
    text = tables_of_bounds.render_proposals().splitlines()
    assert text[0] == "What `small` gains on 60 training images, in nats, by the trust:"
    assert text[2:5] == ["| 0.8 | 0.5 |", "|---|---|", "| 0.25 ± 0.04 | −0.12 ± 0.04 |"]
    assert text[6].endswith("with a trust of 0.8:")
    assert text[10:12] == [
        "| `large` | 1,000 | −86.00 | −85.50 | 0.75 ± 0.20 | −87.25 |",
        "| `small` | 1,000 | −86.00 | −85.50 | 0.50 ± 0.10 |  |",
    ]
    assert text[-1].endswith("`binarized-mnist`, 128 samples; two cores, bfloat16; two cores, float32.")
    assert "bold" not in text[-1]
    wider = RUN | {"name": "large", "nats": -87.2, "evaluation": {"precision": "float32", "trust": 0.8}}
    (tmp_path / "results" / "large-trust-0.8.json").write_text(json.dumps(wider))
    text = tables_of_bounds.render_proposals().splitlines()
    assert text[10].endswith("| 0.75 ± 0.20 | **−87.20** |") and "what was measured, if in bold" in text[-1]


def pretrained(*pattern: str) -> list:
    """The folders of shipped weights of that pattern."""
    return sorted(path.parent for path in (contents.ROOT / "vnca" / "pretrained").glob("/".join([*pattern, "*.json"])))


def test_the_page_of_models_has_each_of_them_once():
    page = (contents.ROOT / "book" / "models.md").read_text()
    listed = re.findall(r"^\| \[`([\w-]+)`\]", page, re.MULTILINE)
    assert sorted(listed) == sorted(folder.name for folder in [*pretrained("*"), *pretrained("automata", "*")])
    assert set(vnca.available()) <= set(listed)


@pytest.mark.parametrize("folder", pretrained("*"), ids=lambda folder: folder.name)
def test_what_the_page_says_of_a_model_is_in_its_configuration(folder):
    config, run = json.loads((folder / "config.json").read_text()), contents.result(folder.name)
    assert run["config"] == {"model": config["model"], "training": config["training"]}
    assert run.get("before") == config["run"].get("before")
    model, text = config["model"], model_cards.described(run, vnca.available())
    numbers = {model["latent_size"], *model["decoder_options"].values()}
    numbers |= {model.get(key, 0) for key in ("components", "correlated")} - {0}
    assert {int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", text.split("Began")[0])} == numbers
    assert ("standard normal prior" in text) == (not model.get("components"))
    if model["decoder"] != "conv":
        assert ("small" in text.split(".")[0]) == folder.name.endswith("-small")
        assert ("the paper's size" in text) == (not folder.name.endswith("-small"))


def test_what_a_model_is_follows_from_its_runs():
    model = {"decoder": "doubling", "latent_size": 256, "decoder_options": {}, "components": 1000, "correlated": 24}
    own, training = {**RUN, "name": "ours"}, {"samples": 5}
    plain = {**own, "config": {"model": {**model, "components": 0}, "training": {}}}
    assert model_cards.described(plain, ["other"]) == (
        "Doubling VNCA, standard normal prior; the paper's size, latent of 256 numbers. Began with random weights."
    )
    earlier = {"init_from": "ours", "before": [{"init_from": "runs/first", "before": [{"encoder_from": "other"}]}]}
    mixed = {**own, "config": {"model": model, "training": training}, "before": [earlier]}
    assert model_cards.described(mixed, ["ours", "other"]) == (
        "Doubling VNCA, importance-weighted training, learned prior of 1,000 Gaussians with full covariances in 24 "
        "numbers; the paper's size, latent of 256 numbers. Began with the encoder of `other`."
    )
    fitted = {**mixed, "updates": 0, "before": [{"init_from": "other"}]}
    assert model_cards.described(fitted, ["ours", "other"]).endswith("Differs from `other` in its prior alone.")
    small = {"decoder": "persistent", "latent_size": 8, "decoder_options": {"min_steps": 2, "max_steps": 4, "steps": 3}}
    assert model_cards.size_of(small) == ["small", "latent of 8 numbers", "3 steps in each stage", "2 to 4 in the last"]
    with pytest.raises(ValueError, match="unknown"):
        model_cards.size_of({**small, "decoder_options": {"unknown": 1}})


def test_where_a_model_is_used_is_found_in_the_book(results, tmp_path):
    (tmp_path / "book").mkdir()
    part = {"chapters": [{"file": "book/one"}, {"file": "book/two"}]}
    (tmp_path / "_toc.yml").write_text(json.dumps({"root": "book/intro", "parts": [part]}))
    (tmp_path / "book" / "intro.md").write_text('<div data-live="grow" data-model="a-small b">')
    table = "<!-- results:begin -->\n`a`\n<!-- results:end -->"
    cells = {
        "one": [nbformat.v4.new_code_cell('load("a")'), nbformat.v4.new_markdown_cell(table + " and `b-small`")],
        "two": [nbformat.v4.new_markdown_cell('`a` <div data-live="draw" data-model="a-encoder">')],
    }
    for name, of_page in cells.items():
        nbformat.write(nbformat.v4.new_notebook(cells=of_page), tmp_path / "book" / f"{name}.ipynb")
    texts = model_cards.sources()
    assert (
        model_cards.used_in("a", texts)
        == "*code:* [1](one.ipynb); *live:* [2](two.ipynb) (`draw`); *text:* [2](two.ipynb)"
    )
    assert model_cards.used_in("b", texts) == "*live:* [first page](intro.md) (`grow`)"
    assert model_cards.used_in("c", texts) == ""


def test_each_shipped_model_is_used_in_the_book():
    texts = model_cards.sources()
    names = [folder.name for folder in [*pretrained("*"), *pretrained("automata", "*")]]
    assert not [name for name in names if not model_cards.used_in(name, texts)]


def test_readme_and_the_pages_agree_on_where_the_book_is_published():
    config = yaml.safe_load((contents.ROOT / "_config.yml").read_text())
    assert config["html"]["baseurl"] == contents.site()
    assert f"<{contents.site()}>" in (contents.ROOT / "README.md").read_text()
    workflow = yaml.safe_load((contents.ROOT / ".github" / "workflows" / "pages.yml").read_text())
    steps = workflow["jobs"]["publish"]["steps"]
    (published,) = [step["with"]["path"] for step in steps if "upload-pages-artifact" in step.get("uses", "")]
    assert contents.ROOT / published == build_book.BUILD / "html"
    picture = config["sphinx"]["config"]["myst_html_meta"]["property=og:image"]
    assert picture == f"{contents.site()}_static/{readme.PICTURE.name}"
    assert str(readme.PICTURE.parent.relative_to(contents.ROOT)) in config["sphinx"]["config"]["html_static_path"]


def test_what_came_before_a_run_counts(results):
    first = {"init_from": "runs/first", "updates": 5, "minutes": 20.0, "before": [{"updates": 1, "minutes": 0.5}]}
    results(before=[first])
    assert "| 100,006 updates, 82 min in 3 runs | one H200 |" in results_table.render_results("README.md")


def test_other_data_never_share_a_table_with_published_figures(results):
    results(data="digits", nats=-60.0)
    published, own = results_table.render_results("README.md").split("`digits`, test split")
    assert "no run of this repository is recorded yet" in published
    assert "−60.00" in own and "Palm" not in own


def test_benchmarks_are_no_results(results, tmp_path):
    (tmp_path / "results" / "speed.json").write_text('{"name": "speed", "seconds": 3}')
    assert "speed" not in results_table.render_results("README.md")


@pytest.mark.parametrize(
    "name, weights",
    [
        ("conv-small", "conv-mnist-small"),
        ("conv", "conv-mnist"),
        ("conv-wide", "conv-mnist-wide"),
        ("mature-small", "maturing-mnist-small"),
        ("finetune-small", "best-mnist-small"),
        ("best", "doubling-mnist"),
    ],
)
def test_what_a_preset_promises_was_measured(name, weights):
    run, preset = contents.result(weights), PRESETS[name]
    config = run["config"]
    trained = TrainConfig(ModelConfig(**config["model"]), **config["training"])
    if name == "best":  # its run was bounded by minutes; the preset makes as many updates as it did
        trained = replace(trained, updates=run["updates"], minutes=None)
    if name == "finetune-small":  # the name it started from stood for what `refine-small` made, and now for its result
        assert trained.init_from == weights
        trained = replace(trained, init_from=preset.config.init_from)
    assert trained == preset.config
    assert preset.minutes == round(run["minutes"]) and preset.nats == round(run["nats"], 1)
    assert preset.hardware.split()[-1] in run["hardware"]


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("fit-prior", "best-mnist"),
        ("fit-prior-small", "fitted-mnist-small"),
        ("refit-small", "refitted-mnist-small"),
        ("fit-prior-persist", "fitted-persistent-mnist-small"),
        ("refine-plain", "weighted-mnist"),
    ],
)
def test_a_preset_made_the_shipped_weights_that_were_measured_on_few_images(name, weights):
    run, preset = contents.result(weights), PRESETS[name]
    config = run["config"]
    assert TrainConfig(ModelConfig(**config["model"]), **config["training"]) == preset.config
    assert preset.minutes == (round(run["minutes"]) or run["minutes"])
    assert preset.hardware.split()[-1] in run["hardware"]
    assert preset.nats is None, "measured on few images, which is no figure to expect"


def test_the_small_prior_of_the_first_page_is_worth_what_chapter_7_says():
    run = contents.result("fitted-persistent-mnist-small")
    model, against = run["config"]["model"], run["against"]
    assert (against["name"], run["images"]) == ("persistent-mnist-small", 1000)
    assert (model["components"], model["correlated"]) == (40, 16)
    assert against["difference"] - 2 * against["difference_standard_error"] > 2.5


def test_the_preset_that_came_before_the_last_one_is_in_the_record_of_that_one():
    run, preset = contents.result("best-mnist-small"), PRESETS["refine-small"]
    earlier = run["before"][0]
    assert TrainConfig(preset.config.model, **earlier["training"]) == preset.config
    assert preset.minutes == round(earlier["minutes"])
    assert preset.hardware.split()[-1] in earlier["hardware"]


def test_the_best_small_model_is_above_the_published_ones_as_chapter_7_says():
    run = contents.result("best-mnist-small")
    published = published_vncas()
    assert len(published) == 2 and run["nats"] > max(published)
    assert (run["images"], run["num_samples"]) == (10_000, 128), "as the published ones"
    assert 15.5 <= 1_182_208 / run["parameters"]["decoder"] < 16.5, "sixteen times the parameters"


def test_a_prior_alone_does_for_the_paper_size_what_chapter_7_says():
    run, small, plain = (contents.result(name) for name in ("best-mnist", "best-mnist-small", "doubling-mnist"))
    against = run["against"]
    assert against["name"] == "doubling-mnist" and run["parameters"]["decoder"] == plain["parameters"]["decoder"]
    least = plain["nats"] + against["difference"] - 2 * against["difference_standard_error"]
    published = max(published_vncas())
    assert least > small["nats"] and 1.5 < least - published < 2.5
    assert against["nats"] > plain["nats"], "easy images"
    assert run["config"]["model"]["components"] == 150 and run["config"]["model"]["correlated"] == 32
    assert run["updates"] == 0, "no other weight has changed"


def test_wider_proposals_bring_what_chapter_7_says():
    rows = contents.result("proposals")["rows"]
    tried = {row["trust"]: row["gain"] for row in rows if row["split"] == "train"}
    best = max(tried, key=lambda trust: tried[trust][0])
    assert best == 0.55 and tried[0.55][0] - tried[0.7][0] < tried[0.55][1], "about as much"
    assert tried[0.7][1] < tried[0.55][1], "the gain differs less from image to image"
    gains = {row["model"]: row["gain"] for row in rows if row["split"] == "test"}
    assert 0.35 < gains["best-mnist-small"][0] / gains["doubling-mnist-small"][0] < 0.65, "about half as much"
    short = min(published_vncas()) - contents.result("doubling-mnist")["nats"]
    more, error = gains["doubling-mnist"]
    assert 0.2 < short < 0.3 and more - 2 * error > short, "more than the quarter of a nat"
    plain, wide = (contents.result(f"doubling-mnist{ending}")["nats"] for ending in ("", "-trust-0.7"))
    assert wide - plain == pytest.approx(more, abs=error), "on all images as much as on the few"
    log = (contents.ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"{contents.signed(wide)} nats with them" in log and f"{contents.signed(plain)} from its posterior" in log
    paper, reproduction = sorted(published_vncas())
    assert 0.07 < wide - paper < 0.13, "a tenth of a nat above the paper's, in chapters 4 and 7"
    assert abs(wide - reproduction) < 0.05, "about that of the reproduction, in chapter 4"
    assert 0.3 < reproduction - plain < 0.37, "and a third of a nat below without, in chapter 4"


def test_bounds_lie_as_far_below_the_log_likelihood_as_chapter_7_says():
    short = {}
    for row in contents.result("gaps")["rows"]:
        figures = {name: torch.tensor(values) for name, values in row["figures"].items()}
        short[row["model"]] = {name: evaluation.mean_and_error(figures["upper"] - v) for name, v in figures.items()}
        gap, searched = short[row["model"]]["elbo"][0], short[row["model"]]["elbo_searched"][0]
        assert 0.25 < (gap - searched) / gap < 0.5, "the encoder's part of it"
        assert 0.7 < short[row["model"]]["bound"][0] < 2, "about a nat or more"
        assert 0 < short[row["model"]]["lower"][0] < 0.3, "the two sides are close"
    conv, small, best = (short[name] for name in ("conv-mnist", "doubling-mnist-small", "best-mnist-small"))
    assert abs(conv["bound"][0] - small["bound"][0]) < conv["bound"][1], "which decides nothing"
    paired = tables_of_bounds.paired_gaps(contents.result("gaps")["rows"])
    assert paired.startswith("`doubling-mnist-small` less `conv-mnist`, image by image on the 32 that both")
    found = re.findall(r"([−\d.]+) ± ([\d.]+)", paired)
    assert len(found) == 2
    assert all(abs(float(more.replace("−", "-"))) < float(error) for more, error in found)
    assert best["bound"][0] < min(conv["bound"][0], small["bound"][0]), "comes closer"
    gains = [each["elbo"][0] - each["elbo_searched"][0] for each in (best, conv, small)]
    assert gains[0] >= max(gains[1:]), "at least as much"


def test_a_classifier_finds_samples_as_good_as_chapter_7_says():
    table = contents.result("samples")
    rows = {row["model"]: row for row in table["rows"]}
    conv, small, best = (rows[name] for name in ("conv-mnist", "doubling-mnist-small", "best-mnist-small"))
    for row in (conv, small):
        assert 0.4 < 1 - row["sure"][0] < 0.5, "unsure in nearly half of the cases"
        assert row["frechet"] > 4 * best["frechet"]
    assert small["sure"][0] <= conv["sure"][0] and small["frechet"] >= conv["frechet"], "no better"
    learned = [row for name, row in rows.items() if name.startswith(("best", "fitted", "refitted"))]
    assert len(learned) >= 3
    for row in learned:
        assert table["test"]["sure"][0] - row["sure"][0] < 0.1 and row["frechet"] < 1.5 * table["test"]["frechet"]
        assert all(row["frechet"] < other["frechet"] / 3 for other in rows.values() if other not in learned)


def test_most_of_what_the_small_cells_gained_is_the_prior_as_chapter_7_says():
    plain, fitted, refitted = (contents.result(f"{name}-mnist-small") for name in ("doubling", "fitted", "refitted"))
    assert plain["images"] == fitted["images"] == refitted["images"] == 1000
    assert abs(fitted["against"]["nats"] - plain["nats"]) < 0.01, "the same images"
    share = fitted["against"]["difference"] / (refitted["nats"] - plain["nats"])
    assert 0.65 < share < 0.8, "about three quarters"
    against = refitted["against"]
    assert against["name"] == "best-mnist-small" and 0.4 < against["difference"] < 0.6, "half a nat"


def test_four_models_are_above_the_paper_by_less_than_half_a_nat_to_two_as_chapter_7_says():
    above = {}
    for run in map(runs.expected_on_all, runs.measured_runs()):
        if run["images"] == 10_000 and run["nats"] > -84.15:
            above[run["name"]] = run["nats"] + 84.23
    assert set(above) == {"best-mnist", "best-mnist-small", "refitted-mnist-small", "weighted-mnist"}
    assert 0.25 < min(above.values()) < 0.5 and max(above.values()) < 2.3


def test_the_weighted_bound_does_for_the_paper_model_what_chapter_7_says():
    run, plain = contents.result("weighted-mnist"), contents.result("doubling-mnist")
    assert run["config"]["model"] == plain["config"]["model"] | {"correlated": 0}, "and no learned prior"
    training, against = run["config"]["training"], run["against"]
    assert (run["updates"], training["batch_size"], training["samples"], run["images"]) == (505, 16, 5, 256)
    assert against["name"] == "doubling-mnist" and against["difference"] > 0.5, "more than half a nat"
    assert against["elbo_difference"] < 0
    expected = runs.expected_on_all(run)["nats"] - 2 * against["difference_standard_error"]
    assert expected > max(published_vncas()), "above both published figures"
    ours, wide = (
        load_file(contents.ROOT / "results" / f"{name}.safetensors")
        for name in ("weighted-mnist", "doubling-mnist-trust-0.7")
    )
    assert torch.equal(wide["indices"], torch.arange(10_000, dtype=torch.int32)), "so that an index is a row"
    more = ours["iwaes"] - wide["iwaes"][ours["indices"].long()]
    assert 0.2 < more.mean() < 0.45, "about a third of a nat"


def test_an_update_on_a_gpu_is_as_fast_as_chapter_4_says():
    found = contents.result("train_step-nvidia-h200")
    rows = next(step["rows"] for step in found["steps"] if (step["model"], step["batch_size"]) == ("paper", 128))
    speed = {name: rows[name]["images_per_second"] for name in ("plain", "plain+tf32", "ours+graph")}
    assert 14.5 <= speed["ours+graph"] / speed["plain"] < 15.5, "fifteen times, in its summary and in CHANGELOG.md"
    assert 3.5 <= speed["ours+graph"] / speed["plain+tf32"] < 3.8, "more than three and a half times"


def curve(steps, **values):
    return {"steps": steps, **values, "hardware": "two cores, float32"}


def test_the_table_of_healing_reads_each_figure_at_its_step(results, tmp_path):
    recovery = [0, 8, 16, 64, 256]
    stay = curve([0, 50, 200, 1000], bits_per_pixel=[0.1, 23456.0, None, 3.0])
    errors = {"everywhere": [0.5, 0.4, 0.31, 0.22, 0.13], "inside": [9.0] * 5}
    rounds = [{"steps": [0, 16, 64], "error": {"everywhere": [value] * 3}} for value in (0.9, 0.8)]
    parts = {
        "stability": stay,
        **{
            f"recovery {share}%": curve(recovery, error=errors, flips={"inside": [0.2, 0.19, 0.18, 0.17, None]})
            for share in (25, 50, 75)
        },
    }
    entry = {"images": 7, "data": "digits", "parts": parts | {"repeated": curve([], rounds=rounds)}}
    (tmp_path / "results" / "healing.json").write_text(json.dumps({"one": entry, "two": entry}))
    table, rest = tables_of_cells.render_healing("README.md").split("<details>")
    rows = table.splitlines()
    assert rows[0] == "| measured | `one` | `two` |"
    assert rows[2] == r"| $\log p(x \mid z)$, grown | −54.3 | −54.3 |"  # 0.1 bits in each of 784 pixels
    assert rows[3] == "| 50 steps later | below −10,000 | below −10,000 |"
    assert rows[4] == "| 200 steps later | overflow | overflow |"
    assert "| error, 25% damaged | 0.500 → 0.310 → 0.220 → 0.130 |" in rows[6]
    # 0.2 of the hole, which is 0.5 / 9 of all
    assert rows[7] == "| error if the hole of 25% were black | 0.011 | 0.011 |"
    assert "| wrong pixels in the hole, 75% damaged | 0.200 → 0.180 → 0.170 → overflow |" in rows[9]
    assert rows[-2] == "Means over 7 test images of `digits`, two cores, float32."
    assert "| error, 50% damaged | 0.500 → 0.310 → 0.220 → 0.130 |" in rest and "25% damaged" not in rest
    assert "five times, after the last | 0.800 → 0.800 → 0.800 |" in rest


def test_pictures_fade_and_wounds_close_as_chapter_5_says():
    parts = contents.result("healing")["regrowing-mnist-small"]["parts"]
    nats = dict(zip(parts["stability"]["steps"], parts["stability"]["bits_per_pixel"], strict=True))
    lost = {step: (nats[step] - nats[0]) * math.log(2) * 28 * 28 for step in (200, 1000)}
    assert 11 < lost[200] < 13 and 57 < lost[1000] < 63, "a dozen nats in 200 steps and sixty in a thousand"


def test_holes_cover_as_much_of_the_image_as_chapter_5_says():
    parts = contents.result("healing")["regrowing-mnist-small"]["parts"]
    errors = {share: parts[f"recovery {share}%"]["error"] for share in (25, 50, 75)}
    covered = {share: error["everywhere"][0] / error["inside"][0] for share, error in errors.items()}
    assert covered == {share: pytest.approx(part, abs=0.01) for share, part in ((25, 0.31), (50, 0.64), (75, 0.92))}


def test_the_table_of_scaling_has_a_row_for_each_size(results, tmp_path):
    def axis(first, last, exponent, arithmetic):
        points = [{"value": value, "multiply_adds": 1e9, "seconds_per_image": 6 / value} for value in (first, last)]
        return {"points": points, "exponent": exponent, "arithmetic_exponent": arithmetic}

    axes = {"channels": axis(32, 512, 1.683, 2.0), "batch": axis(1, 32, -0.25, 0.0)}
    (tmp_path / "results" / "scaling-one.json").write_text(json.dumps({"hardware": "two cores", "axes": axes}))
    rows = tables_of_speed.render_scaling().splitlines()[2:]
    assert rows == [
        "| channels 32 … 512 | 1.68 | 2.00 | 32, 512 | two cores |",
        "| batch 1 … 32 | −0.25 | 0.00 | 1, 32 | two cores |",
    ]


def test_the_shares_of_a_data_sheet_that_chapter_4_counts_on_were_measured():
    found = contents.result("train_step-nvidia-h200")
    rows = {step["batch_size"]: step["rows"] for step in found["steps"] if step["model"] == "paper"}
    peak = 989e12  # of an H200, as of an H100
    assert all(1 / 5 < rows[size]["ours+graph"]["flops_per_second"] / peak < 1 / 3 for size in (64, 128)), "a quarter"
    assert rows[32]["ours+graph"]["flops_per_second"] / peak == pytest.approx(1 / 5, rel=0.1), "a fifth"
    assert rows[128]["ours+layers"]["flops_per_second"] / peak == pytest.approx(1 / 8, rel=0.1), "an eighth"


def test_an_evaluation_takes_as_long_as_chapter_4_says():
    evaluation = contents.result("doubling-mnist")["evaluation"]
    assert evaluation["machine"] == "NVIDIA H200" and 1.5 < evaluation["minutes"] < 2.5, "two minutes"
    for name in ("best-mnist", "weighted-mnist"):  # of the same size
        run = contents.result(name)
        assert run["evaluation"]["machine"].endswith("2 cores")
        days = run["evaluation"]["minutes"] / run["images"] * 10_000 / (24 * 60)
        assert 0.45 < days < 1.1, "half a day to a day"


def test_the_choice_of_recipes_has_flattered_no_model_as_chapter_4_says():
    note = results_table.note_on_choice(results_table.measured_runs())
    changes = re.findall(r"`([\w-]+)` −[\d.]+ \((−[\d.]+)\)", note)
    assert [name for name, _ in changes] == ["best-mnist-small", "conv-mnist"]
    assert len({change for _, change in changes}) == 1, "both fall by as much"
    best, start = (contents.result(name)["nats"] for name, _ in changes)
    assert best - start > 3, "a lead of more than three nats"


def test_the_vnca_is_ahead_on_new_images_as_chapter_4_says():
    cells, convolutional = (contents.result(name)["elbo"] for name in ("doubling-mnist", "conv-mnist-wide"))
    assert 0.3 < cells - convolutional < 0.4, "a third of a nat"
    trained = [tables_of_bounds.training_elbo(name)[0] for name in ("doubling-mnist", "conv-mnist-wide")]
    assert abs(trained[0] - trained[1]) < 0.1, "equally good on the images that they were trained on"


def test_figures_on_the_other_images_follow_from_those_on_all_and_on_some(results, tmp_path):
    start = {"images": 1000, "nats": -80.0}
    (tmp_path / "results" / "recipes.json").write_text(
        json.dumps({"start": "doubling-mnist", "rows": {"not at all": start}})
    )
    results(nats=-89.0)
    results(name="beside", images=1000, against={"name": "other", "nats": -70.0})
    results(name="few", images=128, against={"name": "other", "nats": -60.0})
    results(name="other", nats=-70.0)
    results(name="alone")
    note = results_table.note_on_choice(results_table.measured_runs())
    assert note.endswith("on all: `doubling-mnist` −90.00 (−1.00), `other` −70.00 (0.00).")
    assert "On the 9,000 others" in note and "alone" not in note


PIXELS = {"pixels": "those of the test"}
IDENTITY = PIXELS | {"num_samples": 9, "chains": 3, "iterations": 5, "precision": "float32"}


def write_rows(folder, name, *rows):
    rows = [{"mask": "stroke", "identity": PIXELS, "decoder": None, **row} for row in rows]
    (folder / "results" / f"{name}.json").write_text(json.dumps({"rows": rows, "images": 5, "data": "digits"}))


def test_the_table_of_inpainting_has_the_best_model_first_and_its_bounds(results, tmp_path):
    bounds = {"lower": [-0.35, 0.01], "upper": [-0.25, 0.01]}
    ours = {"model": "ours", "decoder": "conv", "bounds": bounds, "identity": IDENTITY, "machine": "M"}
    write_rows(
        tmp_path,
        "inpainting",
        {"model": "pixel mean", "nats_per_pixel": [-0.5, 0.01]},
        {"nats_per_pixel": [-0.3, 0.01], **ours},
    )
    lines = tables_of_cells.render_inpainting().splitlines()
    assert [line for line in lines if line.startswith("| `")] == [
        "| `ours` | −0.300 ± 0.010 (−0.350 to −0.250) |",
        "| `pixel mean` | −0.500 ± 0.010 |",
    ]
    assert lines[-1].startswith("5 test images of `digits`, 9 latents for each term, 3 chains of 5 iterations")
    assert lines[-1].endswith("; M, float32.")


def test_the_tables_of_completions_have_errors_promises_and_how_far_behind(results, tmp_path):
    def row(model, squared, promised, behind, **more):
        figures = {"squared_error": squared, "promised_error": promised, "behind_neighbors": behind}
        return {"model": model, **{name: [value, 0.01] for name, value in figures.items()}, **more}

    ours = {"decoder": "conv", "identity": IDENTITY, "machine": "M"}
    write_rows(
        tmp_path,
        "completions",
        row("neighbors", 0.3, 0.25, 0),
        row("pixel mean", 0.5, 0.5, 0.2),
        row("ours", 0.125, 0.15, -0.175, **ours),
    )
    lines = tables_of_cells.render_completions().splitlines()
    assert [line for line in lines if line.startswith("| `")] == [
        "| `ours` | 0.125 ± 0.010 (0.150) |",
        "| `neighbors` | 0.300 ± 0.010 (0.250) |",
        "| `pixel mean` | 0.500 ± 0.010 (0.500) |",
        "| `ours` | −0.175 ± 0.010 |",
        "| `pixel mean` | 0.200 ± 0.010 |",
    ]
    assert lines[-1] == (
        "5 test images of `digits`, two independent means of 3 chains of 5 iterations each; M, float32."
    )


@pytest.mark.parametrize("setting, decoder", [("chains", "conv"), ("pixels", "conv"), ("pixels", None)])
def test_figures_of_different_settings_are_not_put_into_one_table(results, tmp_path, setting, decoder):
    rows = [
        {"model": "one", "decoder": "conv", "identity": IDENTITY, "machine": "M"},
        {"model": "two", "decoder": decoder, "identity": {**IDENTITY, setting: 1}, "machine": "M"},
    ]
    write_rows(tmp_path, "completions", *rows)
    with pytest.raises(ValueError, match="too many values"):
        tables_of_cells.render_completions()


def test_a_notebook_is_filled_cell_by_cell_and_stays_a_notebook(results, tmp_path, monkeypatch):
    monkeypatch.setitem(readme.PARTS, "healing", lambda page: f"a table for {page}")
    marked = "before\n<!-- healing:begin -->\nold\n<!-- healing:end -->\nafter"
    cells = [nbformat.v4.new_markdown_cell(marked), nbformat.v4.new_code_cell(marked)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "page.ipynb")
    text = readme.filled("page.ipynb")
    markdown, code = nbformat.reads(text, as_version=4).cells
    assert markdown.source == marked.replace("old", "a table for page.ipynb")
    assert code.source == marked, "code is left alone"
    (tmp_path / "page.ipynb").write_text(text)
    assert readme.filled("page.ipynb") == text


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A small repository whose build does nothing but note that it ran; `repository.output` is what it computed."""
    root = tmp_path / "repository"
    for folder in ("vnca", "book/_ext"):
        (root / folder).mkdir(parents=True)
    (root / "vnca" / "vae.py").write_text("old")
    output = root / "_build" / "output"
    monkeypatch.setattr(build_book, "ROOT", root)
    monkeypatch.setattr(build_book, "BUILD", root / "_build")
    monkeypatch.setattr(build_book, "STAMP", root / "_build" / "computed-with")
    monkeypatch.setattr(build_book, "CACHE", root / "_build" / ".jupyter_cache")
    monkeypatch.setattr(build_book.contents, "chapters", lambda: sorted((root / "book").glob("*.ipynb")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("VNCA_DATA", str(tmp_path / "data"))

    here = SimpleNamespace(root=root, output=output, data=tmp_path / "data", status=0, while_running=lambda: None)

    def run(command, **_):
        if "build" in command:
            output.touch()
            here.while_running()
        return SimpleNamespace(returncode=here.status)

    monkeypatch.setattr(build_book.subprocess, "run", run)
    return here


def kept(repository) -> bool:
    """Whether the output of one build is still there when the next begins."""
    repository.output.write_text("mark")
    build_book.build()
    return repository.output.read_text() == "mark"


def test_output_is_kept_while_nothing_changes(repository):
    build_book.build()
    assert kept(repository)


@pytest.mark.parametrize("name", ["vnca/vae.py", "vnca/pretrained/small/model.safetensors"])
def test_output_is_dropped_after_a_change(repository, name):
    build_book.build()
    (repository.root / name).parent.mkdir(parents=True, exist_ok=True)
    (repository.root / name).write_text("new")
    assert not kept(repository)
    assert kept(repository)


def test_output_is_dropped_after_a_change_of_the_environment(repository, monkeypatch):
    build_book.build()
    monkeypatch.setattr(build_book, "installed", lambda: ["torch==99"])
    assert not kept(repository)
    assert kept(repository)


def test_output_is_dropped_when_data_come_or_go(repository):
    build_book.build()
    repository.data.mkdir()
    (repository.data / "binarized_mnist_train.amat").write_text("0 1")
    assert not kept(repository)
    (repository.data / "binarized_mnist_train.amat").unlink()
    assert not kept(repository)


def test_a_change_while_the_chapters_run_counts_for_the_next_build(repository):
    repository.while_running = lambda: (repository.root / "vnca" / "vae.py").write_text("new")
    build_book.build()
    repository.while_running = lambda: None
    assert not kept(repository)


@pytest.fixture
def two_chapters(repository):
    """The first goes well and notes each time that it is executed; the second fails."""
    (repository.root / "_config.yml").write_text("execute: {timeout: 60}")
    note = repository.root / "note"
    for name, code in [("good", f"open({str(note)!r}, 'a').write('x'); print(6 * 7)"), ("bad", "1 / 0")]:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
        nbformat.write(notebook, repository.root / "book" / f"{name}.ipynb")
    return SimpleNamespace(
        good=repository.root / "book" / "good.ipynb", bad=repository.root / "book" / "bad.ipynb", note=note
    )


def test_the_builder_finds_what_the_chapters_computed(repository, two_chapters, capsys):
    build_book.build()
    assert build_book.is_executed(two_chapters.good) and not build_book.is_executed(two_chapters.bad)
    _, notebook = get_cache(build_book.CACHE).merge_match_into_notebook(nbformat.read(two_chapters.good, as_version=4))
    assert notebook.cells[0].outputs[0].text == "42\n"
    assert "bad.ipynb: failed" in capsys.readouterr().out


def test_a_chapter_whose_kernel_dies_is_left_to_the_builder(repository, two_chapters, capsys):
    notebook = nbformat.read(two_chapters.bad, as_version=4)
    notebook.cells[0].source = "import os; os._exit(1)"
    nbformat.write(notebook, two_chapters.bad)
    assert build_book.build() == 0
    assert build_book.is_executed(two_chapters.good) and not build_book.is_executed(two_chapters.bad)
    assert "bad.ipynb: its kernel died" in capsys.readouterr().out


def test_a_chapter_is_executed_again_only_if_its_code_changed(repository, two_chapters):
    build_book.build()
    build_book.build()
    assert two_chapters.note.read_text() == "x"
    notebook = nbformat.read(two_chapters.good, as_version=4)
    notebook.cells[0].source += "\nprint(43)"
    nbformat.write(notebook, two_chapters.good)
    build_book.build()
    assert two_chapters.note.read_text() == "xx"


def test_a_build_with_warnings_fails_again_when_repeated(repository, capsys):
    repository.status = 1
    repository.while_running = (repository.root / "_build" / ".doctrees").mkdir
    assert build_book.main() == 1
    assert not (repository.root / "_build" / ".doctrees").exists()
    assert "not built cleanly" in capsys.readouterr().err


def test_a_doubling_vnca_that_was_trained_to_stay_does_what_chapter_5_says():
    entries = contents.result("healing")

    def nats(name: str, step: int) -> float:
        stability = entries[name]["parts"]["stability"]
        return -stability["bits_per_pixel"][stability["steps"].index(step)] * math.log(2) * 784

    def wrong(name: str, share: str, step: int) -> float:
        curve = entries[name]["parts"][f"recovery {share}"]
        return curve["flips"]["inside"][curve["steps"].index(step)]

    staying, maturing = "persistent-mnist-small", "maturing-mnist-small"
    assert all(nats(staying, 0) - nats(name, 0) > 20 for name in (maturing, "regrowing-mnist-small"))
    assert 3 < nats("doubling-mnist-small", 0) - nats(staying, 0) < 4
    assert 0 < nats(staying, 0) - nats(staying, 50) < 1
    assert nats(staying, 50) == nats(staying, 200) == nats(staying, 1000), "grown up"
    others = set(entries) - {staying}
    assert all(wrong(staying, "25%", 10) < wrong(name, "25%", step) for name in others for step in (16, 64, 192))
    assert all(wrong(staying, share, 64) > wrong(maturing, share, 64) for share in ("50%", "75%"))
    run = contents.result(staying)["against"]
    assert run["name"] == "doubling-mnist-small" and 1.5 < -run["difference"] < 2.5


def test_an_automaton_that_was_trained_anew_is_described_as_before():
    shipped = {"model": {"channels": 16, "hidden": 96}}
    anew = shipped | {"numbers": [1.0], "begin_with": None}  # as scripts/train_toadstool.py writes it
    assert model_cards.described_automaton(anew) == model_cards.described_automaton(shipped)
