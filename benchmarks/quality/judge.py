"""A second judge: a classifier of faces' attributes, trained here, whose last features score generated faces.

pgsr-bench judge --data faces.zip --labels list_attr_celeba.txt --out judge.onnx
pgsr-bench quality --data faces.zip --features judge.onnx

A generator whose critic looks at pretrained features (kind = "projected") is not to be judged by the same
features alone. This network has seen nothing but photographs of faces and which of them smile, wear glasses
and so on. On the same machine and number of threads, the same data and seed give the same file.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pgsr import draws
from pgsr.errors import PgsrError
from pgsr.export.onnx_file import to_onnx
from pgsr.files import replacing
from pgsr.trainer.data.cache import load_photographs
from pgsr.trainer.data.celeba import PARTS, Table, file_name, read_table
from pgsr.trainer.data.sources import of_size, open_pictures

SIDE = 64  # of its images
WIDTHS = (24, 48, 96, 192)  # maps at 32, 16, 8, 4
SHIFT = 4  # pixels: the most a photograph is moved while training
BATCH = 64
RATE = 2e-3  # of AdamW at its highest; it rises for a tenth of the steps and falls by a cosine
HELD_OUT = 0.1  # of the photographs, where no annotation says which
UNKNOWN = -1
PARTITION_COLUMN = "partition"

Report = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What is trained on. Raises PgsrError for values out of range."""

    data: Path
    labels: tuple[Path, ...]  # of CelebA's form, or CSV; a column of 0 (or -1) and 1 is an attribute
    epochs: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.labels:
            raise PgsrError("--labels FILE: name the annotations, such as CelebA's list_attr_celeba.txt")
        if self.epochs < 1:
            raise PgsrError(f"--epochs {self.epochs} is below 1")


class Judge(nn.Module):
    """Faces uint8 [N, 3, 64, 64] -> features [N, 192]; `logits` also gives one for each attribute."""

    def __init__(self, attributes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise((3, *WIDTHS)):
            layers += [*_convolution(inputs, outputs, 2), *_convolution(outputs, outputs, 1)]
        self.layers = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.3)
        self.last = nn.Linear(WIDTHS[-1], attributes)

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.layers(images.float() / 127.5 - 1)
        return x.mean(dim=(2, 3))

    def logits(self, images: Tensor) -> Tensor:
        """[N, attributes]."""
        x: Tensor = self.last(self.dropout(self(images)))
        return x


