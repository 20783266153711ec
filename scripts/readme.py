"""Fill the generated parts of README.md and of pages of the book, each between its markers; write the model cards.

The chapters come from `_toc.yml`, tables from `results/*.json`, the picture of growing digits from the shipped weights.
Run it after any of them changed: python scripts/readme.py
"""

import json
import math
import re
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "book" / "_static" / "growth.png"
ALT = (
    "Four digits, one to a row, growing from left to right: two by two cells that are all alike, the same four once "
    "they differ, then four by four, eight by eight, sixteen by sixteen, and the finished image of twenty-eight by "
    "twenty-eight pixels"
)

CAPTION = (
    "Four digits grow from random latents. Each begins as two by two cells that are all alike; every cell follows the "
    "same learned rule and sees only its neighbors; four times each cell becomes four."
)

MODELS = {
    "doubling": "doubling VNCA",
    "persistent": "doubling VNCA, trained to stay",
    "conv": "convolutional VAE",
    "regrowing": "regrowing (non-doubling) VNCA",
}

LEARNED = "learned prior"  # among the traits of a model

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
        f"{CR_NVAE}, as listed by Papers with Code; test set and samples not checked",
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


def repository() -> str:
    """The repository's address, from the one place that decides it."""
    # By hand, because tomllib came with Python 3.11.
    return re.search(r'^Repository = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[1]


def site() -> str:
    """Where GitHub publishes the pages of the repository."""
    owner, name = repository().split("/")[-2:]
    return f"https://{owner}.github.io/{name}/"


def pages() -> list[str]:
    """The pages of the book in the order of its table of contents, the first page first, without file endings."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return [toc["root"], *(entry["file"] for part in toc["parts"] for entry in part["chapters"])]


def chapters() -> list[Path]:
    """The notebooks of the book, in the order of its table of contents."""
    return [path for page in pages() if (path := ROOT / f"{page}.ipynb").exists()]


def title(notebook: Path) -> str:
    """The first heading of a chapter."""
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "markdown" and (heading := re.search(r"^# (.+)$", cell.source, re.MULTILINE)):
            return heading[1].strip()
    raise ValueError(f"{notebook.relative_to(ROOT)} has no heading that begins with '# '")


def colab(path: str) -> str:
    """The address that opens a notebook of this repository in Colab."""
    return f"{repository().replace('https://github.com', 'https://colab.research.google.com/github')}/blob/main/{path}"


def render_chapters() -> str:
    lines = ["| No. | Chapter | Takes | Run it |", "|---|---|---|---|"]
    measured = json.loads((ROOT / "results" / "chapters.json").read_text(encoding="utf-8"))
    slowest = {name: max(times.items(), key=lambda item: item[1]["seconds"]) for name, times in measured.items()}
    for number, notebook in enumerate(chapters(), start=1):
        path = notebook.relative_to(ROOT).as_posix()
        badge = f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab(path)})"
        figures = slowest[notebook.stem][1]
        takes = f"{figures['seconds'] / 60:.0f} min, {figures['gigabytes']:.1f} GB"
        lines.append(f"| {number} | [{title(notebook)}]({path}) | {takes} | {badge} |")
    machines = "; ".join(sorted({machine for machine, _ in slowest.values()}))
    minutes = sum(figures["seconds"] for _, figures in slowest.values()) / 60
    lines.append(f"\nTime and memory: each chapter by itself, {machines}; all of them take {minutes:.1f} minutes.")
    return "\n".join(lines)


def signed(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def runs_of(run: dict) -> list[dict]:
    """A run and those whose weights it started from, all the way back."""
    return [run, *(earlier for before in run.get("before", []) for earlier in runs_of(before))]


def traits(run: dict) -> list[str]:
    """What sort of model a run trained, together with those that it began with: the decoder first, then additions."""
    config = run["config"]
    trainings = [config["training"], *(earlier.get("training", {}) for earlier in runs_of(run)[1:])]
    additions = {
        "cells with genome and age": "channels" in config["model"]["decoder_options"],
        "planted genomes": config["training"].get("planted", False),
        LEARNED: config["model"].get("components", 0) > 0,
        "importance-weighted training": any(training.get("samples", 1) > 1 for training in trainings),
    }
    return [MODELS[run["model"]], *(name for name, added in additions.items() if added)]


def kind(run: dict) -> str:
    """The traits of a model in a line."""
    return ", ".join(traits(run))


def sizes_of(decoder: int, prior: int) -> str:
    """The parameters of a generative model: those of the decoder and, where it has any, of the prior."""
    return f"{decoder:,} + {prior:,}" if prior else f"{decoder:,}"


def own_row(run: dict, folder: str) -> str:
    sizes = sizes_of(run["parameters"]["decoder"], run["parameters"].get("prior", 0))
    measured = f", expected from {run['measured']['images']:,} images" if "measured" in run else ""
    return (
        f"| **{kind(run)}** "
        f"| **{signed(run['nats'])}** ± {run['standard_error']:.2f} ({run['num_samples']} samples{measured}) "
        f"| {signed(run['elbo'])} | {sizes} | [{run['name']}]({folder}/{run['name']}.json) |"
    )


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


def measured_runs() -> list[dict]:
    """The results of all models, by the names of their files."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "results").glob("*.json"))]
    return [result for result in results if "nats" in result]  # benchmarks have none


def expected_on_all(run: dict) -> dict:
    """A result with the figures that it can be expected to have on more images.

    A model that was measured on few images, against another one on the same, has the other's figures on all images plus
    the mean differences. Where no other one can tell, the result is returned as it is.
    """
    against = run.get("against", {})
    for other in measured_runs():
        same = other["name"] == against.get("name") and other["num_samples"] == run["num_samples"]
        if same and other["images"] > run["images"]:
            # Over images, as in all rows: how far the other one may be off, and the difference.
            error = (other["standard_error"] ** 2 + against["difference_standard_error"] ** 2) ** 0.5
            return run | {
                "nats": other["nats"] + against["difference"],
                "elbo": other["elbo"] + against["elbo_difference"],
                "standard_error": error,
                "images": other["images"],
                "measured": run,
            }
    return run


EXPECTED = (
    "A figure *expected from N images* is that of another model on all images, plus the mean difference between the "
    "two on the N images that both were measured on; how each was made is folded below."
)


def note_on_expected(run: dict) -> str:
    """How the figures of `expected_on_all` came about."""
    measured, against = run["measured"], run["against"]
    more, error = against["difference"], against["difference_standard_error"]
    name, other = f"`{run['name']}`", f"`{against['name']}`"
    return (
        f"{name} was measured on {measured['images']:,} images only, on which it has {signed(measured['nats'])}. "
        f"On the same images {other} has {signed(against['nats'])}: the difference is {signed(more)} ± {error:.2f}, "
        f"image by image. {other} has {signed(run['nats'] - more)} on all {run['images']:,}. So {name} can be expected "
        f"to have {signed(run['nats'])} on these."
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
    if not (ROOT / "results" / "recipes.json").exists():
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


def render_results(page: str) -> str:
    """A table for each data set, split and number of images: figures on different images never share one.

    Published figures stand among ours on all images of the set they were measured on. That table is in sight, all else
    is folded below it.
    """
    # A page of the book does not have the folder beside it.
    folder = "results" if page == "README.md" else f"{repository()}/blob/main/results"
    runs = sorted(map(expected_on_all, measured_runs()), key=lambda run: -run["nats"])
    tables = {PUBLISHED_ON: []}
    for run in runs:
        tables.setdefault((run["data"], run["split"], run["images"]), []).append(run)
    seen, below = [], []
    for (data, split, images), own in tables.items():
        rows, note = {own_row(run, folder): run["nats"] for run in own}, ""
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
    if notes := [note_on_expected(run) for run in runs if "measured" in run]:
        seen.append(EXPECTED)
        below.append(folded("How each expected figure was made", "\n\n".join(notes), page))
    if rounded := [f"`{run['name']}`" for run in runs if run["evaluation"]["precision"] != "float32"]:
        seen.append(f"Evaluated in 16 bits, all others in 32: {', '.join(rounded)}.")
    if runs:
        head = ["| weights | training, with that of the encoder they began with | machines |", "|---|---|---|"]
        below.append(folded("How ours were trained", "\n".join([*head, *map(training_row, runs)]), page))
    return "\n\n".join(seen + below)


def folded(title: str, text: str, page: str) -> str:
    """Text that a reader opens, as GitHub or as the book writes it."""
    if page == "README.md":
        return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"
    return f":::{{dropdown}} {title}\n{text}\n:::"


def result(name: str) -> dict:
    """A file of `results/`."""
    return json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))


