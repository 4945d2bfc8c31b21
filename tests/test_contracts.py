"""The adapters use just the names and arguments that the GPU libraries have.

Their syntax trees are held against tables of signatures (signatures.py), read from what is installed, or from
tests/contracts/ for what cannot be. With -s the names are printed.
"""

from __future__ import annotations

import inspect
import re
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import recording_libraries as libraries
from pgsr import bundle as contract
from pgsr.runtime.backends import Settings, cuda, ort
from signatures import (
    Table,
    Types,
    Use,
    cuda_lines,
    onnxruntime_lines,
    pybind_lines,
    read_table,
    stored,
    uses,
)

ROOT = Path(__file__).resolve().parents[1]
Seeds = dict[str, dict[str, Types]]

# Where a library's objects come in: of each file, by function ("*": everywhere), variables and their classes.
TENSORRT: Seeds = {
    "pgsr/tensorrt/building.py": {
        "*": {"trt": ""},
        "_profile": {"builder": "Builder", "network": "INetworkDefinition"},
        "_set_capabilities": {"config": "IBuilderConfig"},
        "__init__": {"config": "IBuilderConfig"},
        "save": {"self._config": "IBuilderConfig"},
    },
    "pgsr/tensorrt/data_types.py": {
        "*": {"trt": ""},
        "network_types": {"network": "INetworkDefinition", "layer": "ILayer", "output": "ITensor"},
    },
    "pgsr/tensorrt/library.py": {"*": {"trt": ""}},
    "runtime/backends/trt.py": {
        "*": {
            "trt": "",
            "self._trt": "",
            "context": "IExecutionContext",
            "self._context": "IExecutionContext",
            "self._engine": "ICudaEngine",
            "self.config": "IRuntimeConfig",
            "self._cache": "IRuntimeCache",
        },
        "__init__": {"engine": "ICudaEngine"},
    },
    "export/engines.py": {"*": {"trt": ""}},
}
# What TensorRT-RTX alone has, in lines that TensorRT does not reach.
RTX_ALONE = re.compile(
    "IRuntimeConfig|IRuntimeCache|ComputeCapability|CudaGraphStrategy|DynamicShapes|capabilit|runtime_config"
)

ORT: Seeds = {
    "runtime/backends/ort.py": {
        "*": {
            "onnxruntime": "",
            "session": "InferenceSession",
            "self._session": "InferenceSession",
            "options": "SessionOptions",
        },
    },
    "runtime/backends/ort_bound.py": {
        "*": {
            "session": "InferenceSession",
            "self._session": "InferenceSession",
            "self._binding": "IOBinding",
        },
    },
}
PYCUDA: Seeds = {
    "runtime/backends/cuda.py": {
        "*": {
            "self._driver": "",
            "self._context": "Context",
            "context": "Context",
            "self._streams[stream]": "Stream",
            "owner": "PagelockedHostAllocation",
        },
    },
}


def used(seeds: Seeds, table: Table) -> list[Use]:
    """Every use of a library by its adapters."""
    return [use for file, of in seeds.items() for use in uses((ROOT / file).read_text(), table, of)]


def wrong(found: list[Use], table: Table) -> list[str]:
    return [told for told in (use.wrong(table) for use in found) if told]


@cache
def installed_rtx() -> Table:
    rtx = pytest.importorskip("tensorrt_rtx", reason="pip install 'pgsr[trt-rtx]'")
    return read_table(pybind_lines(rtx))


@cache
def installed_cuda() -> Table:
    driver = pytest.importorskip("cuda.bindings.driver", reason="pip install 'pgsr[trt-rtx]'")
    return read_table(cuda_lines(driver))


@cache
def installed_onnxruntime() -> Table:
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'pgsr[cpu]'")
    return read_table(onnxruntime_lines(onnxruntime))


# ----------------------------------------------------------------------------
# TensorRT.


@pytest.mark.parametrize("version", ["10.4.0", "10.16.1", "11.4.0"])
def test_tensorrt_has_what_is_used(version: str) -> None:
    table = stored(f"tensorrt-{version}")
    found = [use for use in used(TENSORRT, table) if not RTX_ALONE.search(use.name)]
    listed = sorted({use.name for use in found})
    print(f"\nTensorRT {version}: {len(found)} uses of {', '.join(listed)}")
    assert len(listed) > 40
    assert not wrong(found, table)


