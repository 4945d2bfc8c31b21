"""TensorRT engines: real ones, built by TensorRT-RTX without a GPU; keys, sidecars, data types read back."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bundles as tiny
from pgsr import bundle as contract
from pgsr import gpu
from pgsr.errors import PgsrError
from pgsr.export import engines as export
from pgsr.export.cli import main
from pgsr.files import sha256
from pgsr.tensorrt import building, data_types, library, sidecars
from pgsr.tensorrt.engines import Key, Profile
from pgsr.tensorrt.sidecars import read_sidecar, sidecar, why_stale

try:
    import tensorrt_rtx as rtx
except ImportError:
    rtx = None

needs_rtx = pytest.mark.skipif(rtx is None, reason="pip install 'pgsr[trt-rtx]'")

CAPABILITIES = ("8.6", "8.9", "12.0")
SMALL = Profile(1, 2, 4)


def half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The chain in half precision, float32 where the runtime's contract and rounding want it."""
    cut = [node.op_type for node in model.graph.node].index("Add")
    inside, tail = list(model.graph.node)[:cut], list(model.graph.node)[cut:]
    for node in inside:
        for i, name in enumerate(node.input):
            node.input[i] = "latents_half" if name == "latents" else name
    tail[0].input[0] = "rgb_float"
    for tensor in model.graph.initializer:
        if "weight" in tensor.name or "bias" in tensor.name:
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
            )
    down = helper.make_node("Cast", ["latents"], ["latents_half"], to=TensorProto.FLOAT16)
    up = helper.make_node("Cast", ["rgb"], ["rgb_float"], to=TensorProto.FLOAT)
    del model.graph.node[:]
    model.graph.node.extend([down, *inside, up, *tail])
    onnx.checker.check_model(model, full_check=True)
    return model


