"""CelebA's annotation files: attributes, partition, landmarks.

Two forms are read: CelebA's own (a count, the columns' names, then a line a picture; the partition's file has
neither) and CSV (the columns' names in the first line, the pictures' in the first column).

    table = read_table(Path("list_attr_celeba.txt"))
    table.columns, table.rows["000001.jpg"]
"""

from __future__ import annotations

import csv
import itertools
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from pgsr.errors import PgsrError, check_choice
from pgsr.schema import shortened

from .listing import Pictures

ATTRIBUTES = ("list_attr_celeba.txt", "list_attr_celeba.csv")
PARTITION = ("list_eval_partition.txt", "list_eval_partition.csv")
LANDMARKS = ("list_landmarks_celeba.txt", "list_landmarks_celeba.csv")

PARTS = {"train": 0, "val": 1, "test": 2}

POINTS = ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")
LANDMARK_COLUMNS = tuple(f"{point}_{axis}" for point in POINTS for axis in "xy")


@dataclass(frozen=True)
class Table:
    """A file of annotations."""

    path: Path
    columns: tuple[str, ...]
    rows: dict[str, tuple[str, ...]]  # of a picture's file name: its values, in the order of the columns

    def __contains__(self, name: str) -> bool:
        return self.row(name) is not None

    def row(self, name: str) -> tuple[str, ...] | None:
        """What is said of a picture: in the line of its file's name, or of the same name with another suffix,
        since CelebA's PNG edition has the lists of the JPEG one; None if there is neither."""
        if name in self.rows:
            return self.rows[name]
        return self.rows.get(self._by_stem.get(PurePosixPath(name).stem, ""))

    @cached_property
    def _by_stem(self) -> dict[str, str]:
        """Rows by their names without suffix, where that tells them apart."""
        stems = Counter(PurePosixPath(name).stem for name in self.rows)
        return {stem: name for name in self.rows if stems[stem := PurePosixPath(name).stem] == 1}

    def integers(self, name: str, columns: Sequence[str]) -> list[int]:
        """Values of one picture. Raises PgsrError if one is not a whole number."""
        values = self.row(name)
        if values is None:
            raise KeyError(name)
        try:
            return [int(float(values[self.columns.index(column)])) for column in columns]
        except (ValueError, OverflowError):
            raise PgsrError(f"{self.path}: the line of {name} holds something other than numbers") from None

    def need(self, columns: Sequence[str]) -> None:
        """Raises PgsrError unless the table has these columns."""
        missing = [column for column in columns if column not in self.columns]
        if missing:
            names = ", ".join(self.columns[:40])
            raise PgsrError(f"{self.path} has no column {missing[0]!r}; it has {names}")


def file_name(name: str) -> str:
    """Returns the name under which annotations know a picture: its file's, without folders."""
    return PurePosixPath(name).name


def find(source: Path, names: Sequence[str]) -> Path:
    """An annotation file in a source of pictures, or beside it. Raises PgsrError if there is none."""
    places = [source, source.parent, source / "Anno", source.parent / "Anno", source.parent.parent / "Anno"]
    places += [source / "Eval", source.parent / "Eval", source.parent.parent / "Eval"]
    for place, name in itertools.product(places, names):
        if (place / name).is_file():
            return place / name
    raise PgsrError(f"no {names[0]} in {source} or beside it: name the file")