def _convolution(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


@dataclass(frozen=True)
class Annotations:
    """What is known of every photograph."""

    attributes: tuple[str, ...]
    values: NDArray[np.int8]  # [N, attributes]: 0, 1 or UNKNOWN
    training: NDArray[np.bool_]  # [N]; the others are held out


def known_of(names: Sequence[str], tables: Sequence[Table], seed: int) -> Annotations:
    """What the tables say of pictures, by their file names; columns of one name (in any case) are one.

    Raises PgsrError if none has an attribute, or they know none of the pictures.
    """
    columns = {(c.lower(), t.path): i for t in tables for i, c in enumerate(t.columns) if _is_attribute(t, i)}
    attributes = tuple(sorted({name for name, _ in columns}))
    if not attributes:
        raise PgsrError(f"{tables[0].path} has no column of 0 (or -1) and 1: which attributes are in it?")
    values = np.full((len(names), len(attributes)), UNKNOWN, dtype=np.int8)
    for table in tables:
        for (attribute, path), column in columns.items():
            if path != table.path:
                continue
            for i, name in enumerate(names):
                row = table.row(file_name(name))
                if row is not None:
                    values[i, attributes.index(attribute)] = row[column].strip() == "1"
    known = (values != UNKNOWN).any(axis=1)
    if not known.any():
        raise PgsrError(f"{tables[0].path} knows none of the pictures: is it of another set?")
    return Annotations(attributes, values, known & _in_training(names, tables, seed))


def _is_attribute(table: Table, column: int) -> bool:
    return table.columns[column] != PARTITION_COLUMN and {
        row[column].strip() for row in table.rows.values()
    } in ({"0", "1"}, {"-1", "1"})


def _in_training(names: Sequence[str], tables: Sequence[Table], seed: int) -> NDArray[np.bool_]:
    """By CelebA's partition where a table has it, so that no person is on both sides; else by the seed."""
    parts: dict[str, str] = {}
    for table in tables:
        if PARTITION_COLUMN in table.columns:
            column = table.columns.index(PARTITION_COLUMN)
            rows = {name: table.row(file_name(name)) for name in names}
            parts |= {name: row[column].strip() for name, row in rows.items() if row is not None}
    if parts:
        return np.array([parts.get(name) == str(PARTS["train"]) for name in names])
    training = np.ones(len(names), dtype=bool)
    training[draws.permutation(seed, "evaluation", 1, len(names))[: max(1, round(HELD_OUT * len(names)))]] = (
        False
    )
    return training


# ----------------------------------------------------------------------------
# Training.


def run(settings: Settings, report: Report) -> tuple[Judge, dict[str, Any]]:
    """The judge in eval mode, and what it came from and how well it does.

    Raises PgsrError if photographs or annotations cannot be used.
    """
    photographs = load_photographs(settings.data, SIDE)
    every = of_size(open_pictures(settings.data), SIDE).names
    names = [every[position] for position in photographs.in_listing()]
    known = known_of(names, [read_table(path) for path in settings.labels], settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        judge = Judge(len(known.attributes))
        _fit(judge, photographs.pixels, known, settings.epochs, report)
    judge.eval().requires_grad_(False)
    held_out = np.flatnonzero(~known.training & (known.values != UNKNOWN).any(axis=1))
    return judge, {
        "data": photographs.fingerprint,
        "trained_on": int(known.training.sum()),
        "held_out": len(held_out),
        "seed": settings.seed,
        "epochs": settings.epochs,
        "accuracy": _accuracy(judge, photographs.pixels, known, held_out),
    }


def _fit(judge: Judge, pixels: NDArray[np.uint8], known: Annotations, epochs: int, report: Report) -> None:
    rows = np.flatnonzero(known.training)
    if len(rows) < 2:
        raise PgsrError(f"{len(rows)} annotated photographs are too few to train a judge on")
    values = torch.from_numpy(known.values)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=RATE, weight_decay=0.01)
    steps = epochs * -(-len(rows) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share_of_rate(step, steps))
    for epoch in range(epochs):
        losses = []
        for part in torch.from_numpy(rows[torch.randperm(len(rows)).numpy()]).split(BATCH):
            logits = judge.logits(_varied(_images(pixels, part.numpy())))
            loss = masked_loss(logits, values[part])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        report(f"judge: epoch {epoch + 1} of {epochs}, loss {np.mean(losses):.4f}")


def share_of_rate(step: int, steps: int) -> float:
    """A line up for the first tenth of the steps, and half a cosine down to nothing at the last."""
    return min(1.0, 10 * (step + 1) / steps) * (1 + math.cos(math.pi * step / steps)) / 2


def masked_loss(logits: Tensor, values: Tensor) -> Tensor:
    """The mean logistic loss over what is known: logits [N, A], values [N, A] of 0, 1 or UNKNOWN."""
    losses = F.binary_cross_entropy_with_logits(
        logits, values.clamp(min=0).to(logits.dtype), reduction="none"
    )
    mask = (values != UNKNOWN).to(logits.dtype)
    return (losses * mask).sum() / mask.sum().clamp(min=1)


def _images(pixels: NDArray[np.uint8], rows: NDArray[np.int64]) -> Tensor:
    """uint8 [N, 3, 64, 64]."""
    return torch.from_numpy(np.stack([pixels[row] for row in rows])).permute(0, 3, 1, 2)


def _varied(images: Tensor) -> Tensor:
    """Each image mirrored or not, and moved by up to SHIFT pixels, its edge repeated: uint8 [N, 3, S, S]."""
    n, side = len(images), images.shape[-1]
    images = torch.where(torch.rand(n)[:, None, None, None] < 0.5, images.flip(3), images)
    padded = F.pad(images.float(), (SHIFT,) * 4, mode="replicate").to(torch.uint8)
    top, left = torch.randint(0, 2 * SHIFT + 1, (2, n))
    return torch.stack([padded[i, :, top[i] : top[i] + side, left[i] : left[i] + side] for i in range(n)])


@torch.no_grad()
def _accuracy(
    judge: Judge, pixels: NDArray[np.uint8], known: Annotations, rows: NDArray[np.int64]
) -> dict[str, float]:
    """Of each attribute, the mean of the shares of yes and of no that are told right; chance is 0.5."""
    if not len(rows):
        return {}
    parts = np.split(rows, range(256, len(rows), 256))
    says = np.concatenate([judge.logits(_images(pixels, part)).numpy() > 0 for part in parts])
    result = {}
    for column, attribute in enumerate(known.attributes):
        truth = known.values[rows, column]
        if (truth == 0).any() and (truth == 1).any():
            shares = [float((says[truth == value, column] == value).mean()) for value in (0, 1)]
            result[attribute] = round(sum(shares) / 2, 4)
    return result


def write(judge: Judge, told: dict[str, Any], out: Path) -> None:
    """The judge as ONNX, from faces uint8 [N, 3, 64, 64] to features; whole or not at all."""
    example = torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8)
    attributes = judge.last.out_features
    note = f"A judge of faces by {attributes} attributes: pgsr-bench judge on photographs {told['data']}"
    data = to_onnx(judge, example, "images", "features", {0: "images"}, note=note)
    with replacing(out) as temporary:
        temporary.write_bytes(data)


def text(told: dict[str, Any]) -> str:
    """A line, and one for each attribute."""
    lines = [
        f"trained on {told['trained_on']} photographs, {told['held_out']} held out; balanced accuracy there:"
    ]
    return "\n".join([*lines, *(f"{name:24} {share:.3f}" for name, share in told["accuracy"].items())])
