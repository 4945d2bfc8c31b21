"""pgsr-generate --ray under faults that tests/test_ray.py does not have: a line and nothing half written, and
the same command again ends with the bytes of one process.

A cluster takes some ten seconds to start, so all tests share one, and all are slow. Node 1 has no cache.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bundles import write_bundle
from pgsr.benchmarks.cluster import kills
from pgsr.benchmarks.cluster.cluster import LocalCluster, local_cluster, result, start
from processes import FAKETIME, faked_time, jump

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

SET = ("--count", 4000, "--shard-size", 250, "--encoder", "zlib", "--backend", "onnxruntime")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster(2, [{}, {"PGSR_CACHE": "/proc/none"}]) as started:
        yield started


@pytest.fixture(scope="module")
def expected(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The set, by one process."""
    folder = tmp_path_factory.mktemp("expected") / "set"
    result(start(*SET, "--model", model, "--out", folder))
    return kills.files(folder)


Begin = Callable[[Path], "subprocess.Popen[str]"]


@pytest.fixture
def begin(cluster: LocalCluster, model: Path) -> Begin:
    """Starts the command."""

    def begun(folder: Path, model: Path = model) -> subprocess.Popen[str]:
        return cluster.generate(*SET, "--model", model, "--out", folder)

    return begun


def in_the_middle(process: subprocess.Popen[str], folder: Path) -> None:
    """Waits until the set has been begun, and a little longer."""
    kills.wait_for(folder / "set.json", process)
    time.sleep(random.uniform(0.0, 1.0))


def assert_ended_well(process: subprocess.Popen[str], *codes: int) -> str:
    """With one of these codes, or 0; at most one sentence that is an error, and no traceback."""
    said = process.communicate(timeout=300)[1]
    assert process.returncode in (0, *codes), (process.returncode, said)
    assert "Traceback" not in said
    errors = [line for line in said.splitlines() if line.startswith("error: ") or line == "Aborted!"]
    assert len(errors) == (process.returncode == 1), said
    return said


def assert_ends_as_if_nothing_had_been(begin: Begin, folder: Path, expected: dict[str, bytes]) -> None:
    """The same command again, without a fault: it removes what workers have left half written, too."""
    result(begin(folder))
    assert kills.files(folder) == expected


# ----------------------------------------------------------------------------
# The driver.


@pytest.mark.parametrize(
    ("numbers", "code"),
    [((signal.SIGTERM,), 143), ((signal.SIGINT,), 1), ((signal.SIGINT, signal.SIGINT), 1)],
)
def test_a_signal_to_the_driver(
    numbers: tuple[int, ...], code: int, begin: Begin, expected: dict[str, bytes], tmp_path: Path
):
    folder = tmp_path / "set"
    process = begin(folder)
    in_the_middle(process, folder)
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.05)
    assert_ended_well(process, code)
    assert_ends_as_if_nothing_had_been(begin, folder, expected)


def test_two_drivers_on_one_output(begin: Begin, expected: dict[str, bytes], tmp_path: Path):
    """Both make shards of the one set."""
    processes = [begin(tmp_path / "set") for _ in range(2)]
    for process in processes:
        assert_ended_well(process, 1)
    assert 0 in [process.returncode for process in processes]
    assert_ends_as_if_nothing_had_been(begin, tmp_path / "set", expected)


# ----------------------------------------------------------------------------
# What cannot be written or read.


