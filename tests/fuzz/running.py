"""Runs targets and tells what came of them.

Two ways of making inputs take turns: bytes that libFuzzer mutates by the coverage of pgsr's code (atheris),
and what the target's hypothesis strategy builds out of them. Without atheris, bytes are changed at random.

A module's targets are loaded in one process; it forks for each turn, since libFuzzer ends its process, and so
does a library that an input brings down.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

WAYS = ("bytes", "built")
HANGS = 300  # seconds of the clock, after which a case is given up: a busy machine takes a hundred for two
MEMORY = 4096  # MB that a process may take beside what it has before the first case
LONGEST = 2**14  # bytes of an input, or twice those of the longest seed
MOST_CRASHES = 5  # of a target and way, after which the next one's turn comes


@dataclass(frozen=True)
class Order:
    """A turn of a target."""

    target: str
    way: str
    found: str  # the folder for what is answered wrongly
    seconds: float  # 0: as long as the cases take
    cases: int  # 0: as many as there is time for
    seed: int  # of what is drawn


@dataclass(frozen=True)
class Told:
    """What came of a turn."""

    target: str
    way: str
    read: int
    refused: int
    defects: int
    different: int
    crashes: int
    seconds: float

    @property
    def cases(self) -> int:
        return self.read + self.refused + self.defects + self.crashes


def run(module: str, orders: Sequence[Order]) -> Iterator[Told]:
    """What came of each turn of a module's targets, as they end."""
    with tempfile.TemporaryDirectory(prefix="pgsr-fuzz-") as folder:
        environment = os.environ | {"PGSR_CACHE": folder, "TMPDIR": folder, "OMP_NUM_THREADS": "1"}
        environment["PYTHONHASHSEED"] = "0"
        environment |= {
            "MALLOC_ARENA_MAX": "2"
        }  # each takes 64 MB of addresses, as many as there are processors
        command = [sys.executable, str(Path(__file__).parent), "--turns", module]
        command.append(json.dumps([asdict(order) for order in orders]))
        with (
            open(Path(orders[0].found) / f"{module}.log", "ab") as log,
            subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
            ) as process,
        ):
            assert process.stdout is not None
            for line in process.stdout:
                yield Told(**json.loads(line))
        if process.returncode:
            raise SystemExit(f"the process of {module} ended with {process.returncode}: see {log.name}")


# ----------------------------------------------------------------------------
# In the process of a module.


def take_turns(module: str, orders: str) -> None:
    """Prints a line of JSON for each turn."""
    warnings.filterwarnings("ignore", module="PIL")  # as the commands do
    targets = _instrumented(module)
    for values in json.loads(orders):
        order = Order(**values)
        told = _turn(targets[order.target], order)
        print(json.dumps(asdict(told)), flush=True)


def _instrumented(module: str) -> dict[str, Any]:
    """The targets of a module by name; pgsr tells of its coverage where atheris is there."""
    if find_spec("atheris") is None:
        from .targets import of_module

        return {target.name: target for target in of_module(module)}
    import atheris

    with atheris.instrument_imports(include=["pgsr"]):
        from .targets import of_module

        return {target.name: target for target in of_module(module)}


def _turn(target: Any, order: Order) -> Told:
    from .harness import COUNTS

    began, crashes = time.monotonic(), 0
    counts = Path(tempfile.mkstemp(prefix="counts-")[1])
    counts.write_bytes(bytes(COUNTS.size))
    while crashes < MOST_CRASHES:
        done = sum(COUNTS.unpack(counts.read_bytes())[:3]) + crashes
        left = order.seconds - (time.monotonic() - began)
        if (order.seconds and left < 1) or (order.cases and done >= order.cases):
            break
        process = os.fork()
        if process == 0:
            _end_with(_cases, target, order, counts, left, order.cases and order.cases - done)
        if os.waitpid(process, 0)[1] == 0:
            break
        crashes += 1
    read, refused, defects, different = COUNTS.unpack(counts.read_bytes())
    return Told(order.target, order.way, read, refused, defects, different, crashes, time.monotonic() - began)


def _end_with(work: Callable[..., None], *arguments: Any) -> None:
    """Ends the process, which is a fork, with whether the work was done."""
    status = 1
    try:
        work(*arguments)
        status = 0
    except SystemExit as ended:
        status = int(bool(ended.code))
    finally:
        os._exit(status)


def _cases(target: Any, order: Order, counts: Path, seconds: float, cases: int) -> None:
    from .harness import Case, Tally

    log = os.open(
        Path(order.found) / f"{order.target}-{order.way}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND
    )
    os.dup2(log, 1)
    os.dup2(log, 2)
    case: Callable[[bytes], None] = Case(target, Tally(counts), Path(order.found))
    seeds = target.seeds()
    if order.way == "built":
        case, seeds = _through(target.built(), case), []
    most = _addresses() + MEMORY * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))  # who asks for more gets a MemoryError
    turn = _unguided if find_spec("atheris") is None else _guided
    most_seconds = max(1, int(seconds)) if order.seconds else 0
    turn(case, seeds, Path(order.found) / order.target, order.seed, most_seconds, cases)


def _addresses() -> int:
    """Bytes that the process has mapped."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _through(strategy: Any, case: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """A case of what a strategy makes of the bytes."""
    from hypothesis import HealthCheck, given, settings

    @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def one(data: bytes) -> None:
        case(data)

    through: Callable[[bytes], None] = one.hypothesis.fuzz_one_input  # type: ignore[attr-defined]
    return through


def _guided(
    case: Callable[[bytes], None], seeds: Iterable[bytes], crashes: Path, seed: int, seconds: int, cases: int
) -> None:
    import atheris

    corpus = Path(tempfile.mkdtemp(prefix="corpus-"))
    longest = LONGEST
    for number, data in enumerate(seeds):
        longest = max(longest, 2 * len(data))
        (corpus / f"seed-{number}").write_bytes(data)
    crashes.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", f"-artifact_prefix={crashes}/", f"-timeout={HANGS}"]
    options += [f"-runs={cases}"] if cases else []
    options += [f"-seed={1 + seed % 2**31}"]  # 0 is one of libFuzzer's own
    options += [f"-rss_limit_mb={MEMORY}", f"-max_len={longest}", "-print_final_stats=1"]
    atheris.Setup(["fuzz", *options, str(corpus)], case)
    atheris.Fuzz()  # which ends the process


def _unguided(
    case: Callable[[bytes], None], seeds: Sequence[bytes], crashes: Path, seed: int, seconds: int, cases: int
) -> None:
    from mutations import changed_bytes

    end, number = time.monotonic() + seconds, 0
    while (time.monotonic() < end or not seconds) and (number < cases or not cases):
        draw = random.Random(f"{seed} {number}")
        case(changed_bytes(draw.choice(seeds), draw) if seeds else draw.randbytes(draw.randrange(4000)))
        number += 1
