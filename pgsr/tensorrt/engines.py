"""TensorRT engines: built from a bundle's graphs, each beside a sidecar that says what it depends on.

    chain.fp16.tensorrt-rtx.sm86-sm89.engine        what TensorRT loads
    chain.fp16.tensorrt-rtx.sm86-sm89.engine.json   its sidecar

An engine whose sidecar names anything but what is wanted (another graph, TensorRT, GPU, driver or profile) is
stale: it is never loaded, and built again. The library is handed in by whoever may import it; TensorRT 10,
TensorRT 11 and TensorRT-RTX differ in the few places where `rtx` or `major` is asked below.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgsr.errors import PgsrError
from pgsr.files import make_folder, sha256, write_bytes, write_text

SCHEMA = 1
LIBRARIES = ("tensorrt", "tensorrt-rtx")


@dataclass(frozen=True)
class Profile:
    """The batch sizes an engine takes; it is tuned for `opt`."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise PgsrError(
                f"--batch {self.min},{self.opt},{self.max} is not MIN,OPT,MAX in this order, from 1"
            )

    def __str__(self) -> str:
        return f"{self.min},{self.opt},{self.max}"


@dataclass(frozen=True)
class Key:
    """All that an engine depends on."""

    onnx_sha256: str
    library: str  # one of LIBRARIES
    version: str  # the library's
    compute_capabilities: tuple[str, ...]  # "8.6", ...
    driver: str | None  # of TensorRT; TensorRT-RTX compiles its kernels on the user's machine and fits any
    precision: str
    profile: Profile

    def stem(self, graph_file: str) -> str:
        """The engine's name: chain.fp16.onnx -> chain.fp16.tensorrt.sm89."""
        return f"{Path(graph_file).stem}.{self.library}.{'-'.join(map(sm, self.compute_capabilities))}"


@dataclass(frozen=True)
class Engine:
    """An engine's file and what its sidecar says."""

    path: Path
    key: Key
    sha256: str
    layers: Mapping[str, int]  # data types of what the layers put out: {"fp16": 48, "fp32": 9, "uint8": 1}
    read_back: str  # how they were found: "inspector", "build log" or "network"

    def load(self) -> bytes:
        """Raises PgsrError if the file is absent or is not what was built."""
        if not self.path.is_file() or sha256(self.path) != self.sha256:
            raise PgsrError(f"{self.path} is missing or damaged: build the engine again")
        return self.path.read_bytes()


def sm(compute_capability: str) -> str:
    """8.6 -> sm86. Raises PgsrError for anything but such a number."""
    if not re.fullmatch(r"\d{1,2}\.\d", compute_capability):
        raise PgsrError(f"--compute-capability {compute_capability!r} is not a number such as 8.9")
    return f"sm{compute_capability.replace('.', '')}"


# ----------------------------------------------------------------------------
# Sidecars.


def sidecar(engine: Path) -> Path:
    """Returns the path of an engine's sidecar."""
    return engine.with_name(f"{engine.name}.json")


def read_sidecar(path: Path) -> Engine | None:
    """Returns what a sidecar says; None if it is absent or damaged, so that the engine is built again."""
    try:
        data = json.loads(path.read_text())
        if data["schema"] != SCHEMA:
            return None
        key = data["key"]
        capabilities = tuple(map(str, key["compute_capabilities"]))
        profile = Profile(*(int(key["profile"][name]) for name in ("min", "opt", "max")))
        request = Key(**{**key, "compute_capabilities": capabilities, "profile": profile})
        return Engine(
            path.with_name(path.name.removesuffix(".json")),
            request,
            str(data["sha256"]),
            dict(data["layers"]),
            str(data["read_back"]),
        )
    except (OSError, ValueError, KeyError, TypeError, PgsrError):
        return None


def why_stale(engine: Engine, key: Key, batch: int | None = None) -> str | None:
    """Why an engine cannot serve; None if it can.

    With `batch`, an engine serves that was built for more GPUs than `wanted` names, or whose profile differs
    but takes that batch: what the runtime asks. Without, everything is as wanted: what the export asks.
    """
    own = engine.key
    if own.onnx_sha256 != key.onnx_sha256:
        return "it was built from another graph"
    if (own.library, own.version) != (key.library, key.version):
        return f"it was built by {own.library} {own.version} and this is {key.library} {key.version}"
    if own.driver != key.driver:
        return f"it was built with driver {own.driver} and this is {key.driver}"
    if own.precision != key.precision:
        return f"it is {own.precision}, not {key.precision}"
    missing = set(key.compute_capabilities) - set(own.compute_capabilities)
    others = set(own.compute_capabilities) != set(key.compute_capabilities)
    if missing or (others and batch is None):
        return f"it is for compute capability {', '.join(own.compute_capabilities)}"
    if batch is None and own.profile != key.profile:
        return f"its profile is {own.profile}, not {key.profile}"
    if batch is not None and not own.profile.min <= batch <= own.profile.max:
        return f"its profile {own.profile} does not take a batch of {batch}"
    if not engine.path.is_file() or sha256(engine.path) != engine.sha256:
        return "its file is missing or damaged"
    return None


