"""A real Ray cluster on this machine: a head without cores, and nodes of one core each that can be killed.

with local_cluster(2) as cluster:
    command = cluster.generate("--count", "1000", "--shard-size", "100", "--out", "faces")
    cluster.kill_node(0)
    print(cluster.result(command))
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pgsr.errors import missing_package
from pgsr.privacy import silence_ray

T = TypeVar("T")

STARTS = 4  # of a node, before it is given up
STORE_BYTES = 80 * 2**20  # of a node's shared memory
ROOT = Path(__file__).resolve().parents[2]

# Busy machines start Ray's processes slowly; and a dead node is to be noticed within seconds.
PATIENCE = {
    "RAY_raylet_start_wait_time_s": "180",
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_health_check_initial_delay_ms": "3000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_enable_metrics_collection": "0",
    "RAY_worker_niceness": "0",  # else workers are behind all that runs beside them, which the command is not
    "RAY_AUTH_MODE": "disabled",  # else a token is left in the user's home
}
PROGRAM = "import sys; from pgsr.{}.cli import main; main(sys.argv[1:])"


class LocalCluster:
    """Its nodes by number; one that was killed can be started again."""

    def __init__(self, cluster: Any, environments: Sequence[Mapping[str, str]]) -> None:
        self._cluster, self._environments = cluster, environments
        self.address = str(cluster.address)
        self._nodes = [self._start(number) for number in range(len(environments))]
        cluster.wait_for_nodes(timeout=180)

    def _start(self, number: int) -> Any:
        environment = dict(self._environments[number])
        return started(
            lambda: self._cluster.add_node(
                wait=False,
                num_cpus=1,
                object_store_memory=STORE_BYTES,
                env_vars=environment or None,
                **ports(),
            )
        )

    def raylet(self, number: int) -> int:
        """Returns the process of a node's raylet."""
        return int(self._nodes[number].all_processes["raylet"][0].process.pid)

    def workers(self, number: int) -> list[int]:
        """Returns a node's processes that have an actor of pgsr's."""
        return [p for p in children(self.raylet(number)) if b"ray::Worker" in command_line(p)]

    def kill_worker(self, number: int) -> bool:
        """Kills a node's worker; returns whether it had one."""
        workers = self.workers(number)
        for process in workers:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        return bool(workers)

    def kill_node(self, number: int) -> None:
        """Kills a node with all that runs on it, as a machine's end would."""
        raylet = self.raylet(number)
        for process in [raylet, *children(raylet)]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def restart_node(self, number: int) -> None:
        """Starts a node again that was killed."""
        self._cluster.remove_node(self._nodes[number], allow_graceful=False)
        self._nodes[number] = self._start(number)
        self._cluster.wait_for_nodes(timeout=180)

    def generate(self, *arguments: Any) -> subprocess.Popen[str]:
        """Starts pgsr-generate on this cluster."""
        return start("--ray", self.address, *arguments)


def start(
    *arguments: Any, package: str = "runtime.generate", settings: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Starts pgsr-generate, or another package's command, with --json and settings of Ray's own."""
    command = [sys.executable, "-c", PROGRAM.format(package), *(str(a) for a in arguments), "--json"]
    around = {**environment(), **(settings or {})}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=around)


def result(process: subprocess.Popen[str], seconds: float = 600.0) -> dict[str, Any]:
    """Waits for a command that must succeed; returns what it printed. Raises RuntimeError if it fails."""
    try:
        out, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, errors = process.communicate()
        errors += f" (not done after {seconds} s)"
    if process.returncode != 0:
        raise RuntimeError(f"the command ended with {process.returncode}: {errors[-2000:]}")
    return dict(json.loads(out))


def environment() -> dict[str, str]:
    """Returns what processes of the cluster are started with: they find this pgsr."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, **PATIENCE, "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"}


def ports() -> dict[str, int]:
    """Returns free ports for a node's helpers: a raylet that is to find out theirs waits for 15 seconds, and
    dies on a machine that is too busy."""
    names = (
        "metrics_agent_port",
        "metrics_export_port",
        "dashboard_agent_listen_port",
        "runtime_env_agent_port",
    )
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in names]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return {name: one.getsockname()[1] for name, one in zip(names, sockets, strict=True)}


def children(process: int) -> list[int]:
    """Returns all processes below one, of any generation."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            fields = path.read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, rest = [], [process]
    while rest:
        below = parents.get(rest.pop(), [])
        found += below
        rest += below
    return found


def command_line(process: int) -> bytes:
    """Returns a process's command line; nothing if it has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


@contextmanager
def local_cluster(
    nodes: int = 2, environments: Sequence[Mapping[str, str]] | None = None
) -> Iterator[LocalCluster]:
    """Starts a cluster, and ends all of its processes. Raises PgsrError if Ray is missing."""
    silence_ray()
    os.environ.update(environment())
    try:
        from ray.cluster_utils import Cluster
    except ImportError as error:
        raise missing_package("a local cluster", "ray", error) from error
    idle = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}  # what nobody uses
    head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, **idle}
    cluster = started(lambda: Cluster(initialize_head=True, head_node_args={**head, **ports()}))
    try:
        yield LocalCluster(cluster, environments or [{}] * nodes)
    finally:
        below = children(os.getpid())
        cluster.shutdown()
        end(below)


def started(start: Callable[[], T]) -> T:
    """Starts a node, and tries again: Ray gives one 30 seconds, which is too little on busy machines."""
    for attempt in range(STARTS):
        before = children(os.getpid())
        try:
            return start()
        except Exception:  # Ray's has no kind of its own
            end([process for process in children(os.getpid()) if process not in before])
            if attempt == STARTS - 1:
                raise
    raise AssertionError


def end(processes: list[int]) -> None:
    """Ends those of these processes of Ray's that are still there."""
    deadline = time.monotonic() + 5.0
    ours = [p for p in processes if b"ray" in command_line(p)]
    while time.monotonic() < deadline and any(command_line(p) for p in ours):
        time.sleep(0.1)
    for process in ours:
        if b"ray" in command_line(process):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
