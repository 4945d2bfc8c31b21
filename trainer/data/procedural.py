"""A data set the project draws itself: cartoon faces, each a function of (seed, index).

For tests, and for trying the commands without photographs:

    pgsr-data --procedural 500 --out toy.zip --sizes 32
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

from PIL import Image, ImageDraw

from pgsr import draws

OVERSAMPLING = 4  # pictures are drawn this many times as large, then reduced: soft edges

Colour = tuple[int, int, int]

SKINS: tuple[Colour, ...] = ((255, 224, 196), (240, 194, 150), (198, 134, 88), (141, 85, 50), (92, 56, 36))
HAIRS: tuple[Colour, ...] = (
    (28, 22, 20),
    (74, 44, 26),
    (140, 80, 36),
    (222, 178, 96),
    (176, 60, 30),
    (150, 150, 155),
)
IRISES: tuple[Colour, ...] = ((64, 40, 24), (60, 110, 60), (50, 100, 160), (110, 110, 110))


@dataclass(frozen=True)
class Face:
    """What a picture shows. Lengths are parts of the picture's side."""

    x: float  # centre of the head
    y: float
    width: float  # half axes of the head
    height: float
    eye_gap: float  # from the middle of the face to an eye
    eye: float  # radius
    gaze: float  # -1 = left, 1 = right
    smile: float  # depth of the mouth
    mouth: float  # half its width
    open_mouth: bool
    hair_length: float  # how far below the head's centre the hair reaches
    fringe: float  # how much of the forehead the hair covers: 0 to 1
    parting: float  # -1 = left, 1 = right
    glasses: bool
    skin: Colour
    hair: Colour
    iris: Colour
    clothes: Colour
    sky: Colour  # the background's upper and
    ground: Colour  # lower end


def face(index: int, seed: int = 0) -> Face:
    """The face that stands in picture `index`."""
    u = [float(v) for v in draws.uniforms(seed, "picture", index, 24)]
    hue = u[18]
    return Face(
        x=0.5 + 0.06 * (u[0] - 0.5),
        y=0.5 + 0.04 * (u[1] - 0.5),
        width=0.225 + 0.05 * u[2],
        height=0.30 + 0.04 * u[3],
        eye_gap=0.40 + 0.10 * u[4],
        eye=0.040 + 0.014 * u[5],
        gaze=2.0 * u[6] - 1.0,
        smile=0.02 + 0.06 * u[7],
        mouth=0.07 + 0.05 * u[8],
        open_mouth=u[9] < 0.4,
        hair_length=-0.05 + 0.45 * u[10],
        fringe=u[11],
        parting=2.0 * u[12] - 1.0,
        glasses=u[13] < 0.2,
        skin=_between(SKINS, u[14]),
        hair=_between(HAIRS, u[15]),
        iris=IRISES[int(u[16] * len(IRISES))],
        clothes=_hsv(u[17], 0.55, 0.75),
        sky=_hsv(hue, 0.12 + 0.25 * u[19], 0.96),
        ground=_hsv(hue + 0.1 * (u[20] - 0.5), 0.30 + 0.25 * u[21], 0.78),
    )


def draw(index: int, size: int, seed: int = 0) -> Image.Image:
    """Picture `index` of `seed`: RGB, size x size."""
    features = face(index, seed)
    pen = _Pen(OVERSAMPLING * size, features.sky, features.ground)
    _draw_behind(pen, features)
    _draw_head(pen, features)
    _draw_eyes(pen, features)
    _draw_mouth(pen, features)
    return pen.picture.reduce(OVERSAMPLING)


# ----------------------------------------------------------------------------
# The parts of a picture, back to front.


def _draw_behind(pen: _Pen, f: Face) -> None:
    """Hair that falls behind the neck, shoulders, neck."""
    if f.hair_length > 0.12:
        left, right = f.x - 1.16 * f.width, f.x + 1.16 * f.width
        pen.rounded(left, f.y - 0.1, right, f.y + f.hair_length, 0.10, f.hair)
    pen.ellipse(f.x, 1.08, 0.40, 0.24, f.clothes)
    pen.rounded(f.x - 0.085, f.y, f.x + 0.085, 0.89, 0.07, _darker(f.skin, 0.86))


def _draw_head(pen: _Pen, f: Face) -> None:
    """Ears, hair, face and fringe."""
    for side in (-1, 1):
        pen.ellipse(f.x + side * f.width, f.y + 0.03, 0.045, 0.065, _darker(f.skin, 0.92))
    pen.ellipse(f.x, f.y - 0.06, 1.15 * f.width, 1.02 * f.height, f.hair)
    pen.ellipse(f.x, f.y + 0.02, f.width, f.height, f.skin)
    for side in (-1, 1):
        pen.ellipse(f.x + side * 0.55 * f.width, f.y + 0.12, 0.05, 0.032, _redder(f.skin))
    top = round(270 + 35 * f.parting)  # degrees on the hair's outline, clockwise from the right
    low, overlap = round(14 - 18 * f.fringe), round(10 + 45 * f.fringe)
    for start, end in ((180 + low, top + overlap), (top - overlap, 360 - low)):
        pen.chord(f.x, f.y - 0.06, 1.15 * f.width, 1.02 * f.height, start, end, f.hair)


