"""The page of all shipped models, and a card for each of them."""

import re
from pathlib import Path

import contents
import nbformat
from contents import result, signed
from runs import LEARNED, MODELS, expected_on_all, kind, note_on_expected, runs_of, traits

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
    if numbers and len(numbers) > 1:
        ends = f"from {signed(numbers[0], 0)} to {signed(numbers[-1], 0)}"
        task = f"a picture for the number in its first cell; learned {len(numbers)} numbers {ends}"
    size = ", ".join(SETTINGS[key].format(model[key]) for key in ("channels", "hidden"))
    begun = f"the weights of `{config['begin_with']}`" if config.get("begin_with") else "random weights"
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
    first = f"{contents.pages()[0]}.md"
    found = [(first, "markdown", (contents.ROOT / first).read_text(encoding="utf-8"))]
    for path in contents.chapters():
        page = path.relative_to(contents.ROOT).as_posix()
        found += [(page, cell.cell_type, cell.source) for cell in nbformat.read(path, as_version=4).cells]
    # Tables list every model. What uses one is written by hand.
    generated = re.compile(r"<!-- ([\w-]+):begin -->.*?<!-- \1:end -->", re.DOTALL)
    return [(page, cell, generated.sub("", text)) for page, cell, text in found]


LIVE = re.compile(r'data-live="([\w-]+)" data-model="([^"]+)"')


def used_in(name: str, texts: list[tuple[str, str, str]]) -> str:
    """Where the book uses a model: chapters whose code names it, live figures, and chapters that only tell of it."""
    number = {path.relative_to(contents.ROOT).as_posix(): str(n) for n, path in enumerate(contents.chapters(), start=1)}
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

    folder = contents.ROOT / "vnca" / "pretrained"
    shipped = [path.parent.name for path in folder.glob("*/model.safetensors")]
    texts, address = sources(), contents.repository()
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

    rounded = pretrained.stored_as(contents.ROOT / "vnca" / "pretrained" / name) == "float16"
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
    folders = [path.parent for path in sorted((contents.ROOT / "vnca" / "pretrained").glob("*/model.safetensors"))]
    return {folder / "README.md": card(folder.name) for folder in folders}
