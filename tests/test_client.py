"""pgsr.client: what it fetches, what it tries again, and how a set goes on that was cut short."""

from __future__ import annotations

import io
import socket
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import upscaling
from bundles import LATENT, SIZE
from pgsr import client, draws
from pgsr.client import Faces
from pgsr.errors import PgsrError
from serving import KEY, Served, serving, write_model


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model = write_model(tmp_path_factory.mktemp("model") / "tiny")
    with serving(tmp_path_factory.mktemp("serve"), "--model", model, key=KEY) as found:
        yield found


@pytest.fixture
def faces(served: Served) -> Iterator[Faces]:
    with Faces(served.url, key=KEY) as found:
        yield found


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits are noted, and short."""
    waits: list[float] = []
    monkeypatch.setattr(client.time, "sleep", waits.append)
    return waits


def picture(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_one_face(faces: Faces, served: Served):
    assert picture(faces.image(seed=7, index=3)).shape == (SIZE, SIZE, 3)
    headers = {"authorization": f"Bearer {KEY}"}
    assert faces.image(seed=7, index=3) == served.get("/v1/images/7/3.png", headers=headers).content
    assert picture(faces.image(seed=7, index=3, size=4)).shape == (4, 4, 3)


def test_a_set_as_it_is_made(faces: Faces):
    made = list(faces.images(seed=7, count=12, start=5))
    assert [name for name, _ in made] == [f"{i:06d}.png" for i in range(5, 17)]
    assert np.array_equal(picture(made[2][1]), picture(faces.image(seed=7, index=7)))
    assert [name for name, _ in faces.images(count=1, start=3, format="jpeg")] == ["000003.jpg"]


def test_latents_videos_and_pictures(faces: Faces):
    row = draws.latents(7, [3], LATENT)[0]
    (made,) = faces.latents([{"latent": row.tolist()}])
    assert np.array_equal(picture(made), picture(faces.image(seed=7, index=3)))
    assert len(list(faces.latents([{"index": 1}, {"index": 2}], frames=5))) == 5
    assert faces.video(seconds=0.2, fps=10, format="webp")[8:12] == b"WEBP"
    assert picture(faces.upscale(upscaling.file_of(Image.new("RGB", (9, 7))))).shape == (7, 9, 3)


def test_a_picture_by_its_path(faces: Faces, tmp_path: Path):
    (tmp_path / "p.png").write_bytes(upscaling.file_of(Image.new("RGB", (9, 7))))
    assert faces.upscale(tmp_path / "p.png", format="jpeg")[:2] == b"\xff\xd8"


def test_models(faces: Faces, served: Served):
    (model,) = faces.models()
    with Faces(served.url, key=KEY, model=model["name"]) as named:
        assert named.image() == faces.image()
    with (
        Faces(served.url, key=KEY, model="other") as other,
        pytest.raises(PgsrError, match="no model 'other'"),
    ):
        other.image()


def test_what_the_server_refuses_is_one_sentence(faces: Faces, served: Served, soon: list[float]):
    with pytest.raises(PgsrError, match=r"refuses \(422\): quality is not for png"):
        faces.image(quality=3)
    with Faces(served.url) as stranger, pytest.raises(PgsrError, match=r"refuses \(401\)"):
        stranger.models()
    assert soon == []


def test_nobody_there(soon: list[float]):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with (
        Faces(f"http://127.0.0.1:{port}", retries=3) as faces,
        pytest.raises(PgsrError, match="does not answer"),
    ):
        faces.models()
    assert len(soon) == 3
    assert soon[0] < soon[1] < soon[2]


class Proxy:
    """Stands before a server: cuts off the first answers after so many bytes, or refuses them."""

    def __init__(self, served: Served, cuts: list[int], refusals: int = 0) -> None:
        self.served, self.cuts, self.refusals = served, cuts, refusals
        self.asked: list[str] = []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += connection.recv(65536)
        self.asked.append(request.split(b" ")[1].decode())
        if self.refusals:
            self.refusals -= 1
            connection.sendall(
                b"HTTP/1.1 503 Busy\r\nretry-after: 7\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            )
            return
        left = self.cuts.pop(0) if self.cuts else 2**30
        with self.served.connection() as upstream:
            upstream.sendall(request.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1))
            while left > 0 and (data := upstream.recv(min(left, 65536))):
                connection.sendall(data)
                left -= len(data)


def test_a_set_that_is_cut_short_goes_on_behind_the_last_face(served: Served):
    proxy = Proxy(served, cuts=[7000, 1500, 9001])
    with proxy.socket, Faces(proxy.url, key=KEY) as faces, Faces(served.url, key=KEY) as direct:
        assert list(faces.images(seed=7, count=40)) == list(direct.images(seed=7, count=40))
    assert len(proxy.asked) == 4
    assert "index=0&count=40" in proxy.asked[0]
    assert "index=0&" not in proxy.asked[1]


def test_what_a_busy_server_asks_for_is_done(served: Served, soon: list[float]):
    proxy = Proxy(served, cuts=[], refusals=2)
    with proxy.socket, Faces(proxy.url, key=KEY) as faces:
        assert picture(faces.image()).shape == (SIZE, SIZE, 3)
    assert len(soon) == 2
    assert all(7 <= wait <= 10.5 for wait in soon)


def test_a_set_that_is_always_cut_short_ends(served: Served):
    proxy = Proxy(served, cuts=[1500] * 50)
    with (
        proxy.socket,
        Faces(proxy.url, key=KEY, retries=2) as faces,
        pytest.raises(PgsrError, match="broke 3 times"),
    ):
        list(faces.images(count=40))


# ----------------------------------------------------------------------------
# Servers that are none of ours.


@contextmanager
def answering(kind: str, body: bytes) -> Iterator[Faces]:
    """A client of a server that gives one answer to everything."""
    head = (
        f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )

    def run() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall((head if kind else "HTTP/1.1 200 OK\r\n\r\n").encode() + body)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=run, daemon=True).start()
        with Faces(f"http://127.0.0.1:{listening.getsockname()[1]}", retries=0) as faces:
            yield faces


def tar_of(name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size, member.type = len(data), kind
        archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize(
    "name", ["../../x.png", "/etc/x.png", ".bashrc", "x.png", "0.png/../y", "000000.PNG"]
)
def test_names_that_lead_elsewhere_are_refused(name: str):
    """Callers make files of these names."""
    with answering("application/x-tar", tar_of(name, b"x")) as faces:
        with pytest.raises(PgsrError, match="as no pgsr-serve does"):
            list(faces.images())
        with pytest.raises(PgsrError, match="as no pgsr-serve does"):
            list(faces.latents([{"seed": 1}]))
    with answering("application/x-tar", tar_of("000000.png", b"x")) as faces:
        assert list(faces.images(count=1)) == [("000000.png", b"x")]
    with (
        answering("application/x-tar", tar_of("000000.png", b"", tarfile.SYMTYPE)) as faces,
        pytest.raises(PgsrError, match="as no pgsr-serve does"),
    ):
        list(faces.images())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"models": 3}',
        b'{"models": [3]}',
        b'{"models": [{}]}',
        b"\xff",
        b"[" * 100_000,
    ],
    ids=len,
)
def test_answers_of_something_else(body: bytes):
    with (
        answering("application/json", body) as faces,
        pytest.raises(PgsrError, match="as no pgsr-serve does"),
    ):
        faces.models()
    with answering("application/x-tar", body + b"x") as faces:
        with pytest.raises(PgsrError, match="broke"):
            list(faces.images())
        with pytest.raises(PgsrError, match="broke"):
            list(faces.latents([{"seed": 1}]))
    with answering("", b"x") as faces:  # without a type
        assert [data for _, data in faces.images(count=1)] == [b"x"]
