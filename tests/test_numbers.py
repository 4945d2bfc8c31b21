"""Numbers on command lines that no option can mean: one line, whatever the command."""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from pgsr.cli import LARGEST, LARGEST_ELSE, Command

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
HUGE = {"thousands of digits": "9" * 4000, "tens of thousands": "9" * 40_000, "nan": "nan", "inf": "1e999"}


def commands(name: str, command: click.Command) -> Iterator[tuple[str, list[str], click.Command]]:
    """A command or all that a group holds: the words that call it."""
    if isinstance(command, click.Group):
        for word, inner in command.commands.items():
            for _, words, found in commands(name, inner):
                yield name, [word, *words], found
    else:
        yield name, [], command


def mains() -> Iterator[tuple[str, Any]]:
    for name, target in SCRIPTS.items():
        module, function = target.split(":")
        yield name, getattr(importlib.import_module(module), function)


MAINS = dict(mains())
EVERY = [entry for name, main in MAINS.items() for entry in commands(name, main)]
NUMBERS = [
    (name, words, parameter)
    for name, words, command in EVERY
    for parameter in command.params
    if isinstance(parameter, click.Option)
    and isinstance(parameter.type, click.types.IntParamType | click.types.FloatParamType)
]


def test_every_command_is_one_of_ours():
    """So that what is here holds for each."""
    assert len(NUMBERS) > 60
    assert not [words for _, words, command in EVERY if not isinstance(command, Command)]


def refused(name: str, words: list[str], option: click.Option, value: str) -> str:
    """What a command says of a number that it must refuse at once."""
    arguments = [*words, option.opts[0], *[value] * option.nargs]
    result = CliRunner().invoke(MAINS[name], arguments)
    assert isinstance(result.exception, SystemExit), (arguments, result.exception)
    assert result.exit_code in (1, 2), arguments
    assert result.stdout == "", arguments
    assert len(result.stderr) < 1500, arguments
    if result.exit_code == 1:
        assert result.stderr.count("\n") == 1, arguments
    return result.stderr


@pytest.mark.parametrize("value", HUGE)
def test_numbers_that_are_none(value: str):
    for name, words, option in NUMBERS:
        said = refused(name, words, option, HUGE[value])
        assert option.opts[0].lstrip("-") in said or "Missing" in said


def test_numbers_beyond_what_they_mean():
    for name, words, option in NUMBERS:
        most = LARGEST.get(option.name or "", LARGEST_ELSE)
        for value in (most + most // 2, 2**65, -(2**65)):
            refused(name, words, option, str(value))


def echo(**values: Any) -> None:
    click.echo("made")


def invoke(option: Callable[[Any], Any], *arguments: str) -> Any:
    command = click.command(cls=Command)(option(echo))
    return CliRunner().invoke(command, list(arguments))


def test_numbers_within_are_let_through():
    assert invoke(click.option("--seed", type=int), "--seed", str(2**64)).stdout == "made\n"
    assert invoke(click.option("--x", type=float), "--x", "-1.5e3").stdout == "made\n"
    pair = click.option("--at", type=(int, int), multiple=True)
    assert invoke(pair, "--at", "3", "4", "--at", "5", "6").stdout == "made\n"
    refused = invoke(pair, "--at", "3", "4", "--at", "5", str(2**60))
    assert refused.stderr == "error: --at 1152921504606846976 is not a number up to 9,007,199,254,740,992\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "error: there is not enough memory for this (no more is given)\n"),
        (MemoryError("Unable to allocate 8 TiB"), "memory for this (Unable to allocate 8 TiB)\n"),
        (RuntimeError("can't start new thread"), "error: no more threads can be started here"),
    ],
)
def test_what_the_machine_has_no_more_of(error: Exception, words: str):
    def fail() -> None:
        raise error

    result = CliRunner().invoke(Command("x", callback=fail), [])
    assert result.exit_code == 1
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_other_errors_are_not_hidden():
    def fail() -> None:
        raise RuntimeError("a defect")

    assert isinstance(CliRunner().invoke(Command("x", callback=fail), []).exception, RuntimeError)
