"""A real Triton server for tests: the one in PyTriton's wheel, which has the Python backend alone.

    with serving(repository, tmp_path) as url: ...     # "127.0.0.1:PORT", every model ready

`make triton` makes its environment, .venv-triton; PGSR_TRITON names another one's Python.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = Path(os.environ.get("PGSR_TRITON", ROOT / ".venv-triton/bin/python"))

WHERE = """
import importlib.util, json, sys
name = "pytriton"
spec = importlib.util.find_spec(name)
print(json.dumps([spec and spec.submodule_search_locations[0], "%d.%d" % sys.version_info[:2]]))
"""


@cache
def place() -> tuple[Path, str] | None:
    """PyTriton's folder and the environment's version of Python; None without one."""
    if not PYTHON.is_file():
        return None
    folder, version = json.loads(
        subprocess.run([PYTHON, "-c", WHERE], capture_output=True, check=True).stdout
    )
    return (Path(folder), version) if folder else None


@contextmanager
def serving(repository: Path, scratch: Path) -> Iterator[str]:
    found = place()
    assert found is not None
    package, version = found
    backends = scratch / "backends"
    shutil.copytree(package / "tritonserver/backends", backends)
    stub = backends / "python/triton_python_backend_stub"
    shutil.copy(package / f"tritonserver/python_backend_stubs/{version}/{stub.name}", stub)
    server = package / "tritonserver/bin/tritonserver"
    for file in (stub, server):
        file.chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words: list[str | Path] = [
        *(server, f"--model-repository={repository}", f"--backend-directory={backends}"),
        *("--http-address=127.0.0.1", f"--http-port={port}", "--allow-grpc=false", "--allow-metrics=false"),
    ]
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(package.parent / "nvidia_pytriton.libs"),
        "PATH": f"{PYTHON.parent}:{os.environ['PATH']}",  # its Python, with its packages, runs the models
    }
    with (
        open(scratch / "server.log", "wb") as log,
        subprocess.Popen(words, stdout=log, stderr=log, env=environment) as process,
    ):
        try:
            _wait(process, f"http://127.0.0.1:{port}/v2/health/ready", scratch / "server.log")
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    until = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)
