"""The backends: the same faces on each, the fastest one chosen once, what is there and what is missing."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import bundles as tiny
from pgsr import bundle as contract
from pgsr import draws
from pgsr.bundle import Bundle
from pgsr.errors import PgsrError
from pgsr.files import sha256
from pgsr.gpu import Gpu
from pgsr.machine import processor_flags
from pgsr.runtime import measured as remembered
from pgsr.runtime.backends import BACKENDS, Backend, Settings, choice, listing, open_runner, ort
from pgsr.runtime.backends.openvino import one_core
from pgsr.runtime.generate.cli import main

openvino = pytest.importorskip("openvino", reason="pip install 'pgsr[openvino]'")

COUNT = 5
RGB_LEVELS = 255


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return contract.read(contract.shipped())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return contract.read(tiny.write_bundle(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def reference(shipped: Bundle) -> np.ndarray:
    """Images 0 to 4 of seed 11 by ONNX Runtime in float32."""
    return faces(shipped, "onnxruntime")


def faces(bundle: Bundle, backend: str, precision: str = "fp32", **options: Any) -> np.ndarray:
    latents = draws.latents(11, range(COUNT), bundle.latent_size)
    with open_runner(bundle, "cpu", precision, backend, threads=1, **options) as runner:
        return runner.run(latents)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return 10 * float(np.log10(RGB_LEVELS**2 / max(error, 1e-12)))


# ----------------------------------------------------------------------------
# The same faces.


def test_openvino_makes_the_faces_of_onnx_runtime(shipped: Bundle, reference: np.ndarray) -> None:
    made = faces(shipped, "openvino")
    assert made.shape == reference.shape
    assert made.dtype == np.uint8
    difference = np.abs(made.astype(int) - reference.astype(int))
    print(f"\nfp32: {difference.max()} of 255 at most, {np.mean(difference > 0):.1e} of the values differ")
    assert difference.max() <= 2


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_half_precision_is_close(shipped: Bundle, reference: np.ndarray, backend: str) -> None:
    found = psnr(faces(shipped, backend, "fp16"), reference)
    print(f"\n{backend} fp16: {found:.1f} dB")
    assert found >= 45


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_int8_is_close(shipped: Bundle, reference: np.ndarray, backend: str) -> None:
    found = psnr(faces(shipped, backend, "int8"), reference)
    print(f"\n{backend} int8: {found:.1f} dB")
    assert found >= 35


def test_bfloat16_where_the_cpu_has_it(
    shipped: Bundle, reference: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere it is refused, since it would be slower and less exact; here it is computed all the same, by
    emulation, to see how exact it is."""
    graph = dataclasses.replace(shipped.graph("chain"), precision="bf16")
    bundle = dataclasses.replace(shipped, graphs=(graph,))
    if "BF16" not in one_core(openvino).get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(PgsrError, match=r"--precision bf16: .* use --precision fp32"):
            faces(bundle, "openvino", "bf16")
        from pgsr.runtime.backends import openvino as module

        monkeypatch.setattr(module, "_precision", lambda core, precision: "bf16")
    found = psnr(faces(bundle, "openvino", "bf16"), reference)
    print(f"\nopenvino bf16: {found:.1f} dB")
    assert found >= 42


def bf16_at_all() -> bool:
    """Whether OpenVINO computes in bf16 here, be it by emulation."""
    return "avx512f" in processor_flags()


def test_layers_at_low_resolutions_stay_in_float32(shipped: Bundle) -> None:
    """Of a model compiled for bf16, emulated or not."""
    from pgsr.runtime.backends import openvino as module

    core = one_core(openvino)
    if not bf16_at_all():
        pytest.skip("OpenVINO computes in bf16 from AVX-512 on")
    path = str(shipped.path(shipped.graph("generator")))
    compiled = core.compile_model(
        module.read_model(openvino, core, path, "bf16"), "CPU", {"INFERENCE_PRECISION_HINT": "bf16"}
    )
    found: dict[int, set[str]] = {}
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if info["layerType"].value == "Convolution":
            side = node.get_output_partial_shape(0)[2].get_length()
            found.setdefault(side, set()).add(info["runtimePrecision"].value)
    assert found == {4: {"f32"}, 8: {"f32"}, 16: {"f32"}, 32: {"bf16"}, 64: {"bf16"}}


