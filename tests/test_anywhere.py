"""Every command as a container's random user: no home, no entry in /etc/passwd, a folder to work in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import EVERY_STEP

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
NOBODY = 54321
HOMES = ("HOME", "USER", "LOGNAME", "PGSR_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")

# In order: what stands in one is used by the next.
WAY = [
    ("pgsr-data", ["--procedural", "24", "--out", "toy.zip", "--sizes", "8,16"]),
    ("pgsr-train", ["every.toml", "--data", "toy.zip", "--out", "run", "--device", "cpu"]),
    ("pgsr-train", ["--status", "run"]),
    ("pgsr-export", ["run", "--out", "bundle"]),
    ("pgsr-export", ["explain", "bundle", "--out", "graph.svg"]),
    ("pgsr-generate", ["--model", "bundle", "--count", "3", "--out", "faces"]),
    ("pgsr-generate", ["--count", "2", "--out", "shipped", "--precision", "int8"]),
    ("pgsr-generate", ["backends"]),
    ("pgsr-upscale", ["faces/000000.png", "--out", "larger"]),
    ("pgsr-serve", ["--help"]),
    ("pgsr-celeba-hq", ["--help"]),
    ("pgsr-bench", ["resample", "--pictures", "1", "--rounds", "1", "--from-size", "64", "--to-size", "16"]),
    ("pgsr-bench", ["swd", "--images", "32", "--resolution", "16"]),
]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in which everybody may write, unlike pytest's."""
    path = Path(tempfile.mkdtemp(prefix="pgsr-anywhere-"))
    for place in (path, path / "temporary"):
        place.mkdir(exist_ok=True)
        place.chmod(0o777)
    (path / "every.toml").write_text(EVERY_STEP)
    yield path
    shutil.rmtree(path)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_the_whole_way_as_nobody(folder: Path):
    assert {name for name, _ in WAY} == set(SCRIPTS)
    environment = {k: v for k, v in os.environ.items() if k not in HOMES}
    environment |= {"TMPDIR": str(folder / "temporary"), "PYTHONDONTWRITEBYTECODE": "1"}
    for name, arguments in WAY:
        module, function = SCRIPTS[name].split(":")
        program = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); from {module} import {function} as main; main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=folder,
            env=environment,
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (name, arguments, done.stderr)
        assert "Traceback" not in done.stderr
    assert (
        folder / "temporary" / f"pgsr-{NOBODY}"
    ).is_dir()  # what is remembered, for as long as that is there
