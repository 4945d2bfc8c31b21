"""The one exception that commands print as a line instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterable


class PgsrError(Exception):
    """Something the user can mend: one sentence that says what is wrong and what to do.

    Commands print it to stderr and exit with 1 (see pgsr.cli).
    """


def missing_package(needed_by: str, extra: str, error: ImportError) -> PgsrError:
    """The sentence for an optional dependency that is absent; keeps the import's own words,
    since a missing shared library looks the same as a missing package."""
    return PgsrError(f"{needed_by} needs a missing package: pip install 'pgsr[{extra}]' ({error})")


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raises PgsrError unless `value` is one of `choices`."""
    if value not in tuple(choices):  # a tuple asks for equality only, not for a hash
        raise PgsrError(f"{name} = {value!r} is not one of {', '.join(map(repr, choices))}")
