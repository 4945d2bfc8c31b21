"""The process: a socket, uvicorn on it, and what signals mean.

SIGTERM and Ctrl-C finish what was begun, within the grace; SIGHUP opens the bundles again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
from collections.abc import Iterator
from types import FrameType

import click
import uvicorn

from pgsr.errors import PgsrError

from .api import build
from .models import Models, check_bundles
from .protocol import bounded
from .service import Service
from .settings import Settings

KEEP_ALIVE = 20  # seconds between requests of a connection


class Server(uvicorn.Server):
    """uvicorn, whose end by a signal is a success, and which is not ready any more while it ends."""

    service: Service
    announce: str

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        loop = asyncio.get_running_loop()
        self._reloads: set[asyncio.Task[None]] = set()
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        click.echo(self.announce)

    def _reload(self) -> None:
        task = asyncio.get_running_loop().create_task(self.service.models.reload())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if self.force_exit:  # a second Ctrl-C: what breaks off now was asked to
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.ready = False
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals():
            yield
            self._captured_signals.clear()  # else they would be raised again, and end the process by a signal


def run(settings: Settings, as_json: bool) -> None:
    """Serves until a signal. Raises PgsrError if a bundle cannot be opened or the address is taken."""
    check_bundles(settings)
    with _listening(settings) as sock:
        models = Models(settings)
        app, service = build(models, settings)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        url = f"http://{host}:{sock.getsockname()[1]}"
        limits = settings.limits
        config = uvicorn.Config(
            app,
            http=bounded(limits.header_seconds),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(settings.proxy),
            forwarded_allow_ips=settings.proxy or None,
            limit_concurrency=limits.connections,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=settings.grace,  # type: ignore[arg-type]  # any number does
        )
        server = Server(config)
        server.service = service
        names = [model.name for model in models]
        text = f"{', '.join(names)} at {url} (Ctrl-C ends it)"
        server.announce = json.dumps({"url": url, "models": names}) if as_json else text
        server.run(sockets=[sock])


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        sock = socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        reason = error.strerror or str(error)
        raise PgsrError(
            f"--host {settings.host} --port {settings.port} cannot be listened at: {reason}; name another"
        ) from error
    with sock:
        yield sock
