"""pgsr-train --status RUN: where a run stands, read from its folder, also while it trains."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pgsr.checkpoint import files_of, load_description
from pgsr.errors import PgsrError
from pgsr.lock import is_held

from ..step import recipe as config
from ..step.schedule import Schedule, Stage, build
from . import evaluate
from . import metrics_log as record
from .cost import multiply_adds
from .dry_run import duration


def status_of(run: Path) -> tuple[dict[str, Any], str]:
    """Returns where a run stands, as data and as text. Raises PgsrError if the folder is no run's."""
    recipe, lines, files = config.of_run(run), record.read(run / "metrics.jsonl"), files_of(run)
    steps = [line for line in lines if "step" in line]
    last: Mapping[str, Any] = steps[-1] if steps else {}
    schedule = _schedule(recipe, files)
    images_shown = max(
        [int(path.stem) for path in files] + [line["images_shown"] for line in steps], default=0
    )
    total = schedule.total_images if schedule else None
    stage = _last_stage(schedule, images_shown) if schedule else None
    training, finished = is_held(run), images_shown == total
    result = {
        "run": str(run),
        "recipe": recipe.name,
        "state": "training" if training else "finished" if finished else "stopped",
        "images_shown": images_shown,
        "total_images": total,
        "phase": stage.phase.name if stage else None,
        "alpha": stage.alpha if stage else None,
        "batch": stage.batch if stage else None,
        "step": last.get("step"),
        "images_per_second": last.get("images_per_second"),
        "seconds_left": _seconds_left(recipe, schedule, images_shown, last),
        "losses": {k.removeprefix("loss/"): v for k, v in last.items() if k.startswith("loss/")},
        "best": _best(lines),
        "rollbacks": [line for line in lines if "rollback" in line],
        "last_line_seconds_ago": _age(run / "metrics.jsonl"),
        "checkpoints": [{"file": path.name, "seconds_ago": _age(path)} for path in files],
    }
    return result, _text(result)


def _best(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Returns where the generator was best, if that was measured."""
    line = evaluate.best(lines)
    if line is None:
        return None
    return {"images_shown": line["images_shown"], "swd": line[evaluate.AVERAGE], "file": evaluate.BEST}


def _schedule(recipe: config.Recipe, files: Sequence[Path]) -> Schedule | None:
    """Returns the run's schedule; None if it counts epochs of data whose size no checkpoint tells yet."""
    pictures = _pictures(files)
    if pictures is None and recipe.schedule.counts_epochs:
        return None
    return build(recipe.schedule, recipe.objective.critic_steps, pictures)


def _pictures(files: Sequence[Path]) -> int | None:
    for path in reversed(files):
        with contextlib.suppress(PgsrError):  # removed since it was listed
            data = load_description(path).provenance.get("data")
            pictures = data.get("pictures") if isinstance(data, dict) else None
            if type(pictures) is int and 0 < pictures < 2**53:
                return pictures
    return None


def _last_stage(schedule: Schedule, images_shown: int) -> Stage:
    """Returns the stage of the last step that was made, or of the first."""
    phase = schedule.at(max(0, images_shown - 1)).phase
    return schedule.at(max(phase.start, images_shown - phase.batch * schedule.images_per_step))


def _age(path: Path) -> float | None:
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return None


def _seconds_left(
    recipe: config.Recipe, schedule: Schedule | None, images_shown: int, last: Mapping[str, Any]
) -> float | None:
    """Estimates the time left at the present speed; at resolutions to come, by their multiply-adds an
    image. None where the log tells no speed, or a resolution that the schedule has not."""
    speed, now = float(last.get("images_per_second", 0.0)), last.get("resolution")
    batches = {phase.resolution: phase.batch for phase in schedule.phases} if schedule else {}
    if schedule is None or not speed or now not in batches:
        return None
    left: dict[int, int] = {}
    for phase in schedule.phases:
        left[phase.resolution] = (
            left.get(phase.resolution, 0) + phase.end - max(phase.start, min(phase.end, images_shown))
        )
    if not any(images for size, images in left.items() if size != now):
        return left[now] / speed
    cost = {size: count / batches[size] for size, count in multiply_adds(recipe, schedule).items()}
    return sum(images * cost[size] / cost[now] for size, images in left.items()) / speed


def _text(status: Mapping[str, Any]) -> str:
    total = status["total_images"]
    share = f" of {total:,} images ({status['images_shown'] / total:.1%})" if total else " images"
    rows = [
        ("run", f"{status['run']}: {status['recipe']}"),
        ("state", status["state"] + _ago(", last line of metrics.jsonl", status["last_line_seconds_ago"])),
        ("shown", f"{status['images_shown']:,}{share}"),
    ]
    if status["phase"]:
        rows.append(("phase", f"{status['phase']}, alpha {status['alpha']:.3f}, batch {status['batch']}"))
    if status["losses"]:
        rows.append(("losses", ", ".join(f"{k} {v:.4g}" for k, v in status["losses"].items())))
    if status["images_per_second"]:
        left = status["seconds_left"]
        about = f"; about {duration(left)} left" if left and status["state"] != "finished" else ""
        rows.append(("speed", f"{status['images_per_second']:g} images a second{about}"))
    if status["best"]:
        best = status["best"]
        rows.append(("best", f"SWD {best['swd']:.2f} at {best['images_shown']:,} images: {best['file']}"))
    rows += [("rollback", f"{r['rollback']}, to {r['images_shown']:,} images") for r in status["rollbacks"]]
    rows += [("checkpoint", c["file"] + _ago(",", c["seconds_ago"])) for c in status["checkpoints"][-5:]]
    if not status["checkpoints"]:
        rows.append(("checkpoint", "none yet"))
    return "\n".join(f"{name:<11} {value}" for name, value in rows)


def _ago(what: str, seconds: float | None) -> str:
    return "" if seconds is None else f"{what} {duration(seconds)} ago"
