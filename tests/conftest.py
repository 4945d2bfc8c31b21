"""Shared fixtures. Nothing a test does reaches the user's cache or the network."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gpu_report import pytest_addoption, pytest_configure  # noqa: F401  # hooks
from processes import Server, serving

# As in `make test`: sums in one order, in this process and in those it starts. PyTorch is not loaded yet.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts what it runs in the background deaf to Ctrl-C, and its children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory):
    """PGSR_CACHE is a folder of this session's; subprocesses inherit it."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGSR_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def precision() -> Iterator[str]:
    """Recipes train in float32 on every machine, or in what PGSR_PRECISION says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGSR_PRECISION", os.environ.get("PGSR_PRECISION") or "float32")
        yield os.environ["PGSR_PRECISION"]


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """A command that ends with a line is deaf to Ctrl-C from then on; here it shares its process."""
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty PGSR_CACHE for one test."""
    monkeypatch.setenv("PGSR_CACHE", str(tmp_path / "own-cache"))
    return tmp_path / "own-cache"


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared archive of 40 drawn pictures at 16 and 8."""
    from pgsr.trainer.data.cli import Settings, prepare

    path = tmp_path_factory.mktemp("toy") / "toy.zip"
    prepare([], path, Settings((16, 8), "lanczos", "png", 95), drawn=40)
    return path


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, cache: Path, precision: str) -> Iterator[Server]:
    """Starts real pgsr-train processes quickly."""
    with serving(tmp_path_factory.mktemp("output")) as found:
        yield found


@pytest.fixture(scope="session")
def command() -> Callable[..., Result]:
    """Runs a click command in this process: command(main, "--flag", value) -> its exit code and output."""

    def run(main, *arguments: Any) -> Result:
        result = CliRunner().invoke(main, [str(a) for a in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """disk("size=1m"): a small file system; again with other options, the same one changed."""
    mounted = tmp_path / "disk"
    mounted.mkdir()

    def mount(options: str) -> Path:
        if os.path.ismount(mounted):
            options = f"remount,{options}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(mounted)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this user may not mount file systems")
        return mounted

    yield mount
    if os.path.ismount(mounted):
        subprocess.run(["umount", "-l", str(mounted)], check=True)
