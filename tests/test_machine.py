"""Cores by affinity and by the quota of control groups, of both versions, in and out of containers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from generating import result_of

import bundles as tiny
from pgsr import machine
from pgsr.runtime.backends import Settings
from pgsr.runtime.pipeline import encoding_threads


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    machine.cores_by_quota.cache_clear()
    yield
    machine.cores_by_quota.cache_clear()


V1 = "31 23 0:28 {root} {point} rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct"
V2 = "31 23 0:28 {root} {point} rw,relatime - cgroup2 cgroup2 rw,nsdelegate"
OTHERS = [
    "21 1 8:1 / / rw - ext4 /dev/sda1 rw",
    "32 23 0:29 / {point}/../cpuset rw - cgroup cgroup rw,cpuset",
    "a line that is none",
]


def process(
    folder: Path, mount: str, group: str, files: Mapping[str, str], root: str = "/", point: str = "cgroup"
) -> Path:
    """A /proc/self of a process in a control group whose files are these, below where they are mounted."""
    place = folder / point
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text + "\n")
    (folder / "self").mkdir()
    (folder / "self" / "cgroup").write_text(f"9:name=systemd:/\n{group}\n")
    escaped = str(place).replace(" ", "\\040")
    lines = [line.format(root=root, point=escaped) for line in (*OTHERS, mount)]
    (folder / "self" / "mountinfo").write_text("\n".join(lines) + "\n")
    return folder / "self"


def v1(quota: int, period: int = 100_000, below: str = "") -> dict[str, str]:
    return {f"{below}cpu.cfs_quota_us": str(quota), f"{below}cpu.cfs_period_us": str(period)}


# mount, the process's group, files, where in the hierarchy the mount's root is; the cores that it has time of
QUOTAS: dict[str, tuple[str, str, dict[str, str], str, int]] = {
    "v2 in a container": (V2, "0::/", {"cpu.max": "200000 100000"}, "/", 2),
    "v2, a part of a core more": (V2, "0::/", {"cpu.max": "150000 100000"}, "/", 2),
    "v2, less than a core": (V2, "0::/", {"cpu.max": "5000 100000"}, "/", 1),
    "v2, no limit": (V2, "0::/", {"cpu.max": "max 100000"}, "/", 0),
    "v2, the group's own": (V2, "0::/a/b", {"a/b/cpu.max": "300000 100000"}, "/", 3),
    "v2, a group above": (V2, "0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "400000 100000"}, "/", 4),
    "v2, the least": (V2, "0::/a/b", {"a/b/cpu.max": "900000 100000", "a/cpu.max": "400000 100000"}, "/", 4),
    "v2, without files": (V2, "0::/a/b", {}, "/", 0),
    "v2, damaged": (V2, "0::/", {"cpu.max": "two cores"}, "/", 0),
    "v2, of nothing": (V2, "0::/", {"cpu.max": "200000 0"}, "/", 0),
    "v1 on a host": (V1, "3:cpu,cpuacct:/user", v1(200_000, below="user/"), "/", 2),
    "v1, a group above": (V1, "3:cpu,cpuacct:/a/b", v1(-1, below="a/b/") | v1(700_000, below="a/"), "/", 7),
    "v1, no limit": (V1, "3:cpu,cpuacct:/", v1(-1), "/", 0),
    "v1 in a container": (V1, "3:cpu,cpuacct:/docker/0123", v1(250_000), "/docker/0123", 3),
    "v1, a group of a container's": (V1, "3:cpu:/docker/01/g", v1(100_000, below="g/"), "/docker/01", 1),
    "v1, a name of the host's": (V1, "3:cpu,cpuacct:/kube/pod/1", v1(300_000), "/other", 3),
    "v1, another controller": (V1, "3:cpuset:/", v1(200_000), "/", 0),
    "v1's mount, v2's group": (V1, "0::/", v1(200_000), "/", 0),
}


@pytest.mark.parametrize("what", QUOTAS)
def test_quotas(what: str, tmp_path: Path):
    mount, group, files, root, expected = QUOTAS[what]
    assert machine.cores_by_quota(process(tmp_path, mount, group, files, root)) == expected


def test_a_mount_with_a_space_in_its_name(tmp_path: Path):
    files = {"cpu.max": "200000 100000"}
    assert machine.cores_by_quota(process(tmp_path, V2, "0::/", files, point="my groups")) == 2


def test_no_proc(tmp_path: Path):
    assert machine.cores_by_quota(tmp_path) == 0


def of_64_cores(quota: int, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    patch.setattr(machine, "cores_by_quota", lambda: quota)


@pytest.mark.parametrize(("quota", "cores", "threads"), [(2, 2, 2), (0, 64, 0), (64, 64, 0), (100, 64, 0)])
def test_the_quota_counts_where_it_is_less(
    quota: int, cores: int, threads: int, monkeypatch: pytest.MonkeyPatch
):
    of_64_cores(quota, monkeypatch)
    assert machine.usable_cores() == cores
    assert machine.threads_by_quota() == threads
    assert Settings().cpu_threads == threads
    assert Settings(threads=5).cpu_threads == 5
    assert encoding_threads(0) == min(32, cores)


def test_threads_that_encode_are_no_more_than_help(monkeypatch: pytest.MonkeyPatch):
    of_64_cores(0, monkeypatch)
    assert [encoding_threads(n) for n in (1, 40, 64, 1024)] == [1, 40, 64, 64]
    of_64_cores(2, monkeypatch)
    assert [encoding_threads(n) for n in (0, 2, 32, 1024)] == [2, 2, 32, 32]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_backends_keep_to_the_quota(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip(backend)
    of_64_cores(2, monkeypatch)
    made: list[Any] = []
    if backend == "onnxruntime":
        import onnxruntime

        real = onnxruntime.InferenceSession

        def session(path: str, options: Any, **rest: Any) -> Any:
            made.append(options.intra_op_num_threads)
            return real(path, options, **rest)

        monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    else:
        from pgsr.runtime.backends import openvino

        real_open = openvino._open

        def opened(*arguments: Any) -> Any:
            made.append(arguments[4].cpu_threads)
            return real_open(*arguments)

        monkeypatch.setattr(openvino, "_open", opened)
    model = tiny.write_bundle(tmp_path / "model")
    result_of("--model", model, "--count", 2, "--out", tmp_path / "f", "--backend", backend)
    assert set(made) == {2}


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [({0, 1, 2, 3}, 0), ({1}, 1), ({0, 2}, 1), ({0, 1, 2}, 2), ({1, 7}, 2)],
    ids=["the whole machine", "one", "both threads of a core", "two cores", "one that nothing is said of"],
)
def test_threads_are_as_many_as_the_cores_of_the_process(
    allowed: set[int], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Four processors, 0 and 2 one core's, 1 and 3 another's."""
    for number in range(4):
        folder = tmp_path / f"cpu{number}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{number % 2},{number % 2 + 2}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: allowed)
    monkeypatch.setattr(os, "sysconf", lambda name: 4)
    assert machine.threads_by_affinity(tmp_path) == expected


