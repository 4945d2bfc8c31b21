"""A set of shards on a Ray cluster: an actor for each GPU, or for so many cores, makes one after the other.

    with connected("auto") as ray:
        summary = Driver(ray, plan, report).run()

The driver keeps no state that matters. Which shards are missing is read from the store, a shard's bytes
depend on its number alone (shards.py), and it has its name when it is whole. So whoever dies takes nothing
along: a worker's shard goes to another, a node's workers are hired elsewhere, and a driver that is started
again goes on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import secrets
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from pgsr import bundle as bundles
from pgsr.errors import PgsrError, check_choice, missing_package
from pgsr.files import writable_cache
from pgsr.privacy import silence_ray

from ..backends import BACKENDS, Settings
from ..metric_names import IMAGES, LOST, SHARD_BYTES, SHARD_SECONDS, SHARDS, WAITING, WORKERS
from ..synthesizer import Synthesizer
from ..truncation import check_truncation
from .shards import (
    PROVIDERS,
    Shards,
    check_member,
    claim_set,
    identity,
    make_shard,
    models_of,
    node_of,
    read_set,
    write_nodes,
)
from .store import Store, open_store
from .write import WORTH_TUNING

log = logging.getLogger(__name__)

MOST_WORKERS = 2**16
TICK = 0.5  # seconds between looks at the cluster
REST = 2.0  # seconds that a worker waits after its first failure; twice as long after the next
MOST_FAILURES = 3  # of a worker in a row, before it gets no more work
MOST_DEATHS = 5  # of workers over one shard, or at their start one after the other
STRAGGLING = 2.0  # times the median time of a shard, before somebody else makes it, too
LEAST_STRAGGLING = 2.0  # seconds


@dataclass(frozen=True)
class Machinery:
    """The options of a Synthesizer that a worker opens. Raises PgsrError for what no node could do."""

    device: str = "auto"
    precision: str = "fp32"
    backend: str = "auto"
    batch: int = 0
    threads: int = 0  # and as many cores of the cluster a worker; 0 is one
    truncation: float = 1.0
    tile: int = 0

    def __post_init__(self) -> None:
        check_truncation(self.truncation)
        check_choice("backend", self.backend, ("auto", *BACKENDS))
        Settings(self.device, self.threads, self.batch or 1)


@dataclass(frozen=True)
class Plan:
    """What is to be made on the cluster. Raises PgsrError for values out of range."""

    shards: Shards
    out: Path | str
    model: Path | None = None
    machinery: Machinery = field(default_factory=Machinery)
    mixed: bool = False
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
    own = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:  # of many kinds
        words = " ".join(str(error).split())[:200]
        raise PgsrError(
            f"no Ray cluster at --ray {address}: start one with `ray start --head`, or give --ray local "
            f"({words})"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


# ----------------------------------------------------------------------------
# A bundle on its way to nodes that do not have it.


def manifest_hash(folder: Path) -> str | None:
    """Returns the hash of a bundle's manifest, which holds those of its graphs; None if there is none."""
    with contextlib.suppress(OSError):
        return sha256((folder / bundles.MANIFEST).read_bytes()).hexdigest()
    return None


@dataclass(frozen=True)
class Model:
    """A bundle by its manifest's hash, and where to find it."""

    hash: str
    folder: Path  # on the driver's machine, and on those that share it
    files: Any = None  # a reference to {name: contents}; None for the bundle that comes with the package

    def here(self, get: Callable[[Any], dict[str, bytes]]) -> Path:
        """Returns its folder on this machine. Raises PgsrError if it is not to be had."""
        for folder in (bundles.shipped(), self.folder):
            if manifest_hash(folder) == self.hash:
                return folder
        kept = writable_cache("bundles") / self.hash[:32]
        if manifest_hash(kept) == self.hash:
            return kept
        if self.files is None:
            raise PgsrError("this node has another version of pgsr, with another model: install the same one")
        beside = kept.with_name(f".{kept.name}.{secrets.token_hex(4)}")
        beside.mkdir()
        for name, data in get(self.files).items():
            (beside / name).write_bytes(data)
        try:
            beside.rename(kept)
        except OSError:  # another worker of this node was faster
            for path in beside.iterdir():
                path.unlink()
            beside.rmdir()
        return kept


