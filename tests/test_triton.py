"""Model repositories for Triton: what is in them, by Triton's own schema and in a real server."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import bundles as tiny
from pgsr import bundle as contract
from pgsr import draws, sphere
from pgsr.errors import PgsrError
from pgsr.export.cli import main
from pgsr.export.triton import repository as triton
from pgsr.export.triton.config import Serving
from pgsr.files import sha256, temporary_beside
from pgsr.images import to_uint8
from pgsr.tensorrt.building import Built
from pgsr.tensorrt.engines import Key, Profile
from pgsr.tensorrt.sidecars import write_engine
from triton_asking import ALONE, PAIRS
from triton_server import PYTHON, ROOT, place, serving

SHIPPED = contract.read(contract.shipped())
NAMES = ("generator", "upscaler", "chain")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def schema() -> ModuleType:
    """Triton's own classes of config.pbtxt. The rest of their package is not needed, nor what it needs."""
    package = importlib.util.find_spec("tritonclient")
    if package is None:
        pytest.skip("pip install --no-deps tritonclient")
    assert package.submodule_search_locations is not None
    folder = Path(package.submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location("model_config", folder / "grpc/model_config_pb2.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def configs(schema: ModuleType, repository: Path) -> dict[str, Any]:
    """Every model's config, as Triton's schema reads it: an unknown field or a wrong type is an error."""
    from google.protobuf import text_format

    return {
        path.parent.name: text_format.Parse(path.read_text("utf-8"), schema.ModelConfig())
        for path in repository.glob("*/config.pbtxt")
    }


@pytest.fixture(scope="module", params=["onnxruntime", "python"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("triton") / "repository"
    serving = Serving(batch=8, device="cuda", instances=3, queue_delay_us=77)
    triton.write_repository(SHIPPED, out, ["fp32", "int8"], request.param, serving)
    return request.param, out


# ----------------------------------------------------------------------------
# What Triton reads.


def test_each_model_stands_under_its_name_with_a_version(schema: ModuleType, written: tuple[str, Path]):
    _, out = written
    found = configs(schema, out)
    graphs = {f"{name}{end}" for name in NAMES for end in ("", "_int8")}
    assert set(found) == {p.name for p in out.iterdir()} == graphs | {"latents", "faces", "faces_int8"}
    for name, config in found.items():
        assert config.name == name
        assert config.version_policy.latest.num_versions == 1
        assert list((out / name / "1").iterdir())
        assert config.max_batch_size == 8


DTYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8"}


def test_dims_and_types_are_the_graphs_own(schema: ModuleType, written: tuple[str, Path]):
    """By onnx's reading of the files in the repository, not by the manifest that they were written from."""
    backend, out = written
    found = configs(schema, out)
    for graph in SHIPPED.graphs:
        name = graph.name if graph.precision == "fp32" else f"{graph.name}_{graph.precision}"
        if graph.precision not in ("fp32", "int8"):
            assert name not in found
            continue
        file = "model.onnx" if backend == "onnxruntime" else graph.file
        model = onnx.load(out / name / "1" / file)
        for tensors, values in (
            (found[name].input, model.graph.input),
            (found[name].output, model.graph.output),
        ):
            (tensor,), (value,) = tensors, values
            kind = value.type.tensor_type
            sides = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
            assert tensor.name == value.name
            assert [-1, *tensor.dims] == sides
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
            assert schema.DataType.Name(tensor.data_type) == DTYPES[dtype]


def test_how_graphs_are_served(schema: ModuleType, written: tuple[str, Path]):
    backend, out = written
    for graph in NAMES:
        config = configs(schema, out)[graph]
        (group,) = config.instance_group
        assert (group.count, group.kind) == (3, schema.ModelInstanceGroup.KIND_GPU)
        assert config.dynamic_batching.max_queue_delay_microseconds == 77
        assert [warmup.batch_size for warmup in config.model_warmup] == [1, 8]
        for warmup in config.model_warmup:
            (value,) = warmup.inputs.values()
            assert set(warmup.inputs) == {config.input[0].name}
            assert list(value.dims) == ([128] if graph != "upscaler" else [3, 64, 64])
        if backend == "onnxruntime":
            assert config.platform == "onnxruntime_onnx"
            assert sha256(out / graph / "1/model.onnx") == SHIPPED.graph(graph).sha256
        else:
            told = {name: value.string_value for name, value in config.parameters.items()}
            assert config.backend == "python"
            assert told == {"graph": graph, "precision": "fp32", "backend": "onnxruntime"}
            own = contract.read(out / graph / "1")
            assert own.path(own.graph(graph)).is_file()


def test_an_ensemble_joins_tensors_of_one_type(schema: ModuleType, written: tuple[str, Path]):
    _, out = written
    found = configs(schema, out)
    for name, chain in (("faces", "chain"), ("faces_int8", "chain_int8")):
        config = found[name]
        known = {t.name: (t.data_type, list(t.dims)) for t in config.input}
        assert known == dict.fromkeys(("seed", "index"), (schema.TYPE_UINT64, [1]))
        steps = config.ensemble_scheduling.step
        assert [step.model_name for step in steps] == ["latents", chain]
        for step in steps:
            model = found[step.model_name]
            sources = {t.name: (t.data_type, list(t.dims)) for t in model.input}
            assert {inner: known[outer] for inner, outer in step.input_map.items()} == sources
            results = {t.name: (t.data_type, list(t.dims)) for t in model.output}
            assert set(step.output_map) == set(results)
            known |= {outer: results[inner] for inner, outer in step.output_map.items()}
        (result,) = config.output
        assert (
            known[result.name] == (schema.TYPE_UINT8, [256, 256, 3]) == (result.data_type, list(result.dims))
        )


def test_latents_are_drawn_and_turned_by_our_own_files(written: tuple[str, Path]):
    _, out = written
    for module in (draws, sphere):
        path = Path(str(module.__file__))
        assert (out / "latents/1" / path.name).read_bytes() == path.read_bytes()
    told = json.loads((out / "latents/1/truncation.json").read_text())
    assert (told["truncation"], tuple(told["centre"])) == (SHIPPED.truncation, SHIPPED.centre) != (1.0, ())


def test_a_bundle_that_does_not_truncate_has_no_centre_to_tell(tmp_path: Path):
    bundle = contract.read(tiny.write_bundle(tmp_path / "bundle"))
    triton.write_repository(bundle, tmp_path / "r", ["fp32"], "onnxruntime", Serving())
    assert {p.name for p in (tmp_path / "r/latents/1").iterdir()} == {"model.py", "draws.py", "sphere.py"}


def test_names_with_quotes_and_letters_of_other_alphabets(schema: ModuleType, tmp_path: Path):
    bundle = contract.read(tiny.write_bundle(tmp_path / "bundle"))
    port = dataclasses.replace(bundle.graphs[0].inputs[0], name='läte"nts\\ {}')
    graph = dataclasses.replace(bundle.graphs[0], inputs=(port,))
    triton.write_repository(
        dataclasses.replace(bundle, graphs=(graph,)), tmp_path / "r", ["fp32"], "onnxruntime", Serving()
    )
    assert configs(schema, tmp_path / "r")["chain"].input[0].name == port.name


def test_an_upscaler_alone_has_no_latents(schema: ModuleType, tmp_path: Path):
    bundle = contract.read(tiny.add_upscaler(tiny.write_bundle(tmp_path / "bundle")))
    alone = dataclasses.replace(bundle, latent_size=0, resolution=0, graphs=bundle.graphs[1:])
    triton.write_repository(alone, tmp_path / "r", ["fp32"], "onnxruntime", Serving(batch=1))
    (config,) = configs(schema, tmp_path / "r").values()
    assert config.name == "upscaler"
    assert [w.batch_size for w in config.model_warmup] == [1]


def test_each_upscaler_is_warmed_up_with_what_comes_to_it(schema: ModuleType, tmp_path: Path):
    folder = tiny.add_upscaler(tiny.add_generator(tiny.write_bundle(tmp_path / "bundle")))
    bundle = contract.read(folder)
    first = bundle.graph("upscaler")
    second = dataclasses.replace(first, name="upscaler-2", file="upscaler-2.onnx")
    (folder / second.file).write_bytes((folder / first.file).read_bytes())
    graphs = (bundle.graph("generator"), first, second)
    contract.write(dataclasses.replace(bundle, graphs=graphs, scale=6, scales=(2, 3)))
    done = run("triton", folder, tmp_path / "r", "--backend", "python")
    assert done.exit_code == 0, done.output
    found = configs(schema, tmp_path / "r")
    assert set(found) == {graph.name for graph in graphs}
    for name, side in (("upscaler", 8), ("upscaler-2", 16)):
        assert all(list(w.inputs["images"].dims) == [3, side, side] for w in found[name].model_warmup)
        own = contract.read(tmp_path / "r" / name / "1")
        assert own.path(own.graph(name)).is_file()


def test_what_the_page_says_of_a_face_alone():
    """Triton's ONNX Runtime backend gives a session the batch as it is, as is done here."""
    path = SHIPPED.path(SHIPPED.graph("chain"))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    latents = draws.latents(0, range(4), 128)
    (together,) = session.run(None, {"latents": latents})
    alone = np.concatenate([session.run(None, {"latents": row[None]})[0] for row in latents])
    assert np.abs(alone.astype(int) - together).max() <= 1


# ----------------------------------------------------------------------------
# Engines. Their bytes are not TensorRT's, which cannot be built without a GPU; Triton alone reads them.


def put_engine(bundle: contract.Bundle, **changes: Any) -> Path:
    graph = bundle.graph("chain")
    usual = Key(graph.sha256, "tensorrt", "10.9.0", ("8.9",), "580.65", "fp32", Profile(1, 4, 12))
    key = dataclasses.replace(usual, **changes)
    path = bundle.folder / f"{key.stem(graph.file)}.engine"
    return write_engine(path, key, Built(path.name.encode(), {"fp32": 9}, "inspector")).path


def test_engines_are_plans_for_their_gpus(schema: ModuleType, tmp_path: Path):
    bundle = contract.read(tiny.write_bundle(tmp_path / "bundle"))
    ada = put_engine(bundle)
    hopper = put_engine(bundle, compute_capabilities=("9.0",), profile=Profile(1, 8, 10))
    done = run("triton", bundle.folder, tmp_path / "r")
    assert done.exit_code == 0, done.output
    found = configs(schema, tmp_path / "r")
    config = found["chain_plan"]
    assert config.platform == "tensorrt_plan"
    assert dict(config.cc_model_filenames) == {"8.9": ada.name, "9.0": hopper.name}
    assert config.max_batch_size == found["faces_plan"].max_batch_size == 10
    assert (
        found["chain"].max_batch_size
        == found["faces"].max_batch_size
        == found["latents"].max_batch_size
        == 16
    )
    assert config.instance_group[0].kind == schema.ModelInstanceGroup.KIND_GPU
    assert found["faces_plan"].ensemble_scheduling.step[1].model_name == "chain_plan"
    for engine in (ada, hopper):
        assert (tmp_path / "r/chain_plan/1" / engine.name).read_bytes() == engine.read_bytes()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"library": "tensorrt-rtx"}, "Triton has no backend for tensorrt-rtx"),
        ({"onnx_sha256": "0" * 64}, "it was built from another graph"),
        ({"profile": Profile(2, 4, 8)}, "its profile 2,4,8 does not take a batch of 1"),
        ({"precision": "fp16"}, "it is fp16, not fp32"),
    ],
)
def test_engines_that_cannot_serve_are_left_out(changes: dict[str, Any], reason: str, tmp_path: Path):
    bundle = contract.read(tiny.write_bundle(tmp_path / "bundle"))
    engine = put_engine(bundle, **changes)
    done = run("triton", bundle.folder, tmp_path / "r")
    assert done.exit_code == 0
    assert done.stderr == f"{engine.name} is left out: {reason}\n"
    assert {p.name for p in (tmp_path / "r").iterdir()} == {"chain", "latents", "faces"}


