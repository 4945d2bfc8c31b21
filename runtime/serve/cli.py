"""pgsr-serve: faces over HTTP, and a page to look at them.

    pgsr-serve                                        # http://127.0.0.1:8000
    pgsr-serve --model faces=my-bundle --model other=other-bundle
    PGSR_API_KEY=... pgsr-serve --host 0.0.0.0        # others need the key
    kill -HUP PID                                     # opens the bundles again

docs/serving.md has the addresses.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from pgsr import bundle
from pgsr.cli import PATH, Command, option, packages, version_option

from .settings import Limits, Settings, parsed_models, read_keys

F = TypeVar("F", bound=Callable[..., Any])
KEY_VARIABLE = "PGSR_API_KEY"
WHERE, WHO, LIMITS, MACHINE = "Where", "Who may ask", "What may be asked for", "Machine"


class _Milliseconds(click.types.FloatParamType):
    """A number, with or without its unit: 5 or 5ms."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number: Any = value.removesuffix("ms") if isinstance(value, str) else value
        return super().convert(number, param, ctx)


def _limit(name: str, help: str) -> Callable[[F], F]:
    """An option for one of the limits, with its default."""
    (field,) = (f for f in fields(Limits) if f.name == name)
    kind = float if isinstance(field.default, float) else int
    return option(
        LIMITS,
        f"--max-{name.replace('_', '-')}",
        name,
        type=kind,
        default=field.default,
        show_default=True,
        help=help,
    )


@click.command(cls=Command)
@option(
    MACHINE,
    "--model",
    "models",
    multiple=True,
    metavar="NAME=PATH",
    help="A bundle; may be repeated, the first is the default [default: the one that comes along].",
)
@option(WHERE, "--host", default="127.0.0.1", show_default=True, help="0.0.0.0 lets other machines in.")
@option(WHERE, "--port", type=int, default=8000, show_default=True, help="0: any free one.")
@option(
    WHERE,
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="A name of this server, as a proxy passes it on.",
)
@option(WHERE, "--proxy", default="", metavar="ADDRESS", help="The proxy whose X-Forwarded-For counts.")
@option(
    WHO,
    "--api-key-file",
    type=PATH,
    help=f"Keys, one a line; without one nobody is let in. {KEY_VARIABLE} in the environment is one, too.",
)
@option(WHO, "--cors", "origins", multiple=True, metavar="ORIGIN", help="A site whose pages may ask, too.")
@option(WHO, "--rate", type=float, default=0.0, help="Images a second of one client [default: no limit].")
@_limit("count", "Faces of one request.")
@_limit("frames", "Of a video or a way between faces.")
@_limit("pixels", "Of a picture to upscale.")
@_limit("body", "Bytes of a request.")
@_limit("header_seconds", "For a request's headers.")
@_limit("body_seconds", "For its body.")
@_limit("request_seconds", "For all of it.")
@_limit("waiting", "Images in the queue; more are refused with 503.")
@_limit("streams", "Long answers at once.")
@_limit("uploads", "Pictures that are upscaled or wait.")
@_limit("connections", "At once.")
@option(
    MACHINE,
    "--max-wait",
    type=_Milliseconds(),
    default=5.0,
    show_default=True,
    help="Milliseconds a face waits for company.",
)
@option(MACHINE, "--batch", type=int, default=0, help="Faces at a time [default: the fastest, by measuring].")
@option(MACHINE, "--device", default="auto", show_default=True, help="auto, cpu or cuda[:N]")
@option(MACHINE, "--precision", default="fp32", show_default=True, metavar="|".join(bundle.PRECISIONS))
@option(MACHINE, "--backend", default="auto", show_default=True, help="See pgsr-generate backends.")
@option(
    MACHINE, "--threads", type=int, default=0, show_default=True, help="CPU threads; 0: as many as are good."
)
@option(
    WHERE, "--grace", type=float, default=30.0, show_default=True, help="Seconds to finish, after SIGTERM."
)
@click.option(
    "--log", "level", type=click.Choice(["info", "warning", "error"]), default="info", show_default=True
)
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object on stdout at the start, and JSON lines of log."
)
@version_option
def main(
    models: tuple[str, ...],
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
    api_key_file: Path | None,
    max_wait: float,
    level: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Serve faces over HTTP, and a page at /.

    SIGTERM and Ctrl-C finish what was begun; SIGHUP opens the bundles again.
    """
    with packages("pgsr-serve", "serve"):
        from .logs import set_up
        from .server import run
    limits = {field.name: options.pop(field.name) for field in fields(Limits)}
    keys = read_keys(api_key_file) if api_key_file else ()
    if os.environ.get(KEY_VARIABLE):
        keys = (*keys, os.environ[KEY_VARIABLE])
    settings = Settings(
        models=parsed_models(models),
        max_wait=max_wait / 1000,
        limits=Limits(**limits),
        keys=keys,
        origins=origins,
        hosts=hosts,
        **options,
    )
    set_up(as_json, level)
    run(settings, as_json)


if __name__ == "__main__":
    main()
