"""Every layer of generator, upscaler and critic under the roof, and why it falls short of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgsr.export.graphs import Chain
from pgsr.export.lowering import Grown
from pgsr.export.onnx_file import to_onnx
from pgsr.files import make_folder, write_bytes
from pgsr.networks import DISCRIMINATORS, GENERATORS, build

from ..harness.noise import Watch
from ..harness.provenance import provenance
from ..harness.roof import Roof, survey
from ..throughput.measure import torch_threads
from ..throughput.systems import CONVOLUTIONS, System, Widths, inputs
from .profile import (
    CONVERSION,
    LAYER,
    Operation,
    profile_onnxruntime,
    profile_openvino,
    profile_pytorch,
)
from .settings import Settings, Way

Report = Callable[[str], None]

NETWORKS = ("generator", "upscaler", "critic")
AT_THE_ROOF = 0.7  # a layer that takes at most 1 / 0.7 of the least time is said to be there
SMALL_SECONDS = 20e-6  # of arithmetic at the peak: less is over before a kernel is under way
NARROW = 32  # terms of a sum, or maps out, that do not fill the multipliers' registers
CONVERSIONS = 0.25  # of a layer's time: more before it is the reason

REASONS = {
    "roof": "at the roof",
    "memory": "memory: its bytes take longer than its arithmetic",
    "small": "small product: too few multiply-adds, terms or maps to fill the multipliers",
    "conversion": "conversion: layouts or types are changed before it",
    "kernel": "kernel: neither; the library's own code",
}

NOTES = (
    "Times are the libraries' own, inside the running network; multiply-adds and bytes follow from the "
    "shapes that ran. Weights are random.",
    "The roof of a layer is the longer of its arithmetic at the best matrix product and its bytes at the "
    "speed of a copy that touches as many.",
    f"A layer is at the roof from {AT_THE_ROOF:.0%} of it on. Below: memory, where the bytes take longer "
    f"than the arithmetic; conversion, where more than {CONVERSIONS:.0%} of its time goes to reorders and "
    f"casts right before it; small product, where the arithmetic is less than {SMALL_SECONDS * 1e6:.0f} µs "
    f"at the peak, or sums have fewer than {NARROW} terms or there are fewer than {NARROW} maps; kernel "
    "otherwise.",
    "PyTorch is eager, channels last. ONNX Runtime's CPU has no bf16 kernels; its channels are filled up to "
    "blocks, which counts here. The critic has no 8-bit graph: it is only ever trained.",
)


class Scores(nn.Module):
    """Images [N, 3, R, R] -> scores [N]."""

    def __init__(self, critic: nn.Module) -> None:
        super().__init__()
        self.critic = critic

    def forward(self, images: Tensor) -> Tensor:
        return torch.as_tensor(self.critic(images))


def run(settings: Settings, report: Report) -> dict[str, Any]:
    """The whole measurement as JSON data."""
    began = provenance()
    report("timing the matrix product and the memory")
    machine, roof = survey(settings.threads)
    networks: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(prefix="pgsr-bench-") as scratch,
        torch_threads(settings.threads),
        Watch() as watch,
    ):
        for convolution in CONVOLUTIONS:
            report(f"exporting the {convolution} networks")
            system = settings.system(convolution, machine)
            subject = Subject(settings, system, make_folder(Path(scratch) / convolution))
            for way in settings.ways(machine):
                for network in NETWORKS:
                    if (network, way.precision) != ("critic", "int8"):
                        report(f"{way.name}: {convolution} {network}")
                        operations = subject.profile(network, way)
                        networks.append(account(convolution, network, way, operations, roof))
    return {
        "benchmark": "roofline",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine.as_dict(),
        "provenance": began,
        "roof": roof.as_dict(),
        "settings": settings.as_dict(),
        "noise": watch.as_dict(),
        "networks": networks,
        "reasons": REASONS,
        "notes": list(NOTES),
    }


# ----------------------------------------------------------------------------
# What is profiled.


class Subject:
    """The networks of one convolution, as modules and as graphs."""

    def __init__(self, settings: Settings, system: System, folder: Path) -> None:
        self.settings, self.system, self.folder = settings, system, folder
        self.critic = critic_of(settings.widths, system.convolution)

    def profile(self, network: str, way: Way) -> list[Operation]:
        """The operations of a batch through one network."""
        x, settings = self.example(network), self.settings
        if way.backend == "pytorch":
            module = Chain([self.module(network)], way.precision, False).eval()
            module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if x.dim() == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            return profile_pytorch(lambda: module(x), settings.runs)
        model = self.graph(network, way.precision)
        if way.backend == "openvino":
            return profile_openvino(model, x.numpy(), way.precision, settings.threads, settings.runs)
        return profile_onnxruntime(model, x.numpy(), settings.threads, settings.runs, self.folder)

    def example(self, network: str) -> Tensor:
        """A batch of its inputs."""
        widths, batch = self.settings.widths, self.settings.batch
        return inputs(widths, "upscaler" if network == "critic" else network, batch)

    def module(self, network: str) -> nn.Module:
        """The network as it is trained."""
        widths = self.settings.widths
        if network == "critic":
            return self.critic
        options = getattr(widths, network)(self.system.convolution)
        built = build(GENERATORS, options, seed=0).eval().requires_grad_(False)
        return Grown(built, widths.resolution) if network == "generator" else built

    def graph(self, network: str, precision: str) -> Path:
        """The file of its graph."""
        if network != "critic":
            return self.system.bundle.path(self.system.bundle.graph(network, precision))
        path = self.folder / "critic.onnx"
        if not path.is_file():
            write_bytes(path, to_onnx(self.critic, self.example("critic"), "images", "scores", {}))
        return path


def critic_of(widths: Widths, convolution: str) -> nn.Module:
    """The critic that trains the generator."""
    options = {
        "kind": "progan",
        "resolution": widths.resolution,
        "feature_base": widths.feature_base,
        "feature_max": widths.feature_max,
        "convolution": convolution,
    }
    return Scores(build(DISCRIMINATORS, options, seed=2)).eval().requires_grad_(False)


# ----------------------------------------------------------------------------
# Operations -> layers under the roof.


def account(
    convolution: str, network: str, way: Way, operations: Sequence[Operation], roof: Roof
) -> dict[str, Any]:
    """One network's layers, each with its roof, and the time of all that is no layer."""
    layers = list(under_the_roof(operations, roof))
    return {
        "system": convolution,
        "network": network,
        "backend": way.backend,
        "precision": way.precision,
        "layers": layers,
        "lost_seconds": lost(layers),
        **totals(operations, roof),
    }


