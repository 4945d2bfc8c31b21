"""Ways to reduce a photograph: how long they take, and what they leave of it (paper 1, Table 1).

    pgsr-bench resample --data faces.zip --from-size 256 --to-size 64 --out report
    pgsr-bench resample --out report                            # drawn pictures, 1024 to 64 as in the paper

The paper gives seconds a picture and an opinion from 1 to 5. In the opinion's place stand figures that anyone
can measure again:

PSNR, SSIM   of pictures reduced and enlarged again, against the original: of Y, a border left out. The
             enlarging filter is the same for all, unless it is "same".
aliasing     the share of the energy above the small picture's highest frequency that is folded into it, where
             it does not belong; 0 for an ideal filter
loss         the share of the energy below it that is changed: blur; 0 for an ideal filter

The last two are exact for linear filters: the grey original is split at the small picture's Nyquist frequency
by the cosine transform, which mirrors edges, and each half is reduced alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgsr.decoding import PictureError
from pgsr.errors import PgsrError, check_choice
from pgsr.trainer.data import procedural
from pgsr.trainer.data.cache import FILTERS, decode, square
from pgsr.trainer.data.listing import UNREADABLE
from pgsr.trainer.data.sources import open_pictures, reading

from ..harness.machine import describe
from ..harness.timing import Contender, measure

# Paper 1, Table 1: seconds a picture, and its opinion of the quality.
PAPER = {
    "bicubic": (0.000977796, 4),
    "bilinear": (0.000912458, 3),
    "lanczos": (0.001175824, 5),
    "hamming": (0.000929764, 3),
    "nearest": (0.000772037, 1),
    "box": (0.000868146, 2),
}
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
DRAWN_SIDE = 1024  # of drawn pictures: the paper reduces 1024 to 64

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Settings:
    """What is measured. Raises PgsrError for values out of range."""

    data: Path | None = None  # photographs; None: drawn pictures
    from_size: int = 0  # side of the originals; 0: 1024 if drawn, the first photograph's own if not
    to_size: int = 64
    pictures: int = 8
    rounds: int = 7
    enlarge: str = "bicubic"  # a name in FILTERS, or "same"

    def __post_init__(self) -> None:
        check_choice("--enlarge", self.enlarge, (*FILTERS, "same"))
        if min(self.pictures, self.rounds) < 1:
            raise PgsrError("--pictures and --rounds must be 1 or more")
        if self.to_size < 16:
            raise PgsrError(f"--to-size {self.to_size} is below 16")


@dataclass(frozen=True)
class Row:
    """What was found of one filter; means over the pictures."""

    filter: str
    seconds: float  # a picture: median of the rounds
    psnr_db: float
    ssim: float
    aliasing: float
    loss: float
    paper_seconds: float
    paper_opinion: int


def run(settings: Settings, say: Callable[[str], None]) -> tuple[dict[str, Any], list[Image.Image]]:
    """The report, and the originals. Raises PgsrError if the photographs cannot be used."""
    originals = load(settings)
    side, small = originals[0].width, settings.to_size
    say(f"{len(originals)} pictures, {side} to {small}")
    seconds = timings(originals, settings)
    energies = [aliasing_and_loss(np.asarray(picture) @ np.array(LUMA), small) for picture in originals]
    rows = []
    for name in PAPER:
        psnr, ssim = fidelities(name, originals, settings)
        aliasing, loss = np.mean([energy[name] for energy in energies], axis=0).tolist()
        rows.append(asdict(Row(name, seconds[name], psnr, ssim, aliasing, loss, *PAPER[name])))
    result = {
        "date": date.today().isoformat(),
        "machine": describe(threads=1).as_dict(),
        "data": "drawn" if settings.data is None else str(settings.data),
        "pictures": len(originals),
        "from": side,
        "to": small,
        "enlarged_by": settings.enlarge,
        "rounds": settings.rounds,
        "rows": rows,
        "agreement": {
            name: rank_correlation([sign * row[name] for row in rows], [row["paper_opinion"] for row in rows])
            for name, sign in (("psnr_db", 1), ("ssim", 1), ("aliasing", -1), ("loss", -1))
        },
    }
    return result, originals


# ----------------------------------------------------------------------------
# Pictures.


def load(settings: Settings) -> list[Image.Image]:
    """Square RGB originals of one size. Raises PgsrError if there are not enough that are large enough."""
    if settings.data is None:
        side = settings.from_size or DRAWN_SIDE
        pictures = [procedural.draw(i, side) for i in range(settings.pictures)]
    else:
        pictures = _photographs(settings.data, settings.from_size, settings.pictures)
    side = pictures[0].width
    if side <= settings.to_size:
        raise PgsrError(
            f"--to-size {settings.to_size} does not reduce pictures of {side}x{side}: give a smaller one"
        )
    return pictures


def _photographs(source: Path, side: int, count: int) -> list[Image.Image]:
    """The first that are large enough, their middle squares."""
    pictures, result = open_pictures(source), []
    with reading(pictures) as read:
        for name in pictures.names:
            try:
                picture = decode(read(name))
            except (*UNREADABLE, PictureError):
                continue
            side = side or min(picture.size)
            if min(picture.size) >= side:
                result.append(square(picture, side, Image.Resampling.LANCZOS))
            if len(result) == count:
                return result
    if not result:
        raise PgsrError(f"{source} holds no picture of {side}x{side} or more: give a smaller --from-size")
    return result


# ----------------------------------------------------------------------------
# Time and quality.


def reduced(picture: Image.Image, side: int, name: str) -> Image.Image:
    """Reduces a picture to a side by a filter's name."""
    return picture.resize((side, side), FILTERS[name])