def at_steps(curve: dict, values: list, steps: tuple[int, ...]) -> str:
    """The values after some of a curve's steps, as one cell of a table."""
    found = dict(zip(curve["steps"], values, strict=True))
    return " → ".join(readable(found[step]) for step in steps)


def readable(value: float | None) -> str:
    """A figure of the measurement of healing; None stands for cells whose numbers are too large for float32."""
    if value is None:
        return "overflow"
    return f"{value:.3f}"


def log_likelihood(curve: dict, step: int) -> str:
    """log p(x | z) of an image after some steps, in nats."""
    bits = dict(zip(curve["steps"], curve["bits_per_pixel"], strict=True))[step]
    if bits is None:
        return readable(bits)
    nats = -bits * math.log(2) * 28 * 28
    return signed(nats, 1) if nats > -10_000 else "below −10,000"


def error_of_black(curve: dict) -> float:
    """The mean error of whole images if their holes were black and the pixels before the damage black or white.

    It is the share of the hole that was ink, which is the share of wrong pixels at first, because those of a cell that
    was set to zero count as black; times the share of the image that is hole.
    """
    hole = curve["error"]["everywhere"][0] / curve["error"]["inside"][0]
    return curve["flips"]["inside"][0] * hole


REPEATED = "Five wounds are 64 steps apart; the last row has 0, 16 and 64 steps after the last of them."


