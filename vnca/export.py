"""Models as scripts for the book's pages: the format that `book/_static/live/network.js` reads.

A model becomes a call, `vncaLive.addModel({...})`, with a header that describes its layers as data and its weights as
base64 text. A script, because pages that are opened as files may load scripts and nothing else. The header has

- `format` (1), `name`, `precision` and `crc32`, the checksum of the bytes of the weights;
- `update`, the layers whose result is added to the cells, or `encoder` or `decoder`, the layers of one that has no
  cells, or `prior`. A layer is `{"op": "conv", "in", "out", "kernel", "stride", "padding", "bias", "activation"}`, or
  `{"op": "residual", "layers"}`, whose result is added to its input. The activation is `"none"`, `"elu"` or `"relu"`. A
  linear layer is a convolution whose kernel covers the whole grid. Before it becomes a grid, `{"op": "unflatten",
  "size"}`, a vector is a grid of one cell. A transposed convolution is `{"op": "spread", "by"}`, which puts zeros
  between the cells, and a convolution whose kernel is turned around;
- sizes: `latentSize`, `image` and `border`; of cells also `channels`, `grid` (the largest side), `seed` and `schedule`;
- `genome`, how many channels, the last ones, are a genome: such cells mature, see `vnca.cells.MaturingUpdate`;
- `aging`, the side of the grid on which cells age, see `vnca.PersistentDecoder`; 0 if they do not;
- `latents` of a decoder without cells: those of the latent's numbers that change its images most, the first one most,
  each with the number of pixels that it changes;
- `shares` of the components of a prior, and `used`, the numbers of the latent that the components are about. Its one
  layer moves standard normal noise to all components at once;
- `rule` of an automaton whose cells fire at random: `fireRate` and `living`, the channel and threshold of life.

Weights in `"float16"` or `"float32"` follow each other, little-endian, in the order of the layers: `(out, in, kernel,
kernel)`, then the bias. In `"int10"`, `"int12"`, `"int14"` and `"int16"` each output channel has a scale, and its
weights are whole numbers times that. First come all those numbers: in 10 bits from -511 to 511, plus 512, one right
behind the other, the highest bit first, likewise in 12 and 14 bits; or from -32767 to 32767 in two bytes each,
little-endian. Then, layer by layer, the scales and the bias in float32.

Decoder and encoder go into scripts of their own, because most pages need only the decoder. Growth feeds every error
back into itself, so doubling cells come in int14, maturing ones, which take more steps, in int16, and those that never
come to rest, which are small, in float32. Decoders without cells are large and forgiving: int12 is as exact in what
they say about an image as float16 would be, and a quarter smaller. Encoders are as large and more forgiving: in int10
the Gaussian that they name is off by a thousandth of a nat. Priors come in int10, too. The small automaton comes in
float16.
"""

import base64
import copy
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vnca import files, growing, pretrained
from vnca.cells import MaturingUpdate, Residual, SimpleUpdate, Update
from vnca.decoders import BORDER, GRID_SIZE, IMAGE_SIZE, CellDecoder, ConvDecoder, PersistentDecoder
from vnca.priors import CorrelatedMixturePrior, StandardNormal
from vnca.vae import VAE

FORMAT = 1
ACTIVATIONS = {nn.ELU: "elu", nn.ReLU: "relu"}
PRECISIONS = {Update: "int14", MaturingUpdate: "int16", SimpleUpdate: "float32"}  # of cells


