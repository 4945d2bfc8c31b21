"""A set of faces in shards: an archive, or a folder of files, for every so many faces.

    shards = Shards(Job(STDOUT, count=1_000_000), size=10_000)
    with Synthesizer() as synthesizer:
        result = generate_shards(synthesizer, shards, open_store("faces"))

    faces/set.json               what all faces have in common, and how they are shared out
    faces/shard-000000.tar ...   faces 0 to 9999, as `pgsr-generate --count 10000 --out shard.tar` makes them
    faces/made/000000.json ...   who made the shard, with what; written after it
    faces/nodes.json             all of those together; written at the end

A shard's bytes are a function of the set's manifest and its number, whoever makes it: one process (here), or
many on many machines (on_ray.py). A shard is there when it and its record are. What is there stays.
"""

from __future__ import annotations

import contextlib
import json
import platform
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pgsr.bundle import Bundle
from pgsr.errors import PgsrError, check_choice
from pgsr.machine import installed_versions, processor_name
from pgsr.schema import check, parsed_json, record, shortened, whole

from ..backends import backend_versions
from ..output.archives import ARCHIVES, ArchiveFile, partial
from ..output.writers import ArchiveSink, FolderSink
from ..synthesizer import Synthesizer
from .claim import Maker, manifest
from .job import Job, Report, Result
from .store import Store, write
from .write import WORTH_TUNING, encoding_note, faces_of, make

SCHEMA, NODES_SCHEMA = "pgsr-set-1", "pgsr-set-nodes-1"
SET, NODES, MADE = "set.json", "nodes.json", "made"
FORMS = ("tar", "files")
SHARD_SIZE = 10_000  # faces: a gigabyte of 256 x 256 PNG files, a minute of a few cores
MOST_SHARDS = 10**7
READ_AT_ONCE = 16  # records
RECORD = record({}, {"bytes": whole(0, 2**63), "node": record({})})  # as far as it is read again

# Which of runtime.backends.BACKENDS calls its provider so (its first word).
PROVIDERS = {
    "CPUExecutionProvider": "onnxruntime",
    "CUDAExecutionProvider": "onnxruntime",
    "TensorrtExecutionProvider": "onnxruntime-tensorrt",
    "OpenVINO": "openvino",
    "TensorRT": "tensorrt",
    "TensorRT-RTX": "tensorrt-rtx",
}
ANY_BATCH = ("CPUExecutionProvider", "OpenVINO")  # makes the same bytes (docs/backends.md)
MIXABLE = ("provider", "precision", "model", "batch")  # with --mixed


