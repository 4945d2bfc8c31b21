"""What every command shares: one-line errors, --json, the exit codes.

stdout carries results, stderr progress. Exit 0 done, 1 a named error, 2 wrong usage.
"""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from pgsr import __version__
from pgsr.errors import PgsrError, missing_package
from pgsr.files import cannot_write, ending_cleanly
from pgsr.machine import keep_to_quota
from pgsr.schema import shortened, visible

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

F = TypeVar("F", bound=Callable[..., Any])


class Option(click.Option):
    """An option that stands under a heading in --help."""

    def __init__(self, *args: Any, heading: str = "Options", **options: Any) -> None:
        super().__init__(*args, **options)
        self.heading = heading


# Who reads a file says what is wrong with it, in a line. click would look before, at another instant, and end
# with its usage.
PATH = click.Path(path_type=Path, readable=False)


def option(heading: str, *names: str, **attributes: Any) -> Callable[[F], F]:
    """click.option, under a heading."""
    return click.option(*names, cls=Option, heading=heading, **attributes)


def options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, for commands that share them."""

    def decorate(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)  # of a stream


class Streams(click.Command):
    """A command that works with standard streams that are closed, full or of a narrow encoding."""

    def main(self, *args: Any, **options: Any) -> Any:
        try:
            open_streams()
            warnings.filterwarnings("ignore", module="PIL")  # of damaged EXIF and the like, which is not used
            keep_to_quota()
            try:
                with ending_cleanly():
                    return super().main(*args, **options)
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            _discard_stdout()
            sys.exit(1)
        except KeyboardInterrupt:  # where click does not look: before it begins, and a second one
            _end("Aborted!")
        except OSError as error:
            if error.filename is not None or error.errno not in UNWRITABLE:
                raise
            _discard_stdout()
            fail(f"the standard output cannot be written: {error.strerror or error}")


class _Progress(io.FileIO):
    """The standard error. What it takes no more, on a full disk say, is lost; work does not end for that."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            return len(data)


def open_streams() -> None:
    """Puts the null device where a stream is closed; a letter that a stream lacks is written \\xNN."""
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # as long as the process
    stderr = sys.__stderr__
    if stderr is not None and sys.stderr is stderr:
        raw = _Progress(stderr.fileno(), "w", closefd=False)
        sys.stderr = io.TextIOWrapper(io.BufferedWriter(raw), stderr.encoding, line_buffering=True)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _discard_stdout() -> None:
    """Lets what stdout still holds go to the null device as the process ends, without another error."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


class Command(Streams):
    """A command that prints a PgsrError as one line on stderr and exits with 1, and whose --help groups
    options under their headings."""

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        with errors_as_lines(), short_usage_errors():
            return super().make_context(*args, **options)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        for parameter in self.params:
            _check_numbers(parameter, ctx.params.get(parameter.name or ""))
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        with errors_as_lines():
            return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        headings: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                headings.setdefault(getattr(parameter, "heading", "Options"), []).append(record)
        for heading, records in sorted(headings.items(), key=lambda pair: pair[0] == "Options"):
            with formatter.section(heading):
                formatter.write_dl(records)


# The largest numbers that options mean anywhere. What is beyond them, libraries answer in their own ways: by
# overflow, or by trying. Commands have bounds of their own within these.
LARGEST = {
    **dict.fromkeys(("seed", "start", "count"), 2**64),
    **dict.fromkeys(("batch", "large_batch", "rows", "rounds"), 2**16),
    **dict.fromkeys(("resolution", "latent_size", "feature_max", "features", "tile", "scale"), 2**16),
    **dict.fromkeys(("sr_features", "sr_blocks", "maps", "samples", "resolutions", "timed"), 2**16),
    "feature_base": 2**24,
    "threads": 1024,  # which start within a second
    "processes": 1024,
}
LARGEST_ELSE = 2**53


def _check_numbers(parameter: click.Parameter, value: Any) -> None:
    """Raises PgsrError for numbers beyond LARGEST, and for those that are none."""
    if isinstance(value, tuple | list):
        for part in value:
            _check_numbers(parameter, part)
        return
    most = LARGEST.get(parameter.name or "", LARGEST_ELSE)
    if isinstance(value, int | float) and not abs(value) <= most:  # as NaN is not
        name = parameter.opts[0] if isinstance(parameter, click.Option) else parameter.human_readable_name
        raise PgsrError(f"{name} {shortened(str(value))} is not a number up to {most:,}")


@contextmanager
def short_usage_errors() -> Iterator[None]:
    """Cuts what click says of a value that is thousands of letters long."""
    try:
        yield
    except click.UsageError as error:
        error.message = in_one_line(error.message)  # type: ignore[misc]  # there is no other way
        raise


class Modes(Streams, click.Group):
    """A command with a default mode, and others that its first word names: each has its own options.

    `pgsr-x --count 3` is the default mode, `pgsr-x video FILE` another. The options by which modes were once
    chosen still do so: `--video FILE` is `video FILE`. Under --help stand the default mode's options.
    """

    command_class = Command

    def __init__(self, *args: Any, default: str, spellings: Mapping[str, str], **options: Any) -> None:
        super().__init__(*args, **options)
        self.default, self.spellings = default, spellings  # of modes by options: {"--video": "video"}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self._with_mode(ctx, args))

    def _with_mode(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] in ("--help", "--version", *self.commands):
            return args
        for place, word in enumerate(args):
            name, equals, value = word.partition("=")
            if name in self.spellings:
                ctx.meta["pgsr.spelling"] = name
                rest = [*args[:place], *([value] if equals else []), *args[place + 1 :]]
                return [self.spellings[name], *rest]
        return [self.default, *args]

    def invoke(self, ctx: click.Context) -> Any:
        with errors_as_lines():
            return super().invoke(ctx)

    def refusal(self, ctx: click.Context, name: str, option: str) -> PgsrError | None:
        """The sentence for an option that is another mode's; None if it is nobody's."""
        owners = [
            mode
            for mode, command in self.commands.items()
            if any(option in (*p.opts, *p.secondary_opts) for p in command.params)
        ]
        if not owners:
            return None
        spelling = ctx.meta.get("pgsr.spelling")
        if name != self.default:
            words = f"a {spelling}" if spelling else f"{ctx.command_path} {name}"
            return PgsrError(f"{option} is not for {words}: leave it out")
        owner = next((o for o, mode in self.spellings.items() if mode == owners[0]), None)
        words = f"a {owner}" if owner else f"{ctx.command_path} {owners[0]}"
        return PgsrError(f"{option} is for {words}: leave it out")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with click.Context(self.commands[self.default], ctx, self.default) as default:
            default.command.format_options(default, formatter)
        others = {k: v for k, v in self.commands.items() if k != self.default}
        with formatter.section("Modes (MODE --help has their options)"):
            formatter.write_dl([(name, mode.get_short_help_str(80)) for name, mode in others.items()])

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        default = self.commands[self.default]
        arguments = [p.make_metavar(ctx) for p in default.params if isinstance(p, click.Argument)]
        formatter.write_usage(ctx.command_path, " ".join(["[OPTIONS]", *arguments, "| MODE ..."]))


class Mode(Command):
    """A mode of a `Modes` command: another mode's option is named as such."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            assert ctx.parent is not None
            assert isinstance(ctx.parent.command, Modes)
            assert self.name is not None
            refusal = ctx.parent.command.refusal(ctx.parent, self.name, error.option_name)
            if refusal is None:
                raise
            raise refusal from None


