"""pgsr-bench scaling: the simulation against arithmetic that can be done by hand; real processes, killed."""

from __future__ import annotations

import json
import math
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from pgsr.benchmarks.cli import main
from pgsr.benchmarks.scaling import costs, local
from pgsr.benchmarks.scaling.local import Work, run_shards
from pgsr.benchmarks.scaling.measure import Settings, generated
from pgsr.benchmarks.scaling.simulate import WHERE, Cluster, simulate
from pgsr.errors import PgsrError
from serving import write_model

# Nothing goes wrong, and nothing but the arithmetic takes time: a shard takes 100 s.
EASY = Cluster(
    nodes=2,
    workers=4,
    rate=10.0,
    spread=0.0,
    faces=80_000,
    shard=1000,
    face_bytes=100.0,
    storage=1e9,
    link=1e9,
    mtbf=math.inf,
    slow_share=0.0,
    start=0.0,
    dispatch=0.0,
    reissue=math.inf,
    streams=True,
)


def test_what_can_be_reckoned_by_hand():
    outcome = simulate(EASY)
    assert outcome.makespan == pytest.approx(1000)  # 80 shards, 8 at a time
    assert outcome.efficiency == pytest.approx(1)
    assert outcome.seconds["computing"] == pytest.approx(8 * 1000)
    assert simulate(replace(EASY, start=7.0)).makespan == pytest.approx(1007)
    assert simulate(replace(EASY, faces=81_000)).makespan == pytest.approx(1100)  # one goes alone
    assert simulate(replace(EASY, nodes=1, workers=1, dispatch=0.5)).makespan == pytest.approx(80 * 100.5)
    assert simulate(replace(EASY, nodes=1, workers=100, dispatch=200.0)).makespan == pytest.approx(
        80 * 200 + 100
    )


@pytest.mark.parametrize(("storage", "times"), [(8000.0, 1.0), (4000.0, 2.0), (800.0, 10.0)])
def test_a_storage_that_takes_less_slows_all(storage: float, times: float):
    outcome = simulate(replace(EASY, storage=storage))  # eight workers make 8,000 bytes a second
    assert outcome.makespan == pytest.approx(1000 * times)
    assert outcome.seconds["storage"] == pytest.approx(8 * 1000 * (times - 1))


def test_what_is_sent_afterwards_takes_its_own_time():
    """A shard of 100 kB at a fourth of 8,000 bytes a second."""
    later = replace(EASY, streams=False, link=8000.0)
    assert simulate(later).makespan == pytest.approx(10 * 150)
    assert simulate(later).seconds["sending"] == pytest.approx(80 * 50)
    halved = simulate(replace(later, storage=8000.0))  # of the 16,000 that both send at once
    assert halved.makespan == pytest.approx(10 * 200)
    assert halved.seconds["storage"] == pytest.approx(80 * 50)


def test_a_nodes_link_bounds_its_workers():
    assert simulate(replace(EASY, link=2000.0)).makespan == pytest.approx(2000)


def test_a_node_that_fails_repeats_its_shards_and_no_other():
    """At 150 s node 0 has its second four in hand: 4 x 50 s are lost, and 10 minutes of it."""
    outcome = simulate(replace(EASY, planned=((150.0, 0),), repair=600.0))
    assert (outcome.failures, outcome.repeated) == (1, 4)
    assert outcome.seconds["repeated"] == pytest.approx(200)
    assert outcome.seconds["down"] == pytest.approx(2400)
    assert outcome.seconds["computing"] == pytest.approx(8000)
    assert outcome.makespan == pytest.approx(1350)  # 4 + 4 by 700 s ... then 8 at a time until 80 are whole


def test_a_straggler_is_begun_again_when_nothing_else_is_left():
    slow = replace(EASY, slow_share=0.02, slow_times=20.0, seed=3)
    alone, helped = simulate(slow), simulate(replace(slow, reissue=1.5))
    assert alone.makespan > 2000
    assert helped.reissued > 0
    assert helped.makespan < alone.makespan / 1.5


