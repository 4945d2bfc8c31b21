"""Work on a Ray cluster, without one (tests/rays.py): who gets what, who dies, and what comes out. Whole
commands make with --ray what they make without. tests/test_ray.py has real clusters.
"""

from __future__ import annotations

import json
import pickle
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rays import RayError, Rays, install
from test_benchmarks_quality import Means, SquaredError, scripted
from test_benchmarks_quality import write_bundle as write_model

from bundles import write_bundle
from pgsr.benchmarks.quality.feature_network import Settings as NetworkSettings
from pgsr.benchmarks.quality.feature_network import open_network
from pgsr.benchmarks.quality.looking import PLAIN, Seen, asked, looking
from pgsr.benchmarks.quality.sets import Settings as Quality
from pgsr.crew import AHEAD, FEWEST, MOST_DEATHS, MOST_FAILURES, Crew, Hiring, Mapped, connected
from pgsr.errors import PgsrError
from pgsr.files import ending_cleanly
from pgsr.runtime.generate.cli import main as generate
from pgsr.runtime.upscale.cli import main as upscale
from pgsr.trainer.data.cli import main as data
from pgsr.trainer.data.recoding import Drawn, Recoder, Settings, Source, parts_of
from pgsr.trainer.data.sources import open_pictures
from upscaling import write_upscaler

DEAD = RayError("its node is gone")


def squared() -> Callable[[int], int]:
    """What a worker opens, in these tests."""
    return _square


def _square(x: int) -> int:
    if x < 0:
        raise PgsrError(f"{x} has no square here")
    return x * x


@pytest.fixture
def rays(monkeypatch: pytest.MonkeyPatch) -> Rays:
    return install(monkeypatch, Rays())


def mapped(rays: Rays, hiring: Hiring | None = None) -> Mapped:
    return Mapped(rays, squared, hiring or Hiring(), "thing")


# ----------------------------------------------------------------------------
# A map.


@pytest.mark.parametrize("seed", range(4))
def test_answers_come_in_order_whatever_is_slow_or_dies(seed: int, rays: Rays, caplog):
    draw = random.Random(seed)
    rays.nodes_cores = [2.0, 3.0]
    deaths = set(draw.sample(range(60), 5))

    def says(actor: int, method: str, task: Any) -> float | Exception:
        if task in deaths:
            deaths.remove(task)
            return DEAD
        return draw.uniform(0.1, 5.0)

    rays.says = says
    with mapped(rays) as crew:
        assert list(crew.map(range(60))) == [x * x for x in range(60)]
        assert list(crew.map(iter([7, 8]))) == [49, 64]  # again, by those that are there
        assert list(crew.map([])) == []
    assert crew.summary.lost == 5
    assert len(crew.summary.repeated) >= 5
    assert crew.summary.workers == 5
    assert rays.metrics["pgsr_workers_lost"] == 5
    assert "which is done again" in caplog.text
    assert all(actor is None for actor in rays.actors)


def test_few_things_are_taken_ahead(rays: Rays):
    """While the first takes long, the others do not pile up; and it is given to somebody else at last."""
    taken = 0

    def things() -> Iterator[int]:
        nonlocal taken
        while taken < 499:
            taken += 1
            yield taken

    rays.nodes_cores = [6.0]
    rays.says = lambda actor, method, task: 1e9 if (actor, method, task) == (0, "make", 0) else 1.0
    with mapped(rays) as crew:
        for number, answer in enumerate(crew.map(things()), start=1):
            assert answer == number**2
            assert taken - number < AHEAD * max(FEWEST, 6) + 1
    assert (crew.summary.straggling, crew.summary.lost) == (1, 0)
    assert crew.summary.repeated == [0]
    assert rays.now < 500  # seconds


def test_a_worker_that_says_no_rests_and_at_last_gets_no_more_work(rays: Rays, caplog):
    said_no: list[float] = []

    def says(actor: int, method: str, task: Any) -> float | Exception:
        if actor == 0 and method == "make":
            said_no.append(rays.now)
            return PgsrError("no space left")
        return 1.0

    rays.says = says
    with mapped(rays) as crew:
        assert list(crew.map(range(30))) == [x * x for x in range(30)]
    assert (len(said_no), crew.summary.failed) == (MOST_FAILURES, MOST_FAILURES)
    pauses = np.diff(said_no)
    assert pauses[0] >= 2.0
    assert pauses[1] >= 4.0
    assert caplog.text.count("gets no more work") == 1


