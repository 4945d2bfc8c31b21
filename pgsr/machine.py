"""The machine at hand: its cores, its processor, and the versions of what is installed."""

from __future__ import annotations

import os
import platform
import re
from functools import cache
from pathlib import Path


def usable_cores() -> int:
    """The number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def processor_information() -> str:
    """The text of /proc/cpuinfo; empty where there is none."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def processor_entry(name: str, information: str | None = None) -> str:
    """The first entry of that name in /proc/cpuinfo, such as "model name"; empty if there is none."""
    text = processor_information() if information is None else information
    match = re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else ""


def processor_name() -> str:
    """The processor's own name, or the architecture's."""
    return processor_entry("model name") or platform.processor() or platform.machine()


def processor_flags(information: str | None = None) -> frozenset[str]:
    """The instruction sets that the processor names, such as "avx512_bf16"."""
    return frozenset(processor_entry("flags", information).split())


def multiplies_bfloat16() -> bool:
    """Returns whether the processor multiplies bfloat16 in hardware."""
    return bool({"avx512_bf16", "amx_bf16"} & processor_flags())


def installed_versions(*packages: str) -> dict[str, str]:
    """The versions of those packages that are installed."""
    from importlib.metadata import PackageNotFoundError, version  # slow to import

    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
