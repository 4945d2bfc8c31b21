"""pgsr-bench inception: the best of each run while it trains, and the mean of several (paper 2, Table 3)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_metrics_features import Means, scripted

from pgsr import draws
from pgsr.benchmarks.cli import main
from pgsr.benchmarks.quality import inception
from pgsr.benchmarks.quality.feature_network import Settings as NetworkSettings
from pgsr.benchmarks.quality.feature_network import open_network
from pgsr.errors import PgsrError
from pgsr.export.source import read_source
from pgsr.images import to_uint8
from pgsr.trainer.data.cache import load_photographs
from pgsr.trainer.metrics.features import frechet_distance, inception_score
from processes import EVERY_STEP


@pytest.fixture(scope="module")
def arguments(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    folder = tmp_path_factory.mktemp("inception")
    recipe = folder / "small.toml"
    recipe.write_text(EVERY_STEP)
    network = scripted(Means(), folder / "means.pt")
    by_network = ["--features", network, "--feature-side", 0, "--feature-range", "unit"]
    sizes = ["--runs", 2, "--evaluations", 4, "--images", 24, "--device", "cpu"]
    return ["inception", "--data", toy, "--recipe", recipe, *by_network, *sizes, "--out", folder / "report"]


@pytest.fixture(scope="module")
def report(command, arguments: list[object]) -> dict:
    result = command(main, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_scores_are_those_of_the_averaged_generator(report: dict, arguments: list[object], toy: Path):
    out = Path(str(arguments[-1]))
    network = open_network(NetworkSettings(out.parent / "means.pt", side=0, range="unit"))
    reals = network(np.array(load_photographs(toy, 8).pixels[:24]))[0].double()
    for row in report["runs"]:
        source = read_source(out / f"seed{row['seed']}")
        latents = draws.normals(row["seed"], "evaluation", range(24), source.latent_size)
        with torch.no_grad():
            pixels = to_uint8(source.generator.at(8, 1.0)(torch.from_numpy(latents)).numpy())
        fakes, logits = network(pixels)
        assert logits is not None
        last = row["looks"][-1]
        assert last["images_shown"] == 88
        assert last["FID"] == pytest.approx(frechet_distance(reals, fakes.double()), rel=0.05)
        assert last["IS"] == pytest.approx(inception_score(logits.double())[0], rel=1e-3)
    assert len({row["looks"][-1]["FID"] for row in report["runs"]}) == 2  # other seeds, other weights


def test_the_best_and_the_mean_of_the_best(report: dict, arguments: list[object]):
    for row in report["runs"]:
        scored = [look for look in row["looks"] if "IS" in look]
        assert 1 < len(scored) < len(row["looks"])  # none before the last resolution
        assert row["best"]["IS"]["IS"] == max(look["IS"] for look in scored)
        assert row["best"]["FID"]["FID"] == min(look["FID"] for look in scored)
    best = [row["best"]["IS"]["IS"] for row in report["runs"]]
    told = report["summary"]["IS"]
    assert told["best"] == max(best)
    assert told["mean"] == pytest.approx(sum(best) / 2)
    assert told["deviation"] == pytest.approx(abs(best[0] - best[1]) / 2**0.5)
    page = (Path(str(arguments[-1])) / "inception.md").read_text()
    assert f"| IS | {told['best']:.2f} ± {told['best_deviation']:.2f} | {told['mean']:.2f} ± " in page


def test_what_is_finished_is_not_scored_again(command, report: dict, arguments: list[object]):
    again = json.loads(command(main, *arguments, "--json").stdout)
    assert again["runs"] == report["runs"]


def test_one_run_has_no_deviation():
    looks = [{"images_shown": 1, "FID": 3.0}, {"images_shown": 2, "FID": 2.0}, {"images_shown": 3}]
    best = inception.bests(looks, "FID")
    assert best == {"FID": looks[1]}
    told = inception.summary([{"best": best}])["FID"]
    assert told == {"best": 2.0, "best_deviation": None, "mean": 2.0, "deviation": None}


def test_sizes_out_of_range():
    network = NetworkSettings(Path("lite0"))
    with pytest.raises(PgsrError, match="--runs is 0"):
        inception.Settings(Path(), Path(), network, runs=0)
    with pytest.raises(PgsrError, match="--images 9 is below 10"):
        inception.Settings(Path(), Path(), network, images=9)
