"""A discrete-event simulation of pgsr-generate on many nodes: shards, stragglers, failures, one storage.

    outcome = simulate(Cluster(nodes=100, rate=50.0, face_bytes=110_000))

A driver hands shards out one after the other. A worker makes one on its own disk and then sends it, or sends
it as it is made (`streams`). What all send shares what the storage takes: when that is less, all are slowed
alike. A node that fails takes along what its workers hold: a shard that is not whole has no name, and another
worker begins it again. When no shard is left, those that take too long are begun a second time; the first to
be whole counts.

There are two clocks, so that an event costs the logarithm of how many there are: seconds, and seconds of
sending, which pass more slowly while the storage is the bound.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pgsr.errors import PgsrError

DAY = 86_400.0
ABOVE_0 = ("nodes", "workers", "rate", "faces", "shard", "storage", "link", "mtbf", "reissue")
NOT_BELOW_0 = ("spread", "face_bytes", "repair", "slow_share", "start", "dispatch")


@dataclass(frozen=True)
class Cluster:
    """What runs, and how it goes wrong. Raises PgsrError for values out of range."""

    nodes: int = 1
    workers: int = 16  # of a node
    rate: float = 50.0  # faces a second of a worker
    spread: float = 0.05  # of the nodes' rates: standard deviation of their logarithms
    faces: int = 10**9
    shard: int = 10_000  # faces
    face_bytes: float = 110_000.0
    storage: float = 10e9  # bytes a second that it takes from all together
    link: float = 1.25e9  # bytes a second of a node, which its workers share
    streams: bool = False  # whether shards are sent as they are made
    mtbf: float = 30 * DAY  # seconds between the failures of a node, on average; infinite: none
    repair: float = 600.0  # seconds until it is back
    planned: tuple[tuple[float, int], ...] = ()  # failures besides: when, which node
    slow_share: float = 0.01  # of shards that take longer
    slow_times: float = 4.0  # how many times as long
    start: float = 10.0  # seconds until a worker can compute
    dispatch: float = 0.001  # seconds of the driver for each shard that it hands out
    reissue: float = 2.0  # what takes so many times as long as usual is begun again; infinite: nothing
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ABOVE_0:
            if not getattr(self, name) > 0:
                raise PgsrError(f"{name} {getattr(self, name)} is not above 0")
        for name in NOT_BELOW_0:
            if not 0 <= getattr(self, name) < math.inf:
                raise PgsrError(f"{name} {getattr(self, name)} is not a number from 0 on")
        if not self.slow_times >= 1:
            raise PgsrError(f"slow_times {self.slow_times} is below 1")

    @property
    def shards(self) -> int:
        return -(-self.faces // self.shard)

    @property
    def ideal(self) -> float:
        """Seconds if nothing but the arithmetic took time."""
        return self.shards * self.shard / (self.nodes * self.workers * self.rate)


WHERE = (
    "computing",
    "slow",
    "sending",
    "storage",
    "repeated",
    "waiting",
    "starting",
    "down",
)  # where seconds go


@dataclass
class Outcome:
    """What came of it."""

    makespan: float = 0.0  # seconds
    efficiency: float = 0.0  # the ideal time over the makespan
    failures: int = 0
    repeated: int = 0  # shards that were lost with a node, and begun again
    reissued: int = 0  # shards that took too long, and were begun a second time
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(WHERE, 0.0))  # of all workers


@dataclass(eq=False, slots=True)
class _Worker:
    rate: float  # faces a second
    life: int = 0  # that many failures before this one
    since: float = 0.0  # what it is doing, or waiting for
    attempt: _Attempt | None = None


@dataclass(eq=False, slots=True)
class _Attempt:
    """A shard in a worker's hands."""

    shard: int
    worker: _Worker
    began: float = -1.0  # before: it is handed out, and not begun
    slow: float = 1.0  # how many times as long it takes
    sends: float = -1.0  # when that began; before: it is computed
    clock: float = 0.0  # the other clock, then
    twin: _Attempt | None = None
    over: bool = False  # whole, or given up