def model_of(folder: Path | None, precision: str, put: Callable[[dict[str, bytes]], Any]) -> Model:
    """A bundle to be sent. Raises PgsrError if there is none in the folder, or not in that precision."""
    place = bundles.shipped() if folder is None else folder.absolute()
    bundles.read(place).graph("chain", precision)
    digest = manifest_hash(place)
    assert digest is not None
    if folder is None:
        return Model(digest, place)
    files = {path.name: path.read_bytes() for path in sorted(place.iterdir()) if path.is_file()}
    return Model(digest, place, put(files))


# ----------------------------------------------------------------------------
# On the nodes.


class Worker:
    """An actor: a runner, and the shards that it is told to make."""

    def __init__(self, plan: Plan, model: Model) -> None:
        self._plan, self._model = plan, model
        self._joined = False

    def open(self, manifest: dict[str, Any] | None) -> dict[str, Any]:
        """Opens the runner, as the set's manifest says if there is one; returns what the driver must know.

        Raises PgsrError if this node cannot, or would make other bytes.
        """
        import ray

        plan, machinery = self._plan, self._plan.machinery
        backend, batch = machinery.backend, machinery.batch
        if manifest is not None and not plan.mixed:
            backend = PROVIDERS.get(str(manifest.get("provider")), "auto") if backend == "auto" else backend
            batch = batch or int(manifest.get("batch", 0))
        with self._named():
            synthesizer = Synthesizer(
                self._model.here(ray.get),
                machinery.device,
                machinery.precision,
                backend,
                batch,
                machinery.threads or 1,
                machinery.truncation,
                machinery.tile,
            )
            job = plan.shards.job
            job.faces.check(synthesizer.bundle.latent_size)
            if job.count >= WORTH_TUNING:
                synthesizer.tune()
            self._store: Store = open_store(plan.out)
            self._synthesizer = synthesizer
            self.identity, models = identity(synthesizer, plan.shards), models_of(synthesizer)
            if manifest is not None:
                check_member(self._store.address, manifest, self.identity, models, plan.mixed)
        where = ray.get_runtime_context().get_node_id()
        self.node = {
            "node": where,
            **node_of(synthesizer, job.encoding.codec.name, machinery.threads or 1),
            "gpus": ray.get_gpu_ids(),
        }
        self._count = _Counters(where)
        return {"identity": self.identity, "models": models, "node": where, "host": self.node["host"]}

    def make(self, number: int, manifest: dict[str, Any]) -> dict[str, Any]:
        """Makes a shard; returns its record. Raises PgsrError if that fails here."""
        with self._named():
            if not self._joined:
                self._join(manifest)
            record = make_shard(self._synthesizer, self._plan.shards, self._store, number, self.node)
        self._count(record)
        return record

    def _join(self, manifest: dict[str, Any]) -> None:
        """Raises PgsrError unless this node sees the set, and belongs to it."""
        if read_set(self._store) != manifest:
            raise PgsrError(
                f"{self._store.address} is not the driver's folder here: name one that all nodes share, or s3://..."
            )
        models = models_of(self._synthesizer)
        check_member(self._store.address, manifest, self.identity, models, self._plan.mixed)
        self._joined = True

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Says where an error was."""
        try:
            yield
        except PgsrError as error:
            raise PgsrError(f"on node {platform.node()}: {error}") from error


class _Counters:
    """A worker's numbers for Prometheus, by node."""

    def __init__(self, node: str) -> None:
        from ray.util.metrics import Counter as RayCounter

        names = {"faces": IMAGES, "shards": SHARDS, "seconds": SHARD_SECONDS, "bytes": SHARD_BYTES}
        self._counters = {field: RayCounter(*name, tag_keys=("node",)) for field, name in names.items()}
        self._tags = {"node": node}

    def __call__(self, record: dict[str, Any]) -> None:
        for name, counter in self._counters.items():
            counter.inc(1 if name == "shards" else record[name], tags=self._tags)


# ----------------------------------------------------------------------------
# The driver.


