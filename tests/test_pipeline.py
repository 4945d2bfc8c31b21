"""pgsr.runtime's pipeline: stages that overlap, bounded memory, shards, archives, killed processes."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generating import command, refused_in, result_of
from PIL import Image

import bundles as tiny
from pgsr import draws, machine
from pgsr.batches import most
from pgsr.errors import PgsrError
from pgsr.runtime import Synthesizer, pipeline, synthesizer
from pgsr.runtime import autotune as batch
from pgsr.runtime import measured as remembered
from pgsr.runtime.autotune import fastest_batch
from pgsr.runtime.generate import write
from pgsr.runtime.generate.job import Job
from pgsr.runtime.measured import recall, remember
from pgsr.runtime.output.archives import partial
from pgsr.runtime.output.writers import Encoding, Faces, FolderSink
from pgsr.runtime.pipeline import Finisher, in_turn, prefetch

ALIKE = ("--backend", "onnxruntime", "--batch", 4, "--threads", 1)  # what processes are run with
ROOT = Path(__file__).resolve().parent.parent
SIZE = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_bundle(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def opened(model: Path) -> Synthesizer:
    return Synthesizer(model, device="cpu", backend="onnxruntime", batch=4, threads=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


# ----------------------------------------------------------------------------
# What is made ahead.


def test_ahead_gives_the_same_items() -> None:
    assert list(prefetch(iter(range(100)), 3)) == list(range(100))
    assert list(prefetch([], 1)) == []
    assert list(prefetch([None, 0], 1)) == [None, 0]


def test_ahead_overlaps_and_is_bounded() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(50):
            made.append(i)
            yield i

    found = prefetch(items(), 3)
    assert next(found) == 0
    assert wait_for(lambda: len(made) == 5)  # the one taken, three in line, one that waits for room
    time.sleep(0.05)
    assert len(made) == 5
    found.close()
    assert not [t for t in threading.enumerate() if t.name == "pgsr-ahead"]
    assert len(made) <= 10


@pytest.mark.parametrize("error", [ValueError("x"), PgsrError("y"), KeyboardInterrupt(), StopIteration()])
def test_an_error_ahead_comes_where_the_item_would(error: BaseException) -> None:
    class Items:
        def __init__(self) -> None:
            self.count = 0

        def __iter__(self) -> Items:
            return self

        def __next__(self) -> int:
            self.count += 1
            if self.count > 2:
                raise error
            return self.count

    found = prefetch(Items(), 5)
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(type(error)):
        next(found)


# ----------------------------------------------------------------------------
# Calls of the networks.


def test_calls_keep_their_order_whichever_ends_first() -> None:
    def slow_if_even(item: int) -> int:
        time.sleep(0.01 if item % 2 == 0 else 0)
        return 10 * item

    for calls in (1, 2, 3, 7):
        assert list(in_turn(slow_if_even, iter(range(10)), calls)) == [10 * i for i in range(10)]
    assert list(in_turn(slow_if_even, [], 3)) == []


@pytest.mark.parametrize("calls", [1, 2, 4])
def test_so_many_calls_and_no_more_are_in_work(calls: int) -> None:
    lock, now, most, asked = threading.Lock(), 0, 0, 0
    together = threading.Barrier(calls)

    def call(item: int) -> int:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        together.wait(120)  # which takes all of them at once
        with lock:
            now -= 1
        return item

    def items() -> Iterator[int]:
        nonlocal asked
        while asked < 4 * calls:
            asked += 1
            yield asked

    for taken in in_turn(call, items(), calls):
        assert asked < taken + calls  # no further ahead
    assert most == calls


@pytest.mark.parametrize("calls", [1, 3])
def test_a_calls_error_is_raised_in_its_turn(calls: int) -> None:
    def call(item: int) -> int:
        if item == 2:
            raise PgsrError("the third")
        return item

    found = in_turn(call, range(9), calls)
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(PgsrError, match="the third"):
        next(found)
    assert not [t for t in threading.enumerate() if t.name.startswith("pgsr-network")]


def test_a_synthesizer_keeps_its_runner_busy(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next batch is in work while one is waited for: each needs the other to be there."""
    latents = draws.latents(0, range(8), tiny.LATENT)
    with Synthesizer(model, device="cpu", backend="onnxruntime", batch=2) as synthesizer:
        expected = list(synthesizer.pictures(latents))
        runner, together = synthesizer._runner, threading.Barrier(2)

        class Two:
            calls = 2

            def run(self, values: np.ndarray) -> np.ndarray:
                together.wait(120)
                return runner.run(values)

        with monkeypatch.context() as patched:
            patched.setattr(synthesizer, "_runner", Two())
            assert np.array_equal(list(synthesizer.pictures(latents)), expected)
            assert np.array_equal(synthesizer.images(0, 8), expected)


