"""pgsr.runtime's Synthesizer and backends: the right pixels, the same pixels, and clear refusals."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import bundles as tiny
from pgsr import bundle as contract
from pgsr import draws
from pgsr.errors import PgsrError
from pgsr.files import sha256
from pgsr.runtime import Synthesizer
from pgsr.runtime.backends import BACKENDS, Settings, open_runner, ort


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_bundle(tmp_path_factory.mktemp("model"))


def open_tiny(model: Path, **options: Any) -> Synthesizer:
    return Synthesizer(model, **{"device": "cpu", "threads": 1, **options})


def images(model: Path, seed: int = 3, count: int = 37, start: int = 0, **options: Any) -> np.ndarray:
    with open_tiny(model, **options) as synthesizer:
        return synthesizer.images(seed, count, start)


# ----------------------------------------------------------------------------
# Pixels.


def test_pixels_are_those_of_the_network(model: Path) -> None:
    made = images(model)
    expected = tiny.expected_pixels(draws.latents(3, range(37), tiny.LATENT))
    assert made.shape == (37, tiny.SIZE, tiny.SIZE, 3)
    assert made.dtype == np.uint8
    # Half a level is the rounding; a float32 sum may fall on the other side of it by very little.
    assert np.abs(made - expected).max() < 0.5 + 1e-3
    assert made.std() > 10  # and it is a picture, not a constant


@pytest.mark.parametrize("batch", [1, 2, 5, 7, 16, 36, 64])
def test_batch_size_changes_no_byte(model: Path, batch: int) -> None:
    assert np.array_equal(images(model, batch=batch), images(model, batch=37))


@pytest.mark.parametrize(("start", "count"), [(0, 1), (0, 5), (3, 17), (16, 16), (36, 1)])
def test_window_changes_no_byte(model: Path, start: int, count: int) -> None:
    assert np.array_equal(images(model, count=count, start=start), images(model)[start : start + count])


def test_threads_change_no_byte(model: Path) -> None:
    assert np.array_equal(images(model, threads=1), images(model, threads=2))


def black(count: int) -> np.ndarray:
    """What the tiny bundle's graph could make."""
    return np.zeros((count, tiny.SIZE, tiny.SIZE, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (black(2).astype(np.float32), "float32 [2, 8, 8, 3], not uint8"),
        (black(2)[:, :4], "uint8 [2, 4, 8, 3], not uint8 [2, 8, 8, 3]"),
        (black(2)[0], "uint8 [8, 8, 3], not"),
        (black(1), "uint8 [1, 8, 8, 3], not"),
        (np.array(3, np.uint8), "uint8 [], not"),
        ([black(2)], "list [], not"),
    ],
)
def test_a_graph_that_makes_something_else_is_a_sentence(
    model: Path, result: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = open_runner(contract.read(model), "cpu", backend="onnxruntime")
    monkeypatch.setattr(runner, "_session", SimpleNamespace(run=lambda names, feeds: [result]))
    with pytest.raises(PgsrError, match="as its manifest says: export the bundle again") as refusal:
        runner.run(np.ones((2, tiny.LATENT), dtype=np.float32))
    assert words in str(refusal.value)


def test_a_single_image_is_run_as_two(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime sums a batch of one in another order (its matrix-vector product)."""
    shapes = []

    class Session:
        def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
            shapes.append(feeds["latents"].shape)
            return [black(len(feeds["latents"]))]

    runner = open_runner(contract.read(model), "cpu", backend="onnxruntime")
    monkeypatch.setattr(runner, "_session", Session())
    row = np.ones((1, tiny.LATENT), dtype=np.float32)
    assert len(runner.run(row)) == 1
    assert shapes == [(2, tiny.LATENT)]


def test_other_seeds_and_indices_are_other_images(model: Path) -> None:
    first = images(model, seed=3, count=2)
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first, images(model, seed=4, count=2))


def test_the_last_seed_and_index_are_images_too(model: Path) -> None:
    assert images(model, seed=2**64 - 1, count=1, start=2**64 - 1).shape == (1, tiny.SIZE, tiny.SIZE, 3)


def test_batches_read_no_further_than_they_must(model: Path) -> None:
    read = []

    def indices() -> Any:
        for index in range(100):
            read.append(index)
            yield index

    with open_tiny(model, batch=4) as synthesizer:
        chunk, pixels = next(synthesizer.batches(0, indices()))
    assert chunk == read == [0, 1, 2, 3]
    assert len(pixels) == 4


# ----------------------------------------------------------------------------
# The package's five names.


def test_the_names() -> None:
    from pgsr import runtime
    from pgsr.runtime import Job, PgsrError, Synthesizer, Upscaler, write_faces

    assert runtime.__all__ == ["Job", "PgsrError", "Synthesizer", "Upscaler", "write_faces"]
    assert all(inspect.getdoc(name) for name in (Job, PgsrError, Synthesizer, Upscaler, write_faces))
    with pytest.raises(AttributeError, match="no attribute 'Synthesiser'"):
        runtime.Synthesiser  # noqa: B018


def test_the_example() -> None:
    """As docs/generate.md and the package's docstring have it."""
    from pgsr.runtime import Synthesizer

    faces = Synthesizer().images(seed=0, count=8)
    assert (faces.dtype, faces.shape) == (np.uint8, (8, 256, 256, 3))
    assert len({face.tobytes() for face in faces}) == 8
    assert all(face.std() > 20 for face in faces)


# ----------------------------------------------------------------------------
# Refusals.


@pytest.mark.parametrize(
    ("window", "words"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"count": 0}, "count"),
        ({"start": -1}, "start"),
        ({"start": 2**64 - 1, "count": 2}, "start"),
    ],
)
def test_windows_out_of_range(model: Path, window: dict[str, int], words: str) -> None:
    with open_tiny(model) as synthesizer, pytest.raises(PgsrError, match=words):
        synthesizer.images(**window)


