"""Every command under every fault: nothing half-written has a result's name, nothing is lost that was done,
and the same command again ends with the bytes of one that nothing disturbed.

The table of what is promised is tests/faults.py. Instants are random, from a seed that is the test's name.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import upscaling
from pgsr.checkpoint import load
from pgsr.files import is_temporary
from pictures import png
from processes import EVERY_STEP, FAKETIME, TRAINING, Process, Server, faked_time, jump, metrics, serving
from serving import write_model

MODULES = (
    *("pgsr.trainer.data.cli", "onnxruntime", "pgsr.runtime.generate.cli", "pgsr.runtime.generate.write"),
    *("pgsr.runtime.upscale.cli", "pgsr.runtime.upscale.run"),
)
SLOW_MODULES = (
    *(*TRAINING, *MODULES, "onnx", "onnxscript", "torch.onnx", "torch.export", "matplotlib.figure"),
    *("pgsr.export.bundle_builder", "pgsr.export.importers", "pgsr.export.source"),
    *("pgsr.benchmarks.conv.measure", "pgsr.benchmarks.conv.report", "pgsr.trainer.data.celebahq.cli"),
)
ALIKE = ("--device", "cpu", "--backend", "onnxruntime", "--threads", "1")
FACES = 400


@dataclass(frozen=True)
class Command:
    """A command on a tiny model."""

    module: str
    arguments: Callable[[Path, Path], list[Any]]  # of the inputs' folder and where it writes
    reads: str = ""  # what of the inputs
    again: tuple[str, ...] = ()  # options of the command that goes on
    is_slow: bool = False  # needs PyTorch, or seconds


def generating(out: str) -> Command:
    def arguments(inputs: Path, place: Path) -> list[Any]:
        where = "-" if out == "-" else place / out
        return ["--model", inputs / "bundle", "--out", where, "--count", FACES, "--batch", "64", *ALIKE]

    return Command("pgsr.runtime.generate.cli", arguments, "bundle")


COMMANDS: dict[str, Command] = {
    "train": Command(
        "pgsr.trainer.cli",
        lambda inputs, place: [
            *(inputs / "every.toml", "--data", inputs / "toy.zip", "--out", place / "run", "--device", "cpu"),
        ],
        "toy.zip",
        ("--resume",),
        is_slow=True,
    ),
    "data": Command(
        "pgsr.trainer.data.cli",
        lambda inputs, place: [inputs / "photos", "--out", place / "a.zip", "--sizes", "16,8"],
        "photos",
    ),
    "celeba-hq": Command(
        "pgsr.trainer.data.celebahq.cli",
        lambda inputs, place: [
            *("--procedural", "6", "--size", "32", "--oversampling", "1", "--keep", "3", "--processes", "1"),
            *("--out", place / "hq"),
        ],
        is_slow=True,
    ),
    "export": Command(
        "pgsr.export.cli",
        lambda inputs, place: [inputs / "run", "--out", place / "bundle"],
        "run",
        is_slow=True,
    ),
    "folder": generating("faces"),
    "tar": generating("faces.tar"),
    "zip": generating("faces.zip"),
    "stdout": generating("-"),
    "upscale": Command(
        "pgsr.runtime.upscale.cli",
        lambda inputs, place: [
            *(inputs / "photos", "--out", place / "larger", "--model", inputs / "upscaler", *ALIKE),
        ],
        "photos",
    ),
    "bench": Command(
        "pgsr.benchmarks.cli",
        lambda inputs, place: [
            *("conv", "--channels", "4,8", "--resolutions", "4", "--form", "plain", "--layout", "NCHW"),
            *("--precision", "fp32", "--backend", "onnxruntime", "--rounds", "1", "--threads", "1"),
            *("--call-seconds", "0.0001", "--out", place / "report"),
        ],
        is_slow=True,
    ),
}
ALL = [pytest.param(name, marks=pytest.mark.slow if c.is_slow else ()) for name, c in COMMANDS.items()]


def some(*left_out: str) -> list[Any]:
    return [parameter for parameter in ALL if parameter.values[0] not in left_out]


# ----------------------------------------------------------------------------
# The commands, undisturbed.


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory, cache: Path, precision: str) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("output"), MODULES) as found:
        yield found


@pytest.fixture(scope="module")
def slow_forks(tmp_path_factory: pytest.TempPathFactory, cache: Path, precision: str) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("slow-output"), SLOW_MODULES) as found:
        yield found


@pytest.fixture(scope="module")
def inputs(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_model(folder / "bundle")
    upscaling.write_upscaler(folder / "upscaler")
    (folder / "photos").mkdir()
    for i in range(8):
        (folder / "photos" / f"{i}.png").write_bytes(png(24, i))
    shutil.copy(toy, folder / "toy.zip")
    (folder / "every.toml").write_text(EVERY_STEP)
    return folder


@dataclass
class Bench:
    """Starts a command at a place, and knows what it makes when nothing disturbs it."""

    forks: Server
    inputs: Path
    name: str
    folder: Path
    whole: dict[str, object]
    seconds: float

    def start(self, place: Path, inputs: Path | None = None, **faults: Any) -> Process:
        return started(self.forks, self.name, inputs or self.inputs, place, **faults)

    def ends_as_if_nothing_had_been(self, place: Path) -> None:
        """The same command again, without a fault."""
        process = self.start(place)
        assert process.wait() == 0, process.stderr
        assert "Traceback" not in process.stderr
        assert_same(contents(place), self.whole)


def started(forks: Server, name: str, inputs: Path, place: Path, **faults: Any) -> Process:
    """A command, or the one that goes on where something is there."""
    place.mkdir(exist_ok=True)
    command = COMMANDS[name]
    again = command.again if place != inputs and any(place.iterdir()) else ()
    if name == "stdout":
        faults.setdefault("stdout", str(place / "pixels"))
    return forks.start(*command.arguments(inputs, place), *again, command=command.module, **faults)


@pytest.fixture(scope="module")
def wholes() -> dict[str, tuple[dict[str, object], float]]:
    return {}


@pytest.fixture
def bench(request: pytest.FixtureRequest, inputs: Path, tmp_path: Path, wholes: dict[str, Any]) -> Bench:
    name = request.node.callspec.params["name"]
    forks: Server = request.getfixturevalue("slow_forks" if COMMANDS[name].is_slow else "forks")
    if name == "export" and not (inputs / "run").exists():
        assert started(forks, "train", inputs, inputs).wait() == 0
    if name not in wholes:
        for place in (tmp_path / "warming", tmp_path / "whole"):  # the first fills caches
            began = time.monotonic()
            process = started(forks, name, inputs, place)
            assert process.wait() == 0, process.stderr
            seconds = time.monotonic() - began
        wholes[name] = contents(tmp_path / "whole"), seconds
        assert wholes[name][0]
    return Bench(forks, inputs, name, tmp_path, *wholes[name])


def contents(place: Path) -> dict[str, object]:
    """Everything that lies there, by its relative path. Of what clocks decide, only the form counts."""
    found: dict[str, object] = {}
    for path in sorted(place.rglob("*")):
        if path.is_dir() or "tensorboard" in path.parts:
            continue
        name = str(path.relative_to(place))
        if path.name == "metrics.jsonl":
            found[name] = metrics(path.parent)
        elif path.suffix == ".safetensors":
            held = load(path)
            tensors = {k: v.numpy().tobytes() for k, v in sorted(held.tensors.items())}
            found[name] = (held.config, held.progress, held.provenance, tensors)
        elif path.name == "conv.rows.jsonl":
            found[name] = [sorted(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.name.startswith("conv."):
            found[name] = bool(path.read_bytes())
        else:
            found[name] = path.read_bytes()
    return found


def assert_same(found: dict[str, object], expected: dict[str, object]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


def assert_a_line(process: Process) -> None:
    """Ended with 1 and one line."""
    assert process.code == 1, (process.code, process.stderr)
    lines = process.stderr.replace("\r", "\n").splitlines()
    assert len([x for x in lines if x.startswith("error: ") or x == "Aborted!"]) == 1, process.stderr


def assert_ended_well(process: Process, *codes: int) -> None:
    """With one of these codes, or 0; without a traceback."""
    code = process.wait()
    assert code in (0, *codes), (code, process.stderr)
    assert "Traceback" not in process.stderr
    assert "Exception ignored" not in process.stderr
    if code == 1:
        assert_a_line(process)


def half_written(place: Path) -> list[Path]:
    return [path for path in place.rglob("*") if is_temporary(path.name)]


def names_of_results(place: Path, whole: dict[str, object]) -> None:
    """Whatever is there by a result's name is whole, where results do not grow."""
    for path in place.rglob("*"):
        if path.suffix == ".safetensors" and not path.name.startswith("."):
            load(path)
        name = str(path.relative_to(place))
        if path.suffix in (".png", ".zip", ".tar", ".onnx") and name in whole and path.is_file():
            assert path.read_bytes() == whole[name], f"{name} is there and not whole"


