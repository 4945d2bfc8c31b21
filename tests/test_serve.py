"""pgsr-serve's answers: the commands' bytes, what may be asked for, who goes first, how it ends."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import signal
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import generating
import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import upscaling
from bundles import LATENT, SIZE, write_bundle
from pgsr import bundle as bundles
from pgsr import draws
from pgsr.runtime.output.encoders import installed
from pgsr.runtime.serve.cli import main
from pgsr.runtime.serve.settings import Limits
from serving import CPU, Served, graph_of, response_of, serving, write_model

FORMATS = [name for name in ("png", "jpeg", "webp", "jxl") if installed(name)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    other = write_model(tmp_path_factory.mktemp("other") / "other", seed=1)
    limits = ("--max-count", 50, "--max-frames", 40, "--max-pixels", 4000)
    bare = write_bundle(tmp_path_factory.mktemp("bare") / "bare")
    models = (
        ("--model", f"{name}={path}") for name, path in (("tiny", model), ("other", other), ("bare", bare))
    )
    with serving(tmp_path_factory.mktemp("serve"), *chain(*models), *limits) as found:
        yield found
        assert found.errors == []


@pytest.fixture(scope="module")
def folder(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pgsr-generate makes of seed 7."""
    out = tmp_path_factory.mktemp("generated")
    result = generating.command("--model", model, "--seed", 7, "--count", 9, "--out", out / "faces", *CPU)
    assert result.exit_code == 0, result.output
    return out


def names_of(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getnames()


def pictures_of(data: bytes) -> list[np.ndarray]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        files = [archive.extractfile(m) for m in archive if not m.name.endswith(".json")]
        return [np.asarray(Image.open(file)) for file in files if file is not None]


# ----------------------------------------------------------------------------
# The same bytes.


def test_an_address_gives_the_file_that_the_command_writes(served: Served, folder: Path):
    for index in (0, 5, 8):
        response = served.get(f"/v1/images/7/{index}.png")
        assert response.headers["content-type"] == "image/png"
        assert response.content == (folder / "faces" / f"{index:06d}.png").read_bytes()
        assert served.get("/v1/images", params={"seed": 7, "index": index}).content == response.content


def test_every_format_is_the_commands(served: Served, model: Path, tmp_path: Path):
    for format in FORMATS:
        out = tmp_path / format
        options = ("--count", 1, "--start", 3, "--out", out, "--format", format)
        generating.result_of("--model", model, *options, *CPU)
        (path,) = (p for p in out.iterdir() if p.stem == "000003")
        response = served.get(f"/v1/images/0/3{path.suffix}")
        assert response.content == path.read_bytes()
        assert response.headers["content-type"] == f"image/{format}"


@pytest.mark.parametrize("format", FORMATS)
def test_formats_and_sizes_by_name(format: str, served: Served):
    query = {"seed": 7, "index": 3, "truncation": 0.7, "format": format, "size": 4}
    response = served.get("/v1/images", params=query)
    assert response.headers["content-type"] == f"image/{format}"
    suffix = "jpg" if format == "jpeg" else format
    assert response.content == served.get(f"/v1/images/7/3.{suffix}?truncation=0.7&size=4").content
    if format != "jxl":  # which Pillow does not read
        assert Image.open(io.BytesIO(response.content)).size == (4, 4)
    names = names_of(served.get("/v1/images", params={**query, "count": 3}).content)
    assert [name for name in names if not name.endswith("json")] == [f"00000{i}.{suffix}" for i in (3, 4, 5)]


def test_truncation_is_the_commands(served: Served, model: Path, tmp_path: Path):
    generating.result_of("--model", model, "--count", 1, "--truncation", 0.5, "--out", tmp_path / "out", *CPU)
    response = served.get("/v1/images/0/0.png?truncation=0.5")
    assert response.content == (tmp_path / "out" / "000000.png").read_bytes()
    assert response.content != served.get("/v1/images/0/0.png").content


def test_a_set_is_the_commands_archive(served: Served, model: Path, tmp_path: Path):
    generating.result_of(
        *("--model", model, "--seed", 7, "--start", 999_995, "--count", 11, "--out", tmp_path / "a.tar", *CPU)
    )
    response = served.get("/v1/images", params={"seed": 7, "index": 999_995, "count": 11})
    assert response.headers["content-type"] == "application/x-tar"
    assert response.content == (tmp_path / "a.tar").read_bytes()


def test_faces_are_the_same_whatever_is_asked_for_with_them(served: Served, folder: Path):
    def face(number: int) -> bytes:
        return served.get(f"/v1/images/7/{number % 9}.png").content

    with ThreadPoolExecutor(12) as pool:
        made = list(pool.map(face, range(60)))
    files = [(folder / "faces" / f"{index:06d}.png").read_bytes() for index in range(9)]
    assert all(data == files[number % 9] for number, data in enumerate(made))


def test_requests_share_batches(served: Served):
    before = served.metric("pgsr_batch_images_count"), served.metric("pgsr_images_total")
    start = threading.Barrier(8)

    def face(number: int) -> int:
        start.wait()
        return served.get(f"/v1/images/3/{number}.png").status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(face, range(8))) == {200}
    batches = served.metric("pgsr_batch_images_count") - before[0]
    assert served.metric("pgsr_images_total") - before[1] == 8
    assert batches < 8


