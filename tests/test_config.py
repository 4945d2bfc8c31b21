"""Recipes: printable data that comes back the same, and errors that name the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pgsr.errors import PgsrError
from pgsr.trainer.step import precision
from pgsr.trainer.step import recipe as config
from pgsr.trainer.step.precision import chosen_precision
from pgsr.trainer.step.schedule import build

SMALL: dict[str, Any] = {
    "name": "small",
    "about": "for tests",
    "generator": {"kind": "progan", "resolution": 16},
    "discriminator": {"kind": "progan", "resolution": 16},
    "schedule": {"resolution": 16},
}


def small(**changes: Any) -> dict[str, Any]:
    return {**SMALL, **changes}


@pytest.mark.parametrize("name", config.recipe_names())
def test_shipped_recipes_round_trip_through_json(name: str):
    recipe = config.load(name)
    assert recipe.name == name
    assert recipe.about
    assert "paper" in recipe.source
    again = config.from_dict(json.loads(json.dumps(recipe.as_dict())))
    assert again == recipe
    assert again.as_dict() == recipe.as_dict()


def test_there_are_shipped_recipes():
    assert config.recipe_names()


def test_defaults_are_the_papers():
    recipe = config.from_dict(SMALL)
    optimizer = recipe.generator_optimizer
    assert (optimizer.learning_rate, optimizer.beta1, optimizer.beta2, optimizer.epsilon) == (
        0.001,
        0,
        0.99,
        1e-8,
    )
    assert recipe.averaging.decay == 0.999
    assert (recipe.schedule.fade_images, recipe.schedule.stable_images) == (800_000, 800_000)
    assert recipe.objective.critic_steps == 1
    assert recipe.generator["latent_size"] == 512
    assert recipe.generator["feature_max"] == 512


def test_the_resolved_recipe_holds_every_option():
    recipe = config.from_dict(SMALL).as_dict()
    assert recipe["generator"]["separable_ends"] is True
    assert recipe["discriminator"]["stddev_group"] == 4
    assert recipe["run"]["keep_checkpoints"] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rat": 1}, "unknown key 'learning_rat'; known here: name, about"),
        ({"schedule": {"resolution": 16, "bach": 4}}, "unknown key 'schedule.bach'"),
        ({"schedule": {"resolution": 16, "at": {"8": {"bach": 4}}}}, "unknown key 'schedule.at.8.bach'"),
        ({"schedule": {"batch": 4}}, "key 'schedule.resolution' is missing"),
        ({"schedule": {"resolution": "16"}}, "schedule.resolution is '16', but must be of type int"),
        ({"schedule": {"resolution": 16.0}}, "schedule.resolution is 16.0, but must be of type int"),
        ({"schedule": 16}, "schedule is 16, but must be a table"),
        ({"schedule": {"resolution": 16, "at": 3}}, "schedule.at is 3, but must be a table"),
        ({"data": {"mirror": 1}}, "data.mirror is 1, but must be of type bool"),
        ({"data": {"filters": ["box"]}}, "data.filters"),
        ({"data": {"filters": []}}, "data.filters is empty"),
        ({"data": {"jpeg": [50]}}, "data.jpeg is [50], but must be the least and the most quality"),
        (
            {"data": {"jpeg": [60, 50]}},
            "data.jpeg is [60, 50], but must be the least and the most quality, from 1 to 95",
        ),
        ({"data": {"jpeg": [0, 50]}}, "data.jpeg"),
        ({"data": {"jpeg": [50, 96]}}, "data.jpeg"),
        ({"data": {"jpeg": [50, 60]}}, "data.jpeg is for networks whose inputs are images"),
        ({"data": {"filters": "area"}}, "data.filters is 'area', but must be a list"),
        ({"data": {"blur": -0.5}}, "data.blur is -0.5"),
        ({"data": {"generated_share": 1.5}}, "data.generated_share is 1.5, but must be at most 1"),
        ({"data": {"generated": "faces.zip"}}, "data.generated is for networks whose inputs are images"),
        ({"data": {"generated": "faces.zip", "box": 16}}, "data.generated and data.box exclude each other"),
        (
            {
                "generator": {"kind": "compact", "scale": 2},
                "objective": {"adversarial": "none"},
                "data": {"generated": "faces.zip"},
            },
            "data.generated needs a loss of pixels",
        ),
        (
            {
                "generator": {"kind": "compact", "scale": 2},
                "objective": {"adversarial": "none", "pixel": "l1", "pixel_at": "inputs"},
                "data": {"generated": "faces.zip"},
            },
            "data.generated compares photographs with photographs",
        ),
        ({"averaging": {"decay": True}}, "averaging.decay is True, but must be of type float"),
        ({"seed": None}, "seed is None, but must be of type int"),
        ({"generator": {"kind": "progan", "resolution": 16, "wide": 1}}, "unknown option 'wide' of 'progan'"),
        ({"discriminator": {}}, "a network needs a kind"),
        ({"objective": {"adversarial": "gan"}}, "objective.adversarial = 'gan' is not one of 'wgan-gp'"),
        ({"objective": {"pixel": "l3"}}, "objective.pixel = 'l3' is not one of 'mse', 'l1', 'none'"),
        ({"objective": {"critic_steps": 0}}, "objective.critic_steps is 0"),
        ({"objective": {"penalty_every": 0}}, "objective.penalty_every is 0"),
        ({"run": {"precision": "half"}}, "run.precision = 'half' is not one of"),
        ({"run": {"log_images": 0}}, "run.log_images is 0"),
        ({"generator_optimizer": {"kind": "sgd"}}, "optimizer.kind = 'sgd' is not one of 'adam'"),
        ({"generator_optimizer": {"learning_rate_from": {"later": 0.1}}}, "learning_rate_from.later"),
        ({"schedule": {"resolution": 16, "start_resolution": 32}}, "start_resolution is above"),
        ({"schedule": {"resolution": 16, "batch": 0}}, "schedule.batch is 0"),
        ({"schedule": {"resolution": 16, "fade_images": -1}}, "schedule.fade_images is -1"),
        ({"schedule": {"resolution": 16, "stable_images": -1}}, "schedule.stable_images is -1"),
        ({"schedule": {"resolution": 16, "at": {"x": {}}}}, "schedule.at.x"),
        ({"schedule": {"resolution": 16, "at": {"8": {"batch": 0}}}}, "schedule.at.8.batch is 0"),
        (
            {"schedule": {"resolution": 16, "at": {"8": {"stable_images": -5}}}},
            "schedule.at.8.stable_images is -5",
        ),
        ({"schedule": {"resolution": 16, "at": {"9": {"batch": 4}}}}, "schedule.at.9: not one of 4, 8, 16"),
        ({"schedule": {"resolution": 16, "start_resolution": 5}}, "start_resolution"),
        ({"schedule": {"resolution": 32}}, "schedule.resolution is 32, but discriminator.resolution is 16"),
        (
            {"generator": {"kind": "progan", "resolution": 8}},
            "schedule.resolution is 16, but generator.resolution is 8",
        ),
        ({"discriminator": {"kind": "progan", "resolution": 8}}, "discriminator.resolution is 8"),
        ({"schedule": {"resolution": 16, "start_resolution": 2}}, "start_resolution is 2"),
    ],
)
def test_errors_name_the_key(changes: dict[str, Any], message: str):
    with pytest.raises(PgsrError) as caught:
        config.from_dict(small(**changes))
    assert message in str(caught.value)


@pytest.mark.parametrize("key", ["name", "about", "generator", "discriminator", "schedule"])
def test_missing_keys_are_named(key: str):
    data = {k: v for k, v in SMALL.items() if k != key}
    with pytest.raises(PgsrError, match=f"key '{key}' is missing"):
        config.from_dict(data)


def test_whole_numbers_may_stand_for_floats():
    recipe = config.from_dict(small(objective={"r1": 10}))
    assert type(recipe.objective.r1) is float


def test_super_resolution_needs_no_critic():
    data = small(
        generator={"kind": "compact"}, discriminator={}, objective={"adversarial": "none", "pixel": "l1"}
    )
    assert config.from_dict(data).discriminator == {}


# ----------------------------------------------------------------------------
# Files and --set.

TOML = """
about = "for tests"
generator = {kind = "progan", resolution = 16}
discriminator = {kind = "progan", resolution = 16}
[schedule]
resolution = 16
batch = 8
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    (tmp_path / "mine.toml").write_text(TOML)
    return tmp_path / "mine.toml"


