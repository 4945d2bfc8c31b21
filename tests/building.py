"""Builds the wheel of what git tracks: the same bytes in any folder, at any time, by any user.

    python tests/building.py dist   # and the bill of materials of what pgsr[cpu] installs

A wheel remembers when and with which rights its files were written. Here they are written anew, with the time
of the last commit (or SOURCE_DATE_EPOCH) and everybody's rights, by the build tools of constraints.txt.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIRST = 315532800  # 1 January 1980, before which no zip's time can be


def tracked() -> list[Path]:
    """Files that git has or would take, but for the tests, from the root."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = filter(None, listed.split("\0"))
    return [Path(name) for name in names if (ROOT / name).is_file() and not name.startswith("tests/")]


def committed() -> int:
    """Seconds of the last commit."""
    command = ["git", "log", "-1", "--format=%ct"]
    return max(FIRST, int(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout))


def wheel(out: Path) -> Path:
    """Builds the wheel into a folder, from a copy, so that no build folder is left in the checkout."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or str(committed())
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    clean |= {"SOURCE_DATE_EPOCH": epoch, "PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    with tempfile.TemporaryDirectory(prefix="pgsr-wheel-") as folder:
        for name in tracked():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((ROOT / name).read_bytes())
            path.chmod(0o644)
        command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), folder]
        done = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, umask=0o022)
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    (built,) = out.glob("*.whl")
    return built


def environment(wheel: Path, folder: Path, extra: str = "cpu") -> Path:
    """An environment that holds a wheel with an extra, at CI's versions, and nothing else: its Python."""
    venv.create(folder, with_pip=True, clear=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt")]
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    subprocess.run([*pip, f"{wheel}[{extra}]"], env=clean, check=True)
    return python


def bill(python: Path, out: Path) -> Path:
    """Writes what an environment holds as a CycloneDX document, checked against its schema."""
    made = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--validate"]
    made += ["--pyproject", str(ROOT / "pyproject.toml"), "--mc-type", "application"]
    subprocess.run([*made, "--of", "JSON", "-o", str(out), str(python)], check=True, capture_output=True)
    return out


def release(out: Path) -> None:
    built = wheel(out)
    with tempfile.TemporaryDirectory(prefix="pgsr-release-") as folder:
        print(bill(environment(built, Path(folder)), out / f"{built.stem}.cdx.json"))
    print(built)


if __name__ == "__main__":
    release(Path(sys.argv[1]).resolve())
