"""The pipeline as a good engineer writes it in an afternoon: the second measure, beside the naive one.

The networks as they are trained, exported by torch.onnx.export with pixels as the output, OpenVINO with
asynchronous requests, bfloat16 by its hint, int8 by NNCF's defaults, PNG files by OpenCV on threads. The
batch is the fastest of a few. Nothing here is from pgsr.export or pgsr.runtime.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

BATCHES = (1, 4, 8)  # that are tried
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}  # of what is not int8
CALIBRATION = 64  # inputs that NNCF sees


class PixelChain(nn.Module):
    """Latents -> uint8 [N, H, W, 3]."""

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.Sequential(*networks)

    def forward(self, latents: Tensor) -> Tensor:
        scaled = ((self.networks(latents) + 1) * 127.5).round().clamp(0, 255)
        return scaled.to(torch.uint8).permute(0, 2, 3, 1)


def export(network: nn.Module, example: Tensor, path: Path) -> Path:
    """Writes ONNX with a free batch, as the exporter does it."""
    shapes = ({0: torch.export.Dim("batch")},)
    with _quiet():
        torch.onnx.export(
            network.eval(),
            (example,),
            path,
            dynamo=True,
            dynamic_shapes=shapes,
            external_data=False,
            verbose=False,
        )
    return path


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what the exporter and NNCF print off stdout, which carries results."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


KEPT: list[Any] = []  # cores: one that is freed takes the stack of signal handlers along


class Engine:
    """A network compiled by OpenVINO, inputs [N, ...] -> outputs, in batches and asynchronously."""

    def __init__(self, path: Path, precision: str, threads: int, example: NDArray[np.float32]) -> None:
        import openvino

        self.core = openvino.Core()
        KEPT.append(self.core)
        self.path, self.precision, self.threads = path, precision, threads
        self.model = self.core.read_model(path)
        if precision == "int8":
            self.model = quantized(self.model, example)
        self.batch = max(BATCHES, key=lambda batch: self._speed(batch, example))
        self.queue = self._queue(self.batch)

    def _queue(self, batch: int) -> Any:
        """Requests of one batch, as many as OpenVINO takes for the best throughput."""
        import openvino

        model = self.model.clone()
        model.reshape({0: [batch, *list(model.inputs[0].partial_shape)[1:]]})
        options = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": HINTS[self.precision],
            "INFERENCE_NUM_THREADS": self.threads,
        }
        return openvino.AsyncInferQueue(self.core.compile_model(model, "CPU", options))

    def _speed(self, batch: int, example: NDArray[np.float32]) -> float:
        self.queue, self.batch = self._queue(batch), batch
        inputs = np.concatenate([example] * -(-2 * batch // len(example)))[: 2 * batch]
        self.run(inputs, _drop)
        start = time.perf_counter()
        self.run(inputs, _drop)
        return len(inputs) / (time.perf_counter() - start)

    def run(self, inputs: NDArray[np.float32], done: Callable[[int, NDArray[Any]], None]) -> None:
        """`done` gets the first index and the outputs of each batch; the last batch is filled up."""
        self.queue.set_callback(lambda request, first: done(first, request.get_output_tensor(0).data))
        for first in range(0, len(inputs), self.batch):
            part = inputs[first : first + self.batch]
            if len(part) < self.batch:
                part = np.concatenate([part, np.repeat(part[:1], self.batch - len(part), 0)])
            self.queue.start_async({0: part}, first)
        self.queue.wait_all()

    def outputs(self, inputs: NDArray[np.float32]) -> NDArray[Any]:
        """Outputs of all inputs, in order."""
        parts: dict[int, NDArray[Any]] = {}
        self.run(inputs, lambda first, values: parts.__setitem__(first, values.copy()))
        return np.concatenate([parts[first] for first in sorted(parts)])[: len(inputs)]


def _drop(first: int, values: NDArray[Any]) -> None:
    """Leaves the outputs where they are."""


def quantized(model: Any, example: NDArray[np.float32]) -> Any:
    """The model in int8 by NNCF's defaults."""
    import nncf

    rows: Sequence[NDArray[np.float32]] = [row[None] for row in example[:CALIBRATION]]
    with _quiet():
        return nncf.quantize(model, nncf.Dataset(rows), subset_size=len(rows))


def write_images(engine: Engine, latents: NDArray[np.float32], folder: Path) -> int:
    """Latents to PNG files: OpenCV on as many threads as cores; how many were written."""
    # Before the threads: cv2 takes itself out of sys.modules while it is imported.
    import cv2

    def write(path: Path, picture: NDArray[np.uint8]) -> bool:
        return bool(cv2.imwrite(str(path), picture[:, :, ::-1]))

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        written: list[Future[bool]] = []

        def done(first: int, pixels: NDArray[np.uint8]) -> None:
            for i, picture in enumerate(pixels.copy()[: len(latents) - first]):
                written.append(pool.submit(write, folder / f"{first + i:06d}.png", picture))

        engine.run(latents, done)
        return sum(_results(written))


def _results(written: list[Future[bool]]) -> Iterator[bool]:
    return (future.result() for future in written)
