"""Where a report's numbers are from: the command, the commit, the clock, every flag of the processor."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pgsr.machine import held_to, processor_entry, processor_flags

ROOT = Path(__file__).resolve().parents[2]


def provenance() -> dict[str, Any]:
    """What a reader needs to judge or repeat a measurement."""
    return {
        "command": _held() + shlex.join(["pgsr-bench", *map(named, sys.argv[1:])]),
        "commit": commit(),
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "clock": f"perf_counter, steps of {time.get_clock_info('perf_counter').resolution * 1e9:.0f} ns",
        "clock_mhz": clock_mhz(),
        "flags": sorted(processor_flags()),
    }


def _held() -> str:
    return f"ONEDNN_MAX_CPU_ISA={most} " if (most := held_to()) else ""


def named(argument: str) -> str:
    """An argument of a command without the machine's folders: of an absolute path its last name alone."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def clock_mhz() -> float | None:
    """The processor's clock as the system tells it at this instant; None where it does not."""
    try:
        return float(processor_entry("cpu MHz"))
    except ValueError:
        return None


def commit(root: Path = ROOT) -> str:
    """The commit of a checkout, with + where files differ from it; empty where pgsr is installed."""
    if not (root / "pyproject.toml").is_file():
        return ""
    head = _git(root, "rev-parse", "--short=12", "HEAD")
    return f"{head}{'+' if head and _git(root, 'status', '--porcelain', '-uno') else ''}"


def _git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=False)
    except OSError:  # no git
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