@pytest.mark.parametrize("options", [{"batch": -1}, {"threads": -1}, {"device": "gpu"}, {"device": "cuda:x"}])
def test_settings_out_of_range(model: Path, options: dict[str, Any]) -> None:
    with pytest.raises(PgsrError, match=f"--{next(iter(options))}"):
        open_tiny(model, **options)


def test_device_index() -> None:
    assert [Settings(device).device_index for device in ("auto", "cuda", "cuda:3")] == [0, 0, 3]


def test_changed_graph(tmp_path: Path) -> None:
    folder = tiny.write_bundle(tmp_path / "model")
    data = bytearray((folder / "chain.onnx").read_bytes())
    data[-20] ^= 1
    (folder / "chain.onnx").write_bytes(data)
    with pytest.raises(PgsrError, match="does not match the hash"):
        open_tiny(folder)


def test_damaged_graph_with_its_own_hash(tmp_path: Path) -> None:
    folder = tiny.write_bundle(tmp_path / "model")
    path = folder / "chain.onnx"
    right = sha256(path)
    path.write_bytes(path.read_bytes()[:100])
    manifest = folder / contract.MANIFEST
    manifest.write_text(manifest.read_text().replace(right, sha256(path)))
    with pytest.raises(PgsrError, match="cannot open"):
        open_tiny(folder)


def test_wrong_port_name(tmp_path: Path) -> None:
    folder = tiny.write_bundle(tmp_path / "model")
    manifest = folder / contract.MANIFEST
    manifest.write_text(manifest.read_text().replace('"pixels"', '"faces"'))
    with open_tiny(folder) as synthesizer, pytest.raises(PgsrError, match="could not run"):
        synthesizer.images(count=1)


def test_missing_precision(model: Path) -> None:
    with pytest.raises(PgsrError, match="holds no chain graph in fp16"):
        open_tiny(model, precision="fp16")


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
def test_no_backend_installed(model: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(PgsrError, match=r"pgsr\[cpu\].*pgsr\[gpu\]"):
        open_tiny(model, device=device)


def test_named_backend_not_installed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(PgsrError, match=r"onnxruntime backend .*pgsr\[cpu\]"):
        open_tiny(model, backend="onnxruntime")


def test_unknown_backend(model: Path) -> None:
    with pytest.raises(PgsrError, match="onnxruntime"):
        open_tiny(model, backend="abacus")
    assert "onnxruntime" in BACKENDS


# ----------------------------------------------------------------------------
# CUDA, by an ONNX Runtime that only says what it was asked.


class FakeSession:
    def __init__(self, providers: list[str], asked: dict[str, Any]) -> None:
        self._providers = providers
        self._asked = asked

    def get_providers(self) -> list[str]:
        return self._providers

    def disable_fallback(self) -> None:
        self._asked["fallback disabled"] = True

    def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        self._asked["rows"] = len(feeds["latents"])
        return [black(len(feeds["latents"]))]


def fake_onnxruntime(asked: dict[str, Any], started: list[str]) -> Any:
    """An onnxruntime with CUDA on offer whose CUDA sessions come up with the providers `started`."""

    class Options:
        def add_session_config_entry(self, name: str, value: str) -> None:
            asked[name] = value

    def session(path: str, options: Any, providers: list[Any], enable_fallback: int) -> FakeSession:
        asked["enable_fallback"] = enable_fallback
        return FakeSession(providers if providers == [ort.CPU] else started, asked)

    return SimpleNamespace(
        __version__="0",
        __file__=__file__,
        SessionOptions=Options,
        InferenceSession=session,
        get_available_providers=lambda: [ort.CUDA, ort.CPU],
        preload_dlls=lambda: print("Failed to load libcudnn"),
    )


@pytest.fixture
def unbound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU, and neither cuda-python nor pycuda; with one of them: tests/test_recorded.py."""

    def absent(index: int) -> None:
        raise ImportError("No module named 'cuda'")

    monkeypatch.setattr(ort, "find_gpu", lambda index: None)
    monkeypatch.setattr(ort, "open_cuda", absent)


@pytest.mark.usefixtures("unbound")
def test_cuda_fills_batches_and_forbids_falling_back(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setitem(sys.modules, "onnxruntime", fake_onnxruntime(asked, [ort.CUDA, ort.CPU]))
    runner = open_runner(contract.read(model), "cuda:1", backend="onnxruntime", batch=16)
    assert runner.provider == ort.CUDA
    assert len(runner.run(np.ones((3, tiny.LATENT), dtype=np.float32))) == 3
    assert asked["rows"] == 16
    assert asked["session.disable_cpu_ep_fallback"] == "1"
    assert asked["enable_fallback"] == 0
    assert asked["fallback disabled"]
    assert capsys.readouterr().out == ""  # stdout carries results only


@pytest.mark.usefixtures("unbound")
def test_cuda_that_does_not_start_is_an_error(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", fake_onnxruntime({}, [ort.CPU]))
    with pytest.raises(PgsrError, match=f"could not start {ort.CUDA}"):
        open_runner(contract.read(model), "cuda", backend="onnxruntime")


@pytest.mark.usefixtures("unbound")
def test_auto_says_why_it_took_the_cpu(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", fake_onnxruntime({}, [ort.CPU]))
    assert open_runner(contract.read(model), "auto", backend="onnxruntime").provider == ort.CPU
    assert "CUDA is not used" in caplog.text


def test_cuda_without_its_package(model: Path) -> None:
    import onnxruntime

    if ort.CUDA in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(PgsrError, match=r"pgsr\[gpu\]"):
        open_tiny(model, device="cuda")