def render_healing(page: str) -> str:
    """How well images stay and recover, one column for each model; what is measured besides is folded."""
    entries = result("healing")
    columns = {name: entry["parts"] for name, entry in entries.items()}
    stays, recovers = {}, {}
    for step in (0, 50, 200, 1000):
        stays[r"$\log p(x \mid z)$, grown" if step == 0 else f"{step:,} steps later"] = [
            log_likelihood(parts["stability"], step) for parts in columns.values()
        ]
    for label, measure, place in (("error", "error", "everywhere"), ("wrong pixels in the hole", "flips", "inside")):
        for share in ("25%", "50%", "75%"):
            curves = [parts[f"recovery {share}"] for parts in columns.values()]
            recovers[f"{label}, {share} damaged"] = [
                at_steps(curve, curve[measure][place], (0, 16, 64, 256)) for curve in curves
            ]
            if measure == "error":
                recovers[f"error if the hole of {share} were black"] = [
                    readable(error_of_black(curve)) for curve in curves
                ]
    recovers["error, 25% five times, after the last"] = [
        at_steps(curve, curve["error"]["everywhere"], (0, 16, 64))
        for curve in (parts["repeated"]["rounds"][-1] for parts in columns.values())
    ]
    shown = {label: cells for label, cells in recovers.items() if "25% damaged" in label or "hole of 25%" in label}
    shown["wrong pixels in the hole, 75% damaged"] = recovers["wrong pixels in the hole, 75% damaged"]

    def table(rows: dict[str, list[str]]) -> str:
        head = "| measured | " + " | ".join(f"`{name}`" for name in columns) + " |"
        lines = [f"| {label} | " + " | ".join(cells) + " |" for label, cells in rows.items()]
        return "\n".join([head, "|---" * (len(columns) + 1) + "|", *lines])

    notes = {
        f"{entry['images']} test images of `{entry['data']}`, {part['hardware']}"
        for entry in entries.values()
        for part in entry["parts"].values()
    }
    rest = {label: cells for label, cells in recovers.items() if label not in shown}
    return "\n\n".join(
        [
            table(stays | shown),
            f"Means over {'; '.join(sorted(notes))}.",
            folded("Larger and repeated wounds", f"{REPEATED}\n\n{table(rest)}", page),
        ]
    )


def by_mask(rows: list[dict], cell: Callable[[dict], str], rank: Callable[[dict], float]) -> list[str]:
    """A table of rows of a model and a mask: a line for each model, the one of the lowest rank first."""
    found = {(row["model"], row["mask"]): row for row in rows}
    masks = list(dict.fromkeys(mask for _, mask in found))
    models = sorted(dict.fromkeys(model for model, _ in found), key=lambda model: rank(found[model, masks[0]]))
    lines = ["| predicted by | " + " | ".join(masks) + " |", "|---" * (len(masks) + 1) + "|"]
    return lines + [
        f"| `{model}` | " + " | ".join(cell(found[model, mask]) for mask in masks) + " |" for model in models
    ]


def measured_with(rows: list[dict], *names: str) -> tuple:
    """The settings of those names, which are the same for every model, or this fails; then the machines.

    It fails as well unless all rows were measured on the same images.
    """
    (_,) = {row["identity"]["pixels"] for row in rows}
    (settings,) = {tuple(row["identity"][name] for name in names) for row in rows if row["decoder"]}
    return *settings, "; ".join(sorted({row["machine"] for row in rows if "machine" in row}))


def render_inpainting() -> str:
    """Nats of missing pixels: one row for each model, one column for each mask."""
    found = result("inpainting")

    def nats(row: dict) -> str:
        text = f"{signed(row['nats_per_pixel'][0], 3)} ± {row['nats_per_pixel'][1]:.3f}"
        if "bounds" in row:
            text += f" ({signed(row['bounds']['lower'][0], 3)} to {signed(row['bounds']['upper'][0], 3)})"
        return text

    samples, chains, iterations, precision, machines = measured_with(
        found["rows"], "num_samples", "chains", "iterations", "precision"
    )
    return "\n".join(
        [
            "Log-likelihood of the missing pixels given the observed ones, nats per missing pixel, with the standard "
            "error over images and, for the models, the lower and the upper bound:",
            "",
            *by_mask(found["rows"], nats, lambda row: -row["nats_per_pixel"][0]),
            "",
            f"{found['images']} test images of `{found['data']}`, {samples} latents for each term, {chains} chains of "
            f"{iterations} iterations for the upper bounds; {machines}, {precision}.",
        ]
    )


def render_completions() -> str:
    """Squared errors of mean completions: one row for each model, one column for each mask."""
    found = result("completions")

    def squared(row: dict) -> str:
        return f"{row['squared_error'][0]:.3f} ± {row['squared_error'][1]:.3f} ({row['promised_error'][0]:.3f})"

    def behind(row: dict) -> str:
        return f"{signed(row['behind_neighbors'][0], 3)} ± {row['behind_neighbors'][1]:.3f}"

    others = [row for row in found["rows"] if row["model"] != "neighbors"]
    chains, iterations, precision, machines = measured_with(found["rows"], "chains", "iterations", "precision")
    return "\n".join(
        [
            "Squared error of the mean completion, per missing pixel, with the standard error over images; in "
            "parentheses what it would be if pixels were white exactly as often as the completion says:",
            "",
            *by_mask(found["rows"], squared, lambda row: row["squared_error"][0]),
            "",
            "The squared error less that of the neighbors on the same image; negative where the model is nearer:",
            "",
            *by_mask(others, behind, lambda row: row["behind_neighbors"][0]),
            "",
            f"{found['images']} test images of `{found['data']}`, two independent means of {chains} chains of "
            f"{iterations} iterations each; {machines}, {precision}.",
        ]
    )


