"""TensorBoard events, written in the foreground: a full disk is noticed where it happens, and nothing is
left to a thread that a signal or a fork could lose."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from pgsr.files import make_folder


class Events:
    """One event file; TensorBoard hides what older ones of the folder hold from `first_step` on.

    Every method raises OSError if the disk is full or not writable.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self.path = make_folder(folder) / f"events.out.tfevents.{time.time():.6f}.{os.getpid()}"
        self._append(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self.restart(first_step)

    def restart(self, first_step: int) -> None:
        """Marks what was logged at `first_step` and later as void."""
        log = SessionLog(status=SessionLog.START)
        self._append(Event(wall_time=time.time(), step=first_step, session_log=log))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        entries = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._append(Event(wall_time=time.time(), step=step, summary=Summary(value=entries)))

    def image(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """A picture: uint8 [H, W, 3]."""
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        height, width, channels = pixels.shape
        picture = Summary.Image(
            height=height, width=width, colorspace=channels, encoded_image_string=file.getvalue()
        )
        entries = [Summary.Value(tag=name, image=picture)]
        self._append(Event(wall_time=time.time(), step=step, summary=Summary(value=entries)))

    def _append(self, event: Event) -> None:
        with open(self.path, "ab") as file:
            RecordWriter(file).write(event.SerializeToString())
