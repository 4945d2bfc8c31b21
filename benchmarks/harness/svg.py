"""Figures as SVG text: small panels of one width, which stand beside each other where there is room and under
each other on a phone. Colours and type are classes of figures.css, which knows light and dark.

panel = Panel("OpenVINO, fp32", "from 32 maps on", body, height=300)
page_part = panel.svg()
file = sheet([panel, ...], columns=3)      # one stand-alone SVG
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

WIDTH = 360  # units of a panel; on a phone a unit is a pixel
HEAD = 40  # units above the plot, for title and subtitle


def tag(name: str, *content: str, **attributes: object) -> str:
    """An element; `class_` is class, and underscores are hyphens. Content is markup: `escape` what is
    text."""
    words = [name]
    for key, value in attributes.items():
        if value is not None:
            text = f"{value:.1f}" if isinstance(value, float) else str(value)
            words.append(f'{key.rstrip("_").replace("_", "-")}="{escape(text)}"')
    opening = " ".join(words)
    return f"<{opening}>{''.join(content)}</{name}>" if content else f"<{opening}/>"


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start", **more: object) -> str:
    """A line of text; `kind` is a class of figures.css."""
    named = None if anchor == "start" else anchor
    return tag("text", escape(words), x=float(x), y=float(y), class_=kind or None, text_anchor=named, **more)


def line(x1: float, y1: float, x2: float, y2: float, kind: str = "grid") -> str:
    """A straight line."""
    return tag("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=kind)


def path(points: Sequence[tuple[float, float]], kind: str) -> str:
    """A line through points."""
    steps = " ".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))
    return tag("path", d=steps, class_=kind)


def bar(x: float, y: float, width: float, height: float, kind: str, said: str = "", style: str = "") -> str:
    """A rectangle, with what a pointer over it is told."""
    hint = (tag("title", escape(said)),) if said else ()
    left = min(x, x + width)
    return tag(
        "rect",
        *hint,
        x=float(left),
        y=float(y),
        width=float(abs(width)),
        height=float(height),
        class_=kind,
        style=style or None,
    )


def dot(x: float, y: float, radius: float, kind: str, said: str = "") -> str:
    """A disc, with what a pointer over it is told."""
    hint = (tag("title", escape(said)),) if said else ()
    return tag("circle", *hint, cx=float(x), cy=float(y), r=float(radius), class_=kind)


@dataclass(frozen=True)
class Panel:
    """One small figure."""

    title: str
    subtitle: str
    body: str  # drawn from (0, HEAD) on
    height: float  # with the head

    def svg(self) -> str:
        """As it stands in a page."""
        box = f"0 0 {WIDTH} {self.height:.0f}"
        return tag("svg", self.inner(), viewBox=box, role="img", aria_label=self.title, class_="figure")

    def inner(self) -> str:
        """Its elements alone."""
        return text(0, 14, self.title, "title") + text(0, 30, self.subtitle, "subtitle") + self.body


def sheet(panels: Sequence[Panel], columns: int = 3, gap: float = 28) -> str:
    """All panels as one SVG file with its own style."""
    columns = min(columns, len(panels))
    parts, y = [], gap
    for first in range(0, len(panels), columns):
        row = panels[first : first + columns]
        for i, panel in enumerate(row):
            x = gap + i * (WIDTH + gap)
            parts.append(tag("g", panel.inner(), transform=f"translate({x:.0f} {y:.0f})"))
        y += max(panel.height for panel in row) + gap
    width = gap + columns * (WIDTH + gap)
    style = tag("style", stylesheet())
    paper = tag("rect", width="100%", height="100%", class_="paper")
    opening = f"0 0 {width:.0f} {y:.0f}"
    return tag(
        "svg", style, paper, *parts, xmlns="http://www.w3.org/2000/svg", viewBox=opening, class_="figure"
    )


def stylesheet() -> str:
    """The text of figures.css."""
    return files(__package__).joinpath("figures.css").read_text()


# ----------------------------------------------------------------------------
# Scales.


@dataclass(frozen=True)
class Log:
    """A logarithmic scale: values from `low` to `high` on `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = math.log(max(value, 1e-12) / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, steps: Sequence[float] = (1,)) -> list[float]:
        """Powers of ten times `steps`, from low to high."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        values = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        return [value for value in values if self.low * 0.999 <= value <= self.high * 1.001]


@dataclass(frozen=True)
class Linear:
    """A scale of equal steps: values from `low` to `high` on `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values from low to high: as many as there may be, in steps of 1, 2 or 5."""
        power = 10.0 ** math.floor(math.log10((self.high - self.low) / most))
        step = next(power * n for n in (1, 2, 5, 10) if (self.high - self.low) / (power * n) <= most)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [step * n for n in range(first, last + 1)]


def frame(x: Linear, y: Linear, unit: str) -> list[str]:
    """Grid lines with their numbers, and below them what goes across."""
    left, right, bottom, top = x.start, x.end, y.start, y.end
    parts = []
    for value in x.ticks():
        parts.append(line(x(value), top, x(value), bottom))
        parts.append(text(x(value), bottom + 14, short(value), "quiet", "middle" if value else "start"))
    for value in y.ticks():
        parts.append(line(left, y(value), right, y(value)))
        parts.append(text(left - 5, y(value) + 4, short(value), "quiet", "end"))
    return [*parts, text(right, bottom + 29, unit, "quiet", "end")]


def names_of_lines(names: Sequence[tuple[str, str]], y: float, step: float = 122.0) -> list[str]:
    """A sample of each line, (kind, name), beside each other."""
    parts = []
    for i, (kind, name) in enumerate(names):
        parts.append(line(i * step, y - 3.5, i * step + 18, y - 3.5, kind))
        parts.append(text(i * step + 23, y, name, "small"))
    return parts


def short(value: float) -> str:
    """A number as it stands at an axis: 0.5, 12, 3k, 2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def factor(ratio: float) -> str:
    """A ratio in two significant digits: 0.85×, 3.4×, 12×."""
    return f"{ratio:.2f}×" if ratio < 0.995 else f"{ratio:.1f}×" if ratio < 9.95 else f"{ratio:.0f}×"