LOGGED_AT_THE_END = 40  # records of a log, of 20 batches each: their learning rate is nearly zero


def training_elbo(name: str) -> tuple[float, float]:
    """The ELBO of training images at the end of the log that came with the weights, and its standard error."""
    from vnca import metrics

    elbos = [record["nats"] for record in metrics.read(ROOT / "vnca" / "pretrained" / name)[-LOGGED_AT_THE_END:]]
    return statistics.mean(elbos), statistics.stdev(elbos) / len(elbos) ** 0.5


def render_gap() -> str:
    """The ELBO of training and of test images, for models that learned by the ELBO and saw all test images."""
    lines = ["| model | training images | test images | gap | each training image seen |", "|---|---|---|---|---|"]
    for run in sorted(measured_runs(), key=lambda run: -run["elbo"]):
        by_elbo = run["updates"] and run["config"]["training"].get("samples", 1) == 1
        if (run["data"], run["split"], run["images"]) != ("binarized-mnist", "test", 10_000) or not by_elbo:
            continue
        (trained, its_error), error = training_elbo(run["name"]), run["elbo_standard_error"]
        lines.append(
            f"| `{run['name']}` | {signed(trained)} ± {its_error:.2f} | {signed(run['elbo'])} ± {error:.2f} "
            f"| {trained - run['elbo']:.2f} | {run['images_seen'] / 60_000:.0f} times |"
        )
    return "\n".join(lines)


def render_proposals() -> str:
    """What wider proposals add to the bound: the trust chosen on training images, then models on test images."""
    found = result("proposals")
    rows = {split: [row for row in found["rows"] if row["split"] == split] for split in ("train", "test")}
    ((chosen_with, train_images),) = {(row["model"], row["images"]) for row in rows["train"]}
    (trust,) = {row["trust"] for row in rows["test"]}

    def gain(row: dict) -> str:
        return f"{signed(row['gain'][0])} ± {row['gain'][1]:.2f}"

    tried = sorted(rows["train"], key=lambda row: -row["trust"])
    models = sorted(rows["test"], key=lambda row: -row["gain"][0])
    with_precision = sorted({f"{row['machine']}, {row['precision']}" for row in found["rows"]})
    return "\n".join(
        [
            f"What `{chosen_with}` gains on {train_images} training images, in nats, by the trust:",
            "",
            "| " + " | ".join(f"{row['trust']:g}" for row in tried) + " |",
            "|---" * len(tried) + "|",
            "| " + " | ".join(gain(row) for row in tried) + " |",
            "",
            f"And what models gain on test images with a trust of {trust:g}:",
            "",
            "| model | test images | drawn from the posterior | from the wider one | gain, image by image |",
            "|---|---|---|---|---|",
            *(
                f"| `{row['model']}` | {row['images']:,} | {signed(row['nats'])} | {signed(row['nats_wider'])} "
                f"| {gain(row)} |"
                for row in models
            ),
            "",
            "Models were measured on different numbers of images, so compare the gains and not the bounds. "
            f"`{found['data']}`, {found['num_samples']} samples; {'; '.join(with_precision)}.",
        ]
    )


