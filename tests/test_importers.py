"""Importers: what other projects' networks compute, ours compute after importing their files."""

from __future__ import annotations

import json
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import peers
from pgsr import bundle, draws
from pgsr.errors import PgsrError
from pgsr.export.cli import main
from pgsr.export.importers import IMPORTERS, import_file, read_foreign
from pgsr.export.parity import session_of
from pgsr.export.rewrites.table import rewritten
from pgsr.networks.progan import ProGANGenerator

WIDTHS = [8, 8, 4]  # at 4 x 4, 8 x 8, 16 x 16
LATENT = 6
LEVELS = len(WIDTHS)
TYPES = {torch.float64: 1e-12, torch.float32: 2e-5}


def latents(n: int = 3, size: int = LATENT, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(draws.latents(4, range(n), size)).to(dtype)


def same(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert found.shape == expected.shape
    assert expected.std() > 0.05  # else there would be nothing to compare
    assert (found - expected).abs().max() <= TYPES[dtype] * max(1.0, float(expected.abs().max()))


def at_every_level(file: Path, peer: Callable[[int], Tensor], z: Tensor, peer_name: str, label=None) -> Any:
    """Compares a generator's images at all its resolutions."""
    found = import_file(file, label)
    assert found.peer == peer_name
    network = found.network(z.dtype)
    for level in range(LEVELS):
        same(network(z, resolution=4 << level), peer(level + 1), z.dtype)
    same(rewritten(network)[0](z), peer(LEVELS), z.dtype)
    return found


def saved(path: Path, value: Any, legacy: bool = False) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


both_types = pytest.mark.parametrize("dtype", TYPES, ids=["float64", "float32"])
both_files = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "stream"])


# ----------------------------------------------------------------------------
# akanimax.


@both_types
@both_files
def test_pro_gan_pytorch(dtype: torch.dtype, legacy: bool, tmp_path: Path):
    t = peers.akanimax_tensors(peers.Draw(1, dtype), LATENT, WIDTHS)
    other = peers.akanimax_tensors(peers.Draw(2, dtype), LATENT, WIDTHS)
    file = saved(tmp_path / "g.bin", peers.akanimax_file(other, t), legacy)
    z = latents(dtype=dtype)
    found = at_every_level(
        file, lambda n: peers.akanimax(t, z, n), z, "akanimax/pro_gan_pytorch"
    )  # the average, not the one that trained
    assert found.grown_resolution == 16
    assert (found.latent_size, found.labels) == (LATENT, 0)


def test_pro_gan_pytorch_without_an_average_or_equalized_rate(tmp_path: Path):
    t = peers.akanimax_tensors(peers.Draw(1, torch.float64), LATENT, WIDTHS)
    t = {k: v * (0.2 if "conv" in k else 1) for k, v in t.items()}
    file = saved(tmp_path / "g.bin", peers.akanimax_file(t, None, use_eql=False))
    z = latents()
    at_every_level(file, lambda n: peers.akanimax(t, z, n, equalized=False), z, "akanimax/pro_gan_pytorch")


def test_pro_gan_pytorch_of_2019(tmp_path: Path):
    """Blocks are numbered otherwise, the file is a state dict, and the caller normalises."""
    t = peers.akanimax_tensors(peers.Draw(1, torch.float64), LATENT, WIDTHS, early=True)
    file = saved(tmp_path / "GAN_GEN_5.pth", OrderedDict(t))
    z = latents()
    placed = peers.on_sphere(z)
    at_every_level(
        file,
        lambda n: peers.akanimax(t, placed, n, early=True, normalize=False),
        z,
        "akanimax/pro_gan_pytorch",
    )