def write_engine(path: Path, key: Key, built: Built) -> Engine:
    """The engine, then its sidecar: an engine without one is never loaded."""
    make_folder(path.parent)
    sidecar(path).unlink(missing_ok=True)
    write_bytes(path, built.data)
    engine = Engine(path, key, hashlib.sha256(built.data).hexdigest(), built.layers, built.read_back)
    data = {
        "schema": SCHEMA,
        "key": dataclasses.asdict(key),
        "sha256": engine.sha256,
        "layers": dict(built.layers),
        "read_back": built.read_back,
    }
    write_text(sidecar(path), json.dumps(data, indent=1, sort_keys=True) + "\n")
    return engine


# ----------------------------------------------------------------------------
# Building.


@dataclass(frozen=True)
class Built:
    """A serialized engine, and its layers' data types as read back from it."""

    data: bytes
    layers: Mapping[str, int]
    read_back: str


def build(trt: Any, onnx: bytes, key: Key, caches: Path | None = None) -> Built:
    """An engine of an ONNX graph whose only dynamic dimension is the batch.

    `trt` is tensorrt or tensorrt_rtx; `caches` is the folder of timing caches. Raises PgsrError if the graph
    or the GPU does not suit the library, or what was built is not of the precision asked for.
    """
    log = quiet_log(trt)
    builder = trt.Builder(log)
    if builder is None:  # pybind's None where the library could not start
        raise PgsrError(f"{key.library} {key.version} cannot start: {log.reason()}")
    network = builder.create_network(_typed(trt, key))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx):
        messages = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)) or log.reason()
        raise PgsrError(f"{key.library} {key.version} cannot read the graph: {messages}")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that data types can be read back
    if key.precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means fp32; who wants speed asks for fp16
    if key.library == "tensorrt-rtx":
        _set_capabilities(trt, config, key)
    config.add_optimization_profile(_profile(builder, network, key.profile))
    timing = _TimingCache(trt, config, key, caches)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise PgsrError(f"{key.library} {key.version} built no engine: {log.reason()}")
    timing.save()
    data = bytes(serialized)
    layers, read_back = _data_types(trt, data, log, network)
    require_precision(layers, key.precision)
    return Built(data, layers, read_back)


def _typed(trt: Any, key: Key) -> int:
    """Every tensor keeps the type the graph gives it; TensorRT 11 knows no other way, and drops the flag."""
    if key.library == "tensorrt" and int(key.version.split(".")[0]) >= 11:
        return 0
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _profile(builder: Any, network: Any, profile: Profile) -> Any:
    described = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        port = network.get_input(i)
        rest = tuple(port.shape)[1:]
        if min(rest, default=1) < 1:
            raise PgsrError("an engine needs a graph of one picture size; this one takes any")
        described.set_shape(port.name, *((n, *rest) for n in (profile.min, profile.opt, profile.max)))
    return described


def _set_capabilities(trt: Any, config: Any, key: Key) -> None:
    """Raises PgsrError for a GPU that this TensorRT-RTX does not build for."""
    members = {n: m for n, m in trt.ComputeCapability.__members__.items() if n.startswith("SM")}
    names = [sm(capability).upper() for capability in key.compute_capabilities]
    unknown = [c for c, n in zip(key.compute_capabilities, names, strict=True) if n not in members]
    if unknown:
        has = ", ".join(f"{name[2:-1]}.{name[-1]}" for name in members)
        raise PgsrError(f"TensorRT-RTX {key.version} does not build for compute capability "
                        f"{', '.join(unknown)}, only for {has}")  # fmt: skip
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        config.set_compute_capability(members[name], index)


class _TimingCache:
    """What the builder timed before, so that the next engine is built sooner. TensorRT-RTX times nothing."""

    def __init__(self, trt: Any, config: Any, key: Key, folder: Path | None) -> None:
        self._config, self._path = config, None
        if folder is None or key.library == "tensorrt-rtx":
            return
        with contextlib.suppress(PgsrError):  # without a cache it only takes longer
            make_folder(folder)
        self._path = folder / f"timing-{key.version}-{sm(key.compute_capabilities[0])}.cache"
        data = self._path.read_bytes() if self._path.is_file() else b""
        # One of another version or GPU is refused by the library and begun anew.
        if not config.set_timing_cache(config.create_timing_cache(data), False):
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def save(self) -> None:
        if self._path is not None:
            with contextlib.suppress(PgsrError):
                write_bytes(self._path, bytes(self._config.get_timing_cache().serialize()))


def quiet_log(trt: Any) -> Any:
    """A logger that keeps errors and the builder's list of layers, and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.layers = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)
            elif message.startswith("Layers:"):
                self.layers = message

        def reason(self) -> str:
            return self.errors[0] if self.errors else "it does not say why"

    return Log()


# ----------------------------------------------------------------------------
# Reading back: what data types an engine's layers really have.

# How the library calls data types in its inspector (10 and 11) and log, and in networks.
NAMES = {
    "fp32": "fp32", "float": "fp32", "fp16": "fp16", "half": "fp16", "bf16": "bf16", "bfloat16": "bf16",
    "int8": "int8", "uint8": "uint8", "int32": "int32", "int64": "int64", "bool": "bool", "fp8": "fp8",
}  # fmt: skip
WORD = re.compile(rf"\b({'|'.join(NAMES)})\b", re.IGNORECASE)
ARITHMETIC = ("fp32", "fp16", "bf16", "int8")


def _data_types(trt: Any, data: bytes, log: Any, network: Any) -> tuple[dict[str, int], str]:
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
