"""pgsr-generate --ray on real clusters of this machine: what dies, stops or is full changes no byte of a set.

A cluster takes some ten seconds to start, so tests share one; those that wait for deaths are slow.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_benchmarks_quality import Means, SquaredError, scripted
from test_benchmarks_quality import write_bundle as write_model
from test_shards import s3_server

from bundles import write_bundle
from pgsr.benchmarks.cluster import kills
from pgsr.benchmarks.cluster.cluster import (
    LocalCluster,
    children,
    end,
    environment,
    local_cluster,
    ports,
    result,
    start,
)
from upscaling import write_upscaler

pytest.importorskip("ray")

FEW = ("--count", 250, "--shard-size", 50, "--encoder", "zlib", "--backend", "onnxruntime")
NODES = 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path | None]:
    """A disk of 256 kB, of a node's own; None where none may be mounted."""
    folder = tmp_path_factory.mktemp("small")
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        yield None
        return
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder behind s3://bucket, of a server that all processes know by their environment."""
    pytest.importorskip("s3fs")
    folder = tmp_path_factory.mktemp("s3")
    (folder / "bucket").mkdir()
    with s3_server(folder) as address, pytest.MonkeyPatch.context() as patch:
        for name, value in s3_settings(address).items():
            patch.setenv(name, value)
        yield folder / "bucket"


@pytest.fixture(scope="module")
def cluster(small_disk: Path | None, bucket: Path) -> Iterator[LocalCluster]:
    """One for all tests, since a second one's end would take the first along. A node has a small disk of its
    own, which matters where shards go to object stores."""
    with ExitStack() as stack:
        nodes = local_cluster(NODES, [{"TMPDIR": str(small_disk)} if small_disk else {}, {}])
        try:
            started = stack.enter_context(nodes)
        except Exception as error:  # Ray's has no kind of its own; it says nothing of pgsr
            pytest.skip(f"Ray does not start its processes here: {error}")
        yield started


@pytest.fixture(scope="module")
def size(model: Path) -> kills.Size:
    return kills.Size(count=20_000, shard_size=500, model=model)


