"""Measure how much a model's samples look like digits to a classifier.

    python benchmarks/samples.py conv-mnist doubling-mnist-small best-mnist-small
    python benchmarks/samples.py doubling-mnist best-mnist

A small convolutional network learns the classes of the gray MNIST training images, each pixel drawn as black or white
anew every time. Then it looks at 1,000 samples of shipped weights or of the folders of runs, their pixels drawn as
well, and at test images. For each it tells

- `sure`: the share that it puts into one class with a probability above 0.95;
- `classes`: how many samples it puts into each class;
- `frechet`: the Fréchet distance to the test images, between Gaussians fitted to what its last hidden layer makes of
  both (Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", 2017, with this network in the place of theirs).
  It is too large by chance, the more so the fewer the samples; 1,000 test images beside the others tell by how much.

Each model is a row of `results/samples.json`, written as soon as it is measured. Each call trains the classifier anew,
to the same weights on the same machine; rows that another one has judged are refused.
"""

import argparse
import datetime
import json
import sys
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from proposals import load_model
from torch import Tensor, nn
from tqdm import tqdm

from vnca import data, evaluation, files, hardware
from vnca.seeds import seed_of

RESULT = Path(__file__).resolve().parent.parent / "results" / "samples.json"
SEED = 0
SURE = 0.95
SAMPLES = 1000
UPDATES, BATCH = 3000, 128


class Classifier(nn.Module):
    """Two convolutions and two linear layers: images `(B, 1, 28, 28)` -> logits of ten classes `(B, 10)`."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, stride=2, padding=1),  # 28 x 28 => 14 x 14
            nn.ELU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),  # 14 x 14 => 7 x 7
            nn.ELU(),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 64),
            nn.ELU(),
        )
        self.classes = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(self.features(x))


def trained(images: Tensor, labels: Tensor) -> Classifier:
    """A classifier of gray images `(N, 1, 28, 28)`, whose pixels are drawn anew in each update."""
    generator = torch.Generator().manual_seed(seed_of(SEED, "training"))
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(SEED, "weights"))
        classifier = Classifier()
    optimizer = torch.optim.Adam(classifier.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, UPDATES)
    for _ in tqdm(range(UPDATES), desc="classifier", disable=None, leave=False):
        chosen = torch.randint(len(images), (BATCH,), generator=generator)
        x = torch.bernoulli(images[chosen], generator=generator)
        loss = F.cross_entropy(classifier(x), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return classifier.requires_grad_(False)


def frechet(ours: Tensor, theirs: Tensor) -> float:
    """The squared Fréchet distance of Gaussians fitted to features `(N, D)` and `(M, D)`."""
    (mean, covariance), (their_mean, their_covariance) = (
        (features.double().mean(dim=0).numpy(), np.cov(features.double().numpy(), rowvar=False))
        for features in (ours, theirs)
    )
    root = scipy.linalg.sqrtm(covariance @ their_covariance).real
    return float(((mean - their_mean) ** 2).sum() + np.trace(covariance + their_covariance - 2 * root))


def judge(classifier: Classifier, x: Tensor, test: Tensor) -> dict:
    """What the classifier says of binary images, beside its features of test images `(N, 64)`."""
    features = classifier.features(x)
    best, classes = classifier.classes(features).softmax(dim=1).max(dim=1)
    share = (best > SURE).double().mean().item()
    return {
        "images": len(x),
        "sure": [share, (share * (1 - share) / len(x)) ** 0.5],
        "classes": torch.bincount(classes, minlength=10).tolist(),
        "frechet": frechet(features, test),
    }


@torch.no_grad()
def sampled(name: str, count: int) -> tuple[str, Tensor]:
    """The name of a model, and samples of it, `(count, 1, 28, 28)`, every pixel drawn."""
    name, model = load_model(name)
    generator = torch.Generator().manual_seed(seed_of(SEED, "samples"))
    parts = []
    with tqdm(total=count, desc=name, unit=" samples", disable=None, leave=False) as bar:
        for done in range(0, count, 50):
            parts.append(model.sample(min(50, count - done), generator).cpu())
            bar.update(len(parts[-1]))
    return name, torch.bernoulli(torch.cat(parts), generator=generator)


def kept(out: Path, head: dict) -> list[dict]:
    """The rows that are there already.

    Raises:
        ValueError: if another classifier has judged them.
    """
    if not out.exists():
        return []
    table = json.loads(out.read_text())
    if table["classifier"] != head["classifier"]:
        raise ValueError(f"the rows in {out} were judged by another classifier: measure all models on one machine")
    return table["rows"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="+", help="names of shipped weights or folders of runs")
    parser.add_argument("--out", type=Path, default=RESULT, help="default: results/samples.json")
    options = parser.parse_args(arguments)
    gray, labels = data.load("mnist", "train+valid").tensors
    classifier = trained(gray, labels)
    test_gray, test_labels = data.load("mnist", "test").tensors
    right = classifier(data.binarize(test_gray)).argmax(dim=1) == test_labels
    test = data.load("binarized-mnist", "test").tensors[0]
    test = test[torch.randperm(len(test), generator=torch.Generator().manual_seed(SEED))]
    features = classifier.features(test)
    head = {
        "accuracy": right.double().mean().item(),
        "sure_above": SURE,
        "test": judge(classifier, test[:SAMPLES], features[SAMPLES:]),
        "classifier": evaluation.digest(classifier.state_dict().values()),
    }
    kept(options.out, head)  # whether rows of another classifier are there, before the work
    for weights in options.weights:
        name, x = sampled(weights, SAMPLES)
        row = {
            "model": name,
            **judge(classifier, x, features),
            "machine": hardware.machine(hardware.best_device()),
            "date": datetime.date.today().isoformat(),
            "commit": hardware.commit(),
        }
        rows = [other for other in kept(options.out, head) if other["model"] != name] + [row]
        files.write_json(options.out, head | {"rows": rows})
        print(f"{name}: sure of {row['sure'][0]:.1%} ± {row['sure'][1]:.1%}, distance {row['frechet']:.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
