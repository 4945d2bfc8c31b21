"""Recipes: TOML -> frozen dataclasses -> the JSON that every run and checkpoint carries.

A recipe is data. Nothing is built here; an unknown or ill-typed key is an error that names it.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from pgsr.errors import PgsrError, check_choice
from pgsr.files import read_regular
from pgsr.networks import DISCRIMINATORS, GENERATORS, resolved
from pgsr.networks.progan import resolutions_up_to

from ..data.cache import FILTERS as REDUCERS
from ..data.cache import REDUCED_BY
from .augment import AugmentConfig
from .degradation import FILTERS, STORED
from .objectives import OBJECTIVES, ObjectiveConfig
from .precision import PRECISIONS
from .residency import WISHES

DEEPEST = 8  # tables within tables, of which recipes have four
LONGEST_TEXT = 2000  # letters of a name or a description
LARGEST = 2**62  # a whole number; only the seed may be larger
LARGEST_SIDE = 2**13  # pixels of a photograph that is trained on
MOST_BLUR = 16  # pixels of a super-resolution input
MOST_NOISE = 2  # from black to white
MOST_QUALITY = 95  # of JPEG: above it Pillow's files grow and pictures hardly change
MOST_AT_ONCE = 2**16  # images that networks look at in one step or sheet
LONGEST_FILE = 2**20  # bytes of a recipe or a run's config.json
RECIPES = Path(__file__).parents[1] / "recipes"


@dataclass(frozen=True)
class Override:
    """What one resolution does differently; absent values are the schedule's own."""

    fade_images: int | None = None
    stable_images: int | None = None
    fade_epochs: float | None = None
    stable_epochs: float | None = None
    batch: int | None = None


@dataclass(frozen=True)
class ScheduleConfig:
    """How many images are shown where (paper 2, section A.1). See pgsr.trainer.step.schedule."""

    resolution: int  # of the finished network; crop size for super-resolution
    start_resolution: int = 4  # equal to `resolution`: not progressive
    fade_images: int = 800_000  # real images shown while a resolution fades in
    stable_images: int = 800_000  # and after that
    fade_epochs: float = 0.0  # if not 0, takes the place of fade_images: passes over the data
    stable_epochs: float = 0.0
    batch: int = 16
    at: Mapping[str, Override] = field(default_factory=dict)  # by resolution

    def __post_init__(self) -> None:
        if self.start_resolution > self.resolution:
            raise PgsrError("schedule.start_resolution is above schedule.resolution")
        if self.start_resolution < 1 or self.resolutions[-1] != self.resolution:
            raise PgsrError(
                f"schedule.start_resolution is {self.start_resolution}, "
                f"which does not double to {self.resolution}"
            )
        reachable = [str(self.start_resolution << k) for k in range(9)]  # also beyond `resolution`
        for name in self.at:
            if name not in reachable:
                raise PgsrError(f"schedule.at.{name}: not one of {', '.join(reachable)}")
        for path, part in {"schedule": self, **{f"schedule.at.{k}": v for k, v in self.at.items()}}.items():
            for name, least, most in (
                ("fade_images", 0, LARGEST),
                ("stable_images", 0, LARGEST),
                ("batch", 1, MOST_AT_ONCE),
            ):
                value = getattr(part, name)
                if value is not None and not least <= value <= most:
                    bound = f"at least {least}" if value < least else f"at most {most}"
                    raise PgsrError(f"{path}.{name} is {value}, but must be {bound}")
            for name in ("fade_epochs", "stable_epochs"):
                value = getattr(part, name)
                if value is not None and not 0 <= value < float("inf"):
                    raise PgsrError(f"{path}.{name} is {value}, but must be at least 0")

    @property
    def counts_epochs(self) -> bool:
        """Returns whether only the data tell how long it is."""
        own = any(part.fade_epochs or part.stable_epochs for part in self.at.values())
        return bool(own or self.fade_epochs or self.stable_epochs)

    @property
    def resolutions(self) -> list[int]:
        """Returns what is trained, in order: every one twice the one before."""
        result = [self.start_resolution]
        while 2 * result[-1] <= self.resolution:
            result.append(2 * result[-1])
        return result


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam's settings (paper 2, section A.1: 0.001, 0, 0.99, 1e-8), or RMSprop's."""

    kind: str = "adam"  # or "rmsprop"
    learning_rate: float = 0.001
    beta1: float = 0.0  # Adam's alone
    beta2: float = 0.99  # of the mean of squares: Adam's beta 2, RMSprop's alpha
    epsilon: float = 1e-8
    learning_rate_from: Mapping[str, float] = field(default_factory=dict)  # by images shown
    reset_on_growth: bool = True  # forget the moments when a fade or a resolution begins
    cosine_from: int = 0  # images shown where the rate begins to fall by a half cosine
    cosine_to: int = 0  # and where it has fallen to cosine_floor of itself; 0: it does not fall
    cosine_floor: float = 0.05

    def __post_init__(self) -> None:
        check_choice("optimizer.kind", self.kind, ("adam", "rmsprop"))
        for name, beyond in (("learning_rate", inf), ("beta1", 1), ("beta2", 1), ("epsilon", inf)):
            if not 0 <= getattr(self, name) < beyond:
                raise PgsrError(
                    f"optimizer.{name} is {getattr(self, name)}, but must be at least 0 and below {beyond}"
                )
        for name in self.learning_rate_from:
            if not re.fullmatch("[0-9]{1,15}", name):
                raise PgsrError(f"optimizer.learning_rate_from.{name}: keys are numbers of images shown")
        if self.cosine_to and self.cosine_to <= self.cosine_from:
            raise PgsrError(
                f"optimizer.cosine_to is {self.cosine_to}, but must be above cosine_from ({self.cosine_from})"
            )


@dataclass(frozen=True)
class AveragingConfig:
    """The generator's exponential running average (paper 2, section A.1)."""

    decay: float = 0.999  # a step
    half_life_images: float = 0.0  # if not 0, replaces `decay` and holds at any batch size
    rampup: float = 0.0  # if not 0, no half-life above this share of the images shown at a resolution


