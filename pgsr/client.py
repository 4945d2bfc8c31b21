"""Faces of a pgsr-serve somewhere, in Python (pip install 'pgsr[client]').

    from pgsr.client import Faces

    with Faces("http://127.0.0.1:8000") as faces:
        data = faces.image(seed=7, index=12)                    # a PNG file's bytes
        for name, data in faces.images(seed=7, count=1000):     # as they are made
            Path(name).write_bytes(data)

What a busy server refuses, and what breaks on the way, is asked for again; a set goes on behind the last face
that came, since a seed and an index always give the same one.
"""

from __future__ import annotations

import io
import random
import re
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pgsr.errors import PgsrError, missing_package
from pgsr.schema import shortened
from pgsr.tars import DAMAGED, Header

if TYPE_CHECKING:
    import httpx

AGAIN = (429, 502, 503, 504)  # answers that mean: later
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds
NAME = re.compile(r"[0-9]{1,20}\.[a-z]{3,4}")  # of a file in a tar: callers make files of these names
LARGEST_FILE = 2**29  # bytes of one


class Faces:
    """A server. A context manager; not for several threads at once."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        key: str | None = None,  # where the server wants one
        model: str = "",  # one of `models`; the server's first
        timeout: float = 60.0,  # seconds without a byte
        retries: int = 6,
        **options: Any,  # of httpx.Client: a proxy, certificates
    ) -> None:
        """Raises PgsrError without httpx."""
        try:
            import httpx
        except ImportError as error:
            raise missing_package("pgsr.client", "client", error) from error
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout, **options)
        self._broken = httpx.TransportError
        self._model, self._retries = model, retries

    # ------------------------------------------------------------------------

    def models(self) -> list[dict[str, Any]]:
        """The bundles that are served. Raises PgsrError as all do: for what the server refuses."""
        response = self._call("GET", "/v1/models")
        try:
            models = [dict(model) for model in response.json()["models"]]
            if not all(isinstance(model["name"], str) for model in models):
                raise ValueError("a model's name is no text")
            return models
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise self._strange("/v1/models", error) from error

    def _strange(self, path: str, error: object) -> PgsrError:
        return PgsrError(
            f"{self._http.base_url} answers {path} as no pgsr-serve does: {shortened(str(error))}"
        )

    def image(self, seed: int = 0, index: int = 0, format: str = "png", **look: Any) -> bytes:
        """The file of one face. `look`: truncation, size, stage, quality."""
        query = {"seed": seed, "index": index, "format": format, **look}
        return self._call("GET", "/v1/images", params=self._with_model(query)).content

    def images(
        self, seed: int = 0, count: int = 8, start: int = 0, format: str = "png", **look: Any
    ) -> Iterator[tuple[str, bytes]]:
        """Yields names and files of faces start ... start + count - 1, as they are made."""
        made, broken = 0, 0
        while made < count:
            query = {"seed": seed, "index": start + made, "count": count - made, "format": format, **look}
            try:
                for name, data in self._files("GET", "/v1/images", params=self._with_model(query)):
                    yield name or f"{start + made:06d}.{_suffix(format)}", data
                    made, broken = made + 1, 0
                return
            except (self._broken, *DAMAGED) as error:
                broken += 1
                if broken > self._retries:
                    raise PgsrError(f"the connection broke {broken} times: {error}") from error
                time.sleep(_wait(broken, 0.0))

    def latents(self, faces: Sequence[Mapping[str, Any]], **options: Any) -> Iterator[bytes]:
        """Yields the files of faces, {"seed": ..., "index": ...} or {"latent": [...]} each, or with
        frames=N of the way from one to the next."""
        body = self._with_model({"faces": [dict(face) for face in faces], **options})
        try:
            for _, data in self._files("POST", "/v1/latents", json=body):
                yield data
        except (self._broken, *DAMAGED) as error:
            raise PgsrError(f"the connection broke: {error}") from error

    def upscale(self, picture: Path | bytes, **options: Any) -> bytes:
        """A picture's file, larger. `options`: format, quality."""
        data = picture if isinstance(picture, bytes) else picture.read_bytes()
        return self._call("POST", "/v1/upscale", params=self._with_model(options), content=data).content

    def video(self, seed: int = 0, seconds: float = 4.0, **options: Any) -> bytes:
        """A walk through the latents. `options`: format, fps, smooth, loop, truncation, quality."""
        query = self._with_model({"seed": seed, "seconds": seconds, **options})
        return self._call("GET", "/v1/video", params=query).content

    # ------------------------------------------------------------------------

    def _with_model(self, query: Mapping[str, Any]) -> dict[str, Any]:
        return {**query, "model": self._model} if self._model else dict(query)

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        with self._answer(method, path, **options) as response:
            response.read()
            return response

    @contextmanager
    def _answer(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
        """A good answer, its body still to come. Raises PgsrError for a refusal, or when trying again was of
        no use."""
        for attempt in range(1, self._retries + 2):
            try:
                response = self._http.send(self._http.build_request(method, path, **options), stream=True)
            except self._broken as error:
                if attempt > self._retries:
                    raise PgsrError(f"{self._http.base_url} does not answer: {error}") from error
                time.sleep(_wait(attempt, 0.0))
                continue
            with closing(response):
                if response.is_success:
                    yield response
                    return
                response.read()
                if response.status_code not in AGAIN or attempt > self._retries:
                    raise PgsrError(_refusal(response))
                after = response.headers.get("retry-after", "")
            time.sleep(_wait(attempt, float(after) if after.isdecimal() else 0.0))

    def _files(self, method: str, path: str, **options: Any) -> Iterator[tuple[str, bytes]]:
        """Names and pictures of a tar while it comes; of a single picture, no name."""
        with self._answer(method, path, **options) as response:
            if response.headers.get("content-type") != "application/x-tar":
                yield "", response.read()
                return
            stream = io.BufferedReader(_Incoming(response.iter_bytes()))
            with tarfile.open(
                fileobj=stream, mode="r|", bufsize=tarfile.BLOCKSIZE, tarinfo=Header
            ) as archive:
                for member in archive:
                    if not NAME.fullmatch(member.name) or not member.isreg() or member.size > LARGEST_FILE:
                        raise self._strange(path, f"with {member.name!r} of {member.size:,} bytes")
                    if not member.name.endswith(".json"):
                        file = archive.extractfile(member)
                        assert file is not None
                        yield member.name, file.read()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Incoming(io.RawIOBase):
    """Parts of a body as a file to read."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts, self._left = parts, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            part = next(self._parts, None)
            if part is None:
                return 0
            self._left = part
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count


def _wait(attempt: int, asked: float) -> float:
    """Seconds until the next try: what the server asked for, else twice as long each time; and up to a half
    more, so that many clients do not come at once."""
    seconds = asked or FIRST_WAIT * 2 ** (attempt - 1)
    return min(LONGEST_WAIT, seconds) * random.uniform(1.0, 1.5)


def _refusal(response: httpx.Response) -> str:
    try:
        text = str(response.json()["error"])
    except (ValueError, LookupError, TypeError, RecursionError):
        text = response.reason_phrase
    return f"the server refuses ({response.status_code}): {text}"


def _suffix(format: str) -> str:
    return "jpg" if format == "jpeg" else format
