"""One picture in the wild and its landmarks -> one aligned face (paper 2, appendix C and Figure 8).

    made = align(picture, landmarks, size=1024)
    made.picture, made.crop, made.steps

Places are in pixels, x to the right and y down; 0 is the left edge of the first column, so the centre of
pixel i is at i + 0.5. Landmarks count pixels, as CelebA's files do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

BORDER = 0.1  # of the crop's side: what is kept around it
PADDING = 0.3  # of the crop's side: the least that a picture grows where the crop leaves it
BLUR = 0.02  # of the crop's side: standard deviation of the border's Gaussian
OVERSAMPLING = 4  # 4096 for 1024, as in the paper
LEAST_SIDE = 4.0  # pixels of a crop


@dataclass(frozen=True)
class Pass:
    """An enhancement of a picture: a network that removes what JPEG did to it, say, or enlarges it."""

    name: str
    scale: int  # how many times as large it makes a picture
    enhance: Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Crop:
    """An oriented square."""

    x: float  # its centre
    y: float
    side: float
    right: tuple[float, float]  # unit vector from its left to its right edge

    def corners(self) -> NDArray[np.float64]:
        """Top left, top right, bottom right, bottom left: [4, 2]."""
        right = np.array(self.right) * self.side / 2
        down = np.array((-right[1], right[0]))
        around = np.array((-right - down, right - down, right + down, down - right))
        corners: NDArray[np.float64] = np.array((self.x, self.y)) + around
        return corners

    def bounds(self) -> tuple[float, float, float, float]:
        """The upright rectangle around it: left, top, right, bottom."""
        (left, top), (right, bottom) = self.corners().min(axis=0), self.corners().max(axis=0)
        return float(left), float(top), float(right), float(bottom)

    def scaled(self, factor: float) -> Crop:
        """The same crop in a picture `factor` times as large."""
        return replace(self, x=self.x * factor, y=self.y * factor, side=self.side * factor)

    def shift(self, x: float, y: float) -> Crop:
        return replace(self, x=self.x + x, y=self.y + y)


@dataclass(frozen=True)
class Alignment:
    """What became of a picture."""

    picture: Image.Image  # size x size
    crop: Crop  # in the picture as it was
    passes: tuple[str, ...]  # names of the enhancements
    reduced: int  # by so much a side then, where it was far too large
    padded: tuple[int, int, int, int]  # left, top, right, bottom, in enhanced pixels
    steps: dict[str, Image.Image]  # name of a step -> the picture after it, in order
    resampled: Crop  # the crop in the picture that was resampled, the last of the steps


def oriented_crop(landmarks: NDArray[np.floating]) -> Crop:
    """The crop of a face by its eyes, nose and corners of the mouth, [5, 2] (paper 2, appendix C).

    Raises ValueError if they lie so that there is none.
    """
    e0, e1, _, m0, m1 = np.asarray(landmarks, dtype=np.float64) + 0.5
    x1 = e1 - e0  # x'
    y1 = (e0 + e1) / 2 - (m0 + m1) / 2  # y', from the mouth up to the eyes
    c = (e0 + e1) / 2 - 0.1 * y1
    s = max(4.0 * np.hypot(*x1), 3.6 * np.hypot(*y1))
    x = x1 - rotate90(y1)
    length = np.hypot(*x)
    if not np.isfinite(s) or s < LEAST_SIDE or length < 1e-6 * s:
        raise ValueError("its landmarks do not span a face")
    return Crop(float(c[0]), float(c[1]), float(s), (float(x[0] / length), float(x[1] / length)))


def rotate90(v: NDArray[np.float64]) -> NDArray[np.float64]:
    """Counterclockwise as seen: up becomes left. The paper's y = Rotate90(x) therefore points up."""
    return np.array((v[1], -v[0]))


# ----------------------------------------------------------------------------
# The steps, in their order.