def totals(operations: Sequence[Operation], roof: Roof) -> dict[str, float]:
    """Seconds of a batch, from the least that arithmetic takes to all that was run."""

    def seconds(*kinds: str) -> float:
        return sum(operation.seconds for operation in operations if operation.kind in kinds)

    layers = [operation for operation in operations if operation.kind == LAYER]
    pairs = [roof.seconds(o.multiply_adds, o.moved_bytes, o.precision) for o in layers]
    return {
        "multiply_adds": sum(operation.multiply_adds for operation in layers),
        "arithmetic_seconds": sum(arithmetic for arithmetic, _ in pairs),
        "roof_seconds": sum(max(pair) for pair in pairs),
        "layer_seconds": seconds(LAYER),
        "conversion_seconds": seconds(CONVERSION),
        "all_seconds": sum(operation.seconds for operation in operations),
    }


def under_the_roof(operations: Sequence[Operation], roof: Roof) -> Iterator[dict[str, Any]]:
    """Every layer with the least time that it could take, and why it takes longer."""
    converting = 0.0  # seconds since the last operation that was no conversion
    for operation in operations:
        if operation.kind == CONVERSION:
            converting += operation.seconds
            continue
        if operation.kind == LAYER and operation.multiply_adds:
            arithmetic, memory = roof.seconds(
                operation.multiply_adds, operation.moved_bytes, operation.precision
            )
            yield {
                **operation.as_dict(),
                "operations_per_byte": 2 * operation.multiply_adds / operation.moved_bytes,
                "gflops": 2e-9 * operation.multiply_adds / operation.seconds,
                "share_of_roof": max(arithmetic, memory) / operation.seconds,
                "roof_seconds": max(arithmetic, memory),
                "reason": reason(operation, arithmetic, memory, converting),
            }
        converting = 0.0


def reason(operation: Operation, arithmetic: float, memory: float, converting: float) -> str:
    """Which of REASONS holds: the first, in the order of what a rewrite could do about it."""
    if max(arithmetic, memory) >= AT_THE_ROOF * operation.seconds:
        return "roof"
    if converting > CONVERSIONS * operation.seconds:
        return "conversion"
    if memory > arithmetic:
        return "memory"
    terms = operation.multiply_adds / max(1, _values(operation.shape))
    if arithmetic < SMALL_SECONDS or terms < NARROW or _maps(operation.shape) < NARROW:
        return "small"
    return "kernel"


def _values(shape: Sequence[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def _maps(shape: Sequence[int]) -> int:
    return shape[1] if len(shape) > 1 else 1


def lost(layers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds above the roof, by reason."""
    result = dict.fromkeys(REASONS, 0.0)
    for layer in layers:
        result[layer["reason"]] += max(0.0, layer["seconds"] - layer["roof_seconds"])
    return result