@pytest.mark.parametrize("seed", range(6))
def test_every_second_is_somewhere_and_every_face_once(seed: int):
    cluster = Cluster(
        nodes=12,
        workers=3,
        faces=400_000,
        shard=2_000,
        mtbf=600.0,
        repair=90.0,
        storage=60e6,
        slow_share=0.1,
        seed=seed,
    )
    outcome = simulate(cluster)
    assert outcome.failures > 3
    assert outcome.repeated > 3
    assert outcome.seconds["storage"] > 0
    assert set(outcome.seconds) == set(WHERE)
    assert min(outcome.seconds.values()) >= 0
    down_at_the_end = (
        cluster.workers * cluster.repair * cluster.nodes
    )  # counted whole, though the run has ended
    whole = 36 * outcome.makespan
    assert whole <= sum(outcome.seconds.values()) * 1.001
    assert sum(outcome.seconds.values()) <= whole + down_at_the_end
    useful = sum(outcome.seconds[where] for where in ("computing",))
    assert useful == pytest.approx(cluster.faces / cluster.rate, rel=0.05)  # nodes differ
    assert simulate(cluster) == outcome


def test_values_out_of_range():
    for wrong in (
        {"nodes": 0},
        {"storage": -1.0},
        {"start": math.nan},
        {"slow_times": 0.5},
        {"rate": math.nan},
    ):
        with pytest.raises(PgsrError, match=next(iter(wrong))):
            replace(EASY, **wrong)  # type: ignore[arg-type]


def test_costs():
    stored = costs.storage(10**6, 1000, 100_000.0, 50 * 10**6)
    assert (stored.shards, stored.shard_bytes, stored.bytes) == (1000, 1e8, 1e11)
    assert (stored.puts, stored.lists) == (1000 * 5, 2)  # two parts, the beginning, the end, the record
    assert costs.hours(3_600_000, 100.0) == 10
    assert costs.failures(1000, 86_400.0, 30 * 86_400.0) == pytest.approx(33.3, abs=0.1)
    assert costs.nodes_that_fill(10e9, 1600.0, 100_000.0) == pytest.approx(62.5)


@pytest.mark.parametrize("kills", [(), ((0.2, 0), (0.5, 1))])
def test_real_workers_make_every_shard_once(kills: tuple[tuple[float, int], ...], tmp_path: Path):
    """Killed or not: each shard is whole, and the same as a single run's."""
    model = write_model(tmp_path / "model")
    out = tmp_path / "out"
    out.mkdir()
    run = run_shards(Work(5, 40, model, backend="onnxruntime"), 2, kills, out)
    names: list[str] = []
    for path in sorted(out.glob("0*.tar")):
        with tarfile.open(path) as archive:
            names += archive.getnames()
    assert [name for name in names if name.endswith(".png")] == [f"{i:06d}.png" for i in range(200)]
    assert len(run.shards) == 5
    assert run.repeated <= run.kills <= len(kills)


def test_a_worker_that_dies_before_it_is_told_what_to_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another takes its place."""
    take, struck = local._Driver.take, threading.Event()

    def after_a_death(driver: local._Driver) -> int | None:
        if not struck.is_set():
            struck.set()
            driver.processes[0].kill()
            driver.processes[0].wait()
        return take(driver)

    monkeypatch.setattr(local._Driver, "take", after_a_death)
    run = run_shards(Work(2, 4, write_model(tmp_path / "model"), backend="onnxruntime"), 1)
    assert (len(run.starts), len(run.shards), run.repeated) == (2, 2, 1)


def test_a_worker_that_gives_up_is_one_sentence(tmp_path: Path):
    with pytest.raises(PgsrError, match="gave up"):
        run_shards(Work(2, 4, tmp_path / "nothing"), 2)


def test_a_cores_rate_and_the_bytes_of_a_face(tmp_path: Path):
    settings = Settings(write_model(tmp_path / "model"), "onnxruntime", seconds=0.05)
    rate, size = generated(settings, "fp32", "png")
    assert rate > 10
    assert 1000 < size < 4000  # a picture of 8 x 8 and its note, in blocks of 512


def test_the_command_writes_one_page(tmp_path: Path):
    options = "--rate 100 --face-bytes 100000 --faces 2000000 --nodes 1,10,40 --mtbf-days 2 --json".split()
    done = CliRunner().invoke(main, ["scaling", *options, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result == json.loads((tmp_path / "scaling.json").read_text())
    (run,) = result["simulated"]
    assert [point["nodes"] for point in run["points"]] == [1, 10, 40]
    assert run["points"][0]["makespan"] > 2_000_000 / 1600
    page = (tmp_path / "scaling.html").read_text()
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "What breaks first" in page
    assert "| nodes |" in (tmp_path / "scaling.md").read_text()


def test_the_command_refuses_in_one_line():
    for options in ("--rate 100", "--nodes 0", "--storage 0", "--mtbf-days nan"):
        done = CliRunner().invoke(main, ["scaling", *options.split()])
        assert done.exit_code in (1, 2)
        assert "Traceback" not in done.output