NO_THREADS = ("can't start new thread", "can't start new thread at interpreter shutdown")
# What PyTorch says in a RuntimeError where others raise MemoryError; the second is oneDNN's.
NO_MEMORY = ("can't allocate memory", "could not create a primitive", "bad_alloc", "Cannot allocate memory")


@contextmanager
def errors_as_lines() -> Iterator[None]:
    """Ends the process with one line for errors that the user can mend."""
    try:
        yield
    except KeyboardInterrupt:
        _end("\nAborted!")  # as click has it: below ^C, or a progress bar
    except PgsrError as error:
        fail(str(error))
    except MemoryError as error:
        fail(f"there is not enough memory for this ({shortened(str(error), 200) or 'no more is given'})")
    except BrokenPipeError:
        raise
    except RuntimeError as error:
        if any(words in str(error) for words in NO_MEMORY):
            fail(f"there is not enough memory for this ({shortened(str(error), 200)})")
        if str(error) not in NO_THREADS:
            raise
        fail("no more threads can be started here: give fewer --threads, or raise the limit (ulimit -u)")
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
    """Turns the absence of an optional package, imported inside the block, into the sentence that mends
    it."""
    try:
        yield
    except ImportError as error:
        raise missing_package(needed_by, extra, error) from error


class Group(Streams, click.Group):
    """A group whose subcommands are `Command`s."""

    command_class = Command


def fail(message: str) -> NoReturn:
    """One line on stderr, exit 1."""
    _end(f"error: {in_one_line(message)}")


def _end(line: str) -> NoReturn:
    """Writes this line to stderr and exits with 1.

    The process ends now, so one more Ctrl-C is not heard: Python would show where it came.
    """
    with suppress(ValueError):  # not the main thread, which alone hears it
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    click.echo(line, err=True)
    sys.exit(1)


LONGEST_WORD = 500  # letters of a message's: of a path, usually
LONGEST_LINE = 2000


def in_one_line(message: str) -> str:
    """A message of any origin as one line that is not too long."""
    words = (shortened(word, LONGEST_WORD) for word in visible(" ".join(message.split())).split())
    return shortened(" ".join(words), LONGEST_LINE)


def emit(result: dict[str, Any], text: str, as_json: bool) -> None:
    """The result on stdout: `text`, or with --json one object."""
    click.echo(json.dumps(result) if as_json else text)


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
version_option = click.version_option(__version__, "--version", prog_name="pgsr")