def test_a_damaged_engine_is_left_out(tmp_path: Path):
    bundle = contract.read(tiny.write_bundle(tmp_path / "bundle"))
    put_engine(bundle).write_bytes(b"half")
    assert "its file is missing or damaged" in run("triton", bundle.folder, tmp_path / "r").stderr
    assert not (tmp_path / "r/chain_plan").exists()


# ----------------------------------------------------------------------------
# The command.


def test_both_spellings_write_the_same(tmp_path: Path):
    bundle = tiny.write_bundle(tmp_path / "bundle")
    (tmp_path / "b").mkdir()  # an empty folder is as good as none
    for words in (["triton", bundle, tmp_path / "a"], ["--triton", tmp_path / "b", bundle]):
        done = run(*words, "--json")
        assert done.exit_code == 0, done.output
        told = json.loads(done.stdout)
        assert [model["name"] for model in told["models"]] == ["chain", "latents", "faces"]
        assert told["models"][0]["output"] == {"pixels": ["TYPE_UINT8", [8, 8, 3]]}
    assert files(tmp_path / "a") == files(tmp_path / "b") != {}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--precision", "bf16"], "holds no chain graph in bf16; it holds chain fp32"),
        (["--precision", "fp32,half"], "--precision = 'half' is not one of 'fp32', 'fp16', 'bf16', 'int8'"),
        (["--backend", "tensorrt"], "--backend = 'tensorrt' is not one of 'onnxruntime', 'python'"),
        (["--device", "gpu"], "--device = 'gpu' is not one of 'auto', 'cpu', 'cuda'"),
        (["--batch", "70000"], "--batch 70000 is not a number up to 65,536"),
        (["--fp16"], "--fp16 is not for"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(words: list[str], sentence: str, tmp_path: Path):
    bundle = tiny.write_bundle(tmp_path / "bundle")
    done = run("triton", bundle, tmp_path / "r", *words)
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert sentence in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_stands_there_is_left_alone(kind: str, tmp_path: Path):
    bundle, out = tiny.write_bundle(tmp_path / "bundle"), tmp_path / "r"
    if kind == "folder":
        out.mkdir()
        (out / "notes").write_text("mine")
    elif kind == "file":
        out.write_text("mine")
    else:
        out.symlink_to(bundle)
    before = files(tmp_path)
    done = run("triton", bundle, out)
    assert done.exit_code == 1
    assert "exists and is not an empty folder: name another, or remove it" in done.stderr
    assert files(tmp_path) == before


def test_a_damaged_bundle_leaves_nothing(tmp_path: Path):
    """The chain comes last of the graphs, when the generator has been written already."""
    bundle = contract.read(tiny.add_generator(tiny.write_bundle(tmp_path / "bundle")))
    bundle.path(bundle.graph("chain")).write_bytes(b"other")
    out = tmp_path / "r"
    leftover = temporary_beside(out).with_name(".r.4194305.tmp")  # of a process that cannot be
    (leftover / "chain").mkdir(parents=True)
    with pytest.raises(PgsrError, match="does not match the hash in its manifest"):
        triton.write_repository(bundle, out, ["fp32"], "onnxruntime", Serving())
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path):
    bundle = tiny.write_bundle(tmp_path / "bundle")
    (tmp_path / "file").write_text("")
    done = run("triton", bundle, tmp_path / "file/r")
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1


