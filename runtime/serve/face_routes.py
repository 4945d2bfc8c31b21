"""The addresses of faces: images of a seed, and of latents. Nothing here computes; orders go to a queue."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.responses import Response
from numpy.typing import NDArray

from pgsr import draws

from ..generate.interpolation import along
from ..generate.write import encoding_note
from ..output.writers import digits_of
from ..synthesizer import check_window
from .guard import Refusal, visit_of
from .models import Look, Model, Order
from .requests import MEDIA, ImageQuery, ImagesQuery, LatentsBody, Number, Place
from .service import Service, altered, is_known, kept, responses, sentences
from .streams import HeldResponse, tar, unless_gone

SUFFIXES = {"png": "png", "jpg": "jpeg", "webp": "webp", "jxl": "jxl"}  # of an address -> its format


async def _one(
    service: Service, request: Request, model: Model, order: Order, headers: dict[str, str]
) -> Response:
    """The file of one face."""
    assert order.look is not None
    visit = visit_of(request.scope)
    with sentences():
        queue = model.queue(order.look)
    queue.check_room(1)
    visit.pay(1)
    data = await unless_gone(request, queue.put(order, visit.client))
    return Response(data, media_type=MEDIA[order.look.encoding.format], headers=headers)


async def _many(
    service: Service,
    request: Request,
    model: Model,
    look: Look,
    orders: Any,
    numbers: range,
    headers: dict[str, str],
) -> Response:
    """A tar of faces, sent as they are made."""
    visit = visit_of(request.scope)
    with sentences():
        queue = model.queue(look)
    queue.check_room(min(len(numbers), 2 * queue.batch))
    visit.pay(len(numbers))
    with ExitStack() as stack:
        stack.enter_context(service.stream())
        stack.enter_context(model.leased())
        stream = tar(queue, orders, look, numbers, digits_of(numbers[-1]), visit.client)
        return HeldResponse(stream, stack.pop_all(), media_type=MEDIA["tar"], headers=headers)


def add_faces(app: FastAPI, service: Service) -> None:
    """Adds /v1/images, the addresses of single faces, and /v1/latents."""
    many = responses("png", "jpeg", "webp", "jxl", "tar")

    @app.get("/v1/images", response_class=Response, responses=many, tags=["faces"])
    async def images(request: Request, query: Annotated[ImagesQuery, Query()]) -> Response:
        """One face of a seed, or with `count` a tar of as many, 000000.png and 000000.json and so on."""
        if query.count > service.limits.count:
            raise Refusal(422, f"count: at most {service.limits.count} at a time", "parameter")
        with sentences():
            check_window(query.seed, query.count, query.index)
        model = service.model(query)
        with model.leased():
            look = service.look(model, query, query.format)
            headers = {
                "cache-control": "no-cache",
                "etag": model.etag(look, query.seed, query.index, query.count),
            }
            if is_known(request, headers["etag"]):
                return Response(status_code=304, headers=headers)
            numbers = range(query.index, query.index + query.count)
            if query.count == 1:
                order = service.face(model, look, query.seed, query.index)
                return await _one(service, request, model, order, headers)
            more = encoding_note(look.encoding)
            orders = (service.face(model, look, query.seed, index, more) for index in numbers)
            return await _many(service, request, model, look, orders, numbers, headers)

    @app.get(
        "/v1/images/{seed}/{index}.{suffix}",
        response_class=Response,
        responses=responses("png", "jpeg", "webp", "jxl", more={304: "You have it."}),
        tags=["faces"],
    )
    async def image(
        request: Request, seed: Number, index: Number, suffix: str, query: Annotated[ImageQuery, Query()]
    ) -> Response:
        """An address that always gives the same face, and may be kept for ever: .png, .jpg, .webp, .jxl."""
        if suffix not in SUFFIXES:
            raise Refusal(
                404, f"no pictures end in .{suffix[:20]}: ask for .png, .jpg, .webp or .jxl", "address"
            )
        model = service.model(query)
        with model.leased():
            look = service.look(model, query, SUFFIXES[suffix])
            etag = model.etag(look, seed, index)
            headers = {"cache-control": kept(service), "etag": etag}
            if is_known(request, etag):
                return Response(status_code=304, headers=headers)
            return await _one(service, request, model, service.face(model, look, seed, index), headers)

    @app.post("/v1/latents", response_class=Response, responses=many, tags=["faces"])
    async def latents(request: Request, query: LatentsBody) -> Response:
        """Faces of latents of your own, or of the way from one face to the next: one picture, or a tar."""
        model = service.model(query)
        with model.leased():
            look = service.look(model, query, query.format)
            count = query.frames or len(query.faces)
            if count > service.limits.frames:
                raise Refusal(422, f"frames: at most {service.limits.frames} at a time", "parameter")
            if query.frames and len(query.faces) < 2:
                raise Refusal(422, "frames: a way needs two faces or more", "parameter")
            orders = _named_orders(service, model, look, query, count)
            headers = {"cache-control": "no-store"}
            if count == 1:
                return await _one(service, request, model, next(orders), headers)
            return await _many(service, request, model, look, orders, range(count), headers)


def _named_orders(
    service: Service, model: Model, look: Look, query: LatentsBody, count: int
) -> Iterator[Order]:
    """Orders for the faces of a request, or for frames of the way between them."""
    rows = np.stack([_latent(model, place) for place in query.faces])
    more = encoding_note(look.encoding) if count > 1 else {}
    note = {
        "latents": hashlib.sha256(rows.tobytes()).hexdigest(),
        **({"frames": query.frames, "loop": query.loop} if query.frames else {}),
        **model.synthesizer.note_at(look.truncation),
        **altered(model, look),
        **more,
    }

    def order(number: int) -> Order:
        place = None if query.frames else query.faces[number]
        if place is not None and place.latent is None:
            return service.face(model, look, place.seed, place.index, more)
        latent = _on_the_way(rows, number, query)
        return Order(look, look.truncation, {**note, "index": number}, latent=latent)

    return map(order, range(count))


def _latent(model: Model, place: Place) -> NDArray[np.float32]:
    """float32 [L]. Raises Refusal for one of another length."""
    size = model.bundle.latent_size
    if place.latent is None:
        row: NDArray[np.float32] = draws.latents(place.seed, [place.index], size)[0]
        return row
    if len(place.latent) != size:
        raise Refusal(422, f"latent: {len(place.latent)} numbers; {model.name} takes {size}", "parameter")
    return np.array(place.latent, dtype=np.float32)


def _on_the_way(rows: NDArray[np.float32], frame: int, query: LatentsBody) -> NDArray[np.float32]:
    """The latent of a frame, [L]: the faces' own at their places, and between them by equal angles."""
    if not query.frames:
        return along(rows, frame)
    ways = len(rows) if query.loop else len(rows) - 1
    return along(rows, frame * ways / (query.frames if query.loop else max(1, query.frames - 1)))
