"""Targets that come over the network: what clients send to pgsr-serve, and servers answer to pgsr.client."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import uvicorn
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from uvicorn.server import ServerState

import bundles as tiny
from pgsr.client import Faces
from pgsr.errors import PgsrError
from pgsr.runtime.serve.api import build
from pgsr.runtime.serve.models import Models
from pgsr.runtime.serve.protocol import bounded
from pgsr.runtime.serve.settings import Limits, Settings

from .archives import tarred
from .harness import Defect, Target, work
from .pictures import examples
from .strategies import bytes_near, documents, values

LIMITS = Limits(count=20, frames=8, pixels=2**12, body=2**18, rate=0.0)
WAIT = 100.0  # seconds of the clock for an answer to end
BOUNDARY = "xyz"


class Log(logging.Handler):
    """What the server logs as its own failure."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[BaseException | str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.errors.append((record.exc_info and record.exc_info[1]) or record.getMessage())


class Transport(asyncio.Transport):
    """The server's end of a connection, whose other end has sent its bytes and reads everything."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 8000)})
        self.written, self.closing = bytearray(), False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def set_protocol(self, protocol: Any) -> None:
        pass


class Server:
    """The application of pgsr-serve behind its real protocol, on an event loop of this process."""

    def __init__(self) -> None:
        model: Path | None = tiny.add_upscaler(tiny.add_generator(tiny.write_bundle(work() / "served")))
        settings = Settings(
            {"tiny": model}, device="cpu", backend="onnxruntime", batch=4, threads=1, limits=LIMITS
        )
        self.loop = asyncio.new_event_loop()
        self.log = Log()
        logging.getLogger().addHandler(logging.NullHandler())  # else python-multipart's warnings are printed
        logging.getLogger("pgsr").addHandler(self.log)
        logging.getLogger("uvicorn").addHandler(self.log)
        app, _ = build(Models(settings), settings)
        http = bounded(10.0)
        self.config = uvicorn.Config(
            app, http=http, ws="none", lifespan="on", log_config=None, access_log=False
        )
        self.config.load()
        self.lifespan = self.config.lifespan_class(self.config)
        self.loop.run_until_complete(self.lifespan.startup())
        assert not self.lifespan.should_exit

    def answer(self, data: bytes) -> bytes:
        """All that is answered to the bytes of a connection. Raises Defect if the server fails."""
        self.log.errors.clear()
        written = self.loop.run_until_complete(asyncio.wait_for(self._answer(data), WAIT))
        for error in self.log.errors:
            if isinstance(error, Exception):
                raise error
            raise Defect(f"the log has: {error}")
        return written

    async def _answer(self, data: bytes) -> bytes:
        state, transport = ServerState(), Transport()
        protocol = self.config.http_protocol_class(config=self.config, server_state=state, app_state={})  # type: ignore[call-arg]
        protocol.connection_made(transport)  # type: ignore[arg-type]
        protocol.data_received(data)
        for _ in range(3):
            await asyncio.sleep(0)
        waiting = [t for t in asyncio.all_tasks() if t in state.tasks]
        if waiting and b"\r\n\r\n" in data:
            await asyncio.wait(waiting, timeout=0.2)
        protocol.connection_lost(None)
        while state.tasks:
            await asyncio.wait(state.tasks, timeout=WAIT)
        return bytes(transport.written)


server = functools.cache(Server)


def check_answers(written: bytes) -> None:
    """Raises PgsrError for a refusal, and Defect for what is no answer."""
    if not written:
        raise PgsrError("no answer")
    if not written.startswith(b"HTTP/1.1 "):
        raise Defect(f"an answer of {written[:40]!r}")
    status = int(written[9:12])
    if status in (500, 502, 504):
        raise Defect(f"status {status}: {written[-200:]!r}")
    if status >= 400:
        body = written.partition(b"\r\n\r\n")[2].split(b"HTTP/1.1 ")[0]
        if body and "error" not in json.loads(body):
            raise Defect(f"a refusal of {body[:80]!r}")
        raise PgsrError(f"status {status}")


def read_wire(data: bytes) -> None:
    check_answers(server().answer(data))


def read_address(data: bytes) -> None:
    """A GET of an address that is one for the parser."""
    check_answers(server().answer(b"GET /" + quote(data, safe="/?&=%.-_~:+,").encode() + CLOSE + b"\r\n"))


def read_latents_body(data: bytes) -> None:
    check_answers(server().answer(posted("/v1/latents", "application/json", data)))


def read_upload(data: bytes) -> None:
    """The type of the contents is the first line, so that it varies, too."""
    kind, _, body = data.partition(b"\n")
    text = kind.decode("latin-1").replace("\r", "").replace("\0", "")
    check_answers(server().answer(posted("/v1/upscale", text, body)))


CLOSE = b" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"


def posted(path: str, kind: str, body: bytes) -> bytes:
    head = (
        f"POST {path}".encode()
        + CLOSE
        + f"content-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n".encode("latin-1")
    )
    return head + body


def read_answers(data: bytes) -> None:
    """What a server that is none of ours answers to pgsr.client: a status, a type, and a body."""
    status, kind, body = [*data.split(b"\n", 2), b"", b""][:3]
    code = int(status) if status.isdigit() and 200 <= int(status[:4]) < 600 else 200
    headers = [(b"content-type", kind.strip(b"\r"))] if kind else []

    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(code, headers=headers, content=body)

    with Faces("http://localhost", retries=0, transport=httpx.MockTransport(handle)) as faces:
        calls: list[Callable[[], Any]] = [
            lambda: [model["name"] for model in faces.models()],
            lambda: list(faces.images(count=3)),
            lambda: list(faces.latents([{"seed": 1}])),
        ]
        refusals = []
        for call in calls:
            try:
                call()
            except PgsrError as error:
                refusals.append(str(error))
        if len(refusals) == len(calls):
            raise PgsrError(refusals[0])


# ----------------------------------------------------------------------------


def wires() -> list[bytes]:
    get = b"GET /v1/images?seed=1&index=2&count=2 HTTP/1.1\r\nhost: localhost\r\n\r\n"
    more = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nrange: bytes=0-1\r\nif-none-match: *\r\n\r\n"
    chunked = b"POST /v1/latents HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    chunked += b'transfer-encoding: chunked\r\n\r\n18\r\n{"faces": [{"seed": 0}]}\r\n0\r\n\r\n'
    return [get, more, chunked, get + more, b"HEAD /v1/models HTTP/1.0\r\nhost: localhost\r\n\r\n"]


def built_wires() -> SearchStrategy[bytes]:
    methods = st.sampled_from(
        [b"GET", b"POST", b"HEAD", b"PUT", b"OPTIONS", b"CONNECT", b"get", b"PRI", b"\x16\x03\x01"]
    )
    paths = st.sampled_from(
        [b"/", b"/v1/images", b"/v1/upscale", b"*", b"//", b"/%00", b"/..%2f..%2fetc", b"http://x/", b""]
    )
    names = [
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"expect",
        b"connection",
        b"upgrade",
        b"range",
        b"origin",
    ]
    more = [
        b"authorization",
        b"x-request-id",
        b"if-none-match",
        b"content-type",
        b"x-forwarded-for",
        b"accept-encoding",
    ]
    texts = [
        b"localhost",
        b"0",
        b"5",
        b"-1",
        b"99999999999999999999",
        b"chunked",
        b"100-continue",
        b"close",
        b"websocket",
    ]
    others = [
        b"h2c",
        b"bytes=0-",
        b"Bearer x",
        b"Basic !!",
        b"*",
        b"\xff",
        b"x" * 40_000,
        b"",
        b"127.0.0.1:x",
        b"[::1]",
    ]
    header = st.tuples(st.sampled_from([*names, *more]), st.sampled_from([*texts, *others])).map(b": ".join)
    version = st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9", b""])
    head = st.tuples(methods, paths, version).map(b" ".join)
    one = st.tuples(
        head,
        st.lists(header, max_size=6),
        st.one_of(st.binary(max_size=20), st.just(b"5\r\nhello\r\n0\r\n\r\n")),
    )
    host = [b"host: localhost"]
    request = one.map(lambda d: b"\r\n".join([d[0], *host, *d[1], b"", b""]) + d[2])
    return st.lists(request, min_size=1, max_size=3).map(b"".join)


FIELDS = ("seed", "index", "count", "format", "truncation", "size", "stage", "quality", "model", "graph", "x")
FILM = ("seconds", "fps", "smooth", "loop", "format", "seed", "truncation", "quality")


def addresses() -> list[bytes]:
    return [
        b"v1/images?seed=7&index=3&count=2&format=jpeg&quality=80",
        b"v1/images/0/0.png?size=4&stage=generator",
    ]


def built_addresses() -> SearchStrategy[bytes]:
    words = [
        "0",
        "1",
        "7",
        "-1",
        "18446744073709551615",
        "18446744073709551616",
        "nan",
        "inf",
        "1e400",
        "0.5",
        "png",
    ]
    more = [
        "webp",
        "jxl",
        "gif",
        "mp4",
        "generator",
        "chain",
        "tiny",
        "true",
        "",
        "²",
        "\0",
        "9" * 5000,
        "../x",
        "4097",
    ]
    value = st.one_of(st.sampled_from([*words, *more]), st.integers(0, 30).map(str), st.text(max_size=5))
    face = st.tuples(st.sampled_from(FIELDS), value)
    film = st.tuples(st.sampled_from(FILM), value)

    def query(base: str, field: Any, sure: list[tuple[str, str]]) -> Any:
        return st.lists(field, max_size=4).map(
            lambda pairs: (
                base
                + "?"
                + "&".join(f"{k}={quote(v, safe='', errors='replace')}" for k, v in [*sure, *pairs])
            )
        )

    path = st.tuples(value, value, value).map(lambda d: f"v1/images/{d[0]}/{d[1]}.{d[2]}")
    place = st.sampled_from(
        ["", "v1/models", "metrics", "openapi.json", "v1/upscale/x", "page.js", "docs", "v1"]
    )
    return st.one_of(
        query("v1/images", face, []),
        path.flatmap(lambda base: query(base, face, [])),
        query("v1/video", film, [("seconds", "0.1"), ("format", "gif")]),
        place,
    ).map(lambda text: text.encode("utf-8", "replace"))


BODY = {
    "faces": [{"seed": 0, "index": 3}, {"latent": [0.5] * tiny.LATENT}],
    **{"frames": 3, "loop": False, "format": "png", "truncation": 0.7, "size": 4, "stage": "chain"},
}


def uploads() -> list[bytes]:
    plain = [b"image/png\n" + data for data in examples()[:2]]
    return [*plain, multipart([("picture", "a.png", examples()[1])])]


def multipart(parts: list[tuple[str, str, bytes]], boundary: str = BOUNDARY, end: bytes = b"--") -> bytes:
    body = b"".join(
        f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"; filename="{file}"\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for name, file, data in parts
    )
    return (
        f"multipart/form-data; boundary={BOUNDARY}\n".encode()
        + body
        + f"--{boundary}".encode()
        + end
        + b"\r\n"
    )


def built_uploads() -> SearchStrategy[bytes]:
    name = st.sampled_from(["picture", "picture", "x", "", 'a"b', "a" * 5000, "pic\r\nture"])
    data = st.one_of(st.sampled_from(examples()), st.binary(max_size=30), st.just(b"--xyz--"))
    parts = st.lists(st.tuples(name, name, data), max_size=3)
    odd = st.sampled_from([BOUNDARY, BOUNDARY, "x", "", "xyz--"])
    kind = st.sampled_from(
        [
            "image/png",
            "multipart/form-data",
            "multipart/form-data; boundary=",
            "",
            "multipart/mixed; boundary=xyz",
        ]
    )
    other = st.tuples(kind, data).map(lambda d: d[0].encode() + b"\n" + d[1])
    whole = st.tuples(parts, odd, st.sampled_from([b"--", b"", b"-", b"\r\n"])).map(lambda d: multipart(*d))
    return st.one_of(whole, other)


def answers() -> list[bytes]:
    tar = tarred({"000000.png": examples()[1], "000000.json": b"{}", "000001.png": b"x"})
    models = b'200\napplication/json\n{"models": [{"name": "a"}]}'
    return [b"200\napplication/x-tar\n" + tar, models, b"200\nimage/png\nx"]


def built_answers() -> SearchStrategy[bytes]:
    status = st.sampled_from([b"200", b"204", b"301", b"404", b"503", b"599"])
    kind = st.sampled_from([b"application/x-tar", b"application/json", b"image/png", b"", b"text/html"])
    tree: Mapping[str, Any] = {"models": [{"name": "a"}], "error": "busy"}
    return st.tuples(
        status, kind, st.one_of(documents(dict(tree)), bytes_near(answers()), values().map(repr).map(_bytes))
    ).map(b"\n".join)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")


TARGETS = [
    Target("http-wire", read_wire, wires, built_wires),
    Target("http-address", read_address, addresses, built_addresses),
    Target("http-latents", read_latents_body, lambda: [json.dumps(BODY).encode()], lambda: documents(BODY)),
    Target("http-upload", read_upload, uploads, built_uploads),
    Target("client", read_answers, answers, built_answers),
]
