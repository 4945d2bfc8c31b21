"""Drawn pictures in the wild: a cartoon face (trainer/data/procedural.py), turned, scaled and anywhere in a
picture, and where its landmarks are. For tests, and for trying pgsr-celeba-hq without CelebA.

    view = View(size=(400, 300), centre=(120, 90), side=260, degrees=20)
    picture, points = draw(3, view), landmarks(3, view)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgsr import draws

from .. import procedural

EYE_Y, MOUTH_Y, NOSE_Y = 0.01, 0.155, 0.10  # below the face's centre (procedural.py)


@dataclass(frozen=True)
class View:
    """Where a face stands in a picture: its own picture is a square of `side` pixels around `centre`, turned
    clockwise by `degrees`; the rest of the picture continues its background."""

    size: tuple[int, int]  # width and height of the picture
    centre: tuple[float, float]
    side: float
    degrees: float


def draw(index: int, view: View, seed: int = 0) -> Image.Image:
    """An RGB picture with procedural face `index`."""
    side = max(64, 2 ** int(np.ceil(np.log2(view.side))))  # pixels of the face's own picture
    own = np.asarray(procedural.draw(index, side, seed))
    face = Image.fromarray(np.pad(own, ((side, side), (side, side), (0, 0)), "edge"))
    step = rotation_matrix(view.degrees).T * (side / view.side)  # from this picture to the face's own
    start = 1.5 * side - step @ np.array(view.centre)
    matrix = np.column_stack((step, start))
    return face.transform(
        view.size, Image.Transform.AFFINE, tuple(map(float, matrix.ravel())), Image.Resampling.BICUBIC
    )


def landmarks(index: int, view: View, seed: int = 0) -> NDArray[np.float64]:
    """Eyes, nose, corners of the mouth in that picture, counted in pixels as CelebA does: [5, 2]."""
    f = procedural.face(index, seed)
    gap = f.eye_gap * f.width
    eyes = [(f.x - gap, f.y + EYE_Y), (f.x + gap, f.y + EYE_Y)]
    mouth = [(f.x - f.mouth, f.y + MOUTH_Y), (f.x + f.mouth, f.y + MOUTH_Y)]
    points = np.array([*eyes, (f.x, f.y + NOSE_Y), *mouth])  # in parts of the face's own picture
    return np.array(view.centre) + (points - 0.5) @ rotation_matrix(view.degrees).T * view.side - 0.5


def rotation_matrix(degrees: float) -> NDArray[np.float64]:
    """Turns (x, y) clockwise, where y is down: [2, 2]."""
    a = np.deg2rad(degrees)
    return np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])


def view(index: int, seed: int = 0) -> View:
    """Draws the view of picture `index` of an endless set: 150 to 600 pixels, any place, up to 35 degrees
    turned."""
    u = [float(v) for v in draws.uniforms(seed, "wild", index, 6)]
    width, height = round(150 + 450 * u[0]), round(150 + 450 * u[1])
    centre = (width * (0.3 + 0.4 * u[3]), height * (0.3 + 0.4 * u[4]))
    return View(
        (width, height), centre, min(512.0, min(width, height) * (0.6 + 0.9 * u[2])), 70.0 * (u[5] - 0.5)
    )
