"""What every command shares: one-line errors, --json, the exit codes.

stdout carries results, stderr progress. Exit 0 done, 1 a named error, 2 wrong usage.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from pgsr import __version__
from pgsr.errors import PgsrError, missing_package
from pgsr.files import cannot_write

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar


class Command(click.Command):
    """A command that prints a PgsrError as one line on stderr and exits with 1."""

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        with errors_as_lines():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with errors_as_lines():
            return super().invoke(ctx)


@contextmanager
def errors_as_lines() -> Iterator[None]:
    """Ends the process with one line for errors that the user can mend."""
    try:
        yield
    except PgsrError as error:
        fail(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.filename is None:
            raise
        fail(str(cannot_write(error.filename, error)))


def progress_bar(length: int, label: str) -> ProgressBar[int]:
    """A bar on stderr that is there on terminals alone."""
    hidden = not sys.stderr.isatty()
    return click.progressbar(length=length, label=label, file=sys.stderr, hidden=hidden)


@contextmanager
def packages(needed_by: str, extra: str) -> Iterator[None]:
    """Around imports of optional packages: their absence becomes the sentence that mends it."""
    try:
        yield
    except ImportError as error:
        raise missing_package(needed_by, extra, error) from error


class Group(click.Group):
    """A group whose subcommands are `Command`s."""

    command_class = Command


def fail(message: str) -> None:
    """One line on stderr, exit 1."""
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(1)


def emit(result: dict[str, Any], text: str, as_json: bool) -> None:
    """The result on stdout: `text`, or with --json one object."""
    click.echo(json.dumps(result) if as_json else text)


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
version_option = click.version_option(__version__, "--version", prog_name="pgsr")