def test_openvino_computes_the_network(small: Bundle) -> None:
    made = faces(small, "openvino")
    expected = tiny.expected_pixels(draws.latents(11, range(COUNT), tiny.LATENT))
    assert np.abs(made - expected).max() < 0.5 + 1e-3


@pytest.mark.parametrize("mode", ["latency", "asynchronous"])
def test_openvino_bytes_do_not_depend_on_the_batch(
    small: Bundle, own_cache: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Nor on threads, nor on how many requests run at once."""
    monkeypatch.setattr(remembered, "recall", lambda kind, key: mode)
    latents = draws.latents(3, range(21), tiny.LATENT)

    def images(batch: int, threads: int = 1) -> np.ndarray:
        with open_runner(small, "cpu", "fp32", "openvino", threads=threads, batch=batch) as runner:
            return np.concatenate([runner.run(latents[i : i + batch]) for i in range(0, 21, batch)])

    all_at_once = images(21)
    for batch in (1, 2, 5, 16):
        assert np.array_equal(images(batch), all_at_once)
    assert np.array_equal(images(16, threads=2), all_at_once)


SIGNALLED = """
import os, signal, sys, threading
from pathlib import Path
from pgsr import bundle, draws
from pgsr.runtime.backends import open_runner
opened = bundle.read(Path(sys.argv[1]))
told = []
signal.signal(signal.SIGUSR1, lambda *_: told.append(1))
runners = [open_runner(opened, "cpu", "fp32", "openvino", threads=1) for _ in range(3)]
def close():
    while runners:
        with runners.pop(0) as runner:
            runner.run(draws.latents(0, [0], opened.latent_size))
        del runner
thread = threading.Thread(target=close)
thread.start()
thread.join()
for _ in range(3):
    os.kill(os.getpid(), signal.SIGUSR1)
print(len(told))
"""


def test_signals_after_openvino_was_closed_on_another_thread(small: Bundle) -> None:
    """As when pgsr-serve reloads its bundles: the next SIGTERM must not be a SIGSEGV."""
    command = [sys.executable, "-c", SIGNALLED, str(small.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout.strip()) == (0, "3"), done.stderr


def test_an_openvino_request_that_fails_leaves_all_free(small: Bundle) -> None:
    latents = draws.latents(3, range(21), tiny.LATENT)
    wrong = np.zeros((21, tiny.LATENT + 1), dtype=np.float32)
    with open_runner(small, "cpu", "fp32", "openvino", threads=1, batch=4) as runner:
        expected = runner.run(latents)
        for _ in range(5):  # more often than there are requests
            with pytest.raises(PgsrError, match=r"could not run a batch of 21; try a smaller --batch"):
                runner.run(wrong)
        assert np.array_equal(runner.run(latents), expected)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_closed_runner_says_so_and_does_not_wait(small: Bundle, backend: str) -> None:
    with open_runner(small, "cpu", "fp32", backend, threads=1, batch=4) as runner:
        pass
    with runner, pytest.raises(PgsrError, match="could not run a batch of 4"):
        runner.run(draws.latents(3, range(4), tiny.LATENT))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_several_threads_may_call_at_once(small: Bundle, backend: str) -> None:
    latents = draws.latents(3, range(48), tiny.LATENT)
    with open_runner(small, "cpu", "fp32", backend, threads=1, batch=8) as runner:
        alone = [runner.run(latents[i : i + 8]) for i in range(0, 48, 8)]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(runner.run, [latents[i : i + 8] for i in range(0, 48, 8)]))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_openvino_takes_pictures_of_any_size(shipped: Bundle) -> None:
    """An upscaler's graph leaves height and width open."""
    pictures = np.random.default_rng(0).uniform(-1, 1, (3, 3, 12, 20)).astype(np.float32)
    made = []
    for backend in ("onnxruntime", "openvino"):
        with open_runner(shipped, "cpu", "fp32", backend, "upscaler", threads=1) as runner:
            made.append(runner.run(pictures))
            assert runner.run(pictures[:1, :, :, :16]).shape == (1, 3, 48, 64)
    assert made[0].shape == (3, 3, 48, 80)
    assert np.abs(made[0] - made[1]).max() < 1e-4


def test_openvino_says_what_is_wrong(tmp_path: Path, small: Bundle) -> None:
    folder = tiny.write_bundle(tmp_path / "model")
    path = folder / "chain.onnx"
    right = sha256(path)
    path.write_bytes(path.read_bytes()[:100])
    manifest = folder / contract.MANIFEST
    manifest.write_text(manifest.read_text().replace(right, sha256(path)))
    with pytest.raises(PgsrError, match=r"OpenVINO .* cannot open"):
        open_runner(contract.read(folder), backend="openvino")
    with pytest.raises(PgsrError, match="runs on cpu, not on --device cuda:1"):
        open_runner(small, "cuda:1", backend="openvino")
    with (
        open_runner(small, backend="openvino") as runner,
        pytest.raises(PgsrError, match="could not run a batch of 2"),
    ):
        runner.run(np.zeros((2, tiny.LATENT + 1), dtype=np.float32))


def test_a_missing_package_is_a_sentence(small: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, entry in BACKENDS.items():
        monkeypatch.setitem(sys.modules, entry.library, None)
        with pytest.raises(PgsrError, match=rf"the {name} backend .*pip install 'pgsr\[{entry.extra}\]'"):
            open_runner(small, backend=name)


# ----------------------------------------------------------------------------
# auto.


def counted(monkeypatch: pytest.MonkeyPatch, speeds: dict[str, float]) -> list[list[str]]:
    """Lets `measure` give back these speeds, and says what it was asked to measure."""
    asked: list[list[str]] = []

    def measure(runners: Any, values: Any) -> dict[str, float]:
        asked.append(list(runners))
        return {name: speeds[name] for name in runners}

    monkeypatch.setattr(choice, "measure", measure)
    return asked


@pytest.mark.parametrize(
    ("speed", "provider"), [(2.0, "OpenVINO"), (1.05, "CPUExecutionProvider"), (0.5, "CPUExecution")]
)
def test_auto_takes_the_fastest_and_measures_once(
    small: Bundle, own_cache: Path, monkeypatch: pytest.MonkeyPatch, speed: float, provider: str
) -> None:
    """Where they are equally fast, the one that BACKENDS names first."""
    asked = counted(monkeypatch, {"onnxruntime": 1.0, "openvino": speed})
    for _ in range(2):
        for options in ({}, {"threads": 2}, {"batch": 3}, {"device": "cpu"}):
            with open_runner(small, **options) as runner:
                assert runner.provider.startswith(provider)
    assert asked == [["onnxruntime", "openvino"]]


@pytest.mark.parametrize("what", ["version", "machine", "graph", "gpu"])
def test_auto_measures_again_when_something_changed(
    small: Bundle, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    asked = counted(monkeypatch, {"onnxruntime": 1.0, "openvino": 2.0})
    open_runner(small)
    bundle = small
    if what == "version":
        monkeypatch.setattr(choice, "backend_versions", lambda: {"openvino": "1"})
    elif what == "machine":
        monkeypatch.setattr(remembered, "machine", lambda: {"cpu": ["another"]})
    elif what == "graph":
        bundle = contract.read(tiny.write_bundle(tmp_path / "other", seed=1))
    else:
        monkeypatch.setattr(choice, "find_gpu", lambda index=0: Gpu(0, "a GPU", "8.9", "1"))
    open_runner(bundle)
    assert len(asked) == 2


def test_auto_really_measures(shipped: Bundle, own_cache: Path) -> None:
    with open_runner(shipped, batch=2) as runner:
        first = runner.provider
    (held,) = (own_cache / "measured").glob("backend-*.json")
    name = json.loads(held.read_text())["value"]
    assert name in ("onnxruntime", "openvino")
    assert first.startswith("CPUExecutionProvider" if name == "onnxruntime" else "OpenVINO")


def test_auto_passes_over_what_does_not_open(
    small: Bundle, own_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also when it was the fastest once."""
    asked = counted(monkeypatch, {"onnxruntime": 1.0, "openvino": 2.0})
    assert open_runner(small).provider.startswith("OpenVINO")
    from pgsr.runtime.backends import openvino as module

    def broken(*_: Any) -> Any:
        raise PgsrError("OpenVINO has a cold")

    monkeypatch.setattr(module, "open_graph", broken)
    assert open_runner(small).provider == ort.CPU
    assert asked[-1] == ["onnxruntime"]
    assert "openvino is not used: OpenVINO has a cold" in caplog.text
    monkeypatch.setattr(ort, "open_graph", broken)
    with pytest.raises(PgsrError, match=r"onnxruntime: .* a cold; openvino: .* a cold"):
        open_runner(small)


def test_a_runner_that_fails_is_not_the_fastest() -> None:
    class Runner:
        def __init__(self, fails: bool) -> None:
            self.fails = fails

        def run(self, values: np.ndarray) -> np.ndarray:
            if self.fails:
                raise PgsrError("out of memory")
            return values

    values = np.zeros((2, 3), dtype=np.float32)
    speeds = choice.measure({"a": Runner(True), "b": Runner(False)}, values)  # type: ignore[dict-item]
    assert list(speeds) == ["b"]
    assert speeds["b"] > 0
    with pytest.raises(PgsrError, match="out of memory"):
        choice.measure({"a": Runner(True)}, values)  # type: ignore[dict-item]


def test_only_what_has_the_device_is_a_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "is_installed", lambda library: True)
    on_gpu = [name for name, entry in BACKENDS.items() if "cuda" in entry.devices]
    assert choice.candidates(Settings("cpu")) == ["onnxruntime", "openvino"]
    assert choice.candidates(Settings("cuda:1")) == on_gpu
    monkeypatch.setattr(choice, "gpu_present", lambda index=0: None)
    assert choice.candidates(Settings("auto")) == ["onnxruntime", "openvino"]
    monkeypatch.setattr(choice, "gpu_present", lambda index=0: Gpu(0, "a GPU", "8.9", "1"))
    assert choice.candidates(Settings("auto")) == list(BACKENDS)


def test_examples_have_the_shape_of_the_input(shipped: Bundle) -> None:
    assert choice.example(shipped.graph("chain"), 3).shape == (3, shipped.latent_size)
    assert choice.example(shipped.graph("upscaler"), 2).shape == (2, 3, choice.SIDE, choice.SIDE)


# ----------------------------------------------------------------------------
# The list.


def test_the_command_lists_all(command: Callable[..., Any]) -> None:
    done = command(main, "--backends")
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(BACKENDS)
    told = {b["name"]: b for b in json.loads(command(main, "--backends", "--json").stdout)["backends"]}
    assert told["openvino"]["devices"] == ["cpu"]
    assert told["openvino"]["missing"] == ""
    assert "cpu" in told["onnxruntime"]["devices"]


def test_what_is_missing_is_told_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for entry in BACKENDS.values():
        monkeypatch.setitem(sys.modules, entry.library, None)
    for found in listing.present():
        assert not found.devices
        assert "not installed; " in found.line()
        assert "pip install 'pgsr[" in found.missing


def test_a_library_that_does_not_load_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise OSError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(listing.importlib, "import_module", broken)
    monkeypatch.setattr(listing, "is_installed", lambda library: True)
    (found,) = [b for b in listing.present() if b.name == "tensorrt"]
    assert "does not load (libnvinfer.so.10" in found.missing
    assert "pgsr[trt]" in found.missing


def test_a_gpu_backend_is_there_with_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "is_installed", lambda library: True)
    monkeypatch.setattr(listing.importlib, "import_module", lambda name: object())
    monkeypatch.setitem(BACKENDS, "only", Backend(".trt", "tensorrt", ("tensorrt",), "trt", ("cuda",)))
    monkeypatch.setattr(listing, "find_gpu", lambda: Gpu(0, "a GPU", "8.9", "1"))
    assert listing._presence("only").devices == ("cuda",)
    monkeypatch.setattr(listing, "_has_module", lambda module: False)
    assert "cuda-python or pycuda" in listing._presence("only").missing


# ----------------------------------------------------------------------------
# ONNX Runtime's TensorRT provider, as far as it can be seen without a GPU.


def test_the_tensorrt_provider_gets_one_batch_size(shipped: Bundle, own_cache: Path) -> None:
    asked = ort.tensorrt_options(shipped.graph("chain"), Settings("cuda:2", batch=7))
    shape = f"latents:7x{shipped.latent_size}"
    assert [asked[f"trt_profile_{name}_shapes"] for name in ("min", "opt", "max")] == [shape] * 3
    assert asked["device_id"] == "2"
    assert Path(asked["trt_engine_cache_path"]).is_dir()
    assert "trt_fp16_enable" not in asked  # it would make networks weakly typed
    assert "trt_profile_min_shapes" not in ort.tensorrt_options(shipped.graph("upscaler"), Settings())


def test_the_tensorrt_provider_that_is_not_there(small: Bundle) -> None:
    import onnxruntime

    if ort.TENSORRT in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has TensorRT")
    with pytest.raises(
        PgsrError,
        match=r"no TensorRT: pip uninstall onnxruntime onnxruntime-gpu, then .*'pgsr\[gpu\]' 'tensorrt<11'",
    ):
        open_runner(small, "cuda", backend="onnxruntime-tensorrt")


@pytest.mark.parametrize("backend", ["onnxruntime", "onnxruntime-tensorrt"])
def test_an_onnxruntime_of_which_only_the_folder_is_left(
    small: Bundle, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """As where onnxruntime was uninstalled beside onnxruntime-gpu, which owns the same files."""
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    words = "empty shell, .*: pip uninstall onnxruntime onnxruntime-gpu, then pip install"
    with pytest.raises(PgsrError, match=words):
        open_runner(small, backend=backend)
    told = [found for found in listing.present() if found.name == backend]
    assert "empty shell" in told[0].missing
    assert not told[0].devices


def provider_library(folder: Path, needs: str, calls: str = "") -> ModuleType:
    """An onnxruntime whose CUDA provider needs a library that is not there, or a function that it lacks."""
    capi = folder / "capi"
    capi.mkdir()
    source = folder / "empty.c"
    source.write_text(f"void {calls}(void); void use(void) {{ {calls}(); }}" if calls else "")
    for name, more in (
        (needs, [f"-Wl,-soname,{needs}"]),
        ("libonnxruntime_providers_shared.so", []),
        ("libonnxruntime_providers_cuda.so", ["-Wl,-z,now", *([str(folder / needs)] if not calls else [])]),
    ):
        of = source if calls and "cuda" in name else os.devnull
        target = folder / name if name == needs else capi / name
        subprocess.run(
            [
                "cc",
                "-shared",
                "-fPIC",
                "-x",
                "c",
                str(of),
                "-o",
                str(target),
                "-x",
                "none",
                "-Wl,--no-as-needed",
                *more,
            ],
            check=True,
        )
    (folder / needs).unlink()
    module = ModuleType("onnxruntime")
    module.__dict__.update(__file__=str(folder / "__init__.py"), __version__="1.31.1")
    return module


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize(
    ("needs", "calls", "mends"),
    [
        ("libcublasLt.so.99", "", r"libcublasLt.so.99: cannot open .*; pip install 'pgsr\[gpu\]'"),
        ("libcudnn.so.99", "", r"libcudnn.so.99: cannot open .*; pip install 'pgsr\[gpu\]'"),
        ("libnvinfer.so.99", "", r"libnvinfer.so.99: cannot open .*; pip install 'tensorrt<11'"),
        ("libcuda.so.99", "", r"libcuda.so.99: cannot open .*; install the NVIDIA driver"),
        ("libx.so", "cuTensorMapEncodeTiled", r"undefined symbol: cuTensor.*; update the NVIDIA driver"),
    ],
)
def test_the_library_that_a_provider_lacks_is_named(
    tmp_path: Path, needs: str, calls: str, mends: str
) -> None:
    """ONNX Runtime's own words are that "fallback has been explicitly disabled by the user". The versions are
    ones that no machine has."""
    module = provider_library(tmp_path, needs, calls)
    with pytest.raises(PgsrError, match=rf"ONNX Runtime 1.31.1 cannot load its cuda provider: .*{mends}"):
        ort.load_libraries(module, "cuda")


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_list_names_the_library_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a GPU, an ONNX Runtime without its libraries does not run on it."""
    module = provider_library(tmp_path, "libcudnn.so.99", "")
    module.__dict__.update(get_available_providers=lambda: [ort.CUDA, ort.CPU], InferenceSession=object)
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    monkeypatch.setattr(listing, "find_gpu", lambda: Gpu(0, "a GPU", "8.9", "1"))
    found = listing._presence("onnxruntime")
    assert found.devices == ("cpu",)
    assert "libcudnn.so.99: cannot open" in found.missing


def test_auto_passes_over_what_fails_in_a_way_of_its_own(
    small: Bundle, own_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from pgsr.runtime.backends import openvino as module

    def broken(*_: Any) -> Any:
        raise TypeError("factory function returned nullptr")

    monkeypatch.setattr(module, "open_graph", broken)
    with open_runner(small) as runner:
        assert runner.provider == ort.CPU
    assert "openvino is not used: TypeError: factory function returned nullptr" in caplog.text


def test_the_gpu_extra_brings_what_its_onnxruntime_needs() -> None:
    extras = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert any(line.startswith("onnxruntime-gpu[cuda,cudnn]") for line in extras["gpu"])
    both = [
        name
        for name, lines in extras.items()
        if _runtimes(extras, lines) == {"onnxruntime", "onnxruntime-gpu"}
    ]
    assert not both  # they own the same files


def _runtimes(extras: dict[str, list[str]], lines: list[str]) -> set[str]:
    found = set()
    for line in lines:
        own = re.fullmatch(r"pgsr\[(.*)\]", line)
        if own:
            found |= _runtimes(extras, [more for name in own[1].split(",") for more in extras[name]])
        found |= set(re.findall(r"^onnxruntime(?:-gpu)?", line))
    return found


FIRST_LOOKS = """
import sys, threading
import numpy as np
from pathlib import Path
from pgsr.bundle import read
from pgsr.runtime.backends import open_runner

bundle = read(Path(sys.argv[1]))
barrier = threading.Barrier(3)
with open_runner(bundle, "cpu", "fp32", "openvino", threads=1, batch=4) as runner:
    def look():
        barrier.wait()
        runner.run(np.zeros((2, bundle.latent_size), np.float32))
    threads = [threading.Thread(target=look) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
"""


def test_threads_that_begin_at_once_do_not_wait_for_each_other(tmp_path: Path):
    """On one core half of all starts hung, while two threads filled OpenVINO's tables of types at a time."""
    folder = tiny.write_bundle(tmp_path / "bundle")
    core = str(min(os.sched_getaffinity(0)))
    for _ in range(4):
        done = subprocess.run(
            ["taskset", "-c", core, sys.executable, "-c", FIRST_LOOKS, str(folder)],
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
