"""What a part shows: sentences, figures, tables. The page and the Markdown are made of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..harness.svg import Panel


@dataclass(frozen=True)
class Figure:
    """Panels that belong together, under one caption."""

    caption: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Table:
    """Numbers: a heading line, then rows; the first `left` columns are words."""

    caption: str
    lines: Sequence[Sequence[str]]
    left: int = 1
    folded: bool = True  # whether a reader has to open it


@dataclass(frozen=True)
class Shown:
    """One part of the page."""

    answers: Sequence[str]  # sentences, the first the most important
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = field(default_factory=tuple)


@dataclass(frozen=True)
class Measure:
    """A number that two reports can be compared by: the larger the better."""

    name: str
    value: float
    low: float  # what it may as well have been, by the run's own spread
    high: float
