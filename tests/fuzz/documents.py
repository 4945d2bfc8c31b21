"""Targets that are text: manifests, recipes, settings, tables, logs, notes of what was done before."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

import bundles as tiny
from pgsr import bundle as bundles
from pgsr.runtime import measured
from pgsr.runtime.generate import shards
from pgsr.runtime.generate.claim import SCHEMA, claimed_digits
from pgsr.runtime.generate.job import STDOUT, Job
from pgsr.runtime.generate.latents import Seeds
from pgsr.runtime.generate.store import open_store
from pgsr.runtime.serve.settings import Settings, read_keys
from pgsr.tensorrt.sidecars import read_sidecar
from pgsr.trainer.data import celeba, contents
from pgsr.trainer.data.celebahq import dataset
from pgsr.trainer.run_folder import evaluate, metrics_log
from pgsr.trainer.run_folder.status import status_of
from pgsr.trainer.step import recipe as recipes

from .harness import Target, folder, put, work
from .strategies import as_json, as_toml, bytes_near, changed, documents, values

RECIPE: dict[str, Any] = {
    "about": "small",
    "generator": {"kind": "progan", "resolution": 8, "latent_size": 8, "feature_base": 64, "feature_max": 8},
    "discriminator": {"kind": "progan", "resolution": 8, "feature_base": 64, "feature_max": 8},
    "schedule": {"resolution": 8, "batch": 4, "fade_images": 8, "stable_images": 8},
    "run": {"log_images": 4, "sample_images": 1000, "checkpoint_images": 8, "sample_grid": 4},
}
CLAIM = {
    **{"schema": SCHEMA, "seed": 0, "model": "ab", "precision": "fp32", "truncation": 1.0, "format": "png"},
    **{"quality": None, "size": 8, "digits": 6},
}
SET = {
    **{"schema": shards.SCHEMA, "model": "ab", "precision": "fp32", "count": 2, "shard_size": 2},
    **{"bytes": 5, "node": {"host": "a", "threads": 1}},  # which records have
}
LINE = {
    **{"images_shown": 8, "step": 2, "resolution": 8, "alpha": 0.5, "batch": 4, "loss/critic": 0.1},
    **{"images_per_second": 9.0, "seconds": 1.5, "swd/average": 8.0, "swd_images": 16, "rollback": "nan"},
}
KEY = {
    **{"onnx_sha256": "ab", "library": "tensorrt", "version": "10", "precision": "fp32", "driver": None},
    **{"compute_capabilities": ["8.6"], "profile": {"min": 1, "opt": 8, "max": 16}},
}
SIDECAR = {"schema": 1, "key": KEY, "sha256": "ab", "layers": {"HALF": 3}, "read_back": "it runs"}
ROW = "000001.jpg  69 109 106 113  77 142  73 152 108 154"
LANDMARKS = f"1\n{' '.join(celeba.LANDMARK_COLUMNS)}\n{ROW}\n"
RECORD = {"name": "000001.jpg", "quality": 0.5, "passes": ["wild"]}


def _manifest() -> Any:
    source = tiny.add_upscaler(tiny.add_generator(tiny.write_bundle(work() / "valid")))
    centre = {"truncation": 0.8, "centre": [1.0, *[0.0] * (tiny.LATENT - 1)]}
    return json.loads((source / bundles.MANIFEST).read_text()) | centre


manifest_tree = functools.cache(_manifest)


def read_manifest(data: bytes) -> None:
    put(bundles.MANIFEST, data)
    found = bundles.read(work())
    assert found.size >= 0
    assert {graph.name for graph in found.graphs} <= set(bundles.GRAPHS)
    for graph in found.graphs:
        assert "/" not in graph.file


def read_recipe(data: bytes) -> None:
    found = recipes.load(str(put("r.toml", data)))
    assert recipes.from_dict(found.as_dict()) == found


def read_settings(data: bytes) -> None:
    """--set, a line each, as the command line gives them."""
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    recipes.from_dict(recipes.with_settings(RECIPE | {"name": "x"}, lines))


def read_config(data: bytes) -> None:
    put("config.json", data)
    recipes.chosen_by(work())
    recipes.of_run(work())


def read_metrics(data: bytes) -> None:
    run = _run()
    (run / "metrics.jsonl").write_bytes(data)
    lines = metrics_log.read(run / "metrics.jsonl")
    metrics_log.seconds_of_training(lines, 1000)
    evaluate.best(lines)
    status_of(run)


@functools.cache
def _run() -> Path:
    run = folder("run")
    (run / "config.json").write_bytes(as_json(RECIPE | {"name": "x"}))
    return run


def read_claim(data: bytes) -> None:
    put("manifest.json", data)
    assert claimed_digits(work(), CLAIM) is not None


def read_set(data: bytes) -> None:
    """The manifest and a record of a set of shards that is there already."""
    (_set() / "made" / "000000.json").write_bytes(data)
    (_set() / "set.json").write_bytes(data)
    store = open_store(_set())
    nodes = shards.write_nodes(shards.Shards(Job(STDOUT, count=2), 2), store, {})
    assert [node["shards"] for node in nodes] == ["0"]
    shards.claim_set(store, SET, ["ab"], mixed=True)


@functools.cache
def _set() -> Path:
    made = folder("set")
    (made / "made").mkdir()
    return made


def read_seeds(data: bytes) -> None:
    """--seeds, as the command line gives it."""
    found = Seeds(data.decode("utf-8", "surrogateescape"))
    assert found.position(found.number(0)) == 0
    assert found.number(len(found) - 1) <= found.last


def read_engine_note(data: bytes) -> None:
    found = read_sidecar(put("chain.engine.json", data))
    assert found is None or found.key.profile.min >= 1


def read_api_keys(data: bytes) -> None:
    Settings(keys=read_keys(put("keys", data)))


def read_landmarks(data: bytes) -> None:
    table = celeba.read_table(put("list.txt", data))
    table.need(celeba.LANDMARK_COLUMNS)
    for name in table.rows:
        assert celeba.landmarks(table, name).shape == (5, 2)


def read_partition(data: bytes) -> None:
    table = celeba.read_table(put("list.csv", data))
    table.need(("partition",))
    for name in table.rows:
        celeba.part_of(table, name)
        celeba.label_of(table, name, ("partition",))


def read_celebahq_records(data: bytes) -> None:
    for record in dataset.read_records(put("records.jsonl", data)):
        assert isinstance(record["name"], str)


def read_remembered(data: bytes) -> None:
    """What the cache says of files and of this machine: damaged, it is as good as none."""
    path = measured._path("batch", {"a": 1})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    measured.recall("batch", {"a": 1})
    contents._load(path)


def lines(tree: Any) -> SearchStrategy[bytes]:
    """Some JSON documents, a line each."""
    return st.lists(documents(tree), max_size=3).map(b"\n".join).map(lambda data: data + b"\n")


def settings() -> SearchStrategy[bytes]:
    """Lines of key=value near those that there are."""
    keys = [f"{table}.{key}" for table, inner in RECIPE.items() if isinstance(inner, dict) for key in inner]
    more = ["schedule.at.8.batch", "critics", "objective.kind", "seed", "name", "augment", "data.filters", ""]
    key = st.sampled_from([*keys, *more])
    word = st.sampled_from(["progan", "=", "1_0", "0x7", "1979-05-27", "[", '"', "'''", "{", "nan", "-inf"])
    value = st.one_of(values().map(as_json).map(lambda data: data.decode(errors="replace")), word)
    return st.lists(st.tuples(key, value).map("=".join), min_size=1, max_size=3).map(
        lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass")
    )


def seed_lists() -> SearchStrategy[bytes]:
    number = st.one_of(st.integers(0, 300), st.sampled_from([0, 2**64 - 1, 2**64, 2**63, 10**30])).map(str)
    stretch = st.one_of(number, st.tuples(number, number).map("-".join))
    return st.lists(stretch, min_size=1, max_size=5).map(",".join).map(str.encode)


def of(tree: Any) -> tuple[Callable[[], Iterable[bytes]], Callable[[], SearchStrategy[bytes]]]:
    """A JSON tree as the example, and what is near it."""
    return lambda: [as_json(tree)], lambda: documents(tree)


def text(example: str) -> tuple[Callable[[], Iterable[bytes]], Callable[[], SearchStrategy[bytes]]]:
    return lambda: [example.encode()], lambda: bytes_near([example.encode()])


TARGETS = [
    Target("manifest", read_manifest, lambda: [as_json(manifest_tree())], lambda: documents(manifest_tree())),
    Target("recipe", read_recipe, lambda: [as_toml(RECIPE)], lambda: changed(RECIPE).map(_toml_of)),
    Target("settings", read_settings, lambda: [b"run.log_images=4\nschedule.at.8.batch=2"], settings),
    Target("config", read_config, *of(RECIPE | {"name": "x", "chosen": {"precision": "float32"}})),
    Target("metrics", read_metrics, lambda: [as_json(LINE) + b"\n"], lambda: lines(LINE)),
    Target("claim", read_claim, *of(CLAIM)),
    Target("set", read_set, *of(SET)),
    Target("seed-list", read_seeds, lambda: [b"0-99,200", b"7"], seed_lists),
    Target("engine-note", read_engine_note, *of(SIDECAR)),
    Target("api-keys", read_api_keys, *text(f"# ours\n{'f' * 20}\n")),
    Target("landmarks", read_landmarks, *text(LANDMARKS)),
    Target("partition", read_partition, *text("image_id,partition\n000001.jpg,0\n000002.jpg,2\n")),
    Target(
        "celebahq-records", read_celebahq_records, lambda: [as_json(RECORD) + b"\n"], lambda: lines(RECORD)
    ),
    Target("remembered", read_remembered, *of({"key": {"a": 1}, "value": 8, "a.jpg": [1, 2, 3, 4, 5]})),
]


def _toml_of(data: Any) -> bytes:
    return as_toml(data) if isinstance(data, dict) else b"x"
