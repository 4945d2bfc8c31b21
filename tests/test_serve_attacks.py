"""What strangers may send to pgsr-serve: slowly, endlessly, malformed, in bulk, under other names, without
the key. After each it goes on as before."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from pgsr.runtime.serve import guard
from pgsr.runtime.serve.guard import CSP, Doorkeeper, Rates, Refusal
from pgsr.runtime.serve.metrics import Metrics
from pgsr.runtime.serve.protocol import HEADERS
from serving import KEY, Served, response_of, serving, write_model

HEADER_SECONDS, BODY_SECONDS, MOST_BODY = 0.6, 0.8, 300_000
SITE = "https://example.org"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    times = ("--max-header-seconds", HEADER_SECONDS, "--max-body-seconds", BODY_SECONDS)
    amounts = ("--max-body", MOST_BODY, "--max-connections", 200)
    with serving(tmp_path_factory.mktemp("serve"), "--model", model, *times, *amounts) as found:
        yield found
        assert found.errors == []


@pytest.fixture(scope="module")
def locked(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One with a key, that another site's pages may ask."""
    folder = tmp_path_factory.mktemp("locked")
    (folder / "keys").write_text(f"# of the office\n{'f' * 20}\n")
    options = ("--model", model, "--api-key-file", folder / "keys", "--cors", SITE)
    with serving(folder, *options, key=KEY) as found:
        yield found
        assert KEY not in json.dumps(found.log)


@pytest.fixture(autouse=True)
def goes_on(served: Served) -> Iterator[None]:
    yield
    assert served.get("/v1/images/0/0.png").status_code == 200


def bare(path: str) -> bytes:
    """A request as it stands, which clients would tidy up."""
    return f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()


def exchanged(served: Served, data: bytes) -> bytes:
    """All that is answered to these bytes, until the server closes."""
    with served.connection() as connection:
        connection.sendall(data)
        return response_of(connection)


# ----------------------------------------------------------------------------
# Slowly.


def test_headers_that_never_end_are_waited_for_only_so_long(served: Served):
    """Slowloris: a header now and then, on many connections."""
    connections = [served.connection() for _ in range(50)]
    for connection in connections:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n")
    for step in range(3):
        time.sleep(HEADER_SECONDS / 4)
        for connection in connections:
            with suppress(ConnectionError):  # on a busy machine the time is over already
                connection.sendall(b"x-%d: y\r\n" % step)
    assert served.get("/healthz").status_code == 200
    answers = []
    for connection in connections:
        with suppress(ConnectionResetError):  # what was sent too late takes the answer along
            answers.append(response_of(connection))
        connection.close()
    assert answers
    for answer in answers:
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"the headers took more than %g s" % HEADER_SECONDS in answer


@pytest.mark.parametrize("data", [b"", b"\r\n", b"G"])
def test_a_connection_that_says_nothing_is_closed(data: bytes, served: Served):
    began = time.monotonic()
    exchanged(served, data)
    assert HEADER_SECONDS / 2 < time.monotonic() - began < 9  # by default it would be 10


def test_empty_lines_without_end_are_no_request(served: Served):
    with served.connection() as connection:
        began = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() - began < 9:
                connection.sendall(b"\r\n")
                time.sleep(0.02)
        assert time.monotonic() - began < 9


def test_a_body_that_does_not_come_is_waited_for_only_so_long(served: Served):
    head = b"POST /v1/upscale HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\nabc"
    answer = exchanged(served, head)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer
    assert b"body took more than %g s" % BODY_SECONDS in answer


def test_a_client_that_does_not_read_holds_nobody_up(served: Served):
    with served.connection() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(b"GET /v1/images?count=9999 HTTP/1.1\r\nhost: localhost\r\n\r\n")
        time.sleep(0.3)
        began = time.monotonic()
        assert served.get("/v1/images/1/1.png").status_code == 200
        assert time.monotonic() - began < 60  # and not the 900 that the other one has
        assert served.metric("pgsr_images_waiting") <= 8


# ----------------------------------------------------------------------------
# Too much.


def test_a_body_that_is_announced_as_too_long_is_not_read(served: Served):
    head = b"POST /v1/upscale HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n"
    answer = exchanged(served, head % (MOST_BODY + 1))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer
    assert exchanged(served, head % 10**30).startswith((b"HTTP/1.1 413 ", b"HTTP/1.1 400 "))


