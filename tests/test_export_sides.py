"""Upscalers that take sides of some multiple alone: their graphs take images of any size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lively import lively
from pgsr import bundle
from pgsr.errors import PgsrError
from pgsr.export.bundle_builder import convert, export_bundle, plans
from pgsr.export.importers import read_foreign
from pgsr.export.importers.spandrel import _from_windows, _library, _Mask, _settled
from pgsr.export.onnx_file import to_onnx
from pgsr.export.parity import session_of
from pgsr.export.sides import Padded, Sides
from pgsr.export.source import Source
from pgsr.networks import GENERATORS, build
from pgsr.runtime.upscale.upscaler import Upscaler

SIZES = ((1, 1, 5), (1, 7, 9), (2, 17, 31), (1, 24, 24), (3, 30, 12))  # images, height, width


class Unshuffled(nn.Module):
    """As Real-ESRGAN's x2 begins: 3 x 3 pixels become one, which needs sides of multiples of 3."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(27, 8, 3, padding=1), nn.Conv2d(8, 3 * 36, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.last(F.leaky_relu(self.first(F.pixel_unshuffle(x, 3)), 0.2)), 6)


def source_of(network: nn.Module, **needs: Any) -> Source:
    return Source(network.eval().requires_grad_(False), "upscaler", 0, 0, 2, {}, **needs)


@pytest.fixture(scope="module")
def unshuffled() -> nn.Module:
    torch.manual_seed(0)
    return lively(Unshuffled())


