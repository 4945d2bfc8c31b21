"""What pgsr-serve is asked to be: plain data, checked before anything is opened."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from pgsr.errors import PgsrError

DEFAULT_NAME = "faces"  # of the model that comes with the package
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
LEAST_KEY = 16  # letters, so that it cannot be guessed by trying


@dataclass(frozen=True)
class Limits:
    """What a client may ask for. Raises PgsrError for values that leave nothing to ask for."""

    count: int = 10_000  # faces of one request
    frames: int = 1_800  # of a video or an interpolation
    pixels: int = 2**22  # of a picture to upscale
    body: int = 2**25  # bytes
    header_seconds: float = 10.0  # from a connection's or request's first byte to the end of its headers
    body_seconds: float = 60.0
    request_seconds: float = 900.0  # for all of it
    waiting: int = 512  # images in the queue; more are refused with 503
    streams: int = 16  # answers of many faces, videos included, at once
    uploads: int = 8  # pictures that are upscaled or wait for it
    connections: int = 1_000
    rate: float = 0.0  # images a second of one client; 0 is no limit, else more are refused with 429

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (value > 0 or (name == "rate" and value == 0)) or value == float("inf"):
                option = name if name == "rate" else f"max-{name.replace('_', '-')}"
                raise PgsrError(f"--{option} {value} is not a number above 0")


@dataclass(frozen=True)
class Settings:
    """What is served, to whom, on what. Raises PgsrError for values that cannot be."""

    models: dict[str, Path | None] = field(default_factory=lambda: {DEFAULT_NAME: None})  # None: the shipped
    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free one
    device: str = "auto"
    precision: str = "fp32"
    backend: str = "auto"
    batch: int = 0  # images at a time; 0 is the fastest, measured once
    threads: int = 0
    max_wait: float = 0.005  # seconds that a face may wait for others while nothing is computed
    limits: Limits = field(default_factory=Limits)
    keys: tuple[str, ...] = ()  # without one of which nobody is let in, if there is any
    origins: tuple[str, ...] = ()  # pages of other sites that may ask: "https://example.org"
    hosts: tuple[str, ...] = ()  # names of this server besides its own, as behind a proxy
    proxy: str = ""  # the address of the one proxy whose X-Forwarded-For counts
    grace: float = 30.0  # seconds to finish what was begun, after SIGTERM

    def __post_init__(self) -> None:
        for key in self.keys:
            if len(key) < LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key:
                raise PgsrError(f"an API key is at least {LEAST_KEY} letters and digits without spaces")
        for origin in self.origins:
            if not re.fullmatch(r"https?://[^/\s*]+", origin):
                raise PgsrError(f"--cors {origin!r} is not an origin such as https://example.org")
        if not 0 <= self.port < 2**16:
            raise PgsrError(f"--port {self.port} is not between 0 and 65535")
        if not 0 <= self.max_wait <= 10:
            raise PgsrError(f"--max-wait {1000 * self.max_wait:g} is not between 0 and 10000 milliseconds")
        if not 0 <= self.grace <= 3600:
            raise PgsrError(f"--grace {self.grace} is not between 0 and 3600 seconds")

    @property
    def is_local(self) -> bool:
        """Returns whether only this machine can reach the server."""
        return self.host in LOOPBACK or self.host.startswith("127.")


def parsed_models(texts: tuple[str, ...]) -> dict[str, Path | None]:
    """("NAME=PATH", "PATH") -> names and folders; the shipped model if none is named.

    Raises PgsrError for a name that is none, or is there twice.
    """
    models: dict[str, Path | None] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals:
            name, path = Path(text).resolve().name, text
        if not NAME.fullmatch(name) or not path:
            raise PgsrError(f"--model {text!r} is not NAME=PATH with a name of letters, digits, . _ -")
        if name in models:
            raise PgsrError(f"--model {name} is named twice: give each bundle a name of its own")
        models[name] = Path(path)
    return models or {DEFAULT_NAME: None}


def read_keys(path: Path) -> tuple[str, ...]:
    """The API keys of a file, one a line; lines that begin with # are left out. Raises PgsrError if there is
    none."""
    from pgsr.files import read_regular

    lines = read_regular(path, 2**20).decode("utf-8", "replace").splitlines()
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise PgsrError(f"{path} holds no API key: write one a line")
    return keys
