"""The addresses of videos and of pictures to enlarge."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response
from python_multipart.exceptions import FormParserError

from ..generate.video import VideoJob
from ..output.writers import Encoding
from .films import Job, Stopped, TooLarge, enlarge, make_film
from .guard import ClientGone, Refusal, visit_of
from .models import Look
from .requests import MEDIA, ProgressAnswer, UpscaleQuery, VideoQuery
from .service import Service, is_known, responses, sentences
from .streams import HeldResponse, unless_gone

CHUNK = 2**16  # bytes of a file that are sent at once


async def _on_thread(request: Request, pool: ThreadPoolExecutor, job: Job, work: Callable[[], Any]) -> Any:
    """What a thread makes; it is stopped when the client goes."""
    future = asyncio.get_running_loop().run_in_executor(pool, work)
    try:
        return await unless_gone(request, asyncio.shield(future))
    except (ClientGone, asyncio.CancelledError):
        job.stop()
        with suppress(BaseException):
            _close(await future)
        raise
    except Stopped:
        raise ClientGone from None


def _close(made: Any) -> None:
    (made[0] if isinstance(made, tuple) else made).close()


def _sent(file: IO[bytes], media: str, headers: dict[str, str]) -> HeldResponse:
    """An open file as an answer, closed when it is sent."""
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    stack = ExitStack()
    stack.callback(file.close)
    parts = iter(lambda: file.read(CHUNK), b"")
    return HeldResponse(parts, stack, media_type=media, headers={**headers, "content-length": str(length)})


def add_films(app: FastAPI, service: Service) -> None:
    """Adds /v1/video and /v1/upscale."""

    @app.get("/v1/video", response_class=Response, responses=responses("mp4", "webp", "gif"), tags=["faces"])
    async def video(request: Request, query: Annotated[VideoQuery, Query()]) -> Response:
        """A smooth walk through the latents of a seed."""
        model, visit = service.model(query), visit_of(request.scope)
        suffix = f".{query.format}"
        with sentences():
            film = VideoJob(
                Path(f"video{suffix}"), query.seconds, query.fps, query.smooth, query.loop, query.seed
            )
            if query.quality is not None:
                film = VideoJob(**{**vars(film), "quality": query.quality})
        if film.frames > service.limits.frames:
            raise Refusal(422, f"seconds: {film.frames} frames; at most {service.limits.frames}", "parameter")
        with model.leased(), service.stream():
            settings = {**vars(film), "out": suffix}
            look = Look(Encoding(), model.truncation(query.truncation))
            headers = {
                "cache-control": "no-cache",
                "etag": model.etag(look, "video", sorted(settings.items())),
            }
            if is_known(request, headers["etag"]):
                return Response(status_code=304, headers=headers)
            with sentences():
                model.queue(look).check_room(1)
            visit.pay(film.frames)
            painter, job = model.painter(look.truncation, visit.client), Job()

            def make() -> IO[bytes]:
                return make_film(painter, lambda out: VideoJob(**{**vars(film), "out": out}), suffix, job)

            with sentences(501):
                file = await _on_thread(request, service.films, job, make)
            return _sent(file, MEDIA[query.format], headers)

    body = {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["picture"],
                    "properties": {"picture": {"type": "string", "format": "binary"}},
                }
            },
        },
    }

    @app.post(
        "/v1/upscale",
        response_class=Response,
        responses=responses(
            "png", "jpeg", "webp", more={413: "The picture is too large.", 400: "No picture came."}
        ),
        openapi_extra={"requestBody": body},
        tags=["pictures"],
    )
    async def upscale(request: Request, query: Annotated[UpscaleQuery, Query()]) -> Response:
        """A picture, larger: the body itself, or the field `picture` of a form. EXIF, transparency and colour
        profile go along, as with pgsr-upscale."""
        model, visit = service.model(query), visit_of(request.scope)
        with service.upload(), model.leased():
            data = await _picture(request)
            visit.pay(1)
            job = Job()
            if query.job:
                service.jobs[query.job] = job

            def make() -> tuple[IO[bytes], str]:
                most = service.limits.pixels
                return enlarge(model.upscaler, data, query.format, query.quality, most, job)

            try:
                with sentences():
                    file, format = await _on_thread(request, model.upscales, job, make)
            except Refusal as refusal:
                if isinstance(refusal.__cause__, TooLarge):
                    raise Refusal(413, refusal.text, "pixels") from None
                raise
            finally:
                service.jobs.pop(query.job, None)
            return _sent(file, MEDIA[format], {"cache-control": "no-store"})

    @app.get(
        "/v1/upscale/{job}",
        tags=["pictures"],
        response_model=ProgressAnswer,
        responses={204: {"description": "No upscaling of that number is at work."}},
    )
    async def progress(job: str) -> Response:
        """How far the upscaling is that was begun with this `job`."""
        found = service.jobs.get(job)
        if found is None:
            return Response(status_code=204)
        answer = ProgressAnswer(done=found.done, waiting=max(0, service.uploads - 1))
        return JSONResponse(answer.model_dump(), headers={"cache-control": "no-store"})


async def _picture(request: Request) -> bytes:
    """The uploaded file. Its name is not looked at. Raises Refusal if there is none."""
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        try:
            async with request.form(max_files=1, max_fields=1) as form:
                field = form.get("picture")
                if field is None or isinstance(field, str):
                    raise Refusal(400, "the form has no file in its field `picture`", "body")
                data = await field.read()
        except FormParserError as error:  # newer versions of Starlette answer it themselves
            raise Refusal(400, f"the form is damaged ({error})", "body") from error
    else:
        data = await request.body()
    if not data:
        raise Refusal(
            400, "no picture came: send its file as the body, or in the form's field `picture`", "body"
        )
    return data
