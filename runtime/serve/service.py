"""What the addresses share: the models, the counters, who may begin something long, how answers are made."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from fastapi import Request

from pgsr.errors import PgsrError

from ..generate.latents import Window
from ..generate.write import note_of
from ..output.writers import Encoding
from .batcher import Busy
from .films import Job
from .guard import Refusal
from .metrics import Metrics
from .models import Look, Model, Models, Order
from .requests import MEDIA, Appearance, ErrorAnswer, WhichModel
from .settings import Settings

FILMS = 2  # made at once
NOTHING: Mapping[str, Any] = {}


class Service:
    """What the addresses share: the models, the counters, who may begin something long."""

    def __init__(self, models: Models, settings: Settings) -> None:
        self.models, self.settings, self.limits = models, settings, settings.limits
        self.metrics = Metrics(lambda: sum(model.waiting for model in models))
        self.ready = False
        self.jobs: dict[str, Job] = {}  # uploads by the client's own number
        self.films = ThreadPoolExecutor(FILMS, thread_name_prefix="pgsr-film")
        self._streams = self.uploads = 0

    # ------------------------------------------------------------------------
    # What requests name.

    def model(self, query: WhichModel) -> Model:
        """Raises Refusal for a model that is not here."""
        try:
            return self.models.find(query.model, query.graph)
        except KeyError:
            text = f"there is no model {query.model!r} with that graph here: /v1/models lists them"
            raise Refusal(404, text, "model") from None

    def look(self, model: Model, query: Appearance, format: str) -> Look:
        """Raises Refusal for what this model cannot show."""
        if query.size > model.side(query.stage):
            text = f"size: {query.size} is more than the {model.side(query.stage)} pixels of {model.name}"
            raise Refusal(422, text, "parameter")
        with sentences():
            encoding = Encoding(format, query.quality)
            encoding.codec  # noqa: B018 (raises PgsrError if nothing here writes the format)
        return Look(encoding, model.truncation(query.truncation), query.size, query.stage)

    def face(
        self, model: Model, look: Look, seed: int, index: int, more: Mapping[str, Any] = NOTHING
    ) -> Order:
        """An order for a face of a seed, with the note that pgsr-generate writes, and more in archives."""
        note = note_of(Window(seed, index, 1), 0, model.synthesizer.note_at(look.truncation))
        return Order(look, look.truncation, {**note, **altered(model, look), **more}, seed, index)

    # ------------------------------------------------------------------------
    # Who may begin.

    @contextmanager
    def stream(self) -> Iterator[None]:
        """One of the long answers. Raises Busy if there are enough."""
        if self._streams >= self.limits.streams:
            raise Busy(5.0)
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    @contextmanager
    def upload(self) -> Iterator[None]:
        """One of the pictures to enlarge. Raises Busy if there are enough."""
        if self.uploads >= self.limits.uploads:
            raise Busy(5.0)
        self.uploads += 1
        try:
            yield
        finally:
            self.uploads -= 1


def altered(model: Model, look: Look) -> dict[str, Any]:
    """What the note says of a face that pgsr-generate does not make: reduced, or not upscaled."""
    small = {"size": look.size} if look.size not in (0, model.side(look.stage)) else {}
    return {**small, **({"stage": look.stage} if look.stage != "chain" else {})}


@contextmanager
def sentences(status: int = 422) -> Iterator[None]:
    """Turns a PgsrError, which speaks of options, into an answer that speaks of parameters."""
    try:
        yield
    except PgsrError as error:
        raise Refusal(status, sentence(error), "parameter") from error


def sentence(error: Exception) -> str:
    """What an error says, with parameters' names in place of options'."""
    return re.sub(r"--([a-z]+)", r"\1", str(error))


# ----------------------------------------------------------------------------
# Answers.

IMAGE_CONTENT = {media: {"schema": {"type": "string", "format": "binary"}} for media in MEDIA.values()}


def responses(*media: str, more: dict[int, str] | None = None) -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI document says of an address that answers with files of these kinds."""
    content = {MEDIA[name]: IMAGE_CONTENT[MEDIA[name]] for name in media}
    said = {
        422: "A parameter is not what it has to be.",
        503: "Busy: try again after Retry-After.",
        **(more or {}),
    }
    errors: dict[int | str, dict[str, Any]] = {
        status: {"description": text, **({"model": ErrorAnswer} if status >= 400 else {})}
        for status, text in said.items()
    }
    return {200: {"content": content, "description": "As asked for."}, **errors}


def kept(service: Service) -> str:
    """How long an answer that never changes is kept: in a shared cache only where nobody needs a key."""
    return f"{'private' if service.settings.keys else 'public'}, max-age=31536000, immutable"


def is_known(request: Request, etag: str) -> bool:
    """Returns whether the client says that it holds this already."""
    known = request.headers.get("if-none-match", "")
    return known.strip() == "*" or etag in (part.strip().removeprefix("W/") for part in known.split(","))