# ----------------------------------------------------------------------------
# Signals at random instants.

Codes = tuple[int, ...]
SIGNALS: dict[str, tuple[tuple[int, ...], Codes]] = {  # what is sent -> with what it may end, beside 0
    "kill": ((signal.SIGKILL,), (-signal.SIGKILL,)),
    "terminate": ((signal.SIGTERM,), (128 + signal.SIGTERM, -signal.SIGTERM)),
    "interrupt": ((signal.SIGINT,), (1, 130)),
    "interrupt twice": ((signal.SIGINT, signal.SIGINT), (1, 130)),
}


def disturb(bench: Bench, what: str, count: int) -> int:
    """Runs that get a signal at random instants and go on, until so many have come before the end; each run
    ends as one that nothing disturbed. Gives back how many processes were disturbed."""
    numbers, codes = SIGNALS[what]
    instants, disturbed, runs = random.Random(f"{what} {bench.name}"), 0, 0
    while disturbed < count:
        place = bench.folder / f"{what}-{runs}"
        runs += 1
        assert runs < 20 * count, "no process lived as long as its signal"
        while disturbed < count:
            process = bench.start(place)
            if process.ended(instants.uniform(0.0, 0.9 * bench.seconds)):
                assert process.wait() == 0, process.stderr
                break
            for number in numbers:
                process.send(number)
                process.ended(instants.uniform(0.0, 0.03))
            assert_ended_well(process, *codes)
            names_of_results(place, bench.whole)
            if process.code not in (-signal.SIGKILL, -signal.SIGTERM):
                assert half_written(place) == []
            disturbed += process.code != 0 or bench.name == "train"
        bench.ends_as_if_nothing_had_been(place)
        shutil.rmtree(place)
    return disturbed