@dataclass(eq=False)
class Hired:
    """A worker as the driver knows it."""

    actor: Any
    node: str = "?"
    shard: int | None = None  # that it makes
    since: float = 0.0
    opened: bool = False
    asked_twice: bool = False  # to open
    failures: int = 0  # in a row
    rests_until: float = 0.0
    parked: bool = False  # gets no more work; holds its place, so that nobody is hired there


@dataclass
class Summary:
    """What came of it."""

    made: int = 0  # faces
    present: int = 0  # faces that were there
    seconds: float = 0.0
    opening_seconds: float = 0.0  # of these, until the first worker could begin
    shards: int = 0  # made
    lost: int = 0  # workers that died
    failed: int = 0  # attempts that ended with an error
    straggling: int = 0  # shards that were given to a second worker
    repeated: list[int] = field(default_factory=list)  # shards that were begun more than once
    workers: int = 0  # at most at a time
    nodes: int = 0  # that the set's shards were made on


# Gets (faces made, faces that were there, workers at work).
Report = Callable[[int, int, int], None]


class Driver:
    """Hands out shards until all are there."""

    def __init__(self, ray: Any, plan: Plan, report: Report = lambda made, present, workers: None) -> None:
        """Raises PgsrError if the bundle or the output cannot be used, or holds another set."""
        self._ray, self._plan, self._report = ray, plan, report
        self._shards, self._store = plan.shards, open_store(plan.out)
        self._worker = ray.remote(Worker)
        self._model = model_of(plan.model, plan.machinery.precision, ray.put)
        self._manifest = read_set(self._store)
        self._store.clean()
        self.present = self._shards.present(self._store)
        self._queue = deque(n for n in range(self._shards.count) if n not in self.present)
        self._missing = set(self._queue)
        self._records: dict[int, dict[str, Any]] = {}
        self._hired: list[Hired] = []
        self._calls: dict[Any, Hired] = {}  # by what they will answer
        self._seconds: list[float] = []  # of shards
        self._attempts: Counter[int] = Counter()  # by shard
        self._deaths: Counter[int | None] = Counter()  # by the shard at hand; None: at the start
        self._error: PgsrError | None = None
        self._claimed = False
        self._looked = float("-inf")  # when the cluster was looked at
        self.summary = Summary(present=self._shards.faces(self.present))
        self._gauges = Gauges()

    def run(self) -> Summary:
        """Raises PgsrError if no worker is left that can go on."""
        began = self._began = time.perf_counter()
        try:
            while self._missing:
                self._hire()
                self._hand_out()
                self._check_hope()
                self._tell()
                ready, _ = self._ray.wait(list(self._calls), timeout=TICK) if self._calls else ([], [])
                if not self._calls:
                    time.sleep(TICK)
                for call in ready:
                    self._answered(call)
        finally:
            self._dismiss()
            self._store.clean()
        nodes = write_nodes(self._shards, self._store, self._records)
        self.summary.nodes = len({(node.get("host"), node.get("node")) for node in nodes})
        self.summary.seconds = time.perf_counter() - began
        self.summary.repeated = sorted(n for n, count in self._attempts.items() if count > 1)
        self._tell()
        return self.summary

    def _tell(self) -> None:
        working = sum(worker.shard is not None for worker in self._hired)
        self.summary.workers = max(self.summary.workers, working)
        self._gauges(self._shards.faces(self._queue), working)
        self._report(self.summary.made, self.summary.present, working)

    # ------------------------------------------------------------------------
    # Workers.

    @property
    def _resources(self) -> dict[str, float]:
        """Returns what a worker takes."""
        device = self._plan.machinery.device.partition(":")[0]
        has_gpus = self._ray.cluster_resources().get("GPU", 0) >= 1
        if device == "cuda" or (device == "auto" and has_gpus):
            return {"num_cpus": 1, "num_gpus": 1}
        return {"num_cpus": self._plan.machinery.threads or 1}

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
        room = min(self._plan.workers or MOST_WORKERS, self._room(need))
        for _ in range(min(room, len(self._missing)) - len(self._hired)):
            options = {**need, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
            actor = self._worker.options(**options).remote(self._plan, self._model)
            worker = Hired(actor)
            self._hired.append(worker)
            self._calls[actor.open.remote(self._manifest)] = worker

    def _hand_out(self) -> None:
        now = time.perf_counter()
        for worker in self._hired:
            idle = worker.opened and worker.shard is None and not worker.parked
            if idle and self._claimed and now >= worker.rests_until:
                number = self._queue.popleft() if self._queue else self._straggler(now)
                if number is None:
                    return
                worker.shard, worker.since = number, now
                self._attempts[number] += 1
                self._calls[worker.actor.make.remote(number, self._manifest)] = worker

    def _straggler(self, now: float) -> int | None:
        """The shard that has been in one worker's hands for the longest, if that is too long."""
        hands = Counter(worker.shard for worker in self._hired if worker.shard in self._missing)
        late = [worker for worker in self._hired if hands.get(worker.shard) == 1]
        if not late or not self._seconds:
            return None
        slowest = min(late, key=lambda worker: worker.since)
        most = max(LEAST_STRAGGLING, STRAGGLING * statistics.median(self._seconds))
        if now - slowest.since < most:
            return None
        self.summary.straggling += 1
        log.warning(
            "shard %s takes long on node %s: another worker makes it, too", slowest.shard, slowest.node
        )
        return slowest.shard

    def _check_hope(self) -> None:
        """Raises PgsrError if nobody is left who could go on."""
        if self._hired and all(worker.parked for worker in self._hired):
            raise self._error or PgsrError("no worker is left")
        shard, deaths = max(self._deaths.items(), key=lambda pair: pair[1], default=(None, 0))
        most = MOST_DEATHS if shard is not None else max(MOST_DEATHS, 2 * len(self._hired))
        if deaths >= most:
            what = "starting" if shard is None else f"making shard {shard}"
            raise PgsrError(
                f"{deaths} workers died {what}: their logs are in /tmp/ray on their nodes ({self._error})"
            )

    # ------------------------------------------------------------------------
    # Answers.

    def _answered(self, call: Any) -> None:
        worker = self._calls.pop(call)
        number, worker.shard = worker.shard, None
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
                self._made(worker, number, answer)
            else:
                self._opened(worker, answer)
            return
        if number in self._missing and all(other.shard != number for other in self._hired):
            self._queue.appendleft(number)

    def _opened(self, worker: Hired, answer: dict[str, Any]) -> None:
        own, models = answer["identity"], answer["models"]
        self._deaths.pop(None, None)
        if not self._claimed:
            self._manifest = claim_set(self._store, own, models, self._plan.mixed)
            self._claimed = True
            self.summary.opening_seconds = round(time.perf_counter() - self._began, 3)
        elif own != self._manifest and not worker.asked_twice and not self._plan.mixed:
            worker.asked_twice = True  # opened before anybody knew with which backend the set would begin
            self._calls[worker.actor.open.remote(self._manifest)] = worker
            return
        worker.opened, worker.node = True, answer["host"]

    def _made(self, worker: Hired, number: int | None, record: dict[str, Any]) -> None:
        assert number is not None
        self._seconds.append(record["seconds"])
        if number not in self._missing:
            return  # somebody else was faster
        self._missing.remove(number)
        self._deaths.pop(number, None)
        self._records[number] = record
        self.summary.shards += 1
        self.summary.made += len(self._shards.positions(number))

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
        self.summary.lost += 1
        self._gauges.lost()
        self._deaths[number] += 1
        self._error = PgsrError(" ".join(str(error).split())[:200])
        doing = "at its start" if number is None else f"with shard {number}, which is made again"
        log.warning("a worker on node %s died %s", worker.node, doing)

    def _dismiss(self) -> None:
        """Ends all workers, and waits until those have ended that may be writing."""
        writing = [call for call, worker in self._calls.items() if worker.shard is not None]
        for worker in self._hired:
            self._ray.kill(worker.actor)
        if writing:
            self._ray.wait(writing, num_returns=len(writing), timeout=10.0)


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


def description(summary: Summary) -> dict[str, Any]:
    """Returns a summary for --json."""
    rate = summary.made / summary.seconds if summary.seconds else 0.0
    values = json.loads(json.dumps(vars(summary)))
    return {**values, "seconds": round(summary.seconds, 3), "images_per_second": round(rate, 2)}