# ----------------------------------------------------------------------------
# Addresses that may be kept.


def test_an_address_may_be_kept_for_ever(served: Served):
    response = served.get("/v1/images/7/1.png")
    etag = response.headers["etag"]
    assert etag.startswith('"')
    assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
    images = served.metric("pgsr_images_total")
    for known in (etag, f'"x", {etag}', "*", f"W/{etag}"):
        again = served.get("/v1/images/7/1.png", headers={"if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == etag
    assert served.metric("pgsr_images_total") == images
    assert served.get("/v1/images/7/1.png", headers={"if-none-match": '"x"'}).status_code == 200


def test_what_changes_a_file_changes_its_etag(served: Served):
    paths = [
        *("7/1.png", "7/2.png", "8/1.png", "7/1.jpg", "7/1.webp", "7/1.jpg?quality=50"),
        *("7/1.png?truncation=0.5", "7/1.png?size=4", "7/1.png?stage=generator", "7/1.png?model=other"),
    ]
    etags = {served.get(f"/v1/images/{path}").headers["etag"] for path in paths}
    assert len(etags) == len(paths)


def test_head_is_get_without_the_body(served: Served):
    get, head = served.get("/v1/images/7/1.png"), served.http.head("/v1/images/7/1.png")
    assert head.content == b""
    for name in ("etag", "content-length", "content-type"):
        assert head.headers[name] == get.headers[name]


def test_an_address_can_name_the_graph(served: Served, model: Path):
    graph = graph_of(model)
    assert served.get(f"/v1/images/0/0.png?graph={graph[:12]}").status_code == 200
    served.refused(f"/v1/images/0/0.png?graph={'0' * 12}", 404, "no model")
    served.refused(f"/v1/images/0/0.png?model=other&graph={graph[:12]}", 404, "/v1/models")


def test_sizes_and_stages(served: Served):
    def pixels(query: str) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(served.get(f"/v1/images/0/0.png?{query}").content)))

    whole = pixels("")
    assert whole.shape == (SIZE, SIZE, 3)
    expected = Image.fromarray(whole).resize((4, 4), Image.Resampling.LANCZOS)
    assert np.array_equal(pixels("size=4"), np.asarray(expected))
    assert np.array_equal(pixels("stage=generator"), whole)  # this bundle's chain has no upscaler
    text = Image.open(io.BytesIO(served.get("/v1/images/0/0.png?size=4").content)).text  # type: ignore[attr-defined]
    assert text["pgsr:size"] == "4"


def test_several_models(served: Served):
    found = served.get("/v1/models").json()
    assert [model["name"] for model in found["models"]] == ["tiny", "other", "bare"]
    first = found["models"][0]
    assert (first["size"], first["latent_size"], first["upscales"]) == (SIZE, LATENT, True)
    assert first["enlarges"] == 1
    assert found["limits"] == {"count": 50, "frames": 40, "pixels": 4000, "body": Limits().body}
    one, two = (served.get(f"/v1/images/0/0.png?model={name}").content for name in ("tiny", "other"))
    assert one == served.get("/v1/images/0/0.png").content
    assert one != two


