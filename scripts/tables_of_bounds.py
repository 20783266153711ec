"""Tables about the bounds of models: between training and test images, by proposal, by number of samples, by recipe."""

import statistics

import contents
from contents import result, signed
from runs import measured_runs, trust_of, wider_runs

LOGGED_AT_THE_END = 40  # records of a log, of 20 batches each: their learning rate is nearly zero


def training_elbo(name: str) -> tuple[float, float]:
    """The ELBO of training images at the end of the log that came with the weights, and its standard error."""
    from vnca import metrics
    from vnca.training import LOG_EVERY

    records = metrics.read(contents.ROOT / "vnca" / "pretrained" / name)
    # The last record may be a mean over fewer batches than the others.
    elbos = [record["nats"] for record in records if record["update"] % LOG_EVERY == 0][-LOGGED_AT_THE_END:]
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

    on_all, measured = (
        {run["name"]: run["nats"] for run in some if run["images"] == 10_000 and trust_of(run) in (1, trust)}
        for some in (measured_runs(), wider_runs())
    )

    def gain(row: dict) -> str:
        return f"{signed(row['gain'][0])} ± {row['gain'][1]:.2f}"

    def of_all(row: dict) -> str:
        if row["model"] in measured:
            return f"**{signed(measured[row['model']])}**"
        return signed(on_all[row["model"]] + row["gain"][0]) if row["model"] in on_all else ""

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
            "| model | test images | drawn from the posterior | from the wider one | gain, image by image "
            "| on all 10,000 |",
            "|---|---|---|---|---|---|",
            *(
                f"| `{row['model']}` | {row['images']:,} | {signed(row['nats'])} | {signed(row['nats_wider'])} "
                f"| {gain(row)} | {of_all(row)} |"
                for row in models
            ),
            "",
            "Models were measured on different numbers of images, so compare the gains and not the bounds. The last "
            f"column is {'what was measured, if in bold; else ' if measured else ''}"
            "what can be expected: the bound of the table of results, where it is of all test images, plus the gain. "
            f"`{found['data']}`, {found['num_samples']} samples; {'; '.join(with_precision)}.",
        ]
    )


def paired_gaps(rows: list[dict]) -> str:
    """The two models that were measured on the most images, compared on those that both were measured on."""
    first, second = sorted(rows, key=lambda row: -len(row["figures"]["upper"]))[:2]
    count = len(second["figures"]["upper"])
    ours, theirs = ({name: row["figures"][name][:count] for name in ("bound", "upper")} for row in (first, second))

    def less(values: list[float], others: list[float]) -> str:
        differences = [value - other for value, other in zip(values, others, strict=True)]
        return f"{signed(statistics.mean(differences))} ± {statistics.stdev(differences) / count**0.5:.2f}"

    gap, other_gap = ([u - b for u, b in zip(each["upper"], each["bound"], strict=True)] for each in (ours, theirs))
    return (
        f"`{second['model']}` less `{first['model']}`, image by image on the {count} that both were measured on: "
        f"{less(other_gap, gap)} in the gap between the bound and the upper bound, and "
        f"{less(theirs['upper'], ours['upper'])} in the upper bound."
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
            "",
            paired_gaps(found["rows"]),
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