class _Run:
    """One simulation: its state, and what happens."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.outcome = cluster, Outcome()
        self.random, self.numbers = np.random.default_rng(cluster.seed), itertools.count()
        self.now = self.clock = self.driver_free = 0.0
        self.demand, self.pace = 0.0, 1.0  # bytes a second that would be sent; how much of it is
        self.events: list[tuple[float, int, Callable[[Any, int], None], Any, int]] = []
        self.ends: list[tuple[float, int, _Attempt]] = []  # by the other clock
        self.todo, self.left = deque(range(cluster.shards)), cluster.shards
        self.idle, self.running = deque[_Worker](), deque[_Attempt]()  # from the one that began first
        self.looking = False  # whether stragglers will be looked for
        rates = np.exp(cluster.spread * self.random.standard_normal(cluster.nodes))
        rates *= cluster.rate / rates.mean()  # so that the ideal time is what it says
        self.link, self.size = cluster.link / cluster.workers, cluster.shard * cluster.face_bytes
        self.nodes = [[_Worker(float(rate)) for _ in range(cluster.workers)] for rate in rates]

    def at(self, time: float, what: Callable[[Any, int], None], whom: Any, life: int = 0) -> None:
        if time < math.inf:
            heapq.heappush(self.events, (time, next(self.numbers), what, whom, life))

    def run(self) -> Outcome:
        for node in self.nodes:
            self.rise(node, 0)
        for time, place in self.cluster.planned:
            self.at(time, self.fail, self.nodes[place], -1)
        while self.left:
            while self.ends and self.ends[0][2].over:
                heapq.heappop(self.ends)
            end = self.now + (self.ends[0][0] - self.clock) / self.pace if self.ends else math.inf
            if not self.events or end <= self.events[0][0]:
                self.advance(end)
                self.whole(heapq.heappop(self.ends)[2])
            else:
                time, _, what, whom, life = heapq.heappop(self.events)
                self.advance(time)
                what(whom, life)
        for worker in itertools.chain.from_iterable(self.nodes):
            self.stop(worker)
        self.outcome.makespan, self.outcome.efficiency = self.now, self.cluster.ideal / self.now
        return self.outcome

    def advance(self, time: float) -> None:
        self.clock += max(0.0, time - self.now) * self.pace
        self.now = max(time, self.now)

    def load(self, sent: float) -> None:
        """Changes how many bytes a second would be sent."""
        self.demand += sent
        self.pace = min(1.0, self.cluster.storage / self.demand) if self.demand > 1e-6 else 1.0

    def spend(self, where: str, seconds: float) -> None:
        self.outcome.seconds[where] += seconds

    # Nodes.

    def rise(self, node: list[_Worker], _: int) -> None:
        life = node[0].life
        for worker in node:
            worker.since = self.now
            self.at(self.now + self.cluster.start, self.ready, worker, life)
        chance = self.random.exponential(self.cluster.mtbf) if self.cluster.mtbf < math.inf else math.inf
        self.at(self.now + chance, self.fail, node, life)

    def ready(self, worker: _Worker, life: int) -> None:
        if life == worker.life:
            self.spend("starting", self.now - worker.since)
            self.give(worker)

    def fail(self, node: list[_Worker], life: int) -> None:
        if life not in (node[0].life, -1) or node[0].since > self.now:
            return  # it has failed before, or is down
        self.outcome.failures += 1
        for worker in node:
            attempt = self.stop(worker)
            worker.life += 1
            worker.since = self.now + self.cluster.repair
            if attempt is not None and (attempt.twin is None or attempt.twin.over):
                self.outcome.repeated += 1
                self.todo.appendleft(attempt.shard)
        self.spend("down", len(node) * self.cluster.repair)
        self.at(self.now + self.cluster.repair, self.rise, node)
        while self.todo and self.idle:
            self.wake()

    def stop(self, worker: _Worker) -> _Attempt | None:
        """Ends what a worker does, for nothing; gives back what it was."""
        attempt, worker.attempt = worker.attempt, None
        if attempt is None or attempt.began < 0:
            self.spend("waiting", max(0.0, self.now - worker.since))
        else:
            self.spend("repeated", self.now - attempt.began)
            if attempt.sends >= 0:
                self.load(-self.sent_by(attempt))
        if attempt is not None:
            attempt.over = True
        return attempt

    # Shards.

    def give(self, worker: _Worker) -> None:
        """Hands out a shard, or one that takes too long elsewhere; else lets the worker wait."""
        worker.since = self.now
        twin = None if self.todo else self.straggler()
        if not self.todo and twin is None:
            self.idle.append(worker)
            return
        shard = self.todo.popleft() if twin is None else twin.shard
        attempt = worker.attempt = _Attempt(shard, worker, twin=twin)
        if twin is not None:
            twin.twin = attempt
            self.outcome.reissued += 1
        self.driver_free = max(self.now, self.driver_free) + self.cluster.dispatch
        self.at(self.driver_free, self.begin, attempt)

    def begin(self, attempt: _Attempt, _: int) -> None:
        if attempt.over:
            return
        self.spend("waiting", self.now - attempt.worker.since)
        attempt.began = self.now
        if self.random.random() < self.cluster.slow_share:
            attempt.slow = self.cluster.slow_times
        self.running.append(attempt)
        if self.cluster.streams:
            self.send(attempt, 0)
        else:
            self.at(self.now + attempt.slow * self.cluster.shard / attempt.worker.rate, self.send, attempt)

    def sent_by(self, attempt: _Attempt) -> float:
        """Bytes a second, if the storage takes all."""
        made = attempt.worker.rate / attempt.slow * self.cluster.face_bytes
        return min(self.link, made) if self.cluster.streams else self.link

    def send(self, attempt: _Attempt, _: int) -> None:
        if attempt.over:
            return
        attempt.sends, attempt.clock = self.now, self.clock
        takes = self.size / self.sent_by(attempt) if self.size else 0.0
        if self.cluster.streams:
            takes = max(takes, attempt.slow * self.cluster.shard / attempt.worker.rate)
        heapq.heappush(self.ends, (self.clock + takes, next(self.numbers), attempt))
        self.load(self.sent_by(attempt))

    def whole(self, attempt: _Attempt) -> None:
        self.left -= 1
        worker = attempt.worker
        usual, sending = self.cluster.shard / worker.rate, self.clock - attempt.clock
        self.spend("computing", usual)
        self.spend("slow", (attempt.slow - 1) * usual)
        self.spend("sending", sending - (attempt.slow * usual if self.cluster.streams else 0.0))
        self.spend("storage", self.now - attempt.sends - sending)
        attempt.over, worker.attempt = True, None
        self.load(-self.sent_by(attempt))
        self.give(worker)
        if attempt.twin is not None and not attempt.twin.over:
            other = attempt.twin.worker
            self.stop(other)
            self.give(other)

    def straggler(self) -> _Attempt | None:
        """The shard that has been worked at longest, if that is too long; else sees to it that this is asked
        again."""
        while self.running and (self.running[0].over or self.running[0].twin is not None):
            self.running.popleft()
        sending = 0.0 if self.cluster.streams else self.size / self.link / self.pace
        limit = self.cluster.reissue * (self.cluster.shard / self.cluster.rate + sending)
        if not self.running or limit == math.inf:
            return None
        first = self.running[0]
        left = limit - (self.now - first.began)
        if left <= 1e-9 * limit:
            return self.running.popleft()
        if not self.looking:
            self.looking = True
            self.at(self.now + left, self.look, None)
        return None

    def look(self, _: None, __: int) -> None:
        self.looking = False
        if self.idle:
            self.wake()

    def wake(self) -> None:
        worker = self.idle.popleft()
        if worker.attempt is None and worker.since <= self.now:  # its node has not failed
            self.spend("waiting", self.now - worker.since)
            self.give(worker)


def simulate(cluster: Cluster) -> Outcome:
    """Runs it to the end. The same cluster gives the same outcome."""
    return _Run(cluster).run()
