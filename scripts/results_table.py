"""The table of results: our models and published ones, in nats per image."""

import math
from dataclasses import asdict

import contents
from contents import folded, result, signed
from runs import (
    expected_on_all,
    kind,
    measured_runs,
    note_on_expected,
    runs_of,
    sizes_of,
    trust_of,
    wider_name,
    wider_runs,
)

# Published figures, all in nats per image on the test set of MNIST; where nothing else is said, statically binarized.
PAPER = "[Palm et al. 2022](https://openreview.net/forum?id=7fFO4cMBx_9)"
REPRODUCTION = "[Aillet and Sondén 2023](https://openreview.net/forum?id=d7-ns6SZqp)"
NVAE = "[Vahdat and Kautz 2020](https://arxiv.org/abs/2007.03898)"
BIVA = "[Maaløe et al. 2019](https://arxiv.org/abs/1902.02102)"
CR_NVAE = "[Sinha and Dieng 2021](https://arxiv.org/abs/2105.14859)"
PUBLISHED = [
    (
        "NVAE, consistency regularization",
        "−76.93",
        f"{CR_NVAE}, as listed by Papers with Code, now closed; test set and samples not checked",
    ),
    ("NVAE", "about −78", f"{NVAE}; pixels drawn anew for each look, more samples"),
    ("BIVA", "about −78", f"{BIVA}, as listed by NVAE; BIVA's own code reads the fixed draw; more samples"),
    ("doubling VNCA", "−84.15", REPRODUCTION),
    ("doubling VNCA", "−84.23", PAPER),
    ("convolutional VAE", "−84.64", REPRODUCTION),
    ("regrowing (non-doubling) VNCA", "−89.3", REPRODUCTION),
    ("regrowing (non-doubling) VNCA", "−90.97", PAPER),
]

PUBLISHED_ON = ("binarized-mnist", "test", 10_000)  # data, split, images

# The runs of the paper's size, which want a GPU: the name of the weights and the preset that trains them.
WANTED = {"doubling-mnist": "best", "refined-mnist": "refine", "regrowing-mnist": "regrow"}

EXPECTED = (
    "A figure *expected from N images* is that of another model on all images, plus the mean difference between the "
    "two on the N images that both were measured on; how each was made is folded below."
)

WIDER = (
    "A row of *wider proposals* has the weights of the row above it. Its bound draws other latents (trust {trust}, "
    "which was chosen on training images with another model, as chapter 7 tells), and is nearer to the same "
    "log-likelihood. Published models would gain by that, too: compare them with the row above."
)

ELSEWHERE = (
    "Grown by faster code that is not in this repository: {names}. The bound of each image is kept beside the result, "
    "and a test computes some of them again with the package."
)


def own_row(run: dict, folder: str) -> str:
    sizes = sizes_of(run["parameters"]["decoder"], run["parameters"].get("prior", 0))
    measured = f", expected from {run['measured']['images']:,} images" if "measured" in run else ""
    if trust_of(run) < 1:  # another figure of a model that has its row
        what, nats, name = "the same, *wider proposals*", signed(run["nats"]), wider_name(run)
    else:
        what, nats, name = f"**{kind(run)}**", f"**{signed(run['nats'])}**", run["name"]
    return (
        f"| {what} | {nats} ± {run['standard_error']:.2f} ({run['num_samples']} samples{measured}) "
        f"| {signed(run['elbo'])} | {sizes} | [{name}]({folder}/{name}.json) |"
    )


def place_of(run: dict) -> float:
    """What a row is sorted by: the bound, and for one from wider proposals that of its model from the posterior."""
    if trust_of(run) == 1:
        return run["nats"]
    (plain,) = (each["nats"] for each in measured_runs() if each["name"] == run["name"])
    return math.nextafter(plain, -math.inf)  # right below it


def training_row(run: dict) -> str:
    """What it took to train a model, with all runs that it began with."""
    runs = runs_of(run)
    updates, minutes = (sum(each[key] for each in runs) for key in ("updates", "minutes"))
    spent = f"{updates:,} updates, {minutes:,.0f} min" + (f" in {len(runs)} runs" if len(runs) > 1 else "")
    machines = "; ".join(dict.fromkeys(each["hardware"] for each in reversed(runs) if "hardware" in each))
    return f"| `{run['name']}` | {spent} | {machines} |"


def wanted_row(name: str, preset: str) -> str:
    """A row for weights that are still to be trained."""
    import torch

    from vnca.presets import PRESETS
    from vnca.vae import build

    config = PRESETS[preset].config
    with torch.device("meta"):
        model = build(config.model)
    decoder, prior = (sum(p.numel() for p in part.parameters()) for part in (model.decoder, model.prior))
    planned = {"model": config.model.decoder, "config": {"model": asdict(config.model), "training": config.to_dict()}}
    return (
        f"| **{kind(planned)}**, the paper's size | not trained yet | | {sizes_of(decoder, prior)} "
        f"| preset `{preset}`, {config.updates:,} updates of {config.batch_size} images on a GPU |"
    )


