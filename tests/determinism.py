"""What the bits depend on: the same work with other threads, instructions and versions, side by side.

    python tests/determinism.py                                  # writes the table of docs/determinism.md
    python tests/determinism.py --python .venv-313/bin/python    # and with another Python
    python tests/determinism.py measure FOLDER                   # one run, as this process is

A run trains a tiny model, exports one checkpoint, draws faces of the model that ships with two backends, and
encodes one picture; its tensors and files lie in its folder. Every run is compared with the first. A setting
is nothing but an environment: a process has its instructions limited before it starts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "determinism.md"
FACES = 8
RECIPE = """
[generator]
kind = "progan"
resolution = 16
latent_size = 32
feature_max = 32
convolution = "separable"
[discriminator]
kind = "progan"
resolution = 16
feature_max = 32
convolution = "separable"
[schedule]
resolution = 16
batch = 16
fade_images = 160
stable_images = 160
[objective]
gradient_penalty = 10.0
drift = 0.001
"""

# Libraries read these before their first call. ONNX Runtime has no such switch.
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",  # PyTorch's own kernels
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # oneDNN: PyTorch's convolutions, and OpenVINO's copy of it
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR",
}
PLAIN = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
SETTINGS: dict[str, tuple[int, dict[str, str]]] = {
    "one thread": (1, {}),
    "one thread again": (1, {}),
    "two threads": (2, {}),
    "AVX2": (1, AVX2),
    "SSE": (1, PLAIN),
}


# ----------------------------------------------------------------------------
# One run.


def train(folder: Path) -> None:
    """Trains the tiny model; its last checkpoint's tensors are `training.npz`."""
    from pgsr.checkpoint import load, newest
    from pgsr.trainer.cli import main
    from pgsr.trainer.data.cli import Settings, prepare

    (folder / "tiny.toml").write_text(f'about = "for the audit"\n{RECIPE}')
    prepare([], folder / "toy.zip", Settings((16, 8, 4), "lanczos", "png", 95), drawn=64)
    words = [folder / "tiny.toml", "--data", folder / "toy.zip", "--out", folder / "run", "--device", "cpu"]
    main([*map(str, words), "--set", "run.precision=float32"], standalone_mode=False)
    tensors: dict[str, Any] = {k: v.numpy() for k, v in load(newest(folder / "run")).tensors.items()}
    np.savez(folder / "training.npz", **tensors)


def export(folder: Path, checkpoint: Path) -> None:
    """Exports a checkpoint as a bundle: `bundle/`."""
    from pgsr.export.cli import main

    main([str(checkpoint), "--out", str(folder / "bundle")], standalone_mode=False)


def generate(folder: Path, threads: int) -> None:
    """Draws faces of the model that ships: `latents.npz`, and pixels by each backend that is here."""
    from pgsr import draws
    from pgsr.errors import PgsrError
    from pgsr.runtime import Synthesizer

    latents = draws.latents(0, range(4096), 128)
    np.savez(folder / "latents.npz", latents=latents)
    for backend in ("onnxruntime", "openvino"):
        if find_spec(backend) is None:
            continue
        try:
            with Synthesizer(device="cpu", backend=backend, batch=4, threads=threads) as synthesizer:
                np.savez(folder / f"{backend}.npz", pixels=synthesizer.images(seed=0, count=FACES))
        except PgsrError as error:  # OpenVINO below AVX2
            (folder / f"{backend}.npz.refused").write_text(str(error))


