"""JSON documents of any origin: read within limits, and held to a table before anything is computed.

    PORT = record({"name": text(64), "shape": items(whole(1, 2**16), 2, 4)})
    data = read_json(path)
    check(data, PORT)          # Mismatch: shape[1] is 0, not a whole number from 1 to 65536

A rule is a function that raises Mismatch. Tables of such rules do in these few lines what the runtime would
need a library for, and its dependencies are three.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from pgsr.errors import PgsrError
from pgsr.files import read_regular

LONGEST_DOCUMENT = 2**24  # bytes
DEEPEST = 64  # lists and objects within each other

Rule = Callable[[Any, str], None]  # takes a value and where it stands


class Mismatch(ValueError):
    """A value is not what a rule says: where it stands, what it is, and what it should be."""

    def __init__(self, where: str, value: Any, expected: str) -> None:
        super().__init__(f"{where.lstrip('.') or 'it'} is {shortened(repr(value))}, not {expected}")
        self.expected = expected


class Missing(Mismatch):
    """A field is not there."""

    def __init__(self, where: str) -> None:
        ValueError.__init__(self, f"{where.lstrip('.')} is missing")
        self.expected = "something"


def read_json(path: Path) -> Any:
    """Reads a JSON file in UTF-8.

    Raises PgsrError if it cannot be read, is no regular file or too long, ValueError as `parsed_json` does.
    """
    return parsed_json(read_regular(path, LONGEST_DOCUMENT))


def parsed_json(data: bytes) -> Any:
    """Raises ValueError for what is no JSON, holds numbers that are not finite, or is deeper than DEEPEST."""
    try:
        value = json.loads(data, parse_constant=_refuse_number, parse_float=_finite)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEEPEST}") from None
    _check_depth(value)
    return value


def _refuse_number(text: str) -> NoReturn:
    raise ValueError(f"it holds {text}")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        _refuse_number(shortened(text))
    return number


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {DEEPEST}")


def check(value: Any, rule: Rule) -> None:
    """Raises Mismatch unless a value is as the rule says."""
    rule(value, "")


def visible(text: str) -> str:
    """A text of any origin for a terminal: what it would obey, or not show, as it is written in Python."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def shortened(text: str, most: int = 60) -> str:
    """A text for a sentence, cut if it is long."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


# ----------------------------------------------------------------------------
# Rules.


def whole(low: int, high: int) -> Rule:
    """A whole number in these bounds, both included."""

    def rule(value: Any, where: str) -> None:
        if type(value) is not int or not low <= value <= high:
            raise Mismatch(where, value, f"a whole number from {low} to {high}")

    return rule


def real(low: float, high: float) -> Rule:
    """A number in these bounds, both included."""

    def rule(value: Any, where: str) -> None:
        if type(value) not in (int, float) or not low <= value <= high:
            raise Mismatch(where, value, f"a number from {low:g} to {high:g}")

    return rule


CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # not shown, or half a letter
LINES = re.compile(r"[\t\n\r]")


def text(longest: int, pattern: str | None = None, lines: bool = False) -> Rule:
    """A text without control characters, of so many letters at most; of a form; of several lines."""

    def rule(value: Any, where: str) -> None:
        if not isinstance(value, str) or len(value) > longest:
            raise Mismatch(where, value, f"a text of at most {longest} letters")
        if CONTROL.search(LINES.sub(" ", value) if lines else value):
            raise Mismatch(where, value, "a text without control characters")
        if pattern is not None and not re.fullmatch(pattern, value):
            raise Mismatch(where, value, f"a text of the form {pattern}")

    return rule


def one_of(*choices: Any) -> Rule:
    """One of these values, of the same type."""

    def rule(value: Any, where: str) -> None:
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise Mismatch(where, value, " or ".join(map(repr, choices)))

    return rule


def either(*rules: Rule) -> Rule:
    """What one of these rules allows."""

    def rule(value: Any, where: str) -> None:
        refusals = []
        for alternative in rules:
            try:
                return alternative(value, where)
            except Mismatch as error:
                refusals.append(error.expected)
        raise Mismatch(where, value, " or ".join(refusals))

    return rule


def items(each: Rule, least: int, most: int) -> Rule:
    """A list of so many values, each of which a rule allows."""

    def rule(value: Any, where: str) -> None:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise Mismatch(where, value, f"a list of {least} to {most}")
        for place, item in enumerate(value):
            each(item, f"{where}[{place}]")

    return rule


def record(fields: Mapping[str, Rule], optional: Mapping[str, Rule] | None = None) -> Rule:
    """An object with these fields; what it holds besides is nobody's and not looked at."""

    def rule(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise Mismatch(where, value, "an object")
        for name, field in fields.items():
            if name not in value:
                raise Missing(f"{where}.{name}")
            field(value[name], f"{where}.{name}")
        for name, field in (optional or {}).items():
            if name in value:
                field(value[name], f"{where}.{name}")

    return rule


def document(path: Path, rule: Rule, what: str, advice: str) -> Any:
    """Reads a JSON file and holds it to a rule. Raises PgsrError for whatever is wrong: `path` is no such
    `what`, and what to do."""
    try:
        data = read_json(path)
        check(data, rule)
    except ValueError as error:
        raise PgsrError(
            f"{path} is no {what}, or damaged ({shortened(str(error), 200)}): {advice}"
        ) from error
    return data