def _draw_eyes(pen: _Pen, f: Face) -> None:
    """Eyes, brows, nose and perhaps glasses."""
    y = f.y + 0.01
    for side in (-1, 1):
        x = f.x + side * f.eye_gap * f.width
        pen.ellipse(x, y, 1.25 * f.eye, f.eye, (250, 250, 248))
        gaze_x = x + 0.35 * f.gaze * f.eye
        pen.ellipse(gaze_x, y, 0.72 * f.eye, 0.78 * f.eye, f.iris)
        pen.ellipse(gaze_x, y, 0.38 * f.eye, 0.42 * f.eye, (15, 12, 12))
        pen.ellipse(gaze_x + 0.25 * f.eye, y - 0.3 * f.eye, 0.16 * f.eye, 0.16 * f.eye, (255, 255, 255))
        pen.arc(x, y - 0.4 * f.eye, 1.5 * f.eye, 1.5 * f.eye, 215, 325, _darker(f.hair, 0.8), 0.016)
        if f.glasses:
            pen.arc(x, y, 0.075, 0.065, 0, 360, (40, 40, 48), 0.012)
    if f.glasses:
        pen.arc(f.x, y, f.eye_gap * f.width - 0.065, 0.03, 180, 360, (40, 40, 48), 0.012)
    pen.arc(f.x, f.y + 0.075, 0.03, 0.03, 20, 160, _darker(f.skin, 0.72), 0.013)


def _draw_mouth(pen: _Pen, f: Face) -> None:
    y, lips = f.y + 0.155, _between((f.skin, (190, 40, 50)), 0.7)
    if f.open_mouth:
        pen.chord(f.x, y, f.mouth, f.smile + 0.035, 0, 180, (120, 24, 32))
        pen.chord(f.x, y, 0.8 * f.mouth, 0.45 * (f.smile + 0.035), 0, 180, (252, 250, 246))
        pen.arc(f.x, y, f.mouth, f.smile + 0.035, 0, 180, lips, 0.014)
    else:
        pen.arc(f.x, y, f.mouth, f.smile, 5, 175, lips, 0.020)


# ----------------------------------------------------------------------------
# Drawing in parts of the side, and colours.


class _Pen:
    """Shapes on a square picture whose coordinates run from 0 to 1."""

    def __init__(self, side: int, top: Colour, bottom: Colour) -> None:
        self.side = side
        column = Image.new("RGB", (1, side))
        column.putdata([_between((top, bottom), y / side) for y in range(side)])
        self.picture = column.resize((side, side), Image.Resampling.NEAREST)
        self.canvas = ImageDraw.Draw(self.picture)

    def _box(self, x: float, y: float, rx: float, ry: float) -> tuple[float, float, float, float]:
        s = self.side
        return ((x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
        self.canvas.ellipse(self._box(x, y, rx, ry), fill=fill)

    def chord(self, x: float, y: float, rx: float, ry: float, start: int, end: int, fill: Colour) -> None:
        """Returns what a straight line cuts off an ellipse."""
        self.canvas.chord(self._box(x, y, rx, ry), start, end, fill=fill)

    def arc(
        self, x: float, y: float, rx: float, ry: float, start: int, end: int, fill: Colour, width: float
    ) -> None:
        pixels = max(1, round(width * self.side))
        self.canvas.arc(self._box(x, y, rx, ry), start, end, fill=fill, width=pixels)

    def rounded(
        self, left: float, top: float, right: float, bottom: float, radius: float, fill: Colour
    ) -> None:
        s = self.side
        box = (left * s, top * s, right * s, max(bottom, top + 0.01) * s)
        self.canvas.rounded_rectangle(box, radius * s, fill=fill)


def _between(colours: tuple[Colour, ...], t: float) -> Colour:
    """The colour at t in [0, 1] of a row of colours."""
    position = t * (len(colours) - 1)
    i = min(int(position), len(colours) - 2)
    r, g, b = (round(p + (q - p) * (position - i)) for p, q in zip(colours[i], colours[i + 1], strict=True))
    return r, g, b


def _darker(colour: Colour, factor: float) -> Colour:
    r, g, b = (round(c * factor) for c in colour)
    return r, g, b


def _redder(colour: Colour) -> Colour:
    return _between((colour, (230, 80, 80)), 0.25)


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    r, g, b = (round(255 * c) for c in colorsys.hsv_to_rgb(hue % 1.0, saturation, value))
    return r, g, b