def test_requests_that_say_nothing_get_the_bundles_truncation(model: Path, tmp_path: Path):
    folder = shutil.copytree(model, tmp_path / "truncating")
    centre = tuple(float(number) for number in range(1, LATENT + 1))
    bundles.write(dataclasses.replace(bundles.read(folder), truncation=0.5, centre=centre))
    for name, psi in (("silent", []), ("whole", ["--truncation", 1])):
        generating.result_of("--model", folder, "--count", 1, "--out", tmp_path / name, *psi, *CPU)
    silent, whole = ((tmp_path / name / "000000.png").read_bytes() for name in ("silent", "whole"))
    assert silent != whole
    with serving(tmp_path, "--model", folder) as truncating:
        (described,) = truncating.get("/v1/models").json()["models"]
        assert described["truncation"] == 0.5
        assert truncating.get("/v1/images/0/0.png").content == silent
        assert truncating.get("/v1/images/0/0.png?truncation=0.5").content == silent
        assert truncating.get("/v1/images/0/0.png?truncation=1").content == whole


def test_a_bundle_without_a_generator_or_an_upscaler(served: Served):
    bare = served.get("/v1/models").json()["models"][2]
    assert (bare["stages"], bare["upscales"]) == (["chain"], False)
    assert served.get("/v1/images/0/0.png?model=bare").status_code == 200
    for query in ("truncation=0.5", "stage=generator"):
        served.refused(f"/v1/images/0/0.png?model=bare&{query}", 422, "no generator graph")
    served.refused("/v1/upscale?model=bare", 422, "no upscaler", "POST", content=b"x")


# ----------------------------------------------------------------------------
# Latents.


def test_latents_give_the_faces_of_their_seed(served: Served):
    rows = draws.latents(7, [1, 4], LATENT)
    body = {"faces": [{"latent": row.tolist()} for row in rows]}
    made = pictures_of(served.post("/v1/latents", json=body).content)
    named = {"faces": [{"seed": 7, "index": 1}, {"seed": 7, "index": 4}]}
    also = pictures_of(served.post("/v1/latents", json=named).content)
    for index, picture, other in zip((1, 4), made, also, strict=True):
        expected = np.asarray(Image.open(io.BytesIO(served.get(f"/v1/images/7/{index}.png").content)))
        assert np.array_equal(picture, expected)
        assert np.array_equal(other, expected)


def test_a_single_latent_is_a_picture(served: Served):
    response = served.post("/v1/latents", json={"faces": [{"seed": 7, "index": 1}], "format": "webp"})
    assert response.headers["content-type"] == "image/webp"
    assert response.content[8:12] == b"WEBP"


def test_a_way_between_faces_begins_and_ends_with_them(served: Served):
    faces = [{"seed": 7, "index": i} for i in (1, 4, 2)]
    made = pictures_of(served.post("/v1/latents", json={"faces": faces, "frames": 9}).content)
    ends = pictures_of(served.post("/v1/latents", json={"faces": faces}).content)
    assert len(made) == 9
    for frame, end in ((0, 0), (4, 1), (8, 2)):
        assert np.array_equal(made[frame], ends[end])
    steps = [np.abs(a.astype(int) - b).mean() for a, b in pairwise(made)]
    whole = np.abs(ends[0].astype(int) - ends[1]).mean()
    assert 0 < max(steps) < whole


def test_a_loop_comes_back(served: Served):
    faces = [{"seed": 7, "index": i} for i in (1, 4)]
    body = {"faces": faces, "frames": 8, "loop": True}
    made = pictures_of(served.post("/v1/latents", json=body).content)
    ends = pictures_of(served.post("/v1/latents", json={"faces": faces}).content)
    assert np.array_equal(made[0], ends[0])
    assert np.array_equal(made[4], ends[1])
    for k in (1, 2, 3):  # back as it went
        assert np.abs(made[4 - k].astype(int) - made[4 + k]).max() <= 1


