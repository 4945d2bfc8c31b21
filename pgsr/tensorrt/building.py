"""Building engines from ONNX graphs, for the GPU that is present or for any."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgsr.errors import PgsrError
from pgsr.files import make_folder, write_bytes

from .data_types import data_types, require_precision
from .engines import Key, Profile, sm
from .library import named_errors, quiet_log, start

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
    with named_errors(f"{key.library} {key.version}"):
        return _build(trt, onnx, key, caches)


def _build(trt: Any, onnx: bytes, key: Key, caches: Path | None) -> Built:
    log = quiet_log(trt)
    name = f"{key.library} {key.version}"
    builder = start(trt.Builder, log, name)
    network = builder.create_network(_typed(trt, key))
    parser = start(trt.OnnxParser, log, name, network)
    if not parser.parse(onnx):
        messages = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)) or log.reason()
        raise PgsrError(f"{name} cannot read the graph: {messages}")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that data types can be read back
    if key.precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means fp32; who wants speed asks for fp16
    if key.library == "tensorrt-rtx":
        _set_capabilities(trt, config, key)
    if config.add_optimization_profile(_profile(builder, network, key.profile)) < 0:
        raise PgsrError(f"{name} does not take the batches {key.profile}: {log.reason()}")
    timing = _TimingCache(trt, config, key, caches)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise PgsrError(f"{name} built no engine: {log.reason()}")
    timing.save()
    data = bytes(serialized)
    layers, read_back = data_types(trt, data, log, network)
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
        if not config.set_compute_capability(members[name], index):
            raise PgsrError(f"TensorRT-RTX {key.version} does not take {name} beside the others: name fewer")


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
