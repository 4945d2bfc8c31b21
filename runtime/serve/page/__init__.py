"""The page: its files, as they are served."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

MEDIA = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
FILES = {"": "index.html", "page/style.css": "style.css", "page/icon.svg": "icon.svg"}
FILES |= {f"page/{name}.js": f"{name}.js" for name in ("app", "wall", "state", "tar", "dialogs", "upscale")}


@dataclass(frozen=True)
class File:
    """One file of the page."""

    data: bytes
    media: str
    etag: str


def _read(name: str) -> File:
    data = files(__name__).joinpath(name).read_bytes()
    etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    return File(data, MEDIA[name.rpartition(".")[2]], etag)


def load() -> dict[str, File]:
    """The page's files by their addresses."""
    return {address: _read(name) for address, name in FILES.items()}