@pytest.mark.parametrize("what", SIGNALS)
@pytest.mark.parametrize("name", ALL)
def test_a_signal(bench: Bench, name: str, what: str):
    disturb(bench, what, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_200_kills(bench: Bench, name: str):
    """PGSR_KILLS is another number."""
    count = int(os.environ.get("PGSR_KILLS", "200"))
    print(f"{name}: {disturb(bench, 'kill', count)} kills")


def test_sigterm_while_the_reader_hangs(forks: Server, inputs: Path, tmp_path: Path):
    """Somebody has opened the pipe and reads nothing."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    process = started(forks, "stdout", inputs, tmp_path / "place", stdout=str(pipe))
    assert not process.ended(1.0)
    process.send(signal.SIGTERM)
    assert process.ended(10.0), "it waits for its reader"
    assert_ended_well(process, 128 + signal.SIGTERM)
    os.close(reader)


# ----------------------------------------------------------------------------
# What cannot be written.


def sizes_of(bench: Bench) -> list[int]:
    """Bytes of every file of a command that nothing disturbed."""
    place = bench.folder / "sizes"
    assert bench.start(place).wait() == 0
    return [path.stat().st_size for path in place.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ALL)
def test_a_full_disk(bench: Bench, name: str, disk: Callable[[str], Path]):
    pages = sum(-(-size // 4096) for size in sizes_of(bench))
    place = disk(f"size={4 * max(1, int(0.6 * pages))}k") / "place"
    process = bench.start(place)
    process.wait()
    assert_a_line(process)
    assert any(x in process.stderr for x in ("no space left for", "No space left on device")), process.stderr
    names_of_results(place, bench.whole)
    assert half_written(place) == []
    disk("size=100m")
    bench.ends_as_if_nothing_had_been(place)


@pytest.mark.parametrize("name", ALL)
def test_a_file_that_may_not_grow(bench: Bench, name: str):
    """RLIMIT_FSIZE, as ulimit -f sets it."""
    place = bench.folder / "place"
    process = bench.start(place, file_bytes=int(0.6 * max(sizes_of(bench))))
    process.wait()
    assert_a_line(process)
    assert "File too large" in process.stderr
    assert half_written(place) == []
    bench.ends_as_if_nothing_had_been(place)


@pytest.mark.parametrize("name", some("stdout"))
def test_a_folder_that_is_read_only(bench: Bench, name: str):
    place = bench.folder / "place"
    place.mkdir(mode=0o555)
    process = bench.start(place, privileged=False)
    process.wait()
    assert_a_line(process)
    assert "cannot write" in process.stderr
    assert list(place.iterdir()) == []
    place.chmod(0o755)
    bench.ends_as_if_nothing_had_been(place)


def rights(place: Path, mode: int) -> None:
    """Of a folder and those in it."""
    for path in [place, *place.rglob("*")]:
        with suppress(OSError):
            if path.is_dir():
                path.chmod(mode)


@pytest.mark.parametrize("name", some("stdout"))
def test_permission_that_is_lost_in_the_middle(bench: Bench, name: str):
    place = bench.folder / "place"
    process = bench.start(place, privileged=False)
    process.ended(random.Random(name).uniform(0.1, 0.8) * bench.seconds)
    rights(place, 0o555)
    assert_ended_well(process, 1)
    rights(place, 0o755)
    names_of_results(place, bench.whole)
    bench.ends_as_if_nothing_had_been(place)


@pytest.mark.parametrize("name", some("stdout"))
def test_a_folder_that_is_removed_in_the_middle(bench: Bench, name: str):
    place = bench.folder / "place"
    process = bench.start(place)
    process.ended(random.Random(name).uniform(0.1, 0.8) * bench.seconds)
    for _ in range(3):
        with suppress(OSError):
            shutil.rmtree(place)
    assert_ended_well(process, 1)
    shutil.rmtree(place, ignore_errors=True)
    bench.ends_as_if_nothing_had_been(place)


@pytest.mark.parametrize("name", [p for p in ALL if COMMANDS[p.values[0]].reads])
def test_inputs_that_may_not_be_read(bench: Bench, name: str):
    """A file, or a folder that may not be entered."""
    place, inputs = bench.folder / "place", bench.folder / "inputs"
    shutil.copytree(bench.inputs, inputs)
    reads = inputs / COMMANDS[name].reads
    mode = reads.stat().st_mode
    reads.chmod(0)
    process = bench.start(place, inputs, privileged=False)
    assert_ended_well(process, 1)
    assert process.code == 1
    assert str(reads) in process.stderr
    reads.chmod(mode)
    bench.ends_as_if_nothing_had_been(place)


@pytest.mark.parametrize("name", [p for p in ALL if COMMANDS[p.values[0]].reads])
@pytest.mark.parametrize("how", ["removed", "cut"])
def test_inputs_that_change_in_the_middle(bench: Bench, name: str, how: str):
    """What is read is removed, or half of every file; then it is what it was."""
    place, inputs = bench.folder / "place", bench.folder / "inputs"
    shutil.copytree(bench.inputs, inputs)
    process = bench.start(place, inputs)
    process.ended(random.Random(name + how).uniform(0.05, 0.7) * bench.seconds)
    reads = inputs / COMMANDS[name].reads
    if how == "removed":
        reads.rename(inputs / "away")
    else:
        for path in [reads] if reads.is_file() else [p for p in reads.rglob("*") if p.is_file()]:
            os.truncate(path, path.stat().st_size // 2)
    assert_ended_well(process, 1)
    assert half_written(place) == []
    bench.ends_as_if_nothing_had_been(place)


# ----------------------------------------------------------------------------
# Limits.


@pytest.mark.parametrize("name", ALL)
def test_few_handles(bench: Bench, name: str):
    place = bench.folder / "place"
    for handles in random.Random(name).sample(range(1, 16), 3):
        assert_ended_well(bench.start(place, handles=handles), 1)
    bench.ends_as_if_nothing_had_been(place)


@pytest.mark.parametrize("name", ALL)
def test_little_memory(bench: Bench, name: str):
    """RLIMIT_AS, as ulimit -v sets it: a few MB more than what is loaded."""
    place = bench.folder / "place"
    for megabytes in random.Random(name).sample(range(1, 100), 2):
        assert_ended_well(bench.start(place, memory_bytes=megabytes * 2**20), 1)
    bench.ends_as_if_nothing_had_been(place)


@pytest.mark.parametrize("name", ALL)
def test_a_cache_that_cannot_be_written(bench: Bench, name: str):
    place = bench.folder / "place"
    environment = {"PGSR_CACHE": "/proc/none", "TMPDIR": str(bench.folder)}
    assert_ended_well(bench.start(place, environment=environment))
    bench.ends_as_if_nothing_had_been(place)


# ----------------------------------------------------------------------------
# Two at once.


@pytest.mark.parametrize("name", some("stdout"))
def test_two_processes_on_one_output(bench: Bench, name: str, command: Callable[..., Any]):
    """One waits, is refused in a line, or shares the work; what is there in the end is whole."""
    place = bench.folder / "place"
    process = bench.start(place)
    process.ended(random.Random(name).uniform(0.0, 0.6) * bench.seconds)
    other = COMMANDS[name]
    again = other.again if any(place.iterdir()) else ()
    result = command(
        importlib.import_module(other.module).main, *other.arguments(bench.inputs, place), *again
    )
    assert result.exit_code in (0, 1), result.output
    if result.exit_code:
        assert result.stderr.splitlines()[-1].startswith("error: ")
    assert_ended_well(process, 1)
    assert 0 in (process.code, result.exit_code)
    bench.ends_as_if_nothing_had_been(place)


# ----------------------------------------------------------------------------
# What the system does rarely.

MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")  # of cgroups(7), version 1


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A group of processes that get little memory."""
    group = MEMORY_GROUPS / f"pgsr-faults-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("this user may not limit the memory of processes")
    yield group
    group.rmdir()


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_the_kernel_kills_for_want_of_memory(bench: Bench, name: str, memory_group: Path):
    """As in a container whose limit is too low. Where it is not, the command ends well."""
    place, random_ = bench.folder / "place", random.Random(name)
    killed = 0
    for _ in range(5):
        process = bench.start(place)
        limit = int(random_.uniform(1, 8)) * 2**20
        (memory_group / "memory.limit_in_bytes").write_text(str(limit))
        with suppress(ProcessLookupError):
            (memory_group / "cgroup.procs").write_text(str(process.id))
        assert_ended_well(process, -signal.SIGKILL, 1)
        names_of_results(place, bench.whole)
        killed += process.code == -signal.SIGKILL
    print(f"{name}: {killed} of 5 were killed")
    bench.ends_as_if_nothing_had_been(place)


@pytest.mark.slow
@pytest.mark.skipif(not FAKETIME.exists(), reason="apt-get install faketime")
@pytest.mark.parametrize("name", ALL)
def test_a_clock_that_jumps(bench: Bench, name: str):
    """Back and forth by a year, again and again, while the command works: the same bytes."""
    place, clock = bench.folder / "place", bench.folder / "clock"
    place.mkdir()
    command = COMMANDS[name]
    program = f"from {command.module} import main; main()"
    environment = {**os.environ, **faked_time(clock), "PYTHONPATH": str(Path(__file__).parents[1])}
    with open(place / "pixels" if name == "stdout" else os.devnull, "wb") as stdout:
        process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, command.arguments(bench.inputs, place))],
            stdout=stdout,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
        jumps = 0
        while process.poll() is None:
            jumps += 1
            jump(clock, jumps)
            time.sleep(0.02)
        assert process.stderr is not None
        said = process.stderr.read()
        process.stderr.close()
    assert process.returncode == 0, said
    assert jumps > 5
    assert_same(contents(place), bench.whole)
