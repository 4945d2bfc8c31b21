"""The steps of CelebA-HQ's making on one picture, as paper 2's Figure 8: (a) to (f)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pgsr.errors import PgsrError
from pgsr.files import make_folder, replacing

from ..cache import problem
from ..listing import UNREADABLE
from .align import Alignment, Crop, align
from .picture import Maker, Settings
from .sources import Source
from .spectrum import quality

HEIGHT = 384  # of each panel
GAP, TEXT = 12, 34
RED, YELLOW = (230, 30, 30), (255, 225, 40)

TITLES = {
    "cut out": "(a) cut out",
    "restorer": "(b) JPEG artefacts removed",
    "upscaler": "(b) super-resolution",
    "reduced": "reduced",
    "mirror padding": "(c) mirror padding",
    "Gaussian filter": "(d) Gaussian filter",
}


def write_figure(
    source: Source, settings: Settings, path: Path, wanted_name: str | None
) -> tuple[dict[str, Any], str]:
    """Draws the steps of one picture, the first if none is named; gives back a summary, and as a line.

    Raises PgsrError if there is no such picture, or no face can be made of it.
    """
    name = choose_picture(source, wanted_name)
    landmarks = source.landmarks(name)
    if landmarks is None:
        raise PgsrError(f"{name} has no landmarks: name another with --picture")
    with Maker(source.place, settings, path.parent) as maker:
        try:
            picture, why = problem(maker.read(name), 1, turn=False)
            if picture is None:
                raise PgsrError(f"{name} {why}: name another with --picture")
            alignment = align(picture, landmarks, settings.size, maker.passes, settings.oversampling)
        except (*UNREADABLE, ValueError) as error:
            raise PgsrError(f"no face can be made of {name}: {error}") from error
    make_folder(path.parent)
    with replacing(path) as temporary:
        kind = "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG"
        figure(picture, landmarks, alignment).save(temporary, kind, quality=90)
    score = quality(np.asarray(alignment.picture)).score
    return (
        {"figure": str(path), "picture": name, "passes": list(alignment.passes), "quality": score},
        f"{path}: the steps of {name}, quality {score:.3f}",
    )


def choose_picture(source: Source, wanted_name: str | None) -> str:
    """The name of a picture by its name, its file's, or its index."""
    if wanted_name is None:
        return source.names[0]
    for name in source.names:
        if wanted_name in (name, name.rpartition("/")[2]):
            return name
    if wanted_name.isdigit() and int(wanted_name) < len(source.names):
        return source.names[int(wanted_name)]
    raise PgsrError(f"there is no picture {wanted_name}: the first is {source.names[0]}")


def figure(picture: Image.Image, landmarks: NDArray[np.float64], alignment: Alignment) -> Image.Image:
    """All panels in a row, then the result."""
    panels = [("(a) in the wild", marked(picture, alignment.crop, landmarks))]
    for name, step in alignment.steps.items():
        panels.append((f"{TITLES[name]}, {step.width} x {step.height}", step))
    panels.append(("(e) crop rectangle", marked(panels[-1][1], alignment.resampled, None)))
    panels.append((f"(f) {alignment.picture.width} x {alignment.picture.height}", alignment.picture))
    return row(panels)


def marked(picture: Image.Image, crop: Crop, landmarks: NDArray[np.float64] | None) -> Image.Image:
    """Draws the crop's outline, its upper edge thicker, and the landmarks on a copy of the picture."""
    copy = picture.copy()
    pen = ImageDraw.Draw(copy)
    width = max(1, round(max(picture.size) / 150))
    corners = [tuple(map(float, corner)) for corner in crop.corners()]
    pen.line([*corners, corners[0]], fill=RED, width=width)
    pen.line(corners[:2], fill=RED, width=2 * width)
    for x, y in () if landmarks is None else landmarks + 0.5:
        r = 1.2 * width
        pen.ellipse((x - r, y - r, x + r, y + r), fill=YELLOW, outline=(0, 0, 0))
    return copy


def row(panels: list[tuple[str, Image.Image]]) -> Image.Image:
    """Panels of one height, each under its title, on white."""
    tiles = [(title, p.resize((max(1, round(p.width * HEIGHT / p.height)), HEIGHT))) for title, p in panels]
    total = sum(p.width for _, p in tiles) + GAP * (len(tiles) + 1)
    page = Image.new("RGB", (total, HEIGHT + TEXT + GAP), "white")
    pen, font, x = ImageDraw.Draw(page), ImageFont.load_default(15), GAP
    for title, panel in tiles:
        pen.text((x, 9), title, fill=(0, 0, 0), font=font)
        page.paste(panel, (x, TEXT))
        x += panel.width + GAP
    return page