def test_if_nobody_is_left_their_error_is_said(rays: Rays):
    with (
        mapped(rays) as crew,
        pytest.raises(PgsrError, match=r"^on node .*: -1 has no square here$"),
    ):
        list(crew.map([3, -1]))
    assert crew.summary.failed == 2 * MOST_FAILURES


def test_a_thing_that_ends_workers_ends_the_map(rays: Rays):
    rays.says = lambda actor, method, task: DEAD if task == 3 else 1.0
    with mapped(rays) as crew, pytest.raises(PgsrError, match=f"{MOST_DEATHS} workers died over thing 3"):
        list(crew.map(range(9)))


def test_workers_that_cannot_start_end_the_map(rays: Rays):
    rays.says = lambda actor, method, task: DEAD
    with mapped(rays) as crew, pytest.raises(PgsrError, match=r"workers died starting.*its node is gone"):
        list(crew.map(range(9)))
    rays.says = lambda actor, method, task: ImportError("no such library") if method == "open" else 1.0
    with mapped(rays) as crew, pytest.raises(PgsrError, match="ImportError: no such library"):
        list(crew.map(range(9)))


def test_how_many_are_hired(rays: Rays):
    def hired(hiring: Hiring, things: int = 90) -> int:
        before = len(rays.actors)
        with mapped(rays, hiring) as crew:
            assert len(list(crew.map(range(things)))) == things
        return len(rays.actors) - before

    rays.nodes_cores = [4.0, 5.0]
    assert hired(Hiring()) == 9
    assert hired(Hiring(workers=3)) == 3
    assert hired(Hiring(threads=2)) == 4  # a core of the second node is left over
    assert hired(Hiring(), things=2) == 2
    rays.gpus = 2.0
    assert hired(Hiring()) == 4
    assert rays.options[-1]["num_gpus"] == 1
    assert hired(Hiring("cpu")) == 9
    with pytest.raises(PgsrError, match="--workers 0 is below 1"):
        Hiring(workers=0)


def test_a_node_that_joins_is_used(rays: Rays):
    def says(actor: int, method: str, task: Any) -> float:
        if task == 20:
            rays.nodes_cores = [1.0, 3.0]
        return 1.0

    rays.nodes_cores, rays.says = [1.0], says
    with mapped(rays) as crew:
        list(crew.map(range(60)))
    assert len(rays.actors) == 4


def test_thousands_of_workers_take_little_of_the_drivers_time(rays: Rays):
    """Of what is ours, without Ray's own."""
    count, workers = 20_000, 16_000
    rays.nodes_cores = [float(workers)]
    crew = Crew(rays, Sleeper, (), Hiring(), range(count))
    began = time.process_time()
    crew.run()
    spent = 1000 * (time.process_time() - began) / count
    print(f"{spent:.3f} ms a task with {workers} workers")
    assert len(rays.actors) == workers
    assert spent < 1.0


class Sleeper:
    """Does nothing, and says so."""

    def open(self) -> dict[str, Any]:
        return {"host": "here"}

    def make(self, number: int) -> dict[str, Any]:
        return {"seconds": 1.0}


def test_nobody_at_the_address_is_a_line(rays: Rays):
    nobody = pytest.raises(PgsrError, match=r"no Ray cluster at --ray 127\.0\.0\.1:1: start one")
    with nobody, connected("127.0.0.1:1"):
        pass
    assert not rays.connected
    with connected("auto") as ray:
        assert ray.connected
    assert not rays.connected


def test_what_ray_prints_is_no_result(rays: Rays, capsys: pytest.CaptureFixture[str]):
    """Of a node that died: while it works, and when it ends, as it does from threads of its own."""
    rays.prints = "a raylet has died\n"
    with connected("auto"):
        print("so has a worker")
    print("{}")
    out, errors = capsys.readouterr()
    assert out == "{}\n"
    assert errors.splitlines() == ["a raylet has died", "so has a worker", "a raylet has died"]


def test_sigterm_ends_a_command_as_without_ray(rays: Rays):
    with pytest.raises(SystemExit) as ended, ending_cleanly(), connected("auto"):
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# ----------------------------------------------------------------------------
# Commands.


