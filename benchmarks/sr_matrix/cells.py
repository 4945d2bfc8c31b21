"""The cells of paper 3: objectives times architectures, each a recipe and what differs from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pgsr.errors import PgsrError, check_choice
from pgsr.trainer.step import recipe as config

OBJECTIVES = {"gan": "GAN", "wgan": "WGAN", "wgan-gp": "WGAN-GP"}
ARCHITECTURES = {
    "resnet": (),
    "dcgan": ("generator.kind=dcgan-sr",),
    "mlp": ("generator.kind=mlp-sr", "discriminator.kind=mlp"),
}
TITLES = {"resnet": "ResNet", "dcgan": "DCGAN", "mlp": "MLP"}
PLAIN = ("generator.batch_norm=false", "discriminator.norm=none")
BATCH_NORM = "discriminator.norm=batch"  # under the gradient penalty, where recipes have layer norm
TANH = ("generator.activation=tanh", "discriminator.activation=tanh")


@dataclass(frozen=True)
class Cell:
    """One combination: a recipe and what it does differently."""

    name: str
    title: str
    objective: str
    recipe: str
    settings: tuple[str, ...] = ()
    figures: tuple[int, ...] = ()  # of paper 3, where its pictures stand


def _cells() -> dict[str, Cell]:
    cells: list[Cell] = []

    def add(prefix: str, title: str, objective: str, settings: tuple[str, ...], *figures: int) -> None:
        cells.append(
            Cell(
                f"{prefix}-{objective}",
                f"{title}, {OBJECTIVES[objective]}",
                objective,
                f"sr-{objective}",
                settings,
                figures,
            )
        )

    for architecture, settings in ARCHITECTURES.items():
        for objective in OBJECTIVES:
            resnet = architecture == "resnet"
            figures = ((1, 4) if objective != "wgan-gp" else (1,)) if resnet else (3,)
            add(architecture, TITLES[architecture], objective, settings, *figures)
    for objective in OBJECTIVES:
        add("resnet-plain", "ResNet, no batch norm", objective, PLAIN, 3)
    for objective in OBJECTIVES:
        settings = (*ARCHITECTURES["dcgan"], *PLAIN, *TANH)
        add("dcgan-tanh", "DCGAN, tanh, no batch norm", objective, settings, 3)
    for architecture, settings in ARCHITECTURES.items():  # "by default, all three ... batch-normalization"
        title = f"{TITLES[architecture]}, critic with batch norm"
        add(f"{architecture}-batch", title, "wgan-gp", (*settings, BATCH_NORM))
    for gamma in (0.5, 0.0):
        for objective in ("gan", "wgan"):
            weights = (f"objective.adversarial_weight={1 - gamma}", f"objective.pixel_weight={gamma}")
            add(f"resnet-gamma-{gamma:g}", f"ResNet, gamma {gamma:g}", objective, weights, 4)
    for objective in ("gan", "wgan-gp"):
        recipe, title = f"dcgan-64-{objective}", f"noise, DCGAN, {OBJECTIVES[objective]}"
        cells.append(Cell(f"noise-{objective}", title, objective, recipe, (), (5,)))
    return {cell.name: cell for cell in cells}


CELLS = _cells()


@dataclass(frozen=True)
class Settings:
    """How the cells are trained. Raises PgsrError for values out of range."""

    data: Path
    out: Path
    images: int = 80_000  # that the generator of a cell trains on; its critic sees `critic_steps` as many
    batch: int = 16
    features: int = 64  # width of the networks; the sources of the paper have 64
    held_out: int = 64
    evaluations: int = 20  # looks at the held-out pictures while a cell trains
    cells: tuple[str, ...] = tuple(CELLS)
    overrides: tuple[str, ...] = ()  # "key=value", of every recipe
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in self.cells:
            check_choice("--cells", name, CELLS)
        for name, least in {"images": 1, "batch": 2, "features": 1, "held_out": 2, "evaluations": 3}.items():
            if getattr(self, name) < least:
                raise PgsrError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}, but must be at least {least}"
                )


def recipe_of(cell: Cell, settings: Settings) -> config.Recipe:
    """A cell's recipe: the package's, with the cell's settings, the matrix's and the user's on top."""
    critic_steps = config.load(cell.recipe, settings.overrides).objective.critic_steps
    never = 2**62
    changes = {
        "name": f"sr-matrix-{cell.name}",
        "generator.features": settings.features,
        "discriminator.features": settings.features,
        "schedule.batch": settings.batch,
        "schedule.stable_images": settings.images * critic_steps,
        "data.held_out": settings.held_out,
        "run.log_images": 1,  # every iteration, for figure 2
        "run.sample_images": never,
        "run.checkpoint_images": never,
        "run.keep_checkpoints": 1,
        "run.stability_images": never,
    }
    common = (f"{key}={json.dumps(value)}" for key, value in changes.items())
    return config.load(cell.recipe, (*cell.settings, *common, *settings.overrides))