def test_a_full_disk(begin: Begin, expected: dict[str, bytes], disk: Callable[[str], Path]):
    pages = sum(-(-len(data) // 4096) for data in expected.values())
    folder = disk(f"size={4 * int(0.5 * pages)}k") / "set"
    said = assert_ended_well(begin(folder), 1)
    assert any(x in said for x in ("no space left for", "No space left on device")), said
    disk("size=100m")
    assert_ends_as_if_nothing_had_been(begin, folder, expected)


def test_a_folder_that_is_read_only(begin: Begin, expected: dict[str, bytes], disk: Callable[[str], Path]):
    folder = disk("ro")
    process = begin(folder / "set")
    assert "cannot" in assert_ended_well(process, 1)
    assert process.returncode == 1
    assert list(folder.iterdir()) == []
    disk("rw,size=100m")
    assert_ends_as_if_nothing_had_been(begin, folder / "set", expected)


def test_permission_that_is_lost_in_the_middle(begin: Begin, expected: dict[str, bytes], tmp_path: Path):
    folder = tmp_path / "set"
    process = begin(folder)
    in_the_middle(process, folder)
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):
        process.kill()
        process.communicate()
        pytest.skip("this user may write everywhere: setpriv --bounding-set=-dac_override pytest ...")
    assert_ended_well(process, 1)
    folder.chmod(0o755)
    assert_ends_as_if_nothing_had_been(begin, folder, expected)


def test_a_folder_that_is_removed_in_the_middle(begin: Begin, expected: dict[str, bytes], tmp_path: Path):
    folder = tmp_path / "set"
    process = begin(folder)
    in_the_middle(process, folder)
    for _ in range(3):
        with suppress(OSError):
            shutil.rmtree(folder)
    assert_ended_well(process, 1)
    shutil.rmtree(folder, ignore_errors=True)
    assert_ends_as_if_nothing_had_been(begin, folder, expected)


@pytest.mark.parametrize("how", ["removed", "cut"])
def test_a_bundle_that_changes_in_the_middle(
    how: str, begin: Any, model: Path, expected: dict[str, bytes], tmp_path: Path
):
    """Workers that have opened it go on; others have it from the driver."""
    folder, own = tmp_path / "set", Path(shutil.copytree(model, tmp_path / "own"))
    process = begin(folder, own)
    in_the_middle(process, folder)
    if how == "removed":
        shutil.rmtree(own)
    else:
        for path in own.iterdir():
            os.truncate(path, path.stat().st_size // 2)
    assert_ended_well(process, 1)
    assert_ends_as_if_nothing_had_been(begin, folder, expected)


# ----------------------------------------------------------------------------
# Limits of a worker.

LIMITS = {
    "file size": (resource.RLIMIT_FSIZE, lambda process: 4096),
    "handles": (resource.RLIMIT_NOFILE, lambda process: len(os.listdir(f"/proc/{process}/fd"))),
    "addresses": (resource.RLIMIT_AS, lambda process: 4096 * pages_of(process)),
}


def pages_of(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[0])


@pytest.mark.parametrize("which", LIMITS)
def test_a_limit_of_a_worker(
    which: str, begin: Begin, cluster: LocalCluster, expected: dict[str, bytes], tmp_path: Path
):
    """It says no, or dies; the others make its shards."""
    folder = tmp_path / "set"
    process = begin(folder)
    kills.wait_for(folder / "set.json", process)
    number, limit = LIMITS[which]
    limited = 0
    while not limited and process.poll() is None:
        for worker in cluster.workers(0):
            with suppress(ProcessLookupError, FileNotFoundError):
                resource.prlimit(worker, number, (limit(worker), limit(worker)))
                limited += 1
    assert limited, "no worker on node 0"
    assert_ended_well(process, 1)
    assert_ends_as_if_nothing_had_been(begin, folder, expected)


def test_a_cache_that_cannot_be_written(
    begin: Begin, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The driver's, and node 1's."""
    monkeypatch.setenv("PGSR_CACHE", "/proc/none")
    assert_ended_well(begin(tmp_path / "set"))
    assert kills.files(tmp_path / "set") == expected


@pytest.mark.skipif(not FAKETIME.exists(), reason="apt-get install faketime")
def test_a_clock_that_jumps(
    begin: Begin, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The driver's, back and forth by more than a year."""
    folder, clock = tmp_path / "set", tmp_path / "clock"
    for name, value in faked_time(clock).items():
        monkeypatch.setenv(name, value)
    process, jumps = begin(folder), 0
    monkeypatch.delenv("LD_PRELOAD")
    while process.poll() is None:
        jumps += 1
        jump(clock, jumps)
        time.sleep(0.05)
    assert_ended_well(process)
    assert jumps > 5
    assert kills.files(folder) == expected