@pytest.fixture(scope="module")
def expected(size: kills.Size, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("expected") / "set"
    kills.reference(size, folder)
    return folder


@pytest.mark.slow
def test_a_cluster_of_this_process_makes_the_same_set(model: Path, tmp_path: Path):
    """--ray local, the whole way; then the same command finds everything made."""
    result(start(*FEW, "--model", model, "--out", tmp_path / "alone"))
    arguments = ("--ray", "local", "--workers", 1, *FEW, "--model", model, "--out", tmp_path / "set")
    report = result(start(*arguments))
    assert (report["made"], report["present"], report["lost"], report["repeated"]) == (250, 0, 0, [])
    assert kills.files(tmp_path / "set") == kills.files(tmp_path / "alone")
    nodes = json.loads((tmp_path / "set/nodes.json").read_text())["nodes"]
    assert [node["shards"] for node in nodes] == ["0-4"]
    assert nodes[0]["provider"] == "CPUExecutionProvider"
    assert len(nodes[0]["node"]) == 56  # Ray's name of it


@pytest.mark.slow
def test_no_cluster_is_a_line(model: Path, tmp_path: Path):
    process = start(*FEW, "--ray", "127.0.0.1:1", "--model", model, "--out", tmp_path / "set")
    out, errors = process.communicate(timeout=600)
    assert (process.returncode, out) == (1, "")
    assert errors.startswith("error: no Ray cluster at --ray 127.0.0.1:1")
    assert errors.count("\n") == 1
    assert not (tmp_path / "set").exists()


# ----------------------------------------------------------------------------
# Kills at random instants. pgsr-bench cluster --kills makes as many as one likes.


@pytest.mark.slow
@pytest.mark.parametrize("what", kills.WHAT)
def test_a_kill_changes_nothing(
    what: str, cluster: LocalCluster, size: kills.Size, expected: Path, tmp_path: Path
):
    instant = random.uniform(0.0, 4.0)
    row = kills.trial(cluster, size, tmp_path / "set", expected, what, instant, random.randrange(NODES))
    assert row["equal"], row
    assert row["touched"] <= NODES, row  # whole, but not recorded yet: one a worker at most


@pytest.mark.slow
def test_a_worker_that_stands_still_is_passed(
    cluster: LocalCluster, size: kills.Size, expected: Path, tmp_path: Path
):
    """Stopped in the middle of a shard, it has not died as Ray sees it: somebody else makes the shard."""
    folder = tmp_path / "set"
    process = cluster.generate(*size.arguments, "--out", folder)
    kills.wait_for(folder / "made", process)
    stopped: list[int] = []
    try:
        while not stopped:
            stopped = cluster.workers(0)
        for worker in stopped:
            os.kill(worker, signal.SIGSTOP)
        report = result(process)
        assert report["straggling"] >= 1
        assert {n: d for n, d in kills.files(folder).items() if "/" not in n and not n.startswith(".")} == (
            kills.files(expected)
        )
    finally:
        for worker in stopped:
            os.kill(worker, signal.SIGKILL)


@pytest.mark.slow
def test_a_node_whose_disk_is_full_gives_its_work_away(
    model: Path, small_disk: Path | None, bucket: Path, cluster: LocalCluster, tmp_path: Path
):
    """What goes to S3 is made on the node's own disk first; that of one node is too small for a shard."""
    if small_disk is None:
        pytest.skip("mounting a small disk is not allowed here")
    arguments = ("--count", 10_000, "--shard-size", 1000, "--backend", "onnxruntime", "--model", model)
    result(start(*arguments, "--out", tmp_path / "alone"))
    report = result(cluster.generate(*arguments, "--out", "s3://bucket/faces"))
    assert report["failed"] >= 1
    assert report["lost"] == 0
    assert kills.files(bucket / "faces") == kills.files(tmp_path / "alone")
    nodes = json.loads((bucket / "faces/nodes.json").read_text())["nodes"]
    assert len(nodes) == 1
    assert list(small_disk.rglob("*.tmp")) == []


def s3_settings(address: str) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "secret-of-tests",
        "AWS_ENDPOINT_URL": address,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@pytest.mark.slow
def test_a_folder_of_pictures_on_a_cluster(cluster: LocalCluster, tmp_path: Path):
    """The same files as without Ray, and the same sentence for a picture that cannot be read."""
    model = write_upscaler(tmp_path / "bundle")
    draw = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for number in range(40):
        picture = draw.integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / f"in/{number:02d}.png")
    (tmp_path / "in/17.png").write_bytes(b"no picture")
    arguments = (tmp_path / "in", "--model", model, "--backend", "onnxruntime")
    alone = start(*arguments, "--out", tmp_path / "alone", package="runtime.upscale")
    on_ray = start(*arguments, "--out", tmp_path / "set", "--ray", cluster.address, package="runtime.upscale")
    sentences = [process.communicate(timeout=600)[1].splitlines()[-1] for process in (alone, on_ray)]
    assert sentences[0] == sentences[1]
    assert "1 of 40" in sentences[0]
    assert kills.files(tmp_path / "set") == kills.files(tmp_path / "alone")
    assert len(kills.files(tmp_path / "set")) == 39
    (tmp_path / "in/17.png").unlink()
    report = result(
        start(*arguments, "--out", tmp_path / "set", "--ray", cluster.address, package="runtime.upscale")
    )
    assert (report["made"], report["present"]) == (0, 39)