def timings(originals: list[Image.Image], settings: Settings) -> dict[str, float]:
    """Seconds a picture, by each filter; the filters take turns."""

    def all_of(name: str) -> None:
        for picture in originals:
            reduced(picture, settings.to_size, name)

    contenders = [Contender(name, len(originals), partial(all_of, name)) for name in PAPER]
    times = measure(contenders, settings.rounds)
    return {name: timing.median_seconds / timing.images for name, timing in times.items()}


def fidelities(name: str, originals: list[Image.Image], settings: Settings) -> tuple[float, float]:
    """PSNR in dB and SSIM of pictures reduced by a filter and enlarged again; means."""
    from pgsr.trainer.metrics.fidelity import fidelity

    side, small = originals[0].width, settings.to_size
    back = FILTERS[name if settings.enlarge == "same" else settings.enlarge]
    border = min(-(-side // small), side // 8)
    rows = []
    for original in originals:
        again = reduced(original, small, name).resize((side, side), back)
        near = fidelity(np.asarray(again)[None], np.asarray(original)[None], border)
        rows.append((float(near.psnr_db), float(near.ssim)))
    psnr, ssim = np.mean(rows, axis=0)
    return float(psnr), float(ssim)


def aliasing_and_loss(grey: Floats, small: int) -> dict[str, tuple[float, float]]:
    """Measures for each filter the shares of energy folded from above the small picture's Nyquist frequency,
    and changed below it.

    grey: [S, S] -> reduced to [small, small]. Where there is no energy, its share is 0.
    """
    low, ideal = split(grey - grey.mean(), small)
    high = grey - grey.mean() - low
    above = np.square(high).sum() * (small / len(grey)) ** 2  # in pictures of the small one's size
    below = np.square(ideal).sum()
    result = {}
    for name in FILTERS:
        folded = np.square(_linear(high, small, name)).sum()
        changed = np.square(_linear(low, small, name) - ideal).sum()
        result[name] = (_share(folded, above, above + below), _share(changed, below, above + below))
    return result


def _share(part: float, of: float, whole: float) -> float:
    """Rounding to float32 leaves about 1e-14 of the whole energy, which is no energy."""
    return float(part / of) if of > 1e-10 * whole else 0.0


def _linear(grey: Floats, small: int, name: str) -> Floats:
    """A filter on real numbers, without rounding to 8 bits."""
    picture = Image.fromarray(grey.astype(np.float32))
    return np.asarray(picture.resize((small, small), FILTERS[name]), dtype=np.float64)


def split(grey: Floats, small: int) -> tuple[Floats, Floats]:
    """The part of a picture below the Nyquist frequency of small x small, at its own size and at the small:
    what an ideal filter would make of it: [S, S] -> [S, S], [small, small]."""
    there, here = cosines(len(grey)), cosines(small)
    coefficients = (there @ grey @ there.T)[:small, :small]
    low = there[:small].T @ coefficients @ there[:small]
    return low, here.T @ coefficients @ here * (small / len(grey))


@lru_cache(maxsize=4)
def cosines(n: int) -> Floats:
    """The orthonormal cosine transform (DCT-II): [n, n], a frequency a row."""
    k, i = np.arange(n)[:, None], np.arange(n)[None, :]
    matrix = np.cos(np.pi * k * (2 * i + 1) / (2 * n)) * np.sqrt(2.0 / n)
    matrix[0] /= np.sqrt(2.0)
    return np.asarray(matrix)


def rank_correlation(a: list[float], b: list[float]) -> float:
    """Spearman's; equal values share their ranks."""
    first, second = _ranks(np.array(a)), _ranks(np.array(b))
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: Floats) -> Floats:
    return np.array([(values < v).sum() + ((values == v).sum() - 1) / 2 for v in values])


# ----------------------------------------------------------------------------
# A pattern that shows aliasing to the eye.


def zone_plate(side: int) -> Image.Image:
    """Circles whose frequency grows from 0 in the middle to the highest at the edges."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    grey = 127.5 + 127.5 * np.cos(np.pi * (x**2 + y**2) / side)
    return Image.fromarray(np.uint8(np.rint(grey))).convert("RGB")
