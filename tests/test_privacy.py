"""Nothing phones home: no command looks up a host, opens a connection or leaves an id in a user's folders."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from processes import EVERY_STEP

SITE = """
import os, sys

def watch(event, arguments):
    if event in ("socket.getaddrinfo", "socket.connect", "socket.gethostbyname", "socket.sendto"):
        with open(os.environ["WATCHED"], "a") as file:
            file.write(f"{event} {arguments}\\n")

sys.addaudithook(watch)
"""


def commands(toy: Path, recipe: Path) -> dict[str, tuple[str, list[str]]]:
    """The whole way, in order: what stands in one is used by the next."""
    faces = ["--count", "2", "--model", "bundle"]
    return {
        "train": ("trainer", [str(recipe), "--data", str(toy), "--out", "run", "--device", "cpu"]),
        "export": ("export", ["run", "--out", "bundle", "--fp16", "--int8"]),
        "generate with ONNX Runtime": (
            "runtime.generate",
            [*faces, "--out", "a", "--backend", "onnxruntime"],
        ),
        "generate with OpenVINO": ("runtime.generate", [*faces, "--out", "b", "--backend", "openvino"]),
        "choose a backend": ("runtime.generate", [*faces, "--out", "c"]),
        "backends": ("runtime.generate", ["backends"]),
        "upscale": ("runtime.upscale", ["a/000000.png", "--out", "large"]),
    }


def test_the_whole_way_tells_nobody(toy: Path, tmp_path: Path):
    home, work, site = (tmp_path / name for name in ("home", "work", "site"))
    for folder in (home, work, site):
        folder.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    recipe, watched = work / "every.toml", tmp_path / "watched"
    recipe.write_text(EVERY_STEP)
    drop = ("XDG_CACHE_HOME", "ORT_DISABLE_TELEMETRY", "CI")  # which some libraries take for a refusal
    environment = {k: v for k, v in os.environ.items() if k not in drop}
    environment |= {"HOME": str(home), "PYTHONPATH": str(site), "WATCHED": str(watched)}
    for name, (module, arguments) in commands(toy, recipe).items():
        if "OpenVINO" in name and find_spec("openvino") is None:
            continue
        program = f"import sys; from pgsr.{module}.cli import main; main(sys.argv[1:])"
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (name, done.stderr)
        assert not watched.exists(), (name, watched.read_text())
        assert not [p for p in home.rglob("*") if p.is_file()], name


def test_openvino_is_imported_without_its_telemetry():
    """And whoever imports that package afterwards finds it."""
    pytest.importorskip("openvino")
    program = (
        "from pgsr.privacy import silent_openvino\n"
        "with silent_openvino():\n"
        "    import openvino\n"
        "from openvino.tools.ovc import telemetry_utils\n"
        "print(telemetry_utils.tm.__name__)\n"
        "import sys; print('openvino_telemetry' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "False"]
