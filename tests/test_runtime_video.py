"""pgsr-generate --video: the way through latent space, files that players read, and clear refusals."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pytest
from generating import command, refused, refused_in
from PIL import Image, ImageSequence

import bundles as tiny
from pgsr import draws
from pgsr.errors import PgsrError
from pgsr.runtime import Synthesizer
from pgsr.runtime.generate import interpolation, video
from pgsr.runtime.generate.interpolation import walk
from pgsr.runtime.generate.video import VideoJob, make_video
from pgsr.runtime.output import animation as containers
from pgsr.runtime.output.encoders import EXIF_IMAGE_DESCRIPTION

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = (".mp4", ".gif", ".webp")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_bundle(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def synthesizer(model: Path) -> Synthesizer:
    return Synthesizer(model, device="cpu", batch=4, threads=1)


# ----------------------------------------------------------------------------
# The way (paper 2, section 6.3).


def slow_walk(seed: int, frames: int, size: int, sigma: float, period: int) -> np.ndarray:
    """Frame by frame, term by term, in float64."""
    reach = int(np.ceil(4 * sigma))
    rows = []
    for t in range(frames):
        z = np.zeros(size)
        for k in range(-reach, reach + 1):
            weight = np.exp(-(k**2) / (2 * sigma**2))
            z += weight * draws.normals(seed, "film", [(t + k) % period], size)[0]
        rows.append(z / np.linalg.norm(z) * np.sqrt(size))
    return np.array(rows)


@pytest.mark.parametrize("period", [2**64, 30, 7])  # 7 is shorter than the blur's window
def test_walk_is_noise_blurred_and_normalised(period: int) -> None:
    made = np.array(list(walk(5, range(30), 16, 2.5, period)))
    np.testing.assert_allclose(made, slow_walk(5, 30, 16, 2.5, period), rtol=1e-5, atol=1e-6)
    assert made.dtype == np.float32


def test_a_frame_does_not_depend_on_the_others() -> None:
    whole = list(walk(1, range(40), 32, 3.0))
    for t in (0, 17, 39):
        assert np.array_equal(next(walk(1, [t], 32, 3.0)), whole[t])
    assert np.array_equal(list(walk(1, [30, 2, 30], 32, 3.0)), [whole[30], whole[2], whole[30]])


def test_frames_turn_as_the_blur_says() -> None:
    """Noise blurred with sigma has the autocorrelation exp(-d^2 / (4 sigma^2))."""
    made = np.array(list(walk(0, range(300), 512, 5.0))).astype(np.float64)
    for d in (1, 5, 10, 40):
        cosine = (made[:-d] * made[d:]).sum(axis=1).mean() / 512
        assert cosine == pytest.approx(np.exp(-(d**2) / 100), abs=0.03)


def test_a_loop_closes() -> None:
    loop = np.array(list(walk(3, range(100), 64, 6.0, period=100)))
    steps = np.linalg.norm(np.diff(np.concatenate([loop, loop[:1]]), axis=0), axis=1)
    assert steps[-1] < 1.5 * steps[:-1].max()
    open_end = np.array(list(walk(3, range(100), 64, 6.0)))
    assert np.linalg.norm(open_end[-1] - open_end[0]) > 4 * steps.max()


def test_no_blur_is_a_new_face_each_frame() -> None:
    made = np.array(list(walk(2, range(50), 256, 0.0)))
    noise = draws.normals(2, "film", range(50), 256)
    expected = noise / np.linalg.norm(noise, axis=1, keepdims=True) * 16
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-6)


def test_walk_draws_each_frame_once_and_reads_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    noise = interpolation._noise
    monkeypatch.setattr(interpolation, "_noise", lambda s, j, n: (drawn.append(j), noise(s, j, n))[1])
    endless = walk(0, itertools.count(), 4, 2.0)
    assert len(list(itertools.islice(endless, 100))) == 100
    assert sorted(drawn) == sorted(j % 2**64 for j in range(-8, 100 + 8))


# ----------------------------------------------------------------------------
# Files.


def decoded(path: Path) -> tuple[np.ndarray, list[float]]:
    """Frames uint8 [N, S, S, 3] and when each begins, in seconds."""
    if path.suffix == ".mp4":
        import av

        with av.open(str(path)) as file:
            frames = [(f.to_ndarray(format="rgb24"), float(f.time)) for f in file.decode(video=0)]
        return np.stack([f for f, _ in frames]), [t for _, t in frames]
    with Image.open(path) as file:
        assert file.info["loop"] == 0  # for ever
        frames, lengths = [], []
        for frame in ImageSequence.Iterator(file):
            frames.append(np.asarray(frame.convert("RGB")))  # type: ignore[arg-type]
            lengths.append(frame.info["duration"] / 1000)
    return np.stack(frames), [0.0, *itertools.accumulate(lengths)][:-1]  # type: ignore[arg-type]


def smooth_pictures(count: int, size: int) -> np.ndarray:
    """A coloured slope that drifts: uint8 [count, size, size, 3]."""
    y, x = np.mgrid[0:size, 0:size] / size
    frames = [np.stack([x, y, np.full_like(x, t / count)], axis=-1) for t in range(count)]
    return (np.stack(frames) * 200 + 20).astype(np.uint8)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_containers_hold_the_pictures(suffix: str, tmp_path: Path) -> None:
    pictures = smooth_pictures(24, 64)
    path = tmp_path / f"film{suffix}"
    with containers.CONTAINERS[suffix](path, 64, 25, {"seed": 9}, 90) as container:
        for picture in pictures:
            container.write(container.encode(picture))
    frames, times = decoded(path)
    assert frames.shape == pictures.shape
    difference = frames.astype(int) - pictures
    assert np.abs(difference).mean() < 4
    assert np.abs(difference.mean(axis=(0, 1, 2))).max() < 2.5  # the matrix of the colours is the right one
    np.testing.assert_allclose(times, np.arange(24) / 25, atol=0.002)
    assert b'{"pgsr": {"seed": 9}}' in path.read_bytes()
    if suffix == ".webp":
        with Image.open(path) as file:
            assert json.loads(file.getexif()[EXIF_IMAGE_DESCRIPTION]) == {"pgsr": {"seed": 9}}


def test_an_odd_size_is_a_film_too(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    pictures = smooth_pictures(5, 33)
    with containers.Mp4(path, 33, 60, {}, None) as container:
        for picture in pictures:
            container.encode(picture)
    assert decoded(path)[0].shape == pictures.shape


@pytest.mark.parametrize(("fps", "ticks"), [(60, 1000), (24, 1000), (30, 100), (50, 100)])
def test_rounded_times_do_not_drift(fps: int, ticks: int) -> None:
    begins = [containers.milestone(t, fps, ticks) / ticks for t in range(1000)]
    assert np.abs(np.array(begins) - np.arange(1000) / fps).max() <= 0.5 / ticks


def test_a_webp_that_grows_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "RIFF_LIMIT", 2000)
    data = b"x" * 300

    def write_all() -> None:
        with containers.WebP(tmp_path / "film.webp", 8, 60, {}, 90) as container:
            for _ in range(10):
                container.write(data)

    with pytest.raises(PgsrError, match="4 GiB"):
        write_all()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_batch_and_threads_change_no_byte(model: Path, suffix: str, tmp_path: Path) -> None:
    files = []
    for batch, threads in ((1, 1), (16, 3)):
        path = tmp_path / f"{batch}{suffix}"
        with Synthesizer(model, device="cpu", batch=batch, threads=1) as synthesizer:
            make_video(synthesizer, VideoJob(path, seconds=0.7), threads)
        files.append(path.read_bytes())
    assert files[0] == files[1]
    assert len(decoded(path)[0]) == (35 if suffix == ".gif" else 42)


class Recorder:
    """A container that keeps what it is given."""

    parallel = True
    written: ClassVar[list[bytes]] = []

    def __init__(self, *values: Any) -> None:
        values[0].write_bytes(b"")

    def encode(self, picture: np.ndarray) -> bytes:
        return picture.tobytes()

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *values: Any) -> None:
        pass


def test_frames_are_the_networks_pictures_in_order(
    synthesizer: Synthesizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(containers.CONTAINERS, ".webp", Recorder)
    make_video(
        synthesizer, VideoJob(tmp_path / "film.webp", seconds=1.5, fps=20, smooth=0.1, seed=4), threads=3
    )
    latents = np.array(list(walk(4, range(30), tiny.LATENT, 2.0)))
    expected = tiny.expected_pixels(latents)
    made = np.frombuffer(b"".join(Recorder.written), dtype=np.uint8).reshape(expected.shape)
    assert np.abs(made - expected).max() < 0.5 + 1e-3
    assert np.abs(expected[0] - expected[-1]).mean() > 8  # it does move


class Held(Recorder):
    """A container whose encoder waits."""

    gate = threading.Event()

    def encode(self, picture: np.ndarray) -> bytes:
        assert self.gate.wait(120)
        return b""


def test_networks_do_not_run_ahead_of_the_encoder(
    synthesizer: Synthesizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(containers.CONTAINERS, ".webp", Held)
    made: list[int] = []
    film = VideoJob(tmp_path / "film.webp", seconds=5)
    worker = threading.Thread(target=make_video, args=(synthesizer, film, 2, made.append))
    worker.start()
    worker.join(0.5)
    assert worker.is_alive()
    assert len(made) <= 2 * video.ENCODED_AHEAD + 1  # of 300
    Held.gate.set()
    worker.join(300)
    assert made[-1] == 300


def test_a_film_replaces_the_one_before_only_when_it_is_whole(
    synthesizer: Synthesizer, tmp_path: Path
) -> None:
    film = VideoJob(tmp_path / "new" / "film.webp", seconds=1)
    film.out.parent.mkdir()
    film.out.write_bytes(b"old")

    def interrupt(done: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_video(synthesizer, film, report=interrupt)
    assert [path.read_bytes() for path in film.out.parent.iterdir()] == [b"old"]
    make_video(synthesizer, film)
    assert len(decoded(film.out)[0]) == 60


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_is_one_line(
    synthesizer: Synthesizer, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(container: Any, picture: np.ndarray) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(containers.CONTAINERS[suffix], "encode", full)
    with pytest.raises(PgsrError, match="no space left"):
        make_video(synthesizer, VideoJob(tmp_path / f"film{suffix}", seconds=0.2))
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------
# The command.


def test_json(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "film.mp4"
    result = command("--model", model, "--video", path, "--seconds", 0.5, "--loop", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["frames"], told["fps"], told["smooth"], told["loop"]) == (30, 60, 0.75, True)
    assert told["frames_per_second"] > 0
    assert (told["size"], told["provider"]) == (tiny.SIZE, "CPUExecutionProvider")
    assert len(decoded(path)[0]) == 30


def test_text_and_progress(model: Path, tmp_path: Path) -> None:
    result = command("--model", model, "--video", tmp_path / "f.gif", "--seconds", 0.2)
    assert result.stdout.startswith(f"{tmp_path / 'f.gif'}: 10 frames, 0.2 s at 50 Hz, in ")
    assert result.stderr == "10/10 frames\n"


def test_dry_run_touches_nothing(model: Path, tmp_path: Path) -> None:
    result = command("--model", model, "--video", tmp_path / "f.mp4", "--dry-run")
    assert "would make 600 frames, 10.0 s at 60 Hz" in result.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--video", "f.avi"], ".mp4"),
        (["--video", "f"], ".mp4"),
        (["--video", "/"], ".mp4"),
        (["--video", "f.mp4", "--seconds", "0"], "--seconds"),
        (["--video", "f.mp4", "--seconds", "nan"], "--seconds"),
        (["--video", "f.mp4", "--seconds", "inf"], "--seconds"),
        (["--video", "f.mp4", "--seconds", "0.001"], "--seconds"),
        (["--video", "f.mp4", "--fps", "-1"], "--fps"),
        (["--video", "f.mp4", "--fps", "241"], "240 of .mp4"),
        (["--video", "f.gif", "--fps", "60"], "50 of .gif"),
        (["--video", "f.mp4", "--smooth", "-1"], "--smooth"),
        (["--video", "f.mp4", "--smooth", "nan"], "--smooth"),
        (["--video", "f.mp4", "--smooth", "61"], "--smooth"),
        (["--video", "f.mp4", "--quality", "90"], "--quality"),
        (["--video", "f.webp", "--quality", "101"], "--quality"),
        (["--video", "f.mp4", "--seed", "-1"], "--seed"),
        (["--video", "f.mp4", "--count", "64"], "--count is not for a --video"),
        (["--video", "f.mp4", "--format", "png"], "--format is not for a --video"),
        (["--loop"], "--loop is for a --video"),
        (["--seconds", "10"], "--seconds is for a --video"),
    ],
)
def test_one_line_for_what_is_wrong(model: Path, arguments: list[str], words: str, tmp_path: Path) -> None:
    refused_in(tmp_path, ["--model", str(model), *arguments], words)


def test_a_folder_with_a_films_name(model: Path, tmp_path: Path) -> None:
    (tmp_path / "f.mp4").mkdir()
    refused(["--model", str(model), "--video", str(tmp_path / "f.mp4")], "is a folder")


def test_one_line_without_av(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    refused(["--model", str(model), "--video", str(tmp_path / "f.mp4")], "pip install 'pgsr[video]'")
    assert list(tmp_path.iterdir()) == []


def test_one_line_for_ctrl_c(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*values: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Synthesizer, "pictures", interrupted)
    refused(["--model", str(model), "--video", str(tmp_path / "f.mp4")], "stopped at frame 0 of 600")


LOOK = """
import sys
sys.argv = ["pgsr-generate", *{arguments!r}]
from pgsr.runtime.generate.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code
print([m for m in ("av", "torch", "onnx") if m in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize(("name", "loaded"), [("f.mp4", "['av']"), ("f.webp", "[]")])
def test_av_is_loaded_for_mp4_alone(model: Path, name: str, loaded: str, tmp_path: Path) -> None:
    arguments = ["--model", str(model), "--video", str(tmp_path / name), "--seconds", "0.1"]
    code = LOOK.format(arguments=arguments)
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stderr.splitlines()[-1] == loaded


def test_one_file_imports_av() -> None:
    sources = [p for p in (ROOT / "runtime").rglob("*.py") if re.search(r"import av\b", p.read_text())]
    assert [path.name for path in sources] == ["animation.py"]