def write_both(folder: Path) -> Path:
    """A tiny bundle with its chain in fp32 and fp16."""
    tiny.write_bundle(folder)
    path = folder / "chain.fp16.onnx"
    onnx.save(half(tiny.chain_model()), path)
    bundle = contract.read(folder)
    graph = dataclasses.replace(bundle.graphs[0], precision="fp16", file=path.name, sha256=sha256(path))
    contract.write(dataclasses.replace(bundle, graphs=(bundle.graphs[0], graph)))
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with engines in both precisions; nobody changes it."""
    folder = write_both(tmp_path_factory.mktemp("built") / "bundle")
    export.add_engines(contract.read(folder), "tensorrt-rtx", SMALL, CAPABILITIES)
    return folder


@pytest.fixture
def mine(built: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(built, tmp_path / "bundle"))


def key(**changes: Any) -> Key:
    usual = Key("0" * 64, "tensorrt", "10.9.0", ("8.9",), "580.65", "fp16", SMALL)
    return dataclasses.replace(usual, **changes)


# ----------------------------------------------------------------------------
# Real engines.


@needs_rtx
def test_engines_have_the_precision_of_their_graph(built: Path) -> None:
    """Read back from what the builder made, not from what it was given."""
    for precision, mostly in (("fp32", "fp32"), ("fp16", "fp16")):
        stem = "chain" if precision == "fp32" else "chain.fp16"
        engine = read_sidecar(built / f"{stem}.tensorrt-rtx.sm86-sm89-sm120.engine.json")
        assert engine is not None
        print(f"\n{engine.path.name}: {data_types.histogram(engine.layers)} by the {engine.read_back}")
        assert engine.read_back in ("build log", "inspector")
        assert max(engine.layers, key=lambda name: engine.layers[name]) == mostly
        assert engine.layers["uint8"] == 1  # the pixels
        assert engine.key.compute_capabilities == CAPABILITIES
        assert engine.key.driver is None
        assert engine.load() == engine.path.read_bytes()
    assert (built / "chain.tensorrt-rtx.sm86-sm89-sm120.engine").stat().st_size > 10_000


@needs_rtx
def test_the_shipped_chain_in_half(tmp_path: Path) -> None:
    """The network of people's faces: most layers are half, PixelNorm's inside is not."""
    bundle = contract.read(contract.shipped())
    graph = bundle.graph("chain", "fp16")
    wanted = key(library="tensorrt-rtx", version=rtx.__version__, onnx_sha256=graph.sha256, driver=None)
    made = building.build(rtx, bundle.path(graph).read_bytes(), wanted)
    print(f"\n{graph.file}: {data_types.histogram(made.layers)} by the {made.read_back}")
    assert made.layers["fp16"] > 3 * made.layers["fp32"]


@needs_rtx
def test_an_engine_that_is_not_what_was_asked_is_an_error(built: Path) -> None:
    """The bug that tools have who pass a flag that TensorRT no longer heeds: fp32 in all but name."""
    wanted = key(library="tensorrt-rtx", version=rtx.__version__)
    with pytest.raises(PgsrError, match=r"not fp16: its layers put out \d+ fp32"):
        building.build(rtx, (built / "chain.onnx").read_bytes(), wanted)
    with pytest.raises(PgsrError, match=r"not fp32: its layers put out \d+ fp16"):
        building.build(
            rtx, (built / "chain.fp16.onnx").read_bytes(), dataclasses.replace(wanted, precision="fp32")
        )


@needs_rtx
@pytest.mark.parametrize("version", ["10.4.0", "11.4.1"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorRT-RTX has no use for a timing cache
def test_the_way_of_tensorrt_10_and_11(built: Path, tmp_path: Path, version: str) -> None:
    """TensorRT itself cannot be installed everywhere; its sister takes the same calls: a strongly
    typed network by a flag or by itself, a timing cache read, kept and read again."""
    data = (built / "chain.fp16.onnx").read_bytes()
    asked: list[int] = []

    class Builder(rtx.Builder):
        def create_network(self, flags: int = 0) -> Any:
            asked.append(flags)
            return super().create_network(flags)

    class Stand:
        def __getattr__(self, name: str) -> Any:
            return Builder if name == "Builder" else getattr(rtx, name)

    for _ in range(2):
        made = building.build(Stand(), data, key(version=version), tmp_path / "caches")
        assert made.layers["fp16"] > made.layers.get("fp32", 0)
    typed = 1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert asked == [typed if version.startswith("10") else 0] * 2
    assert (tmp_path / "caches" / f"timing-{version}-sm89.cache").stat().st_size > 0


@needs_rtx
def test_graphs_and_gpus_that_do_not_suit() -> None:
    wanted = key(library="tensorrt-rtx", version=rtx.__version__)
    with pytest.raises(PgsrError, match="cannot read the graph"):
        building.build(rtx, b"no onnx", wanted)
    with pytest.raises(PgsrError, match=r"does not build for compute capability 3\.5, only for 7\.5"):
        building.build(
            rtx,
            tiny.chain_model().SerializeToString(),
            dataclasses.replace(wanted, compute_capabilities=("3.5",)),
        )
    bundle = contract.read(contract.shipped())
    upscaler = bundle.path(bundle.graph("upscaler")).read_bytes()
    with pytest.raises(PgsrError, match="one picture size"):
        building.build(rtx, upscaler, wanted)


@needs_rtx
def test_the_library_tells_why_beside_another_engine() -> None:
    """Whoever came first has the library's logger; both are told what fails."""
    first = library.start(rtx.Runtime, library.quiet_log(rtx), "tensorrt-rtx")
    log = library.quiet_log(rtx)
    second = library.start(rtx.Runtime, log, "tensorrt-rtx")
    assert second.deserialize_cuda_engine(b"no engine") is None
    assert log.reason() != "it does not say why"
    assert library.quiet_log(rtx).reason() == "it does not say why"
    del first


@pytest.mark.parametrize(
    "error", [RuntimeError("Error in set optimization profile async."), ValueError("shape")]
)
def test_what_the_bindings_raise_is_named(error: Exception) -> None:
    with (
        pytest.raises(PgsrError, match=f"tensorrt 10.9 failed: {error}"),
        library.named_errors("tensorrt 10.9"),
    ):
        raise error


