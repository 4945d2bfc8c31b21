"""Libraries that would tell their makers of their use, switched off. Nothing here imports them.

ONNX Runtime (from 1.31 on) leaves a device id under ~/.cache and looks up its maker's host from the first
session on, unless ORT_DISABLE_TELEMETRY is set. OpenVINO does likewise through the package
openvino_telemetry as it is imported, with an id in ~/intel, and goes without where that package is absent.
Ray's head node reports from the process that starts it, unless RAY_USAGE_STATS_ENABLED is 0.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

OPENVINO_TELEMETRY = "openvino_telemetry"


def silence_onnxruntime() -> None:
    """Keeps ONNX Runtime from reporting; it looks at its variable as its first session begins."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def silence_ray() -> None:
    """Keeps a cluster that this process starts from reporting; another was told by whoever started it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


@contextlib.contextmanager
def silent_openvino() -> Iterator[None]:
    """Lets OpenVINO be imported inside as if its telemetry package were not installed."""
    absent = OPENVINO_TELEMETRY not in sys.modules
    if absent:
        sys.modules[OPENVINO_TELEMETRY] = None  # type: ignore[assignment]  # an import of it fails
    try:
        yield
    finally:
        if absent:
            sys.modules.pop(OPENVINO_TELEMETRY, None)