def test_grey_pictures_become_three_equal_colours(tmp_path: Path):
    t = peers.akanimax_tensors(peers.Draw(1, torch.float64), LATENT, WIDTHS, colours=1)
    file = saved(tmp_path / "g.bin", peers.akanimax_file(t, t, num_channels=1))
    made = import_file(file).network(torch.float64)(latents())
    grey = peers.akanimax(t, latents(), LEVELS)
    same(made, grey.expand(-1, 3, -1, -1), torch.float64)


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
@both_types
def test_bmsg_gan(dtype: torch.dtype, prefix: str, tmp_path: Path):
    """Like pro_gan_pytorch's, at all resolutions at once; the caller puts latents on the hypersphere."""
    t = peers.akanimax_tensors(peers.Draw(3, dtype), LATENT, WIDTHS)
    file = saved(tmp_path / "g.pth", OrderedDict((prefix + k, v) for k, v in t.items()))
    z = latents(dtype=dtype)
    placed = z / z.norm(dim=1, keepdim=True) * math.sqrt(LATENT)
    found = import_file(file)
    assert found.peer == "akanimax/BMSG-GAN"
    network = found.network(dtype)
    for level in range(LEVELS):
        made, expected = (
            network(z, resolution=4 << level),
            peers.akanimax(t, placed, level + 1, normalize=False),
        )
        assert (made - expected).abs().max() <= max(2e-7, TYPES[dtype])  # the norm has 1e-8 in its root
    z = peers.on_sphere(placed.double()).to(dtype)  # the same latents for both
    at_every_level(
        file, lambda n: peers.akanimax(t, peers.on_sphere(z), n, normalize=False), z, "akanimax/BMSG-GAN"
    )


def test_files_without_their_constants_are_explained(tmp_path: Path):
    file = saved(tmp_path / "g.pth", {"initial_block.conv_1.deconv.weight": torch.zeros(2)})
    with pytest.raises(PgsrError, match=r"an early version of .*, which kept the constants .* out"):
        import_file(file)


# ----------------------------------------------------------------------------
# The GAN zoo.

ZOO = {"models__utils__config": [peers.BaseConfig]}


def zoo_saved(path: Path, legacy: bool, *tensors: peers.Tensors, **settings: Any) -> Path:
    with peers.saved_as(**ZOO):
        return saved(path, peers.zoo_file(*tensors, **settings), legacy)


@both_types
@both_files
@pytest.mark.parametrize("module", [".module", ""])
def test_gan_zoo(dtype: torch.dtype, legacy: bool, module: str, tmp_path: Path):
    t = peers.zoo_tensors(peers.Draw(1, dtype), LATENT, WIDTHS, module)
    other = peers.zoo_tensors(peers.Draw(2, dtype), LATENT, WIDTHS, module)
    file = zoo_saved(tmp_path / "z.pt", legacy, t, other)
    z = latents(dtype=dtype)
    found = at_every_level(file, lambda n: peers.zoo(t, z, n, module), z, "facebookresearch/pytorch_GAN_zoo")
    assert found.options["first_bias"] == "place"


def test_gan_zoo_loses_with_tanh(tmp_path: Path):
    t = peers.zoo_tensors(peers.Draw(1, torch.float64), LATENT, WIDTHS)
    file = zoo_saved(tmp_path / "z.pt", False, t, t, lossCriterion="DCGAN")
    same(
        import_file(file).network(torch.float64)(latents()),
        peers.zoo(t, latents(), LEVELS, tanh=True),
        torch.float64,
    )


def test_gan_zoo_in_the_middle_of_a_fade_is_grown_below_it(tmp_path: Path):
    t = peers.zoo_tensors(peers.Draw(1, torch.float32), LATENT, WIDTHS)
    assert read_foreign(zoo_saved(tmp_path / "a.pt", False, t, t, alpha=0.4)).resolution == 8
    assert read_foreign(zoo_saved(tmp_path / "b.pt", False, t, t, alpha=0)).resolution == 16


def test_gan_zoo_with_labels(tmp_path: Path):
    t = peers.zoo_tensors(peers.Draw(1, torch.float64), LATENT + 3, WIDTHS)
    kinds = {"attribKeysOrder": {"hair": {"order": 0, "values": ["a", "b", "c"]}}, "categoryVectorDim": 3}
    file = zoo_saved(tmp_path / "z.pt", False, t, t, **kinds)
    source = read_foreign(file, label=1)
    assert source.latent_size == LATENT
    told = torch.tensor([[0.0, 1.0, 0.0]]).expand(3, 3)
    expected = peers.zoo(t, torch.cat([latents(), told], 1), LEVELS)
    same(source.network.double()(latents()), expected, torch.float32)
    with pytest.raises(PgsrError, match="3 labels: name one with --label"):
        read_foreign(file)
    kinds["attribKeysOrder"]["eyes"] = {"order": 1, "values": ["d"]}
    with pytest.raises(PgsrError, match="conditioned on 2 kinds of attributes"):
        read_foreign(zoo_saved(tmp_path / "y.pt", False, t, t, **kinds))


# ----------------------------------------------------------------------------
# rosinality.


without_source = pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")


def rosinality_saved(path: Path, generator: nn.Module, legacy: bool) -> Path:
    with peers.saved_as(**peers.ROSINALITY):
        return saved(path, generator, legacy)