def test_latents_of_the_wrong_form(served: Served):
    def refused(body: object, words: str) -> None:
        served.refused("/v1/latents", 422, words, "POST", json=body)

    def refused_text(text: str, words: str) -> None:
        options: dict[str, Any] = {"content": text, "headers": {"content-type": "application/json"}}
        served.refused("/v1/latents", 422, words, "POST", **options)

    refused({"faces": [{"latent": [0.0] * 3}]}, "takes 8")
    refused({"faces": []}, "faces")
    refused({"faces": [{"seed": 0}], "frames": 4}, "two faces")
    refused({"faces": [{"seed": 0}, {"seed": 1}], "frames": 41}, "at most 40")
    refused({"faces": [{"latent": [1e9] * 8}]}, "latent")
    refused({"face": []}, "faces")
    refused_text("{", "JSON")
    refused_text('{"faces": [{"latent": [NaN, 0, 0, 0, 0, 0, 0, 0]}]}', "latent")


# ----------------------------------------------------------------------------
# Videos.


def test_a_video_is_the_commands(served: Served, model: Path, tmp_path: Path):
    path = tmp_path / "film.webp"
    options = ("--seconds", 0.5, "--fps", 20, "--seed", 2)
    generating.result_of("video", path, "--model", model, *options, *CPU)
    query = {"seconds": 0.5, "fps": 20, "seed": 2, "format": "webp"}
    response = served.get("/v1/video", params=query)
    assert response.headers["content-type"] == "image/webp"
    assert response.content == path.read_bytes()
    known = {"if-none-match": response.headers["etag"]}
    assert served.get("/v1/video", params=query, headers=known).status_code == 304
    served.refused("/v1/video?seconds=30&fps=60", 422, "at most 40")
    served.refused("/v1/video?seconds=0.1&fps=200&format=gif", 422, "fps")


# ----------------------------------------------------------------------------
# Pictures to enlarge.


@pytest.mark.parametrize("form", [False, True])
def test_a_picture_is_enlarged_as_the_command_does(form: bool, served: Served, model: Path, tmp_path: Path):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "A camera", 6  # its maker, and that it lies on its side
    picture = Image.fromarray(upscaling.picture(20, 30)).convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    data = upscaling.file_of(picture, exif=exif, icc_profile=b"x" * 200)
    (tmp_path / "p.png").write_bytes(data)
    upscaling.made_by(model, tmp_path / "p.png", "--out", tmp_path / "larger.png")
    options = {"files": {"picture": ("../../evil.png", data)}} if form else {"content": data}
    response = served.post("/v1/upscale", **options)
    assert response.headers["content-type"] == "image/png"
    assert response.content == (tmp_path / "larger.png").read_bytes()
    made = Image.open(io.BytesIO(response.content))
    assert (made.mode, made.size, made.getexif()[0x010F]) == ("RGBA", (20, 30), "A camera")


def test_other_formats_of_an_enlarged_picture(served: Served):
    data = upscaling.file_of(Image.fromarray(upscaling.picture(20, 30)))
    for format in ("jpeg", "webp"):
        response = served.post(f"/v1/upscale?format={format}&quality=80", content=data)
        assert response.headers["content-type"] == f"image/{format}"
        assert Image.open(io.BytesIO(response.content)).size == (30, 20)


def test_pictures_that_cannot_be_enlarged(served: Served):
    served.refused("/v1/upscale", 422, "cannot be read", "POST", content=b"no picture")
    served.refused("/v1/upscale", 400, "no picture", "POST", content=b"")
    served.refused("/v1/upscale", 400, "`picture`", "POST", files={"other": b"x"})
    large = upscaling.file_of(Image.new("RGB", (100, 41)))
    served.refused("/v1/upscale", 413, "at most 4,000", "POST", content=large)
    clear = upscaling.file_of(Image.new("RGBA", (10, 10)))
    served.refused("/v1/upscale?format=jpeg", 422, "format png or webp", "POST", content=clear)


def test_progress_of_an_upscaling(served: Served):
    assert served.get(f"/v1/upscale/{'0' * 32}").status_code == 204
    served.refused("/v1/upscale?job=../x", 422, "job", "POST", content=b"x")