@pytest.mark.slow
def test_an_archive_prepared_on_a_cluster(cluster: LocalCluster, tmp_path: Path):
    """The same bytes as without Ray, though a worker is killed; and damaged pictures are named the same."""
    draw = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for number in range(600):
        picture = draw.integers(0, 256, (90 + number % 40, 100, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / f"in/{number:03d}.jpg")
    (tmp_path / "in/017.jpg").write_bytes(b"no picture")
    arguments = (tmp_path / "in", "--procedural", 600, "--sizes", "16,64")
    alone = start(*arguments, "--out", tmp_path / "alone.zip", package="trainer.data")
    expected = result(alone)
    on_ray = start(
        *arguments, "--out", tmp_path / "ray.zip", "--ray", cluster.address, package="trainer.data"
    )
    while not cluster.workers(0) and on_ray.poll() is None:
        time.sleep(0.1)
    time.sleep(random.uniform(0.0, 4.0))
    cluster.kill_worker(0)
    assert result(on_ray) == {**expected, "archive": str(tmp_path / "ray.zip")}
    assert (tmp_path / "ray.zip").read_bytes() == (tmp_path / "alone.zip").read_bytes()
    assert (expected["count"], expected["skipped"]) == (1199, 1)


@pytest.mark.slow
def test_scores_measured_on_a_cluster(cluster: LocalCluster, tmp_path: Path):
    """To the last bit what one process with as many threads says."""
    model = write_model(tmp_path / "model")
    network, lpips = scripted(Means(), tmp_path / "means.pt"), scripted(SquaredError(), tmp_path / "lpips.pt")
    for side in (16, 32):
        out = tmp_path / f"{side}.zip"
        result(start("--procedural", 90, "--sizes", side, "--out", out, package="trainer.data"))
    sets = ("--data", tmp_path / "16.zip", "--large-data", tmp_path / "32.zip", "--model", model)
    by_network = ("--features", network, "--feature-side", 0, "--feature-range", "unit", "--lpips", lpips)
    arguments = ("quality", *sets, *by_network, "--images", 200, "--device", "cpu", "--threads", 1)
    alone = result(start(*arguments, package="benchmarks"))
    on_ray = result(start(*arguments, "--ray", cluster.address, package="benchmarks"))
    assert on_ray["sets"] == alone["sets"]
    assert len(on_ray["sets"]["upscaled"]) == 4


# ----------------------------------------------------------------------------
# Prometheus.


WATCHED = {"RAY_enable_metrics_collection": "1", "RAY_metrics_report_interval_ms": "500"}


@contextmanager
def watched_ray(folder: Path) -> Iterator[tuple[str, str]]:
    """A cluster of one node that shows its metrics: its address, and the page's."""
    pytest.importorskip("opencensus", reason="Ray shows metrics with pip install 'ray[default]'")
    port, page = ports()["metrics_agent_port"], ports()["metrics_export_port"]
    options = {
        "port": port,
        "metrics-export-port": page,
        "num-cpus": 1,
        "object-store-memory": 80 * 2**20,
        "include-dashboard": "false",
        "temp-dir": folder,
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    with (folder / "ray.log").open("w") as log:
        process = subprocess.Popen(
            [*command, *(f"--{name}={value}" for name, value in options.items())],
            env={**environment(), **WATCHED},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield f"127.0.0.1:{port}", f"http://127.0.0.1:{page}/metrics"
        finally:
            below = children(process.pid)
            process.kill()
            process.wait()
            end(below)


def samples_in(text: str) -> dict[str, float]:
    """The samples of a Prometheus page by name, those of all labels together."""
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def shown_on(page: str) -> dict[str, float]:
    """What a page shows; nothing before it is there."""
    with suppress(OSError), urllib.request.urlopen(page, timeout=10) as answer:
        return samples_in(answer.read().decode())
    return {}


@pytest.mark.slow
def test_rays_page_has_the_servers_names(model: Path):
    """pgsr-generate --ray while it makes faces, as Ray's own page for Prometheus shows it."""
    pytest.importorskip("prometheus_client")
    from pgsr.runtime.serve.metrics import Metrics

    count, largest = 20_000, dict[str, float]()
    with tempfile.TemporaryDirectory(prefix="ray-") as short, watched_ray(Path(short)) as (address, page):
        deadline = time.monotonic() + 180
        while not shown_on(page) and time.monotonic() < deadline:
            time.sleep(0.5)
        arguments = ("--count", count, "--shard-size", 500, "--model", model, "--backend", "onnxruntime")
        process = start(*arguments, "--out", Path(short) / "set", "--ray", address, settings=WATCHED)
        while process.poll() is None:
            for name, value in shown_on(page).items():
                largest[name] = max(value, largest.get(name, value))
            time.sleep(0.3)
        assert result(process)["made"] == count
    ours = {name.removeprefix("ray_"): value for name, value in largest.items() if "pgsr" in name}
    metrics = Metrics(lambda: 0.0)
    metrics.images.inc(500)
    counted = "pgsr_images_total"
    assert {counted, "pgsr_images_waiting"} <= samples_in(metrics.text().decode()).keys()
    assert {counted, "pgsr_images_waiting"} <= ours.keys()
    assert 500 <= ours[counted] <= count
    assert ours[counted] % 500 == 0
    assert ours[counted] == 500 * ours["pgsr_shards_total"]
    assert 0 < ours["pgsr_images_waiting"] <= count
    assert ours["pgsr_workers"] == 1


def test_metrics_have_the_servers_names():
    """What pgsr-serve counts, too, has its name and meaning."""
    pytest.importorskip("prometheus_client")
    from pgsr import metric_names
    from pgsr.runtime.serve.metrics import Metrics

    text = Metrics(lambda: 3.0).text().decode()
    for name, meaning in (metric_names.IMAGES, metric_names.WAITING):
        assert f"# HELP {name}" in text
        assert meaning in text
