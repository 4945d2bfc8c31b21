"""pgsr-train --dry-run: the schedule as a table, with the time it would take, the memory of a step at each
resolution, what batch fits GPUs of three sizes, and how large the data set is. Nothing is decoded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..data.pixel_file import bytes_on_disk
from ..data.sources import of_size, open_pictures
from ..step.batches import stored_sides, with_fitting_boxes
from ..step.recipe import Recipe
from ..step.schedule import Phase, Schedule, build
from .cost import StepCost, last_of_each_resolution
from .estimate import Estimate, estimate

COLUMNS = ("phase", "resolution", "alpha", "batch", "images", "steps", "shown at end", "s a step", "time")
GIB = 2**30
GPUS = (16, 40, 80)  # GiB
USABLE = 0.9  # of a GPU's memory; CUDA, its libraries and gaps between blocks take the rest
PICTURES_IF_UNKNOWN = 100_000


def dry_run(recipe: Recipe, data: Path | None, device: torch.device) -> tuple[dict[str, Any], str]:
    """The schedule of a recipe as data and as text; nothing is written.

    Raises PgsrError if the schedule counts epochs and there are no data.
    """
    fitting = recipe if data is None else with_fitting_boxes(recipe, data)
    pictures = None if data is None else _pictures(fitting, data)
    trained_on = None if pictures is None else pictures - recipe.data.held_out
    schedule = build(recipe.schedule, recipe.objective.critic_steps, trained_on)
    cost = estimate(recipe, schedule, device)
    rows = [phase_row(schedule, phase, cost) for phase in schedule.phases]
    memory = [memory_row(p, cost.costs[p.resolution]) for p in last_of_each_resolution(schedule)]
    size = data_size(fitting, pictures)
    result = {
        "recipe": recipe.as_dict(),
        "phases": rows,
        "total_images": schedule.total_images,
        "total_steps": sum(row["steps"] for row in rows),
        "total_seconds": sum(row["seconds"] for row in rows),
        "estimated": cost.how,
        "memory": memory,
        "data": size,
    }
    parts = [table(rows), cost.how, memory_table(memory), MEMORY_NOTE, in_words(size)]
    return result, "\n".join([*parts, json.dumps(recipe.as_dict(), indent=1)])


def _pictures(recipe: Recipe, data: Path) -> int:
    """The pictures that are listed; those that turn out to be damaged or too small are among them."""
    return len(of_size(open_pictures(data), stored_sides(recipe)[0]).names)


# ----------------------------------------------------------------------------
# Memory.


MEMORY_NOTE = (
    "Memory of a step in float32: weights, gradients, moments, average, and all that is alive at once of "
    "activations; kernels take some more for themselves, half precision takes less. Of a GPU's memory "
    f"{USABLE:.0%} are counted on, and none for photographs."
)


def memory_row(phase: Phase, cost: StepCost) -> dict[str, Any]:
    """What a step takes at a resolution, and the largest batch by a GPU's GiB, as plain data."""
    return {
        "resolution": phase.resolution,
        "batch": phase.batch,
        "step_bytes": cost.memory.bytes_at(phase.batch),
        "largest_batch": {str(gpu): cost.memory.largest_batch(USABLE * gpu * GIB) for gpu in GPUS},
    }


def memory_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of resolutions as text."""
    cells = [("resolution", "batch", "memory a step", *(f"most in {gpu} GB" for gpu in GPUS))]
    for row in rows:
        largest = (f"{count:,}" if count else "none" for count in row["largest_batch"].values())
        size = f"{row['resolution']} x {row['resolution']}"
        cells.append((size, str(row["batch"]), byte_count(row["step_bytes"]), *largest))
    return aligned(cells)


def data_size(recipe: Recipe, pictures: int | None) -> dict[str, Any]:
    """The decoded data set's size, as plain data; by picture where nobody knows how many there are."""
    sides = stored_sides(recipe)
    in_memory, on_disk = sum(3 * side * side for side in sides), sum(map(bytes_on_disk, sides))
    size: dict[str, Any] = {"sides": sides, "pictures": pictures}
    size |= {"memory_bytes_a_picture": in_memory, "disk_bytes_a_picture": on_disk}
    if pictures is not None:
        size |= {"memory_bytes": pictures * in_memory, "disk_bytes": pictures * on_disk}
    return size


def in_words(size: dict[str, Any]) -> str:
    """The data set's size as a sentence."""
    count = size["pictures"]
    which = f"{count:,} pictures" if count is not None else f"each {PICTURES_IF_UNKNOWN:,} pictures"
    count = PICTURES_IF_UNKNOWN if count is None else count
    memory, disk = (count * size[f"{where}_bytes_a_picture"] for where in ("memory", "disk"))
    sides = " and ".join(f"{side} x {side}" for side in size["sides"])
    return (
        f"Data: {which} at {sides} take {byte_count(memory)} of memory (a file that is mapped: what is in "
        f"use lies there) and {byte_count(disk)} of disk, in the cache."
    )


def byte_count(count: float) -> str:
    """Bytes to three digits: 12.3 MiB."""
    for unit, size in (("TiB", 2**40), ("GiB", GIB), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1024:.3g} KiB"


# ----------------------------------------------------------------------------
# Time.


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
    return aligned(cells)


def aligned(cells: Sequence[tuple[str, ...]]) -> str:
    """Cells in columns: the first to the left, the others to the right."""
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