# ----------------------------------------------------------------------------
# A real server.


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if place() is None:
        pytest.skip(
            "no Triton server: make triton installs one (a wheel of 53 MB, 0.5 GB with what it needs)"
        )
    scratch = tmp_path_factory.mktemp("server")
    serving_ = Serving(batch=8, device="cpu", queue_delay_us=100_000)
    triton.write_repository(SHIPPED, scratch / "repository", ["fp32"], "python", serving_)
    with serving(scratch / "repository", scratch) as url:
        yield url


@pytest.fixture(scope="module")
def answers(server: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What NVIDIA's client got from the server."""
    out = tmp_path_factory.mktemp("answers") / "answers.npz"
    script = Path(__file__).with_name("triton_asking.py")
    subprocess.run([PYTHON, script, server, out], check=True, timeout=300, cwd=ROOT)
    with np.load(out) as found:
        return dict(found)


def generated(seed: int, index: int, out: Path) -> Any:
    """The face as the server's environment's own pgsr-generate writes it."""
    words = ["--seed", seed, "--start", index, "--count", 1, "--out", out, "--backend", "onnxruntime"]
    command = [str(PYTHON), "-m", "pgsr.runtime", *map(str, words), "--device", "cpu", "--batch", "3"]
    subprocess.run(command, check=True, timeout=300, cwd=ROOT, capture_output=True)
    (file,) = out.glob("[0-9]*.png")
    with Image.open(file) as picture:
        return np.asarray(picture)


@pytest.mark.slow
def test_the_server_draws_our_latents(answers: dict[str, Any]):
    assert answers["latents"].shape == (4, 128)
    assert answers["latents"].tobytes() == answers["drawn"].tobytes()
    rows = np.array([draws.latents(seed, [index], 128)[0] for seed, index in PAIRS])
    ours = sphere.toward(rows, np.array(SHIPPED.centre), SHIPPED.truncation)
    np.testing.assert_array_max_ulp(answers["latents"], ours, maxulp=1)  # of another numpy, perhaps


@pytest.mark.slow
def test_the_servers_faces_are_those_of_pgsr_generate(answers: dict[str, Any], tmp_path: Path):
    assert answers["faces"].dtype == np.uint8
    assert np.array_equal(answers["faces"], answers["pixels"])  # drawn there, or sent there
    for k, (seed, index) in enumerate(PAIRS):
        assert np.array_equal(answers["faces"][k], generated(seed, index, tmp_path / str(k))), (seed, index)
    assert len(np.unique(answers["faces"].reshape(4, -1), axis=0)) == 4


@pytest.mark.slow
def test_requests_share_batches_and_change_no_byte(server: str, answers: dict[str, Any]):
    """Twelve requests at once, a face each: the third is the one that came in a batch of four above."""
    assert answers["alone"].shape == (len(ALONE), 256, 256, 3)
    assert PAIRS[3] == (7, 2)
    assert np.array_equal(answers["alone"][2], answers["faces"][3])
    with urllib.request.urlopen(f"http://{server}/v2/models/chain/stats", timeout=30) as response:
        (stats,) = json.load(response)["model_stats"]
    assert stats["execution_count"] < stats["inference_count"] / 2
    assert max(batch["batch_size"] for batch in stats["batch_stats"]) == 8


@pytest.mark.slow
def test_the_upscaler_behind_the_generator_is_the_chain(answers: dict[str, Any]):
    difference = to_uint8(answers["upscaled"]).astype(int) - answers["faces"]
    assert np.abs(difference).max() <= 1  # the chain's graph is joined, its sums may be ordered otherwise


@pytest.mark.slow
def test_kserve_v2_in_json(server: str, answers: dict[str, Any]):
    """As docs/triton.md has it for curl."""
    sources = [
        {"name": name, "shape": [1, 1], "datatype": "UINT64", "data": [value]}
        for name, value in (("seed", 7), ("index", 2))
    ]
    body = json.dumps({"inputs": sources}).encode()
    address = f"http://{server}/v2/models/faces/infer"
    with urllib.request.urlopen(urllib.request.Request(address, body), timeout=60) as response:
        (output,) = json.load(response)["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("pixels", "UINT8", [1, 256, 256, 3])
    assert np.array_equal(np.array(output["data"]).reshape(256, 256, 3), answers["faces"][3])