# ----------------------------------------------------------------------------
# What may not be asked for.


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/v1/images?count=51", 422, "at most 50"),
        ("/v1/images?count=0", 422, "count"),
        ("/v1/images?seed=18446744073709551616", 422, "seed"),
        ("/v1/images?index=-1", 422, "index"),
        ("/v1/images?index=18446744073709551615&count=2", 422, "start"),
        ("/v1/images?truncation=2", 422, "truncation"),
        ("/v1/images?truncation=nan", 422, "truncation"),
        ("/v1/images?format=bmp", 422, "format"),
        ("/v1/images?quality=5", 422, "quality is not for png"),
        ("/v1/images?size=9", 422, "more than the 8 pixels"),
        ("/v1/images?seed=1&seeed=2", 422, "seeed"),
        ("/v1/images?model=third", 404, "third"),
        ("/v1/images/0/0.bmp", 404, ".png, .jpg"),
        ("/v1/images/0/zero.png", 422, "index"),
        ("/v1/video?format=avi", 422, "format"),
        ("/v2/images", 404, "nothing"),
    ],
)
def test_what_cannot_be_asked_for(path: str, status: int, words: str, served: Served):
    response = served.refused(path, status, words)
    assert response.headers["cache-control"] == "no-store"


def test_a_method_that_is_not_taken(served: Served):
    served.refused("/v1/images", 405, "method", "DELETE")


def test_the_largest_numbers_are_faces_too(served: Served):
    most = 2**64 - 1
    assert served.get(f"/v1/images/{most}/{most}.png").status_code == 200


