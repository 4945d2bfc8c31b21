"""Where a data set's pixels lie while a GPU trains on them, and how those of a batch get to it.

"device": all of them in the GPU's memory, where gathering a batch costs next to nothing.
"host": in the decoded file, mapped into the host's memory, which all processes of a machine share. A thread
gathers the next batch into pinned memory while the step at hand computes, and a stream of its own copies it.

What arrives is the same either way, to the bit. On a CPU the mapped file is read where it lies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgsr.errors import PgsrError

SHARE = 0.5  # of the GPU's free memory: what pixels may take, so that as much is left for the networks
WISHES = ("auto", "device", "host")


@dataclass(frozen=True)
class Cuts:
    """Squares of pictures: which are wanted together."""

    places: tuple[tuple[int, int, int], ...]  # (picture, top, left) of each
    side: int


def whole(pictures: Sequence[int], side: int) -> Cuts:
    """Those pictures, uncut."""
    return Cuts(tuple((picture, 0, 0) for picture in pictures), side)


class Pixels:
    """A data set's pixels where they are used: on the GPU, or on a CPU."""

    def __init__(self, pixels: Tensor, device: torch.device) -> None:
        self.pixels, self.device = pixels, device  # uint8 [N, side, side, 3]

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def side(self) -> int:
        return self.pixels.shape[1]

    def cut(self, cuts: Cuts) -> Tensor:
        """The squares, on the device: uint8 [B, h, h, 3]."""
        if cuts.side == self.side:
            rows = torch.tensor([picture for picture, _, _ in cuts.places], device=self.pixels.device)
            return self.pixels[rows]
        return torch.stack([_square(self.pixels, place, cuts.side) for place in cuts.places])

    def expect(self, cuts: Callable[[], Cuts]) -> None:
        """Is told what will be wanted next."""


class HostPixels(Pixels):
    """Pixels in the host's memory, used on a GPU: what is expected is on its way before it is asked for."""

    def __init__(self, pixels: Tensor, device: torch.device) -> None:
        super().__init__(pixels, device)
        self.on_gpu = device.type == "cuda"
        self.stream = torch.cuda.Stream(device) if self.on_gpu else None
        self.worker = ThreadPoolExecutor(1, "pixels")
        self.expected: tuple[Cuts, Future[Arrival]] | None = None

    def cut(self, cuts: Cuts) -> Tensor:
        """The squares, on the device: uint8 [B, h, h, 3]. Only their first use waits for the copy."""
        if self.expected is not None and self.expected[0] == cuts:
            arrival = self.expected[1].result()
            self.expected = None
        else:
            arrival = self.worker.submit(self._fetch, cuts).result()
        return arrival.taken()

    def expect(self, cuts: Callable[[], Cuts]) -> None:
        """Begins to fetch what will be wanted next; what was expected before and not wanted is dropped."""
        wanted = cuts()
        if self.expected is None or self.expected[0] != wanted:
            self.expected = (wanted, self.worker.submit(self._fetch, wanted))

    def _fetch(self, cuts: Cuts) -> Arrival:
        """In the thread. PyTorch gives the pinned memory to nobody else before it has been copied."""
        shape = (len(cuts.places), cuts.side, cuts.side, 3)
        gathered = torch.empty(shape, dtype=torch.uint8, pin_memory=self.on_gpu)
        for row, place in zip(gathered, cuts.places, strict=True):
            row.copy_(_square(self.pixels, place, cuts.side))
        if self.stream is None:
            return Arrival(gathered)
        with torch.cuda.stream(self.stream):
            copied = gathered.to(self.device, non_blocking=True)
            return Arrival(copied, self.stream.record_event())


@dataclass(frozen=True)
class Arrival:
    """Pixels on their way to the device."""

    pixels: Tensor
    copied: Any = None  # torch.cuda.Event of the stream that copies them, if one does

    def taken(self) -> Tensor:
        """The pixels, for the current stream: it waits for them, the host does not."""
        if self.copied is not None:
            stream = torch.cuda.current_stream(self.pixels.device)
            stream.wait_event(self.copied)
            self.pixels.record_stream(stream)  # else their memory could be given away while it is read
        return self.pixels


def _square(pixels: Tensor, place: tuple[int, int, int], side: int) -> Tensor:
    picture, top, left = place
    return pixels[picture, top : top + side, left : left + side]


# ----------------------------------------------------------------------------
# The choice.


@dataclass(frozen=True)
class Residency:
    """Where pixels lie, and why."""

    place: str  # "device" or "host"
    pixel_bytes: int
    free_bytes: int = 0  # of the GPU, before; 0 on a CPU

    def __str__(self) -> str:
        pixels, free = (n / 2**30 for n in (self.pixel_bytes, self.free_bytes))
        where = "in the GPU's memory" if self.place == "device" else "in the host's memory"
        return f"photographs {where} ({pixels:.2f} GiB; {free:.2f} GiB of the GPU free)"


def chosen_residency(wish: str, pixel_bytes: int, device: torch.device) -> Residency:
    """Where pixels of that size are to lie: on the GPU by "auto" if they take at most SHARE of what is free.

    Raises PgsrError if they were wished there and do not fit.
    """
    if device.type != "cuda":
        return Residency("host", pixel_bytes)
    free_bytes, _ = torch.cuda.mem_get_info(device)
    if wish == "device" and pixel_bytes > free_bytes:
        raise PgsrError(
            f"run.residency is 'device', but the photographs take {pixel_bytes / 2**30:.1f} GiB and "
            f"{free_bytes / 2**30:.1f} GiB of {device} are free: set run.residency to 'host' or 'auto'"
        )
    fits = pixel_bytes <= SHARE * free_bytes
    place = wish if wish != "auto" else "device" if fits else "host"
    return Residency(place, pixel_bytes, free_bytes)


def placed(pixels: NDArray[np.uint8], residency: Residency, device: torch.device) -> Pixels:
    """The pixels [N, H, W, 3] where they are to lie."""
    mapped = _without_copy(pixels)
    if device.type != "cuda":
        return Pixels(mapped, device)
    if residency.place == "host":
        return HostPixels(mapped, device)
    return Pixels(mapped.to(device), device)


def _without_copy(pixels: NDArray[np.uint8]) -> Tensor:
    """A tensor over read-only memory; nothing here writes to it."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(pixels)