def rows_without_runs(names: set[str]) -> dict[str, float]:
    """The rows of published models, with the figures they are sorted by, and of what we want to train at the end."""
    rows = {
        f"| {model} | {nats} | | | {source} |": float(nats.split()[-1].replace("−", "-"))
        for model, nats, source in PUBLISHED
    }
    return rows | {wanted_row(name, preset): -math.inf for name, preset in WANTED.items() if name not in names}


def rows_of_recipes(images: int, folder: str) -> tuple[dict[str, float], str]:
    """The row of a model that has figures on so many images and on all, and what they say about these images."""
    if not (contents.ROOT / "results" / "recipes.json").exists():
        return {}, ""
    found = result("recipes")
    part, whole = found["rows"]["not at all"], result(found["start"])
    if part["images"] != images:
        return {}, ""
    row = own_row(whole | part, folder).replace(f"/{found['start']}.json", "/recipes.json")  # the figure's own file
    return {row: part["nats"]}, (
        f", the same for each row, drawn at random. They are easier than most: `{found['start']}` has "
        f"{signed(part['nats'])} on them and {signed(whole['nats'])} on all {whole['images']:,}"
    )


def note_on_choice(runs: list[dict]) -> str:
    """What models have on the test images that recipes were not compared on, where it follows from their figures.

    That needs a figure on all images and one on those of `recipes.json`: there, or beside a model measured on them.
    """
    if not (contents.ROOT / "results" / "recipes.json").exists():
        return ""
    found = result("recipes")
    part = found["rows"]["not at all"]
    images, figures = part["images"], []
    some = {found["start"]: part["nats"]}
    some |= {
        run["against"]["name"]: run["against"]["nats"]
        for run in measured_runs()
        if "against" in run and run["images"] == images
    }
    for run in runs:
        if run["name"] not in some or run["images"] <= images or "measured" in run:
            continue
        nats = (run["images"] * run["nats"] - images * some[run["name"]]) / (run["images"] - images)
        figures.append(f"`{run['name']}` {signed(nats)} ({signed(nats - run['nats'])})")
    if not figures:
        return ""
    return (
        f"Recipes were compared on {images:,} of these images. On the {PUBLISHED_ON[2] - images:,} others, and in "
        f"brackets how much that is above or, with a minus, below the figure on all: {', '.join(figures)}."
    )


def render_results(page: str) -> str:
    """A table for each data set, split and number of images: figures on different images never share one.

    Published figures stand among ours on all images of the set they were measured on. That table is in sight, all else
    is folded below it.
    """
    # A page of the book does not have the folder beside it.
    folder = "results" if page == "README.md" else f"{contents.repository()}/blob/main/results"
    runs = sorted(map(expected_on_all, measured_runs()), key=lambda run: -run["nats"])
    wider = wider_runs()
    tables = {PUBLISHED_ON: []}
    for run in runs + wider:
        tables.setdefault((run["data"], run["split"], run["images"]), []).append(run)
    seen, below = [], []
    for (data, split, images), own in tables.items():
        rows, note = {own_row(run, folder): place_of(run) for run in own}, ""
        if (data, split, images) == PUBLISHED_ON:
            rows |= rows_without_runs({run["name"] for run in runs})
            note = "" if own else "; no run of this repository is recorded yet"
        elif (data, split) == PUBLISHED_ON[:2]:
            more, note = rows_of_recipes(images, folder)
            rows |= more
        head = ["| model | nats | ELBO | parameters of decoder + prior | from |", "|---|---|---|---|---|"]
        table = "\n".join([*head, *sorted(rows, key=rows.get, reverse=True)])
        text = f"`{data}`, {split} split, {images:,} images{note}:\n\n{table}"
        if (data, split, images) == PUBLISHED_ON:
            seen.append(text)
        else:
            below.append(folded(f"Figures on {images:,} images of {data}", text, page))
    if wider:
        seen.append(WIDER.format(trust=" and ".join(f"{trust:g}" for trust in sorted(set(map(trust_of, wider))))))
    if elsewhere := [wider_name(run) for run in wider if "program" in run["evaluation"]]:
        seen.append(ELSEWHERE.format(names=", ".join(f"`{name}`" for name in elsewhere)))
    if notes := [note_on_expected(run) for run in runs if "measured" in run]:
        seen.append(EXPECTED)
        below.append(folded("How each expected figure was made", "\n\n".join(notes), page))
    if note := note_on_choice(runs):
        seen.append(note)
    if rounded := [f"`{run['name']}`" for run in runs + wider if run["evaluation"]["precision"] != "float32"]:
        seen.append(f"Evaluated in 16 bits, all others in 32: {', '.join(dict.fromkeys(rounded))}.")
    if runs:
        head = ["| weights | training, with that of the encoder they began with | machines |", "|---|---|---|"]
        below.append(folded("How ours were trained", "\n".join([*head, *map(training_row, runs)]), page))
    return "\n\n".join(seen + below)