# ----------------------------------------------------------------------------
# Who goes first, who is refused, who goes.


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The shipped model, whose faces take some milliseconds each, with a short queue."""
    limits = ("--max-waiting", 16, "--max-streams", 2, "--max-count", 100_000, "--max-uploads", 1)
    with serving(tmp_path_factory.mktemp("slow"), *limits) as found:
        yield found


def begun(slow: Served, address: str, path: str) -> io.BufferedIOBase:
    """A connection whose answer has begun to come."""
    connection = slow.connection(address)
    connection.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
    assert connection.recv(12) == b"HTTP/1.1 200"
    return connection  # type: ignore[return-value]


def settled(slow: Served, seconds: float = 120.0) -> None:
    """Waits until nothing is asked for but this."""
    until = time.monotonic() + seconds
    while slow.metric("pgsr_requests_open") > 1 or slow.metric("pgsr_images_waiting") > 0:
        assert time.monotonic() < until, slow.get("/metrics").text
        time.sleep(0.05)


def test_a_long_answer_does_not_keep_others_waiting_and_ends_when_its_client_goes(slow: Served):
    settled(slow)
    connection = begun(slow, "127.0.0.2", "/v1/images?count=100000&format=jpeg")
    began = time.perf_counter()
    assert slow.get("/v1/images/0/5.jpg").status_code == 200
    assert time.perf_counter() - began < 60  # the other takes many minutes
    connection.close()
    settled(slow)
    until, images = time.monotonic() + 120, -1.0
    while slow.metric("pgsr_images_total") != images:  # what was being computed
        assert time.monotonic() < until
        images = slow.metric("pgsr_images_total")
        time.sleep(0.5)
    assert images < 20_000


def test_long_answers_beyond_the_limit_are_refused(slow: Served):
    settled(slow)
    connections = [begun(slow, f"127.0.0.{i}", "/v1/images?count=100000") for i in (2, 3)]
    response = slow.refused("/v1/images?count=2", 503, "busy")
    assert int(response.headers["retry-after"]) >= 1
    for connection in connections:
        connection.close()
    settled(slow)
    assert slow.get("/v1/images?count=2").status_code == 200


def test_past_the_queue_there_is_503_and_when_to_come_again(slow: Served):
    settled(slow)

    def face(index: int) -> httpx.Response:
        return slow.get(f"/v1/images/1/{index}.jpg")

    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(face, range(80)))
    codes = [answer.status_code for answer in answers]
    assert set(codes) <= {200, 503}
    assert codes.count(200) >= 16
    for answer in answers:
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) >= 1
            assert "busy" in answer.json()["error"]
    settled(slow)


def test_who_goes_is_not_waited_for(slow: Served):
    settled(slow)
    before = slow.metric("pgsr_clients_gone_total")
    busy = begun(slow, "127.0.0.2", "/v1/images?count=100000")
    gone = []
    for index in range(8):
        connection = slow.connection("127.0.0.3")
        connection.sendall(f"GET /v1/images/9/{index}.png HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        gone.append(connection)
    for connection in gone:
        connection.close()
    busy.close()
    settled(slow)
    assert slow.metric("pgsr_clients_gone_total") > before


def test_an_upload_while_another_is_at_work_is_refused_and_progress_is_told(slow: Served):
    settled(slow)
    data = upscaling.file_of(Image.fromarray(upscaling.picture(500, 500)))
    job, answers = "0123456789abcdef" * 2, []

    def upload() -> None:
        answers.append(slow.post(f"/v1/upscale?format=jpeg&job={job}", content=data))

    thread = threading.Thread(target=upload)
    thread.start()
    seen, refused = [], 0
    while thread.is_alive():
        response = slow.get(f"/v1/upscale/{job}")
        if response.status_code == 200:
            seen.append(response.json()["done"])
            refused += slow.post("/v1/upscale", content=data[:100]).status_code == 503
        time.sleep(0.02)
    thread.join()
    assert answers[0].status_code == 200
    assert Image.open(io.BytesIO(answers[0].content)).size == (2000, 2000)
    assert seen == sorted(seen)
    assert any(0 < done < 1 for done in seen)
    assert refused
    assert slow.get(f"/v1/upscale/{job}").status_code == 204


def test_a_clients_rate_and_that_a_request_does_not_take_for_ever(model: Path, tmp_path: Path):
    limits = ("--rate", 0.02, "--max-count", 1_000_000, "--max-request-seconds", 0.5)
    with serving(tmp_path, "--model", model, *limits) as served:
        codes = [served.get(f"/v1/images/0/{i}.png").status_code for i in range(3)]
        assert codes[0] == 200
        assert 429 in codes
        response = served.refused("/v1/images?count=3", 429, "0.02 images a second")
        assert int(response.headers["retry-after"]) >= 1
        began = time.monotonic()
        with served.connection("127.0.0.9") as other:  # which is another client
            other.sendall(b"GET /v1/images?count=1000000 HTTP/1.1\r\nhost: localhost\r\n\r\n")
            answer = response_of(other)
        assert time.monotonic() - began < 100
        assert answer.startswith(b"HTTP/1.1 200")
        assert not answer.endswith(b"0\r\n\r\n")  # that it was cut short is seen


# ----------------------------------------------------------------------------
# How it ends, and begins again.


def test_sigterm_finishes_what_was_begun(model: Path, tmp_path: Path):
    with serving(tmp_path, "--model", model) as served:
        with served.http.stream("GET", "/v1/images?count=1200") as response:
            parts = response.iter_raw()
            data = next(parts)
            served.signal(signal.SIGTERM)
            data += b"".join(parts)
        assert len(names_of(data)) == 2400
        assert served.process.wait(300) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{served.url}/healthz")


def test_the_grace_is_not_for_ever(model: Path, tmp_path: Path):
    with serving(tmp_path, "--model", model, "--max-count", 1_000_000, "--grace", 0.5) as served:
        began_with = begun(served, "127.0.0.1", "/v1/images?count=1000000")
        began = time.monotonic()
        served.signal(signal.SIGTERM)
        assert served.process.wait(300) == 0
        assert time.monotonic() - began < 25  # and not the 30 of the default
        began_with.close()


def test_a_bundle_is_replaced_without_dropping_a_request(tmp_path: Path):
    model, other = write_model(tmp_path / "model"), write_model(tmp_path / "other", seed=1)
    graphs = [graph_of(model), graph_of(other)]
    with serving(tmp_path, "--model", f"m={model}") as served:
        codes: list[int] = []
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                codes.append(served.get("/v1/images?count=9").status_code)
                codes.append(served.get("/v1/images/0/0.png").status_code)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        before = served.get("/v1/images/0/0.png")
        for path in other.iterdir():
            fresh = model / f"{path.name}.new"
            shutil.copy(path, fresh)
            fresh.replace(model / path.name)
        served.signal(signal.SIGHUP)
        until = time.monotonic() + 120
        while served.get("/v1/models").json()["models"][0]["graph"] != graphs[1]:
            assert time.monotonic() < until
            time.sleep(0.05)
        stop.set()
        for thread in threads:
            thread.join()
        assert set(codes) == {200}
        after = served.get("/v1/images/0/0.png", headers={"if-none-match": before.headers["etag"]})
        assert after.status_code == 200
        assert after.content != before.content
        served.refused(f"/v1/images/0/0.png?graph={graphs[0]}", 404, "no model")

        (model / "manifest.json").write_text("{")
        served.signal(signal.SIGHUP)
        until = time.monotonic() + 120
        while not served.errors:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert "is not reloaded" in served.errors[0]["event"]
        assert served.get("/v1/images/0/0.png").content == after.content


@pytest.mark.slow
def test_openvino_reloads_and_ends(model: Path, tmp_path: Path):
    pytest.importorskip("openvino")
    with serving(tmp_path, "--model", model, "--backend", "openvino") as served:
        before = served.get("/v1/images/0/0.png").content
        for reload in range(2):
            served.signal(signal.SIGHUP)
            until = time.monotonic() + 300
            while sum("is reloaded" in line["event"] for line in served.log) <= reload:
                assert time.monotonic() < until
                time.sleep(0.05)
        assert served.get("/v1/images/0/0.png").content == before


# ----------------------------------------------------------------------------
# What it says of itself.


def test_health_and_readiness(served: Served):
    assert served.get("/healthz").text == "ok\n"
    assert served.get("/readyz").text == "ready\n"


def test_the_log_tells_requests_by_route_and_id_alone(served: Served):
    response = served.get("/v1/images/5/77.png?quality=&truncation=0.987", headers={"user-agent": "A name"})
    assert response.status_code == 422
    served.get("/secret-path/of-somebody")
    own = "my-own-id-0001"
    assert served.get("/v1/images/5/77.png", headers={"x-request-id": own}).headers["x-request-id"] == own
    strange = served.get("/healthz", headers={"x-request-id": 'a"b\\ c'}).headers["x-request-id"]
    assert strange.isalnum()
    lines = [line for line in served.log if line["event"] == "request"]
    (line,) = (line for line in lines if line["id"] == own)
    assert line["route"] == "/v1/images/{seed}/{index}.{suffix}"
    assert (line["status"], line["method"]) == (200, "GET")
    assert line["ms"] > 0
    text = json.dumps(served.log)
    for private in ("127.0.0.1", "0.987", "A name", "secret-path", "somebody"):
        assert private not in text


def test_metrics_count_what_happens(served: Served):
    text = served.get("/metrics").text
    for name in ("pgsr_requests_total", "pgsr_request_seconds_bucket", "pgsr_batch_images_sum"):
        assert f"\n{name}" in text
    assert 'route="/v1/images/{seed}/{index}.{suffix}"' in text
    served.get("/metrics/nothing-here")
    assert "nothing-here" not in served.get("/metrics").text


# ----------------------------------------------------------------------------
# The command.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "none=/nowhere"], "/nowhere"),
        (["--model", "a b=x"], "NAME=PATH"),
        (["--model", "a=x", "--model", "a=y"], "twice"),
        (["--port", "70000"], "65535"),
        (["--cors", "*"], "origin"),
        (["--max-count", "0"], "--max-count 0"),
        (["--max-header-seconds", "nan"], "--max-header-seconds"),
        (["--rate", "-1"], "--rate -1"),
        (["--max-wait", "-1"], "--max-wait"),
        (["--max-wait", "20000ms"], "--max-wait 20000 is"),
        (["--api-key-file", "/nowhere/keys"], "/nowhere/keys"),
    ],
)
def test_what_the_command_refuses(arguments: list[str], words: str):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


def test_an_address_that_is_taken(served: Served):
    result = CliRunner().invoke(main, ["--port", str(served.port)])
    assert result.exit_code == 1
    assert "in use" in result.stderr
    assert result.stderr.count("\n") == 1