@without_source
@both_types
@both_files
@pytest.mark.parametrize("labels", [1, 4])
def test_rosinality(dtype: torch.dtype, legacy: bool, labels: int, tmp_path: Path):
    generator = peers.Generator(peers.Draw(1, dtype), LATENT, labels, WIDTHS)
    z = latents(dtype=dtype)
    label = labels - 1
    told = torch.full((len(z),), label)
    with torch.no_grad():
        expected = [generator(z, told, step) for step in range(LEVELS)]  # computed, so hooks have run too
    file = rosinality_saved(tmp_path / "100000.model", generator, legacy)
    with pytest.raises(Exception, match="model"):  # whole modules are of no use without their source
        torch.load(file, weights_only=False)
    found = at_every_level(
        file,
        lambda n: expected[n - 1],
        z,
        "rosinality/progressive-gan-pytorch",
        label if labels > 1 else None,
    )
    assert found.latent_size == LATENT


def test_rosinality_needs_a_label_where_there_are_several(tmp_path: Path):
    file = rosinality_saved(
        tmp_path / "g.model", peers.Generator(peers.Draw(1, torch.float32), LATENT, 4, WIDTHS), False
    )
    for label in (None, 4, -1):
        with pytest.raises(PgsrError, match="pictures of 4 labels: name one with --label, from 0"):
            read_foreign(file, label)
    assert read_foreign(file, 2).provenance["label"] == 2


def test_rosinality_as_a_state_dict(tmp_path: Path):
    generator = peers.Generator(peers.Draw(1, torch.float64), LATENT, 1, WIDTHS)
    file = saved(tmp_path / "g.pth", generator.state_dict())
    z = latents()
    with torch.no_grad():
        same(
            import_file(file).network(torch.float64)(z),
            generator(z, torch.zeros(3, dtype=torch.int64), 2),
            torch.float64,
        )


# ----------------------------------------------------------------------------
# NVIDIA's.

TFUTIL = {"tfutil": [peers.Network]}
THEANO = {"network": [peers.Network]}
NVIDIA = "tkarras/progressive_growing_of_gans"


def pickled(path: Path, value: Any, protocol: int, classes: dict[str, list[Any]] = TFUTIL) -> Path:
    with peers.saved_as(**classes):
        path.write_bytes(pickle.dumps(value, protocol) if protocol else peers.python2_pickle(value))
    return path


@both_types
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_nvidia(dtype: torch.dtype, fused: bool, protocol: int, tmp_path: Path):
    of_training = peers.nvidia_arrays(peers.Draw(1, dtype), LATENT, WIDTHS, fused, 0.0)
    average = peers.nvidia_arrays(peers.Draw(2, dtype), LATENT, WIDTHS, fused, 0.0)
    networks = peers.nvidia_networks(of_training, average, fused_scale=fused)
    file = pickled(tmp_path / "karras2018iclr.pkl", networks, protocol)
    z = latents(dtype=dtype)
    found = at_every_level(file, lambda n: peers.nvidia(average, z, n, LEVELS), z, NVIDIA)
    assert found.grown_resolution == 16


def test_nvidia_does_not_run_the_source_it_carries(tmp_path: Path):
    harm = tmp_path / "harm"
    arrays = peers.nvidia_arrays(peers.Draw(1, torch.float32), LATENT, WIDTHS, True, 0.0)
    source = peers.HARMFUL.format(path=str(harm))
    read_foreign(pickled(tmp_path / "n.pkl", peers.nvidia_networks(arrays, arrays, source), 4))
    assert not harm.exists()
    exec(source)  # it would have
    assert harm.exists()


@pytest.mark.parametrize(("lod", "grown"), [(0.0, 16), (0.3, 8), (1.0, 8), (1.5, 4), (2.0, 4)])
def test_nvidia_is_grown_as_far_as_its_lod_says(lod: float, grown: int, tmp_path: Path):
    arrays = peers.nvidia_arrays(peers.Draw(1, torch.float32), LATENT, WIDTHS, True, lod)
    source = read_foreign(pickled(tmp_path / "n.pkl", peers.nvidia_networks(arrays, arrays), 4))
    assert source.resolution == grown


