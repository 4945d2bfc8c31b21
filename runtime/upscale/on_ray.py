"""Pictures enlarged on a Ray cluster, some at a time. Nodes read and write the folders that are named.

What a worker does with its pictures is what the command does with all of them: `Batch` of run.py.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pgsr.crew import Crew, naming_the_node

from ..machinery import Machinery, Model, model_of
from ..memory import share_arenas
from .run import Batch, Run, refusal, repeated_places
from .tasks import Found, UpscaleTask, targets
from .upscaler import Upscaler

AT_ONCE = 16  # pictures of a task


@dataclass(frozen=True)
class Plan:
    """What is to be made on the cluster."""

    tasks: tuple[UpscaleTask, ...]  # their sources as every node finds them
    places: tuple[Path, ...]
    format: str | None
    quality: int | None
    overwrite: bool
    tile: int
    machinery: Machinery = field(default_factory=Machinery)

    def part(self, number: int) -> range:
        """The places of a task's pictures among all."""
        return range(len(self.tasks))[number * AT_ONCE : (number + 1) * AT_ONCE]

    @property
    def parts(self) -> range:
        """The numbers of all tasks."""
        return range(-(-len(self.tasks) // AT_ONCE))


class Worker:
    """An actor: an upscaler, and the pictures that it is told to make."""

    def __init__(self, plan: Plan, model: Model) -> None:
        self._plan, self._model = plan, model

    def open(self) -> dict[str, Any]:
        """Opens the upscaler. Raises PgsrError if this node cannot."""
        import ray

        machinery = self._plan.machinery
        share_arenas()
        with naming_the_node():
            self._upscaler = Upscaler(
                self._model.here(ray.get),
                device=machinery.device,
                precision=machinery.precision,
                backend=machinery.backend,
                threads=machinery.threads or 1,
                tile=self._plan.tile,
            )
        return {
            "host": platform.node(),
            "scale": self._upscaler.scale,
            "model": self._upscaler.bundle.name,
            "precision": self._upscaler.graph.precision,
            "provider": self._upscaler.provider,
        }

    def make(self, number: int) -> dict[str, Any]:
        """Makes a task's pictures. Raises PgsrError for what would stop others too, such as a full disk."""
        began, plan, part = time.perf_counter(), self._plan, self._plan.part(number)
        run = Run(self._upscaler, Path(), plan.format, plan.quality, plan.overwrite)
        with naming_the_node():
            found = Found(list(plan.tasks[part.start : part.stop]))
            batch = Batch(run, found, plan.places[part.start : part.stop])
            batch.run()
        return {
            "made": batch.made,
            "present": batch.present,
            "refused": {part[position]: text for position, text in batch.refused.items()},
            "seconds": time.perf_counter() - began,
        }


class Driver(Crew):
    """Has the pictures made."""

    what = "pictures"

    def __init__(self, ray: Any, plan: Plan, model: Path | None, report: Callable[[int], None]) -> None:
        self._plan, self._report = plan, report
        self.done, self.present = 0, 0
        self.refused: dict[int, str] = {}
        self.opening: dict[str, Any] = {}
        sent = model_of(model, "upscaler", plan.machinery.precision, ray.put)
        super().__init__(ray, Worker, (plan, sent), plan.machinery, plan.parts)

    def opened(self, answer: dict[str, Any]) -> bool:
        self.opening = self.opening or answer
        return False

    def made(self, task: int, answer: dict[str, Any]) -> None:
        self.done += answer["made"]
        self.present += answer["present"]
        self.refused.update(answer["refused"])

    def tell(self, working: int) -> None:
        self._report(self.done + self.present + len(self.refused))

    def images(self, tasks: Any) -> int:
        return sum(len(self._plan.part(number)) for number in tasks)


def upscale_on_ray(
    ray: Any,
    found: Found,
    out: Path,
    format: str | None,
    quality: int | None,
    overwrite: bool,
    tile: int,
    model: Path | None,
    machinery: Machinery,
    report: Callable[[int], None] = lambda count: None,
) -> tuple[dict[str, Any], str]:
    """What `Run.files` does, on a cluster. Raises PgsrError at the end if some could not be made."""
    places = [place.absolute() for place in targets(found.tasks, out, format)]
    twice = repeated_places(found.tasks, places)
    tasks = [UpscaleTask(task.source.absolute(), task.place) for task in found.tasks]
    kept = [number for number in range(len(tasks)) if number not in twice]
    plan = Plan(_those(tasks, kept), _those(places, kept), format, quality, overwrite, tile, machinery)
    driver = Driver(ray, plan, model, report)
    driver.run()
    refused = {**twice, **{kept[number]: text for number, text in driver.refused.items()}}
    if error := refusal(
        [*found.refused, *(refused[n] for n in sorted(refused))], len(tasks) + len(found.refused)
    ):
        raise error
    result = {
        "out": str(out),
        "made": driver.done,
        "present": driver.present,
        "left_alone": dict(found.left_alone),
        **{name: driver.opening.get(name) for name in ("scale", "model", "precision", "provider")},
        **vars(driver.summary),
        "seconds": round(driver.summary.seconds, 3),
    }
    text = f"{out}: {driver.done} made, {driver.present} already there, {driver.summary.seconds:.1f} s on Ray"
    return result, text


def _those(items: Sequence[Any], numbers: Sequence[int]) -> tuple[Any, ...]:
    return tuple(items[number] for number in numbers)