def images(count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.rand(count, 3, height, width, generator=generator) * 2 - 1


@pytest.fixture(scope="module")
def exported(unshuffled: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> bundle.Bundle:
    out = tmp_path_factory.mktemp("exported") / "bundle"
    source = source_of(unshuffled, multiple=3, least=8)
    precisions = ("fp32", "fp16", "int8")
    return export_bundle([source], out, precisions=precisions, name="x", licence="none", samples=4)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_graph_takes_images_of_any_size(
    exported: bundle.Bundle, unshuffled: nn.Module, precision: str, size: tuple[int, int, int]
):
    x = images(*size)
    if size[1] % 3 or size[2] % 3:
        with pytest.raises(RuntimeError):  # which the network itself does not
            unshuffled(x)
    path = exported.path(exported.graph("upscaler", precision))
    made = session_of(path.read_bytes())(x.numpy())
    expected = Padded(unshuffled, Sides(3, 8), 2)(x)
    assert made.shape == (size[0], 3, 2 * size[1], 2 * size[2])
    assert expected.std() > 0.1
    assert np.abs(made - expected.numpy()).max() < (1e-5 if precision == "fp32" else 0.02)


def test_pictures_of_any_size_are_upscaled(exported: bundle.Bundle, unshuffled: nn.Module):
    picture = np.random.default_rng(0).integers(0, 256, (37, 53, 3)).astype(np.uint8)
    for precision in ("fp32", "int8"):
        with Upscaler(exported.folder, "cpu", precision, backend="onnxruntime") as upscaler:
            larger = upscaler.upscale(picture)
        x = torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1
        expected = ((Padded(unshuffled, Sides(3, 8), 2)(x)[0].permute(1, 2, 0) + 1) * 127.5).clamp(0, 255)
        assert larger.shape == (74, 106, 3)
        assert np.abs(larger - expected.numpy()).mean() < (0.6 if precision == "fp32" else 8)


def test_padding_mirrors_as_pytorch_does():
    """At the right and lower edges, the edge itself not repeated; the corner pixel beyond a whole mirror."""
    x = images(1, 5, 7)
    seen = []
    network = nn.Identity()
    network.register_forward_hook(lambda module, inputs, output: seen.append(output))
    Padded(network, Sides(8), 1)(x)
    assert torch.equal(seen[0], F.pad(x, (0, 1, 0, 3), "reflect"))
    Padded(network, Sides(16), 1)(x)
    expected = F.pad(F.pad(x, (0, 6, 0, 4), "reflect"), (0, 3, 0, 7), "replicate")
    assert torch.equal(seen[1], expected)
    assert Sides(8, 20).of(3) == 24
    assert (Sides(4, 6).of(8), Sides(4, 6).of(9), Sides().free, Sides(1, 0).free) == (8, 12, True, True)


def test_a_chain_pads_what_its_generator_draws(unshuffled: nn.Module):
    options = {"kind": "progan", "resolution": 8, "latent_size": 6, "feature_base": 64, "feature_max": 8}
    generator = lively(build(GENERATORS, options, 1)).requires_grad_(False)
    faces = Source(generator, "generator", 6, 8, 1, {})
    chain = plans({"generator": faces, "upscaler": source_of(unshuffled, multiple=3)})[-1]
    z = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    pixels = session_of(convert(chain, "fp32", z[:2]).model)(z.numpy())
    expected = (Padded(unshuffled, Sides(3), 2)(generator(z)) + 1) * 127.5
    assert pixels.shape == (5, 16, 16, 3)
    assert pixels.std() > 10
    rounded = expected.round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(pixels.astype(float) - rounded).max() <= 1


class Baked(nn.Module):
    """Works a number out in floats, of which the exporter makes a constant: right below 32 rows alone."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0) * (0.4 + 0.1 * int(x.shape[2] / 16))


def test_a_graph_that_is_right_for_one_size_takes_one_size(tmp_path: Path):
    """Found at a size that it was not traced with; what is written then takes pictures tile by tile."""
    made = export_bundle([source_of(Baked())], tmp_path / "b", name="x", licence="none", samples=2)
    (graph,) = made.graphs
    assert graph.inputs[0].shape == ("n", 3, 128, 128)
    picture = np.full((40, 200, 3), 191, dtype=np.uint8)
    with Upscaler(made.folder, "cpu", backend="onnxruntime") as upscaler:
        larger = upscaler.upscale(picture)
    assert larger.shape == (80, 400, 3)
    assert set(np.unique(larger)) == {204}  # 1.2 times what it was in [-1, 1], as of 128 rows


def test_what_is_wrong_for_all_sizes_is_refused(tmp_path: Path):
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.interpolate(x if x.sum() > 0 else -x, scale_factor=2.0)

    with pytest.raises(PgsrError, match="the network cannot be exported to ONNX"):
        export_bundle([source_of(Branching())], tmp_path / "b", name="x", licence="none", samples=2)
    assert not (tmp_path / "b").exists()


# ----------------------------------------------------------------------------
# spandrel's architectures, small: each that docs/importers.md names.


def loadable_spandrel() -> Any:
    try:
        return _library()
    except PgsrError as error:
        pytest.skip(str(error))


def test_masks_of_windows_are_the_architectures_own():
    library = loadable_spandrel()
    kinds = library.architectures
    swin = kinds.SwinIR.SwinIR(img_size=16, embed_dim=4, depths=[2], num_heads=[2], window_size=4, upscale=2)
    block = next(b for b in swin.modules() if getattr(b, "shift_size", 0))
    for sides in ((8, 8), (8, 12), (16, 4)):
        assert torch.equal(block.calculate_mask(sides), _Mask(4, 2)(sides))
    windows = torch.rand(2 * 6, 4, 4, 3)
    reverse: Callable[..., Tensor] = kinds.SwinIR.__arch.SwinIR.window_reverse
    assert torch.equal(reverse(windows, 4, 8, 12), _from_windows(windows, 4, 8, 12))


WINDOWS = {"embed_dim": 4, "depths": [2], "num_heads": [2], "mlp_ratio": 2, "upscale": 2, "img_size": 16}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "ESRGAN": ("ESRGAN", {"num_filters": 8, "num_blocks": 1, "scale": 4}),
    "Real-ESRGAN x2": (
        "ESRGAN",
        {"in_nc": 12, "num_filters": 8, "num_blocks": 1, "scale": 4, "shuffle_factor": 2},
    ),
    "Compact": ("Compact", {"num_feat": 8, "num_conv": 2, "upscale": 2}),
    "SPAN": ("SPAN", {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 8, "upscale": 2}),
    "SwinIR": ("SwinIR", {**WINDOWS, "window_size": 4, "upsampler": "pixelshuffle"}),
    "SwinIR light": ("SwinIR", {**WINDOWS, "window_size": 4, "upsampler": "pixelshuffledirect"}),
    "SwinIR real": ("SwinIR", {**WINDOWS, "window_size": 4, "upsampler": "nearest+conv", "upscale": 4}),
}


def architecture(name: str) -> Any:
    """A small network of an architecture, with weights that are not small."""
    kind, options = ARCHITECTURES[name]
    torch.manual_seed(0)
    made = getattr(getattr(loadable_spandrel().architectures, kind), kind)(**options).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8.0)
    return made


@pytest.fixture(scope="module", params=ARCHITECTURES)
def imported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, Any]:
    """A small upscaler as it is imported, and spandrel's own of the same weights."""
    tensors = architecture(request.param).state_dict()
    file = tmp_path_factory.mktemp("file") / "x.pth"
    torch.save({"params_ema": tensors}, file)
    return read_foreign(file), loadable_spandrel().ModelLoader().load_from_state_dict(dict(tensors))


def enlarged(model: Any, x: Tensor) -> Tensor:
    """What spandrel's own call makes of images: it pads, and cuts values off."""
    return torch.cat([model((image[None] + 1) / 2) for image in x]) * 2 - 1


def test_imported_architectures_are_spandrels_at_any_size(imported: tuple[Source, Any]):
    source, model = imported
    padded = Padded(source.network, Sides(source.multiple, source.least), source.scale)
    for size in ((1, 24, 24), (2, 17, 31), (1, 33, 20)):
        expected = enlarged(model, images(*size))
        assert expected.std() > 0.02
        assert (padded(images(*size)).clamp(-1, 1) - expected).abs().max() < 1e-4


@pytest.mark.slow
def test_graphs_of_architectures_are_right_at_any_size(imported: tuple[Source, Any], tmp_path: Path):
    source, model = imported
    made = export_bundle([source], tmp_path / "b", name="x", licence="none", samples=2)
    assert made.graphs[0].inputs[0].shape == ("n", 3, "height", "width")
    run = session_of(made.path(made.graphs[0]).read_bytes())
    for size in ((1, 24, 24), (2, 17, 31), (1, 33, 20), (3, 40, 64)):
        found = np.clip(run(images(*size).numpy()), -1, 1)
        assert np.abs(found - enlarged(model, images(*size)).numpy()).max() < 1e-4


def test_a_graph_of_windows_is_right_at_any_size_and_batch():
    """SwinIR's, which writes masks into slices of an image, and works its batch out in floats."""
    network = _settled(architecture("SwinIR"))
    model = to_onnx(
        network,
        images(2, 20, 28),
        "images",
        "upscaled",
        {0: "n", 2: "height", 3: "width"},
        sides=Sides(4),
        scale=2,
    )
    run = session_of(model)
    for size in ((1, 24, 24), (3, 16, 40), (1, 7, 10)):
        with torch.no_grad():
            expected = Padded(network, Sides(4), 2)(images(*size))
        assert np.abs(run(images(*size).numpy()) - expected.numpy()).max() < 1e-5