def align(
    picture: Image.Image,
    landmarks: NDArray[np.floating],
    size: int = 1024,
    passes: tuple[Pass, ...] = (),
    oversampling: int = OVERSAMPLING,
) -> Alignment:
    """An RGB picture and landmarks [5, 2] -> the face, size x size. Raises ValueError if there is none.

    Passes enhance what the crop needs of every picture, in their order, however large it is, as in the paper.
    """
    crop = oriented = oriented_crop(landmarks)
    check_within(landmarks, picture.size)
    picture, crop = restricted(picture, crop)
    steps = {"cut out": picture}
    for step in passes:
        picture, crop = step.enhance(picture), crop.scaled(step.scale)
        steps[step.name] = picture
    reduced = max(1, int(crop.side // (2 * size)))
    if reduced > 1:
        picture, crop = picture.reduce(reduced), crop.scaled(1 / reduced)
        steps["reduced"] = picture
    pads = padding(crop, picture.size)
    if any(pads):
        picture, crop = mirror_padded(picture, pads), crop.shift(pads[0], pads[1])
        steps["mirror padding"] = picture
        picture = blurred_border(picture, pads, BLUR * crop.side)
        steps["Gaussian filter"] = picture
    image = resampled(picture, crop, size, oversampling)
    return Alignment(image, oriented, tuple(step.name for step in passes), reduced, pads, steps, crop)


def check_within(landmarks: NDArray[np.floating], size: tuple[int, int]) -> None:
    """Raises ValueError if a landmark is farther outside the picture than half its side."""
    sides = np.array(size)
    if (landmarks < -sides / 2).any() or (landmarks > 1.5 * sides).any():
        raise ValueError("its landmarks lie far outside")


def restricted(picture: Image.Image, crop: Crop) -> tuple[Image.Image, Crop]:
    """Returns what the crop and a border around it need of the picture. Raises ValueError if they miss it."""
    border = max(round(BORDER * crop.side), 3)
    left, top, right, bottom = crop.bounds()
    box = (
        max(int(np.floor(left)) - border, 0),
        max(int(np.floor(top)) - border, 0),
        min(int(np.ceil(right)) + border, picture.width),
        min(int(np.ceil(bottom)) + border, picture.height),
    )
    if box[0] >= box[2] or box[1] >= box[3]:
        raise ValueError("its face lies outside")
    return picture.crop(box), crop.shift(-box[0], -box[1])


def padding(crop: Crop, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns how far a picture is to grow to the left, top, right and bottom; 0 where the crop stays
    inside."""
    border = max(round(BORDER * crop.side), 3)
    left, top, right, bottom = crop.bounds()
    beyond = (-left, -top, right - size[0], bottom - size[1])
    least = round(PADDING * crop.side)
    grown = [max(int(np.ceil(b)) + border, least) if b > 0 else 0 for b in beyond]
    return grown[0], grown[1], grown[2], grown[3]


def mirror_padded(picture: Image.Image, pads: tuple[int, int, int, int]) -> Image.Image:
    """Grown by mirror images of itself (Figure 8c)."""
    left, top, right, bottom = pads
    return Image.fromarray(np.pad(np.asarray(picture), ((top, bottom), (left, right), (0, 0)), "reflect"))


def blurred_border(picture: Image.Image, pads: tuple[int, int, int, int], deviation: float) -> Image.Image:
    """Out of focus where it was grown: "a visually pleasing depth-of-field effect" (Figure 8d).

    The Gaussian begins a third of the padding inside the picture and is whole from its edge on; from there
    outwards, colours fade to their median, as in the released data set, so that repetitions do not show.
    """
    depth = border_depth(picture.size, pads)
    blurred = np.asarray(picture.filter(ImageFilter.GaussianBlur(deviation)))
    pixels = np.asarray(picture)
    result = np.empty_like(pixels)
    focus, fade = np.clip(3.0 * depth + 1.0, 0.0, 1.0), np.clip(depth, 0.0, 1.0)
    for channel in range(pixels.shape[2]):
        values = pixels[..., channel].astype(np.float32)
        values += (blurred[..., channel] - values) * focus
        values += (np.median(values) - values) * fade
        result[..., channel] = np.rint(values)
    return Image.fromarray(result)


def border_depth(size: tuple[int, int], pads: tuple[int, int, int, int]) -> NDArray[np.float32]:
    """Returns how deep in the padding each pixel lies: 1 at the outermost, 0 at the edge of what was there,
    below 0 within: [H, W]."""
    across = np.maximum(_ramp(size[0], pads[0]), _ramp(size[0], pads[2])[::-1])
    down = np.maximum(_ramp(size[1], pads[1]), _ramp(size[1], pads[3])[::-1])
    return np.maximum(across[None, :], down[:, None])


def _ramp(length: int, pad: int) -> NDArray[np.float32]:
    """1 at the first pixel, 0 after `pad` of them; far below 0 without a padding."""
    if not pad:
        return np.full(length, -np.inf, dtype=np.float32)
    return (1.0 - np.arange(length) / pad).astype(np.float32)


def resampled(picture: Image.Image, crop: Crop, size: int, oversampling: int = OVERSAMPLING) -> Image.Image:
    """The crop at oversampling * size by bilinear filtering, then at `size` by a box filter."""
    large = size * oversampling
    right = np.array(crop.right) * crop.side / large  # a pixel's step
    down = np.array((-right[1], right[0]))
    x, y = crop.corners()[0]
    matrix = (right[0], down[0], x, right[1], down[1], y)
    whole = picture.transform(
        (large, large), Image.Transform.AFFINE, tuple(map(float, matrix)), Image.Resampling.BILINEAR
    )
    return whole.reduce(oversampling) if oversampling > 1 else whole