# ----------------------------------------------------------------------------
# What finishes pictures.


def picture(index: int = 0) -> np.ndarray:
    return np.full((SIZE, SIZE, 3), index % 256, dtype=np.uint8)


class Sink:
    """Keeps what it is given; encoding waits for a gate and may fail."""

    def __init__(self, ordered: bool, fails_at: int = -1) -> None:
        self.ordered, self.fails_at = ordered, fails_at
        self.gate = threading.Event()
        self.written: list[int] = []
        self.writers: set[str] = set()

    def encode(self, position: int, made: np.ndarray) -> int:
        assert self.gate.wait(120)
        if position == self.fails_at:
            raise MemoryError("encoder")
        if self.ordered and position % 3 == 0:
            time.sleep(0.005)  # the others overtake it
        return int(made[0, 0, 0])

    def write(self, position: int, data: int) -> None:
        assert data == position % 256
        self.writers.add(threading.current_thread().name)
        self.written.append(position)


def put_many(sink: Sink, count: int, taken: list[int] | None = None, limit: int = 0) -> None:
    with Finisher(sink, threads=2, limit=limit) as finisher:
        for index in range(count):
            finisher.put([index], picture(index)[None])
            if taken is not None:
                taken.append(index)


def test_ordered_pictures_are_written_in_order_by_one_thread() -> None:
    sink = Sink(ordered=True)
    sink.gate.set()
    put_many(sink, 60)
    assert sink.written == list(range(60))
    assert sink.writers == {"pgsr-writer"}


def test_pictures_without_an_order_are_written_by_those_who_encode() -> None:
    sink = Sink(ordered=False)
    sink.gate.set()
    put_many(sink, 60)
    assert sorted(sink.written) == list(range(60))
    assert all(name.startswith("pgsr-encoder") for name in sink.writers)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16])
def test_batches_are_taken_apart(count: int) -> None:
    sink = Sink(ordered=True)
    sink.gate.set()
    with Finisher(sink, threads=3) as finisher:
        finisher.put(list(range(count)), np.stack([picture(i) for i in range(count)]))
    assert sink.written == list(range(count))


@pytest.mark.parametrize("ordered", [True, False])
def test_no_more_than_the_limit_in_work(ordered: bool) -> None:
    sink, taken = Sink(ordered), []
    feeder = threading.Thread(target=put_many, args=(sink, 20, taken), kwargs={"limit": 5})
    feeder.start()
    assert wait_for(lambda: len(taken) == 5)
    time.sleep(0.05)
    assert len(taken) == 5  # the sixth waits
    sink.gate.set()
    feeder.join(120)
    assert len(taken) == len(sink.written) == 20


@pytest.mark.parametrize("ordered", [True, False])
def test_an_encoders_error_ends_it_all(ordered: bool) -> None:
    sink, taken = Sink(ordered, fails_at=3), []
    sink.gate.set()
    with pytest.raises(MemoryError, match="encoder"):
        put_many(sink, 1000, taken)
    assert len(taken) < 40
    with pytest.raises(MemoryError):  # also if nothing comes behind it
        put_many(Sink_that_fails_last(ordered), 4)


def Sink_that_fails_last(ordered: bool) -> Sink:
    sink = Sink(ordered, fails_at=3)
    sink.gate.set()
    return sink


