"""Numbered tasks on a Ray cluster: an actor for each GPU, or for so many cores, does one after the other.

    with connected("auto") as ray:
        SomeCrew(ray, Worker, arguments, Hiring(), tasks=range(100)).run()

A task must be one that may be done twice, by two workers at once even, with one result. Then whoever dies
takes nothing along: a worker's task goes to another, a node's workers are hired elsewhere, and what takes too
long is given to a second worker. `Mapped` is this as a function from things to what is made of them.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import platform
import signal
import socket
import statistics
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from .errors import PgsrError, missing_package
from .metric_names import LOST, WAITING, WORKERS
from .privacy import silence_ray

log = logging.getLogger(__name__)

MOST_WORKERS = 2**16
LONGEST_KNOCK = 10.0  # seconds
TICK = 0.5  # seconds between looks at the cluster
REST = 2.0  # seconds that a worker waits after its first failure; twice as long after the next
MOST_FAILURES = 3  # of a worker in a row, before it gets no more work
MOST_DEATHS = 5  # of workers over one task, or at their start one after the other
STRAGGLING = 2.0  # times the median time of a task, before somebody else does it, too
LEAST_STRAGGLING = 2.0  # seconds
AHEAD = 4  # things that a map takes for each worker
FEWEST = 4  # workers, while nobody is hired yet


@dataclass(frozen=True)
class Hiring:
    """What a worker takes of the cluster, and how many there are. Raises PgsrError for less than one."""

    device: str = "auto"  # "cpu", "cuda", or what the cluster has
    threads: int = 0  # and as many cores of the cluster a worker; 0 is one
    workers: int | None = None  # at most; None is as many as the cluster has room for

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise PgsrError(
                f"--workers {self.workers} is below 1: give the number of workers, or leave it out"
            )


# ----------------------------------------------------------------------------
# The cluster.


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster: "auto", "local" (which starts one here), or HOST:PORT, ray://HOST:PORT.

    Raises PgsrError if Ray is not installed or there is no such cluster.
    """
    silence_ray()
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's own advice against its warning
    try:
        import ray
    except ImportError as error:
        raise missing_package("--ray", "ray", error) from error
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints what died, at its end, too
        _join(ray, address)
        try:
            yield ray
        finally:
            ray.shutdown()


def _join(ray: Any, address: str) -> None:
    own = {"include_dashboard": False} if address == "local" else {}
    try:
        _knock(address)
        with _handlers_kept():
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:  # of many kinds
        words = " ".join(str(error).split())[:200]
        raise PgsrError(
            f"no Ray cluster at --ray {address}: start one with `ray start --head`, or give --ray local; "
            f"where clusters have tokens, set RAY_AUTH_MODE=token ({words})"
        ) from error


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Sets the handlers of signals again that were there before the block: Ray's would end the command with
    the signal's number for its code, behind a list of addresses."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:  # None: set by something that is not Python
                    signal.signal(number, handler)