@pytest.mark.parametrize(
    ("setting", "where", "value"),
    [
        ("schedule.batch=4", ("schedule", "batch"), 4),
        ("schedule.at.8.batch = 2", ("schedule", "at", "8", "batch"), 2),
        ("generator_optimizer.learning_rate=1e-4", ("generator_optimizer", "learning_rate"), 1e-4),
        ("generator.convolution=separable", ("generator", "convolution"), "separable"),
        ('generator.convolution="separable"', ("generator", "convolution"), "separable"),
        ("data.mirror=false", ("data", "mirror"), False),
        ("seed=5", ("seed",), 5),
        ("name=other=name", ("name",), "other=name"),
    ],
)
def test_settings_change_one_key(recipe_file: Path, setting: str, where: tuple[str, ...], value: object):
    changed, plain = (
        config.load(str(recipe_file), [setting]).as_dict(),
        config.load(str(recipe_file)).as_dict(),
    )
    assert flat(changed)[where] == value
    assert {k: v for k, v in flat(changed).items() if k[: len(where) - 1] != where[:-1]} == {
        k: v for k, v in flat(plain).items() if k[: len(where) - 1] != where[:-1]
    }


def flat(data: dict[str, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    result: dict[tuple[str, ...], Any] = {}
    for key, value in data.items():
        result |= flat(value, (*path, key)) if isinstance(value, dict) else {(*path, key): value}
    return result


def test_the_last_setting_counts(recipe_file: Path):
    assert config.load(str(recipe_file), ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("schedule.batch", "--set 'schedule.batch' is not of the form key=value"),
        ("=3", "is not of the form key=value"),
        ("schedule.batch.deeper=3", "batch is not a table"),
        ("schedule.bach=3", "unknown key 'schedule.bach'"),
        ("schedule.batch=many", "schedule.batch is 'many', but must be of type int"),
        ("schedul.batch=3", "unknown key 'schedul'"),
    ],
)
def test_wrong_settings_are_named(recipe_file: Path, setting: str, message: str):
    with pytest.raises(PgsrError) as caught:
        config.load(str(recipe_file), [setting])
    assert message in str(caught.value)


def test_a_file_is_named_by_its_stem(recipe_file: Path):
    assert config.load(str(recipe_file)).name == "mine"


def test_settings_do_not_reach_the_given_data():
    data = small()
    config.with_settings(data, ["schedule.batch=3"])
    assert data == SMALL


def test_an_unknown_recipe_lists_the_known(tmp_path: Path):
    with pytest.raises(PgsrError, match=f"no recipe 'nonsense'; there are .*{config.recipe_names()[0]}"):
        config.load("nonsense")


@pytest.mark.parametrize("content", [b"a = = 3", b"\xff\xfe"])
def test_a_file_that_is_not_toml_is_named(recipe_file: Path, content: bytes):
    recipe_file.write_bytes(content)
    with pytest.raises(PgsrError, match=r"mine\.toml is not valid TOML"):
        config.load(str(recipe_file))


def test_a_schedule_cut_short_may_keep_what_it_says_of_later_resolutions():
    """--set schedule.resolution=8 on a recipe that goes to 16."""
    data = small(schedule={"resolution": 8, "at": {"16": {"batch": 4}}})
    assert config.from_dict(data).schedule.resolutions == [4, 8]


@pytest.mark.parametrize("said", ["float32", "bfloat16", "float16", "float64"])
def test_the_environment_says_what_auto_means(said: str, monkeypatch: pytest.MonkeyPatch):
    """And only that: a recipe that names a precision keeps it."""
    monkeypatch.setenv("PGSR_PRECISION", said)
    cpu = torch.device("cpu")
    assert chosen_precision("auto", cpu) == getattr(torch, said)
    assert chosen_precision("float32", cpu) == torch.float32
    monkeypatch.setenv("PGSR_PRECISION", "half")
    with pytest.raises(PgsrError, match="PGSR_PRECISION = 'half' is not one of"):
        chosen_precision("auto", cpu)


@pytest.mark.parametrize("there", [True, False])
def test_auto_is_bfloat16_where_the_processor_has_it(there: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PGSR_PRECISION")
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: there)
    expected = torch.bfloat16 if there else torch.float32
    assert chosen_precision("auto", torch.device("cpu")) == expected


def test_a_recipe_changes_another(tmp_path: Path):
    """A file with a base holds what it changes alone."""
    path = tmp_path / "own.toml"
    path.write_text('base = "ladder-a"\nabout = "mine"\n[data]\nmirror = false\n[schedule]\nbatch = 8\n')
    own, base = config.load(str(path)).as_dict(), config.load("ladder-a").as_dict()
    changes = {"name": "own", "about": "mine", "data": {**base["data"], "mirror": False}}
    assert own == {**base, **changes, "schedule": {**base["schedule"], "batch": 8}}
    for base_name in ("nonsense", "ladder-a-lsun"):
        path.write_text(f'base = "{base_name}"\n')
        with pytest.raises(PgsrError, match=f"base is '{base_name}'"):
            config.load(str(path))
    path.write_text("base = 3\n")
    with pytest.raises(PgsrError, match="base is '3'"):
        config.load(str(path))


@pytest.mark.parametrize("rung", ["a", "b", "c", "d", "e", "e-star", "f", "g", "h"])
def test_the_ladder_on_bedrooms_differs_in_mirroring_alone(rung: str):
    faces, bedrooms = config.load(f"ladder-{rung}").as_dict(), config.load(f"ladder-{rung}-lsun").as_dict()
    assert faces["data"].pop("mirror")
    assert not bedrooms["data"].pop("mirror")
    for recipe in (faces, bedrooms):
        for words in ("name", "about", "source"):
            recipe.pop(words)
    assert faces == bedrooms


def test_lsun_at_256_shows_20_million_images():
    """By sixteen at every resolution (paper 2's original code)."""
    for name, mirrors in (("lsun-256", False), ("lsun-256-100k", True)):
        recipe = config.load(name)
        schedule = build(recipe.schedule)
        assert (schedule.total_images, {phase.batch for phase in schedule.phases}) == (20_000_000, {16})
        assert (recipe.generator["resolution"], recipe.data.mirror) == (256, mirrors)
        assert recipe.discriminator["resolution"] == 256
