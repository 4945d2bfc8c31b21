"""Reading back: what data types an engine's layers really have."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pgsr.errors import PgsrError

# ----------------------------------------------------------------------------
# Reading back: what data types an engine's layers really have.

# How the library calls data types in its inspector (10 and 11) and log, and in networks.


NAMES = {
    "fp32": "fp32", "float": "fp32", "fp16": "fp16", "half": "fp16", "bf16": "bf16", "bfloat16": "bf16",
    "int8": "int8", "uint8": "uint8", "int32": "int32", "int64": "int64", "bool": "bool", "fp8": "fp8",
}  # fmt: skip


WORD = re.compile(rf"\b({'|'.join(NAMES)})\b", re.IGNORECASE)


ARITHMETIC = ("fp32", "fp16", "bf16", "int8")


def data_types(trt: Any, data: bytes, log: Any, network: Any) -> tuple[dict[str, int], str]:
    """Counts the data types of an engine's layers, by its inspector if it can be loaded, else by the
    builder's list; of the network's where neither tells."""
    errors = len(log.errors)
    engine = trt.Runtime(log).deserialize_cuda_engine(data)
    del log.errors[errors:]  # no GPU is no error here
    if engine is not None:
        inspector = engine.create_engine_inspector()
        types = inspected_types(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
        if types:
            return types, "inspector"
    types = logged_types(log.layers)
    return (types, "build log") if types else (network_types(network), "network")


def inspected_types(text: str) -> dict[str, int]:
    """Counts data types in an inspector's JSON: "Format/Datatype" in TensorRT 10, "DataType" in 11."""
    counts: Counter[str] = Counter()
    for layer in json.loads(text).get("Layers", []):
        for port in layer.get("Outputs", []) if isinstance(layer, dict) else []:
            type_name = next((v for k, v in port.items() if "datatype" in k.lower()), "")
            counts.update(name.lower() for name in WORD.findall(str(type_name))[:1])
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
