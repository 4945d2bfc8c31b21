"""Upscalers of any architecture that the library spandrel knows: ESRGAN, Real-ESRGAN, SwinIR and others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from pgsr.errors import PgsrError

from .imported import Imported
from .taking import unwrapped

INSTALL = "pip install 'pgsr[upscalers]'"


class SignedRange(nn.Module):
    """A network of images in [0, 1] as one of images in [-1, 1]."""

    def __init__(self, network: nn.Module, scale: int) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x + 1) / 2) * 2 - 1


def spandrel(tree: Any) -> Imported | None:
    """Imports an upscaler; None if spandrel does not know the tensors. Raises PgsrError without spandrel, or
    for what is no upscaler of colour pictures."""
    library = _library()
    state = _state(tree)
    try:
        model = library.ModelLoader(device="cpu").load_from_state_dict(dict(state))
    except library.UnsupportedModelError:
        return None
    except (RuntimeError, KeyError, ValueError, TypeError, IndexError, AssertionError) as error:
        text = " ".join(str(error).split())[:200]
        raise PgsrError(f"spandrel takes it for a network that its tensors do not fit: {text}") from error
    name = model.architecture.name
    if model.purpose not in ("SR", "FaceSR", "Restoration") or (
        model.input_channels,
        model.output_channels,
    ) != (3, 3):
        raise PgsrError(f"it is a {name} network for {model.purpose}, not an upscaler of colour pictures")
    module = SignedRange(_settled(model.model.eval()), model.scale)
    return Imported(
        peer=f"spandrel's {name}",
        make=lambda: module,
        state=module.state_dict(),
        options={"kind": name, "scale": model.scale, "tags": list(model.tags)},
        scale=model.scale,
    )


def _settled(network: nn.Module) -> nn.Module:
    """SPAN's layers work their weights out anew in every pass, on which the exporter crashes: each becomes
    the convolution that it comes to."""
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if hasattr(layer, "update_params") and isinstance(getattr(layer, "eval_conv", None), nn.Conv2d):
                update: Callable[[], None] = layer.update_params  # type: ignore[assignment]
                update()
                setattr(parent, name, layer.eval_conv)
    return network


def _library() -> Any:
    try:
        import spandrel
    except ImportError as error:
        raise PgsrError(
            f"its tensors are of no layout known here; if it is an upscaler, spandrel may know it: {INSTALL} "
            f"({error})"
        ) from error
    except Exception as error:  # torchvision of another PyTorch raises RuntimeError and others
        text = " ".join(str(error).split())[:200]
        raise PgsrError(
            f"its tensors are of no layout known here, and spandrel does not load: {text}; "
            "install the torchvision that belongs to this PyTorch"
        ) from error
    return spandrel


def _state(tree: Any) -> Mapping[str, Tensor]:
    """The tensors, from under the names that training programs put above them."""
    for key in ("params_ema", "params-ema", "params", "model", "net", "state_dict"):
        nested = unwrapped(tree.get(key)) if isinstance(tree, Mapping) else {}
        if nested:
            return nested
    return unwrapped(tree)
