"""The machine at hand: its cores, its processor, and the versions of what is installed."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path


def usable_cores() -> int:
    """The number of cores that this process may run on, and has the time of: by affinity and by quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cores_by_quota()
    return min(cores, quota) if quota else cores


def threads_by_quota() -> int:
    """The number of threads for libraries that count cores by themselves; 0 where they count rightly.

    They look at affinity alone, if at that. In a container with the time of two cores on a machine of 64 they
    would start 64 threads, which spend their time waiting for the next period.
    """
    quota = cores_by_quota()
    return quota if 0 < quota < len(os.sched_getaffinity(0)) else 0


def threads_for_onnxruntime(asked: int) -> int:
    """The number of its threads: what is asked for, or for 0 what this process has cores for; 0: its own."""
    return asked or threads_by_quota() or threads_by_affinity()


def threads_by_affinity(topology: Path = Path("/sys/devices/system/cpu")) -> int:
    """The number of threads for a library that does not look at affinity; 0 where this process may use all.

    ONNX Runtime, told no number, starts a thread for every core of the machine and ties each to its own,
    also to cores that taskset, Slurm or a container's cpuset has given to others. Two processors that are one
    core's hardware threads count once, as it counts them.
    """
    allowed = os.sched_getaffinity(0)
    if len(allowed) >= os.sysconf("SC_NPROCESSORS_ONLN"):
        return 0
    return len({_core(topology / f"cpu{number}", number) for number in allowed})


def _core(processor: Path, number: int) -> str:
    """What the hardware threads of one core have in common (Linux, admin-guide/cputopology)."""
    try:
        return (processor / "topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(number)


def keep_to_quota() -> None:
    """Lets what counts cores by affinity, PyTorch and numpy's libraries, start as many threads as there is
    time for; OMP_NUM_THREADS, if the user has set it, is left alone."""
    threads = threads_by_quota()
    if threads and "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)


@cache
def cores_by_quota(process: Path = Path("/proc/self")) -> int:
    """The cores whose time this process's control groups have, rounded up; 0 where nothing limits it.

    (Linux' documentation, admin-guide/cgroup-v2, cpu.max, and scheduler/sched-bwc, cpu.cfs_quota_us.)
    """
    shares = [share for folder in _control_groups("cpu", process) if (share := _cpu_share(folder))]
    return math.ceil(min(shares)) if shares else 0


def available_memory(process: Path = Path("/proc/self"), meminfo: Path = Path("/proc/meminfo")) -> int:
    """The bytes of memory that can still be taken before the kernel ends a process: of the machine, and of
    this process's control groups. 2**62 where nothing tells.

    (proc(5), MemAvailable; Linux' documentation, admin-guide/cgroup-v2, memory.max, and cgroup-v1/memory.)
    """
    left = [room for folder in _control_groups("memory", process) if (room := _room(folder)) is not None]
    with contextlib.suppress(OSError, ValueError):
        match = re.search(r"^MemAvailable:\s*(\d+) kB", meminfo.read_text(), re.MULTILINE)
        left += [1024 * int(match[1])] if match else []
    return max(0, min(left, default=2**62))


def _room(folder: Path) -> int | None:
    """The bytes that are left of one control group's memory; None without a limit. Files that the kernel
    keeps in memory as long as nobody needs it do not count."""
    try:
        if (folder / "memory.max").is_file():
            limit, used, idle = "memory.max", "memory.current", "inactive_file"
        else:
            limit, used, idle = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        most, now = (int((folder / name).read_text()) for name in (limit, used))
        match = re.search(rf"^{idle} (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # "max" is no number
        return None
    return most - now + (int(match[1]) if match else 0)


def _control_groups(controller: str, process: Path) -> Iterator[Path]:
    """The folders of a process's control groups for a controller ("cpu", "memory"), each with all that it is
    in; none where that cannot be read."""
    try:
        groups = (process / "cgroup").read_text().splitlines()
        mounts = (process / "mountinfo").read_text().splitlines()
    except (OSError, ValueError):
        return
    for mount in mounts:  # 36 35 98:0 /root /mount/point options - type source super-options (proc(5))
        front, _, back = mount.partition(" - ")
        kind, _, options = [*back.split(" "), "", ""][:3]
        is_v1 = kind == "cgroup" and controller in options.split(",")
        if not is_v1 and kind != "cgroup2":
            continue
        root, point = (Path(re.sub(r"\\(\d{3})", _unescaped, word)) for word in front.split(" ")[3:5])
        for line in groups:  # 4:cpu,cpuacct:/path, or 0::/path of version 2 (cgroups(7))
            _, controllers, path = [*line.split(":", 2), "", ""][:3]
            if (controller in controllers.split(",")) if is_v1 else (controllers == ""):
                inner = Path(path)
                # A path outside the mount is the host's name of what a container has mounted as a whole.
                folder = point / (inner.relative_to(root) if inner.is_relative_to(root) else "")
                yield from (f for f in (folder, *folder.parents) if f.is_relative_to(point))


def _unescaped(match: re.Match[str]) -> str:
    return chr(int(match[1], 8))


def _cpu_share(folder: Path) -> float | None:
    """The quota of one control group over its period; None without one."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota, period = ((folder / name).read_text().strip() for name in names)
        share = float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):  # "max" is no number
        return None
    return share if share > 0 else None  # -1 is no limit


@cache
def processor_information() -> str:
    """The text of /proc/cpuinfo; empty where there is none."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def processor_entry(name: str, information: str | None = None) -> str:
    """The first entry of that name in /proc/cpuinfo, such as "model name"; empty if there is none."""
    text = processor_information() if information is None else information
    match = re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else ""


def processor_name() -> str:
    """The processor's own name, or the architecture's."""
    return processor_entry("model name") or platform.processor() or platform.machine()


# What oneDNN may use, from the least to the most, and the flags that each step adds to the one before
# (oneDNN's documentation, "CPU Dispatcher Control").
STEPS = {
    "SSE41": ("sse4_1",),
    "AVX": ("avx",),
    "AVX2": ("avx2", "fma"),
    "AVX2_VNNI": ("avx_vnni",),
    "AVX512_CORE": ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
    "AVX512_CORE_VNNI": ("avx512_vnni",),
    "AVX512_CORE_BF16": ("avx512_bf16",),
    "AVX512_CORE_FP16": ("avx512_fp16",),
    "AVX512_CORE_AMX": ("amx_tile", "amx_bf16", "amx_int8"),
}


def processor_flags(information: str | None = None) -> frozenset[str]:
    """The instruction sets that the processor names, such as "avx512_bf16", without those that
    ONEDNN_MAX_CPU_ISA, in the environment, forbids."""
    flags = frozenset(processor_entry("flags", information).split())
    most, steps = held_to(), list(STEPS)
    forbidden = steps[steps.index(most) + 1 :] if most else []
    return flags.difference(*[STEPS[step] for step in forbidden])


def held_to() -> str:
    """The step that ONEDNN_MAX_CPU_ISA allows at most; empty where it forbids nothing."""
    most = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    return most if most in STEPS else ""


def multiplies_bfloat16() -> bool:
    """Returns whether the processor multiplies bfloat16 in hardware."""
    return bool({"avx512_bf16", "amx_bf16"} & processor_flags())


def installed_versions(*packages: str) -> dict[str, str]:
    """The versions of those packages that are installed."""
    from importlib.metadata import PackageNotFoundError, version  # slow to import

    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
