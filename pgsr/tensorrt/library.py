"""What TensorRT 10, TensorRT 11 and TensorRT-RTX have in common as libraries: how they start, log and fail.

Their bindings raise in three ways: TypeError where an object could not be made ("factory function returned
nullptr": an old driver, say), RuntimeError where a call failed, ValueError where an argument does not suit.
The cause, where there is one, is in what the logger was told.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from pgsr.errors import PgsrError


def quiet_log(trt: Any) -> Any:
    """A logger that keeps errors and the builder's list of layers, and prints nothing; with nothing in it.

    It is one for each library: TensorRT tells all to the first that it was given, as long as anything of that
    lives.
    """
    log = _log(trt)
    log.errors.clear()
    log.layers = ""
    return log


@functools.cache
def _log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.layers = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)
            elif message.startswith("Layers:"):
                self.layers = message

        def reason(self) -> str:
            return self.errors[0] if self.errors else "it does not say why"

    return Log()


def start(make: Callable[..., Any], log: Any, name: str, *arguments: Any) -> Any:
    """Returns `make(*arguments, log)`: a Builder, Runtime or OnnxParser.

    Raises PgsrError, with the library's `name` and what it logged, where the library gives none.
    """
    try:
        made = make(*arguments, log)
    except TypeError as error:
        raise _cannot_start(name, log) from error
    if made is None:
        raise _cannot_start(name, log)
    return made


def _cannot_start(name: str, log: Any) -> PgsrError:
    return PgsrError(f"{name} cannot start: {log.reason()}; the NVIDIA driver may be too old for it")


@contextlib.contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Makes what the bindings raise a PgsrError."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise PgsrError(f"{name} failed: {error}") from error
