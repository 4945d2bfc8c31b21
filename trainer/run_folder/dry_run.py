"""pgsr-train --dry-run: the schedule as a table, with the time it would take."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..data.cache import load_photographs
from ..step.recipe import Recipe
from ..step.schedule import Phase, Schedule, build
from .estimate import Estimate, estimate

COLUMNS = ("phase", "resolution", "alpha", "batch", "images", "steps", "shown at end", "s a step", "time")


def dry_run(recipe: Recipe, data: Path | None, device: torch.device) -> tuple[dict[str, Any], str]:
    """The schedule of a recipe as data and as text; nothing is written.

    Raises PgsrError if the schedule counts epochs and there are no data.
    """
    schedule = build(recipe.schedule, recipe.objective.critic_steps, _pictures(recipe, data))
    cost = estimate(recipe, schedule, device)
    rows = [phase_row(schedule, phase, cost) for phase in schedule.phases]
    seconds = sum(row["seconds"] for row in rows)
    result = {
        "recipe": recipe.as_dict(),
        "phases": rows,
        "total_images": schedule.total_images,
        "total_steps": sum(row["steps"] for row in rows),
        "total_seconds": seconds,
        "estimated": cost.how,
    }
    text = f"{table(rows)}\n{cost.how}\n{json.dumps(recipe.as_dict(), indent=1)}"
    return result, text


def _pictures(recipe: Recipe, data: Path | None) -> int | None:
    if data is None or not recipe.schedule.counts_epochs:
        return None
    side = recipe.data.resolution or recipe.data.box or recipe.schedule.resolution
    return len(load_photographs(data, side, recipe.data.reduce)) - recipe.data.held_out


def phase_row(schedule: Schedule, phase: Phase, cost: Estimate) -> dict[str, Any]:
    """A phase as plain data; alpha is that of its first and of its last step."""
    last = phase.end - phase.batch * schedule.images_per_step
    return {
        "phase": phase.name,
        "resolution": phase.resolution,
        "alpha": [schedule.at(phase.start).alpha, schedule.at(last).alpha],
        "batch": phase.batch,
        "images": phase.images,
        "steps": schedule.steps(phase),
        "shown_at_end": phase.end,
        "seconds_a_step": cost.seconds_a_step[phase.resolution],
        "seconds": cost.seconds(schedule, phase),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of phases, and their sum, as text."""
    cells = [COLUMNS, *map(_cells, rows)]
    total = sum(row["seconds"] for row in rows)
    images, steps = (f"{sum(row[name] for row in rows):,}" for name in ("images", "steps"))
    cells.append(("total", "", "", "", images, steps, "", "", duration(total)))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(_aligned(row, widths)) for row in cells)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    yield row[0].ljust(widths[0])
    yield from (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    first, last = row["alpha"]
    return (
        row["phase"],
        f"{row['resolution']} x {row['resolution']}",
        f"{first:.2f} -> {last:.2f}" if first != last else f"{last:.2f}",
        str(row["batch"]),
        f"{row['images']:,}",
        f"{row['steps']:,}",
        f"{row['shown_at_end']:,}",
        f"{row['seconds_a_step']:.3g}",
        duration(row["seconds"]),
    )


def duration(seconds: float) -> str:
    """A time to two units: 45 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    for unit, smaller, size, below in (("d", "h", 86400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} {int(seconds % size // below)} {smaller}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
