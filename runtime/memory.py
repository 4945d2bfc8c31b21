"""Memory that the C library holds for the threads of a command that works for hours."""

from __future__ import annotations

import contextlib
import ctypes

from pgsr.machine import usable_cores

_M_ARENA_MAX = -8  # malloc.h


def share_arenas(count: int | None = None) -> None:
    """Lets all threads of this process take memory from so many arenas of the C library, or one a core.
    Left alone, it makes eight a core, and keeps in each what its threads have once needed at one time."""
    with contextlib.suppress(OSError, AttributeError):  # another C library than GNU's
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, count or usable_cores())


def give_back() -> None:
    """Lets the C library return what was freed."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