def test_tensorrt_rtx_has_what_is_used() -> None:
    table = installed_rtx()
    found = used(TENSORRT, table)
    listed = sorted({use.name for use in found})
    print(f"\nTensorRT-RTX: {len(found)} uses of {', '.join(listed)}")
    assert any(RTX_ALONE.search(name) for name in listed)
    assert not wrong(found, table)


def test_nothing_is_overlooked() -> None:
    """What the stand-ins offer, since the adapters would not run without it, is among what is checked."""
    table = stored("tensorrt-10.16.1")
    rtx = installed_rtx()
    checked = {use.name for use in (*used(TENSORRT, table), *used(TENSORRT, rtx))}
    driver: Any = _NoDriver()
    module = libraries.tensorrt(driver, "10.16.1")
    offered = {f"{c}.{m}" for c, m in _methods(module) if c in table or c in rtx}
    unused = {"IHostMemory.__bytes__", "ILogger.log"}
    assert offered - checked - unused == set()


# ----------------------------------------------------------------------------
# cuda-python and pycuda.


def driver_calls() -> list[Use]:
    """self._call("cuMemAlloc", size) in the adapter calls driver.cuMemAlloc(size)."""
    source = Path(cuda.__file__).read_text()
    found = []
    for match in re.finditer(r"self\._call\(\s*\"(cu\w+)\"((?:[^()]|\([^()]*\))*)\)", source):
        arguments = [a for a in re.split(r",(?![^(]*\))", match[2]) if a.strip()]
        found.append(Use(source[: match.start()].count("\n") + 1, match[1], len(arguments)))
    assert len(found) == len(re.findall(r"self\._call\(", source)) - 1  # one passes on another's name
    return found


@pytest.mark.parametrize("version", ["12.8.0", "installed"])
def test_cuda_python_has_what_is_used(version: str) -> None:
    table = installed_cuda() if version == "installed" else stored(f"cuda-bindings-{version}")
    found = driver_calls()
    print(f"\ncuda-bindings {version}: {', '.join(sorted({use.name for use in found}))}")
    assert len({use.name for use in found}) > 18
    assert not wrong(found, table)
    assert "CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL" in table
    assert "CUstream_flags.CU_STREAM_NON_BLOCKING" in table


def test_the_flag_of_streams_is_the_drivers() -> None:
    driver = pytest.importorskip("cuda.bindings.driver", reason="pip install 'pgsr[trt-rtx]'")
    assert int(driver.CUstream_flags.CU_STREAM_NON_BLOCKING) == cuda.NON_BLOCKING


@pytest.mark.parametrize("version", ["2024.1", "2026.1"])
def test_pycuda_has_what_is_used(version: str) -> None:
    table = stored(f"pycuda-{version}")
    source = inspect.getsource(cuda.PyCuda)
    found = uses(source, table, PYCUDA["runtime/backends/cuda.py"])
    print(f"\npycuda {version}: {', '.join(sorted({use.name for use in found}))}")
    assert len({use.name for use in found}) > 12
    assert not wrong(found, table)
    assert not any("capture" in name for name in table.names)  # or else record can do something


# ----------------------------------------------------------------------------
# ONNX Runtime.


@pytest.mark.parametrize("version", ["gpu-1.31.1", "installed"])
def test_onnxruntime_has_what_is_used(version: str) -> None:
    table = installed_onnxruntime() if version == "installed" else stored(f"onnxruntime-{version}")
    found = used(ORT, table)
    print(f"\nonnxruntime {version}: {', '.join(sorted({use.name for use in found}))}")
    assert {"InferenceSession.run_with_iobinding", "SessionOptions.add_session_config_entry"} <= {
        use.name for use in found
    }
    assert not wrong(found, table)


