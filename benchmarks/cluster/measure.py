"""What Ray costs: pgsr-generate --ray beside the same command without it, in turns.

A node of the cluster has one core to give away, and workers compute with one thread, so W workers are to be W
times as fast where there are as many cores, and as fast as one where there are fewer.
"""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cluster import local_cluster, result, start


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    model: Path | None = None
    count: int = 20_000
    shard_size: int = 10_000
    workers: tuple[int, ...] = (1, 2, 4)
    rounds: int = 3

    @property
    def arguments(self) -> list[Any]:
        model = ["--model", self.model] if self.model else []
        shards = ["--count", self.count, "--shard-size", self.shard_size]
        return [*shards, *model, "--threads", "1", "--batch", "16", "--backend", "onnxruntime"]


def run(settings: Settings, work: Path, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Images a second of every round: of the plain command, and by number of workers.

    From the first shard's beginning to the last one's name; starting Ray and opening models, some seconds
    once, is told apart.
    """
    rates: dict[str, list[float]] = {"plain": [], **{str(n): [] for n in settings.workers}}
    opening: dict[str, list[float]] = {name: [] for name in rates}
    with local_cluster(max(settings.workers)) as cluster:
        for number in range(settings.rounds):
            for name in rates:
                shutil.rmtree(work / "set", ignore_errors=True)
                arguments = (*settings.arguments, "--out", work / "set")
                if name == "plain":
                    report = result(start(*arguments), 3600)
                    seconds = report["seconds"]
                else:
                    report = result(cluster.generate(*arguments, "--workers", name), 3600)
                    seconds = report["seconds"] - report["opening_seconds"]
                    opening[name].append(report["opening_seconds"])
                rates[name].append(settings.count / seconds)
                say(f"round {number}, {name}: {rates[name][-1]:.1f} images/s")
    return {
        "count": settings.count,
        "shard_size": settings.shard_size,
        "model": str(settings.model or "shipped"),
        "cores": len(os.sched_getaffinity(0)),
        "images_per_second": rates,
        "opening_seconds": {k: v for k, v in opening.items() if v},
        "to_plain": {name: ratio(rates[name], rates["plain"]) for name in rates},
    }


def ratio(rates: list[float], plain: list[float]) -> float:
    """The median over rounds of one rate to the plain command's in the same round."""
    return statistics.median(a / b for a, b in zip(rates, plain, strict=True))
