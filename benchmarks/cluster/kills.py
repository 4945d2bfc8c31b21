"""Kills at random instants under pgsr-generate --ray: the set must be that of one process, byte for byte.

pgsr-bench cluster --kills 20 --model my-bundle --out report
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cluster import LocalCluster, local_cluster, result, start

WHAT = ("worker", "node", "driver")
NODES = 2


@dataclass(frozen=True)
class Size:
    """What is made each time."""

    count: int = 20_000
    shard_size: int = 500
    model: Path | None = None

    @property
    def arguments(self) -> list[Any]:
        model = ["--model", self.model] if self.model else []
        return ["--count", self.count, "--shard-size", self.shard_size, "--backend", "onnxruntime", *model]


def files(folder: Path) -> dict[str, bytes]:
    """Returns what decides whether two sets are the same: the manifest, and every shard to the byte."""
    paths = [p for p in folder.rglob("*") if p.is_file()]
    names = {str(p.relative_to(folder)): p for p in paths}
    rest = {"nodes.json"}
    return {n: p.read_bytes() for n, p in names.items() if n not in rest and not n.startswith("made/")}


def visible(folder: Path) -> dict[str, tuple[int, int]]:
    """Returns the shards that have their names, with what changes when one is written again."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.glob("shard-*")}


def wait_for(path: Path, process: Any, seconds: float = 300.0) -> None:
    """Waits until a file is there. Raises RuntimeError if the process ends before, or it takes too long."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{path} did not come: {process.stderr.read()[-2000:]}")
        time.sleep(0.01)


def reference(size: Size, folder: Path) -> float:
    """Makes the set by one process without Ray; returns the seconds it took."""
    return float(result(start(*size.arguments, "--out", folder))["seconds"])


def trial(
    cluster: LocalCluster, size: Size, folder: Path, expected: Path, what: str, seconds: float, node: int
) -> dict[str, Any]:
    """Kills something some seconds after the set was begun, lets the job end, and compares."""
    shutil.rmtree(folder, ignore_errors=True)
    arguments = (*size.arguments, "--out", folder)
    process = cluster.generate(*arguments)
    wait_for(folder / "set.json", process)
    time.sleep(seconds)
    before, begun = visible(folder), in_hand(folder)
    hit = process.poll() is None
    if what == "worker":
        hit = cluster.kill_worker(node) and hit
    elif what == "node":
        cluster.kill_node(node)
    else:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        process = cluster.generate(*arguments)
    report, again = finished(cluster, process, arguments, what == "node")
    after = visible(folder)
    if what == "node":
        cluster.restart_node(node)
    return {
        "what": f"{what} with its driver" if again else what,
        "seconds": round(seconds, 2),
        "hit": hit,
        "visible": len(before),
        "shards": report["shards_in_all"],
        "touched": sum(after[name] != state for name, state in before.items()),
        "repeated": begun if what == "driver" else len(report["repeated"]),
        "lost": report["lost"],
        "equal": files(folder) == files(expected),
    }


def finished(
    cluster: LocalCluster, process: Any, arguments: tuple[Any, ...], may_die: bool
) -> tuple[dict[str, Any], bool]:
    """Waits for a command; starts it again if it died with its node, and says whether it did."""
    try:
        return result(process), False
    except RuntimeError:
        if not may_die:
            raise
    return result(cluster.generate(*arguments)), True


def in_hand(folder: Path) -> int:
    """Returns how many shards are half written."""
    return len({p.name.partition("shard-")[2][:6] for p in folder.glob(".*shard-*.tmp")})


def run(
    kills: int,
    size: Size,
    work: Path,
    say: Callable[[str], None] = lambda line: None,
    seed: int | None = None,
) -> dict[str, Any]:
    """So many kills at random instants, of a worker, a node and the driver in turn; a row each."""
    seed = int.from_bytes(os.urandom(4), "big") if seed is None else seed
    draw = random.Random(seed)
    expected, rows = work / "expected", []
    reference(size, expected)
    with local_cluster(NODES) as cluster:
        process = cluster.generate(*size.arguments, "--out", work / "undisturbed")
        wait_for(work / "undisturbed" / "set.json", process)
        began = time.monotonic()
        result(process)
        lasts = time.monotonic() - began
        equal = files(work / "undisturbed") == files(expected)
        for number in range(kills):
            what = WHAT[number % len(WHAT)]
            row = trial(
                cluster,
                size,
                work / "killed",
                expected,
                what,
                draw.uniform(0.0, 0.9 * lasts),
                draw.randrange(NODES),
            )
            rows.append(row)
            say(line(row))
    return {"seed": seed, "seconds": round(lasts, 2), "undisturbed_equal": equal, "rows": rows}


def line(row: dict[str, Any]) -> str:
    """A row of the table, in Markdown."""
    died = row["what"] if row["hit"] else f"{row['what']} (at its end)"
    return (
        f"| {row['seconds']:.2f} | {died} | {row['visible']} of {row['shards']} | {row['touched']} | "
        f"{row['repeated']} | {'yes' if row['equal'] else '**no**'} |"
    )


def table(report: dict[str, Any]) -> str:
    """The table of all kills, in Markdown."""
    head = (
        "| s after the set began | killed | shards there | written again | begun again | bytes equal |\n"
        "| ---: | --- | ---: | ---: | ---: | --- |"
    )
    return "\n".join([head, *(line(row) for row in report["rows"])])