def _knock(address: str) -> None:
    """Raises OSError if nobody listens at HOST:PORT, or ray://HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        with socket.create_connection((host.strip("[]"), int(port)), timeout=LONGEST_KNOCK):
            pass


@contextlib.contextmanager
def naming_the_node() -> Iterator[None]:
    """Says where an error was, of a worker."""
    try:
        yield
    except PgsrError as error:
        raise PgsrError(f"on node {platform.node()}: {error}") from error


# ----------------------------------------------------------------------------
# The driver.


@dataclass(eq=False)
class Hired:
    """A worker as the driver knows it."""

    actor: Any
    node: str = "?"
    task: int | None = None  # that it does
    since: float = 0.0
    opened: bool = False
    failures: int = 0  # in a row
    rests_until: float = 0.0
    parked: bool = False  # gets no more work; holds its place, so that nobody is hired there


@dataclass
class Summary:
    """What came of it."""

    seconds: float = 0.0
    opening_seconds: float = 0.0  # of these, until the first worker could begin
    lost: int = 0  # workers that died
    failed: int = 0  # attempts that ended with an error
    straggling: int = 0  # tasks that were given to a second worker
    repeated: list[int] = field(default_factory=list)  # tasks that were begun more than once
    workers: int = 0  # at most at a time


class Crew:
    """Hands out tasks until all are done. Subclasses say what a worker is told and what its answers mean."""

    what = "task"

    def __init__(
        self, ray: Any, worker: type, arguments: tuple[Any, ...], hiring: Hiring, tasks: Iterable[int]
    ) -> None:
        """`worker`: a class with `open` and `make`, made of these arguments on the nodes."""
        self._ray, self._hiring = ray, hiring
        self._worker, self._arguments = ray.remote(worker), arguments
        self._queue = deque(tasks)
        self.missing = set(self._queue)
        self._hired: list[Hired] = []
        self._calls: dict[Any, Hired] = {}  # by what they will answer
        self._seconds: list[float] = []  # of tasks
        self._attempts: Counter[int] = Counter()  # by task
        self._deaths: Counter[int | None] = Counter()  # by the task at hand; None: at the start
        self._error: PgsrError | None = None
        self._began = time.perf_counter()
        self._looked = self._told = float("-inf")  # when at the cluster, and when it was told
        self.summary = Summary()
        self._gauges = Gauges()

    # ------------------------------------------------------------------------
    # What subclasses say.

    def told(self) -> tuple[Any, ...]:
        """Returns what `open` is told."""
        return ()

    def told_of(self, task: int) -> tuple[Any, ...]:
        """Returns what `make` is told after a task's number."""
        return self.told()

    def opened(self, answer: dict[str, Any]) -> bool:
        """Takes what `open` has answered; returns whether it must be called again, with what is known now."""
        return False

    def made(self, task: int, answer: dict[str, Any]) -> None:
        """Takes what `make` has answered, once for each task."""

    def tell(self, working: int) -> None:
        """Says how far the work is."""

    def images(self, tasks: Iterable[int]) -> int:
        """Returns how many images these tasks make together."""
        return sum(1 for _ in tasks)

    # ------------------------------------------------------------------------

    def run(self) -> None:
        """Raises PgsrError if no worker is left that can go on."""
        try:
            while self.missing:
                self.step()
        finally:
            self.close()
        self._tell()

    def step(self, wait: float = TICK) -> None:
        """Gives everybody work, and takes the answers that are there once one comes within so many seconds.

        Raises PgsrError if no worker is left that can go on.
        """
        self._hire()
        self._hand_out()
        self._check_hope()
        if time.perf_counter() - self._told >= TICK:  # it counts the images of all that waits
            self._tell()
        if not self._calls:
            time.sleep(wait)
            return
        calls = list(self._calls)
        ready, _ = self._ray.wait(calls, timeout=wait)
        if ready:  # all of them at once, since a look at thousands of calls takes its time
            ready, _ = self._ray.wait(calls, num_returns=len(calls), timeout=0.0)
        for call in ready:
            self._answered(call)

    def close(self) -> None:
        """Ends all workers, and sums up."""
        self._dismiss()
        self.summary.seconds = time.perf_counter() - self._began
        self.summary.repeated = sorted(n for n, count in self._attempts.items() if count > 1)

    def _tell(self) -> None:
        self._told = time.perf_counter()
        working = sum(worker.task is not None for worker in self._hired)
        self.summary.workers = max(self.summary.workers, working)
        self._gauges(self.images(self._queue), working)
        self.tell(working)

    # ------------------------------------------------------------------------
    # Workers.

    @property
    def _resources(self) -> dict[str, float]:
        """Returns what a worker takes."""
        device = self._hiring.device.partition(":")[0]
        has_gpus = self._ray.cluster_resources().get("GPU", 0) >= 1
        if device == "cuda" or (device == "auto" and has_gpus):
            return {"num_cpus": 1, "num_gpus": 1}
        return {"num_cpus": self._hiring.threads or 1}

    def _room(self, need: dict[str, float]) -> int:
        """Returns how many workers the cluster that is there now has room for."""
        names = {"num_cpus": "CPU", "num_gpus": "GPU"}
        alive = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return sum(
            min(int(node.get(names[name], 0) // count) for name, count in need.items()) for node in alive
        )

    def _hire(self) -> None:
        if time.perf_counter() - self._looked < TICK:
            return
        self._looked = time.perf_counter()
        need = self._resources
        room = min(self._hiring.workers or MOST_WORKERS, self._room(need))
        for _ in range(min(room, len(self.missing)) - len(self._hired)):
            options = {**need, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
            actor = self._worker.options(**options).remote(*self._arguments)
            worker = Hired(actor)
            self._hired.append(worker)
            self._calls[actor.open.remote(*self.told())] = worker

    def _hand_out(self) -> None:
        now = time.perf_counter()
        for worker in self._hired:
            idle = worker.opened and worker.task is None and not worker.parked
            if idle and now >= worker.rests_until:
                number = self._queue.popleft() if self._queue else self._straggler(now)
                if number is None:
                    return
                worker.task, worker.since = number, now
                self._attempts[number] += 1
                self._calls[worker.actor.make.remote(number, *self.told_of(number))] = worker

    def _straggler(self, now: float) -> int | None:
        """The task that has been in one worker's hands for the longest, if that is too long."""
        hands = Counter(worker.task for worker in self._hired if worker.task in self.missing)
        late = [worker for worker in self._hired if worker.task in self.missing and hands[worker.task] == 1]
        if not late or not self._seconds:
            return None
        slowest = min(late, key=lambda worker: worker.since)
        most = max(LEAST_STRAGGLING, STRAGGLING * statistics.median(self._seconds))
        if now - slowest.since < most:
            return None
        self.summary.straggling += 1
        log.warning(
            "%s %s takes long on node %s: another worker does it, too", self.what, slowest.task, slowest.node
        )
        return slowest.task

    def _check_hope(self) -> None:
        """Raises PgsrError if nobody is left who could go on."""
        if self._hired and all(worker.parked for worker in self._hired):
            raise self._error or PgsrError("no worker is left")
        task, deaths = max(self._deaths.items(), key=lambda pair: pair[1], default=(None, 0))
        most = MOST_DEATHS if task is not None else max(MOST_DEATHS, 2 * len(self._hired))
        if deaths >= most:
            what = "starting" if task is None else f"over {self.what} {task}"
            raise PgsrError(
                f"{deaths} workers died {what}: their logs are in /tmp/ray on their nodes ({self._error})"
            )

    # ------------------------------------------------------------------------
    # Answers.

    def _answered(self, call: Any) -> None:
        worker = self._calls.pop(call)
        number, worker.task = worker.task, None
        try:
            answer = self._ray.get(call)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            self._failed(worker, number, cause)
        except self._ray.exceptions.RayError as error:
            self._died(worker, number, error)
        else:
            worker.failures = 0
            if worker.opened:
                self._made(number, answer)
            else:
                self._opened(worker, answer)
            return
        if number in self.missing and all(other.task != number for other in self._hired):
            self._queue.appendleft(number)

    def _opened(self, worker: Hired, answer: dict[str, Any]) -> None:
        self._deaths.pop(None, None)
        if self.opened(answer):
            self._calls[worker.actor.open.remote(*self.told())] = worker
            return
        worker.opened, worker.node = True, answer["host"]
        if not self.summary.opening_seconds:
            self.summary.opening_seconds = round(time.perf_counter() - self._began, 3)

    def _made(self, task: int | None, answer: dict[str, Any]) -> None:
        assert task is not None
        self._seconds.append(answer["seconds"])
        if task in self.missing:  # else somebody else was faster
            self.missing.remove(task)
            self._deaths.pop(task, None)
            self.made(task, answer)

    def _failed(self, worker: Hired, number: int | None, error: Exception) -> None:
        """A worker that says no: a full disk, a missing library. It rests, and at last gets no more work."""
        self._error = error if isinstance(error, PgsrError) else PgsrError(f"{type(error).__name__}: {error}")
        if not isinstance(error, PgsrError):
            log.warning("%s", error)
        worker.failures += 1
        worker.rests_until = time.perf_counter() + REST * 2 ** (worker.failures - 1)
        worker.parked = not worker.opened or worker.failures >= MOST_FAILURES
        self.summary.failed += 1
        log.warning("%s%s", self._error, "; it gets no more work" if worker.parked else "")

    def _died(self, worker: Hired, number: int | None, error: Exception) -> None:
        self._hired.remove(worker)
        with contextlib.suppress(Exception):  # it may only be out of reach
            self._ray.kill(worker.actor)
        self.summary.lost += 1
        self._gauges.lost()
        self._deaths[number] += 1
        self._error = PgsrError(" ".join(str(error).split())[:200])
        doing = "at its start" if number is None else f"over {self.what} {number}, which is done again"
        log.warning("a worker on node %s died %s", worker.node, doing)

    def _dismiss(self) -> None:
        """Ends all workers, and waits until those have ended that may be writing."""
        writing = [call for call, worker in self._calls.items() if worker.task is not None]
        for worker in self._hired:
            self._ray.kill(worker.actor)
        if writing:
            self._ray.wait(writing, num_returns=len(writing), timeout=10.0)


# ----------------------------------------------------------------------------
# A map.

Opened = Callable[[], Callable[[Any], Any]]


class Mapped(Crew):
    """What workers make of things, in the things' order.

    with Mapped(ray, opened, Hiring(), "part") as mapped:
        for made in mapped.map(things):
            ...

    Each worker calls `opened` once, which gives the function that it then calls with things. Here,
    `map(opened(), things)` is the same. Few things are taken before they are needed, so that what is made of
    them need not fit memory together.
    """

    def __init__(self, ray: Any, opened: Opened, hiring: Hiring, what: str) -> None:
        self.what = what
        self._things: dict[int, Any] = {}  # by number, from when they are taken until they are made
        self._answers: dict[int, Any] = {}  # that wait for those before them
        self._next = self._taken = 0
        super().__init__(ray, _Maker, (ray.put(opened),), hiring, ())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()

    def told_of(self, task: int) -> tuple[Any, ...]:
        return (self._things[task],)

    def made(self, task: int, answer: dict[str, Any]) -> None:
        self._answers[task] = answer["made"]
        del self._things[task]

    def map(self, things: Iterable[Any]) -> Iterator[Any]:
        """May be called again when it has ended. Raises PgsrError if no worker is left that can go on."""
        self._seconds.clear()
        numbered = enumerate(things, start=self._taken)
        while True:
            room = AHEAD * max(FEWEST, len(self._hired)) - (self._taken - self._next)
            for number, thing in itertools.islice(numbered, max(0, room)):
                self._things[number] = thing
                self._queue.append(number)
                self.missing.add(number)
                self._taken = number + 1
            if self._next == self._taken:
                return
            self.step(0.0 if self._next in self._answers else TICK)
            self._hand_out()
            if self._next in self._answers:
                answer = self._answers.pop(self._next)
                self._next += 1
                yield answer


class _Maker:
    """The actor of a map."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened

    def open(self) -> dict[str, Any]:
        with naming_the_node():
            self._make = self._opened()
        return {"host": platform.node()}

    def make(self, number: int, thing: Any) -> dict[str, Any]:
        began = time.perf_counter()
        with naming_the_node():
            made = self._make(thing)
        return {"made": made, "seconds": time.perf_counter() - began}


class Gauges:
    """The driver's numbers for Prometheus."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter as RayCounter
        from ray.util.metrics import Gauge

        self._waiting, self._workers = Gauge(*WAITING), Gauge(*WORKERS)
        self._lost = RayCounter(*LOST)

    def __call__(self, waiting: int, workers: int) -> None:
        self._waiting.set(waiting)
        self._workers.set(workers)

    def lost(self) -> None:
        self._lost.inc()
