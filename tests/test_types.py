"""`make lint` sees through every door between the folders."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("pgsr", "trainer", "export", "runtime", "benchmarks", "tests")

SYNTHESIZER = "from pgsr.runtime.synthesizer import Synthesizer\nSynthesizer(1, 2, no_such_option=3)"

# Where a wrong call is planted, and the call: one for each direction of the import table, and from the tests.
PLANTED = {
    "pgsr/bundle.py": "from pgsr import draws\ndraws.latents(0, range(2), 8, no_such_option=1)",
    "trainer/loop.py": "from pgsr import checkpoint\ncheckpoint.newest(3).no_such_method()",
    "export/parity.py": "from pgsr import draws\ndraws.latents(0, range(2))",
    "runtime/pipeline.py": "from pgsr.errors import PgsrError\nPgsrError.no_such_method()",
    "benchmarks/harness/timing.py": "from pgsr.files import sha256\nsha256(1)",
    "benchmarks/quality/report.py": "from pgsr.trainer.metrics.score import Score\nScore(1, 2)",
    "benchmarks/modes/report.py": "from pgsr.export.source import read_source\nread_source(0)",
    "benchmarks/ladder/measure.py": SYNTHESIZER,
    "tests/generating.py": SYNTHESIZER,
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout's sources, with what mypy remembers of them if `make lint` has run."""
    out = tmp_path_factory.mktemp("types") / "copy"
    no_data = shutil.ignore_patterns("__pycache__", "*.onnx")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, out / folder, ignore=no_data)
    shutil.copyfile(ROOT / "pyproject.toml", out / "pyproject.toml")
    if (ROOT / ".mypy_cache").is_dir():
        shutil.copytree(ROOT / ".mypy_cache", out / ".mypy_cache")
    return out


def test_a_wrong_call_in_any_direction_is_found(copy: Path):
    for path, code in PLANTED.items():
        file = copy / path
        file.write_text(f"{file.read_text()}\n\n{code}\n")
    done = subprocess.run(
        [sys.executable, str(copy / "tests/types_view.py")], capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 1, done.stdout + done.stderr
    missed = [path for path in PLANTED if f"{path}:" not in done.stdout]
    assert not missed, done.stdout
