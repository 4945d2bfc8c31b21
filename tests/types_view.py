"""Runs mypy over the five folders as the one package that they install as, and over the tests.

    python tests/types_view.py

The folders stand at the root and install as pgsr.trainer, pgsr.export and so on, by a mapping that mypy does
not read: it would take every import across folders for Any. So a folder of links, thrown away afterwards,
shows them in their places.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDERS = ("trainer", "export", "runtime", "benchmarks")


@contextmanager
def linked(root: Path) -> Iterator[Path]:
    """A folder in which `pgsr` holds all five folders of a checkout."""
    with tempfile.TemporaryDirectory(prefix="pgsr-types-") as name:
        package = Path(name) / "pgsr"
        package.mkdir()
        for path in (root / "pgsr").iterdir():
            (package / path.name).symlink_to(path)
        for folder in FOLDERS:
            (package / folder).symlink_to(root / folder)
        yield Path(name)


def check(root: Path) -> int:
    """The worst exit status of mypy over the package, strictly, and over the tests."""
    mypy = [sys.executable, "-m", "mypy"]
    with linked(root) as view:
        # From the view itself: from the checkout, mypy would find the real `pgsr` first.
        strict = ["--config-file", str(root / "pyproject.toml"), "-p", "pgsr"]
        package = subprocess.run([*mypy, "--cache-dir", str(root / ".mypy_cache"), *strict], cwd=view)
        loose = ["--config-file", str(root / "tests/mypy.ini"), str(root / "tests")]
        environment = os.environ | {"MYPYPATH": f"{view}:{root / 'tests'}"}
        tests = subprocess.run(
            [*mypy, "--cache-dir", str(root / ".mypy_cache/tests"), *loose], cwd=view, env=environment
        )
    return max(package.returncode, tests.returncode)


if __name__ == "__main__":
    sys.exit(check(Path(__file__).resolve().parents[1]))
