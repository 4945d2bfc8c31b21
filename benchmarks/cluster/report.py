"""What pgsr-bench cluster prints and writes."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pgsr.files import make_folder, write_text

from ..harness.machine import describe
from . import kills, measure


def run_and_write(
    out: Path | None, count: int, seed: int | None, options: dict[str, Any], say: Callable[[str], None]
) -> tuple[dict[str, Any], str]:
    """Kills so often, or measures if that is 0. Returns the result, and it as Markdown."""
    with tempfile.TemporaryDirectory(prefix="pgsr-cluster-") as folder:
        if count:
            names = kills.Size.__dataclass_fields__
            size = kills.Size(**{name: value for name, value in options.items() if name in names})
            result = kills.run(count, size, Path(folder), say, seed)
            name, text = "kills.json", kills.table(result)
        else:
            result = measure.run(measure.Settings(**options), Path(folder), say)
            name, text = "cluster.json", cluster_text(result)
    result["machine"] = vars(describe(1))
    if out is not None:
        write_text(make_folder(out) / name, json.dumps(result, indent=1) + "\n")
    return result, text


def cluster_text(result: dict[str, Any]) -> str:
    """The measurement as Markdown."""
    lines = ["| | images/s | to the plain command | seconds to open |", "| --- | ---: | ---: | ---: |"]
    for name, rates in result["images_per_second"].items():
        opening = result["opening_seconds"].get(name)
        lines.append(
            f"| {'plain' if name == 'plain' else f'Ray, {name} workers'} | {statistics.median(rates):.1f} | "
            f"{result['to_plain'][name]:.3f} | {f'{statistics.median(opening):.1f}' if opening else ''} |"
        )
    return "\n".join(lines)