BOUND = """
import json, os, sys
os.sched_setaffinity(0, {int(sys.argv[2])})
from pathlib import Path
if sys.argv[3] == "export":
    from pgsr.export.sessions import open_session
    session = open_session(str(next(Path(sys.argv[1]).glob("*.onnx"))))
else:
    from pgsr.runtime.synthesizer import Synthesizer
    session = Synthesizer(Path(sys.argv[1]), "cpu", backend=sys.argv[3])
    session.images(0, 4)
status = [path.read_text() for path in Path("/proc/self/task").glob("*/status")]
lines = [line for text in status for line in text.splitlines() if line.startswith("Cpus_allowed_list")]
print(json.dumps([line.split()[1] for line in lines]))
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
@pytest.mark.parametrize("what", ["onnxruntime", "openvino", "export"])
def test_a_process_bound_to_a_core_uses_no_other(what: str, tmp_path: Path):
    """ONNX Runtime left to itself ties a thread to each core of the machine."""
    if what != "export":
        pytest.importorskip(what)
    core = min(os.sched_getaffinity(0))
    arguments = [sys.executable, "-c", BOUND, str(tiny.write_bundle(tmp_path / "model")), str(core), what]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout.splitlines()[-1])) == {str(core)}


COMMAND = """
import json, os, sys
from pgsr import machine
machine.cores_by_quota = lambda: 1
os.sched_getaffinity = lambda process: {0, 1, 2}
import click
from pgsr.cli import Command
def report():
    import torch
    print(json.dumps([torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")]))
if sys.argv[1] == "before":
    import torch
Command("x", callback=report).main([])
"""


@pytest.mark.parametrize(
    ("when", "set_to", "expected"), [("before", None, "1"), ("within", None, "1"), ("before", "3", "3")]
)
def test_pytorch_keeps_to_the_quota_unless_told(when: str, set_to: str | None, expected: str):
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    if set_to:
        environment["OMP_NUM_THREADS"] = set_to
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, when], capture_output=True, text=True, check=True, env=environment
    )
    threads, variable = json.loads(done.stdout)
    assert variable == expected
    assert threads == 1 or set_to is not None  # PyTorch takes no more than there are cores


# ----------------------------------------------------------------------------
# Memory.

MEMORY_V1 = V1.replace("cpu,cpuacct", "memory")
GIB = 2**30


def memory_v2(limit: str, used: int, idle: int = 0, below: str = "") -> dict[str, str]:
    stat = f"anon {used - idle}\nactive_file 5\ninactive_file {idle}"
    return {
        f"{below}memory.max": limit,
        f"{below}memory.current": str(used),
        f"{below}memory.stat": stat,
    }


def memory_v1(limit: int, used: int, idle: int = 0) -> dict[str, str]:
    stat = f"inactive_file 1\ntotal_inactive_file {idle}"
    return {
        "memory.limit_in_bytes": str(limit),
        "memory.usage_in_bytes": str(used),
        "memory.stat": stat,
    }


ROOM = {
    "v2 in a container": (V2, "0::/", memory_v2(str(2 * GIB), GIB), 1.0),
    "v2, files that may go": (V2, "0::/", memory_v2(str(2 * GIB), GIB, GIB // 2), 1.5),
    "v2, no limit": (V2, "0::/", memory_v2("max", GIB), 8.0),
    "v2, a group above": (
        *(V2, "0::/a/b"),
        memory_v2("max", GIB, below="a/b/") | memory_v2(str(3 * GIB), GIB, below="a/"),
        2.0,
    ),
    "v2, more than the machine has": (V2, "0::/", memory_v2(str(99 * GIB), 0), 8.0),
    "v2, beyond its limit": (V2, "0::/", memory_v2(str(GIB), 2 * GIB), 0.0),
    "v2, damaged": (V2, "0::/", memory_v2("much", GIB), 8.0),
    "v1": (MEMORY_V1, "4:memory:/", memory_v1(4 * GIB, GIB, GIB // 4), 3.25),
    "v1, no limit": (MEMORY_V1, "4:memory:/", memory_v1(2**63 - 4096, GIB), 8.0),
    "v1, another controller": (MEMORY_V1, "4:cpu:/", memory_v1(GIB, 0), 8.0),
}


@pytest.mark.parametrize("what", ROOM)
def test_memory_that_may_still_be_taken(what: str, tmp_path: Path):
    mount, group, files, expected = ROOM[what]
    (tmp_path / "meminfo").write_text("MemTotal: 99999999 kB\nMemAvailable:    8388608 kB\nBuffers: 7 kB\n")
    own = process(tmp_path, mount, group, files)
    assert machine.available_memory(own, tmp_path / "meminfo") == expected * GIB


def test_memory_of_which_nothing_tells(tmp_path: Path):
    assert machine.available_memory(tmp_path, tmp_path / "absent") == 2**62


def test_memory_of_this_machine():
    assert 2**20 < machine.available_memory() < 2**50