@pytest.mark.parametrize("ordered", [True, False])
def test_an_error_outside_drops_what_waits(ordered: bool) -> None:
    sink = Sink(ordered)

    def interrupted() -> None:
        with Finisher(sink, threads=1, limit=10) as finisher:
            for index in range(10):
                finisher.put([index], picture(index)[None])
            threading.Timer(0.1, sink.gate.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(sink.written) < 10


class Interrupted(BaseException):
    """A signal's."""


def test_a_signal_while_the_end_is_waited_for_drops_what_waits() -> None:
    """And what is in work is finished first."""
    sink = Sink(ordered=False)

    def interrupt(*_: object) -> None:
        threading.Timer(0.05, sink.gate.set).start()
        raise Interrupted

    def interrupted() -> None:
        with Finisher(sink, threads=1, limit=10) as finisher:
            for index in range(10):
                finisher.put([index], picture(index)[None])
            main = threading.main_thread().ident
            assert main is not None
            threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGUSR1)).start()

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(Interrupted):
            interrupted()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert sink.written == [0]


@pytest.mark.parametrize(
    ("may_hang", "error", "waits"), [(False, True, True), (True, False, True), (True, True, False)]
)
def test_only_what_may_hang_for_ever_is_left_after_ctrl_c(
    may_hang: bool, error: bool, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 0 < pipeline.ABANDONED_AFTER < 1
    monkeypatch.setattr(pipeline, "ABANDONED_AFTER", 0.02)
    sink = Sink(ordered=False)

    def leave() -> None:
        with suppress(Interrupted), Finisher(sink, threads=1, may_hang=may_hang) as finisher:
            finisher.put([0], picture()[None])
            if error:
                raise Interrupted

    leaver = threading.Thread(target=leave)
    leaver.start()
    leaver.join(0.3 if waits else 120)
    assert leaver.is_alive() == waits
    assert sink.written == []
    sink.gate.set()
    leaver.join(120)
    assert wait_for(lambda: sink.written == [0])


def test_four_parts_a_thread_wait_unless_told() -> None:
    sink, taken = Sink(ordered=True), []
    feeder = threading.Thread(target=put_many, args=(sink, 20, taken))  # with two threads
    feeder.start()
    assert wait_for(lambda: len(taken) == 8)
    time.sleep(0.05)
    assert len(taken) == 8
    sink.gate.set()
    feeder.join(120)
    assert sink.written == list(range(20))


def test_a_batch_is_shared_by_threads_only_where_the_networks_are_ahead() -> None:
    begun: list[int] = []

    class Noted(Sink):
        def encode(self, position: int, made: np.ndarray) -> int:
            begun.append(position)
            return super().encode(position, made)

    sink = Noted(ordered=True)
    with Finisher(sink, threads=3) as finisher:
        for positions in (range(4), range(4, 10)):
            finisher.put(positions, np.stack([picture(i) for i in positions]))
        assert wait_for(lambda: len(begun) == 3)
        time.sleep(0.05)
        assert sorted(begun) == [0, 4, 6]  # of 0 to 3, of 4 and 5, and of 6 and 7
        sink.gate.set()
    assert sink.written == list(range(10))


def test_nothing_is_written_behind_an_error() -> None:
    sink = Sink_that_fails_last(ordered=True)
    with pytest.raises(MemoryError), Finisher(sink, threads=1) as finisher:
        finisher.put(range(9), np.stack([picture(i) for i in range(9)]))
    assert sink.written == []  # a part is written when it is whole
    sink = Sink_that_fails_last(ordered=True)
    with pytest.raises(MemoryError):
        put_many(sink, 30)
    assert sink.written == [0, 1, 2]


def test_threads_have_names_and_hold_no_process_up() -> None:
    found = prefetch(iter(range(5)), 1)
    next(found)
    with Finisher(Sink(ordered=True), threads=1):
        for name in ("pgsr-ahead", "pgsr-writer"):
            threads = [thread for thread in threading.enumerate() if thread.name == name]
            assert threads
            assert all(thread.daemon for thread in threads)
    found.close()
    names = in_turn(lambda _: threading.current_thread().name, range(4), 2)
    assert {name.rpartition("_")[0] for name in names} == {"pgsr-network"}


def folder_sink(folder: Path) -> FolderSink:
    return FolderSink(folder, Encoding(), Faces(lambda i: i, lambda i: {"index": i}))


def test_folder_sink(tmp_path: Path) -> None:
    with Finisher(folder_sink(tmp_path), threads=2) as finisher:
        finisher.put(list(range(50)), np.stack([picture(i) for i in range(50)]))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{i:06d}.png" for i in range(50)]
    for i in range(50):
        with Image.open(tmp_path / f"{i:06d}.png") as decoded:
            assert np.array_equal(np.asarray(decoded), picture(i))
            assert decoded.text["pgsr:index"] == str(i)  # type: ignore[attr-defined]


def test_full_disk_surfaces_promptly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    taken: list[int] = []
    with pytest.raises(PgsrError, match="no space left"):
        put_many(folder_sink(tmp_path), 1000, taken, limit=4)  # type: ignore[arg-type]
    assert len(taken) <= 8
    assert list(tmp_path.iterdir()) == []


def test_folder_that_vanishes(tmp_path: Path) -> None:
    with pytest.raises(PgsrError, match="cannot write"):
        put_many(folder_sink(tmp_path / "absent"), 1)  # type: ignore[arg-type]


def test_all_stages_overlap() -> None:
    """The latents of picture 3, the network with 2, encoding of 1 and writing of 0 wait for each other."""
    at_work: set[int] = set()
    all_at_work = threading.Event()

    def stage(place: int, picture: int) -> None:
        if picture == place:
            at_work.add(place)
            if len(at_work) == 4:
                all_at_work.set()
            assert all_at_work.wait(120)

    class Watched(Sink):
        def encode(self, position: int, made: np.ndarray) -> int:
            stage(1, position)
            return super().encode(position, made)

        def write(self, position: int, data: int) -> None:
            stage(0, position)
            super().write(position, data)

    def latents() -> Iterator[int]:
        for i in range(25):
            stage(3, i)
            yield i

    sink = Watched(ordered=True)
    sink.gate.set()
    with Finisher(sink, threads=2) as finisher:
        for i in prefetch(latents(), 2):
            stage(2, i)
            finisher.put([i], picture(i)[None])
    assert sink.written == list(range(25))


# ----------------------------------------------------------------------------
# The fastest batch, found once.


class Timed:
    """A runner whose calls take seconds_of(batch) on a clock of its own."""

    calls = 1

    def __init__(self, seconds_of: Callable[[int], float]) -> None:
        self.seconds_of, self.now, self.tried = seconds_of, 0.0, []  # type: ignore[var-annotated]

    def __call__(self, size: int) -> Any:
        self.tried.append(size)
        return self

    def run(self, latents: np.ndarray) -> np.ndarray:
        self.now += self.seconds_of(len(latents))
        return latents

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("seconds_of", "best", "tried"),
    [
        (lambda n: 0.001 * n, 64, [16, 32, 64]),  # all alike
        (lambda n: 0.001 * n**1.2, 2, [16, 32, 8, 4, 2]),  # small ones stay in caches
        (lambda n: 0.001 * n**1.05, 16, [16, 32, 8]),  # they hardly do
        (lambda n: 0.001 * n**1.04, 32, [16, 32, 64]),  # twice as many are good enough, but not twice over
        (lambda n: 0.001 * max(n, 32) ** 1.1, 32, [16, 32, 64]),
        (lambda n: 0.01, 64, [16, 32, 64]),  # a GPU that nothing fills
        (lambda n: 10.0 * n, 16, [16]),  # no time to try another
    ],
)
def test_the_fastest_batch_is_found(seconds_of: Callable[[int], float], best: int, tried: list[int]) -> None:
    timed = Timed(seconds_of)
    assert fastest_batch(timed, 8, clock=lambda: timed.now) == best
    assert timed.tried == tried


