"""A set of shards on a Ray cluster.

    with connected("auto") as ray:
        driver = Driver(ray, plan, report)
        driver.run()

The driver keeps no state that matters. Which shards are missing is read from the store, a shard's bytes
depend on its number alone (shards.py), and it has its name when it is whole. So a driver that is started
again goes on, and workers may die (pgsr/crew.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pgsr import bundle as bundles
from pgsr.bundle import Bundle, Graph
from pgsr.crew import Crew, naming_the_node
from pgsr.errors import PgsrError
from pgsr.metric_names import IMAGES, SHARD_BYTES, SHARD_SECONDS, SHARDS
from pgsr.truncation import check_truncation

from ..machinery import Machinery, Model, model_of
from ..memory import share_arenas
from ..synthesizer import Synthesizer
from .shards import (
    PROVIDERS,
    Shards,
    check_member,
    claim_set,
    identity,
    make_shard,
    models_of,
    node_of,
    present,
    read_set,
    wanted,
    write_nodes,
)
from .store import Store, open_store
from .write import WORTH_TUNING


@dataclass(frozen=True)
class Plan:
    """What is to be made on the cluster. Raises PgsrError for values out of range."""

    shards: Shards
    out: Path | str
    model: Path | None = None
    kept: float | None = None  # the truncation; None: as the bundle says
    machinery: Machinery = field(default_factory=Machinery)
    mixed: bool = False

    def __post_init__(self) -> None:
        if self.kept is not None:
            check_truncation(self.kept)
        if isinstance(self.out, Path):  # processes of a cluster have folders of their own
            object.__setattr__(self, "out", self.out.absolute())

    @cached_property
    def bundle(self) -> Bundle:
        """The model's manifest."""
        return bundles.read(bundles.shipped() if self.model is None else self.model)

    @property
    def truncation(self) -> float:
        """The share of the variety that is kept."""
        return self.bundle.truncation if self.kept is None else self.kept

    @property
    def graph(self) -> Graph:
        """The chain that is run."""
        return self.bundle.graph("chain", self.machinery.precision)

    @property
    def size(self) -> int:
        """Pixels along each side of an image."""
        return self.bundle.size

    def present(self, store: Store) -> set[int]:
        """Returns which shards are there. Raises PgsrError if they are of another set."""
        self.shards.job.faces.check(self.bundle.latent_size)
        own, models = wanted(self, self.shards), models_of(self.bundle)
        return present(store, self.shards, own, models, self.mixed)


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
        share_arenas()
        with naming_the_node():
            synthesizer = Synthesizer(
                self._model.here(ray.get),
                machinery.device,
                machinery.precision,
                backend,
                batch,
                machinery.threads or 1,
                plan.kept,
                machinery.tile,
            )
            job = plan.shards.job
            job.faces.check(synthesizer.bundle.latent_size)
            if job.count >= WORTH_TUNING:
                synthesizer.tune()
            self._store: Store = open_store(plan.out)
            self._synthesizer = synthesizer
            self.identity, models = identity(synthesizer, plan.shards), models_of(synthesizer.bundle)
            if manifest is not None:
                check_member(self._store.address, manifest, self.identity, models, plan.mixed)
        where = ray.get_runtime_context().get_node_id()
        self.node = {
            "node": where,
            **node_of(synthesizer, job.encoding.codec.name, machinery.threads or 1),
            "gpus": ray.get_gpu_ids(),
        }
        self._count = _Counters(where)
        return {
            "host": self.node["host"],
            "identity": self.identity,
            "models": models,
            "manifest": manifest,
        }

    def make(self, number: int, manifest: dict[str, Any]) -> dict[str, Any]:
        """Makes a shard; returns its record. Raises PgsrError if that fails here."""
        with naming_the_node():
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
        models = models_of(self._synthesizer.bundle)
        check_member(self._store.address, manifest, self.identity, models, self._plan.mixed)
        self._joined = True


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


# Gets (faces made, faces that were there, workers at work).
Report = Callable[[int, int, int], None]


class Driver(Crew):
    """Has the shards made that are missing."""

    what = "shard"

    def __init__(self, ray: Any, plan: Plan, report: Report = lambda made, present, workers: None) -> None:
        """Raises PgsrError if the bundle or the output cannot be used, or holds another set."""
        self._plan, self._report = plan, report
        self._shards, self._store = plan.shards, open_store(plan.out)
        there = plan.present(self._store)
        self._manifest, self._claimed = read_set(self._store), False
        self._records: dict[int, dict[str, Any]] = {}
        self._store.clean()
        self.faces_made, self.faces_present = 0, self._shards.faces(there)
        self.nodes = 0  # that the set's shards were made on
        model = model_of(plan.model, "chain", plan.machinery.precision, ray.put)
        tasks = [number for number in range(self._shards.count) if number not in there]
        super().__init__(ray, Worker, (plan, model), plan.machinery, tasks)

    def run(self) -> None:
        try:
            super().run()
        finally:
            self._store.clean()
        nodes = write_nodes(self._shards, self._store, self._records)
        self.nodes = len({(node.get("host"), node.get("node")) for node in nodes})

    def told(self) -> tuple[Any, ...]:
        return (self._manifest,)

    def opened(self, answer: dict[str, Any]) -> bool:
        """The first worker's answer becomes the set's manifest, if there is none; one that has opened another
        backend before anybody knew opens again."""
        if not self._claimed:
            own, models = answer["identity"], answer["models"]
            self._manifest = claim_set(self._store, own, models, self._plan.mixed)
            self._claimed = True
        knew = answer["manifest"] == self._manifest
        return not knew and answer["identity"] != self._manifest and not self._plan.mixed

    def made(self, task: int, answer: dict[str, Any]) -> None:
        self._records[task] = answer
        self.faces_made += len(self._shards.positions(task))

    def tell(self, working: int) -> None:
        self._report(self.faces_made, self.faces_present, working)

    def images(self, tasks: Any) -> int:
        return self._shards.faces(tasks)

    def description(self) -> dict[str, Any]:
        """Returns what came of it, for --json."""
        seconds = self.summary.seconds
        return {
            "made": self.faces_made,
            "present": self.faces_present,
            "shards_made": len(self._records),
            "nodes": self.nodes,
            **vars(self.summary),
            "seconds": round(seconds, 3),
            "images_per_second": round(self.faces_made / seconds, 2) if seconds else 0.0,
        }
