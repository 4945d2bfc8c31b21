"""What pgsr asks of Ray, in this thread, by a clock that stands still in between: Ray's own words for actors,
answers and nodes, whose workers are as slow as a test says, and die when it says.

What is sent goes through pickle, as there. tests/test_ray.py has real clusters.
"""

from __future__ import annotations

import pickle
import signal
import sys
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

Says = Callable[[int, str, Any], float | Exception]  # (number of the actor, method, its first argument)


class RayError(Exception):
    """An actor is no more."""


class RayTaskError(RayError):
    """A method has raised."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass(eq=False)
class Call:
    """An answer to come."""

    due: float  # by the clock; infinite: never
    compute: Callable[[], Any]


@dataclass(eq=False)
class Put:
    """Something that was sent."""

    data: bytes


@dataclass
class Rays:
    """A cluster of nodes by their cores. `says`: how many seconds a call takes, or how it ends."""

    nodes_cores: list[float] = field(default_factory=lambda: [2.0])
    says: Says = lambda actor, method, task: 1.0
    gpus: float = 0.0
    now: float = 0.0
    actors: list[Any] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)  # of each actor
    calls: list[tuple[int, str, Any]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    connected: bool = False
    prints: str = ""  # to stdout, when it begins and when it ends

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    # The cluster.

    def init(self, address: str, **options: Any) -> None:
        self.connected = True
        print(self.prints, end="")
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))  # as Ray does

    def shutdown(self) -> None:
        print(self.prints, end="")
        self.connected = False

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": c, "GPU": self.gpus}} for c in self.nodes_cores]

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": sum(self.nodes_cores), "GPU": self.gpus}

    def get_gpu_ids(self) -> list[int]:
        return []

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "a node")

    # The clock, in the place of the module time.

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    # Actors.

    def remote(self, kind: type) -> Any:
        def options(**given: Any) -> Any:
            return SimpleNamespace(remote=lambda *arguments: self._start(kind, arguments, given))

        return SimpleNamespace(options=options)

    def _start(self, kind: type, arguments: tuple[Any, ...], given: dict[str, Any]) -> Any:
        self.options.append(given)
        received = [self.get(a) if isinstance(a, Put) else sent(a) for a in arguments]
        self.actors.append(kind(*received))
        return _Handle(self, len(self.actors) - 1)

    def kill(self, handle: _Handle) -> None:
        self.actors[handle._number] = None

    def call(self, actor: int, method: str, arguments: tuple[Any, ...]) -> Call:
        task = arguments[0] if arguments else None
        self.calls.append((actor, method, task))
        said = self.says(actor, method, task)
        received = [sent(a) for a in arguments]

        def compute() -> Any:
            if isinstance(said, RayError):
                self.actors[actor] = None
                raise said
            if isinstance(said, Exception):
                raise RayTaskError(said)
            if self.actors[actor] is None:
                raise RayError("it was killed")
            try:
                return sent(getattr(self.actors[actor], method)(*received))
            except Exception as error:
                raise RayTaskError(error) from error

        return Call(self.now + (1.0 if isinstance(said, Exception) else said), compute)

    def put(self, thing: Any) -> Put:
        return Put(pickle.dumps(thing))

    def get(self, call: Call | Put) -> Any:
        return pickle.loads(call.data) if isinstance(call, Put) else call.compute()

    def wait(self, calls: list[Call], timeout: float, num_returns: int = 1) -> tuple[list[Call], list[Call]]:
        due = sorted(calls, key=lambda call: call.due)[:num_returns]
        if num_returns == 1:
            self.now = max(self.now, min(due[0].due, self.now + timeout))
        ready = [call for call in due if call.due <= self.now]
        return ready, due[len(ready) :]


class _Handle:
    def __init__(self, rays: Rays, number: int) -> None:
        self._rays, self._number = rays, number

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *a: self._rays.call(self._number, method, a))


def sent(thing: Any) -> Any:
    """As another process gets it."""
    return pickle.loads(pickle.dumps(thing))


def install(patch: pytest.MonkeyPatch, rays: Rays) -> Rays:
    """Whoever imports ray gets this one; and pgsr.crew its clock."""

    class Metric:
        def __init__(self, name: str, description: str = "", tag_keys: Iterable[str] = ()) -> None:
            self.name = name

        def inc(self, value: float = 1.0, tags: dict[str, str] | None = None) -> None:
            rays.metrics[self.name] = rays.metrics.get(self.name, 0.0) + value

        def set(self, value: float) -> None:
            rays.metrics[self.name] = value

    metrics = types.ModuleType("ray.util.metrics")
    metrics.Counter = metrics.Gauge = Metric  # type: ignore[attr-defined]
    patch.setitem(sys.modules, "ray", rays)  # type: ignore[arg-type]
    patch.setitem(sys.modules, "ray.util", types.ModuleType("ray.util"))
    patch.setitem(sys.modules, "ray.util.metrics", metrics)
    patch.setattr("pgsr.crew.time", rays)
    return rays