@pytest.mark.parametrize(("size", "limit"), [(16, 64), (512, 64), (1024, 16), (2048, 4), (8192, 2)])
def test_batches_of_large_pictures_are_small(size: int, limit: int) -> None:
    assert most(size) == limit
    timed = Timed(lambda n: 0.01)  # the more the better
    assert fastest_batch(timed, 8, 2, limit, clock=lambda: timed.now) == limit


def test_the_batch_is_measured_once(model: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(synthesizer, "fastest_batch", lambda *values: calls.append(1) or 4)
    with Synthesizer(model, device="cpu", backend="onnxruntime") as first:
        assert first.batch == batch.FIRST
        before = first.images(count=5)
        first.tune()
        assert first.batch == 4
        assert np.array_equal(first.images(count=5), before)
    with Synthesizer(model, device="cpu", backend="onnxruntime") as second:
        assert second.batch == 4
        second.tune()
    with Synthesizer(model, device="cpu", backend="onnxruntime", batch=3) as third:
        third.tune()
        assert third.batch == 3
    assert len(calls) == 1
    with Synthesizer(model, device="cpu", backend="onnxruntime", threads=1) as other:  # another question
        assert other.batch == batch.FIRST


def test_only_large_jobs_are_worth_measuring(
    model: Path, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "WORTH_TUNING", 20)
    for count, held in ((19, 0), (20, 1)):
        with Synthesizer(model, device="cpu", backend="onnxruntime") as opened:
            write.generate(opened, Job(tmp_path / str(count), count=count))
        assert len(list(own_cache.glob("measured/batch-*.json"))) == held


def test_what_is_remembered(own_cache: Path) -> None:
    assert recall("a", {"x": 1}) is None
    remember("a", {"x": 1}, 5)
    assert recall("a", {"x": 1}) == 5
    assert recall("a", {"x": 2}) is None
    assert recall("b", {"x": 1}) is None
    for path in (own_cache / "measured").iterdir():
        path.write_text("{")
    assert recall("a", {"x": 1}) is None


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured goes among the temporary files, and nowhere if there is no room there."""
    (tmp_path / "file").write_text("")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("PGSR_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    remember("a", {}, 1)
    assert recall("a", {}) == 1
    assert [p.name for p in (tmp_path / "temporary").glob("pgsr-*/measured/*")] == [
        remembered._path("a", {}).name
    ]

    def no_room(path: Path, text: str) -> None:
        raise PgsrError(f"no space left for {path}")

    monkeypatch.setattr(remembered, "write_text", no_room)
    remember("b", {}, 1)
    assert recall("b", {}) is None


def test_the_machine_is_part_of_the_key() -> None:
    assert remembered.machine()["cores"] == machine.usable_cores() >= 1
    assert machine.installed_versions("numpy", "no-such-package") == {"numpy": np.__version__}


# ----------------------------------------------------------------------------
# Shards.


def test_shards_make_the_same_set(opened: Synthesizer, tmp_path: Path) -> None:
    whole = Job(tmp_path / "whole", count=11, start=3, sheet=tmp_path / "whole" / "sheet.png")
    write.generate(opened, whole)
    for k in (1, 0, 2):
        sheet = tmp_path / "parts" / "sheet.png"
        assert not sheet.exists()
        job = Job(tmp_path / "parts", count=11, start=3, shard=(k, 3), sheet=sheet)
        assert write.generate(opened, job).made == len(range(k, 11, 3))
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_two_processes_make_the_same_set(model: Path, opened: Synthesizer, tmp_path: Path) -> None:
    """At the same time, in one folder."""
    count, folder = 60, tmp_path / "parts"
    both = [start(model, folder, count, "--shard", f"{k}/2") for k in (0, 1)]
    assert [process.wait(600) for process in both] == [0, 0]
    write.generate(opened, Job(tmp_path / "whole", count=count, sheet=tmp_path / "whole" / "sheet.png"))
    assert contents(folder) == contents(tmp_path / "whole")


def test_shards_of_archives(model: Path, tmp_path: Path) -> None:
    options = ("--model", model, "--count", 7)
    assert result_of(*options, "--out", tmp_path / "whole.tar")["made"] == 7
    for k in (0, 1):
        told = result_of(*options, "--out", tmp_path / f"{k}.tar", "--shard", f"{k}/2")
        assert (told["count"], told["shard"]) == (4 - k, f"{k}/2")
    assert tar_of(tmp_path / "0.tar") | tar_of(tmp_path / "1.tar") == tar_of(tmp_path / "whole.tar")


# ----------------------------------------------------------------------------
# Archives and streams.


def tar_of(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as file:
        return {m.name: file.extractfile(m).read() for m in file.getmembers()}  # type: ignore[union-attr]


def zip_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        return {name: file.read(name) for name in file.namelist()}


READERS = {".tar": tar_of, ".zip": zip_of}


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize("name", ["png", "jpeg"])
def test_an_archive_of_faces(opened: Synthesizer, suffix: str, name: str, tmp_path: Path) -> None:
    """WebDataset's form: samples one after the other, the parts of each with one name."""
    path = tmp_path / "deep" / f"faces{suffix}"
    job = Job(path, count=9, start=5, seed=2, encoding=Encoding(name))
    assert write.generate(opened, job).made == 9
    held = READERS[suffix](path)
    numbers = [f"{i:06d}" for i in range(5, 14)]
    ending = {"png": "png", "jpeg": "jpg"}[name]
    assert list(held) == [f"{number}.{part}" for number in numbers for part in (ending, "json")]
    for number, expected in zip(numbers, opened.images(2, 9, 5), strict=True):
        note = json.loads(held[f"{number}.json"])
        assert (note["seed"], note["index"], note["model"]) == (2, int(number), opened.graph.sha256)
        with Image.open(io.BytesIO(held[f"{number}.{ending}"])) as decoded:
            assert np.array_equal(np.asarray(decoded), expected) or name == "jpeg"
    before = path.stat().st_mtime_ns
    assert write.generate(opened, job).present == 9
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("suffix", READERS)
def test_an_interrupted_archive_goes_on(opened: Synthesizer, suffix: str, tmp_path: Path) -> None:
    def interrupt(done: int) -> None:
        if done >= 8:
            raise KeyboardInterrupt

    whole, stopped = (Job(tmp_path / f"{name}{suffix}", count=30) for name in ("whole", "stopped"))
    with pytest.raises(KeyboardInterrupt):
        write.generate(opened, stopped, interrupt)
    assert not stopped.out.exists()
    assert 0 < write.survey(opened, stopped) < 30
    result = write.generate(opened, stopped)
    assert result.made + result.present == 30
    assert result.present > 0
    write.generate(opened, whole)
    assert stopped.out.read_bytes() == whole.out.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"stopped{suffix}", f"whole{suffix}"]