def render_gaps() -> str:
    """How far each model's figures lie below log p(x): one row for each model, image by image."""
    found = result("gaps")
    settings = found["settings"]

    def mean_and_error(values: list[float]) -> str:
        return f"{signed(statistics.mean(values))} ± {statistics.stdev(values) / len(values) ** 0.5:.2f}"

    lines = [
        "| model | test images | ELBO | with a search | bound | $\\log p(x)$, between |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(found["rows"], key=lambda row: -statistics.mean(row["figures"]["upper"])):
        figures = row["figures"]
        below = [
            mean_and_error([value - upper for value, upper in zip(figures[name], figures["upper"], strict=True)])
            for name in ("elbo", "elbo_searched", "bound", "lower")
        ]
        lines.append(f"| `{row['model']}` | {len(figures['upper']):,} | {' | '.join(below[:3])} | {below[3]} and 0 |")
    machines = sorted({f"{row['machine']}, {row['precision']}" for row in found["rows"]})
    return "\n".join(
        [
            "In nats above (or, with a minus, below) the upper bound of $\\log p(x)$, image by image:",
            "",
            *lines,
            "",
            f"`{found['data']}`. The ELBO and the bound draw {settings['num_samples']} latents, the bounds from both "
            f"sides {settings['samples_of_both_sides']} with {settings['chains']} chains of {settings['iterations']} "
            f"iterations, and a search makes {settings['updates_of_search']} updates; {'; '.join(machines)}.",
        ]
    )


def render_samples() -> str:
    """How much samples look like digits to a classifier: one row for each model, then test images."""
    found = result("samples")

    def row_of(name: str, row: dict) -> str:
        share, error = row["sure"]
        return f"| {name} | {share:.1%} ± {error:.1%} | {row['frechet']:.1f} |"

    (count,) = {row["images"] for row in (*found["rows"], found["test"])}
    machines = "; ".join(sorted({row["machine"] for row in found["rows"]}))
    return "\n".join(
        [
            "| samples of | the classifier is sure | Fréchet distance |",
            "|---|---|---|",
            *(row_of(f"`{row['model']}`", row) for row in sorted(found["rows"], key=lambda row: row["frechet"])),
            row_of("test images", found["test"]),
            "",
            f"{count:,} samples of each. The classifier gets {found['accuracy']:.1%} of the test images right, and is "
            f"called sure above a probability of {found['sure_above']:g}; {machines}.",
        ]
    )


def render_sharing() -> str:
    """What it costs that all stages share one rule: one row for each number of updates and decoder, over seeds."""
    found = result("sharing")
    runs: dict[tuple[int, str], list[dict]] = {}
    for row in sorted(found["rows"], key=lambda row: row["updates"]):
        runs.setdefault((row["updates"], row["decoder"]), []).append(row)

    def over_seeds(rows: list[dict], key: str) -> str:
        values = [row[key] for row in rows]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return signed(statistics.mean(values), 1) + spread

    lines = ["| decoder | parameters | updates | runs | ELBO | bound |", "|---|---|---|---|---|---|"]
    for (updates, decoder), rows in runs.items():
        lines.append(
            f"| {decoder} | {rows[0]['parameters']:,} | {updates:,} | {len(rows)} "
            f"| {over_seeds(rows, 'elbo')} | {over_seeds(rows, 'bound')} |"
        )
    ((images, images_of_bound, samples),) = {
        (row["elbo_images"], row["bound_images"], row["num_samples"]) for row in found["rows"]
    }
    machines = "; ".join(sorted({row["hardware"] for row in found["rows"]}))
    return "\n".join(
        [
            *lines,
            "",
            f"Nats per image; ± is the standard deviation between runs. `{found['data']}`: the ELBO of {images:,} test "
            f"images, the bound of {images_of_bound:,} with {samples} samples; {machines}.",
        ]
    )


def render_recipes() -> str:
    """What a learned prior and importance-weighted training add, one row for each way to go on."""
    found = result("recipes")
    lines = ["| training goes on | nats | ELBO |", "|---|---|---|"]
    for name, row in found["rows"].items():
        figures = (
            f"{signed(row[key])} ± {row[error]:.2f}"
            for key, error in (("nats", "standard_error"), ("elbo", "elbo_standard_error"))
        )
        lines.append(f"| {name} | {' | '.join(figures)} |")
    ((images, samples, hardware),) = {
        (row["images"], row["num_samples"], row["hardware"]) for row in found["rows"].values()
    }
    note = (
        f"From `{found['start']}`, with {found['latents']:,} decoded latents each; {samples} samples for the bound, "
        f"{images:,} test images, the same for all, evaluated in float32; "
        f"trained on {hardware}."
    )
    return "\n".join([*lines, "", note])


def render_scaling() -> str:
    """How the time of an update grows with each size of the decoder, one row for each machine and size."""
    lines = ["| from … to | power of the time | of the arithmetic | machine |", "|---|---|---|---|"]
    for path in sorted((ROOT / "results").glob("scaling-*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        for name, axis in found["axes"].items():
            first, last = axis["points"][0]["value"], axis["points"][-1]["value"]
            powers = " | ".join(signed(axis[power]) for power in ("exponent", "arithmetic_exponent"))
            lines.append(f"| {name} {first} … {last} | {powers} | {found['hardware']} |")
    return "\n".join(lines)


FORMS = {  # of a training update, as `benchmarks/train_step.py` names them; what is not here is not shown
    "plain": "float32, the obvious way",
    "plain+tf32": "the same, products in TF32",
    "ours+layers": "16 bits, layer by layer",
    "ours+recompute": "the same, steps computed twice",
    "ours+layers+graph": "16 bits, layer by layer, as a graph",
    "ours": "16 bits, fused kernels",
    "ours+graph": "16 bits, fused kernels, as a graph",
}


def render_steps() -> str:
    """How fast training updates are, one row for each machine, model, batch and form."""
    lines = ["| form | images/s | of a product | × float32 | memory |", "|---|---|---|---|---|"]
    machines = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "results").glob("train_step-*.json"))
    ]
    for found in sorted(machines, key=lambda found: "NVIDIA" not in found["hardware"]):  # GPUs first
        products = {
            step["model"]: step["rows"]["product"]["flops_per_second"]
            for step in found["steps"]
            if "product" in step["rows"]
        }
        for step in found["steps"]:
            lines.append(f"| **`{step['model']}`, batches of {step['batch_size']}**, {found['hardware']} | | | | |")
            rows = {name: row for name, row in step["rows"].items() if "failed" not in row}
            if "NVIDIA" not in found["hardware"]:  # no kernels: steps are taken layer by layer
                rows = {"ours+layers" if name == "ours" else name: row for name, row in rows.items()}
            product = products.get(step["model"])
            lines += [step_row(form, rows[name], product) for name, form in FORMS.items() if name in rows]
    return "\n".join(lines)