@dataclass(frozen=True)
class DataConfig:
    """How photographs become training images."""

    mirror: bool = True
    resolution: int = 0  # side of the stored photographs; 0: the schedule's resolution
    width: int = 0  # of photographs that are higher than wide, whose height is `resolution`; 0: squares
    reduce: str = REDUCED_BY  # the filter by which larger ones are reduced to it (paper 1, Table 1)
    # Super-resolution: what makes inputs worse, each crop by shares of its own (degradation.py).
    filters: Sequence[str] = (STORED,)  # one of which reduces a crop
    blur: float = 0.0  # the most, as a Gaussian's standard deviation in pixels of the input
    noise: float = 0.0  # the most, as a standard deviation
    coarse_noise: float = 0.0  # the same, of blocks of 2 x 2
    jpeg: Sequence[int] = ()  # the least and the most quality of JPEG, last of all; empty: none
    box: int = 0  # if not 0, side of a random box of each photograph, reduced by averaging to what is trained
    held_out: int = 0  # so many photographs, the last ones, are not trained on
    stacked: bool = False  # each image is red of one picture, green of another, blue of a third

    def __post_init__(self) -> None:
        if not self.filters:
            raise PgsrError(f"data.filters is empty: name some of {', '.join(FILTERS)}")
        check_choice("data.reduce", self.reduce, REDUCERS)
        for name in self.filters:
            check_choice("data.filters", name, FILTERS)
        sides, strengths = (
            dict.fromkeys(("resolution", "width", "box"), LARGEST_SIDE),
            ("noise", "coarse_noise"),
        )
        bounds = sides | {"held_out": LARGEST, "blur": MOST_BLUR} | dict.fromkeys(strengths, MOST_NOISE)
        for name, most in bounds.items():
            value = getattr(self, name)
            if not 0 <= value <= most:
                bound = "at least 0" if value < 0 else f"at most {most}"
                raise PgsrError(f"data.{name} is {value}, but must be {bound}")
        if self.box and self.resolution and self.box > self.resolution:
            raise PgsrError(
                f"data.box is {self.box}, but photographs are {self.resolution} (data.resolution)"
            )
        if self.width and not self.box <= self.width < self.resolution:
            raise PgsrError(
                f"data.width is {self.width}, but must be at least data.box ({self.box}) and below "
                f"data.resolution ({self.resolution})"
            )
        if self.width and not self.box:
            raise PgsrError("data.width is for random boxes of photographs: set data.box as well")
        if self.jpeg and not (len(self.jpeg) == 2 and 1 <= self.jpeg[0] <= self.jpeg[1] <= MOST_QUALITY):
            raise PgsrError(
                f"data.jpeg is {list(self.jpeg)}, but must be the least and the most quality, from 1 to "
                f"{MOST_QUALITY}"
            )
        if self.jpeg and self.box:
            raise PgsrError("data.jpeg and data.box exclude each other")
        if self.stacked and self.box:
            raise PgsrError("data.stacked and data.box exclude each other")