def read_table(path: Path) -> Table:
    """Raises PgsrError if the file is not there or not of either form."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PgsrError(f"cannot read the annotations in {path}: {error}") from error
    if lines and "," in lines[0]:
        try:
            header, *values = csv.reader(lines)
        except csv.Error as error:  # of a field that is too long
            raise PgsrError(f"cannot read the annotations in {path}: {error}") from error
        return _table(path, header[1:], values)
    words = [line.split() for line in lines if line.strip()]
    if words and len(words[0]) == 1:  # CelebA's own: the number of pictures
        table = _table(path, words[1] if len(words) > 1 else [], words[2:])
        said = words[0][0]
        if said.lstrip("0") != str(len(table.rows)):
            raise PgsrError(f"{path} says {shortened(said)} pictures but has {len(table.rows)}: get it again")
        return table
    return _table(path, ["partition"], words)


def _table(path: Path, columns: Sequence[str], values: Sequence[Sequence[str]]) -> Table:
    rows = {line[0]: tuple(line[1:]) for line in values if line}
    for name, row in rows.items():
        if len(row) != len(columns):
            raise PgsrError(
                f"{path}: the line of {name} has {len(row)} values for {len(columns)} columns; "
                "is it one of CelebA's list_*.txt, or CSV?"
            )
    if not rows:
        raise PgsrError(f"{path} holds no annotations: get it again")
    return Table(path, tuple(columns), rows)


# ----------------------------------------------------------------------------
# What the tables are for.


def landmarks(table: Table, name: str) -> NDArray[np.float64]:
    """Eyes, nose, corners of the mouth of a picture, left before right as seen: [5, 2] in pixels."""
    return np.array(table.integers(name, LANDMARK_COLUMNS), dtype=np.float64).reshape(5, 2)


def part_of(table: Table, name: str) -> int:
    """0, 1 or 2: train, val, test."""
    return table.integers(name, ("partition",))[0]


def label_names(attributes: Sequence[str]) -> tuple[str, ...]:
    """One label for every combination of attributes: "not Male, Smiling", ...; of one, "not Male" and "Male".

    The first attribute counts most: label i has attribute j if bit (n - 1 - j) of i is 1.
    """
    each = [(f"not {attribute}", attribute) for attribute in attributes]
    return tuple(", ".join(words) for words in itertools.product(*each))


def label_of(table: Table, name: str, attributes: Sequence[str]) -> int:
    """The index into `label_names`."""
    label = 0
    for value in table.integers(name, attributes):  # 1 has it; -1, or 0 in some CSV files, has not
        label = 2 * label + (value > 0)
    return label


@dataclass(frozen=True)
class Selection:
    """Which of CelebA's pictures, with which labels."""

    attributes: tuple[str, ...] = ()  # the labels are their combinations; (): no labels
    part: str | None = None  # one of PARTS; None: all
    attribute_file: Path | None = None  # None: found beside the pictures
    partition_file: Path | None = None

    def __post_init__(self) -> None:
        if self.part is not None:
            check_choice("--part", self.part, PARTS)
        if len(set(self.attributes)) < len(self.attributes):
            raise PgsrError("--label names an attribute twice")


def select(pictures: Pictures, selection: Selection) -> Pictures:
    """The pictures of the part, with labels. Those that the annotations do not know are counted on stderr and
    left out. Raises PgsrError if an annotation file is missing or damaged, or no picture is left."""
    if selection.part is not None:
        table = read_table(selection.partition_file or find(pictures.source, PARTITION))
        table.need(("partition",))
        pictures = _in_table(pictures, table)
        part = PARTS[selection.part]
        pictures = _only(pictures, [part_of(table, file_name(n)) == part for n in pictures.names])
        if not pictures.names:
            raise PgsrError(f"no picture of {pictures.source} is in part {selection.part} by {table.path}")
    if selection.attributes:
        table = read_table(selection.attribute_file or find(pictures.source, ATTRIBUTES))
        table.need(selection.attributes)
        pictures = _in_table(pictures, table)
        labels = tuple(label_of(table, file_name(n), selection.attributes) for n in pictures.names)
        pictures = replace(pictures, labels=labels, label_names=label_names(selection.attributes))
    return pictures


def _in_table(pictures: Pictures, table: Table) -> Pictures:
    """Keeps the pictures that the table has a line for."""
    mask = [file_name(name) in table for name in pictures.names]
    pictures_in_table = _only(pictures, mask, f"not in {table.path.name}")
    if not pictures_in_table.names:
        raise PgsrError(
            f"{table.path} knows none of the pictures in {pictures.source}: is it of another set?"
        )
    if len(pictures_in_table) < len(pictures):
        missing = len(pictures) - len(pictures_in_table)
        print(f"left out {missing} pictures that {table.path.name} does not know", file=sys.stderr)
    return pictures_in_table


def _only(pictures: Pictures, mask: Sequence[bool], why: str | None = None) -> Pictures:
    return replace(pictures.only(mask, why), labels=None)
