"""What is looked at of every picture of a set, a batch at a time, in this process or by a Ray cluster.

    with looking(settings, network) as look:
        for seen in look(asked("generator", batches, pixels=16384, features=50_000)):
            ...

A batch goes the same way, `Looker`, wherever that is: its pictures are generated, or enlarged, or come along,
and the feature network looks at them. Answers come in the order of the questions, so that sets, and what is
computed of them, are the same; distances of whole sets are computed by who asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from pgsr import bundle as bundles
from pgsr.crew import Hiring, Mapped, connected
from pgsr.errors import PgsrError
from pgsr.files import sha256
from pgsr.runtime.machinery import Model, model_of
from pgsr.trainer.metrics.fidelity import fidelity
from pgsr.trainer.start import chosen_device

from .feature_network import Network, open_lpips, open_network, resized
from .sets import Faces, Pixels, Settings

NAMES = {"bicubic": "bicubic", "lanczos": "Lanczos", "upscaler": "upscaler"}
PLAIN = ("bicubic", "lanczos")  # what the upscaler must beat

Batch = range | Pixels  # indices of generated images, or photographs


@dataclass(frozen=True)
class Asked:
    """A batch, and what is to be known of it."""

    form: str  # one of Looker's
    batch: Batch
    pixels: int  # of how many of its pictures, the first
    features: int  # likewise


@dataclass(frozen=True)
class Seen:
    """The answer."""

    pixels: Pixels
    features: Tensor | None = None  # [*, D]
    logits: Tensor | None = None  # [*, classes]
    near: dict[str, Tensor] = field(default_factory=dict)  # of enlarged photographs: [N] by score


Look = Callable[[Iterable[Asked]], Iterator[Seen]]


def asked(form: str, batches: Iterable[Batch], pixels: int, features: int) -> Iterator[Asked]:
    """Questions about a set: of how many of its pictures the pixels are needed, and the features."""
    done = 0
    for batch in batches:
        parts = (min(max(0, count - done), len(batch)) for count in (pixels, features))
        yield Asked(form, batch, *parts)
        done += len(batch)


class Looker:
    """Answers. Raises PgsrError if model or networks cannot be used."""

    def __init__(self, settings: Settings, network: Network | None) -> None:
        self._settings, self._network, self._open = settings, network, ExitStack()
        model = bundles.read(bundles.shipped() if settings.model is None else settings.model)
        self._faces = self._open.enter_context(Faces(model, settings))
        device = chosen_device(settings.device)
        self._lpips = None if settings.lpips is None else open_lpips(settings.lpips, device)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: Any) -> None:
        self._open.close()

    def __call__(self, question: Asked) -> Seen:
        pixels, near = self._pictures(question.form, question.batch)
        features, logits = None, None
        if self._network is not None and question.features:
            features, logits = self._network(pixels[: question.features])
        return Seen(pixels[: question.pixels], features, logits, near)

    def _pictures(self, form: str, batch: Batch) -> tuple[Pixels, dict[str, Tensor]]:
        """A batch in a form: photographs, as they are or `restored WAY`; generator, upscaler, or enlarged by
        a filter of PLAIN."""
        faces = self._faces
        if isinstance(batch, np.ndarray):
            photographs = np.array(batch)  # Ray's own cannot be written, which PyTorch warns of
            if form == "photographs":
                return photographs, {}
            return self._restored(photographs, form.removeprefix("restored "))
        if form == "upscaler":
            return faces.large(batch), {}
        small = faces.small(batch)
        return small if form == "generator" else resized(small, faces.chain.size, form), {}

    def _restored(self, originals: Pixels, way: str) -> tuple[Pixels, dict[str, Tensor]]:
        """Photographs reduced and enlarged again, and how near each is to what it was."""
        scale, side = self._faces.chain.scale, originals.shape[1]
        reduced = resized(originals, side // scale, self._settings.reduce)
        pixels = self._faces.upscaled(reduced) if way == "upscaler" else resized(reduced, side, way)
        near = fidelity(pixels, originals, border=scale)
        values = {"PSNR Y": near.psnr_db, "SSIM Y": near.ssim}
        if self._lpips is not None:
            values["LPIPS"] = self._lpips(pixels, originals)
        return pixels, values


# ----------------------------------------------------------------------------
# Where.


def looking(settings: Settings, network: Network | None) -> AbstractContextManager[Look]:
    """Here, or on the cluster that the settings name. Raises PgsrError if there is none."""
    return _looking_here(settings, network) if settings.ray is None else _looking_on_ray(settings, network)


@contextmanager
def _looking_here(settings: Settings, network: Network | None) -> Iterator[Look]:
    with Looker(settings, network) as looker:
        yield partial(map, looker)


@contextmanager
def _looking_on_ray(settings: Settings, network: Network | None) -> Iterator[Look]:
    """Nodes find the feature network's file, and LPIPS', where this machine has them; the model is sent."""
    hiring = Hiring(settings.device, settings.threads, settings.workers)
    digests = _digests(settings, network)
    with connected(str(settings.ray)) as ray:
        model = model_of(settings.model, "generator", settings.precision, ray.put)
        opened = partial(_on_node, settings.everywhere(), model, digests)
        with Mapped(ray, opened, hiring, "batch") as crew:
            yield crew.map


def _digests(settings: Settings, network: Network | None) -> tuple[str | None, str | None]:
    lpips = None if settings.lpips is None else sha256(settings.lpips)
    return None if network is None else network.sha256, lpips


def _on_node(settings: Settings, model: Model, digests: tuple[str | None, str | None]) -> Looker:
    """Raises PgsrError if this node cannot look, or has other networks than the driver."""
    import ray

    torch.set_num_threads(settings.threads or 1)
    settings = replace(settings, model=model.here(ray.get), threads=settings.threads or 1)
    network = None
    if settings.features is not None:
        network = open_network(settings.features, chosen_device(settings.device))
    if _digests(settings, network) != digests:
        raise PgsrError(
            "the feature network, or LPIPS' file, is another one here than on the driver's machine"
        )
    return Looker(settings, network)