def encode(folder: Path) -> None:
    """Encodes one picture by every encoder of PNG that is here: `png/`."""
    from pgsr.runtime.output.encoders import ENCODERS, open_encoder

    i = np.arange(256)
    picture = np.stack([i[:, None] ^ i, i[:, None] * i // 256, i[:, None] + 0 * i], axis=-1).astype(np.uint8)
    (folder / "png").mkdir()
    for name in ENCODERS["png"]:
        try:
            encoder = open_encoder("png", name)
        except Exception:
            continue
        (folder / "png" / f"{name}.png").write_bytes(encoder.encode(picture, None, {"seed": 0}))


def measure(folder: Path, threads: int, checkpoint: Path | None) -> None:
    """One run, in this process: everything that can be done here."""
    folder.mkdir(parents=True, exist_ok=True)
    generate(folder, threads)
    encode(folder)
    if find_spec("torch") is None:
        return
    import torch

    torch.set_num_threads(threads)
    train(folder)
    from pgsr.checkpoint import newest

    export(folder, checkpoint or newest(folder / "run"))


# ----------------------------------------------------------------------------
# Two runs.


def arrays(file: Path) -> dict[str, NDArray[Any]]:
    with np.load(file) as data:
        return dict(data)


def tensors_differ(one: Path, other: Path) -> str:
    """How many numbers of two runs differ, and by how much of the largest of their array."""
    a, b = arrays(one), arrays(other)
    assert a.keys() == b.keys()
    if all(a[name].tobytes() == b[name].tobytes() for name in a):
        return "the same bits"
    differing = sum(int(np.count_nonzero(a[name] != b[name])) for name in a)
    every = sum(array.size for array in a.values())
    worst = max(
        float(np.abs(a[name].astype(float) - b[name]).max() / max(np.abs(a[name]).max(), 1e-30)) for name in a
    )
    return f"{differing / every:.1%} differ, by up to {worst:.0e}"


def pixels_differ(one: Path, other: Path) -> str:
    """How many pixels' values differ, by how many of 255 steps, and in how many pictures."""
    a, b = (arrays(file)["pixels"].astype(int) for file in (one, other))
    if np.array_equal(a, b):
        return "the same bytes"
    pictures = sum(not np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    share = np.count_nonzero(a != b) / a.size
    return f"{pictures} of {len(a)} faces, {share:.1g} of values, by up to {np.abs(a - b).max()}"


def files_differ(one: Path, other: Path) -> str:
    """Which files of two folders differ, of those that both have."""
    both = sorted({p.name for p in one.iterdir()} & {p.name for p in other.iterdir()})
    differing = [n for n in both if digest(one / n) != digest(other / n)]
    return ", ".join(differing) if differing else "the same bytes"


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


COMPARED: dict[str, tuple[str, Callable[[Path, Path], str]]] = {
    "latents": ("latents.npz", tensors_differ),
    "training": ("training.npz", tensors_differ),
    "bundle of one checkpoint": ("bundle", files_differ),
    "faces, ONNX Runtime": ("onnxruntime.npz", pixels_differ),
    "faces, OpenVINO": ("openvino.npz", pixels_differ),
    "PNG of one picture": ("png", files_differ),
}


def compared(first: Path, other: Path) -> list[str]:
    """A row's cells: what of a run differs from the first."""
    cells = []
    for name, compare in COMPARED.values():
        there = (first / name).exists() and (other / name).exists()
        refused = (other / f"{name}.refused").exists()
        absent = "cannot be opened" if refused else "–"
        cells.append(compare(first / name, other / name) if there else absent)
    return cells


# ----------------------------------------------------------------------------
# All runs.


def run(python: str, folder: Path, threads: int, changes: dict[str, str], checkpoint: Path | None) -> None:
    """`measure` in a process of its own."""
    own = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT), "PGSR_CACHE": str(folder / "cache")}
    line = [python, __file__, "measure", str(folder), "--threads", str(threads)]
    line += ["--checkpoint", str(checkpoint)] if checkpoint else []
    done = subprocess.run(line, env={**os.environ, **own, **changes}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{folder.name}: {done.stderr[-2000:]}")


def rows(pythons: Iterable[str], folder: Path) -> list[list[str]]:
    runs = [(name, sys.executable, *setting) for name, setting in SETTINGS.items()]
    runs += [(label(python), python, 1, {}) for python in pythons]
    first = folder / "0"
    table = []
    for i, (name, python, threads, changes) in enumerate(runs):
        checkpoint = max((first / "run" / "checkpoints").glob("*.safetensors")) if i else None
        done = folder / str(i) / "done"
        if not done.exists():
            run(python, folder / str(i), threads, changes, checkpoint)
            done.touch()
        if i:
            table.append([name, *compared(first, folder / str(i))])
            print("  ".join(table[-1]), file=sys.stderr, flush=True)
    return table


def label(python: str) -> str:
    """An interpreter's version, and those of the backends where they are not this one's."""
    program = "import json, sys; from importlib.metadata import version as v; "
    program += "print(json.dumps([sys.version.split()[0], *map(v, ['numpy', 'onnxruntime', 'openvino'])]))"
    theirs, ours = (
        json.loads(subprocess.run([path, "-c", program], capture_output=True, check=True).stdout)
        for path in (python, sys.executable)
    )
    if theirs[1:] == ours[1:]:
        return f"Python {theirs[0]}"
    return f"Python {theirs[0]}, numpy {theirs[1]}, ONNX Runtime {theirs[2]}, OpenVINO {theirs[3]}"


def page(table: list[list[str]]) -> str:
    lines = [["beside one thread", *COMPARED], ["---"] * (1 + len(COMPARED)), *table]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=["measure"])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument(
        "--python", action="append", default=[], help="another interpreter with pgsr's packages"
    )
    parser.add_argument("--keep", type=Path, help="runs lie here; those that are there are not made again")
    options = parser.parse_args()
    if options.what == "measure":
        measure(options.folder, options.threads, options.checkpoint)
        return
    from supply import marked

    with tempfile.TemporaryDirectory(prefix="determinism-") as folder:
        table = page(rows(options.python, (options.keep or Path(folder)).resolve()))
    print(table)
    PAGE.write_text(marked(PAGE.read_text(), "determinism", table))


if __name__ == "__main__":
    main()
