"""pgsr-generate: folders that can be resumed, and one line for everything that goes wrong."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generating import command, pixels, refused, result_of
from PIL import Image

import bundles as tiny
from pgsr.errors import PgsrError
from pgsr.runtime import Synthesizer
from pgsr.runtime.generate import progress as progress_line
from pgsr.runtime.generate.job import Job
from pgsr.runtime.generate.write import generate, missing
from pgsr.runtime.output.encoders import decoded
from pgsr.runtime.output.writers import FORMATS, Encoding

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_bundle(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def synthesizer(model: Path) -> Synthesizer:
    return Synthesizer(model, device="cpu", batch=4, threads=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ----------------------------------------------------------------------------
# Folders.


def test_a_folder_of_faces(synthesizer: Synthesizer, tmp_path: Path) -> None:
    out = tmp_path / "a" / "faces"
    result = generate(synthesizer, Job(out, count=10, start=995, seed=2, sheet=out / "sheet.png"))
    assert (result.made, result.present) == (10, 0)
    names = [f"{index:06d}.png" for index in range(995, 1005)]
    assert sorted(path.name for path in out.iterdir()) == [*names, "manifest.json", "sheet.png"]
    for name, expected in zip(names, synthesizer.images(2, 10, 995), strict=True):
        assert np.array_equal(pixels(out / name), expected)


def test_manifest_says_what_they_were_made_with(synthesizer: Synthesizer, tmp_path: Path) -> None:
    generate(synthesizer, Job(tmp_path, count=1, seed=9, encoding=Encoding("jpeg", 80)))
    held = json.loads((tmp_path / "manifest.json").read_text())
    del held["schema"]
    assert held == {
        "seed": 9,
        "model": synthesizer.graph.sha256,
        "precision": "fp32",
        "truncation": 1.0,
        "format": "jpeg",
        "quality": 80,
        "size": tiny.SIZE,
        "digits": 6,
    }


@pytest.mark.parametrize("name", FORMATS)
def test_formats(synthesizer: Synthesizer, name: str, tmp_path: Path) -> None:
    generate(synthesizer, Job(tmp_path, count=3, encoding=Encoding(name)))
    paths = sorted(tmp_path.glob(f"*{FORMATS[name].suffix}"))
    assert len(paths) == 3
    for path in paths:
        assert decoded(path.read_bytes(), name).shape == (tiny.SIZE, tiny.SIZE, 3)


def test_jpeg_xl_goes_on_and_makes_the_sheet_of_what_is_there(model: Path, tmp_path: Path) -> None:
    options = ("--model", model, "--format", "jxl", "--out", tmp_path / "f", "--sheet", tmp_path / "s.png")
    made = result_of(*options, "--count", 5)
    (tmp_path / "f" / "000003.jxl").write_bytes((tmp_path / "f" / "000003.jxl").read_bytes()[:-9])
    sheet = pixels(tmp_path / "s.png")
    again = result_of(*options, "--count", 5)
    assert (made["made"], again["made"]) == (5, 1)
    assert np.array_equal(pixels(tmp_path / "s.png"), sheet)


def test_two_runs_write_the_same_bytes(synthesizer: Synthesizer, model: Path, tmp_path: Path) -> None:
    generate(synthesizer, Job(tmp_path / "a", count=9, sheet=tmp_path / "a" / "sheet.png"))
    with Synthesizer(model, device="cpu", batch=1) as other:
        generate(other, Job(tmp_path / "b", count=9, sheet=tmp_path / "b" / "sheet.png"))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_sheet_shows_the_first_64(synthesizer: Synthesizer, tmp_path: Path) -> None:
    path = tmp_path / "elsewhere" / "overview.png"
    generate(synthesizer, Job(tmp_path / "faces", count=70, sheet=path))
    page = pixels(path)
    assert page.shape == (8 * (tiny.SIZE + 2) + 2, 8 * (tiny.SIZE + 2) + 2, 3)
    assert np.array_equal(page[2 : 2 + tiny.SIZE, 2 : 2 + tiny.SIZE], synthesizer.images(count=1)[0])
    assert np.array_equal(page[-2 - tiny.SIZE : -2, -2 - tiny.SIZE : -2], synthesizer.images(0, 1, 63)[0])


# ----------------------------------------------------------------------------
# Going on.


def test_only_what_is_missing_is_made(synthesizer: Synthesizer, tmp_path: Path) -> None:
    generate(synthesizer, Job(tmp_path, count=20))
    right = contents(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    (tmp_path / "000003.png").unlink()
    (tmp_path / "000011.png").write_bytes(right["000011.png"][:-30])
    (tmp_path / "000012.png").write_bytes(b"")
    Image.new("RGB", (4, 4)).save(tmp_path / "000013.png")
    job = Job(tmp_path, count=22)
    assert list(missing(job, tiny.SIZE)) == [3, 11, 12, 13, 20, 21]
    result = generate(synthesizer, job)
    assert (result.made, result.present) == (6, 16)
    now = contents(tmp_path)
    assert {name: now[name] for name in right} == right
    made = {3, 11, 12, 13}
    for index in set(range(20)) - made:
        path = tmp_path / f"{index:06d}.png"
        assert path.stat().st_mtime_ns == times[path]
    assert generate(synthesizer, job).made == 0


def test_windows_of_one_seed_share_a_folder(synthesizer: Synthesizer, tmp_path: Path) -> None:
    generate(synthesizer, Job(tmp_path / "parts", count=4, start=6))
    generate(synthesizer, Job(tmp_path / "parts", count=6))
    generate(synthesizer, Job(tmp_path / "whole", count=10))
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed 0, not 1"),
        ({"encoding": Encoding("webp")}, "format png, not webp"),
    ],
)
def test_other_faces_in_the_folder(
    synthesizer: Synthesizer, change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    generate(synthesizer, Job(tmp_path, count=2))
    before = contents(tmp_path)
    with pytest.raises(PgsrError, match=words):
        generate(synthesizer, Job(tmp_path, count=2, **change))
    assert contents(tmp_path) == before


def test_faces_of_another_model_in_the_folder(synthesizer: Synthesizer, tmp_path: Path) -> None:
    generate(synthesizer, Job(tmp_path / "faces", count=2))
    other = tiny.write_bundle(tmp_path / "model", seed=1)
    with Synthesizer(other, device="cpu") as second, pytest.raises(PgsrError, match="model"):
        generate(second, Job(tmp_path / "faces", count=2))


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 1}', "\ud800"])
def test_a_manifest_that_is_none_of_ours(synthesizer: Synthesizer, text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(PgsrError, match=r"manifest\.json"):
        generate(synthesizer, Job(tmp_path, count=2))


def test_somebodys_pictures_are_left_alone(synthesizer: Synthesizer, tmp_path: Path) -> None:
    (tmp_path / "000001.png").write_bytes(b"mine")
    with pytest.raises(PgsrError, match=r"000001\.png"):
        generate(synthesizer, Job(tmp_path, count=2))
    assert contents(tmp_path) == {"000001.png": b"mine"}


def test_interrupted_and_gone_on(
    synthesizer: Synthesizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(done: int) -> None:
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(synthesizer, Job(tmp_path / "stopped", count=30), interrupt)
    held = contents(tmp_path / "stopped")
    assert len(held) < 30
    assert not [name for name in held if name.endswith(".tmp")]
    generate(synthesizer, Job(tmp_path / "stopped", count=30))
    generate(synthesizer, Job(tmp_path / "straight", count=30))
    assert contents(tmp_path / "stopped") == contents(tmp_path / "straight")


# ----------------------------------------------------------------------------
# The command.


def test_json(model: Path, tmp_path: Path) -> None:
    options = ("--model", model, "--out", tmp_path / "f", "--count", 5, "--batch", 2)
    first, second = result_of(*options), result_of(*options, "--count", 7)
    assert (first["made"], first["present"]) == (5, 0)
    assert (second["made"], second["present"]) == (2, 5)
    assert second["provider"] == "CPUExecutionProvider"
    assert second["out"] == str(tmp_path / "f")
    assert second["images_per_second"] > 0
    assert second["seconds"] > 0


def test_text(model: Path, tmp_path: Path) -> None:
    result = command("--model", model, "--out", tmp_path / "f", "--count", 3)
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    assert "3 faces made, 0 already there" in result.stdout
    assert result.stderr == "3/3 faces\n"


def test_dry_run_touches_nothing(model: Path, tmp_path: Path) -> None:
    options = ("--model", model, "--out", tmp_path / "f", "--count", 3)
    assert result_of(*options, "--dry-run")["missing"] == 3
    assert list(tmp_path.iterdir()) == []
    result_of(*options)
    assert result_of(*options, "--count", 8, "--dry-run")["missing"] == 5


def test_sheet_options(model: Path, tmp_path: Path) -> None:
    options = ("--model", model, "--count", 1)
    assert result_of(*options, "--out", tmp_path / "a")["sheet"] == str(tmp_path / "a" / "sheet.png")
    assert result_of(*options, "--out", tmp_path / "b", "--no-sheet")["sheet"] is None
    assert not (tmp_path / "b" / "sheet.png").exists()
    result_of(*options, "--out", tmp_path / "c", "--sheet", tmp_path / "over.png")
    assert (tmp_path / "over.png").is_file()


def test_formats_and_quality(model: Path, tmp_path: Path) -> None:
    options = ("--model", model, "--count", 1, "--format", "jpeg", "--quality", 70)
    assert result_of(*options, "--out", tmp_path / "f")["format"] == "jpeg"
    assert (tmp_path / "f" / "000000.jpg").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--count", "-1"], "--count"),
        (["--count", "0"], "--count"),
        (["--start", "-1"], "--start"),
        (["--batch", "-1"], "--batch"),
        (["--threads", "-2"], "--threads"),
        (["--seed", "-1"], "--seed"),
        (["--seed", str(2**64)], "--seed"),
        (["--format", "gif"], "--format"),
        (["--format", "jpeg", "--quality", "0"], "--quality"),
        (["--quality", "90"], "--quality"),
        (["--device", "tpu"], "--device"),
        (["--precision", "fp16"], "fp16"),
        (["--backend", "abacus"], "backend"),
        (["--model", "absent"], "no bundle"),
        (["--out", __file__], "is a file"),
        (["--out", __file__ + "/faces"], "cannot"),
        (["--sheet", "/"], "--sheet"),
    ],
)
def test_one_line_for_what_is_wrong(
    model: Path, arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(["--model", str(model), *arguments], words)
    assert not (tmp_path / "faces").exists()


def test_one_line_for_a_changed_bundle(tmp_path: Path) -> None:
    folder = tiny.write_bundle(tmp_path / "model")
    with (folder / "chain.onnx").open("ab") as file:
        file.write(b"\0")
    refused(["--model", str(folder), "--out", str(tmp_path / "f")], "does not match the hash")


def test_one_line_for_a_full_disk(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_bytes

    def full_for_faces(path: Path, data: bytes) -> int:
        if ".png" in path.name:
            raise OSError(28, "No space left on device", str(path))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full_for_faces)
    named = ["--backend", "onnxruntime", "--batch", "4"]  # so that nothing is measured, and told
    refused(["--model", str(model), *named, "--out", str(tmp_path / "f")], "no space left")


def test_one_line_without_a_backend(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, library, None)
    refused(["--model", str(model)], "pgsr[cpu]")


def test_one_line_for_ctrl_c(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*values: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Synthesizer, "rendered", interrupted)
    refused(["--model", str(model), "--out", str(tmp_path / "f")], "the same command again")


def test_ctrl_c_of_a_real_process(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "f"
    arguments = [
        "--model",
        str(model),
        "--out",
        str(out),
        "--backend",
        "onnxruntime",
        "--count",
        "10000000",
        "--batch",
        "8",
        "--no-sheet",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "pgsr.runtime", *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 600
        while not (out / "0000040.png").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(2)
        _, stderr = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "the same command again" in stderr
    assert stderr.count("\n") == 1
    assert not list(out.glob(".*"))
    job = Job(out, count=len(list(out.glob("*.png"))) - 20, digits=7)
    assert list(missing(job, tiny.SIZE)) == []  # each file is whole, and they were made in order


@pytest.mark.parametrize("blocking", [True, False])
def test_ctrl_c_while_the_reader_of_pixels_hangs(model: Path, blocking: bool) -> None:
    """The first one ends it, though the pipe stays full."""
    reader, writer = os.pipe()
    os.set_blocking(writer, blocking)
    arguments = ["--model", str(model), "--out", "-", "--count", "10000000", "--batch", "8"]
    arguments += ["--backend", "onnxruntime"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pgsr.runtime", *arguments],
        cwd=ROOT,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    try:
        levels = [0]
        while len(levels) < 1000 and (levels[-1] == 0 or len(set(levels[-10:])) > 1):
            time.sleep(0.03)
            levels.append(waiting_in(reader))
        assert levels[-1] > 0  # and no more fits
        process.send_signal(2)
        _, stderr = process.communicate(timeout=600)
    finally:
        process.kill()
        os.close(reader)
    assert process.returncode == 1
    assert stderr.startswith("error: stopped at about ")
    assert stderr.count("\n") == 1


def waiting_in(reader: int) -> int:
    """Bytes that a pipe holds."""
    return int.from_bytes(fcntl.ioctl(reader, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_pixels_arrive_whole_through_a_pipe_that_does_not_wait(model: Path, synthesizer: Synthesizer) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    arguments = ["--model", str(model), "--out", "-", "--count", "700", "--batch", "8"]
    arguments += ["--backend", "onnxruntime"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pgsr.runtime", *arguments], cwd=ROOT, stdout=writer, stderr=subprocess.DEVNULL
    )
    os.close(writer)
    with open(reader, "rb") as pipe:
        data = pipe.read()
    assert process.wait(timeout=600) == 0
    assert data == synthesizer.images(count=700).tobytes()


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress_line, "REPORT_SECONDS", 0.0)
    progress = progress_line.Progress(10)
    progress(5)
    progress(10)
    progress.finish()
    written = capsys.readouterr().err
    assert "\r5/10 faces" in written
    assert "\r10/10 faces, 0 s left" in written
    assert written.endswith("\r\x1b[K")  # the line is gone before anything else is printed


LOOK = """
import sys
sys.argv = ["pgsr-generate", "--help"]
from pgsr.runtime.generate.cli import main
try:
    main()
except SystemExit:
    pass
print([m for m in ("numpy", "PIL", "torch", "onnx", "onnxruntime") if m in sys.modules], file=sys.stderr)
"""


def test_help_imports_nothing_heavy() -> None:
    ran = subprocess.run([sys.executable, "-c", LOOK], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Make faces" in ran.stdout
    assert ran.stderr == "[]\n"


def test_help_is_quick() -> None:
    seconds = []
    for _ in range(3):
        before = os.times()
        subprocess.run(
            [sys.executable, "-m", "pgsr.runtime", "--help"], cwd=ROOT, check=True, capture_output=True
        )
        after = os.times()  # of the processor, so that a busy machine is not taken for a slow command
        seconds.append(sum(after[2:4]) - sum(before[2:4]))
    assert min(seconds) < 0.5


def test_generating_needs_neither_torch_nor_onnx(model: Path, tmp_path: Path) -> None:
    code = LOOK.replace('"--help"', f'"--model", {str(model)!r}, "--out", {str(tmp_path / "f")!r}')
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    )
    assert ran.stderr.splitlines()[-1] == "['numpy', 'PIL', 'onnxruntime']"
