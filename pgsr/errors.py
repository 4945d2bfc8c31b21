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


# The two packages own the same files: removing one alone removes the other's, and leaves an empty shell.
REMOVE_ONNXRUNTIMES = "pip uninstall onnxruntime onnxruntime-gpu"


def check_onnxruntime(module: object) -> None:
    """Raises PgsrError if an imported onnxruntime is what remains of one that was uninstalled."""
    if not hasattr(module, "InferenceSession"):
        raise PgsrError(
            "onnxruntime is an empty shell, as remains where two of its packages were installed and one was "
            f"removed: {REMOVE_ONNXRUNTIMES}, then pip install 'pgsr[cpu]', or 'pgsr[gpu]' for an NVIDIA GPU"
        )
