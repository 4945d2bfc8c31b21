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
from pgsr import bundle, checkpoint, draws
from pgsr.errors import PgsrError
from pgsr.export.cli import main
from pgsr.export.importers import IMPORTERS, import_file, read_foreign
from pgsr.export.importers.spandrel import _library
from pgsr.export.lowering import Grown
from pgsr.export.parity import session_of
from pgsr.export.rewrites.table import rewritten
from pgsr.networks.progan import ProGANGenerator

WIDTHS = [8, 8, 4]  # at 4 x 4, 8 x 8, 16 x 16
LATENT = 6
LEVELS = len(WIDTHS)
TYPES = {torch.float64: 1e-12, torch.float32: 2e-5}


def latents(n: int = 3, size: int = LATENT, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(draws.latents(4, range(n), size)).to(dtype)


def same(found: Tensor, expected: Tensor, dtype: torch.dtype, tolerance: float = 0.0) -> None:
    assert found.shape == expected.shape
    assert expected.std() > 0.05  # else there would be nothing to compare
    tolerance = max(tolerance, TYPES[dtype])
    assert (found - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))


def at_every_level(
    file: Path,
    peer: Callable[[int], Tensor],
    z: Tensor,
    peer_name: str,
    label: int | None = None,
    tolerance: float = 0.0,
) -> Any:
    """Compares a generator's images at all its resolutions."""
    found = import_file(file, label)
    assert found.peer == peer_name
    network = found.network(z.dtype)
    for level in range(LEVELS):
        same(network(z, resolution=4 << level), peer(level + 1), z.dtype, tolerance)
    same(rewritten(network)[0](z), peer(LEVELS), z.dtype, tolerance)
    return found


def saved(path: Path, value: Any, legacy: bool = False) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


both_types = pytest.mark.parametrize("dtype", TYPES, ids=["float64", "float32"])
both_files = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "stream"])


# ----------------------------------------------------------------------------
# akanimax.

EITHER = "akanimax/pro_gan_pytorch or BMSG-GAN"  # whose state dicts have the same names


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
    assert found.peer == EITHER
    network = found.network(dtype)
    for level in range(LEVELS):
        made, expected = (
            network(z, resolution=4 << level),
            peers.akanimax(t, placed, level + 1, normalize=False),
        )
        assert (made - expected).abs().max() <= max(2e-7, TYPES[dtype])  # the norm has 1e-8 in its root
    z = peers.on_sphere(placed.double()).to(dtype)  # the same latents for both
    at_every_level(file, lambda n: peers.akanimax(t, peers.on_sphere(z), n, normalize=False), z, EITHER)


def initialised(tensors: peers.Tensors, deviation: Callable[[Tensor], float]) -> peers.Tensors:
    """The tensors with layers of this deviation, which is a function of a layer's weight."""
    return {k: v * deviation(v) if k.endswith("weight") else v for k, v in tensors.items()}


def he_normal(weight: Tensor) -> float:
    return peers.he(weight)


def pytorchs_own(weight: Tensor) -> float:
    return 1 / math.sqrt(3 * weight[0].numel())


