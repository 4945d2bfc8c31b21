"""The GPU adapters from one end to the other under a stand-in of NVIDIA's driver that keeps its rules, with
cuda-python itself; and every fault that it is there to catch, put back, is caught (recorded.py has both)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import recorded
from recording import has_compiler

pytest.importorskip("cuda.bindings", reason="pip install 'pgsr[trt-rtx]'")

Told = dict[str, dict[str, list[str]]]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """What became of all scenarios and faults; one process does them."""
    if not has_compiler():
        pytest.skip("no C compiler for the stand-in of libcuda")
    folder = tmp_path_factory.mktemp("recorded")
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])}
    done = subprocess.run(
        [sys.executable, str(tests / "recorded.py"), str(folder)],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
        cwd=folder,
    )
    _, found, result = done.stdout.rpartition("RESULT ")
    assert found, done.stdout + done.stderr
    parsed: Told = json.loads(result)
    return parsed


@pytest.mark.parametrize("name", recorded.SCENARIOS)
def test_no_rule_is_broken(told: Told, name: str) -> None:
    """Results are the CPU's, errors are named, and nothing is left."""
    assert told["scenarios"][name] == []


@pytest.mark.parametrize("name", recorded.FAULTS)
def test_a_fault_put_back_is_caught(told: Told, name: str) -> None:
    caught = told["faults"][name]
    assert any(re.search(recorded.FAULTS[name].caught, line) for line in caught), caught
