"""A classifier of handwritten digits, trained here, for the test on 1000 modes (paper 2, appendix E).

    trained = train_classifier(photographs, seed=0)     # labelled digits of 28 x 28: pgsr-data of MNIST
    trained.error_rate                                  # on the digits held out
    classify(trained.network, images)                   # [N, 28, 28] in [-1, 1] -> digits [N]

On the same machine and number of threads, the same digits and seed give the same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pgsr import __version__, draws
from pgsr.checkpoint import Checkpoint, load, save
from pgsr.errors import PgsrError

from ..data.cache import Photographs

SIDE = 28
HELD_OUT = 0.15  # of the digits
# How far a digit is changed while training, at most and either way: turned (radians), its width and height
# (of 1), sheared, moved across and down (pixels).
RANGES = (0.21, 0.12, 0.12, 0.15, 2.5, 2.5)
BATCH = 64
EPOCHS = 16
MAPS = 16
RATE = 2e-3  # of Adam at the first step; it falls to 0 in a line

Report = Callable[[str], None]


class DigitClassifier(nn.Module):
    """Digits [N, 1, 28, 28] in [-1, 1] -> logits [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        m = MAPS
        widths = ((1, m), (m, m), (m, 2 * m), (2 * m, 2 * m), (2 * m, 4 * m))
        self.convolutions = nn.ModuleList([nn.Conv2d(*width, 3, padding=1, bias=False) for width in widths])
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs) for _, outputs in widths])
        self.dropout = nn.Dropout(0.3)
        self.last = nn.Linear(4 * m * 9, 10)

    def forward(self, x: Tensor) -> Tensor:
        for level, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = F.relu(norm(convolution(x)))
            x = F.max_pool2d(x, 2) if level in (1, 3, 4) else x  # to 14, 7, 3
        return self.last(self.dropout(x.flatten(1)))


@dataclass(frozen=True)
class Trained:
    """A classifier and how well it does."""

    network: DigitClassifier  # in eval mode, on the CPU
    error_rate: float  # on the digits held out
    held_out: int
    trained_on: int
    seed: int
    fingerprint: str  # of the digits


def train_classifier(
    digits: Photographs, seed: int, epochs: int = EPOCHS, report: Report | None = None
) -> Trained:
    """Trains on 85% of the digits and counts errors on the others; which is which the seed decides.

    Raises PgsrError unless these are labelled digits of 28 x 28.
    """
    labels = _checked(digits)
    order = draws.permutation(seed, "digits", 0, len(digits))
    count = len(digits) - round(HELD_OUT * len(digits))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DigitClassifier()
        _fit(network, digits.pixels, labels, order[:count], seed, epochs, report)
    network.eval().requires_grad_(False)
    held_out = order[count:]
    wrong = classify(network, _images(digits.pixels, held_out)[:, 0]) != labels[held_out]
    return Trained(network, float(wrong.mean()), len(held_out), count, seed, digits.fingerprint)


def _checked(digits: Photographs) -> NDArray[np.int64]:
    if digits.labels is None or len(digits.label_names) != 10 or digits.pixels.shape[1] != SIDE:
        raise PgsrError("the classifier needs labelled digits of 28x28: prepare MNIST's files with pgsr-data")
    return digits.labels


def _images(pixels: NDArray[np.uint8], rows: NDArray[np.int64]) -> Tensor:
    """One channel of the pictures: [N, 1, 28, 28] in [-1, 1]."""
    return torch.from_numpy(pixels[rows, :, :, 0].astype(np.float32) / 127.5 - 1.0)[:, None]


def _fit(
    network: DigitClassifier,
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64],
    rows: NDArray[np.int64],
    seed: int,
    epochs: int,
    report: Report | None,
) -> None:
    images, targets = _images(pixels, rows), torch.from_numpy(labels[rows])
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    steps = epochs * -(-len(rows) // BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for epoch in range(epochs):
        order = torch.from_numpy(draws.permutation(seed, "digits", 2 * epoch + 1, len(rows)))
        numbers = draws.uniforms(seed, "digits", 2 * epoch + 2, len(rows) * len(RANGES))
        changes = torch.from_numpy(numbers.reshape(len(rows), -1).astype(np.float32))
        losses = []
        for batch, change in zip(order.split(BATCH), changes.split(BATCH), strict=True):
            loss = F.cross_entropy(network(changed(images[batch], change)), targets[batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        if report is not None:
            report(f"digit classifier: epoch {epoch + 1} of {epochs}, loss {np.mean(losses):.4f}")


def changed(images: Tensor, numbers: Tensor) -> Tensor:
    """Each image [N, 1, 28, 28] turned, stretched, sheared and moved, by numbers in [0, 1) [N, 6], 0.5 being
    no change; black comes in."""
    turn, wide, high, shear, right, down = ((2 * numbers - 1) * torch.tensor(RANGES)).unbind(1)
    cos, sin = turn.cos(), turn.sin()
    # Where an output pixel looks, in units of half a side from the middle (affine_grid's).
    across = torch.stack([cos * (1 + wide), shear - sin * (1 + high), -2 * right / SIDE], dim=1)
    below = torch.stack([sin * (1 + wide), cos * (1 + high), -2 * down / SIDE], dim=1)
    grid = F.affine_grid(torch.stack([across, below], dim=1), [*images.shape], align_corners=False)
    return F.grid_sample(images + 1, grid, align_corners=False) - 1


@torch.no_grad()
def classify(network: DigitClassifier, images: Tensor) -> NDArray[np.int64]:
    """The digit that each image looks most like: [N, 28, 28] in [-1, 1] -> [N]."""
    parts = [network(part[:, None]).argmax(1) for part in images.split(1024)]
    return torch.cat(parts).cpu().numpy()


# ----------------------------------------------------------------------------
# Its file: a checkpoint, so that a flipped bit is found.


def save_classifier(path: Path, trained: Trained) -> None:
    """Writes the whole file or nothing. Raises PgsrError if it cannot be written."""
    tensors = {f"classifier.{name}": value for name, value in trained.network.state_dict().items()}
    progress = {name: getattr(trained, name) for name in ("error_rate", "held_out", "trained_on")}
    provenance = {"version": __version__, "data": {"fingerprint": trained.fingerprint}}
    save(path, Checkpoint(tensors, {"kind": "digits", "seed": trained.seed}, progress, provenance))


def load_classifier(path: Path) -> Trained:
    """Raises PgsrError if the file is absent, damaged or not a digit classifier."""
    checkpoint = load(path)
    network = DigitClassifier()
    try:
        network.load_state_dict(checkpoint.under("classifier."))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise PgsrError(f"{path} is not a digit classifier of this pgsr ({reason}): remove it") from error
    network.eval().requires_grad_(False)
    fingerprint = checkpoint.provenance["data"]["fingerprint"]
    return Trained(network, seed=checkpoint.config["seed"], fingerprint=fingerprint, **checkpoint.progress)
