"""The C library's arenas: a thread more is not memory more that is never given back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pgsr.machine import usable_cores
from pictures import png
from serving import write_model

THREADS = 8 * usable_cores()
ARENAS = f"""
import ctypes, sys, tempfile, threading
{{before}}
barrier = threading.Barrier({THREADS})
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def work():
    held = libc.malloc(5000)
    barrier.wait()
    libc.free(held)
threads = [threading.Thread(target=work) for _ in range({THREADS})]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.fopen.restype, libc.fopen.argtypes = ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_char_p]
libc.malloc_info.argtypes, libc.fclose.argtypes = [ctypes.c_int, ctypes.c_void_p], [ctypes.c_void_p]
with tempfile.NamedTemporaryFile() as file:
    stream = libc.fopen(file.name.encode(), b"w")
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    print(file.read().decode().count("<heap nr="))
"""


def arenas(before: str, *arguments: object) -> int:
    """How many a process has whose threads all hold memory at one time, after `before`."""
    code = ARENAS.replace("{before}", before)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("count", [1, 2, 5])
def test_threads_share_as_many_arenas_as_are_said(count: int):
    assert arenas("") > 5, "the C library makes one a thread, if left alone"
    assert arenas(f"from pgsr.runtime.memory import share_arenas; share_arenas({count})") == count


@pytest.mark.parametrize("command", ["generate", "upscale"])
def test_commands_have_about_one_a_core(command: str, tmp_path: Path):
    model, picture, out = write_model(tmp_path / "model"), tmp_path / "a.png", tmp_path / "out"
    picture.write_bytes(png(16))
    what = {"generate": ["--count", "3"], "upscale": [str(picture)]}[command]
    given = [*what, "--model", str(model), "--out", str(out), "--device", "cpu"]
    code = f"from pgsr.runtime.{command}.cli import main; main({given}, standalone_mode=False)"
    assert arenas(code) <= usable_cores() + 1  # a thread may have begun before
    assert any(out.iterdir())
