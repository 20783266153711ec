"""Tables of time and memory: of the chapters, of training updates, and of decoders of other sizes."""

import contents
from contents import colab, result, results, signed, title


def render_chapters() -> str:
    lines = ["| No. | Chapter | Takes | Run it |", "|---|---|---|---|"]
    measured = result("chapters")
    slowest = {name: max(times.items(), key=lambda item: item[1]["seconds"]) for name, times in measured.items()}
    on: dict[str, list[str]] = {}  # by machine, the numbers of its chapters
    for number, notebook in enumerate(contents.chapters(), start=1):
        path = notebook.relative_to(contents.ROOT).as_posix()
        badge = f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab(path)})"
        machine, figures = slowest[notebook.stem]
        on.setdefault(machine, []).append(str(number))
        takes = f"{figures['seconds'] / 60:.0f} min, {figures['gigabytes']:.1f} GB"
        lines.append(f"| {number} | [{title(notebook)}]({path}) | {takes} | {badge} |")
    machines = "; ".join(f"{', '.join(numbers)} on {machine}" for machine, numbers in on.items())
    minutes = sum(figures["seconds"] for _, figures in slowest.values()) / 60
    lines.append(f"\nTime and memory: each chapter by itself ({machines}). All of them take {minutes:.1f} minutes.")
    return "\n".join(lines)


def render_scaling() -> str:
    """How the time of an update grows with each size of the decoder, one row for each machine and size."""
    head = ["from … to", "power of the time", "of the arithmetic", "10⁹ operations/s at each size", "machine"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for found in results("scaling-*"):
        for name, axis in found["axes"].items():
            first, last = axis["points"][0]["value"], axis["points"][-1]["value"]
            powers = " | ".join(signed(axis[power]) for power in ("exponent", "arithmetic_exponent"))
            # As in chapter 4: six for each multiply-add, of forward and backward pass.
            speeds = [6 * point["multiply_adds"] / point["seconds_per_image"] / 1e9 for point in axis["points"]]
            rounded = ", ".join(f"{speed:,.0f}" for speed in speeds)
            lines.append(f"| {name} {first} … {last} | {powers} | {rounded} | {found['hardware']} |")
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
    for found in sorted(results("train_step-*"), key=lambda found: "NVIDIA" not in found["hardware"]):  # GPUs first
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
