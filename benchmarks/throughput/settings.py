"""What `pgsr-bench throughput` measures: the stages by name, and the command's settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from pgsr.errors import PgsrError, check_choice
from pgsr.machine import usable_cores
from pgsr.trainer.start import chosen_device

from .systems import Widths

GENERATOR, UPSCALER, NETWORK, END_TO_END = "generator", "upscaler", "network", "end to end"
ENCODE, WRITE = "encode", "write"
OUTPUTS = {  # what end to end could end in instead of a folder of PNG files: the ending of --out, --format
    "PNG in a tar": ("/faces.tar", "png"),
    "JPEG files": ("", "jpeg"),
    "JPEG in a tar": ("/faces.tar", "jpeg"),
    "JPEG XL files": ("", "jxl"),
    "raw pixels": ("-", "png"),
}
GRAPHS = {GENERATOR: "generator", UPSCALER: "upscaler", NETWORK: "chain", END_TO_END: "chain"}

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
NAIVE, EAGER = "naive", "eager"  # ways; the others are a backend and a precision

# Largest differences allowed between a float32 graph and its network, which must do the same work.
RELATIVE_LIMIT = 1e-3  # of images, against their largest value
STEPS_LIMIT = 1  # of pixels

GPU_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LARGEST_BATCH = 64  # that engines are built for

ENCODED = 16  # pictures of an encoding or writing call


@dataclass(frozen=True)
class Settings:
    """What is measured. Raises PgsrError for values out of range."""

    widths: Widths = field(default_factory=Widths)
    batch: int = 8  # images a call of the generator
    large_batch: int = 4  # of the upscaler and of the chain
    images: int = 8  # of an end-to-end call
    shipped_images: int = 1000  # of the model that ships
    rounds: int = 5
    model: Path | None = None  # a bundle to measure as well; None: the shipped one
    threads: int = 0  # of arithmetic; 0: one a usable core
    device: str = "cpu"  # or cuda, cuda:N
    precisions: tuple[str, ...] = ()  # none: fp32, and what the processor has instructions for; fp16 on a GPU
    backends: tuple[str, ...] = ()  # none: every one that is installed

    def __post_init__(self) -> None:
        for name in ("batch", "large_batch"):  # the runtime fills smaller batches up
            if getattr(self, name) < 2:
                option = name.replace("_", "-")
                raise PgsrError(f"--{option} is {getattr(self, name)}, but must be at least 2")
        for name in ("images", "shipped_images", "rounds"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise PgsrError(f"--{option} is {getattr(self, name)}, but must be at least 1")
        for precision in self.precisions:
            check_choice("--precision", precision, PRECISIONS)
        if self.threads < 0:
            raise PgsrError(f"--threads is {self.threads}, but must be at least 0")
        if self.device == "auto":
            raise PgsrError("--device auto: name cpu or cuda, so that the report says what was measured")
        chosen_device(self.device)
        if not self.threads:
            object.__setattr__(self, "threads", usable_cores())

    def as_dict(self) -> dict[str, Any]:
        values = asdict(self)
        widths = values.pop("widths")
        return {**widths, **values, "model": None if self.model is None else self.model.name}