@dataclass(frozen=True)
class Shards:
    """How a job's faces are shared out. Raises PgsrError for values out of range."""

    job: Job  # its `out` is not used
    size: int = SHARD_SIZE  # faces
    form: str = "tar"  # one of FORMS

    def __post_init__(self) -> None:
        check_choice("--shard-form", self.form, FORMS)
        if self.size < 1:
            raise PgsrError(f"--shard-size {self.size} is below 1: give the number of faces of a shard")
        if self.count > MOST_SHARDS:
            raise PgsrError(
                f"--shard-size {self.size} makes {self.count} shards: give {MOST_SHARDS} or fewer"
            )

    @property
    def count(self) -> int:
        """The number of shards."""
        return -(-self.job.count // self.size)

    def positions(self, number: int) -> range:
        """The places of a shard's faces in the job's source."""
        return self.job.positions[number * self.size : (number + 1) * self.size]

    def name(self, number: int) -> str:
        """Returns what a shard is called: shard-000000.tar, or shard-000000 for a folder."""
        return f"shard-{number:06d}{'.tar' if self.form == 'tar' else ''}"

    def faces(self, numbers: Iterable[int]) -> int:
        """Returns how many faces these shards hold together."""
        return sum(len(self.positions(number)) for number in numbers)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Shards by name."""
        return {self.name(number): number for number in range(self.count)}

    def present(self, store: Store) -> set[int]:
        """Returns which shards are there."""
        recorded = store.names(MADE)
        names = self.numbers.keys() & store.names()
        return {number for name in names if record_name(number := self.numbers[name]) in recorded}


def record_name(number: int) -> str:
    """Returns what a shard's record is called in the folder `made`."""
    return f"{number:06d}.json"


# ----------------------------------------------------------------------------
# What all shards have in common.


def wanted(maker: Maker, shards: Shards) -> dict[str, Any]:
    """Makes the part of a set's manifest that no machine decides."""
    return {
        **manifest(maker, shards.job),
        "schema": SCHEMA,
        "start": shards.job.faces.number(0),
        "count": shards.job.count,
        "shard_size": shards.size,
        "shard_form": shards.form,
    }


def identity(synthesizer: Synthesizer, shards: Shards) -> dict[str, Any]:
    """Makes a set's manifest: everything that its bytes depend on."""
    provider = synthesizer.provider.split()[0]
    batch = {} if provider in ANY_BATCH else {"batch": synthesizer.batch}
    encoder = shards.job.encoding.codec.name
    return {**wanted(synthesizer, shards), "encoder": encoder, "provider": provider, **batch}


def present(
    store: Store, shards: Shards, own: dict[str, Any], models: Collection[str], mixed: bool
) -> set[int]:
    """Returns which shards are there.

    `own`: the manifest of what is wanted, as far as it is known. Raises PgsrError if they are of another set.
    """
    there = read_set(store)
    if there is None:
        return set()
    check_member(store.address, {k: v for k, v in there.items() if k in own}, own, models, mixed)
    return shards.present(store)


def read_set(store: Store) -> dict[str, Any] | None:
    """Returns the manifest of the set that is there, None if there is none.

    Raises PgsrError for what is no such manifest.
    """
    data = store.read(SET)
    if data is None:
        return None
    try:
        there = parsed_json(data)
    except ValueError:
        there = None
    if not isinstance(there, dict) or there.get("schema") != SCHEMA:
        raise PgsrError(f"{store.address}/{SET} is not a set's manifest: name another --out")
    return there


def claim_set(store: Store, own: dict[str, Any], models: Collection[str], mixed: bool) -> dict[str, Any]:
    """Writes the manifest if there is none; returns that of the set, whoever wrote it.

    `models`: the hashes of the bundle's graphs in all precisions. Raises PgsrError as `check_member` does,
    and if there are shards or pictures without a manifest.
    """
    there = read_set(store)
    if there is None:
        strangers = [n for n in store.names() if n.startswith("shard-") or n == "manifest.json"]
        if strangers:
            raise PgsrError(f"{store.address} holds {min(strangers)} but no {SET}: name another --out")
        write(store, SET, (json.dumps(own, indent=1) + "\n").encode())
        there = read_set(store)  # of two that begin at once one comes last
    assert there is not None
    check_member(store.address, there, own, models, mixed)
    return there


def check_member(
    address: str, there: dict[str, Any], own: dict[str, Any], models: Collection[str], mixed: bool
) -> None:
    """Raises PgsrError unless faces made with `own` belong to the set of manifest `there`.

    With `mixed`, another backend and another precision of the same model do.
    """
    differing = [name for name in {**there, **own} if there.get(name) != own.get(name)]
    if mixed and there.get("model") in models:
        differing = [name for name in differing if name not in MIXABLE]
    if not differing:
        return
    words = ", ".join(f"{n} {_short(there.get(n))}, not {_short(own.get(n))}" for n in differing)
    more = "; --mixed would allow it" if not mixed and set(differing) <= set(MIXABLE) else ""
    raise PgsrError(f"{address} is a set with {words}: name another --out{more}")


def _short(value: Any) -> str:
    return shortened(str(value), 20)


# ----------------------------------------------------------------------------
# One shard. This is the map function, here and on every node of a cluster.


def make_shard(
    synthesizer: Synthesizer,
    shards: Shards,
    store: Store,
    number: int,
    node: dict[str, Any],  # who makes it
    report: Report = lambda count: None,
) -> dict[str, Any]:
    """Makes a shard, then its record, which is returned. Raises PgsrError as `generate` does."""
    began, job, positions = time.perf_counter(), shards.job, shards.positions(number)
    with store.replacing(shards.name(number)) as temporary:
        if shards.form == "tar":
            faces = faces_of(synthesizer, job, encoding_note(job.encoding))
            with _archive(temporary) as archive:
                make(synthesizer, job, positions, ArchiveSink(archive, job.encoding, faces), report)
            size = temporary.stat().st_size
        else:
            temporary.mkdir()
            sink = FolderSink(temporary, job.encoding, faces_of(synthesizer, job, {}))
            make(synthesizer, job, positions, sink, report)
            size = sum(path.stat().st_size for path in temporary.iterdir())
    record = {
        "shard": number,
        "faces": len(positions),
        "bytes": size,
        "seconds": round(time.perf_counter() - began, 3),
        "node": node,
    }
    write(store, f"{MADE}/{record_name(number)}", (json.dumps(record) + "\n").encode())
    return record


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[ArchiveFile]:
    """A tar of which nothing stays if it does not become whole: the next attempt is another machine's."""
    try:
        with ArchiveFile(path, ARCHIVES[".tar"]) as archive:
            yield archive
    except BaseException:
        partial(path).unlink(missing_ok=True)
        raise


def node_of(synthesizer: Synthesizer, encoder: str, threads: int) -> dict[str, Any]:
    """Returns what a shard's record says of who made it."""
    return {
        "host": platform.node(),
        "processor": processor_name(),
        "provider": synthesizer.provider,
        "precision": synthesizer.graph.precision,
        "batch": synthesizer.batch,
        "threads": threads,
        "encoder": encoder,
        "python": platform.python_version(),
        "versions": installed_versions("pgsr", "numpy", "pillow", "ray") | backend_versions(),
    }


def models_of(bundle: Bundle) -> list[str]:
    """Returns the hashes of a bundle's chains, one a precision."""
    return [graph.sha256 for graph in bundle.graphs if graph.name == "chain"]


# ----------------------------------------------------------------------------
# All shards, one after the other.


def generate_shards(
    synthesizer: Synthesizer,
    shards: Shards,
    store: Store,
    mixed: bool = False,
    report: Callable[[int, int], None] = lambda made, present: None,  # faces
) -> Result:
    """Makes the shards that are not there, and the list of who made which.

    Raises PgsrError if the place holds something else, or cannot be written.
    """
    job = shards.job
    job.faces.check(synthesizer.bundle.latent_size)
    there = present(store, shards, wanted(synthesizer, shards), models_of(synthesizer.bundle), mixed)
    missing = [number for number in range(shards.count) if number not in there]
    before = job.count - shards.faces(missing)
    if job.count - before >= WORTH_TUNING:
        synthesizer.tune()
    claim_set(store, identity(synthesizer, shards), models_of(synthesizer.bundle), mixed)
    store.clean()
    began = time.perf_counter()
    node, records, made = node_of(synthesizer, job.encoding.codec.name, job.threads), {}, 0
    for number in missing:
        first = shards.positions(number).start - made
        tell = lambda count, first=first: report(count - first, before)  # noqa: E731
        records[number] = make_shard(synthesizer, shards, store, number, node, tell)
        made += len(shards.positions(number))
        report(made, before)
    write_nodes(shards, store, records)
    return Result(made, before, time.perf_counter() - began)


def write_nodes(shards: Shards, store: Store, records: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """Writes nodes.json, from these records and from those in the store; returns its nodes."""
    rest = [number for number in range(shards.count) if number not in records]
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        read = pool.map(lambda number: _record(store, number), rest)
        all_records = {**records, **dict(zip(rest, read, strict=True))}
    by_node: dict[str, list[int]] = {}
    for number in sorted(all_records):
        by_node.setdefault(json.dumps(all_records[number].get("node"), sort_keys=True), []).append(number)
    nodes = [{**(json.loads(node) or {}), "shards": stretches(n)} for node, n in by_node.items()]
    data = {
        "schema": NODES_SCHEMA,
        "faces": shards.job.count,
        "bytes": sum(record.get("bytes", 0) for record in all_records.values()),
        "nodes": nodes,
    }
    write(store, NODES, (json.dumps(data, indent=1) + "\n").encode())
    return nodes


def _record(store: Store, number: int) -> dict[str, Any]:
    """A shard's record; an empty one where it is damaged."""
    try:
        found: dict[str, Any] = parsed_json(store.read(f"{MADE}/{record_name(number)}") or b"{}")
        check(found, RECORD)
    except ValueError:
        return {}
    return found


def stretches(numbers: list[int]) -> str:
    """[0, 1, 2, 7] -> "0-2,7"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