def test_a_library_that_does_not_start_is_named() -> None:
    def make(log: Any) -> Any:
        log.errors.append("CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    class Log:
        errors: ClassVar[list[str]] = []

        def reason(self) -> str:
            return self.errors[0]

    for of in (make, lambda log: None):
        with pytest.raises(
            PgsrError, match=r"tensorrt 10.9 cannot start: CUDA initialization failure .*driver"
        ):
            library.start(of, Log(), "tensorrt 10.9")


# ----------------------------------------------------------------------------
# Fresh, stale.


@needs_rtx
def test_the_command_builds_once(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_both(tmp_path / "bundle")
    arguments = (
        *(folder, "--engine", "tensorrt-rtx", "--compute-capability", "8.9,8.6"),
        *("--batch", "1,2,4", "--json"),
    )
    first = command(main, *arguments)
    assert first.exit_code == 0, first.stderr
    told = json.loads(first.stdout)["engines"]
    assert [(e["precision"], e["built"], e["compute_capabilities"]) for e in told] == [
        ("fp32", True, ["8.6", "8.9"]),
        ("fp16", True, ["8.6", "8.9"]),
    ]
    assert told[1]["layers"]["fp16"] > 0
    assert contract.read(folder).path(contract.read(folder).graphs[0]).is_file()  # still a bundle
    monkeypatch.setattr(export, "build", lambda *_: pytest.fail("built again"))
    second = json.loads(command(main, *arguments).stdout)["engines"]
    assert [e["built"] for e in second] == [False, False]


@needs_rtx
def test_what_changed_is_built_again(mine: Path) -> None:
    """The graph, the version, the profile, the file: each makes an engine stale, and only that one."""
    bundle = contract.read(mine)
    name = "chain.tensorrt-rtx.sm86-sm89-sm120.engine"

    def again(profile: Profile = SMALL) -> dict[str, str]:
        made = export.add_engines(contract.read(mine), "tensorrt-rtx", profile, CAPABILITIES)
        return {one.graph.precision: one.reason for one in made}

    assert again() == {"fp32": "", "fp16": ""}
    (mine / name).write_bytes((mine / name).read_bytes()[:-1])
    assert again() == {"fp32": "its file is missing or damaged", "fp16": ""}
    text = sidecar(mine / name).read_text()
    sidecar(mine / name).write_text(text.replace(rtx.__version__, "1.0.0"))
    assert "built by tensorrt-rtx 1.0.0" in again()["fp32"]
    sidecar(mine / name).write_text("{")
    assert again() == {"fp32": "there was none", "fp16": ""}
    onnx.save(tiny.chain_model(seed=5), mine / "chain.onnx")
    changed = dataclasses.replace(bundle.graphs[0], sha256=sha256(mine / "chain.onnx"))
    contract.write(dataclasses.replace(bundle, graphs=(changed, bundle.graphs[1])))
    assert again() == {"fp32": "it was built from another graph", "fp16": ""}
    assert again(Profile(1, 1, 8))["fp16"] == "its profile is 1,2,4, not 1,1,8"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"onnx_sha256": "1" * 64}, "another graph"),
        ({"library": "tensorrt-rtx"}, "built by tensorrt 10.9.0 and this is tensorrt-rtx"),
        ({"version": "11.0.0"}, "10.9.0 and this is tensorrt 11.0.0"),
        ({"compute_capabilities": ("9.0",)}, "compute capability 8.9"),
        ({"driver": "590.1"}, "driver 580.65 and this is 590.1"),
        ({"precision": "fp32"}, "it is fp16, not fp32"),
        ({"profile": Profile(1, 2, 8)}, "profile is 1,2,4, not 1,2,8"),
    ],
)
def test_everything_an_engine_depends_on_makes_it_stale(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    made = building.Built(b"engine", {"fp16": 3}, "inspector")
    path = tmp_path / "chain.engine"
    written = sidecars.write_engine(path, key(), made)
    held = read_sidecar(sidecar(path))
    assert held == written
    assert why_stale(held, key()) is None
    assert words in (why_stale(held, key(**changes)) or "")


def test_what_the_runtime_accepts(tmp_path: Path) -> None:
    """An engine for several GPUs and a range of batches serves each of them."""
    path = tmp_path / "chain.engine"
    both = key(compute_capabilities=("8.6", "8.9"), profile=Profile(2, 4, 8))
    sidecars.write_engine(path, both, building.Built(b"engine", {"fp16": 3}, "inspector"))
    held = read_sidecar(sidecar(path))
    assert held is not None
    wanted = key(profile=Profile(1, 16, 64))
    assert [why_stale(held, wanted, batch) is None for batch in (1, 2, 8, 9)] == [False, True, True, False]
    assert "compute capability" in (why_stale(held, wanted) or "")
    path.unlink()
    assert why_stale(held, wanted, 4) == "its file is missing or damaged"
    with pytest.raises(PgsrError, match="missing or damaged"):
        held.load()


def test_a_damaged_sidecar_is_none(tmp_path: Path) -> None:
    path = tmp_path / "chain.engine"
    sidecars.write_engine(path, key(), building.Built(b"engine", {"fp16": 3}, "inspector"))
    whole = sidecar(path).read_text()
    changes = (('"schema": 1', '"schema": 2'), ('"min": 1', '"min": 9'), ('"driver"', '"chauffeur"'))
    for text in ("", "[]", "{}", whole[:-9], *(whole.replace(*change) for change in changes)):
        sidecar(path).write_text(text)
        assert read_sidecar(sidecar(path)) is None
    assert read_sidecar(tmp_path / "none.json") is None


# ----------------------------------------------------------------------------
# Data types: as the library tells them.

TENSORRT_10: dict[str, Any] = {
    "Layers": [
        {"Name": "conv", "Outputs": [{"Name": "a", "Dimensions": [1, 8], "Format/Datatype": "Half"}]},
        {
            "Name": "copy",
            "Outputs": [{"Name": "b", "Format/Datatype": "Row major linear FP16 format"}],
        },
        {"Name": "out", "Outputs": [{"Name": "c", "Format/Datatype": "Thirty-two wide Int8 format"}]},
        "a layer of which only the name is known",
    ],
    "Bindings": ["latents", "pixels"],
}
TENSORRT_11 = {
    "Layers": [
        {"Name": "conv", "Outputs": [{"Name": "a", "Format": "(Linear) Row major", "DataType": "Half"}]},
        {"Name": "norm", "Outputs": [{"Name": "b", "Format": "(NHWC)", "Datatype": "BFloat16"}]},
        {"Name": "pixels", "Outputs": [{"Name": "c", "DataType": "UInt8"}]},
    ],
    "I/O Tensors": [{"Name": "latents", "DataType": "Float"}],
}
LOGGED = """Layers:
Name: x, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0
Name: y, LayerType: gemm, Inputs: [ { Name: a, Dimensions: [-1,8], Datatype: Float, Format: F }], Constants: \
[ { Name: w, Datatype: Half }], Outputs: [ { Name: b, Dimensions: [-1,9], Datatype: Half, Format: F }, \
{ Name: c, Dimensions: [1], Datatype: Float, Format: F }], TacticName: t, Metadata: [ONNX Layer: z]

I/O Tensors:
 Name: latents, IOMode: Input, DataType: Float, Dimensions: [-1,8]
"""


def test_data_types_of_every_version() -> None:
    assert data_types.inspected_types(json.dumps(TENSORRT_10)) == {"fp16": 2, "int8": 1}
    assert data_types.inspected_types(json.dumps(TENSORRT_11)) == {"fp16": 1, "bf16": 1, "uint8": 1}
    assert data_types.logged_types(LOGGED) == {"fp16": 1, "fp32": 1}
    assert data_types.inspected_types('{"Layers": ["names", "only"]}') == {}
    dynamic = {"Outputs": [{"Name": "d", "Format/Datatype": "N/A due to dynamic shapes"}]}
    partly = {"Layers": [*TENSORRT_10["Layers"], dynamic]}
    assert data_types.inspected_types(json.dumps(partly)) == {}  # what is told is not all


@needs_rtx
def test_data_types_of_a_network(built: Path) -> None:
    """What is left where an engine tells nothing."""
    log = library.quiet_log(rtx)
    network = rtx.Builder(log).create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert rtx.OnnxParser(network, log).parse((built / "chain.fp16.onnx").read_bytes())
    found = data_types.network_types(network)
    assert found["fp16"] >= 5
    assert found["uint8"] == 1


@pytest.mark.parametrize(
    ("layers", "right"),
    [
        ({"fp32": 9, "uint8": 1}, {"fp32"}),
        ({"fp32": 9, "fp16": 1}, set()),
        ({"fp32": 9, "fp16": 10, "uint8": 1}, {"fp16"}),
        ({"fp32": 3, "bf16": 10, "int64": 90}, {"bf16"}),
        ({"fp32": 9, "fp16": 9, "int8": 4}, {"int8"}),
        ({"uint8": 1}, set()),
        ({}, set()),
    ],
)
def test_what_counts_as_a_precision(layers: dict[str, int], right: set[str]) -> None:
    for precision in ("fp32", "fp16", "bf16", "int8"):
        if precision in right:
            data_types.require_precision(layers, precision)
        else:
            with pytest.raises(PgsrError, match=f"not {precision}"):
                data_types.require_precision(layers, precision)


# ----------------------------------------------------------------------------
# Refusals of the command.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--engine", "tensorrt2"], "'tensorrt2' is not one of 'tensorrt', 'tensorrt-rtx'"),
        (["--batch", "1"], "--batch is for an --engine"),
        (["--compute-capability", "8.6"], "--compute-capability is for an --engine"),
        (["--engine", "tensorrt-rtx", "--batch", "1,2"], "not MIN,OPT,MAX"),
        (["--engine", "tensorrt-rtx", "--batch", "4,2,1"], "not MIN,OPT,MAX in this order"),
        (["--engine", "tensorrt-rtx", "--batch", "0"], "from 1"),
        (["--engine", "tensorrt-rtx", "--compute-capability", "ampere"], "not a number such as 8.9"),
        (["--engine", "tensorrt-rtx", "--compute-capability", "3.5"], "only for"),
    ],
)
def test_refusals(command: Callable[..., Any], tmp_path: Path, options: list[str], words: str) -> None:
    if rtx is None and "tensorrt-rtx" in options and "3.5" in options:
        pytest.skip("pip install 'pgsr[trt-rtx]'")
    folder = tiny.write_bundle(tmp_path / "bundle")
    done = command(main, folder, *options)
    assert done.exit_code == 1
    assert words in done.stderr
    assert done.stderr.count("\n") - done.stderr.count("building") == 1
    assert not list(folder.glob("*.engine*"))