@pytest.mark.parametrize("path", ["/v1/upscale", "/v1/latents"])
def test_a_body_that_grows_too_long_is_cut_off(path: str, served: Served):
    def parts() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 10_000

    served.refused(path, 413, "300,000 bytes", "POST", content=parts())


def test_a_form_that_is_too_long_is_cut_off(served: Served):
    files = {"picture": ("a", b"x" * (MOST_BODY + 1000))}
    served.refused("/v1/upscale", 413, "300,000 bytes", "POST", files=files)


def test_a_flood_of_headers(served: Served):
    many = b"".join(b"x-%d: y\r\n" % i for i in range(HEADERS + 1))
    for flood in (many, b"x: " + b"y" * 40_000 + b"\r\n\r\n", b"cookie: " + b"y" * 2_000_000):
        with served.connection() as connection:
            try:
                connection.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n" + flood)
                answer = response_of(connection)
            except ConnectionError:  # it closed before all of it was sent
                continue
            assert answer.startswith(b"HTTP/1.1 431 ")
    assert exchanged(served, b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 431 ")


def test_a_browsers_headers_are_no_flood(served: Served):
    headers = {f"x-{i}": "y" * 200 for i in range(60)}
    assert served.get("/healthz", headers=headers).status_code == 200


def test_more_connections_than_are_served(served: Served):
    connections = [served.connection() for _ in range(250)]
    answer = b""
    connections[-1].sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    answer = response_of(connections[-1])
    for connection in connections:
        connection.close()
    assert answer.startswith(b"HTTP/1.1 503 ")
    until = time.monotonic() + 60
    while served.get("/healthz").status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_client_may_have_two_seconds_of_its_rate_at_once(monkeypatch: pytest.MonkeyPatch):
    """Then as much as its rate; what a request costs above what there is, is owed."""
    clock = SimpleNamespace(now=5.0)
    monkeypatch.setattr(guard, "time", SimpleNamespace(monotonic=lambda: clock.now))
    rates = Rates(2.0)

    def had(images: int = 1, client: str = "a") -> str:
        try:
            rates.pay(client, images)
        except Refusal as refusal:
            return str(refusal)
        return "had"

    assert [had() for _ in range(4)] == ["had"] * 4
    assert had() == "this server gives each client 2 images a second: try again in 1 s"
    assert had(client="b") == "had"
    clock.now += 0.5
    assert had(7) == "had"  # one of which there is
    assert had().endswith("try again in 3 s")
    clock.now += 3.5
    assert had() == "had"
    clock.now += 1000
    assert [had() for _ in range(5)] == ["had"] * 4 + [had()]


# ----------------------------------------------------------------------------
# Malformed.


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost : x\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST /v1/upscale HTTP/1.1\r\nhost: localhost\r\ncontent-length: x\r\n\r\n",
        b"POST /v1/upscale HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
def test_what_is_not_http(data: bytes, served: Served):
    answer = exchanged(served, data)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"Traceback" not in answer


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--x",
        b"--x\r\n\r\n\r\n--x--",
        b"--y\r\ncontent-disposition: form-data; name=picture; filename=a\r\n\r\nb\r\n--y--\r\n",
        b"--x\r\ncontent-disposition: form-data; name=picture; filename=a\r\n" + b"a: b\r\n" * 5000,
        b"--x\r\n" + b"\xff" * 1000 + b"\r\n--x--\r\n",
        b'--x\r\ncontent-disposition: form-data; name="picture"\r\n\r\nnot a file\r\n--x--\r\n',
        b'--x\r\ncontent-disposition: form-data; name="a"; filename="a"\r\n\r\nb\r\n' * 20 + b"--x--\r\n",
    ],
)
def test_a_malformed_form(body: bytes, served: Served):
    kind = {"content-type": "multipart/form-data; boundary=x"}
    served.refused("/v1/upscale", 400, "", "POST", content=body, headers=kind)
    bare = {"content-type": "multipart/form-data"}
    served.refused("/v1/upscale", 400, "", "POST", content=body, headers=bare)


@pytest.mark.parametrize("path", ["/v1/images/0/%FF.png", "/v1/images/%00/0.png", "/v1/images/0/0.p%0d%0ang"])
def test_odd_letters_in_addresses(path: str, served: Served):
    assert served.get(path).status_code in (404, 422)


def test_json_that_is_deep(served: Served):
    text = '{"faces": ' + "[" * 100_000 + "]" * 100_000 + "}"
    kind = {"content-type": "application/json"}
    served.refused("/v1/latents", 400, "body", "POST", content=text, headers=kind)


