"""Upscalers of any architecture that the library spandrel knows: ESRGAN, Real-ESRGAN, SwinIR and others."""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pgsr.errors import PgsrError

from .imported import NO_HINTS, Hints, Imported
from .taking import unwrapped

INSTALL = "pip install 'pgsr[upscalers]'"


class SignedRange(nn.Module):
    """A network of images in [0, 1] as one of images in [-1, 1]."""

    def __init__(self, network: nn.Module, scale: int) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x + 1) / 2) * 2 - 1


def spandrel(tree: Any, hints: Hints = NO_HINTS) -> Imported | None:
    """Imports an upscaler; None if spandrel does not know the tensors. Raises PgsrError without spandrel, or
    for what is no upscaler of colour pictures."""
    library = _library()
    tensors = unwrapped(tree)
    if not tensors:
        return None
    try:
        model = library.ModelLoader(device="cpu").load_from_state_dict(tensors)
    except library.UnsupportedModelError:
        return None
    except (
        RuntimeError,
        KeyError,
        ValueError,
        TypeError,
        IndexError,
        AttributeError,
        AssertionError,
    ) as error:
        text = " ".join(str(error).split())[:200]
        raise PgsrError(f"spandrel takes it for a network that its tensors do not fit: {text}") from error
    name = model.architecture.name
    if model.purpose not in ("SR", "FaceSR", "Restoration") or (
        model.input_channels,
        model.output_channels,
    ) != (3, 3):
        raise PgsrError(f"it is a {name} network for {model.purpose}, not an upscaler of colour pictures")
    network = model.model.eval()
    needs = model.size_requirements
    module = SignedRange(_settled(network), model.scale)
    return Imported(
        peer=f"spandrel's {name}",
        make=lambda: module,
        state=module.state_dict(),
        options={"kind": name, "scale": model.scale, "tags": list(model.tags)},
        scale=model.scale,
        multiple=math.lcm(needs.multiple_of, *_windows(network)),
        least=needs.minimum,
    )


# ----------------------------------------------------------------------------
# What exporting needs to know of an architecture, and what it cannot trace.

WINDOWS = ("window_size", "split_size", "stripe_size", "shuffle_factor")  # attributes that cut an image up


def _windows(network: nn.Module) -> list[int]:
    """Returns the sides of the windows that a network cuts its images into. It pads them itself, but a graph
    for images of all sizes is only right if there is nothing to pad."""
    values = [getattr(layer, name, None) for layer in network.modules() for name in WINDOWS]
    sides = [side for value in values for side in (value if isinstance(value, (list, tuple)) else [value])]
    return [side for side in sides if isinstance(side, int) and side > 1]


def _settled(network: nn.Module) -> nn.Module:
    """SPAN's layers work their weights out anew in every pass, on which the exporter crashes: each becomes
    the convolution that it comes to. What handles windows does it in a way that fits all sizes."""
    parent: Any
    for parent in list(network.modules()):
        if hasattr(parent, "calculate_mask") and _same_mask(parent):
            parent.calculate_mask = _Mask(parent.window_size, parent.shift_size)
        architecture: Any = sys.modules[type(parent).__module__]
        if _same_reverse(getattr(architecture, "window_reverse", None)):
            architecture.window_reverse = _from_windows
        for name, layer in list(parent.named_children()):
            if hasattr(layer, "update_params") and isinstance(getattr(layer, "eval_conv", None), nn.Conv2d):
                layer.update_params()
                setattr(parent, name, layer.eval_conv)
    return network


class _Mask:
    """The mask of attention in shifted windows (Liu et al. 2021, section 3.2): -100 between pixels that were
    no neighbours before the shift.

    The architectures' own write into slices of an image, which the exporter gets wrong for every size but the
    one that it traces.
    """

    def __init__(self, window: int, shift: int) -> None:
        self.window, self.shift = window, shift

    def __call__(self, sides: tuple[int, int]) -> Tensor:
        """[windows, window * window, window * window] of an image of these sides."""
        rows, columns = (self._regions(side) for side in sides)
        regions = (3 * rows[:, None] + columns[None, :]).view(
            sides[0] // self.window, self.window, sides[1] // self.window, self.window
        )
        of_windows = regions.permute(0, 2, 1, 3).reshape(-1, self.window**2)
        apart = of_windows.unsqueeze(1) != of_windows.unsqueeze(2)
        return torch.where(apart, -100.0, 0.0)

    def _regions(self, side: int) -> Tensor:
        """0 before the last window, 1 in it, 2 in the part of it that came round from the other edge."""
        places = torch.arange(side)
        return (places >= side - self.window).long() + (places >= side - self.shift).long()


def _from_windows(windows: Tensor, side: int, height: int, width: int) -> Tensor:
    """[N * windows, side, side, C] -> [N, height, width, C]. The architectures' own work N out in floats, of
    which the exporter makes a constant."""
    x = windows.view(-1, height // side, width // side, side, side, windows.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(x.shape[0], height, width, -1)


def _same_reverse(own: Any) -> bool:
    """Whether an architecture's own function is the one above."""
    windows = torch.arange(2 * 6 * 16 * 3.0).view(12, 4, 4, 3)
    try:
        return own is not None and torch.equal(own(windows, 4, 8, 12), _from_windows(windows, 4, 8, 12))
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return False


def _same_mask(layer: Any) -> bool:
    """Whether a layer's own mask is the one above; some architectures mask other windows."""
    window, shift = getattr(layer, "window_size", None), getattr(layer, "shift_size", None)
    if not isinstance(window, int) or not isinstance(shift, int) or not 0 < shift < window:
        return False
    sides = (2 * window, 3 * window)
    try:
        own = layer.calculate_mask(sides)
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return False
    return isinstance(own, Tensor) and torch.equal(own, _Mask(window, shift)(sides))


# ----------------------------------------------------------------------------
# The library. It imports torchvision, whose builds load beside the PyTorch they were made for and no other,
# for two networks that are no upscalers.

TORCHVISION = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
OF_TORCHVISION = ("InterpolationMode", "rotate", "normalize")


def _library() -> Any:
    try:
        with _stand_in_for_torchvision():
            import spandrel
    except ImportError as error:
        raise PgsrError(
            f"its tensors are of no layout known here; if it is an upscaler, spandrel may know it: {INSTALL} "
            f"({error})"
        ) from error
    except Exception as error:  # of a library of somebody else's, at its import
        text = " ".join(str(error).split())[:200]
        raise PgsrError(
            f"its tensors are of no layout known here, and spandrel does not load: {text}"
        ) from error
    return spandrel


@contextmanager
def _stand_in_for_torchvision() -> Iterator[None]:
    """While spandrel is imported, names without function stand for torchvision's where that does not load."""
    if "spandrel" in sys.modules or _loads(TORCHVISION[-1]):
        yield
        return
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "torchvision"}
    for name in before:
        del sys.modules[name]
    modules = {name: types.ModuleType(name) for name in TORCHVISION}
    for name in OF_TORCHVISION:
        setattr(modules[TORCHVISION[-1]], name, None)
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in TORCHVISION:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def _loads(module: str) -> bool:
    try:
        __import__(module)
    except Exception:  # torchvision of another PyTorch raises RuntimeError and others
        return False
    return True