@dataclass(frozen=True)
class RunConfig:
    """How often what is written; all counted in real images shown."""

    log_images: int = 2_000
    sample_images: int = 20_000
    checkpoint_images: int = 20_000
    keep_checkpoints: int = 3  # beside the last of each phase
    sample_grid: int = 64  # fixed latents in a sample sheet
    stability_images: int = 0  # between two looks at how far fixed samples moved; 0: an epoch of the data
    evaluate_images: int = 0  # between two looks at the sliced Wasserstein distance; 0: none
    swd_images: int = 2_000  # of either set then, at most as many as there are photographs
    explosion: float = 1e6  # a loss beyond it has diverged; 0: none has. WGAN's scores reach thousands
    precision: str = "auto"  # a name in PRECISIONS; auto: bfloat16 where the device has it
    residency: str = "auto"  # of the photographs: "device", "host"; auto: on the GPU where they fit easily

    def __post_init__(self) -> None:
        check_choice("run.precision", self.precision, ("auto", *PRECISIONS))
        check_choice("run.residency", self.residency, WISHES)
        counts = ("log_images", "sample_images", "checkpoint_images", "keep_checkpoints", "sample_grid")
        for name in (*counts, "swd_images"):
            if getattr(self, name) < 1:
                raise PgsrError(f"run.{name} is {getattr(self, name)}, but must be at least 1")
        if self.sample_grid > MOST_AT_ONCE:
            raise PgsrError(f"run.sample_grid is {self.sample_grid}, but must be at most {MOST_AT_ONCE}")
        for name in ("stability_images", "evaluate_images", "explosion"):
            if not getattr(self, name) >= 0:
                raise PgsrError(f"run.{name} is {getattr(self, name)}, but must be at least 0")


@dataclass(frozen=True)
class CriticConfig:
    """A further critic beside the discriminator: an entry of [[critics]]."""

    network: Mapping[str, Any]  # {"kind": ..., options of that network}
    weight: float = 1.0  # of its term in the generator's loss
    from_resolution: int = 0  # the first that it looks at
    adversarial: str = "logistic"  # a name in OBJECTIVES
    r1: float = 0.0  # gamma of R1
    penalty_every: int = 1  # steps between penalties, each then as many times as strong

    def __post_init__(self) -> None:
        check_choice("critics.adversarial", self.adversarial, OBJECTIVES)
        object.__setattr__(self, "network", resolved(DISCRIMINATORS, self.network))

    def objective(self) -> ObjectiveConfig:
        """The critic's own objective, in the form that the discriminator's has."""
        return ObjectiveConfig(
            adversarial=self.adversarial,
            adversarial_weight=self.weight,
            r1=self.r1,
            penalty_every=self.penalty_every,
        )


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
        if "latent_size" in self.generator and self.data.jpeg:
            raise PgsrError("data.jpeg is for networks whose inputs are images: leave it out")
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