@pytest.mark.parametrize("change", [{"seed": 1}, {"count": 3}, {"count": 5}, {"encoding": Encoding("jpeg")}])
@pytest.mark.parametrize("half", [False, True])
def test_an_archive_of_other_faces(
    opened: Synthesizer, change: dict[str, Any], half: bool, tmp_path: Path
) -> None:
    path = tmp_path / "faces.tar"
    write.generate(opened, Job(path, count=4))
    if half:
        path.rename(partial(path))
        if change == {"count": 5}:
            return  # it goes on
    before = contents(tmp_path)
    if half and change == {"count": 3}:
        return  # it ends there
    with pytest.raises(PgsrError, match="holds other faces"):
        write.generate(opened, Job(path, **{"count": 4, **change}))
    assert contents(tmp_path) == before


def test_damage_in_a_partial_archive_is_made_again(opened: Synthesizer, tmp_path: Path) -> None:
    path = tmp_path / "faces.tar"
    write.generate(opened, Job(path, count=8))
    right = path.read_bytes()
    path.rename(partial(path))
    damaged = bytearray(right)
    damaged[3 * len(right) // 8 // 512 * 512 + 600] ^= 255
    partial(path).write_bytes(damaged)
    assert write.generate(opened, Job(path, count=8)).made >= 4
    assert path.read_bytes() == right


def test_raw_pixels_on_stdout(model: Path, opened: Synthesizer) -> None:
    result = command("--model", model, "--out", "-", "--count", 9, "--batch", 4, "--json")
    assert result.exit_code == 0
    pixels = np.frombuffer(result.stdout_bytes, dtype=np.uint8).reshape(9, tiny.SIZE, tiny.SIZE, 3)
    assert np.array_equal(pixels, opened.images(count=9))
    told = json.loads(result.stderr.splitlines()[-1])
    assert (told["made"], told["format"], told["out"]) == (9, "raw", "-")


def test_a_reader_that_has_enough(model: Path) -> None:
    process = start(model, "-", 10**6, stdout=subprocess.PIPE)
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 1000)
    process.stdout.close()
    assert process.wait(300) == 1
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shard", "2/2"], "--shard"),
        (["--shard", "x"], "--shard"),
        (["--shard", "3/4", "--count", "2"], "fewer shards"),
        (["--out", "-", "--format", "png"], "--format is not for --out -"),
        (["--out", "-", "--sheet", "s.png"], "--sheet is for a folder"),
        (["--out", "f.tar", "--save-latents"], "--save-latents is for a folder"),
        (["--encoder", "simplejpeg"], "--encoder"),
        (["--label", "3"], "without labels"),
        (["--grid", "2x2", "g.png", "--shard", "0/2"], "--shard is not for a --grid"),
        (["--video", "f.gif", "--encoder", "zlib"], "--encoder is not for a --video"),
    ],
)
def test_one_line_for_what_is_wrong(model: Path, arguments: list[str], words: str, tmp_path: Path) -> None:
    refused_in(tmp_path, ["--model", str(model), *arguments], words)


