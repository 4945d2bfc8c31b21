"""config.pbtxt of Triton's models, as data and as text (triton-inference-server/common, model_config.proto).

The text is written here, not by tritonclient's classes: their package wants an older protobuf and ml_dtypes
than other packages bring. The tests parse every file with those classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pgsr.bundle import Graph, Port

Message = dict[str, Any]

KINDS = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "cuda": "KIND_GPU"}  # by --device
TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8"}  # by numpy's names


class Word(str):
    """A name of an enumeration: written without quotes."""


# What a face is asked for by: two numbers of 64 bits.
SOURCES: list[Message] = [
    {"name": name, "data_type": Word("TYPE_UINT64"), "dims": [1]} for name in ("seed", "index")
]


@dataclass(frozen=True)
class Serving:
    """How the models are to be served."""

    batch: int = 16  # images at a time, at most
    device: str = "auto"  # one of KINDS
    instances: int = 1  # of each model, on the CPU or on each GPU
    queue_delay_us: int = 2000  # that a request waits for others to share its batch


def text(message: Mapping[str, Any], indent: str = "") -> str:
    """Returns a message in protobuf's text format: a field a line, numbers of a list in brackets."""
    return "".join(_field(name, value, indent) for name, value in message.items())


def _field(name: str, value: Any, indent: str) -> str:
    if isinstance(value, Mapping):
        return f"{indent}{name} {{\n{text(value, indent + '  ')}{indent}}}\n"
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return "".join(_field(name, part, indent) for part in value)
    return f"{indent}{name}: {_scalar(value)}\n"


def _scalar(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_scalar, value))}]"
    return value if isinstance(value, Word) else json.dumps(value, ensure_ascii=False)


# ----------------------------------------------------------------------------
# The models.


def graph_model(name: str, graph: Graph, kind: Message, serving: Serving, side: int) -> Message:
    """The config of a model that is one graph.

    `kind` names what runs it: {"platform": ...} or {"backend": ...}, and what that wants besides.
    `side` stands in the warm-up for the sides of an upscaler of pictures of any size.
    """
    (source,), (result,) = graph.inputs, graph.outputs
    return {
        **_head(name, kind, serving.batch, [_tensor(source)], [_tensor(result)]),
        **_instances(serving.device, serving.instances),
        "dynamic_batching": {"max_queue_delay_microseconds": serving.queue_delay_us},
        "model_warmup": [_warmup(source, batch, side) for batch in sorted({1, serving.batch})],
    }


def latents_model(name: str, chain: Message) -> Message:
    """The config of the Python model that draws what a chain takes: (seed, index) -> float32 [L]."""
    return {
        **_head(name, {"backend": "python"}, chain["max_batch_size"], SOURCES, chain["input"]),
        **_instances("cpu", 1),
        "dynamic_batching": {},
    }


def faces_model(name: str, drawer: str, chain: Message) -> Message:
    """The config of the ensemble `drawer` -> `chain`: (seed, index) -> pixels uint8 [S, S, 3]."""
    (latents,), (pixels,) = ([tensor["name"] for tensor in chain[side]] for side in ("input", "output"))
    drawn = "drawn latents"  # the ensemble's own name for what goes from one to the other
    steps = [
        _step(drawer, {tensor["name"]: tensor["name"] for tensor in SOURCES}, {latents: drawn}),
        _step(chain["name"], {latents: drawn}, {pixels: pixels}),
    ]
    return {
        **_head(name, {"platform": "ensemble"}, chain["max_batch_size"], SOURCES, chain["output"]),
        "ensemble_scheduling": {"step": steps},
    }


def _head(
    name: str, kind: Message, batch: int, sources: Sequence[Message], results: Sequence[Message]
) -> Message:
    return {
        "name": name,
        **kind,
        "max_batch_size": batch,
        "version_policy": {"latest": {"num_versions": 1}},
        "input": list(sources),
        "output": list(results),
    }


def _tensor(port: Port) -> Message:
    """A port without its batch, which Triton adds; -1 is a side of any length."""
    dims = [-1 if isinstance(side, str) else side for side in port.shape[1:]]
    return {"name": port.name, "data_type": Word(TYPES[port.dtype]), "dims": dims}


def _instances(device: str, count: int) -> Message:
    return {"instance_group": [{"count": count, "kind": Word(KINDS[device])}]}


def _warmup(port: Port, batch: int, side: int) -> Message:
    """A batch of zeros, run before a model counts as ready."""
    dims = [side if isinstance(length, str) else length for length in port.shape[1:]]
    value = {"data_type": Word(TYPES[port.dtype]), "dims": dims, "zero_data": True}
    return {"name": f"batch of {batch}", "batch_size": batch, "inputs": {"key": port.name, "value": value}}


def _step(model: str, sources: Mapping[str, str], results: Mapping[str, str]) -> Message:
    return {
        "model_name": model,
        "model_version": -1,
        "input_map": [{"key": key, "value": value} for key, value in sources.items()],
        "output_map": [{"key": key, "value": value} for key, value in results.items()],
    }