def export(name: str | os.PathLike, folder: str | os.PathLike, float32: bool = False) -> list[Path]:
    """Write the decoder and the encoder of a trained model as scripts, `NAME.js` and `NAME-encoder.js`.

    Args:
        name: shipped weights, or the folder of a run; the scripts are named after it.
        folder: where the scripts go; it is made if it does not exist.
        float32: write the weights as they are instead of rounded.

    Returns:
        The two files.

    Raises:
        ValueError: if there are no such weights, or the pages cannot run them (see `decoder_script`).
        OSError: if the folder cannot be written.
    """
    model, title = pretrained.load(name), pretrained.find(name).resolve().name
    scripts = {
        f"{title}.js": decoder_script(model, title, float32),
        f"{title}-encoder.js": encoder_script(model, f"{title}-encoder", float32),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for file, script in scripts.items():
        files.write_text(folder / file, script)
    return [folder / file for file in scripts]


def decoder_script(model: VAE, name: str, float32: bool = False) -> str:
    """The script of a VAE's decoder: for an `Engine` in the page if it is made of cells, else for a `Decoder`.

    Raises:
        ValueError: if it is of a class, or has a layer, that the pages do not know, if the prior was learned, or if a
            weight is not finite.
    """
    if not isinstance(model.prior, StandardNormal):
        raise ValueError(f"the pages draw latents from the standard normal, but {name} has a prior that was learned")
    if isinstance(model.decoder, CellDecoder):
        update = type(model.decoder.update)
        if update not in PRECISIONS:
            raise ValueError(f"the pages know no update of the class {update.__name__}")
        return _cells_script(model.decoder, name, "float32" if float32 else PRECISIONS[update])
    if isinstance(model.decoder, ConvDecoder):
        return _images_script(model.decoder, name, "float32" if float32 else "int12")
    raise ValueError(f"the pages know no decoder of the class {type(model.decoder).__name__}")


def _cells_script(decoder: CellDecoder, name: str, precision: str) -> str:
    """Latents `(D,)` to cells `(C, 32, 32)`."""
    schedule = [list(event) for event in decoder.schedule()]
    header = {
        "channels": decoder.channels,
        "latentSize": decoder.latent_size,
        "grid": GRID_SIZE,
        "image": IMAGE_SIZE,
        "border": BORDER,
        "seed": {"size": schedule[0][1]},
        "genome": getattr(decoder.update, "genome", 0),
        "aging": GRID_SIZE if isinstance(decoder, PersistentDecoder) else 0,
        "schedule": schedule,
    }
    return _script(name, header, "update", decoder.update.layers, precision)


def _images_script(decoder: ConvDecoder, name: str, precision: str) -> str:
    """Latents `(D,)` to images `(28, 28)`."""
    header = {
        "latentSize": decoder.latent_size,
        "image": IMAGE_SIZE,
        "border": BORDER,
        "latents": telling_latents(decoder),
    }
    return _script(name, header, "decoder", decoder.layers, precision)


@torch.no_grad()
def telling_latents(decoder: ConvDecoder) -> list[tuple[int, int]]:
    """The numbers of the latent that change images, the first one most, each with how many pixels it changes.

    Counted in probability: the sum over all pixels of how far each moves when the number goes from -1 to 1, on average
    over latents of the prior. Numbers that change less than a tenth of what the first one does are left out.
    """
    exact = copy.deepcopy(decoder).double()  # so that no machine rounds its way to another order
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(64, decoder.latent_size, generator=generator, dtype=torch.float64)

    def images(index: int, value: float) -> Tensor:
        moved = latents.clone()
        moved[:, index] = value
        return exact(moved).sigmoid()

    changes = [
        (images(index, 1) - images(index, -1)).abs().sum(dim=(1, 2, 3)).mean().item()
        for index in range(decoder.latent_size)
    ]
    order = sorted(range(decoder.latent_size), key=lambda index: -changes[index])
    return [(index, round(changes[index])) for index in order if changes[index] > changes[order[0]] / 10]


def encoder_script(model: VAE, name: str, float32: bool = False) -> str:
    """The script of a VAE's encoder, images `(28, 28)` to mean and log-scale `(D,)`, for an `Encoder` in the page.

    Raises:
        ValueError: if it has a layer that the pages do not know, or if a weight is not finite.
    """
    header = {"latentSize": model.latent_size, "image": IMAGE_SIZE, "border": BORDER}
    return _script(name, header, "encoder", model.encoder.layers, "float32" if float32 else "int10")


def prior_script(model: VAE, name: str, float32: bool = False) -> str:
    """The script of a VAE's learned prior, noise `(D,)` to latents `(D,)`, for a `Prior` in the page.

    Raises:
        ValueError: if the prior is no `CorrelatedMixturePrior`, or a weight is not finite.
    """
    if not isinstance(model.prior, CorrelatedMixturePrior):
        raise ValueError(f"the pages know no prior of the class {type(model.prior).__name__}")
    # In float64, so that machines which round an exponential differently write the same script.
    prior = copy.deepcopy(model.prior).double()
    with torch.no_grad():
        roots = prior.roots()  # (C, A, A)
        moves = torch.linalg.solve_triangular(roots, torch.eye(roots.shape[1]).double(), upper=False)
        layer = nn.Linear(roots.shape[1], prior.mean.numel())
        layer.weight.copy_(moves.flatten(0, 1))
        layer.bias.copy_(prior.mean.flatten())
        shares = prior.log_share.softmax(dim=0)
    header = {
        "latentSize": model.latent_size,
        "used": prior.used.tolist(),
        "shares": [round(share, 6) for share in shares.tolist()],
    }
    return _script(name, header, "prior", nn.Sequential(layer), "float32" if float32 else "int10")


def automaton_script(automaton: growing.GrowingAutomaton, name: str, size: int, float32: bool = False) -> str:
    """The script of the growing automaton of chapter 2 on `(C, size, size)` cells, for an `Engine` in the page.

    Perception and the first layer of thought are linear: together they are one 3 × 3 convolution.

    Raises:
        ValueError: if `size` is below 1, or a weight is not finite or too large for float16.
    """
    if size < 1:
        raise ValueError(f"a grid has at least 1 cell, not {size}")
    change = automaton.change
    channels, hidden = change.out_channels, change.in_channels
    # What a cell in the middle of a 3 × 3 grid sees of each neighbor: the value and the gradients along x and y.
    impulses = torch.eye(9, dtype=torch.float64).view(9, 1, 3, 3)
    filters = growing.perceive(impulses)[:, :, 1, 1].T.reshape(3, 3, 3)  # (what is seen, dy, dx)
    think = automaton.think.weight.detach().double().view(hidden, channels, 3)
    merged = nn.Conv2d(channels, hidden, 3, padding=1)
    with torch.no_grad():
        merged.weight.copy_(torch.einsum("hcs,syx->hcyx", think, filters))
        merged.bias.copy_(automaton.think.bias)
    header = {
        "channels": channels,
        "grid": size,
        "seed": {"size": size, "ones": growing.ALPHA, "number": growing.NUMBER},
        "rule": {
            "fireRate": automaton.fire_rate,
            "living": {"channel": growing.ALPHA, "threshold": growing.LIVING},
        },
    }
    return _script(
        name, header, "update", nn.Sequential(merged, nn.ReLU(), change), "float32" if float32 else "float16"
    )


def _script(name: str, header: dict, part: str, layers: nn.Sequential, precision: str) -> str:
    described = _described(layers)
    tensors = [tensor.detach().float().numpy() for tensor in _tensors(layers)]
    if not all(np.isfinite(tensor).all() for tensor in tensors):
        raise ValueError(f"the weights of {name} are not all finite numbers, so a page cannot run it")
    content = ENCODINGS[precision](tensors)
    model = {
        "format": FORMAT,
        "name": name,
        **header,
        part: described,
        "precision": precision,
        "crc32": zlib.crc32(content),
        "weights": base64.b64encode(content).decode(),
    }
    return f"vncaLive.addModel({json.dumps(model)});\n"


def _scaled(tensors: list[np.ndarray], largest: int, pack: Callable[[np.ndarray], bytes]) -> bytes:
    """Weights as packed whole numbers up to `largest`, then scales and biases; see the head of this file."""
    codes, floats = [], []
    for tensor in tensors:
        if tensor.ndim == 1:  # a bias
            floats.append(tensor)
            continue
        rows = tensor.reshape(len(tensor), -1)  # (out, inputs)
        scale = np.abs(rows).max(axis=1, keepdims=True) / np.float32(largest)
        codes.append(np.rint(rows / np.where(scale > 0, scale, 1)).astype(np.int32).ravel())
        floats.append(scale.ravel())
    return pack(np.concatenate(codes)) + np.concatenate(floats).astype("<f4").tobytes()


def _in_bits(tensors: list[np.ndarray], bits: int) -> bytes:
    """Weights as whole numbers of so many bits, at most 16; the last byte is filled up with zeros."""
    middle = 1 << (bits - 1)

    def pack(numbers: np.ndarray) -> bytes:
        of_each = np.unpackbits((numbers + middle).astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)  # (N, 16)
        return np.packbits(of_each[:, 16 - bits :]).tobytes()

    return _scaled(tensors, middle - 1, pack)


def _float16(tensors: list[np.ndarray]) -> bytes:
    largest, most = max(np.abs(tensor).max() for tensor in tensors), np.finfo(np.float16).max
    if largest > most:
        raise ValueError(
            f"the largest weight is {largest:.6g}, and float16 ends at {most:.6g}: export with float32=True"
        )
    return b"".join(tensor.astype("<f2").tobytes() for tensor in tensors)


ENCODINGS: dict[str, Callable[[list[np.ndarray]], bytes]] = {
    "float16": _float16,
    "float32": lambda tensors: b"".join(tensor.astype("<f4").tobytes() for tensor in tensors),
    "int10": lambda tensors: _in_bits(tensors, 10),
    "int12": lambda tensors: _in_bits(tensors, 12),
    "int14": lambda tensors: _in_bits(tensors, 14),
    "int16": lambda tensors: _scaled(tensors, 32767, lambda numbers: numbers.astype("<i2").tobytes()),
}


def _described(layers: nn.Sequential) -> list[dict]:
    """The layers as data."""
    described: list[dict] = []
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            described.append(_convolution(layer))
        elif isinstance(layer, nn.Linear):
            before = described[-1]["out"] if described else layer.in_features
            kernel = math.isqrt(layer.in_features // before)
            sizes = {"in": before, "out": layer.out_features, "kernel": kernel, "stride": 1, "padding": 0}
            described.append({"op": "conv", **sizes, "bias": layer.bias is not None, "activation": "none"})
        elif isinstance(layer, nn.Unflatten):
            described.append({"op": "unflatten", "size": layer.unflattened_size[1]})
        elif isinstance(layer, nn.ConvTranspose2d) and layer.output_padding[0] == layer.stride[0] - 1:
            described += [{"op": "spread", "by": layer.stride[0]}, _convolution(layer)]
        elif isinstance(layer, Residual):
            described.append({"op": "residual", "layers": _described(layer.layers)})
        elif type(layer) in ACTIVATIONS:
            *_, last = (one for one in described if one["op"] == "conv")  # past an unflatten, which only moves numbers
            last["activation"] = ACTIVATIONS[type(layer)]
        elif not isinstance(layer, nn.Flatten):  # the order in memory is already that of a flattened grid
            raise ValueError(f"the pages do not know the layer {layer}")
    return described


def _convolution(layer: nn.Conv2d | nn.ConvTranspose2d) -> dict:
    kernel, stride, padding = layer.kernel_size[0], layer.stride[0], layer.padding[0]
    if isinstance(layer, nn.ConvTranspose2d):
        stride, padding = 1, kernel - 1 - padding
    return {
        "op": "conv",
        "in": layer.in_channels,
        "out": layer.out_channels,
        "kernel": kernel,
        "stride": stride,
        "padding": padding,
        "bias": layer.bias is not None,
        "activation": "none",
    }


def _tensors(layers: nn.Sequential) -> Iterator[Tensor]:
    """Weight and bias of every layer, in the order in which the header describes them."""
    for layer in layers.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
            turn = isinstance(layer, nn.ConvTranspose2d)
            yield layer.weight.transpose(0, 1).flip(2, 3) if turn else layer.weight
            if layer.bias is not None:
                yield layer.bias
