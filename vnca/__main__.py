"""The command line: `python -m vnca train | evaluate | sample | inpaint | export`.

Exit codes: 0, 1 (the run failed or was stopped), 2 (bad arguments).
"""

import argparse
import sys
from pathlib import Path

import torch
from torch.nn.functional import adaptive_avg_pool2d
from tqdm import tqdm

from vnca import data, evaluation, export, files, pretrained, training
from vnca.decoders import IMAGE_SIZE
from vnca.inpainting import inpaint
from vnca.pictures import read_png, save_png
from vnca.presets import PRESETS

MOST_IMAGES = 10_000  # in one picture


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a console that has no "±" or "−" shows "?" instead
            stream.reconfigure(errors="replace")
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except ValueError as error:
        return _fail(error, 2)
    except (training.TrainingError, data.DataError, OSError, torch.cuda.OutOfMemoryError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return 1
    return 0


def _fail(error: Exception, code: int) -> int:
    print(f"vnca: {error}", file=sys.stderr)
    return code


def _train(options: argparse.Namespace) -> None:
    preset = "quick" if options.preset is None else options.preset
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; there are {', '.join(PRESETS)}")
    keep = options.resume and options.preset is None
    config = training.saved_config(options.out) if keep else PRESETS[preset].config
    names = ("updates", "minutes", "batch_size", "learning_rate", "init_from", "seed")
    training.train(
        config.changed(**{name: getattr(options, name) for name in names}),
        options.out,
        resume=options.resume,
        overwrite=options.overwrite,
        recompute=options.recompute,
        compiled=options.compile,
        checkpoint_minutes=options.checkpoint_minutes,
    )


def _require_writable(path: Path, *weights: str, option: str = "--out") -> None:
    """Refuse, before the work begins, a file that could not be written after it, or that belongs to the weights."""
    files.require_place(path, option)
    folders = [pretrained.find(each).resolve() for each in weights]
    if files.resolved(path).parent in folders and path.name in training.FILES:
        raise ValueError(f"{option} {path} would replace a file of the weights; give another name")


def _evaluate(options: argparse.Namespace) -> None:
    read = [each for each in (options.weights, options.against) if each is not None]
    paths = {"--out": options.out, "--per-image": options.per_image}
    paths = {option: path for option, path in paths.items() if path is not None}
    for option, path in paths.items():
        _require_writable(path, *read, option=option)
    with tqdm(disable=None, unit=" samples", unit_scale=True, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            if bar.total is None:
                bar.total, bar.initial, bar.n = total, done, done
            bar.update(done - bar.n)

        try:
            result = evaluation.evaluate(
                options.weights,
                options.num_samples,
                options.limit,
                options.seed,
                trust=options.trust,
                bfloat16=options.bfloat16,
                against=options.against,
                out=options.out,
                per_image=options.per_image,
                overwrite=options.overwrite,
                progress=progress,
            )
        except KeyboardInterrupt:
            bar.close()
            kept = "with --out it could go on"
            if options.out is not None and evaluation.kept_path(options.out).exists():
                kept = f"the same call{' without --overwrite' if options.overwrite else ''} goes on from here"
            elif options.out is not None:
                kept = "nothing was done yet"
            print(f"stopped; {kept}")
            raise
    wider = "" if options.trust == 1 else f" from wider proposals, trust {options.trust:g}"
    print(
        f"{result['name']}, {result['data']} {result['split']}: {result['nats']:.2f} ± {result['standard_error']:.2f} "
        f"nats ({result['num_samples']} importance samples{wider}), ELBO {result['elbo']:.2f} "
        f"± {result['elbo_standard_error']:.2f}, on {result['images']:,} images"
    )
    if other := result.get("against"):
        print(
            f"{other['difference']:+.2f} ± {other['difference_standard_error']:.2f} nats, and ELBO "
            f"{other['elbo_difference']:+.2f} ± {other['elbo_difference_standard_error']:.2f}, against {other['name']} "
            "on the same images"
        )
    for path in paths.values():
        print(f"written to {path}")


def _generator(options: argparse.Namespace) -> torch.Generator:
    """The source of randomness of a command that writes `--n` images to `--out`; first it checks these three."""
    if not 1 <= options.n <= MOST_IMAGES:
        raise ValueError(f"--n is from 1 to {MOST_IMAGES}, not {options.n}")
    if not 0 <= options.seed < 2**32:
        raise ValueError(f"--seed is a whole number from 0 to {2**32 - 1}, not {options.seed}")
    _require_writable(options.out, options.weights)
    return torch.Generator().manual_seed(options.seed)


def _sample(options: argparse.Namespace) -> None:
    generator = _generator(options)
    images = pretrained.load(options.weights).sample(options.n, generator)
    save_png(images, options.out)
    print(f"{options.n} samples written to {options.out}")


def _inpaint(options: argparse.Namespace) -> None:
    generator = _generator(options)
    if files.resolved(options.out) in (files.resolved(options.image), files.resolved(options.mask)):
        raise ValueError(f"--out {options.out} would replace a file that is read; give another name")
    x, observed = _image_and_mask(options)
    completions = inpaint(pretrained.load(options.weights), x[None], observed[None], options.n, generator)
    damaged = torch.where(observed, x, 0.5)
    save_png([x, damaged, *completions[:, 0]], options.out, columns=6)
    print(f"{int((~observed).sum())} of {observed.numel()} pixels painted in, {options.n} times: {options.out}")


def _image_and_mask(options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """The image `(1, 28, 28)` and the mask of its observed pixels, bool, of the same shape."""
    x, mask = read_png(options.image), read_png(options.mask)
    if 0 < mask.max() < 0.5:
        raise ValueError(
            f"{options.mask} has no white pixel, and so would hide the whole image: its largest value is "
            f"{255 * mask.max():.0f} of 255. Of zeros and ones save mask * 255"
        )
    white = mask >= 0.5
    for path, picture in ((options.image, x), (options.mask, white)):
        height, width = picture.shape[1:]
        if (height, width) != (IMAGE_SIZE, IMAGE_SIZE) and not options.resize:
            raise ValueError(
                f"{path} has {width} x {height} pixels, and the models know images of {IMAGE_SIZE} x {IMAGE_SIZE} "
                "only; --resize scales it"
            )
    if x.shape != white.shape:
        raise ValueError(
            f"image and mask must be of one size, but {options.image} has {x.shape[2]} x {x.shape[1]} pixels "
            f"and {options.mask} has {white.shape[2]} x {white.shape[1]}"
        )
    small = adaptive_avg_pool2d(torch.stack([x, white.float()]), IMAGE_SIZE)  # (2, 1, 28, 28), means of what falls in
    return small[0], small[1] > 0.999  # a pixel is observed where all of it is


def _export(options: argparse.Namespace) -> None:
    for path in export.export(options.weights, options.out, options.float32):
        print(f"{path}: {path.stat().st_size:,} bytes")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vnca", description="Train, evaluate and sample from VNCAs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_train, _add_evaluate, _add_sample, _add_inpaint, _add_export):
        add(commands)
    return parser


def _add_train(commands: argparse._SubParsersAction) -> None:
    width = max(map(len, PRESETS))
    command = commands.add_parser(
        "train",
        help="train a model into a folder",
        epilog="presets:\n"
        + "\n".join(f"  {name:{width}} {p.purpose} ({p.expected()})" for name, p in PRESETS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    presets = ", ".join(PRESETS)
    command.add_argument("--preset", help=f"one of {presets} (default: quick, or that of the run to resume)")
    command.add_argument("--out", type=Path, required=True, help="the run's folder")
    command.add_argument("--updates", type=int, help="train for this many updates instead of the preset's")
    command.add_argument("--minutes", type=float, help="train for this long, whatever the number of updates")
    command.add_argument("--batch-size", type=int, help="another number of images an update than the preset's")
    command.add_argument("--learning-rate", type=float, help="another peak of the learning rate than the preset's")
    command.add_argument("--init-from", help="start from these weights: shipped ones or the folder of a run")
    command.add_argument("--seed", type=int, help="another seed than the preset's")
    command.add_argument(
        "--recompute", action="store_true", help="save memory: compute steps again in the backward pass"
    )
    command.add_argument("--compile", action="store_true", help="compile the update of the cells with torch.compile")
    command.add_argument("--checkpoint-minutes", type=float, default=1.0, help="time between checkpoints (default: 1)")
    existing = command.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    existing.add_argument("--overwrite", action="store_true", help="start anew in a folder that has files")
    command.set_defaults(run=_train)


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("evaluate", help="bounds on the log-likelihood of the test set, in nats")
    _add_weights(command)
    command.add_argument("--num-samples", type=int, default=128, help="importance samples an image (default: 128)")
    command.add_argument("--limit", type=int, help="this many test images, drawn at random, instead of all")
    command.add_argument("--seed", type=int, default=0, help="of the samples (default: 0)")
    command.add_argument(
        "--bfloat16", action="store_true", help="up to twice as fast, where the machine has it; changes the figures"
    )
    command.add_argument(
        "--trust", type=float, default=1.0, help="below 1, draw from proposals wider than the posterior (default: 1)"
    )
    command.add_argument("--against", help="evaluate these weights on the same images, too, for the difference")
    command.add_argument(
        "--out", type=Path, help="write the result to this JSON file; an evaluation that was cut goes on from beside it"
    )
    command.add_argument(
        "--per-image",
        type=Path,
        help="write the bounds of each image to this safetensors file, without those of --against",
    )
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="start anew, whatever is kept beside --out; replace --out, whatever it is (else only a result of the same "
        "weights, images, samples, seed, trust and precision is replaced)",
    )
    command.set_defaults(run=_evaluate)


def _add_sample(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("sample", help="draw images from the prior into a PNG file")
    _add_weights(command)
    command.add_argument("--out", type=Path, required=True, help="the PNG file")
    command.add_argument("--n", type=int, default=64, help="how many (default: 64)")
    command.add_argument("--seed", type=int, default=0, help="of the latents (default: 0)")
    command.set_defaults(run=_sample)


def _add_inpaint(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "inpaint",
        help="paint in the missing pixels of an image",
        description="Paint in the missing pixels of an image. The PNG file written shows the image, the image with the "
        "missing pixels in grey, and the completions. Colors are converted to grey, transparent pixels to white. The "
        "models know white ink on black.",
    )
    _add_weights(command)
    command.add_argument("--image", type=Path, required=True, help="a PNG file of 28 x 28 pixels")
    command.add_argument(
        "--mask", type=Path, required=True, help="a PNG file of the same size: white where observed, else black"
    )
    command.add_argument("--out", type=Path, required=True, help="the PNG file to write")
    command.add_argument("--n", type=int, default=16, help="how many completions (default: 16)")
    command.add_argument("--seed", type=int, default=0, help="of the completions (default: 0)")
    command.add_argument(
        "--resize", action="store_true", help="scale an image and a mask of another size; a square stays undistorted"
    )
    command.set_defaults(run=_inpaint)


def _add_export(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "export",
        help="write a model as scripts for the book's pages",
        description="Write the decoder and the encoder of a model as scripts, NAME.js and NAME-encoder.js, which the "
        "live figures of the book's pages run. Models whose prior was learned cannot be written.",
    )
    _add_weights(command)
    command.add_argument("--out", type=Path, required=True, help="the folder of the scripts")
    command.add_argument("--float32", action="store_true", help="do not round the weights")
    command.set_defaults(run=_export)


def _add_weights(command: argparse.ArgumentParser) -> None:
    names = ", ".join(pretrained.available()) or "none yet"
    command.add_argument("--weights", required=True, help=f"shipped weights ({names}) or the folder of a run")


if __name__ == "__main__":
    sys.exit(main())
