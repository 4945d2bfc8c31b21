"""The C library's allocator, told to keep what it has.

A training step on the CPU frees and asks again for the same large blocks; glibc gives each back to the
kernel and pays page faults for it anew; where memory traffic rules, as with separable convolutions at
large batches, that is a good part of a step.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Sets malloc's thresholds for this process; False where the C library has no mallopt."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 * 2**20))
    return all(mallopt(name, value) == 1 for name, value in settings)
