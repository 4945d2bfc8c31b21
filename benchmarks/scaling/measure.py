"""pgsr-bench scaling: measured figures, what a billion faces cost by them, and the simulation.

Measured on one core: faces for each second of its time by precision and by format, into a tar, and bytes a
face. Everything else is computed from them. `check` compares the simulation with real processes over a few
shards, some of them killed.
"""

from __future__ import annotations

import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pgsr import bundle as bundles
from pgsr.errors import PgsrError
from pgsr.runtime.output.encoders import installed

from ..harness import machine
from ..harness.provenance import provenance
from ..serve.measure import on_cores
from . import costs
from .local import Run, Work, run_shards
from .simulate import DAY, Cluster, Outcome, simulate

Say = Callable[[str], None]
FORMATS = ("png", "jpeg", "webp", "jxl")
BATCH = 16
PART = 50 * 2**20  # bytes of a multipart upload's part: what fsspec's s3fs sends
NODES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
BREAKS = 0.1  # of all worker seconds: what takes more is said to break


@dataclass(frozen=True)
class Settings:
    """What is measured and simulated. Raises PgsrError for values out of range."""

    model: Path | None = None
    backend: str = "auto"
    precisions: tuple[str, ...] = ()  # none: those that this processor has instructions for
    seconds: float = 5.0  # of each measurement
    gpu_rate: float = 0.0  # faces a second of a GPU, measured elsewhere; 0: none
    rate: float = 0.0  # faces a second of a core, in place of measuring
    face_bytes: float = 0.0  # with it
    faces: int = 10**9
    shard: int = 10_000
    nodes: tuple[int, ...] = NODES
    workers: int = 16  # cores of a node, a worker each
    storage: float = 10.0  # 10^9 bytes a second
    link: float = 10.0  # 10^9 bits a second of a node
    mtbf_days: float = 30.0
    check: bool = False
    check_faces: int = 300  # of a shard
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("seconds", "faces", "shard", "workers", "storage", "link", "mtbf_days", "check_faces"):
            if not 0 < getattr(self, name) < math.inf:
                raise PgsrError(f"--{name.replace('_', '-')} {getattr(self, name)} is not above 0")
        if not self.nodes or any(count < 1 for count in self.nodes):
            raise PgsrError("--nodes names numbers from 1 on, as in 1,10,100")
        if (self.rate > 0) != (self.face_bytes > 0):
            raise PgsrError("--rate and --face-bytes go together: give both, or neither")


def run(settings: Settings, say: Say) -> dict[str, Any]:
    """Measures, computes, simulates; and checks, if that is asked for."""
    told = provenance()
    measured = _measured(settings, say)
    simulated = []
    for row in _shown(measured["formats"]):
        say(f"simulating {row['format']}")
        simulated.append({"format": row["format"], **_curve(settings, row, say)})
    best = max(measured["precisions"], key=lambda row: row["rate"])
    return {
        "provenance": told,
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()},
        "machine": machine.describe(1).as_dict(),
        **measured,
        "simulated": simulated,
        "sweeps": _sweeps(settings, measured["formats"][0], say),
        "check": _check(settings, best["precision"], say) if settings.check else [],
    }