def test_nvidia_with_labels(tmp_path: Path):
    """The label joins the latent before both are normalised."""
    arrays = peers.nvidia_arrays(peers.Draw(1, torch.float64), LATENT + 2, WIDTHS, True, 0.0)
    file = pickled(tmp_path / "n.pkl", peers.nvidia_networks(arrays, arrays, label_size=2), 4)
    found = import_file(file)
    assert (found.latent_size, found.labels) == (LATENT, 2)
    z = torch.cat([latents(), torch.tensor([[1.0, 0.0]]).expand(3, 2)], 1)
    same(found.network(torch.float64)(z), peers.nvidia(arrays, z, LEVELS, LEVELS), torch.float64)
    told = read_foreign(file, label=0)
    same(told.network.double()(latents()), peers.nvidia(arrays, z, LEVELS, LEVELS), torch.float32)


def test_nvidia_settings_that_cannot_be_imported_are_named(tmp_path: Path):
    arrays = peers.nvidia_arrays(peers.Draw(1, torch.float32), LATENT, WIDTHS, True, 0.0)
    file = pickled(tmp_path / "n.pkl", peers.nvidia_networks(arrays, arrays, use_pixelnorm=False), 4)
    with pytest.raises(PgsrError, match=r"n.pkl cannot be imported: .* use_pixelnorm = False; True can be"):
        import_file(file)


@pytest.mark.parametrize("protocol", [0, 2], ids=["python 2", "python 3"])
@both_types
def test_nvidia_of_theano(dtype: torch.dtype, protocol: int, tmp_path: Path):
    network, later = peers.theano_network(peers.Draw(5, dtype), LATENT, WIDTHS)
    file = pickled(tmp_path / "old.pkl", (network, network, network), protocol, THEANO)
    z = latents(dtype=dtype)
    at_every_level(file, lambda n: peers.nvidia(later, z, n, LEVELS), z, NVIDIA)


# ----------------------------------------------------------------------------
# Upscalers.

OLD_NAMES = ("conv_block1", "conv_block2", "conv_block3")
NEW_NAMES = ("conv1", "conv2", "conv3")


def pictures(dtype: torch.dtype = torch.float64) -> Tensor:
    """In [-1, 1]."""
    noise = draws.latents(5, range(2), 3 * 7 * 9).reshape(2, 3, 7, 9)
    return torch.from_numpy(noise).clamp(-1, 1).to(dtype)


@both_types
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("names", [OLD_NAMES, NEW_NAMES], ids=["2022", "2023"])
def test_lornatang(dtype: torch.dtype, steps: int, names: tuple[str, ...], tmp_path: Path):
    t = peers.lornatang_tensors(peers.Draw(1, dtype), 6, 2, steps, names)
    held = {"epoch": 3, "state_dict": OrderedDict(t), "optimizer": {"state": {}}}
    file = saved(tmp_path / "SRGAN.pth.tar", held if names is NEW_NAMES else OrderedDict(t))
    found = import_file(file)
    assert (found.peer, found.scale) == ("Lornatang/SRGAN-PyTorch", 2**steps)
    x = pictures(dtype)
    expected = 2 * peers.lornatang(t, (x + 1) / 2, 2, steps, names) - 1
    network = found.network(dtype)
    same(network(x), expected, dtype)
    folded = rewritten(network)[0]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    same(folded(x), expected, dtype)


def test_lornatang_of_eight_times_is_an_error(tmp_path: Path):
    t = peers.lornatang_tensors(peers.Draw(1, torch.float32), 4, 1, 3, NEW_NAMES)
    with pytest.raises(PgsrError, match="an upscaler of 8x; those of 2x and 4x can be imported"):
        import_file(saved(tmp_path / "g.pth", t))


@both_types
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("key", ["params", "params_ema", None])
def test_basicsr(dtype: torch.dtype, scale: int, key: str | None, tmp_path: Path):
    t = peers.basicsr_tensors(peers.Draw(1, dtype), 6, 2, scale)
    other = {k: -v for k, v in t.items()}
    held = {"params": other, key: t} if key else t
    found = import_file(saved(tmp_path / "g.pth", held))
    assert (found.peer, found.scale) == ("BasicSR's MSRResNet", scale)
    x = pictures(dtype)
    expected = 2 * peers.basicsr(t, (x + 1) / 2, 2, scale) - 1
    same(found.network(dtype)(x), expected, dtype)


def test_safetensors(tmp_path: Path):
    t = peers.basicsr_tensors(peers.Draw(1, torch.float32), 6, 2, 2)
    save_file(t, tmp_path / "g.safetensors")
    x = pictures(torch.float32)
    expected = 2 * peers.basicsr(t, (x + 1) / 2, 2, 2) - 1
    same(import_file(tmp_path / "g.safetensors").network()(x), expected, torch.float32)


