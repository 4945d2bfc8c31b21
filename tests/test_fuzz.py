"""Every seed again, and a few odd inputs for every reader; `make fuzz` goes on for longer."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mutations import changed_bytes

pytest.importorskip("hypothesis")
pytest.importorskip("lmdb")

from hypothesis import HealthCheck, given, settings

from fuzz import harness, targets
from fuzz.harness import Case, Defect, Tally, Target, check
from pgsr.errors import PgsrError

FEW = {"bytes": 25, "built": 5}  # cases of each target in each way


@pytest.fixture(scope="module", params=targets.MODULES)
def module(request: pytest.FixtureRequest) -> list[Target]:
    return targets.of_module(request.param)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """As with the commands, nobody is told what Pillow says of damage."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


def answered(target: Target, data: bytes) -> bool:
    try:
        return check(target, data)
    except Defect as defect:
        pytest.fail(f"{target.name} {data[:200]!r}: {defect}")


def test_valid_inputs_are_read(module: list[Target]):
    """Else the targets would try nothing but the first bytes."""
    for target in module:
        refused = [data[:60] for data in target.valid() if not answered(target, data)]
        assert not refused, target.name


def test_what_was_answered_wrongly_once(module: list[Target]):
    for target in module:
        for path in target.kept:
            answered(target, path.read_bytes())


def test_changed_bytes(module: list[Target]):
    for target in module:
        seeds = target.seeds()
        for number in range(FEW["bytes"]):
            draw = random.Random(f"{target.name} {number}")
            answered(target, changed_bytes(draw.choice(seeds), draw))


def test_odd_inputs_that_are_sound_outside(module: list[Target]):
    for target in module:
        if target.built is not None:
            _try_built(target)


def _try_built(target: Target) -> None:
    assert target.built is not None
    inputs = target.built()

    @settings(
        database=None,
        deadline=None,
        derandomize=True,
        max_examples=FEW["built"],
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def one(data: bytes) -> None:
        answered(target, data)

    one()


def test_every_kept_input_belongs_to_a_target():
    names = {target.name for name in targets.MODULES for target in targets.of_module(name)}
    assert {path.name for path in harness.SEEDS.iterdir() if path.is_dir()} <= names


# ----------------------------------------------------------------------------
# The harness notices what it is for.

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """As training has it, so that memory grows once alone."""
    for threshold in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
        harness.LIBC.mallopt(threshold, 2**30)
    yield
    for threshold in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
        harness.LIBC.mallopt(threshold, 128 * 2**10)  # glibc's own


def takes_long(data: bytes) -> None:
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass


def takes_memory(data: bytes) -> None:
    bytearray(b"x" * 80 * 2**20)


def says_much(data: bytes) -> None:
    raise PgsrError("")


def fails(data: bytes) -> None:
    raise KeyError(data)


@pytest.mark.parametrize(
    ("read", "words"),
    [(takes_long, r"0\.\d seconds"), (takes_memory, "MB"), (says_much, "letters"), (fails, "KeyError at")],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_a_defect_is_noticed(read, words: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(harness, "SECONDS", 0.03 if read is takes_long else 60)
    monkeypatch.setattr(harness, "BYTES", 40 * 2**20)
    with freed_memory_kept(), pytest.raises(Defect, match=words):
        check(Target("x", read, lambda: []), b"x")


def test_a_refusal_is_none():
    def refuses(data: bytes) -> None:
        if data:
            raise PgsrError("no")

    target = Target("x", refuses, lambda: [])
    assert check(target, b"")
    assert not check(target, b"a")


def test_one_input_of_each_defect_is_kept_and_all_are_counted(tmp_path: Path):
    tally = Tally(tmp_path / "counts")
    case = Case(Target("x", fails, lambda: []), tally, tmp_path / "found")
    for data in (b"a", b"b", b"c"):
        case(data)
    assert tally.counts == [0, 0, 3, 1]
    assert Tally(tmp_path / "counts").counts == [0, 0, 3, 1]  # as another process sees it
    (kept,) = (tmp_path / "found" / "x").iterdir()
    assert kept.read_bytes() == b"a"
    assert "KeyError at tests/test_fuzz.py" in (tmp_path / "found" / "defects.txt").read_text()


def command(*arguments: object) -> str:
    program = [sys.executable, str(Path(__file__).parent / "fuzz"), *map(str, arguments)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_takes_too_much_once_is_tried_again(monkeypatch: pytest.MonkeyPatch):
    """As the first case does, which loads a library, and cases on a busy machine."""
    calls: list[bytes] = []

    def slow_at_first(data: bytes) -> None:
        calls.append(data)
        if len(calls) == 1:
            takes_long(data)

    monkeypatch.setattr(harness, "SECONDS", 0.03)
    assert check(Target("x", slow_at_first, lambda: []), b"x")
    assert calls == [b"x", b"x"]


def test_counts_of_several_runs_are_added_up(tmp_path: Path):
    runs = [
        ("zip", "bytes", 10, 80, 2, 1, 0),
        ("zip", "bytes", 0, 8, 0, 0, 0),
        ("tar", "built", 1, 3, 0, 0, 1),
    ]
    names = ("target", "way", "read", "refused", "defects", "different", "crashes")
    lines = [json.dumps({**dict(zip(names, run, strict=True)), "seconds": 1.0}) for run in runs]
    (tmp_path / "counts.jsonl").write_text("\n".join(lines) + "\n")
    told = command("--counts", "--found", tmp_path)
    assert "| zip | 100 | 0 | 10.0% | 1 |\n| tar | 0 | 5 | 20.0% | 1 |\n" in told
    assert told.endswith("\n105 cases\n")


@pytest.mark.slow
def test_the_command(tmp_path: Path):
    """Both ways, guided by coverage where atheris is; one seed draws the same inputs again."""
    told = [
        command("--cases", 100, "--found", tmp_path / "found", "--seed", 3, "seed-list") for _ in range(2)
    ]
    assert "| seed-list | bytes | 100 |" in told[0]
    assert "| seed-list | built |" in told[0]
    rows = [[line.rpartition("|")[0].rpartition("|")[0] for line in text.splitlines()] for text in told]
    assert rows[0] == rows[1]
