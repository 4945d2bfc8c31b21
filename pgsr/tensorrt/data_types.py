"""Reading back: what data types an engine's layers really have."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pgsr.errors import PgsrError

from .library import named_errors, start

# ----------------------------------------------------------------------------
# Reading back: what data types an engine's layers really have.

# How the library calls data types in its inspector (10 and 11) and log, and in networks.


NAMES = {
    "fp32": "fp32", "float": "fp32", "fp16": "fp16", "half": "fp16", "bf16": "bf16", "bfloat16": "bf16",
    "int8": "int8", "uint8": "uint8", "int32": "int32", "int64": "int64", "bool": "bool", "fp8": "fp8",
}  # fmt: skip


WORD = re.compile(rf"\b({'|'.join(NAMES)})\b", re.IGNORECASE)


ARITHMETIC = ("fp32", "fp16", "bf16", "int8")


# Where the numbers of `data_types` come from, and how far each is proof.
SOURCES = {
    "inspector": "read back from the engine by its inspector",
    "build log": "read back from the builder's list of what it made",
    "network": "not read back: the network asks for these, and the engine does not tell",
}


UNRESOLVED = "N/A"  # "N/A due to dynamic shapes", of a layer whose type depends on the batch


def data_types(trt: Any, data: bytes, log: Any, network: Any) -> tuple[dict[str, int], str]:
    """Counts the data types of an engine's layers, and says which of SOURCES they are from: the engine's
    inspector if it can be loaded and tells all, else the builder's list, else the network."""
    errors = len(log.errors)
    try:
        with named_errors("the inspector"):
            types = inspected_types(_inspection(trt, data, log))
    except PgsrError:
        types = {}
    del log.errors[errors:]  # no GPU is no error here
    if types:
        return types, "inspector"
    types = logged_types(log.layers)
    return (types, "build log") if types else (network_types(network), "network")


def _inspection(trt: Any, data: bytes, log: Any) -> str:
    """What the inspector tells as JSON; of layers whose type depends on the batch, for the profile's best.

    Raises PgsrError if the engine cannot be loaded here.
    """
    engine = start(trt.Runtime, log, "the runtime").deserialize_cuda_engine(data)
    if engine is None:
        raise PgsrError("the engine is not for this machine")
    inspector = engine.create_engine_inspector()
    # A context that computes nothing needs no memory of its own.
    context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    if context is not None:
        for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors)):
            if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                context.set_input_shape(name, tuple(engine.get_tensor_profile_shape(name, 0)[1]))
        inspector.execution_context = context
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def inspected_types(text: str) -> dict[str, int]:
    """Counts data types in an inspector's JSON: "Format/Datatype" in TensorRT 10, "DataType" in 11. None
    at all if one is not told."""
    counts: Counter[str] = Counter()
    for layer in json.loads(text).get("Layers", []):
        for port in layer.get("Outputs", []) if isinstance(layer, dict) else []:
            type_name = str(next((v for k, v in port.items() if "datatype" in k.lower()), ""))
            if UNRESOLVED in type_name:
                return {}
            counts.update(name.lower() for name in WORD.findall(type_name)[:1])
    return _renamed(counts)


def logged_types(text: str) -> dict[str, int]:
    """Counts data types in the builder's message "Layers: ...", which has one line a layer."""
    outputs = re.findall(r"\bOutputs: \[(.*?)\](?:, TacticName|$)", text, re.MULTILINE)
    words = re.findall(r"Datatype: (\w+)", " ".join(outputs), re.IGNORECASE)
    return _renamed(Counter(word.lower() for word in words))


def network_types(network: Any) -> dict[str, int]:
    """Counts data types in a parsed network: what was asked for, before the builder."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    outputs = [layer.get_output(i) for layer in layers for i in range(layer.num_outputs)]
    return _renamed(Counter(output.dtype.name.lower() for output in outputs))


def _renamed(counts: Mapping[str, int]) -> dict[str, int]:
    result: Counter[str] = Counter()
    for word, count in counts.items():
        result[NAMES.get(word, word)] += count
    return dict(sorted(result.items()))


def require_precision(layers: Mapping[str, int], precision: str) -> None:
    """Raises PgsrError unless an engine is what was asked for.

    fp32: nothing is below it. fp16, bf16: most of what the layers put out is of that type; pixelwise
    normalisation and the conversion to pixels stay in float32. int8: some layers are, the most costly ones.
    """
    share = {name: layers.get(name, 0) for name in ARITHMETIC}
    if precision == "fp32":
        right = share["fp32"] > 0 and not any(share[name] for name in ARITHMETIC[1:])
    elif precision == "int8":
        right = share["int8"] > 0
    else:
        right = 2 * share.get(precision, 0) > sum(share.values())
    if not right:
        raise PgsrError(
            f"the engine is not {precision}: its layers put out {histogram(layers)}; no engine is written"
        )


def histogram(layers: Mapping[str, int]) -> str:
    """48 fp16, 9 fp32, 1 uint8."""
    ordered = sorted(layers.items(), key=lambda item: -item[1])
    return ", ".join(f"{count} {name}" for name, count in ordered) or "nothing that could be read back"