# ----------------------------------------------------------------------------
# spandrel, where it can be loaded.


def loadable_spandrel() -> Any:
    try:
        import spandrel
    except Exception as error:  # it needs the torchvision of this PyTorch
        pytest.skip(f"spandrel does not load here: {error}")
    return spandrel


@pytest.mark.parametrize("kind", ["ESRGAN", "Compact", "SPAN"])
def test_spandrel_architectures(kind: str, tmp_path: Path):
    """Three of many; the last works its weights out in every pass."""
    library = loadable_spandrel()
    options = {
        "ESRGAN": {"num_filters": 8, "num_blocks": 2, "scale": 4},
        "Compact": {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_conv": 2, "upscale": 2},
        "SPAN": {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 8, "upscale": 2},
    }[kind]
    torch.manual_seed(0)
    peer = getattr(getattr(library.architectures, kind), kind)(**options).eval()
    found = import_file(saved(tmp_path / "x.pth", {"params_ema": peer.state_dict()}))
    assert found.peer.startswith("spandrel's ")
    assert kind in found.peer
    assert found.scale == (4 if kind == "ESRGAN" else 2)
    x = pictures(torch.float32)
    with torch.no_grad():
        made, expected = found.network()(x), 2 * peer((x + 1) / 2) - 1
    assert (made - expected).abs().max() < 1e-5
    assert not any(hasattr(m, "update_params") for m in found.network().modules())


def test_spandrel_does_not_know_everything(tmp_path: Path):
    loadable_spandrel()
    with pytest.raises(PgsrError, match=r"its 1 tensors are of no layout that is known: w$"):
        import_file(saved(tmp_path / "x.pth", {"w": torch.zeros(2)}))


def test_without_spandrel_the_sentence_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "spandrel", None)
    file = saved(tmp_path / "esrgan.pth", {"model.0.weight": torch.zeros(3)})
    with pytest.raises(PgsrError, match=r"esrgan.pth cannot be .* pip install 'pgsr\[upscalers\]'"):
        import_file(file)


# ----------------------------------------------------------------------------
# What cannot be mapped is named.


def test_every_importer_accounts_for_every_tensor(tmp_path: Path):
    """One tensor more, one fewer, one of another shape: each is an error that names it."""
    draw = peers.Draw(1, torch.float32)
    files: dict[str, tuple[peers.Tensors, str]] = {
        "akanimax": (peers.akanimax_tensors(draw, LATENT, WIDTHS), "layers.1.conv_2.bias"),
        "zoo": (peers.zoo_tensors(draw, LATENT, WIDTHS, ""), "scaleLayers.0.1.bias"),
        "rosinality": (
            peers.Generator(draw, LATENT, 1, WIDTHS).state_dict(),
            "progression.1.conv.3.conv.bias",
        ),
        "lornatang": (peers.lornatang_tensors(draw, 6, 1, 1, NEW_NAMES), "trunk.0.rcb.4.running_var"),
        "basicsr": (peers.basicsr_tensors(draw, 6, 1, 2), "conv_hr.bias"),
    }
    for name, (tensors, one) in files.items():
        file = tmp_path / f"{name}.pth"
        more = {**tensors, **{f"extra.{i}.weight": torch.zeros(1) for i in range(6)}}
        with pytest.raises(
            PgsrError,
            match=r"6 of .*: extra.0.weight, extra.1.weight, extra.2.weight, extra.3.weight and 2 more$",
        ):
            import_file(saved(file, more))
        fewer = {k: v for k, v in tensors.items() if k != one}
        with pytest.raises(PgsrError, match=f"tensors {one} is missing"):
            import_file(saved(file, fewer))
        other = {**tensors, one: torch.zeros(5, 2)}
        with pytest.raises(PgsrError, match=rf"{one} is of shape \[5, 2\], not \[\d+\]"):
            import_file(saved(file, other))


def test_a_layout_nobody_knows_is_an_error_with_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(IMPORTERS, "spandrel", lambda tree, label: None)
    file = saved(tmp_path / "x.pth", {"model": {f"w{i}": torch.zeros(1) for i in range(7)}})
    with pytest.raises(PgsrError, match=r"7 tensors are of no layout .*: model.w0, .* and 3 more$"):
        import_file(file)


