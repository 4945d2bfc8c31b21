"""What a report says of the machine: processor, memory, versions, and the fastest it can multiply."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

from pgsr import __version__
from pgsr.errors import PgsrError
from pgsr.machine import held_to, installed_versions, processor_flags, processor_name, usable_cores

INSTRUCTION_SETS = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
)
PACKAGES = (
    *("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "onnx", "numpy", "pillow"),
    *("fpng", "isal", "simplejpeg", "imagecodecs"),
)

# In a process of its own: the numbers of threads of numpy's libraries are settled when they are loaded.
PEAK_PROGRAM = """
import statistics, sys, time
import numpy as np
size, rounds = int(sys.argv[1]), int(sys.argv[2])
a, b = np.random.default_rng(0).standard_normal((2, size, size), dtype=np.float32)
out = np.empty_like(a)
seconds = []
for _ in range(rounds + 1):
    began = time.perf_counter()
    np.matmul(a, b, out=out)
    seconds.append(time.perf_counter() - began)
print(statistics.median(seconds[1:]))
"""
LOW_PEAK_PROGRAM = """
import statistics, sys, time
import torch
size, rounds, threads = map(int, sys.argv[1:4])
torch.set_num_threads(threads)
a, b = torch.randint(-127, 128, (2, size, size))
if sys.argv[4] == "int8":
    a, b, product = a.to(torch.int8), b.to(torch.int8), torch._int_mm
else:
    a, b, product = a.bfloat16(), b.bfloat16(), torch.matmul
seconds = []
for _ in range(rounds + 1):
    began = time.perf_counter()
    product(a, b)
    seconds.append(time.perf_counter() - began)
print(statistics.median(seconds[1:]))
"""
FAST = {"bf16": ("bf16",), "int8": ("vnni", "int8")}  # precision -> what is in the names of its instructions
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


@dataclass(frozen=True)
class Machine:
    """What was measured on."""

    cpu: str
    cores: int  # that this process may use
    instruction_sets: tuple[str, ...]  # of INSTRUCTION_SETS; empty where the system does not tell
    memory_bytes: int  # 0 where the system does not tell
    system: str
    python: str
    packages: dict[str, str]  # versions
    threads: int  # that arithmetic was given
    peak_gflops: float  # of a float32 matrix product in numpy on as many threads

    def is_fast_in(self, precision: str) -> bool:
        """Returns whether the processor has instructions for bf16 or int8."""
        return any(part in name for name in self.instruction_sets for part in FAST[precision])

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "instruction_sets": list(self.instruction_sets)}


def describe(threads: int) -> Machine:
    """Measures the peak, too: a few seconds."""
    return Machine(
        cpu=processor_name() + (f", held to {most}" if (most := held_to()) else ""),
        cores=usable_cores(),
        instruction_sets=_instruction_sets(),
        memory_bytes=_memory_bytes(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        packages={"pgsr": __version__, **installed_versions(*PACKAGES)},
        threads=threads,
        peak_gflops=peak_gflops(threads),
    )


def peak_gflops(threads: int, size: int = 2048, rounds: int = 5) -> float:
    """GFLOP/s of a float32 matrix product of size x size in numpy, the median of `rounds`."""
    return _peak([PEAK_PROGRAM, str(size), str(rounds)], threads, size)


def low_peak_gflops(precision: str, threads: int, size: int = 2048, rounds: int = 5) -> float:
    """Measures GFLOP/s of a matrix product in PyTorch in bf16, or of int8 into int32."""
    return _peak([LOW_PEAK_PROGRAM, str(size), str(rounds), str(threads), precision], threads, size)


def _peak(program: list[str], threads: int, size: int) -> float:
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
    command = [sys.executable, "-c", *program]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        raise PgsrError(f"the matrix product could not be timed: {process.stderr.strip()[-200:]}")
    return 2.0 * size**3 / float(process.stdout) / 1e9


def _instruction_sets(information: str | None = None) -> tuple[str, ...]:
    flags = processor_flags(information)
    return tuple(name for name in INSTRUCTION_SETS if name in flags)


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0
