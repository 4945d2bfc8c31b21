"""`pytest -m gpu` as a command: it needs a GPU, and leaves one JSON that can be committed."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pgsr import gpu
from pgsr.errors import PgsrError

TESTS = Path(__file__).parent

CONFTEST = f"""
import sys
sys.path[:0] = [{str(TESTS)!r}, {str(TESTS.parent)!r}]
import gpu_report
from gpu_report import pytest_addoption, pytest_configure
from pgsr.gpu import Gpu
FOUND
"""
A_GPU = """
gpu_report.find_gpus = lambda: [Gpu(0, "Card One", "9.0", "580.65.06"), Gpu(1, "Card Two", "7.5", "")]
"""
TESTED = """
import pytest

@pytest.mark.gpu
def test_passes(record_property):
    record_property("psnr_db", 51.5)

@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["a", "b"])
def test_misses(backend):
    if backend == "b":
        pytest.skip("tensorrt is not installed: pip install 'pgsr[trt]'")

@pytest.mark.gpu
def test_fails():
    assert 1 == 2, "not the same"

@pytest.fixture
def broken():
    raise OSError("no such library")

@pytest.mark.gpu
def test_errs(broken):
    pass

def test_of_a_cpu():
    pass
"""


def session(folder: Path, found: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST.replace("FOUND", found))
    (folder / "test_here.py").write_text(TESTED)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: needs one\naddopts = -m 'not gpu'\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)


def test_one_json_with_machine_outcomes_and_figures(tmp_path: Path):
    done = session(tmp_path, A_GPU, "-m", "gpu")
    assert done.returncode == 1  # one test fails
    text = (tmp_path / "gpu-report.json").read_text()
    report = json.loads(text)
    assert report["gpus"][0] == {"name": "Card One", "compute_capability": "9.0"}
    assert report["gpus"][1]["name"] == "Card Two"
    assert report["driver"] == "580.65.06"
    assert report["selected"] == ["-q", "-p", "no:cacheprovider", "-m", "gpu"]
    assert report["summary"] == {"passed": 2, "failed": 2, "skipped": 1}
    tests = {name.partition("::")[2]: entry for name, entry in report["tests"].items()}
    assert set(tests) == {"test_passes", "test_misses[a]", "test_misses[b]", "test_fails", "test_errs"}
    assert tests["test_passes"]["figures"] == {"psnr_db": 51.5}
    assert tests["test_misses[b]"]["why"] == "tensorrt is not installed: pip install 'pgsr[trt]'"
    assert tests["test_fails"]["why"].startswith("AssertionError: not the same")
    assert tests["test_errs"] | {"seconds": 0} == {
        "outcome": "failed",
        "seconds": 0,
        "why": "OSError: no such library",
    }
    for private in (socket.gethostname(), str(tmp_path), str(TESTS.parent), os.environ.get("USER") or "?"):
        assert f'"{private}' not in text
    assert "torch" in report["libraries"]


def test_it_is_written_where_it_is_wanted_and_only_by_that_command(tmp_path: Path):
    assert session(tmp_path, A_GPU).returncode == 0
    assert not (tmp_path / "gpu-report.json").exists()
    done = session(tmp_path, A_GPU, "-m", "gpu", "-k", "passes", "--gpu-report", "mine.json")
    assert done.returncode == 0, done.stdout
    report = json.loads((tmp_path / "mine.json").read_text())
    assert report["summary"] == {"passed": 1, "failed": 0, "skipped": 0}
    assert "-k" in report["selected"]


def test_the_page_names_every_file_with_such_tests():
    page = (TESTS.parent / "docs" / "gpu.md").read_text()
    named = re.findall(r"`(tests/test_\S+\.py)`", page)
    marked = [p for p in TESTS.rglob("test_*.py") if "mark.gpu" in p.read_text() and p != Path(__file__)]
    assert len(marked) >= 5
    for path in marked:
        assert any(path.match(pattern) for pattern in named), path.name


def test_without_a_gpu_it_does_not_pass(tmp_path: Path):
    try:
        gpu.find_gpu()
        pytest.skip("there is a GPU here")
    except PgsrError as error:
        sentence = str(error)
    done = session(tmp_path, "", "-m", "gpu")
    assert done.returncode == 4
    assert f"-m gpu needs a GPU: {sentence}" in done.stderr
    assert not (tmp_path / "gpu-report.json").exists()