def test_provider_options_are_known_by_the_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their names, and what switches take, by the strings in the libraries of onnxruntime-gpu."""
    monkeypatch.setenv("PGSR_CACHE", str(tmp_path))
    options = stored("onnxruntime-gpu-1.31.1").options
    bundle = contract.read(contract.shipped())
    settings = Settings("cuda:1", batch=7)
    asked = {
        **ort.cuda_options(settings),
        **ort.tensorrt_options(bundle.graph("chain"), settings),
        **ort.tensorrt_options(bundle.graph("upscaler"), settings),
    }
    text = Path(ort.__file__).with_name("ort_bound.py").read_text()
    bound = re.findall(r"\"(user_compute_stream|enable_cuda_graph)\": ", text)
    assert len(bound) == 2
    entries = re.findall(r"add_session_config_entry\(\"([\w.]+)\"", Path(ort.__file__).read_text())
    assert len(entries) >= 3
    print("\n", ", ".join(sorted({*asked, *bound, *entries})))
    assert {*asked, *bound, *entries} <= set(options)
    for name, value in asked.items():
        if options[name]:
            assert value in options[name], f"{name} takes {' or '.join(options[name])}, not {value}"
    switches = [name for name in asked if options[name] == ["True", "False"]]
    assert len(switches) == 2


def test_session_entries_are_known_by_the_installed_one() -> None:
    options = installed_onnxruntime().options
    entries = re.findall(r"add_session_config_entry\(\"([\w.]+)\"", Path(ort.__file__).read_text())
    assert set(entries) <= set(options)


# ----------------------------------------------------------------------------
# The stand-ins of recorded.py have the real names and arguments.


class _NoDriver:
    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: 0


def _methods(module: ModuleType) -> list[tuple[str, str]]:
    classes = {n: c for n, c in vars(module).items() if inspect.isclass(c)}
    return [
        (name, method)
        for name, cls in classes.items()
        for method, value in vars(cls).items()
        if inspect.isfunction(value) and not method.startswith("_") and value.__name__ != "read"
    ]


@pytest.mark.parametrize("name", ["tensorrt-10.16.1", "tensorrt-11.4.0", "pycuda-2026.1", "onnxruntime"])
def test_stand_ins_have_the_real_signatures(name: str) -> None:
    driver: Any = _NoDriver()
    if name.startswith("pycuda"):
        table, module = stored(name), libraries.pycuda(driver, Path("libc.so.6"))
    elif name == "onnxruntime":
        table, module = installed_onnxruntime(), libraries.onnxruntime_gpu(driver)
    else:
        table, module = stored(name), libraries.tensorrt(driver, name.partition("-")[2])
        table.names |= {name for name in installed_rtx().names if RTX_ALONE.search(name)}
    checked = 0
    for cls, method in _methods(module):
        path = f"{cls}.{method}"
        if path in table.signatures and table.signatures[path] != [[]]:
            given = list(inspect.signature(getattr(getattr(module, cls), method)).parameters)[1:]
            takes = [[p.rstrip("=") for p in overload] for overload in table.signatures[path]]
            assert given in takes, f"{path}{given} stands for {takes}"
            checked += 1
        else:
            known = cls not in table or path in table or (cls, method) in {("ParserError", "desc")}
            assert known, f"{path} is in the stand-in alone"
    assert checked >= {"pycuda-2026.1": 0, "onnxruntime": 4}.get(name, 15)


# ----------------------------------------------------------------------------
# The check finds what is wrong.


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("create_execution_context()", "create_context()", "there is no ICudaEngine.create_context"),
        ("execute_async_v3(self._stream)", "execute_async_v3()", "with 0 arguments takes (stream_handle)"),
        (
            "execute_async_v3(self._stream)",
            "execute_async_v3(stream=self._stream)",
            "with 0 arguments, stream=",
        ),
        (
            "set_input_shape(source.name, source.shape)",
            "set_input_shape(source.shape)",
            "takes (name, shape)",
        ),
        ("WHOLE_GRAPH_CAPTURE", "GRAPH", "there is no CudaGraphStrategy.GRAPH"),
        ("deserialize_cuda_engine(data)", "deserialize_engine(data)", "no Runtime.deserialize_engine"),
    ],
)
def test_a_wrong_name_is_found(old: str, new: str, words: str) -> None:
    table = installed_rtx()
    source = (ROOT / "runtime/backends/trt.py").read_text()
    assert old in source
    found = uses(source.replace(old, new), table, TENSORRT["runtime/backends/trt.py"])
    assert any(words in line for line in wrong(found, table)), wrong(found, table)


def test_what_pycuda_never_had_is_found() -> None:
    source = "def record(self, stream):\n  stream.begin_capture(self._driver.capture_mode.THREAD_LOCAL)\n"
    table = stored("pycuda-2026.1")
    told = wrong(uses(source, table, {"*": {"self._driver": "", "stream": "Stream"}}), table)
    assert {line.partition("no ")[2] for line in told} >= {"Stream.begin_capture", "capture_mode"}
