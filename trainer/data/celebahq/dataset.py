"""CelebA-HQ's making, a whole set: many processes, the best kept, and nothing lost by a stop.

Every record is written down as soon as its picture is there; what has none is made by the next run. The best
are the same for any order of arrival, so the number of processes and of stops changes nothing.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgsr import __version__, bundle, schema
from pgsr.cli import progress_bar
from pgsr.errors import PgsrError
from pgsr.files import make_folder, remove_leftovers, write_text
from pgsr.lock import holding_lock, is_held

from ..sources import MAX_DAMAGED, Damage
from .picture import PICTURES, Maker, Record, Settings, picture_path
from .sources import Place, Source

RECORDS, IMAGES, SETTINGS = "made.jsonl", "images.jsonl", "settings.json"


class Ranking:
    """The records so far, and which of them are the best; the same for any order of arrival."""

    def __init__(self, keep: int, records: Iterable[Record]) -> None:
        self.keep = keep
        self.least = 0.0
        self.records = {record["name"]: record for record in records}

    def add(self, record: Record) -> None:
        self.records[record["name"]] = record

    def best(self) -> list[Record]:
        """Sorts the records by quality, and by name where that is equal."""
        judged = [record for record in self.records.values() if "quality" in record]
        return sorted(judged, key=lambda record: (-record["quality"], record["name"]))[: self.keep]

    def settle(self) -> list[Record]:
        """The best so far; sets `least`, below which a picture is not among them, whatever comes."""
        best = self.best()
        self.least = best[-1]["quality"] if len(best) == self.keep else 0.0
        return best


def run(
    source: Source,
    settings: Settings,
    out: Path,
    keep: int = 30_000,
    processes: int = 1,
    max_damaged: int = MAX_DAMAGED,
) -> dict[str, Any]:
    """Makes what is missing, and returns a summary.

    Raises PgsrError if the folder holds another set, a bundle cannot be used, too many pictures are damaged,
    or not one face could be made.
    """
    make_folder(out / PICTURES)
    if is_held(out):
        raise PgsrError(f"another process is at work in {out}: stop it first")
    with holding_lock(out):
        for folder in (out, out / PICTURES):
            remove_leftovers(folder)
        check_settings(source, settings, out)
        ranking = Ranking(keep, read_records(out / RECORDS))
        for record in ranking.best():
            if not picture_path(out, record["name"]).is_file():  # fewer were kept before, or it was removed
                del ranking.records[record["name"]]
        remove_others(out, ranking)
        make_missing(source, settings, out, ranking, processes, Damage(max_damaged))
        return finish(out, ranking, source, settings)


def make_missing(
    source: Source, settings: Settings, out: Path, ranking: Ranking, processes: int, damage: Damage
) -> None:
    """Makes the pictures that the ranking has no record of, and writes down each as soon as it is made."""
    missing = [name for name in source.names if name not in ranking.records]
    bar = progress_bar(len(source.names), "aligning")
    since = 0
    with bar, open(out / RECORDS, "a", encoding="utf-8") as log:
        bar.update(len(source.names) - len(missing))
        for record in each_record(missing, ranking, source, settings, out, processes):
            log.write(json.dumps(record) + "\n")
            log.flush()
            ranking.add(record)
            bar.update(1)
            if "skipped" in record:
                print(schema.visible(f"skipped {record['name']}: {record['skipped']}"), file=sys.stderr)
            if record.get("damaged"):
                damage.count(record["name"])
            since += 1
            if since >= max(100, ranking.keep // 10):
                remove_others(out, ranking)
                since = 0


# ----------------------------------------------------------------------------
# Processes.

_maker: Maker | None = None  # of a worker process


def _start_worker(place: Place, settings: Settings, out: Path) -> None:
    global _maker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that gives out the work
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _maker = Maker(place, settings, out)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(name: str, landmarks: NDArray[np.float64] | None, least: float) -> Record | str:
    """A record, or what is wrong with more than one picture."""
    assert _maker is not None
    try:
        return _maker.make(name, landmarks, least)
    except PgsrError as error:
        return str(error)


def each_record(
    names: Sequence[str],
    ranking: Ranking,
    source: Source,
    settings: Settings,
    out: Path,
    processes: int,
) -> Iterator[Record]:
    """The record of each picture, in their order."""
    if processes <= 1:
        with Maker(source.place, settings, out) as maker:
            for name in names:
                yield maker.make(name, source.landmarks(name), ranking.least)
        return
    with Maker(source.place, settings, out):  # what is wrong with bundles is said once, and before
        pass
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _start_worker, (source.place, settings, out))
    waiting: deque[Future[Record | str]] = deque()
    rest = iter(names)
    try:
        while True:
            for name in itertools.islice(rest, 4 * processes - len(waiting)):
                waiting.append(pool.submit(_work, name, source.landmarks(name), ranking.least))
            if not waiting:
                return
            record = waiting.popleft().result()
            if isinstance(record, str):
                raise PgsrError(record)
            yield record
    except BrokenProcessPool as error:
        raise PgsrError(
            "a process ended before its time, for want of memory perhaps: run the same command again with "
            "fewer --processes"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# ----------------------------------------------------------------------------
# What the folder holds.


def check_settings(source: Source, settings: Settings, out: Path) -> None:
    """Writes down what is made and how. Raises PgsrError if the folder holds another set."""
    bundles = {n: bundle.read(path).graph("upscaler").sha256 for n, path in settings.bundles.items()}
    now = {
        "pgsr": __version__,
        **source.identity,
        "size": settings.size,
        "oversampling": settings.oversampling,
        "bundles": bundles,
    }
    if settings.upscaler is not None:
        now["rule of --upscaler"] = "every picture"  # pgsr 0.1 left large faces as they were
    path = out / SETTINGS
    if not path.is_file():
        write_text(path, json.dumps(now, indent=1) + "\n")
        return
    try:
        before: Mapping[str, Any] = dict(schema.parsed_json(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise PgsrError(f"{path} is damaged ({error}): name another --out") from error
    if before.get("pictures") == source.older_fingerprint:
        before = {**before, "pictures": now["pictures"]}
    other = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if other:
        raise PgsrError(f"{out} was begun with another {', '.join(other)}: name another --out")


def read_records(path: Path) -> list[Record]:
    """Every whole line, and cuts off one that a killed process left unfinished."""
    if not path.is_file():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    try:
        records = [schema.parsed_json(line) for line in whole.splitlines()]
        for record in records:
            schema.check(record, _record)
        return records
    except ValueError as error:
        raise PgsrError(f"{path} is damaged ({error}): name another --out") from error


def _record(value: Any, where: str) -> None:
    """Raises Mismatch unless a value has what is asked of a record here."""
    sound = isinstance(value, dict) and isinstance(value.get("name"), str)
    if sound and "quality" in value:
        sound = type(value["quality"]) in (int, float) and isinstance(value.get("passes"), list)
    if not sound:
        raise schema.Mismatch(where, value, "what was made of a picture")


def remove_others(out: Path, ranking: Ranking) -> None:
    """Removes the pictures that are judged and not among the best."""
    best = {record["name"] for record in ranking.settle()}
    for record in ranking.records.values():
        if "quality" in record and record["name"] not in best:
            picture_path(out, record["name"]).unlink(missing_ok=True)


def finish(out: Path, ranking: Ranking, source: Source, settings: Settings) -> dict[str, Any]:
    """Writes images.jsonl, and returns the summary; its "passes" counts the faces that each network made."""
    remove_others(out, ranking)
    best = ranking.best()
    judged = [record for record in ranking.records.values() if "quality" in record]
    if not best:
        raise PgsrError(f"not one face could be made of {len(source.names)} pictures: see {out / RECORDS}")
    lines = [
        json.dumps({"rank": rank, "file": picture_path(out, record["name"]).name, **record})
        for rank, record in enumerate(best, start=1)
    ]
    write_text(out / IMAGES, "\n".join(lines) + "\n")
    return {
        "out": str(out),
        "pictures": len(source.names),
        "skipped": sum("skipped" in record for record in ranking.records.values()),
        "judged": len(judged),
        "passes": {name: sum(name in record["passes"] for record in judged) for name in settings.bundles},
        "kept": len(best),
        "quality_best": best[0]["quality"],
        "quality_least": best[-1]["quality"],
    }
