"""pgsr-bench rewrites at a tiny size: what it counts, times and reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from pgsr.benchmarks.cli import main
from pgsr.benchmarks.rewrites.measure import AS_WRITTEN, CHOSEN, Settings, counted, variants
from pgsr.benchmarks.rewrites.report import verdicts
from pgsr.export.lowering import Grown

TINY = {"latent_size": 12, "feature_base": 64, "feature_max": 12}


def test_counts_by_hand():
    """8 x 8 with 8 maps: dense, 3 x 3 at 4 x 4 of 12 maps, 3 x 3 of 12 to 8 and 8 to 8 at 8 x 8, RGB."""
    row = counted(Settings(**TINY), "vanilla", 8)
    layers = 12 * 12 * 16 + 16 * 12 * 12 * 9
    old_branch, last = 16 * 12 * 3, 64 * 8 * 8 * 9 + 64 * 8 * 3
    assert row[AS_WRITTEN]["multiply_adds"] == layers + old_branch + 64 * 12 * 8 * 9 + last
    assert row["onnxruntime"]["multiply_adds"] == layers + 25 * 12 * 32 * 4 + last
    assert row["onnxruntime"]["operations"] < row[AS_WRITTEN]["operations"]
    assert "upsample-convolution" in row["onnxruntime"]["rewrites"]


def test_counts_of_the_full_width():
    """As pgsr-bench throughput counts them: 13,635 and 1,562 million, without the old branch."""
    for convolution, millions in (("vanilla", 13_635), ("separable", 1_562)):
        row = counted(Settings(), convolution, 64)
        old_branch = 32 * 32 * 512 * 3
        assert round((row[AS_WRITTEN]["multiply_adds"] - old_branch) / 1e6) == millions


def test_variants_are_those_that_differ():
    settings = Settings(**TINY)
    grown = Grown(settings.network("separable", 8), 8)
    names = [v.name for v in variants(settings, grown, ["onnxruntime"])]
    assert names[:3] == [AS_WRITTEN, f"{CHOSEN} for onnxruntime", f"{CHOSEN} for onnxruntime, int8"]
    assert "with upsample-depthwise" in names
    assert "without norm-behind-rgb" in names
    assert not any("fold-batch-norm" in name or "upsample-convolution" in name for name in names)


def test_the_command_reports(tmp_path: Path, command):
    out = tmp_path / "report"
    sizes = [
        "--resolutions",
        "4,8",
        "--timed",
        "8",
        "--batch",
        "2",
        "--rounds",
        "1",
        "--no-each",
        "--no-int8",
    ]
    widths = ["--latent-size", "12", "--feature-base", "64", "--feature-max", "12", "--threads", "1"]
    result = command(main, "rewrites", *sizes, *widths, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads((out / "rewrites.json").read_text())
    assert json.loads(result.stdout)["counts"] == found["counts"]
    assert [(r["convolution"], r["resolution"]) for r in found["counts"]] == [
        ("vanilla", 4),
        ("vanilla", 8),
        ("separable", 4),
        ("separable", 8),
    ]
    for speeds in found["speeds"]:
        assert {row["backend"] for row in speeds["rows"]} == set(found["backends"])
        for row in speeds["rows"]:
            assert row["psnr_db"] > 60
            assert row["to_eager"] == pytest.approx(speeds["eager"]["seconds"][0] / row["seconds"][0])
            assert row["to_plain"] == pytest.approx(speeds["plain"]["seconds"][0] / row["seconds"][0])
    assert "images a second" in (out / "rewrites.md").read_text()
    assert (out / "rewrites.png").read_bytes()[1:4] == b"PNG"


def test_verdicts_say_what_wins():
    rows = [
        {"name": "without a", "rewrite": "a", "backend": "x", "to_chosen": 0.5},
        {"name": "with b", "rewrite": "b", "backend": "x", "to_chosen": 0.5},
        {"name": "with c", "rewrite": "c", "backend": "x", "to_chosen": 1.01},
    ]
    result = {"speeds": [{"convolution": "vanilla", "resolution": 8, "rows": rows}], "backends": ["x"]}
    (line,) = verdicts(result)
    assert "a wins (2.00x, chosen)" in line
    assert "b loses (0.50x, not chosen)" in line
    assert "c makes no difference" in line


def test_bad_settings_are_one_line(command):
    for option in (["--batch", "1"], ["--rounds", "0"]):
        result = command(main, "rewrites", *option)
        assert result.exit_code == 1
        assert len(result.stderr.splitlines()) == 1
