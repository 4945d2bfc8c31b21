"""pgsr-bench soak: what it calls flat, what it counts, and each of its works for a few seconds."""

from __future__ import annotations

import gc
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from pgsr.benchmarks.cli import main
from pgsr.benchmarks.soak import work
from pgsr.benchmarks.soak.judge import slope_of
from pgsr.benchmarks.soak.measure import Settings, slopes_of, state_of
from pgsr.benchmarks.soak.report import picture, text
from pgsr.errors import PgsrError
from serving import write_model

TIMES = [5.0 * i for i in range(720)]  # an hour
MIB = 2.0**20


def noisy(growth_an_hour: float, deviation: float, seed: int = 0) -> list[float]:
    """Around 300 MiB."""
    draw = random.Random(seed)
    return [300 * MIB + growth_an_hour * t / 3600 + draw.gauss(0, deviation) for t in TIMES]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("growth", "verdict"), [(0.0, "flat"), (0.5 * MIB, "flat"), (12 * MIB, "grows"), (-12 * MIB, "flat")]
)
def test_growth_is_told_from_noise(growth: float, verdict: str, seed: int):
    slope = slope_of(TIMES, noisy(growth, 1.5 * MIB, seed), 0.01, 2 * MIB)
    assert slope is not None
    assert slope.verdict == verdict
    assert slope.lower <= slope.an_hour <= slope.upper
    assert abs(slope.an_hour - growth) < 1.5 * MIB


def test_a_warming_up_and_a_few_spikes_are_no_growth():
    values = noisy(0.0, 0.2 * MIB)
    values[:120] = [200 * MIB + i * MIB / 2 for i in range(120)]
    values[400::40] = [900 * MIB for _ in values[400::40]]
    slope = slope_of(TIMES, values, 0.01, 2 * MIB)
    assert slope is not None
    assert slope.verdict == "flat"


def test_what_is_too_noisy_is_not_called_flat():
    slope = slope_of(TIMES, noisy(0.0, 200 * MIB), 0.01, 2 * MIB)
    assert slope is not None
    assert slope.verdict == "unclear"


def test_the_slope_of_a_line_is_its_own():
    slope = slope_of(TIMES, [7.0 + t / 600 for t in TIMES], 0.0, 0.5)
    assert slope is not None
    assert (slope.an_hour, slope.lower, slope.upper) == (pytest.approx(6.0),) * 3
    assert slope.verdict == "grows"


def test_a_handle_that_is_lost_every_ten_minutes_is_seen():
    slope = slope_of(TIMES, [10.0 + int(t / 600) for t in TIMES], 0.0, 0.5)
    assert slope is not None
    assert slope.verdict == "grows"


def test_few_samples_are_not_judged():
    assert slope_of(TIMES[:30], TIMES[:30], 0.0, 1.0) is None
    assert slope_of([], [], 0.0, 1.0) is None


HOLDING = """
import sys
print(flush=True)
sys.stdin.readline()
held, file = bytearray(b"x" * 40_000_000), open(sys.argv[1])
print(flush=True)
sys.stdin.readline()
"""


def test_a_process_is_looked_at(tmp_path: Path):
    """One of its own: what else happens in this one gives memory back, too."""
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "file").write_bytes(b"12345")
    command = [sys.executable, "-c", HOLDING, str(tmp_path / "below" / "file")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        before = state_of(child.pid, tmp_path)
        child.stdin.write(b"\n")
        child.stdin.flush()
        child.stdout.readline()
        after = state_of(child.pid, tmp_path)
        child.stdin.close()
    assert (before["temporary_files"], before["temporary_bytes"]) == (2, 5)
    assert after["handles"] == before["handles"] + 1
    assert 39_000_000 < after["anonymous_bytes"] - before["anonymous_bytes"] < 45_000_000
    assert after["threads"] == 1
    with pytest.raises(PgsrError, match="has ended"):
        state_of(child.pid, tmp_path)
    with pytest.raises(PgsrError, match="has ended"):
        state_of(2**22 + 1, tmp_path)


@pytest.mark.parametrize(("name", "value"), [("what", "nothing"), ("minutes", 0.0), ("clients", 0)])
def test_settings_without_sense(name: str, value: object):
    with pytest.raises(PgsrError, match=f"--{name}"):
        Settings(**{"what": "serve", name: value})  # type: ignore[arg-type]


def test_other_bytes_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of faces: every round must give the first one's."""
    monkeypatch.setattr(work, "digest_of", lambda path: str(time.monotonic_ns()))
    model = write_model(tmp_path / "model")
    (tmp_path / "work").mkdir()
    with pytest.raises(PgsrError, match="other bytes than the first time"):
        for _ in work.generated(tmp_path / "work", model):
            pass


@pytest.mark.slow
def test_a_resume_leaves_no_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of a run with some 85 tensors, of which a resume once kept two numbers each."""
    monkeypatch.setattr(work, "RECIPE", work.RECIPE.replace("400", "8"))
    monkeypatch.setattr(work, "TOTAL", 24)
    resumes = work.resumed(tmp_path, None)

    def blocks_after(count: int) -> int:
        while next(resumes) < count:
            pass
        gc.collect()
        return sys.getallocatedblocks()

    before = blocks_after(12)
    assert blocks_after(32) - before < 20 * 40


@pytest.mark.slow
@pytest.mark.parametrize("what", ["serve", "generate", "resume"])
def test_each_work_runs(what: str, command, tmp_path: Path):
    options = ["--what", what, "--minutes", 0.1, "--model", write_model(tmp_path / "model")]
    result = command(main, "soak", *options, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["done"] > 0
    assert found["slopes"] == slopes_of(found["samples"])
    assert json.loads((tmp_path / "out" / f"soak-{what}.json").read_text()) == found
    with Image.open(tmp_path / "out" / f"soak-{what}.png") as drawn:
        assert drawn.size == (1000, 900)
    if what == "serve":
        assert found["told"]["failures"] == {}
        assert len(found["told"]["answers"]) >= 3


def test_a_report_says_what_grows():
    samples = [
        {
            **{"seconds": t, "done": int(t), "resident_bytes": r, "anonymous_bytes": r},
            **{"handles": 9, "threads": 4, "temporary_files": 0, "temporary_bytes": 0},
        }
        for t, r in zip(TIMES, noisy(60 * MIB, MIB), strict=True)
    ]
    machine = {"cpu": "a processor", "cores": 1}
    result = {"what": "generate", "minutes": 60, "done": 3600, "told": {}, "machine": machine}
    result |= {"date": "2026-01-01", "samples": samples, "slopes": slopes_of(samples)}
    words = text(result)
    assert words.count("grows") == 2
    assert words.count("flat") == 4
    assert "3,600 faces in 60 min" in words
    assert picture(result).startswith(b"\x89PNG")