def sometimes_dead(draw: random.Random, methods: tuple[str, ...] = ("open", "make")) -> Any:
    """Every fifth call ends its worker, and all take different times."""

    def says(actor: int, method: str, task: Any) -> float | Exception:
        return DEAD if method in methods and draw.random() < 0.2 else draw.uniform(0.5, 2.0)

    return says


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def told(done: Any) -> dict[str, Any]:
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout))


def test_faces(rays: Rays, command, tmp_path: Path):
    model = write_bundle(tmp_path / "model")
    few = (
        "--model",
        model,
        "--count",
        95,
        "--shard-size",
        10,
        "--encoder",
        "zlib",
        "--backend",
        "onnxruntime",
    )
    told(command(generate, *few, "--out", tmp_path / "alone", "--json"))
    rays.says = sometimes_dead(random.Random(1))
    report = told(command(generate, *few, "--out", tmp_path / "set", "--ray", "auto", "--json"))
    assert (report["made"], report["present"], report["shards_made"]) == (95, 0, 10)
    assert report["lost"] > 0
    ours, alone = contents(tmp_path / "set"), contents(tmp_path / "alone")
    names = [name for name in alone if name.startswith(("shard-", "set.json"))]
    assert len(names) == 11
    assert all(ours[name] == alone[name] for name in names)
    assert rays.metrics["pgsr_images"] >= 95  # what was made in vain counts, too
    assert rays.metrics["pgsr_shards"] >= 10
    assert rays.metrics["pgsr_images_waiting"] == 0
    again = told(command(generate, *few, "--out", tmp_path / "set", "--ray", "auto", "--json"))
    assert (again["made"], again["present"]) == (0, 95)