def step_row(form: str, row: dict, product: float | None) -> str:
    """One form of an update, beside the operations a second of a product, if that was measured."""
    speed = row["images_per_second"]
    share = f"{row['flops_per_second'] / product:.0%}" if product else ""
    times = f"{row['times_plain']:.1f}" if "times_plain" in row else ""
    return f"| {form} | {speed:,.{int(speed < 10)}f} | {share} | {times} | {row['peak_bytes'] / 1e9:.1f} GB |"


def growth_frames(name: str, digits: int = 4) -> list:
    """The pixels of digits drawn from the prior: their seeds, and the end of each stage of growth, digit by digit."""
    import torch

    import vnca
    from vnca.decoders import crop

    model = vnca.load(name)
    z = model.draw(digits, torch.Generator().manual_seed(0))
    with torch.no_grad():
        states = list(model.decoder.grow(z))
        stages = {state.shape[-1]: state for state in states}  # the last state of each size
        *small, last = [state[:, :1].sigmoid() for state in (states[0], *stages.values())]
    return [stage[digit] for digit in range(digits) for stage in (*small, crop(last))]


def draw_growth() -> None:
    """Draw the picture from the best shipped weights of a doubling decoder, or say that there are none."""
    import vnca
    from vnca import files, plotting

    names = [name for name in vnca.available() if name.startswith(("best", "doubling"))]  # sorted: the best ones first
    if not names:
        print("vnca/pretrained holds no weights of a doubling decoder: the picture is left out.")
        return
    plotting.use_style()
    frames = growth_frames(names[0])
    with files.replacing(PICTURE) as beside:
        plotting.show_images(frames, columns=len(frames) // 4).savefig(beside, format="png")
    print(f"Drew {PICTURE.relative_to(ROOT)} with {names[0]}.")


def render_picture(page: str) -> str:
    if not PICTURE.exists():
        return ""
    if page == "README.md":
        return f"![{ALT}]({PICTURE.relative_to(ROOT)})"
    return f"```{{figure}} _static/growth.png\n:alt: {ALT}\n:figclass: figure-card\n\n{CAPTION}\n```"


PAPER_SIZES = {"doubling": "paper", "persistent": "paper", "regrowing": "regrow"}  # presets, by the decoder

SETTINGS = {  # of a decoder in words, in the order in which they are told; a range of steps comes after them
    "channels": "{:,} channels a cell",
    "width": "{:,} channels in the last layer but one",
    "hidden": "{:,} channels inside the update",
    "steps": "{:,} steps in each stage",
}


def size_of(model: dict) -> list[str]:
    """The size of a model in words, from its configuration."""
    from vnca.presets import PRESETS

    options = dict(model["decoder_options"])
    words = [f"latent of {model['latent_size']:,} numbers"]
    if model["decoder"] in PAPER_SIZES:
        paper = PRESETS[PAPER_SIZES[model["decoder"]]].config.model
        same = (model["latent_size"], options) == (paper.latent_size, paper.decoder_options)
        words.insert(0, "the paper's size" if same else "small")
    steps = [options.pop(key) for key in ("min_steps", "max_steps") if key in options]
    words += [SETTINGS[key].format(options[key]) for key in sorted(options, key=list(SETTINGS).index)]
    if steps:
        words.append(f"{steps[0]} to {steps[1]} {'in the last' if 'steps' in options else 'steps'}")
    return words


def prior_of(model: dict) -> str:
    """The prior of a model in words, from its configuration."""
    if not model.get("components"):
        return "standard normal prior"
    full = f" with full covariances in {model['correlated']:,} numbers" if model.get("correlated") else ""
    return f"{LEARNED} of {model['components']:,} Gaussians{full}"


def parent(run: dict, shipped: list[str]) -> tuple[str, str] | None:
    """What a model began with: `"init_from"` or `"encoder_from"`, and the nearest shipped model there."""
    for earlier in runs_of(run)[1:]:
        for how in ("init_from", "encoder_from"):
            # A model can have begun with an earlier form of itself, which is not shipped any more.
            if earlier.get(how) in shipped and earlier[how] != run["name"]:
                return how, earlier[how]
    return None


def beginning(run: dict, shipped: list[str]) -> str:
    """A sentence on what a model began with."""
    found = parent(run, shipped)
    if found is None:
        return "Began with random weights."
    how, name = found
    if run["updates"] == 0:
        return f"Differs from `{name}` in its prior alone."
    return f"Began with the {'encoder' if how == 'encoder_from' else 'weights'} of `{name}`."


def described(run: dict, shipped: list[str]) -> str:
    """What a model is, in plain words: its traits, its prior, its size and what it began with."""
    model = run["config"]["model"]
    words = [word for word in traits(run) if word != LEARNED] + [prior_of(model)]
    return f"{capitalized(', '.join(words))}; {', '.join(size_of(model))}. {beginning(run, shipped)}"


def capitalized(text: str) -> str:
    return text[0].upper() + text[1:]


def described_automaton(config: dict) -> str:
    """What an automaton of chapter 2 is, in plain words."""
    numbers, model = config.get("numbers"), config["model"]
    task = "one picture, from one cell"
    if numbers:
        ends = f"from {signed(numbers[0], 0)} to {signed(numbers[-1], 0)}"
        task = f"a picture for the number in its first cell; learned {len(numbers)} numbers {ends}"
    size = ", ".join(SETTINGS[key].format(model[key]) for key in ("channels", "hidden"))
    begun = f"the weights of `{config['begin_with']}`" if "begin_with" in config else "random weights"
    return f"Growing automaton: {task}; {size}. Began with {begun}."


def weights_file(folder: Path) -> str:
    """The size of a file of weights, and how they are kept in it."""
    from vnca import pretrained

    size = (folder / "model.safetensors").stat().st_size
    bits = pretrained.stored_as(folder).removeprefix("float")
    return (f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB") + f" in {bits} bits"


def figures_of(run: dict) -> str:
    """The nats of a model, as in the table of results, and how many parameters its parts have."""
    run = expected_on_all(run)
    measured = f", expected from {run['measured']['images']:,}" if "measured" in run else ""
    sizes = [f"{size:,}" for part in ("encoder", "decoder", "prior") if (size := run["parameters"].get(part))]
    return (
        f"**{signed(run['nats'])}** ± {run['standard_error']:.2f} nats on {run['images']:,} images{measured}; "
        f"parameters {' + '.join(sizes)}"
    )


def figures_of_automaton(name: str, config: dict) -> str:
    """How well an automaton draws, and how many parameters it has."""
    from vnca import growing

    parameters = sum(p.numel() for p in growing.load(name).parameters())
    when, error = next(iter(config["run"]["errors"].items()))
    return f"error {error:.4f} {when}; parameters {parameters:,}"


def sources() -> list[tuple[str, str, str]]:
    """What to search for names of models: pages, the kind of each cell, and its text without generated parts."""
    first, parts = f"{pages()[0]}.md", "|".join(PARTS)
    found = [(first, "markdown", (ROOT / first).read_text(encoding="utf-8"))]
    for path in chapters():
        page = path.relative_to(ROOT).as_posix()
        found += [(page, cell.cell_type, cell.source) for cell in nbformat.read(path, as_version=4).cells]
    # Tables list every model. What uses one is written by hand.
    generated = re.compile(rf"<!-- ({parts}):begin -->.*?<!-- \1:end -->", re.DOTALL)
    return [(page, cell, generated.sub("", text)) for page, cell, text in found]


LIVE = re.compile(r'data-live="([\w-]+)" data-model="([^"]+)"')


def used_in(name: str, texts: list[tuple[str, str, str]]) -> str:
    """Where the book uses a model: chapters whose code names it, live figures, and chapters that only tell of it."""
    number = {path.relative_to(ROOT).as_posix(): str(n) for n, path in enumerate(chapters(), start=1)}
    code, told, live = [], [], []
    for page, cell, text in texts:
        link = f"[{number.get(page, 'first page')}]({Path(page).name})"
        if cell == "code" and re.search(rf"[\"']{name}[\"']", text):
            code.append(link)
        elif cell == "markdown" and f"`{name}`" in text:
            told.append(link)
        for figure, models in LIVE.findall(text):
            # Pages have encoders and priors in files of their own.
            if {name, f"{name}-encoder", f"{name}-prior"} & set(models.split()):
                live.append(f"{link} (`{figure}`)")
    told = [link for link in told if link not in code]
    kinds = {"code": code, "live": live, "text": told}
    return "; ".join(f"*{kind}:* {', '.join(dict.fromkeys(links))}" for kind, links in kinds.items() if links)


def render_models() -> str:
    """All shipped models, one to a row: the kinds in the order of `MODELS`, then the automata of chapter 2."""
    from vnca import pretrained

    folder = ROOT / "vnca" / "pretrained"
    shipped = [path.parent.name for path in folder.glob("*/model.safetensors")]
    texts, address = sources(), repository()
    lines = ["| model | what it is, and where it is used | figures |", "|---|---|---|"]

    def in_order(run: dict) -> tuple:
        return list(MODELS).index(run["model"]), run["parameters"]["decoder"], len(runs_of(run)), run["name"]

    for run in sorted(map(result, shipped), key=in_order):
        name = run["name"]
        lines.append(
            f"| [`{name}`]({address}/blob/main/vnca/pretrained/{name}/README.md) "
            f"| {described(run, shipped)} {used_in(name, texts)} | {figures_of(run)}; {weights_file(folder / name)} |"
        )
    automata = {path.parent: pretrained.read_config(path.parent) for path in folder.glob("automata/*/config.json")}
    for path, config in sorted(automata.items(), key=lambda item: len(item[1].get("numbers", []))):
        lines.append(
            f"| [`{path.name}`]({address}/blob/main/vnca/pretrained/automata/{path.name}/config.json) "
            f"| {described_automaton(config)} {used_in(path.name, texts)} "
            f"| {figures_of_automaton(path.name, config)}; {weights_file(path)} |"
        )
    return "\n".join(lines)


CARD = """# {name}

A {kind}; trained on the binarized MNIST digits (`{data}`), for the book *Growing Digits*.

```python
import vnca

model = vnca.load("{name}")
images = model.sample(16)  # pixel probabilities (16, 1, 28, 28)
```

| | |
|---|---|
| log-likelihood | {nats} ± {standard_error:.2f} nats an image (bound with {num_samples} samples{precision}, {images}) |
| ELBO | {elbo} ± {elbo_standard_error:.2f} nats |
| latent | {latent_size} numbers |
| parameters | {encoder:,} of the encoder, {decoder:,} of the decoder{prior} |
| decoder options | {options} |
| weights | {stored} |
{expected}
Training, the last run first:

{runs}

The settings of each run are in `config.json` beside this file and in `results/{name}.json`.

It knows white digits on black of 28 × 28 pixels and nothing else; of other images it makes digits. It was made for
teaching, and is no judge of whether an image is a digit. The figures are means over images with their standard error.
License: MIT, as the code.
"""


def card(name: str) -> str:
    """The model card of shipped weights, from their result."""
    run = result(name)
    of_all = "all 10,000 test images" if run["images"] == 10_000 else f"{run['images']:,} random test images"
    options = ", ".join(f"{key} {value}" for key, value in run["config"]["model"]["decoder_options"].items())
    lines = []
    for each in runs_of(run):
        of_encoder = f"for the encoder to begin with, `{each['encoder_from']}`: " if "encoder_from" in each else ""
        done = f"{each['updates']:,} updates, {each['images_seen']:,} images seen"
        if each["updates"] == 0:
            done = "the prior fitted to the posteriors of the training images, nothing else changed"
        lines.append(f"- {of_encoder}{done}, {each['minutes']:,.1f} minutes on {each['hardware']}")
    expected = expected_on_all(run)
    figures = {key: run[key] for key in ("name", "data", "standard_error", "num_samples", "elbo_standard_error")}
    sizes = run["parameters"]
    from vnca import pretrained

    rounded = pretrained.stored_as(ROOT / "vnca" / "pretrained" / name) == "float16"
    return CARD.format(
        **figures,
        encoder=sizes["encoder"],
        decoder=sizes["decoder"],
        prior=f", {sizes['prior']:,} of the prior" if sizes.get("prior") else "",
        kind=kind(run),
        nats=signed(run["nats"]),
        elbo=signed(run["elbo"]),
        images=of_all,
        precision="" if run["evaluation"]["precision"] == "float32" else " in 16 bits",
        latent_size=run["config"]["model"]["latent_size"],
        options=options,
        stored="rounded to float16, which `vnca.load` turns back into float32" if rounded else "float32",
        runs="\n".join(lines),
        expected=f"\n{note_on_expected(expected)}\n" if "measured" in expected else "",
    )


def cards() -> dict[Path, str]:
    """The model cards of all shipped weights, by the file of each."""
    folders = [path.parent for path in sorted((ROOT / "vnca" / "pretrained").glob("*/model.safetensors"))]
    return {folder / "README.md": card(folder.name) for folder in folders}


PARTS: dict[str, Callable[[str], str]] = {
    "growth": render_picture,
    "chapters": lambda _: render_chapters(),
    "results": render_results,
    "models": lambda _: render_models(),
    "healing": render_healing,
    "inpainting": lambda _: render_inpainting(),
    "completions": lambda _: render_completions(),
    "gap": lambda _: render_gap(),
    "proposals": lambda _: render_proposals(),
    "gaps": lambda _: render_gaps(),
    "samples": lambda _: render_samples(),
    "sharing": lambda _: render_sharing(),
    "recipes": lambda _: render_recipes(),
    "scaling": lambda _: render_scaling(),
    "steps": lambda _: render_steps(),
}


def with_parts(text: str, page: str) -> str:
    """The text with what stands between markers made anew."""
    for name, render in PARTS.items():
        pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        if pattern.search(text):
            body = render(page)
            text = pattern.sub(lambda match, body=body: match[1] + (body + "\n" if body else "") + match[2], text)
    return text


def filled(page: str) -> str:
    """The text of a page, or of a notebook's file, with its generated parts made anew."""
    if not page.endswith(".ipynb"):
        return with_parts((ROOT / page).read_text(encoding="utf-8"), page)
    notebook = nbformat.read(ROOT / page, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = with_parts(cell.source, page)
    return nbformat.writes(notebook) + "\n"


PAGES = (
    "README.md",
    "book/intro.md",
    "book/03-doubling-decoder.ipynb",
    "book/04-training.ipynb",
    "book/05-healing.ipynb",
    "book/06-inpainting.ipynb",
    "book/07-past-the-paper.ipynb",
    "book/models.md",
)


def main() -> int:
    from vnca import files

    draw_growth()
    for page in PAGES:
        files.write_text(ROOT / page, filled(page))
        print(f"Filled {page}.")
    for path, text in cards().items():
        files.write_text(path, text)
        print(f"Wrote {path.relative_to(ROOT)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