def _shown(formats: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Two are enough to see what their size means."""
    return [row for row in formats if row["format"] in ("png", "jpeg", "given")]


# ----------------------------------------------------------------------------
# Measured figures.


def _measured(settings: Settings, say: Say) -> dict[str, Any]:
    if settings.rate:
        row = {"format": "given", "rate": settings.rate, "bytes": settings.face_bytes}
        return {
            "precisions": [{"precision": "given", "rate": settings.rate}],
            "formats": [_costed(settings, row)],
        }
    with on_cores(1):
        precisions: list[dict[str, Any]] = []
        for precision in settings.precisions or _precisions(settings):
            rate, _ = generated(settings, precision, "png")
            say(f"{precision}: {rate:.1f} faces a second")
            precisions.append({"precision": precision, "rate": rate})
        best = str(max(precisions, key=lambda row: float(row["rate"]))["precision"])
        formats = []
        for format in (name for name in FORMATS if installed(name)):
            rate, size = generated(settings, best, format)
            say(f"{format}, {best}: {rate:.1f} faces a second, {size:,.0f} bytes each")
            formats.append(_costed(settings, {"format": format, "rate": rate, "bytes": size}))
    return {"precisions": precisions, "formats": formats}


def _precisions(settings: Settings) -> list[str]:
    """What the bundle has and this processor computes in: fp16 is fp32 on a CPU without it."""
    bundle = bundles.read(bundles.shipped() if settings.model is None else settings.model)
    here = machine.describe(1)
    has = {graph.precision for graph in bundle.graphs if graph.name == "chain"}
    return ["fp32", *(name for name in ("bf16", "int8") if name in has and here.is_fast_in(name))]


def generated(settings: Settings, precision: str, format: str) -> tuple[float, float]:
    """Faces of pgsr-generate into a tar for each second of a core's time, and bytes of the tar a face.

    By the difference of two runs, so that their start does not count; and by the processor's time, so that
    neither does what else this machine does.
    """
    _timed(settings, precision, format, BATCH)  # in which what is found out once is
    few = _timed(settings, precision, format, BATCH)[0]
    pace = (_timed(settings, precision, format, 9 * BATCH)[0] - few) / (8 * BATCH)
    count = max(9 * BATCH, int(settings.seconds / max(pace, 1e-4)))
    cpu, size = _timed(settings, precision, format, count)
    return (count - BATCH) / max(cpu - few, 1e-3), size / count


def _timed(settings: Settings, precision: str, format: str, count: int) -> tuple[float, int]:
    """Seconds of the processor, and bytes, of a run. Raises PgsrError if it fails."""
    with tempfile.TemporaryDirectory(prefix="pgsr-scaling-") as folder:
        out = Path(folder) / "faces.tar"
        wanted = ["--count", str(count), "--out", str(out), "--format", format, "--json"]
        how = ["--precision", precision, "--backend", settings.backend, "--device", "cpu"]
        model = [] if settings.model is None else ["--model", str(settings.model)]
        command = [*wanted, *how, *model, "--threads", "1", "--batch", str(BATCH)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", "pgsr.runtime", *command], capture_output=True, text=True
        )
        if done.returncode:
            raise PgsrError(f"pgsr-generate failed: {done.stderr.strip()[-300:]}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return spent, out.stat().st_size


def _costed(settings: Settings, row: Mapping[str, Any]) -> dict[str, Any]:
    """A format with what all faces are in it."""
    node = settings.workers * row["rate"]
    return {
        **row,
        "storage": asdict(costs.storage(settings.faces, settings.shard, row["bytes"], PART)),
        "nodes_that_fill": costs.nodes_that_fill(settings.storage * 1e9, node, row["bytes"]),
        "nodes_of_files": costs.PUTS_A_SECOND / node,
    }


# ----------------------------------------------------------------------------
# The simulation.


def _cluster(settings: Settings, row: Mapping[str, Any]) -> Cluster:
    return Cluster(
        workers=settings.workers,
        rate=row["rate"],
        faces=settings.faces,
        shard=settings.shard,
        face_bytes=row["bytes"],
        storage=settings.storage * 1e9,
        link=settings.link * 1e9 / 8,
        mtbf=settings.mtbf_days * DAY,
        seed=settings.seed,
    )


def _curve(settings: Settings, row: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """Outcomes over nodes, and from how many on each of its losses takes more than a tenth."""
    points = []
    for nodes in settings.nodes:
        points.append(_point(replace(_cluster(settings, row), nodes=nodes)))
        say(f"{nodes} nodes: {points[-1]['makespan'] / 3600:.1f} h, {points[-1]['efficiency']:.0%}")
    breaks: dict[str, dict[str, Any]] = {}
    for point in points:
        for what, share in point["shares"].items():
            if what != "computing" and share > BREAKS:
                breaks.setdefault(what, {"nodes": point["nodes"], "what": what, "share": share})
    return {"points": points, "breaks": list(breaks.values())}


def _point(cluster: Cluster) -> dict[str, Any]:
    outcome: Outcome = simulate(cluster)
    whole = cluster.nodes * cluster.workers * outcome.makespan
    return {
        "nodes": cluster.nodes,
        **asdict(outcome),
        "shares": {what: seconds / whole for what, seconds in outcome.seconds.items()},
        "expected_failures": costs.failures(cluster.nodes, outcome.makespan, cluster.mtbf),
    }


def _sweeps(settings: Settings, row: Mapping[str, Any], say: Say) -> list[dict[str, Any]]:
    """What helps, one thing at a time, at the largest number of nodes with a storage that takes all of it."""
    nodes = max(settings.nodes)
    enough = 2 * nodes * settings.workers * row["rate"] * row["bytes"]
    base = replace(_cluster(settings, row), nodes=nodes, storage=enough)
    tried: list[tuple[str, Cluster]] = [
        ("as above, and a storage that takes all", base),
        ("sent as it is made", replace(base, streams=True)),
        *((f"shards of {size:,}", replace(base, shard=size)) for size in (2_000, 5_000, 50_000)),
        ("no shard begun twice", replace(base, reissue=math.inf)),
        ("nodes that fail once a day", replace(base, mtbf=DAY)),
        ("a driver of 10 ms a shard", replace(base, dispatch=0.01)),
        ("a driver of 30 ms a shard", replace(base, dispatch=0.03)),
    ]
    rows = []
    for name, cluster in tried:
        rows.append({"what": name, **_point(cluster)})
        say(f"{nodes} nodes, {name}: {rows[-1]['efficiency']:.0%}")
    return rows


# ----------------------------------------------------------------------------
# The check.

CASES: Sequence[tuple[int, int]] = ((1, 0), (2, 0), (4, 0), (2, 1), (4, 2))  # workers, of which are killed


def _check(settings: Settings, precision: str, say: Say) -> list[dict[str, Any]]:
    """Real runs beside simulated ones: each case between two of a single worker, which tell the rate."""
    rows = []
    for workers, killed in CASES:
        work = Work(4 * workers, settings.check_faces, settings.model, precision, settings.backend)
        before = run_shards(replace(work, shards=2), 1)
        guess = _model(settings, [before], workers, work.shards)
        kills = tuple((guess.start + (0.5 + k) * guess.shard / guess.rate, k) for k in range(killed))
        real = run_shards(work, workers, kills)
        cluster = _model(settings, [before, run_shards(replace(work, shards=2), 1)], workers, work.shards)
        outcome = simulate(replace(cluster, planned=kills))
        row = {"workers": workers, "killed": killed, "shards": work.shards, "seconds": real.seconds}
        row |= {"simulated": outcome.makespan, "repeated": real.repeated}
        row |= {"simulated_repeated": outcome.repeated, "ratio": outcome.makespan / real.seconds}
        rows.append(row)
        say(f"{workers} workers, {killed} killed: {real.seconds:.1f} s, simulated {outcome.makespan:.1f} s")
    return rows


def _model(settings: Settings, alone: Sequence[Run], workers: int, shards: int) -> Cluster:
    """Workers that share the cores of this machine, by the runs of one alone."""
    share = min(1.0, len(os.sched_getaffinity(0)) / workers)
    rate = settings.check_faces / statistics.mean(seconds for run in alone for seconds in run.shards)
    start = statistics.mean(seconds for run in alone for seconds in run.starts)
    return Cluster(
        nodes=workers,
        workers=1,
        rate=rate * share,
        spread=0.0,
        faces=shards * settings.check_faces,
        shard=settings.check_faces,
        face_bytes=0.0,
        mtbf=math.inf,
        repair=0.0,
        slow_share=0.0,
        start=start / share,
        dispatch=0.0,
        reissue=math.inf,
    )
