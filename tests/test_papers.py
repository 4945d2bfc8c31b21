"""docs/papers.md: every row of the five papers has a command that is there and one of three words, and the
count at the top is theirs."""

from __future__ import annotations

import importlib
import re
import shlex
import tomllib
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pgsr.benchmarks.sr_matrix.cells import CELLS
from pgsr.errors import PgsrError
from pgsr.trainer.step import recipe as config

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "papers.md").read_text()
SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
WORD = re.compile(r"exact|(?:differs|needs): \S.+")


@dataclass(frozen=True)
class Row:
    paper: int
    what: str
    command: str
    word: str


def rows_of(page: str) -> list[Row]:
    """The rows of the tables under "## Paper N"."""
    rows = []
    for number, part in enumerate(re.split(r"^## Paper \d.*$", page, flags=re.MULTILINE)):
        for line in part.splitlines():
            cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
            if number and line.startswith("| ") and not line.startswith(("| row |", "| ---")):
                assert len(cells) == 3, line
                rows.append(Row(number, *cells))
    return rows


ROWS = rows_of(PAGE)


@cache
def command_of(program: str) -> click.Command:
    module, name = SCRIPTS[program].split(":")
    command = getattr(importlib.import_module(module), name)
    assert isinstance(command, click.Command)
    return command


@cache
def help_of(program: str, mode: str | None) -> str:
    result = CliRunner().invoke(command_of(program), [*([mode] if mode else []), "--help"])
    assert result.exit_code == 0, result.output
    return result.output


def check(command: str) -> None:
    """Fails if a command is not there, lacks an option, or names a recipe or setting that does not exist."""
    program, *words = shlex.split(command)
    if program == "pytest":
        check_tests(words)
        return
    known = getattr(command_of(program), "commands", {})
    mode = words[0] if words and words[0] in known else None
    help_text = help_of(program, mode)
    if program == "pgsr-bench":
        assert mode, f"{command}: no such measurement"
    options = re.findall(r"(?<!\S)--?[a-z][a-z0-9-]*", command)
    for option in options:
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", help_text), f"{command}: no {option}"
    settings = [value for option, value in pairwise(words) if option == "--set"]
    for option, value in pairwise(words):
        if option == "--recipe":
            config.load(value, settings)
        if option == "--cells":
            assert set(value.split(",")) <= CELLS.keys(), value
    if program == "pgsr-train" and words and not words[0].startswith("-"):
        config.load(words[0], settings)


def check_tests(words: list[str]) -> None:
    """Fails if a test file has no test that `-k WORD` chooses."""
    source = (ROOT / words[0]).read_text()
    names = re.findall(r"^def (test_\w+)", source, re.MULTILINE)
    chosen = words[words.index("-k") + 1] if "-k" in words else ""
    assert any(chosen in name for name in names), f"no test of {words[0]} is called {chosen}"


@pytest.mark.parametrize("row", ROWS, ids=[f"paper {row.paper}, {row.what}"[:70] for row in ROWS])
def test_a_row_has_a_command_and_a_word(row: Row):
    commands = re.findall(r"`([^`]+)`", row.command)
    assert row.command == f"`{commands[0]}`", "one command, and nothing else"
    check(commands[0])
    assert WORD.fullmatch(row.word), row.word


def test_the_count_at_the_top_is_that_of_the_rows():
    words = Counter(row.word.split(":")[0] for row in ROWS)
    expected = (
        f"{len(ROWS)} rows of the five papers: {words['exact']} exact, {words['differs']} differ, "
        f"{words['needs']} need something that does not come with pgsr."
    )
    assert expected in PAGE


def test_no_row_stands_twice_and_every_paper_has_some():
    assert len({(row.paper, row.what) for row in ROWS}) == len(ROWS)
    assert {row.paper for row in ROWS} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(
    "command",
    [
        "pgsr-train progan-65",
        "pgsr-train progan-1024 --set objective.nothing=1",
        "pgsr-train progan-1024 --dry-runs",
        "pgsr-bench nothing",
        "pgsr-bench sr-matrix --cells nothing",
        "pytest tests/test_networks.py -k no_such_test",
    ],
)
def test_what_does_not_exist_is_found(command: str):
    with pytest.raises((AssertionError, PgsrError)):
        check(command)