def test_libraries_that_are_not_installed(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.write_bundle(tmp_path / "bundle")
    for module, name, extra in (
        ("tensorrt", "tensorrt", "trt"),
        ("tensorrt_rtx", "tensorrt-rtx", "trt-rtx"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        done = command(main, folder, "--engine", name)
        assert done.exit_code == 1
        assert f"pip install 'pgsr[{extra}]'" in done.stderr


def test_tensorrt_needs_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(index: int = 0) -> gpu.Gpu:
        raise PgsrError("no NVIDIA driver is installed (libcuda.so.1 is not found)")

    monkeypatch.setattr(export, "find_gpu", none)
    with pytest.raises(
        PgsrError, match=r"GPU that is present, and no NVIDIA driver .* --engine tensorrt-rtx"
    ):
        export.targets(object(), "tensorrt", ())
    monkeypatch.setattr(export, "find_gpu", lambda index=0: gpu.Gpu(0, "a GPU", "8.9", "580.65"))
    assert export.targets(object(), "tensorrt", ()) == (("8.9",), "580.65")
    assert export.targets(object(), "tensorrt", ("8.9",)) == (("8.9",), "580.65")
    with pytest.raises(PgsrError, match=r"which is 8\.9: leave --compute-capability out"):
        export.targets(object(), "tensorrt", ("8.6",))


def test_without_out_and_without_a_bundle(command: Callable[..., Any], tmp_path: Path) -> None:
    done = command(main, tmp_path)
    assert done.exit_code == 2
    assert "--out" in done.stderr


def test_no_driver_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_library", lambda name: None)
    with pytest.raises(PgsrError, match="no NVIDIA driver is installed"):
        gpu.find_gpu()


class FakeDriver:
    """libcuda and NVML as find_gpu calls them: one GPU of 8.9."""

    def __init__(self, starts: bool = True, nvml: bool = True) -> None:
        self.starts, self.nvml = starts, nvml

    def cuInit(self, flags: int) -> int:
        return 0 if self.starts else 100

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = 1
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = 7
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = b"A GPU"
        return 0 if device.value == 7 else 101

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = {gpu.MAJOR: 8, gpu.MINOR: 9}[attribute]
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 13010
        return 0

    def nvmlInit_v2(self) -> int:
        return 0 if self.nvml else 9

    def nvmlSystemGetDriverVersion(self, text: Any, size: int) -> int:
        text.value = b"580.65.06"
        return 0

    def nvmlShutdown(self) -> int:
        return 0


def test_what_the_driver_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_library", lambda name: FakeDriver())
    assert gpu.find_gpu() == gpu.Gpu(0, "A GPU", "8.9", "580.65.06")
    with pytest.raises(PgsrError, match="there is no GPU 1; the driver sees 1"):
        gpu.find_gpu(1)
    monkeypatch.setattr(gpu, "_library", lambda name: FakeDriver(nvml=False))
    assert gpu.find_gpu().driver == "CUDA 13.1"
    monkeypatch.setattr(gpu, "_library", lambda name: FakeDriver(starts=False))
    with pytest.raises(PgsrError, match="CUDA error 100"):
        gpu.find_gpu()