def test_a_folder_of_pictures_made_larger(rays: Rays, command, tmp_path: Path):
    model, draw = write_upscaler(tmp_path / "bundle"), np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for number in range(24):
        picture = draw.integers(0, 256, (9, 8, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / f"in/{number:02d}.png")
    few = (tmp_path / "in", "--model", model, "--backend", "onnxruntime", "--json")
    told(command(upscale, *few, "--out", tmp_path / "alone"))
    rays.says = sometimes_dead(random.Random(5))
    report = told(command(upscale, *few, "--out", tmp_path / "set", "--ray", "auto"))
    assert (report["made"] + report["present"], len(contents(tmp_path / "set"))) == (24, 24)
    assert contents(tmp_path / "set") == contents(tmp_path / "alone")
    (tmp_path / "in/17.png").write_bytes(b"no picture")
    said = [
        command(upscale, *few, "--out", tmp_path / "twice", *more).stderr.splitlines()[-1]
        for more in ((), ("--ray", "auto"))
    ]
    assert said[0] == said[1]
    assert "1 of 24" in said[0]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A folder of 90 pictures of different sizes, of which three cannot be used."""
    folder, draw = tmp_path / "photographs", np.random.default_rng(0)
    folder.mkdir()
    for number in range(90):
        size = (20 + number % 7, 18 + number % 5, 3)
        picture = Image.fromarray(draw.integers(0, 256, size, dtype=np.uint8))
        picture.save(folder / f"{number:03d}.{'jpg' if number % 2 else 'png'}")
    (folder / "010.png").write_bytes((folder / "010.png").read_bytes()[:200])
    (folder / "050.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Image.new("RGB", (5, 50)).save(folder / "070.png")
    return folder


@pytest.mark.parametrize("shard", [(), ("--shard", 25)], ids=["zip", "shards"])
def test_prepared_pictures(shard: tuple[Any, ...], rays: Rays, command, photographs: Path, tmp_path: Path):
    few = (photographs, "--procedural", 40, "--sizes", "8,16", *shard, "--json")
    alone = command(data, *few, "--out", tmp_path / "alone")
    rays.says = sometimes_dead(random.Random(2))
    on_ray = command(data, *few, "--out", tmp_path / "set", "--ray", "auto")
    assert told(on_ray) == {**told(alone), "archive": str(tmp_path / "set")}
    assert (told(alone)["count"], told(alone)["skipped"]) == (127, 3)
    assert on_ray.stderr == alone.stderr
    if shard:
        assert contents(tmp_path / "set") == contents(tmp_path / "alone")
    else:
        assert (tmp_path / "set").read_bytes() == (tmp_path / "alone").read_bytes()
    strict = command(data, *few, "--out", tmp_path / "strict", "--ray", "auto", "--max-damaged", 1)
    assert strict.exit_code == 1
    assert "more than 1 pictures are damaged" in strict.stderr
    assert not (tmp_path / "strict").exists()


def test_a_node_that_does_not_see_the_pictures_says_so(
    rays: Rays, command, photographs: Path, tmp_path: Path
):
    """It would take each of them for a damaged one."""

    def says(actor: int, method: str, task: Any) -> float:
        shutil.rmtree(photographs, ignore_errors=True)
        return 1.0

    rays.says = says
    done = command(data, photographs, "--out", tmp_path / "out.zip", "--sizes", 16, "--ray", "auto")
    assert done.exit_code == 1
    assert "is not there; on a cluster, all nodes must see it" in done.stderr
    assert not (tmp_path / "out.zip").exists()


def test_workers_are_for_clusters(command, tmp_path: Path):
    done = command(data, "--procedural", 4, "--out", tmp_path / "out.zip", "--workers", 2)
    assert done.exit_code == 1
    assert "--workers is for --ray" in done.stderr


def test_what_becomes_of_a_part_is_a_function_of_the_part(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In any order, of whoever gets the sources by mail, in another folder."""
    sources: list[Source] = [open_pictures(photographs), Drawn(40, 16)]
    settings = Settings((16, 8), "lanczos", "jpeg", 95)
    parts = parts_of(sources, settings)
    assert sum(len(part.positions) for part in parts) == 130
    with Recoder(sources, settings) as recoder:
        expected = [recoder(part) for part in parts]
    posted = pickle.dumps(partial(Recoder, sources, settings))
    monkeypatch.chdir(tmp_path)
    with pickle.loads(posted)() as elsewhere:
        order = random.Random(0).sample(range(len(parts)), len(parts))
        assert {number: elsewhere(parts[number]) for number in order} == dict(enumerate(expected))


def test_parts_fit_memory():
    large = Settings((1024, 256), "lanczos", "png", 95)
    assert {len(part.positions) for part in parts_of([Drawn(5, 1024)], large)} == {1}
    small = Settings((16,), "lanczos", "png", 95)
    assert [len(part.positions) for part in parts_of([Drawn(70, 16)], small)] == [32, 32, 6]


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


FORMS = ("generator", "upscaler", *PLAIN, "photographs", *(f"restored {way}" for way in ("upscaler", *PLAIN)))


def test_what_is_looked_at_for_scores(rays: Rays, one_thread: None, tmp_path: Path):
    """Every form of a set, to the last bit; and networks that differ on a node are refused."""
    network, lpips = scripted(Means(), tmp_path / "means.pt"), scripted(SquaredError(), tmp_path / "lpips.pt")
    by_network = NetworkSettings(network, side=0, range="unit")
    model = write_model(tmp_path / "model")
    settings = Quality(tmp_path, None, model, features=by_network, lpips=lpips, threads=1)
    photographs = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    rays.says = sometimes_dead(random.Random(3))

    def batches(form: str) -> list[Any]:
        indices = [range(0, 16), range(16, 30)]
        return indices if form in FORMS[:4] else [photographs[i.start : i.stop] for i in indices]

    opened = open_network(by_network)
    with looking(settings, opened) as here, looking(replace(settings, ray="auto"), opened) as there:
        for form in FORMS:
            alone, on_ray = (list(look(asked(form, batches(form), 20, 25))) for look in (here, there))
            assert [len(seen.pixels) for seen in alone] == [16, 4]
            assert [len(seen.features) for seen in alone if seen.features is not None] == [16, 9]
            assert set(alone[0].near) == ({"PSNR Y", "SSIM Y", "LPIPS"} if "restored" in form else set())
            assert [pickle.dumps(plain(seen)) for seen in alone] == [pickle.dumps(plain(s)) for s in on_ray]
    assert rays.metrics["pgsr_workers_lost"] > 0
    other = replace(opened, sha256="another's")
    with (
        looking(replace(settings, ray="auto"), other) as there,
        pytest.raises(PgsrError, match="another one"),
    ):
        list(there(asked("generator", [range(4)], 4, 4)))
    with pytest.raises(PgsrError, match="--workers is for --ray"):
        replace(settings, workers=2)


def plain(seen: Seen) -> list[Any]:
    """Its numbers, as numpy has them."""
    tensors = [seen.features, seen.logits, *seen.near.values()]
    return [seen.pixels.tobytes(), *(None if t is None else t.numpy().tobytes() for t in tensors)]
