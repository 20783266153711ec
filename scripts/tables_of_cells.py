"""Tables of what cells are asked for beside nats: how well they heal, and how well missing pixels are predicted."""

import math
from collections.abc import Callable

from contents import folded, result, signed


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
