"""Frames to one file: .mp4 (H.264), .gif and .webp. The only file that imports av (PyAV).

with CONTAINERS[".webp"](path, size=256, fps=60, note={"seed": 0}, quality=90) as container:
    container.write(container.encode(picture))

`encode` may run on several threads if `parallel`, else on one, in the order of the frames; `write` is called
in their order. Nothing but the frames at hand is in memory.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from PIL import GifImagePlugin, Image

from pgsr.errors import PgsrError, missing_package

from .encoders import exif

WEBP_METHOD = 2  # of 0 to 6, quick to small


class Container(Protocol):
    """A file of frames while it is written."""

    parallel: bool

    def encode(self, picture: NDArray[np.uint8]) -> bytes:
        """uint8 [S, S, 3] -> what `write` takes."""
        ...

    def write(self, data: bytes) -> None:
        """Does nothing: `encode` has written what the encoder let go."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the file, unless there was an error."""
        ...


# ----------------------------------------------------------------------------
# MP4.

H264 = "libx264"
CRF = "18"  # what is usually called visually lossless
PRESET = "veryfast"
BT709 = 1  # the number of its primaries, transfer and matrix (ITU-T H.273)


def _pyav() -> Any:
    """The module av. Raises PgsrError if it is not installed or has no H.264 encoder."""
    try:
        import av
    except ImportError as error:
        raise missing_package("an .mp4 video", "video", error) from error
    if H264 not in av.codecs_available:
        raise PgsrError(f"this PyAV has no {H264}: pip install --force-reinstall av, or write a .webp")
    return av


class Mp4:
    """H.264 with 8 bits, 4:2:0 and BT.709 colours: what every player and browser shows."""

    parallel = False  # a frame is encoded as the difference to those before

    def __init__(self, path: Path, size: int, fps: int, note: Mapping[str, Any], quality: int | None) -> None:
        """Raises PgsrError without av, or with one that has no H.264 encoder."""
        av = _pyav()
        self._frame_of = av.VideoFrame.from_ndarray
        # The index goes before the frames, so that a player may start while it loads.
        self._file = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
        self._file.metadata["comment"] = json.dumps({"pgsr": dict(note)})
        options = {"crf": CRF, "preset": PRESET}
        self._stream = self._file.add_stream(H264, rate=Fraction(fps), options=options)
        self._stream.width = self._stream.height = size
        self._stream.pix_fmt = "yuv444p" if size % 2 else "yuv420p"  # 4:2:0 halves both sides
        context = self._stream.codec_context
        context.thread_count = 1  # x264's output depends on the number, and the networks want the cores
        context.color_primaries = context.color_trc = context.colorspace = BT709
        self._tick = Fraction(1, fps)
        self._frames = 0

    def encode(self, picture: NDArray[np.uint8]) -> bytes:
        frame = self._frame_of(np.ascontiguousarray(picture), format="rgb24")
        frame = frame.reformat(format=self._stream.pix_fmt, dst_colorspace="ITU709")
        frame.pts, frame.time_base = self._frames, self._tick
        self._frames += 1
        self._file.mux(self._stream.encode(frame))
        return b""

    def write(self, data: bytes) -> None:
        """Does nothing: `encode` has written what the encoder let go."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._file.mux(self._stream.encode(None))
        finally:
            self._file.close()


# ----------------------------------------------------------------------------
# GIF and WebP: Pillow encodes each frame alone, and the frames are put together here, because Pillow's own
# writers of animations keep all of them in memory.


class Gif:
    """256 colours of its own for each frame; repeats for ever."""

    parallel = True

    def __init__(self, path: Path, size: int, fps: int, note: Mapping[str, Any], quality: int | None) -> None:
        self._fps = fps
        self._frames = 0
        self._file = open(path, "wb")  # noqa: SIM115 (closed by __exit__)
        self._file.write(b"GIF89a" + struct.pack("<HHBBB", size, size, 0x70, 0, 0))  # no global colours
        self._file.write(b"!\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00")  # repeat for ever
        comment = json.dumps({"pgsr": dict(note)}).encode()[:255]
        self._file.write(b"!\xfe" + bytes([len(comment)]) + comment + b"\0")

    def encode(self, picture: NDArray[np.uint8]) -> bytes:
        # Pillow's median cut takes a hundred times as long as its octree.
        coloured = Image.fromarray(picture).quantize(256, Image.Quantize.FASTOCTREE)
        return b"".join(GifImagePlugin.getdata(coloured, include_color_table=True))

    def write(self, data: bytes) -> None:
        delay = milestone(self._frames + 1, self._fps, 100) - milestone(self._frames, self._fps, 100)
        self._frames += 1
        self._file.write(b"!\xf9\x04\x00" + struct.pack("<H", delay) + b"\0\0" + data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            self._file.write(b";")


RIFF_LIMIT = 2**32 - 2  # bytes in a file, less 8
ANIMATION, HAS_EXIF = 0x02, 0x08  # flags of a WebP file
WHOLE_FRAME = 0x02  # flag of a frame: it replaces the one before instead of being blended with it


class WebP:
    """Lossy WebP, each frame alone; repeats for ever. The container: developers.google.com/speed/webp."""

    parallel = True

    def __init__(self, path: Path, size: int, fps: int, note: Mapping[str, Any], quality: int | None) -> None:
        self._size, self._fps, self._note, self._quality = size, fps, note, quality
        self._frames = 0
        self._bytes = 4  # of the RIFF chunk's contents so far: "WEBP"
        self._file = open(path, "wb")  # noqa: SIM115 (closed by __exit__)
        self._file.write(b"RIFF\0\0\0\0WEBP")  # the length is filled in at the end
        self._chunk(b"VP8X", struct.pack("<I", ANIMATION | HAS_EXIF) + 2 * _24(size - 1))
        self._chunk(b"ANIM", struct.pack("<IH", 0, 0))  # background colour, repeat for ever

    def encode(self, picture: NDArray[np.uint8]) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="WEBP", quality=self._quality, method=WEBP_METHOD)
        return buffer.getvalue()[12:]  # behind "RIFF", length, "WEBP": the frame's one chunk

    def write(self, data: bytes) -> None:
        duration = milestone(self._frames + 1, self._fps, 1000) - milestone(self._frames, self._fps, 1000)
        self._frames += 1
        where = 2 * _24(0) + 2 * _24(self._size - 1)
        self._chunk(b"ANMF", where + _24(duration) + bytes([WHOLE_FRAME]) + data)

    def _chunk(self, name: bytes, data: bytes) -> None:
        """Raises PgsrError if the file grows beyond what the format can hold."""
        padded = data + b"\0" * (len(data) % 2)
        self._bytes += 8 + len(padded)
        if self._bytes > RIFF_LIMIT:
            raise PgsrError("the video is larger than the 4 GiB of a .webp: make it shorter, or an .mp4")
        self._file.write(name + struct.pack("<I", len(data)) + padded)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if error is None:
                self._chunk(b"EXIF", exif(self._note).tobytes())
            self._file.seek(4)
            self._file.write(struct.pack("<I", self._bytes))


def _24(value: int) -> bytes:
    """Three bytes, lowest first."""
    return value.to_bytes(3, "little")


def milestone(frame: int, fps: int, ticks: int) -> int:
    """When a frame begins, in ticks of which a second has so many: rounded, so that errors do not add up."""
    return round(Fraction(frame * ticks, fps))


CONTAINERS: dict[str, Callable[..., Container]] = {".mp4": Mp4, ".gif": Gif, ".webp": WebP}