def test_labels_that_the_graph_has(tmp_path: Path) -> None:
    folder = tiny.write_bundle(tmp_path / "model")
    manifest = folder / "manifest.json"
    held = json.loads(manifest.read_text())
    held["provenance"] = {"generator": {"label": 3}}
    manifest.write_text(json.dumps(held))
    options = ("--model", folder, "--count", 1, "--out", tmp_path / "f")
    assert result_of(*options, "--label", 3)["made"] == 1
    refused = command(*options, "--label", 4)
    assert refused.exit_code == 1
    assert "draws label 3 alone" in refused.stderr


# ----------------------------------------------------------------------------
# Real processes: killed, and measured.


def start(model: Path, out: object, count: int, *options: Any, **pipes: Any) -> subprocess.Popen[str]:
    arguments = ["--model", model, "--out", out, "--count", count, *ALIKE, *options]
    return subprocess.Popen(
        [sys.executable, "-m", "pgsr.runtime", *map(str, arguments)],
        cwd=ROOT,
        text=True,
        stderr=subprocess.PIPE,
        **{"stdout": subprocess.DEVNULL, **pipes},
    )


KILLED = 3000  # faces: more than a second's


@pytest.mark.parametrize("name", ["faces", "faces.tar", "faces.zip"])
def test_killed_at_random_instants(
    model: Path, opened: Synthesizer, name: str, tmp_path: Path, record_property: Callable[..., None]
) -> None:
    """What has a face's name is whole at any instant; the run that goes on ends as one never killed."""
    instants, out = random.Random(f"kill {name}"), tmp_path / "killed" / name
    first = out / "000003.png" if name == "faces" else partial(out)
    kills = 0
    for _ in range(4):
        process = start(model, out, KILLED, "--no-sheet")
        wait_for(lambda: first.exists() or process.poll() is not None)  # noqa: B023
        time.sleep(instants.uniform(0.0, 0.15))
        process.send_signal(signal.SIGKILL)
        if process.wait(300) == 0:
            break
        kills += 1
        check_what_is_there(out, opened)
    record_property("kills", kills)
    assert kills >= 1
    assert start(model, out, KILLED, "--no-sheet").wait(600) == 0
    write.generate(opened, Job(tmp_path / "whole" / name, count=KILLED))
    if name == "faces":
        assert contents(out) == contents(tmp_path / "whole" / name)
    else:
        assert contents(out.parent) == contents(tmp_path / "whole")


