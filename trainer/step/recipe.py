"""Recipes: TOML -> frozen dataclasses -> the JSON that every run and checkpoint carries.

A recipe is data. Nothing is built here; an unknown or ill-typed key is an error that names it.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pgsr.errors import PgsrError
from pgsr.files import read_regular
from pgsr.networks import DISCRIMINATORS, GENERATORS, resolved
from pgsr.networks.progan import resolutions_up_to

from .augment import AugmentConfig
from .objectives import ObjectiveConfig
from .tables import (
    LARGEST,
    AveragingConfig,
    CriticConfig,
    DataConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
)

DEEPEST = 8  # tables within tables, of which recipes have four
LONGEST_TEXT = 2000  # letters of a name or a description
LONGEST_FILE = 2**20  # bytes of a recipe or a run's config.json
RECIPES = Path(__file__).parents[1] / "recipes"


@dataclass(frozen=True)
class Recipe:
    """One training, whole: with the data and nothing else it decides every weight."""

    name: str
    about: str
    generator: Mapping[str, Any]  # {"kind": ..., options of that network}
    discriminator: Mapping[str, Any]  # {} without an adversarial loss
    schedule: ScheduleConfig
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    generator_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    critic_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    averaging: AveragingConfig = field(default_factory=AveragingConfig)
    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    critics: Sequence[CriticConfig] = ()  # beside the discriminator
    seed: int = 0
    source: str = ""  # the paper, section, table or figure that it reproduces

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise PgsrError(f"seed is {str(self.seed)[:50]}, but must be at least 0 and below 2**64")
        object.__setattr__(self, "generator", resolved(GENERATORS, self.generator))
        if self.objective.adversarial != "none":
            object.__setattr__(self, "discriminator", resolved(DISCRIMINATORS, self.discriminator))
            self._check_fit("discriminator", self.discriminator)
            self._check_labels()
        self._check_fit("generator", self.generator)
        self._check_critics()
        if self.data.box % self.schedule.resolution:
            raise PgsrError(
                f"data.box is {self.data.box}, but must be a multiple of {self.schedule.resolution} "
                "(schedule.resolution)"
            )
        for name in ("jpeg", "generated"):
            if "latent_size" in self.generator and getattr(self.data, name):
                raise PgsrError(f"data.{name} is for networks whose inputs are images: leave it out")
        if self.data.generated and self.objective.pixel == "none":
            raise PgsrError(
                "data.generated needs a loss of pixels, so that colours stay: set objective.pixel"
            )
        if self.data.generated and self.objective.pixel_at == "inputs":
            raise PgsrError(
                "data.generated compares photographs with photographs: set objective.pixel_at to 'reals'"
            )
        whole_pictures = "latent_size" in self.generator and not self.data.box
        if whole_pictures and self.data.resolution % self.schedule.resolution:
            raise PgsrError(
                f"data.resolution is {self.data.resolution}, but must be a multiple of "
                f"{self.schedule.resolution} (schedule.resolution), or 0"
            )

    def _check_critics(self) -> None:
        """Raises PgsrError if critics or augmentation have nothing to stand beside."""
        if self.objective.adversarial == "none" and (self.critics or self.augment.kind != "none"):
            raise PgsrError("[[critics]] and [augment] need a discriminator: set objective.adversarial")
        if self.objective.updates == "simultaneous" and (self.critics or self.augment.kind != "none"):
            raise PgsrError(
                "[[critics]] and [augment] need updates in turn: set objective.updates to 'alternating'"
            )
        if self.objective.unrolled_steps and (self.critics or self.critic_optimizer.kind != "adam"):
            raise PgsrError("objective.unrolled_steps needs one critic, and Adam for it")
        if self.augment.kind != "none" and "latent_size" not in self.generator:
            raise PgsrError("[augment] is for generators that begin with latents")
        if self.augment.kind != "none" and GENERATORS[self.generator["kind"]].multi_scale:
            raise PgsrError("[augment] is for generators of one scale")

    def named_critics(self) -> dict[str, CriticConfig]:
        """The further critics by name: the network's kind, with a number where a kind comes again."""
        kinds = [critic.network["kind"] for critic in self.critics]
        names = [
            kind if kinds[:i].count(kind) == 0 else f"{kind}-{kinds[:i].count(kind) + 1}"
            for i, kind in enumerate(kinds)
        ]
        return dict(zip(names, self.critics, strict=True))

    def _check_labels(self) -> None:
        """Raises PgsrError if generator and critic are conditioned on different numbers of labels."""
        labels, critic_labels = (network.get("labels", 0) for network in (self.generator, self.discriminator))
        if labels != critic_labels:
            raise PgsrError(f"generator.labels is {labels}, but discriminator.labels is {critic_labels}")
        if labels and self.objective.updates == "simultaneous":
            raise PgsrError("labels are wanted by both networks: set objective.updates to 'alternating'")
        if labels and self.data.stacked:
            raise PgsrError("data.stacked makes images of three pictures: it and labels exclude each other")

    def _check_fit(self, name: str, network: Mapping[str, Any]) -> None:
        """Raises PgsrError if a network does not have the resolutions that the schedule asks of it."""
        schedule = self.schedule
        if "resolution" in network:
            has, option = resolutions_up_to(network["resolution"]), "resolution"
        elif "crop" in network:
            has, option = [network["crop"]], "crop"
        elif "input_size" in network:
            has, option = [network["input_size"] * network["scale"]], "input_size"
        else:
            return
        if schedule.resolution not in has:
            raise PgsrError(
                f"schedule.resolution is {schedule.resolution}, but {name}.{option} is {network[option]}"
            )
        grows = GENERATORS[self.generator["kind"]].grows
        if grows and schedule.start_resolution not in has:
            raise PgsrError(
                f"schedule.start_resolution is {schedule.start_resolution}, but {name} has "
                f"{', '.join(map(str, has))}"
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data; `from_dict` gives the same recipe back."""
        result = dataclasses.asdict(self)
        for name in ("filters", "jpeg"):
            result["data"][name] = list(result["data"][name])
        return {**result, "critics": list(result["critics"])}


# ----------------------------------------------------------------------------
# Plain data -> dataclasses.


CHOSEN = "chosen"  # in a run's config.json, beside the recipe: what its machine made of it


def from_dict(data: Mapping[str, Any]) -> Recipe:
    """The recipe in a config.json, a checkpoint or a TOML file.

    Raises PgsrError for unknown, missing or ill-typed keys, and numbers that nothing here means.
    """
    _check_plain(data, "", 0)
    if isinstance(data, Mapping):
        data = {key: value for key, value in data.items() if key != CHOSEN}
    recipe = _build(Recipe, data, "")
    assert isinstance(recipe, Recipe)
    return recipe


def _check_plain(value: Any, path: str, depth: int) -> None:
    """Raises PgsrError for numbers beyond LARGEST, and tables deeper than DEEPEST."""
    if depth > DEEPEST:
        raise PgsrError(f"{path[:50]} ... is nested deeper than recipes are")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_plain(key, _join(path, str(key)[:50]), depth + 1)
            _check_plain(inner, _join(path, str(key)[:50]), depth + 1)
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            _check_plain(inner, f"{path}.{index}", depth + 1)
    elif isinstance(value, str) and len(value) > LONGEST_TEXT:
        raise PgsrError(f"{path} is a text of {len(value)} letters, but must have at most {LONGEST_TEXT}")
    elif isinstance(value, int) and path != "seed" and abs(value) > LARGEST:
        raise PgsrError(f"{path} is {str(value)[:50]}, but must be at most {LARGEST}")
    elif value != value:
        raise PgsrError(f"{path} is {value}, but must be a number")


def _build(cls: type, data: Any, path: str) -> Any:
    if not isinstance(data, Mapping):
        raise PgsrError(f"{path} is {data!r}, but must be a table")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            raise PgsrError(f"unknown key {_join(path, key)!r}; known here: {', '.join(fields)}")
    for name, f in fields.items():
        if name not in data and f.default is f.default_factory is dataclasses.MISSING:
            raise PgsrError(f"key {_join(path, name)!r} is missing")
    return cls(**{key: _value(hints[key], value, _join(path, key)) for key, value in data.items()})


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _value(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, path)
    origin = typing.get_origin(hint)
    if origin is types.UnionType:  # int | None
        return None if value is None else _value(typing.get_args(hint)[0], value, path)
    if origin is Sequence:
        if not isinstance(value, (list, tuple)):
            raise PgsrError(f"{path} is {value!r}, but must be a list")
        inner = typing.get_args(hint)[0]
        return tuple(_value(inner, v, f"{path}.{i}") for i, v in enumerate(value))
    if origin is not None:  # Mapping[str, X]
        if not isinstance(value, Mapping):
            raise PgsrError(f"{path} is {value!r}, but must be a table")
        inner = typing.get_args(hint)[1]
        return {k: _value(inner, v, _join(path, k)) for k, v in value.items()}
    if hint is float and type(value) is int:
        return float(value)
    if hint is not Any and type(value) is not hint:
        raise PgsrError(f"{path} is {value!r}, but must be of type {hint.__name__}")
    return value


# ----------------------------------------------------------------------------
# TOML files and the command line on top.


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def load(name_or_path: str, settings: Sequence[str] = ()) -> Recipe:
    """A recipe by name or from a TOML file, with `key.sub=value` settings on top.

    Raises PgsrError for an unknown name, TOML that does not parse, or a wrong key.
    """
    path = RECIPES / f"{name_or_path}.toml"
    if not path.is_file():
        path = Path(name_or_path)
    if not path.is_file():
        raise PgsrError(
            f"no recipe {name_or_path!r}; there are {', '.join(recipe_names())}, or name a .toml file"
        )
    data = _read(path)
    base = data.pop("base", None)
    if base is not None:
        data = _merged(_base(base, path), data)
    return from_dict(with_settings({"name": path.stem, **data}, settings))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_regular(path, LONGEST_FILE).decode())
    except (ValueError, RecursionError) as error:
        raise PgsrError(f"{path} is not valid TOML: {error}") from error


def _base(name: Any, path: Path) -> dict[str, Any]:
    """The recipe of the package that another one changes. Raises PgsrError if there is none."""
    if not isinstance(name, str) or name not in recipe_names():
        raise PgsrError(
            f"{path}: base is {str(name)[:50]!r}, but must be a recipe that comes with the package"
        )
    data = _read(RECIPES / f"{name}.toml")
    if "base" in data:
        raise PgsrError(f"{path}: base is {name!r}, which has a base of its own: name {data['base']!r}")
    return data


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of `base` with the keys of `changes` in their place."""
    result = dict(base)
    for key, value in changes.items():
        before = result.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            value = _merged(before, value)
        result[key] = value
    return result


def of_run(run: Path, settings: Sequence[str] = ()) -> Recipe:
    """The recipe in a run's config.json, with settings on top. Raises PgsrError if there is none."""
    return from_dict(with_settings(_config_of(run), settings))


def chosen_by(run: Path) -> dict[str, Any]:
    """What a run's machine made of its recipe, by config.json; nothing if that is not there, or older."""
    try:
        chosen = _config_of(run).get(CHOSEN)
    except PgsrError:
        return {}
    return chosen if isinstance(chosen, dict) else {}


def _config_of(run: Path) -> dict[str, Any]:
    path = run / "config.json"
    if not path.exists():
        raise PgsrError(f"{run} is not a run's folder: No such file or directory ({path})")
    try:
        data = json.loads(read_regular(path, LONGEST_FILE))
    except (ValueError, RecursionError) as error:
        raise PgsrError(f"{path} is not a run's: {str(error)[:200]}") from error
    if not isinstance(data, dict):
        raise PgsrError(f"{path} is not a run's: {str(data)[:50]!r} is no table")
    return data


def with_settings(data: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """A copy of `data` with each "a.b=value" put in; values are TOML, bare words are strings."""
    _check_plain(data, "", 0)
    result = _copy(data)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise PgsrError(f"--set {setting[:50]!r} is not of the form key=value")
        table = result
        *parents, last = key.strip().split(".")
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise PgsrError(f"--set {key}: {parent} is not a table")
        table[last] = _parse(text.strip())
    return result


def _copy(data: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in data.items()}


def _parse(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    except (ValueError, RecursionError):
        raise PgsrError(f"--set {text[:50]} ... is longer than any number, or deeper than any list") from None