# ----------------------------------------------------------------------------
# Other files.


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/../pyproject.toml",
            "/page/../../settings.py",
            "/page/%2e%2e/%2e%2e/settings.py",
            "/page/..%2f..%2fcli.py",
        ),
        *("//etc/passwd", "/page//etc/passwd", "/page/__init__.py", "/page/", "/page", "/..%5c..%5cx"),
        "/v1/models/../../etc/passwd",
    ],
)
def test_no_path_leads_to_another_file(path: str, served: Served):
    answer = exchanged(
        served, f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()
    )
    assert answer.startswith(b"HTTP/1.1 404 "), answer[:200]


def test_an_uploads_name_is_nothing(served: Served, tmp_path: Path):
    evil = tmp_path / "evil.png"
    for name in (str(evil), "../evil.png", "evil.png\0.png", "a" * 10_000):
        response = served.post("/v1/upscale", files={"picture": (name, png(8, 8))})
        assert response.status_code in (200, 400)
    assert not evil.exists()
    assert "evil" not in json.dumps(served.log)


# ----------------------------------------------------------------------------
# Pictures that are not what they seem.


def png(width: int, height: int, data: bytes | None = None) -> bytes:
    """A black grey PNG that says it is so large."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    if data is None:
        data = zlib.compress(bytes((width + 1) * height), 9)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def peak_kib(served: Served) -> int:
    status = Path(f"/proc/{served.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def test_decompression_bombs_are_not_unpacked(served: Served):
    bomb = png(12_000, 12_000)  # 140 kB that unpack to 144 MB
    assert len(bomb) < MOST_BODY
    before = peak_kib(served)
    served.refused("/v1/upscale", 413, "12000x12000", "POST", content=bomb)
    served.refused("/v1/upscale", 422, "too large", "POST", content=png(2**31 - 1, 2**31 - 1, b"x"))
    assert peak_kib(served) - before < 50_000


def test_texts_that_unpack_are_not_unpacked(served: Served):
    body = b"comment\0\0" + zlib.compress(bytes(2**26), 9)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    small = png(8, 8)
    before = peak_kib(served)
    response = served.post("/v1/upscale", content=small[:33] + chunk + small[33:])
    assert response.status_code in (200, 422)
    assert peak_kib(served) - before < 100_000


@pytest.mark.parametrize(
    "data",
    [
        png(8, 8)[:45],
        png(8, 8, b"no deflate"),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(x) = quit\n",
        b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        b"GIF89a" + os.urandom(200),
        b"RIFF\xff\xff\xff\xffWEBPVP8 " + bytes(100),
    ],
)
def test_what_is_no_picture(data: bytes, served: Served):
    served.refused("/v1/upscale", 422, "the picture", "POST", content=data)


# ----------------------------------------------------------------------------
# Without the key.

PATHS = (
    *("/", "/page/app.js", "/openapi.json", "/metrics", "/v1/models", "/v1/images", "/v1/images/0/0.png"),
    *("/v1/video", "/nothing", "/healthz/../metrics", "/healthz%2f..%2fmetrics", "//healthz"),
)


@pytest.mark.parametrize("path", PATHS)
def test_nothing_without_the_key(path: str, locked: Served):
    answer = exchanged(
        locked, f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()
    )
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"www-authenticate: Basic" in answer


@pytest.mark.parametrize("path", ["/v1/upscale", "/v1/latents"])
def test_nothing_is_taken_without_the_key(path: str, locked: Served):
    locked.refused(path, 401, "API key", "POST", content=b"x" * 1000)


@pytest.mark.parametrize(
    "authorization",
    [
        *("", "Bearer", "Bearer  x", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Bearer {KEY.upper()}", KEY),
        *(f"Digest {KEY}", "Basic !!!", f"Basic {base64.b64encode(KEY.encode()).decode()}", "Bearer \u00e9"),
        f"Basic {base64.b64encode(b'user:').decode()}",
    ],
)
def test_another_key_is_none(authorization: str, locked: Served):
    headers = {"authorization": authorization.encode("latin-1")}
    locked.refused("/v1/models", 401, "API key", headers=headers)


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch):
    """Every key with all that was given, though the first one fits, by the function that is made for it."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(given: bytes, key: bytes) -> bool:
        compared.append((given, key))
        return given == key

    monkeypatch.setattr("pgsr.runtime.serve.guard.hmac.compare_digest", compare)

    async def unused(*_: object) -> None:
        raise AssertionError

    keys = (KEY, "f" * 20, "g" * 20)
    doorkeeper = Doorkeeper(unused, keys, Metrics(lambda: 0))
    assert doorkeeper._number(f"Bearer {KEY}") == 0
    assert doorkeeper._number("Bearer x") is None
    assert compared == [(given, key.encode()) for given in (KEY.encode(), b"x") for key in keys]