@pytest.mark.parametrize("start", [he_normal, pytorchs_own])
@pytest.mark.parametrize("growth", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("early", [True, False], ids=["v2", "BMSG"])
def test_a_state_dict_without_equalized_rate(
    start: Callable[[Tensor], float], growth: float, early: bool, tmp_path: Path
):
    """Nothing in it says so but the weights; their sizes after training are not those of the beginning."""
    drawn = peers.akanimax_tensors(peers.Draw(1, torch.float64), 32, [32, 32, 16], early=early)
    t = initialised(drawn, lambda w: growth * start(w))
    z = latents(size=32)
    found = import_file(saved(tmp_path / "g.pth", t))
    expected = peers.akanimax(t, z, LEVELS, early=early, equalized=False)
    same(found.network(torch.float64)(z), expected, torch.float64)
    assert "do not have equalized learning rate" in found.notes[0]
    assert (peers.akanimax(t, z, LEVELS, early=early) - expected).abs().max() > 0.05  # what it was taken for


@pytest.mark.parametrize("growth", [0.6, 1.0, 2.0])
@pytest.mark.parametrize("early", [True, False], ids=["v2", "BMSG"])
def test_a_state_dict_with_equalized_rate(growth: float, early: bool, tmp_path: Path):
    drawn = peers.akanimax_tensors(peers.Draw(1, torch.float64), 32, [32, 32, 16], early=early)
    t = initialised(drawn, lambda w: growth)
    z = latents(size=32)
    found = import_file(saved(tmp_path / "g.pth", t))
    same(found.network(torch.float64)(z), peers.akanimax(t, z, LEVELS, early=early), torch.float64)
    assert "have equalized learning rate, by the spread" in found.notes[0]


def test_weights_that_tell_neither_are_asked_about(tmp_path: Path):
    drawn = peers.akanimax_tensors(peers.Draw(1, torch.float64), 32, [32, 32, 16])
    t = initialised(drawn, lambda w: w[0].numel() ** -0.25)
    file = saved(tmp_path / "g.pth", t)
    with pytest.raises(PgsrError, match=r"equalized learning rate .* say --equalized yes or --equalized no$"):
        import_file(file)
    z = latents(size=32)
    for said in (True, False):
        made = import_file(file, equalized=said).network(torch.float64)(z)
        same(made, peers.akanimax(t, z, LEVELS, equalized=said), torch.float64)


def test_what_the_user_says_goes_before_what_the_file_says(tmp_path: Path):
    t = peers.akanimax_tensors(peers.Draw(1, torch.float64), LATENT, WIDTHS)
    file = saved(tmp_path / "g.bin", peers.akanimax_file(t, t, use_eql=True))
    assert import_file(file).notes == ()
    made = import_file(file, equalized=False).network(torch.float64)(latents())
    same(made, peers.akanimax(t, latents(), LEVELS, equalized=False), torch.float64)


def test_a_bare_average_of_the_zoo_is_judged_by_its_weights(tmp_path: Path):
    drawn = peers.zoo_tensors(peers.Draw(1, torch.float64), 32, [32, 32, 16])
    for t, equalized in ((drawn, True), (initialised(drawn, he_normal), False)):
        found = import_file(saved(tmp_path / "g.pth", t))
        expected = peers.zoo(t, latents(size=32), LEVELS, equalized=equalized)
        same(found.network(torch.float64)(latents(size=32)), expected, torch.float64)


def test_equalized_is_for_files_that_leave_it_open(tmp_path: Path):
    file = saved(tmp_path / "g.pth", peers.basicsr_tensors(peers.Draw(1, torch.float32), 4, 1, 2))
    with pytest.raises(
        PgsrError, match=r"of BasicSR's MSRResNet's layers it is known: leave --equalized out"
    ):
        import_file(file, equalized=True)


def test_files_without_their_constants_are_explained(tmp_path: Path):
    file = saved(tmp_path / "g.pth", {"initial_block.conv_1.deconv.weight": torch.zeros(2)})
    with pytest.raises(PgsrError, match=r"an early version of .*, which kept the constants .* out"):
        import_file(file)


# ----------------------------------------------------------------------------
# The GAN zoo.

GAN_ZOO = "facebookresearch/pytorch_GAN_zoo"
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
    found = at_every_level(file, lambda n: peers.zoo(t, z, n, module), z, GAN_ZOO)
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
    fading = read_foreign(zoo_saved(tmp_path / "a.pt", False, t, t, alpha=0.4))
    assert fading.resolution == 8
    assert fading.notes == ("a.pt: it was fading 16x16 in (its alpha of 0.4 goes to 0), so 8x8 is exported",)
    grown = read_foreign(zoo_saved(tmp_path / "b.pt", False, t, t, alpha=0))
    assert (grown.resolution, grown.notes) == (16, ())


@both_types
@pytest.mark.parametrize("settings", [{"perChannelNormalization": False}, {"leakyReluLeak": 0}], ids=str)
def test_gan_zoo_with_other_settings(dtype: torch.dtype, settings: dict[str, Any], tmp_path: Path):
    t = peers.zoo_tensors(peers.Draw(1, dtype), LATENT, WIDTHS)
    z = latents(dtype=dtype)
    file = zoo_saved(tmp_path / "z.pt", False, t, t, **settings)
    at_every_level(file, lambda n: peers.zoo(t, z, n, **settings), z, GAN_ZOO)


def test_gan_zoo_with_another_slope_is_an_error(tmp_path: Path):
    t = peers.zoo_tensors(peers.Draw(1, torch.float32), LATENT, WIDTHS)
    with pytest.raises(PgsrError, match=r"its slope is 0.1 \(leakyReluLeak\); slopes of 0.2 and 0 can be"):
        import_file(zoo_saved(tmp_path / "z.pt", False, t, t, leakyReluLeak=0.1))


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
    with pytest.raises(PgsrError, match=r"it draws pictures of 4 labels: name one with --label, 0 to 3$"):
        read_foreign(file)
    for label in (4, -1):
        with pytest.raises(PgsrError, match=f"--label {label}: it draws pictures of 4 labels, 0 to 3$"):
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


@both_types
@pytest.mark.parametrize(
    "settings",
    [
        {"pixelnorm_epsilon": 1e-4},  # of the presets in half precision
        {"pixelnorm_epsilon": 0.3},  # as different as it takes to see it
        {"use_pixelnorm": False},
        {"normalize_latents": False},
        {"use_leakyrelu": False},
        {"use_wscale": False},
    ],
    ids=str,
)
def test_nvidia_with_other_settings(dtype: torch.dtype, settings: dict[str, Any], tmp_path: Path):
    arrays = peers.nvidia_arrays(peers.Draw(1, dtype), LATENT, WIDTHS, True, 0.0)
    file = pickled(tmp_path / "n.pkl", peers.nvidia_networks(arrays, arrays, **settings), 4)
    z = latents(dtype=dtype)
    at_every_level(file, lambda n: peers.nvidia(arrays, z, n, LEVELS, **settings), z, NVIDIA)
    plain = peers.nvidia(arrays, z, LEVELS, LEVELS)
    if settings != {"pixelnorm_epsilon": 1e-4}:
        assert (peers.nvidia(arrays, z, LEVELS, LEVELS, **settings) - plain).abs().max() > 0.05


def test_the_epsilon_of_half_precision_is_in_the_graph(tmp_path: Path):
    """All forms of the normalisation have it: as trained, as one division, behind the RGB layer."""
    arrays = peers.nvidia_arrays(peers.Draw(1, torch.float32), LATENT, [8, 4], True, 0.0)
    file = pickled(tmp_path / "n.pkl", peers.nvidia_networks(arrays, arrays, pixelnorm_epsilon=0.3), 4)
    z = latents(dtype=torch.float32)
    expected = peers.nvidia(arrays, z, 2, 2, pixelnorm_epsilon=0.3)
    network = import_file(file).network()
    assert isinstance(network, ProGANGenerator)
    for more in ((), ("divide-in-norm",), ("norm-behind-rgb",), ("norm-behind-rgb", "divide-in-norm")):
        made, applied = rewritten(Grown(network, 8), ("remove-alpha", "fold-gains", *more))
        assert set(applied) >= set(more)
        same(made(z), expected, torch.float32)


def test_nvidia_settings_that_cannot_be_imported_are_named(tmp_path: Path):
    arrays = peers.nvidia_arrays(peers.Draw(1, torch.float32), LATENT, WIDTHS, True, 0.0)
    file = pickled(tmp_path / "n.pkl", peers.nvidia_networks(arrays, arrays, use_batchnorm=True), 4)
    with pytest.raises(PgsrError, match=r"n.pkl cannot be imported: .* use_batchnorm = True; False can be"):
        import_file(file)


@pytest.mark.parametrize("protocol", [0, 2], ids=["python 2", "python 3"])
@both_types
def test_nvidia_of_theano(dtype: torch.dtype, protocol: int, tmp_path: Path):
    network, later = peers.theano_network(peers.Draw(5, dtype), LATENT, WIDTHS)
    file = pickled(tmp_path / "old.pkl", (network, network, network), protocol, THEANO)
    z = latents(dtype=dtype)
    at_every_level(file, lambda n: peers.nvidia(later, z, n, LEVELS), z, NVIDIA)


# ----------------------------------------------------------------------------
# genforce and MMGeneration.


@both_types
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
def test_genforce(dtype: torch.dtype, fused: bool, tmp_path: Path):
    """It normalises latents twice, and adds 1e-8 each time."""
    t = peers.genforce_tensors(peers.Draw(1, dtype), LATENT, WIDTHS, fused)
    other = {k: v + 1 for k, v in t.items()}
    file = saved(tmp_path / "g.pth", {"generator": other, "generator_smooth": t, "discriminator": {}})
    z = latents(dtype=dtype)
    found = at_every_level(
        file, lambda n: peers.genforce(t, z, n, fused), z, "genforce/genforce", tolerance=1e-7
    )
    assert found.grown_resolution == 16


def test_genforce_is_grown_as_far_as_its_lod_says(tmp_path: Path):
    t = peers.genforce_tensors(peers.Draw(1, torch.float32), LATENT, WIDTHS, False, lod=1.5)
    assert read_foreign(saved(tmp_path / "g.pth", {"models": {"generator_smooth": t}})).resolution == 4


@both_types
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
def test_mmgeneration(dtype: torch.dtype, fused: bool, tmp_path: Path):
    """Its epsilon stands outside the root, which is a millionth of a value of size 1."""
    t = peers.mmgeneration_tensors(peers.Draw(1, dtype), LATENT, WIDTHS, fused)
    trained = {f"generator.{k}": -v for k, v in t.items()}
    average = {f"generator_ema.{k}": v for k, v in t.items()}
    tree = {"meta": {"epoch": 3}, "state_dict": {**trained, **average, "discriminator.a": torch.zeros(1)}}
    found = import_file(saved(tmp_path / "g.pth", tree))
    assert (found.peer, found.grown_resolution) == ("open-mmlab/mmgeneration", 16)
    z = latents(dtype=dtype)
    network = found.network(dtype)
    for level in range(LEVELS):
        made, expected = network(z, resolution=4 << level), peers.mmgeneration(t, z, level + 1, fused)
        same(made, expected, dtype, tolerance=1e-4)


@pytest.mark.parametrize(("peer", "usual"), [("genforce", False), ("mmgeneration", True)])
def test_layers_as_wide_as_their_inputs_are_what_is_usual(peer: str, usual: bool, tmp_path: Path):
    tensors, image = getattr(peers, f"{peer}_tensors"), getattr(peers, peer)
    t = tensors(peers.Draw(1, torch.float64), LATENT, [8, 8], usual)
    made = import_file(saved(tmp_path / "g.pth", t)).network(torch.float64)(latents())
    same(made, image(t, latents(), 2, usual), torch.float64, tolerance=1e-4)
    assert (made - image(t, latents(), 2, not usual)).abs().max() > 0.05


@both_types
@pytest.mark.parametrize("normalized", [True, False])
def test_odegeasslbc(dtype: torch.dtype, normalized: bool, tmp_path: Path):
    """Other rows of layers than ProGANGenerator has: bilinear, no RGB layer at 4 x 4."""
    t = peers.bilinear_tensors(peers.Draw(1, dtype), LATENT, WIDTHS, normalized)
    file = saved(tmp_path / "010000_g.model", t)
    found = import_file(file)
    assert (found.peer, found.grown_resolution) == ("odegeasslbc/Progressive-GAN-pytorch", 16)
    assert "without tanh" in found.notes[0]
    z = latents(dtype=dtype)
    network: Any = found.network(dtype)
    for levels in (2, 3):
        expected = peers.bilinear(t, z, levels, normalized)
        same(network(z, resolution=4 << levels - 1), expected, dtype)
        same(rewritten(Grown(network, 4 << levels - 1))[0](z), expected, dtype)


# ----------------------------------------------------------------------------
# Upscalers.

OLD_NAMES = ("conv_block1", "conv_block2", "conv_block3")
NEW_NAMES = ("conv1", "conv2", "conv3")


def pictures(dtype: torch.dtype = torch.float64) -> Tensor:
    """In [-1, 1]."""
    noise = draws.latents(5, range(2), 3 * 7 * 9).reshape(2, 3, 7, 9)
    return torch.from_numpy(noise).clamp(-1, 1).to(dtype)


@both_types
@pytest.mark.parametrize("steps", [1, 2, 3])
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


# SRResNets of other names: each file made and computed by a module of that project's structure.

SRGANS = {
    "leftthomas/SRGAN": peers.LeftthomasGenerator,
    "sgrvinod/a-PyTorch-Tutorial-to-Super-Resolution": peers.SgrvinodGenerator,
    "eriklindernoren/PyTorch-GAN": peers.LindernorenGenerator,
}


@both_types
@pytest.mark.parametrize("peer", SRGANS)
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_srresnets_of_other_names(dtype: torch.dtype, peer: str, scale: int, tmp_path: Path):
    network = drawn_layers(SRGANS[peer](scale), dtype)
    found = import_file(saved(tmp_path / "g.pth", network.state_dict()))
    assert (found.peer, found.scale) == (peer, scale)
    x = pictures(dtype)
    with torch.no_grad():
        expected = network.of_signed(x)
    same(found.network(dtype)(x), expected, dtype)
    folded = rewritten(found.network(dtype))[0]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    same(folded(x), expected, dtype)


def test_pytorch_gan_of_2018(tmp_path: Path):
    network = drawn_layers(peers.LindernorenGenerator(4, early=True), torch.float64)
    made = import_file(saved(tmp_path / "generator_3.pth", network.state_dict())).network(torch.float64)
    x = pictures()
    with torch.no_grad():
        same(made(x), network.of_signed(x), torch.float64)


@without_source
def test_a_tutorials_whole_modules(tmp_path: Path):
    """It saves the generator as an object, in which SRResNet is called net."""
    network = drawn_layers(peers.SgrvinodGenerator(2), torch.float32)
    outer = nn.Module()
    outer.net = network
    with peers.saved_as(models=[peers.SgrvinodGenerator, peers.SgrvinodBlock]):
        file = saved(
            tmp_path / "checkpoint_srgan.pth.tar", {"epoch": 3, "generator": outer, "discriminator": None}
        )
    x = pictures(torch.float32)
    with torch.no_grad():
        same(import_file(file).network()(x), network.of_signed(x), torch.float32)


def drawn_layers(network: nn.Module, dtype: torch.dtype) -> Any:
    draw = peers.Draw(3, torch.float64)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(0.5 + draw(*tensor.shape).abs())
        elif tensor.dim() == 4:
            tensor.copy_(draw(*tensor.shape) * 0.7 / math.sqrt(tensor[0].numel()))
        elif tensor.dtype.is_floating_point:
            tensor.copy_((1.0 if name.endswith("weight") else 0.0) + draw(*tensor.shape, deviation=0.2))
    return network.to(dtype).eval()


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
        return _library()
    except PgsrError as error:
        pytest.skip(str(error))


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
    with pytest.raises(PgsrError, match=r"its 1 tensors are of no layout that is known: w; known are those"):
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
    with pytest.raises(PgsrError, match=r"7 tensors are of no layout .*: model.w0, .* and 3 more; known are"):
        import_file(file)


def test_ours_are_named_without_from(tmp_path: Path):
    checkpoint.save(tmp_path / "x.safetensors", checkpoint.Checkpoint({"a": torch.zeros(1)}, {}, {}, {}))
    with pytest.raises(PgsrError, match=r"x.safetensors is a checkpoint of pgsr: .* without --from$"):
        import_file(tmp_path / "x.safetensors")


# ----------------------------------------------------------------------------
# Where training programs keep a network, and what they leave beside it.


def held(path: str, tensors: Any) -> dict[str, Any]:
    """Tensors under names one in another, as a/b; a name that ends with a dot stands before theirs."""
    for name in reversed(path.split("/")):
        tensors = {name + k: v for k, v in tensors.items()} if name.endswith(".") else {name: tensors}
    return tensors


ENCLOSED = (
    *(
        "model_state_dict",
        "state_dict",
        "model",
        "net",
        "params",
        "params_ema",
        "params-ema",
        "generator",
        "net_g",
    ),
    *(
        "netG",
        "g_ema",
        "ema_state_dict",
        "G",
        "weights",
        "anything at all",
        "netG.",
        "net_g.",
        "generator.",
        "net.",
    ),
    *(
        "netG.module.",
        "module.netG.",
        "_orig_mod.module.",
        "state_dict/generator.",
        "state_dict/net.",
        "a/b/c",
    ),
    *(
        "model/state_dict",
        "checkpoint/model_state_dict/module.",
        "generator_ema.",
        "model.",
        "ema_model.module.",
    ),
)


@pytest.mark.parametrize("path", ENCLOSED)
def test_a_network_is_found_where_it_is_held(path: str, tmp_path: Path):
    t = peers.basicsr_tensors(peers.Draw(1, torch.float32), 4, 1, 2)
    found = import_file(saved(tmp_path / "g.pth", held(path, t)))
    assert found.peer == "BasicSR's MSRResNet"


@pytest.mark.parametrize(
    ("average", "trained"),
    [
        ("g_ema", "g"),
        ("generator_ema", "generator"),
        ("generator_ema.", "generator."),
        ("avg_model", "model"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_the_average_is_taken(average: str, trained: str, first: bool, tmp_path: Path):
    t = peers.basicsr_tensors(peers.Draw(1, torch.float32), 4, 1, 2)
    parts = [held(average, t), held(trained, {k: -v for k, v in t.items()})]
    tree = {**parts[not first], **parts[first], "discriminator.conv.weight": torch.ones(2), "epoch": 3}
    taken = import_file(saved(tmp_path / "g.pth", tree)).state
    assert torch.equal(taken["conv_first.weight"], t["conv_first.weight"].double())


def test_what_wrappers_and_profilers_leave_is_no_weight(tmp_path: Path):
    """torch.optim.swa_utils.AveragedModel, and thop's counters in every layer."""
    t = peers.akanimax_tensors(peers.Draw(1, torch.float32), LATENT, WIDTHS, early=True)
    averaged = {**held("module.", t), "n_averaged": torch.tensor(1000)}
    profiled = {**t, "total_ops": torch.zeros(1), "initial_block.total_params": torch.zeros(1)}
    for i, tensors in enumerate((averaged, profiled)):
        state = import_file(saved(tmp_path / f"{i}.pth", tensors)).state
        assert torch.equal(state["blocks.0.conv.bias"], t["initial_block.conv_2.bias"].double())


def test_lornatang_alone_or_averaged(tmp_path: Path):
    t = peers.lornatang_tensors(peers.Draw(1, torch.float32), 4, 1, 1, NEW_NAMES)
    for i, tree in enumerate(({"ema_state_dict": t, "epoch": 1}, {"model": t}, held("_orig_mod.", t))):
        assert import_file(saved(tmp_path / f"{i}.pth", tree)).peer == "Lornatang/SRGAN-PyTorch"


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


def test_widths_that_do_not_halve(tmp_path: Path):
    t = peers.zoo_tensors(peers.Draw(1, torch.float64), LATENT, [8, 5, 4])
    z = latents()
    found = at_every_level(
        zoo_saved(tmp_path / "z.pt", False, t, t), lambda n: peers.zoo(t, z, n), z, GAN_ZOO
    )
    assert found.options["maps"] == [8, 5, 4]


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


def test_the_command_tells_what_the_weights_decided(tmp_path: Path, command: Callable[..., Any]):
    t = peers.akanimax_tensors(peers.Draw(1, torch.float32), LATENT, WIDTHS)
    file = saved(tmp_path / "GAN_GEN_3.pth", t)
    done = command(main, "import", file, "--out", tmp_path / "b", "--resolution", 5)
    lines = done.stderr.splitlines()
    assert lines[0] == (
        "GAN_GEN_3.pth: its layers have equalized learning rate, by the spread of their weights (--equalized)"
    )
    assert lines[1].startswith("error: --resolution 5: the generator has 4, 8, 16")
    assert len(lines) == 2


def test_the_command_passes_on_what_the_user_says(tmp_path: Path, command: Callable[..., Any]):
    file = saved(tmp_path / "msr.pth", peers.basicsr_tensors(peers.Draw(1, torch.float32), 4, 1, 2))
    done = command(main, "import", file, "--out", tmp_path / "b", "--equalized", "no")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "leave --equalized out" in done.stderr
    assert command(main, "import", file, "--out", tmp_path / "b", "--equalized", "maybe").exit_code == 2


def test_imported_generators_have_the_resolutions_below(tmp_path: Path):
    t = peers.akanimax_tensors(peers.Draw(1, torch.float32), LATENT, WIDTHS)
    source = read_foreign(saved(tmp_path / "g.bin", peers.akanimax_file(t, t)))
    assert isinstance(source.network, ProGANGenerator)
    assert source.network.resolutions == [4, 8, 16]
    assert source.provenance["recipe"]["generator"]["first_normalized"] is False