def check_what_is_there(out: Path, opened: Synthesizer) -> None:
    if not out.suffix:
        for path in out.glob("*.png"):
            assert Encoding().is_whole(path, tiny.SIZE), path
    else:
        assert not out.exists()
        assert write.survey(opened, Job(out, count=KILLED)) <= KILLED


def test_leftovers_of_dead_processes_alone_are_removed(opened: Synthesizer, tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine, theirs = (tmp_path / f".000001.png.{pid}.tmp" for pid in (os.getpid(), dead.pid))
    for path in (mine, theirs):
        path.write_bytes(b"half")
    write.generate(opened, Job(tmp_path, count=1))
    assert mine.exists()
    assert not theirs.exists()


PEAK = """
import resource, sys
from pgsr.runtime.generate.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    assert not stop.code, stop.code
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def peak_bytes(model: Path, out: str, count: int) -> int:
    arguments = ["--model", model, "--out", out, "--count", count, *ALIKE]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *map(str, arguments)],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    return int(done.stderr.splitlines()[-1]) * 1024


@pytest.mark.parametrize("out", ["-", "faces.zip"])
def test_memory_does_not_grow_with_the_count(model: Path, out: str, tmp_path: Path) -> None:
    """Of a real process: twenty times as many faces, of 192 bytes each as pixels, and a zip's directory."""
    few, many = (
        peak_bytes(model, out if out == "-" else str(tmp_path / f"{count}.zip"), count)
        for count in (400, 8000)
    )
    assert many - few < 1_500_000