def test_the_key_opens_everything(locked: Served):
    basic = base64.b64encode(f"anybody:{KEY}".encode()).decode()
    for authorization in (f"Bearer {KEY}", f"bearer {KEY}", f"Basic {basic}", f"Bearer {'f' * 20}"):
        for path in ("/", "/metrics", "/v1/models", "/v1/images/0/0.png"):
            response = locked.get(path, headers={"authorization": authorization})
            assert response.status_code == 200
    assert response.headers["cache-control"].startswith("private")
    document = locked.get("/openapi.json", headers={"authorization": f"Bearer {KEY}"}).json()
    assert document["security"] == [{"key": []}]


def test_probes_need_no_key(locked: Served):
    assert locked.get("/healthz").text == "ok\n"
    assert locked.get("/readyz").text == "ready\n"


# ----------------------------------------------------------------------------
# Other sites.


def test_no_other_site_may_ask_unless_it_is_named(served: Served, locked: Served):
    for origin in ("https://evil.example", "null", f"{SITE}.evil.example"):
        headers = {"origin": origin, "access-control-request-method": "GET"}
        for server in (served, locked):
            for response in (
                server.get("/v1/models", headers=headers),
                server.http.options("/v1/models", headers=headers),
            ):
                assert response.headers.get("access-control-allow-origin") is None
    named = {
        "origin": SITE,
        "access-control-request-method": "GET",
        "access-control-request-headers": "authorization",
    }
    assert locked.http.options("/v1/models", headers=named).headers["access-control-allow-origin"] == SITE
    answer = locked.get("/v1/models", headers={"origin": SITE, "authorization": f"Bearer {KEY}"})
    assert answer.headers["access-control-allow-origin"] == SITE


def test_forms_of_other_sites_are_not_taken(served: Served, locked: Served):
    files = {"picture": ("a.png", png(8, 8))}
    for origin in ("https://evil.example", "null", f"http://localhost:{served.port + 1}"):
        headers = {"origin": origin}
        served.refused("/v1/upscale", 403, "--cors", "POST", files=files, headers=headers)
    own = {"origin": f"http://127.0.0.1:{served.port}"}
    assert served.post("/v1/upscale", files=files, headers=own).status_code == 200
    named = {"origin": SITE, "authorization": f"Bearer {KEY}"}
    assert locked.post("/v1/upscale", files=files, headers=named).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "localhost.evil.example", "", "[::2]", "127.evil"]
)
def test_by_another_name_it_is_not_reached(host: str, served: Served):
    """DNS rebinding: a stranger's page whose name now means this machine."""
    served.refused("/v1/models", 421, "--allow-host", headers={"host": host})


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8000", "127.9.9.9", "[::1]:8000"])
def test_by_its_own_names_it_is_reached(host: str, served: Served):
    assert served.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/page/app.js", "/v1/images/0/0.png", "/v1/models", "/nothing", "/metrics"]
)
def test_every_answer_has_the_security_headers(path: str, served: Served):
    headers = served.get(path).headers
    assert headers["content-security-policy"] == CSP
    assert "unsafe" not in CSP
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "server" not in headers


def test_loopback_alone_unless_another_host_is_named(served: Served):
    listening = Path("/proc/net/tcp").read_text()
    port = f"{served.port:04X}"
    addresses = {line.split()[1] for line in listening.splitlines()[1:] if line.split()[3] == "0A"}
    assert f"0100007F:{port}" in addresses
    assert f"00000000:{port}" not in addresses


def test_nothing_of_an_upload_stays(served: Served, tmp_path: Path):
    before = {path.name for path in Path("/tmp").iterdir() if path.name.startswith("pgsr-serve")}
    data = io.BytesIO(png(60, 60)).getvalue()
    assert served.post("/v1/upscale", files={"picture": ("stays.png", data)}).status_code == 200
    assert {path.name for path in Path("/tmp").iterdir() if path.name.startswith("pgsr-serve")} == before