def test_ours_are_named_without_from(tmp_path: Path):
    save_file({"generator_ema.w": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(PgsrError, match="a checkpoint of pgsr: name it without --from"):
        import_file(tmp_path / "x.safetensors")


def test_a_bias_for_every_place_needs_a_vanilla_first_layer():
    with pytest.raises(PgsrError, match=r"first_bias = .place. needs a vanilla first layer"):
        ProGANGenerator(8, 4, 16, 4, "separable", first_bias="place")


def test_a_file_without_tensors_is_an_error(tmp_path: Path):
    with pytest.raises(PgsrError, match="holds no tensors"):
        import_file(saved(tmp_path / "x.pth", {"epoch": 3}))
    with pytest.raises(PgsrError, match="no file at"):
        import_file(tmp_path / "nothing.pth")


def test_weights_that_are_not_finite_are_an_error(tmp_path: Path):
    t = peers.basicsr_tensors(peers.Draw(1, torch.float32), 6, 1, 2)
    t["conv_hr.bias"][2] = math.nan
    with pytest.raises(PgsrError, match=r"conv_hr.bias holds numbers that are not finite"):
        read_foreign(saved(tmp_path / "x.pth", t))


def test_widths_that_do_not_halve_are_an_error(tmp_path: Path):
    t = peers.zoo_tensors(peers.Draw(1, torch.float32), LATENT, [8, 5, 4])
    with pytest.raises(PgsrError, match="widths from 4x4 up are 8, 5, 4"):
        import_file(zoo_saved(tmp_path / "z.pt", False, t, t))


# ----------------------------------------------------------------------------
# The command.


def test_imported_networks_make_a_bundle(tmp_path: Path, command: Callable[..., Any]):
    """A generator and an upscaler of two projects, through one chain."""
    arrays = peers.nvidia_arrays(peers.Draw(1, torch.float32), LATENT, [8, 4], True, 0.0)
    arrays["ToRGB_lod0/weight"] *= 0.3
    generator = pickled(tmp_path / "nvidia.pkl", peers.nvidia_networks(arrays, arrays), 4)
    t = peers.basicsr_tensors(peers.Draw(1, torch.float32), 6, 1, 2)
    upscaler = saved(tmp_path / "msr.pth", {"params": t})
    out = tmp_path / "bundle"
    done = command(
        main,
        "--from",
        generator,
        "--from",
        upscaler,
        "--out",
        out,
        "--samples",
        4,
        "--licence",
        "theirs",
        "--json",
    )
    assert done.exit_code == 0, done.output
    assert [g["name"] for g in json.loads(done.stdout)["graphs"]] == ["generator", "upscaler", "chain"]
    made = bundle.read(out)
    assert (made.latent_size, made.resolution, made.scale) == (LATENT, 8, 2)
    told = made.provenance["generator"]["imported"]
    assert (told["layout"], told["file"]) == (NVIDIA, "nvidia.pkl")
    assert str(tmp_path) not in (out / "manifest.json").read_text()
    z = draws.latents(7, range(3), LATENT)
    faces = peers.nvidia(arrays, torch.from_numpy(z), 2, 2)
    expected = peers.basicsr(t, (faces + 1) / 2, 1, 2)
    expected = np.rint(np.clip(expected.numpy() * 255, 0, 255)).transpose(0, 2, 3, 1)
    pixels = session_of((out / "chain.onnx").read_bytes())(z)
    assert pixels.shape == (3, 16, 16, 3)
    assert pixels.std() > 20
    assert np.abs(pixels - expected).max() <= 1


def test_the_command_without_anything_to_export(tmp_path: Path, command: Callable[..., Any]):
    done = command(main, "--out", tmp_path / "b")
    assert done.exit_code == 2
    assert "--from" in done.output


def test_the_command_says_in_one_line_what_is_wrong(tmp_path: Path, command: Callable[..., Any]):
    file = tmp_path / "x.pth"
    file.write_bytes(b"nothing of the kind")
    done = command(main, "--from", file, "--out", tmp_path / "b")
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {file} cannot be imported: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "b").exists()


def test_imported_generators_have_the_resolutions_below(tmp_path: Path):
    t = peers.akanimax_tensors(peers.Draw(1, torch.float32), LATENT, WIDTHS)
    source = read_foreign(saved(tmp_path / "g.bin", peers.akanimax_file(t, t)))
    assert isinstance(source.network, ProGANGenerator)
    assert source.network.resolutions == [4, 8, 16]
    assert source.provenance["recipe"]["generator"]["first_normalized"] is False
