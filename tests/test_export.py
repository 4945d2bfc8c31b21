"""Export: rewrites are exact, graphs match their networks, bundles are whole, honest and repeatable."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx.reference import ReferenceEvaluator
from torch import nn

from lively import lively
from pgsr import bundle, draws
from pgsr.checkpoint import Checkpoint, load, save
from pgsr.errors import PgsrError
from pgsr.export import bundle_builder as build
from pgsr.export import parity
from pgsr.export.cli import main
from pgsr.export.graphs import Chain
from pgsr.export.lowering import Grown
from pgsr.export.onnx_file import to_onnx
from pgsr.export.rewrites.rules import Rewrite
from pgsr.export.rewrites.table import rewritten
from pgsr.export.source import Source, read_source
from pgsr.networks import GENERATORS, resolved
from pgsr.networks import build as build_network
from pgsr.truncation import typical_direction

PROGAN = {"kind": "progan", "resolution": 16, "latent_size": 12, "feature_base": 256, "feature_max": 16}
COMPACT = {"kind": "compact", "scale": 2, "features": 8, "layers": 2}
SRRESNET = {"kind": "srresnet", "scale": 4, "features": 8, "blocks": 2}


def write_checkpoint(path: Path, options: dict, grown: int = 16, seed: int = 3) -> Path:
    """A checkpoint as training writes it, with lively weights and batch statistics."""
    network = lively(build_network(GENERATORS, options, seed))
    tensors = {f"generator_ema.{k}": v for k, v in network.state_dict().items()}
    progress = {"images_shown": 1000, "step": 10, "grown_resolution": grown}
    config = {"generator": resolved(GENERATORS, options)}
    save(path, Checkpoint(tensors, config, progress, {"version": "test", "data": {"fingerprint": "f"}}))
    return path


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    separable = {**PROGAN, "convolution": "separable"}
    return {
        "progan": write_checkpoint(folder / "progan.safetensors", PROGAN),
        "separable": write_checkpoint(folder / "separable.safetensors", separable),
        "compact": write_checkpoint(folder / "compact.safetensors", COMPACT),
        "srresnet": write_checkpoint(folder / "srresnet.safetensors", SRRESNET),
    }


@pytest.fixture(scope="module")
def exported(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> bundle.Bundle:
    """What the command makes of a generator and an upscaler, in both precisions."""
    out = tmp_path_factory.mktemp("bundle") / "faces"
    runs = [str(checkpoints["separable"]), str(checkpoints["compact"])]
    arguments = [*runs, "--out", str(out), "--fp16", "--samples", "8", "--licence", "test", "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    reported = [(g["name"], g["precision"]) for g in json.loads(result.stdout)["graphs"]]
    assert reported == [(n, p) for p in ("fp32", "fp16") for n in ("generator", "upscaler", "chain")]
    return bundle.read(out)


# ----------------------------------------------------------------------------
# Rewrites.


@pytest.mark.parametrize("convolution", ["vanilla", "separable"])
def test_folding_equalized_rate_is_exact(convolution: str) -> None:
    network = lively(build_network(GENERATORS, {**PROGAN, "convolution": convolution}, 1)).double()
    folded, applied = rewritten(Grown(network, 16), ("fold-gains",))  # type: ignore[arg-type]
    z = torch.from_numpy(draws.latents(0, range(3), 12)).double()
    assert applied == ("fold-gains",)
    assert (folded(z) - network(z)).abs().max() <= 1e-12
    assert torch.equal(rewritten(folded, ("fold-gains",))[0](z), folded(z))  # a second time changes nothing


@pytest.mark.parametrize("convolution", ["vanilla", "separable"])
def test_folding_batch_norm_is_exact(convolution: str) -> None:
    network = lively(build_network(GENERATORS, {**SRRESNET, "convolution": convolution}, 1)).double()
    folded, applied = rewritten(network, ("fold-batch-norm",))
    x = torch.from_numpy(draws.latents(0, range(2), 3 * 64)).double().view(2, 3, 8, 8)
    assert applied == ("fold-batch-norm",)
    assert (folded(x) - network(x)).abs().max() <= 1e-12
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())


def test_rewriting_leaves_the_trained_network_alone() -> None:
    network = build_network(GENERATORS, PROGAN, 1)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    rewritten(network)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_graph_holds_no_old_branch_and_no_scaling(exported: bundle.Bundle) -> None:
    model = onnx.load(exported.folder / "generator.onnx")
    rgb_bias = [1, 3, 1, 1]  # which is added behind the last norm
    held = [list(i.dims) for i in model.graph.initializer if len(i.dims) > 1 and list(i.dims) != rgb_bias]
    weights = sum(int(np.prod(dims)) for dims in held)
    network = build_network(GENERATORS, {**PROGAN, "convolution": "separable"})
    of_other_resolutions = sum(
        p.numel() for i in (0, 1) for p in network.to_rgb[i].parameters() if p.dim() > 1
    )
    used = sum(p.numel() for p in network.parameters() if p.dim() > 1) - of_other_resolutions
    assert weights == used


# ----------------------------------------------------------------------------
# Graphs against networks, by an evaluator that is not ONNX Runtime.


def test_chain_graph_equals_the_formula(exported: bundle.Bundle, checkpoints: dict[str, Path]) -> None:
    """The trained networks in float64, latents on the hypersphere, contract 5's conversion."""
    z = draws.latents(9, range(4), 12)
    generator = read_source(checkpoints["separable"]).network.double()
    upscaler = read_source(checkpoints["compact"]).network.double()
    with torch.no_grad():
        x = upscaler(generator(torch.from_numpy(z).double())).numpy()
    expected = np.rint(np.clip((x + 1) * 127.5, 0, 255)).transpose(0, 2, 3, 1)
    pixels = ReferenceEvaluator(str(exported.folder / "chain.onnx")).run(None, {"latents": z})[0]
    assert pixels.dtype == np.uint8
    assert pixels.shape == (4, 32, 32, 3)
    assert np.abs(pixels - expected).max() <= 1
    assert (pixels != expected).mean() < 1e-3


def test_latents_are_normalised_inside_the_graph(exported: bundle.Bundle) -> None:
    run = parity.session_of((exported.folder / "chain.onnx").read_bytes())
    z = draws.latents(1, range(2), 12)
    assert np.abs(run(z).astype(int) - run(5 * z).astype(int)).max() <= 1


@pytest.mark.parametrize("n", [1, 3, 17])
def test_batch_is_dynamic(exported: bundle.Bundle, n: int) -> None:
    for precision in ("fp32", "fp16"):
        path = exported.path(exported.graph("chain", precision))
        assert parity.session_of(path.read_bytes())(draws.latents(0, range(n), 12)).shape == (n, 32, 32, 3)


def test_upscaler_takes_any_size(exported: bundle.Bundle) -> None:
    run = parity.session_of((exported.folder / "upscaler.onnx").read_bytes())
    assert run(np.zeros((1, 3, 5, 9), np.float32)).shape == (1, 3, 10, 18)


def test_half_graph_really_holds_half_weights(exported: bundle.Bundle) -> None:
    model = onnx.load(exported.folder / "chain.fp16.onnx")
    types = {i.data_type for i in model.graph.initializer if len(i.dims) == 4 and int(np.prod(i.dims)) > 1}
    assert types == {onnx.TensorProto.FLOAT16}


# ----------------------------------------------------------------------------
# The black image of half precision: PixelNorm squares what it normalises.


class Loud(nn.Module):
    """A generator whose activations of 4,000 square to more than half can hold."""

    def __init__(self, norm: object) -> None:
        super().__init__()
        self.norm = norm
        self.to_rgb = nn.Conv2d(8, 3, 1, bias=False)
        nn.init.constant_(self.to_rgb.weight, 0.1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = (z * 4000).view(-1, 8, 1, 1).expand(-1, 8, 4, 4)
        return self.to_rgb(self.norm(x))  # type: ignore[operator]


def half_norm(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)


def test_half_parity_sees_the_black_image_that_float32_hides() -> None:
    from pgsr.networks.layers import pixel_norm

    z = np.abs(draws.latents(2, range(4), 8)) + 0.5
    good = Chain([Loud(pixel_norm)], "fp16", pixels=True)
    trap = Chain([Loud(half_norm)], "fp16", pixels=True)
    reference = parity.torch_function(Chain([Loud(pixel_norm)], "fp32", pixels=True))(z)
    parity.require(parity.compare(reference, parity.stored_function(good, torch.float16)(z)), "fp16", "good")
    black = parity.stored_function(trap, torch.float16)(z)
    assert (black == 128).all()  # every activation became zero, without a NaN
    with pytest.raises(PgsrError, match="does not match"):
        parity.require(parity.compare(reference, black), "fp16", "trap")


def test_half_storage_rounds_like_half_arithmetic() -> None:
    """Against PyTorch's own half on the CPU, one operation at a time."""
    x = torch.from_numpy(draws.latents(0, range(4), 64)).half()
    with parity.Storage(torch.float16):
        ours = [x + x * 3, (x * 30000).square(), x.sigmoid()]
    theirs = [x + x * 3, (x * 30000).square(), x.sigmoid()]
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.float16
        assert torch.equal(a, b)


def test_exported_half_graph_survives_huge_activations() -> None:
    """Judged by the reference evaluator, which computes half in half."""
    from pgsr.networks.layers import pixel_norm

    z = np.abs(draws.latents(2, range(2), 8)) + 0.5
    module = Chain([Loud(pixel_norm)], "fp16", pixels=True)
    model = to_onnx(module, torch.from_numpy(z), "latents", "pixels", {0: "n"})
    pixels = ReferenceEvaluator(onnx.load_from_string(model)).run(None, {"latents": z})[0]
    reference = parity.torch_function(Chain([Loud(pixel_norm)], "fp32", pixels=True))(z)
    assert np.abs(pixels.astype(int) - reference.astype(int)).max() <= 1


# ----------------------------------------------------------------------------
# Bundles.


def test_manifest_tells_the_truth(exported: bundle.Bundle) -> None:
    assert {(g.name, g.precision) for g in exported.graphs} == {
        (name, precision) for name in ("generator", "upscaler", "chain") for precision in ("fp32", "fp16")
    }
    for graph in exported.graphs:
        model = onnx.load(exported.path(graph))
        assert model.opset_import[0].version == graph.opset
        assert [v.name for v in model.graph.input] == [p.name for p in graph.inputs]
        assert [v.name for v in model.graph.output] == [p.name for p in graph.outputs]
        assert graph.parity["samples"] >= 8
        assert graph.parity["psnr_db"] > 45
    chain = exported.graph("chain")
    assert chain.outputs[0].shape == ("n", 32, 32, 3)
    assert "remove-alpha" in chain.rewrites


def test_multiply_adds_by_hand(exported: bundle.Bundle) -> None:
    """Compact x2 at 8 maps, 2 inner layers, on 16 x 16: 3->8, 8->8, 8->8, 8->12, all 3 x 3."""
    by_hand = 16 * 16 * 9 * (3 * 8 + 8 * 8 + 8 * 8 + 8 * 12)
    assert exported.graph("upscaler").multiply_adds == by_hand
    chain, generator = exported.graph("chain").multiply_adds, exported.graph("generator").multiply_adds
    assert chain == generator + by_hand


def test_export_is_repeatable_and_names_no_path(
    exported: bundle.Bundle, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    sources = [read_source(checkpoints["separable"]), read_source(checkpoints["compact"])]
    again = build.export_bundle(sources, tmp_path / "b", name="faces", licence="test", samples=8)
    for graph in again.graphs:
        assert (exported.folder / graph.file).read_bytes() == again.path(graph).read_bytes(), graph.file
    assert list(again.graphs) == [g for g in exported.graphs if g.precision == "fp32"]
    repository = str(Path(__file__).resolve().parent.parent).encode()
    for path in exported.folder.iterdir():
        data = path.read_bytes()
        assert repository not in data
        assert str(tmp_path).encode() not in data
        assert b"site-packages" not in data


def test_mid_training_exports_what_is_fully_grown(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "early.safetensors", PROGAN, grown=8)
    made = build.export_bundle([read_source(path)], tmp_path / "b", name="b", licence="test", samples=4)
    assert made.resolution == 8
    assert made.graph("chain").outputs[0].shape == ("n", 8, 8, 3)


MSGGAN = {**PROGAN, "kind": "msggan"}
BEGAN = {"kind": "began", "resolution": 16, "latent_size": 12, "features": 6}


def one_size(path: Path, out: Path, *arguments: str) -> tuple[bundle.Bundle, np.ndarray]:
    """The bundle that the command makes of a checkpoint, and what its chain draws of four latents."""
    result = CliRunner().invoke(main, [str(path), "--out", str(out), "--samples", "4", *arguments])
    assert result.exit_code == 0, result.output
    made = bundle.read(out)
    run = parity.session_of(made.path(made.graph("chain")).read_bytes())
    return made, run(draws.latents(4, range(4), 12))


@pytest.mark.parametrize("resolution", [16, 8])
def test_msggan_exports_at_any_of_its_resolutions(tmp_path: Path, resolution: int) -> None:
    path = write_checkpoint(tmp_path / "msg.safetensors", MSGGAN)
    arguments = ["--resolution", "8"] if resolution == 8 else []
    made, pixels = one_size(path, tmp_path / "b", *arguments)
    assert made.resolution == resolution
    images = read_source(path).network.images(torch.from_numpy(draws.latents(4, range(4), 12)))
    image = next(i for i in images if i.shape[-1] == resolution).numpy()
    expected = np.rint(np.clip((image + 1) * 127.5, 0, 255)).transpose(0, 2, 3, 1)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).max() <= 1
    rewrites = made.graph("chain").rewrites
    assert {"fold-gains", "upsample-convolution", "norm-behind-rgb"} <= set(rewrites)


def test_began_exports(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "began.safetensors", BEGAN)
    made, pixels = one_size(path, tmp_path / "b", "--fp16")
    with torch.no_grad():
        image = read_source(path).network(torch.from_numpy(draws.latents(4, range(4), 12))).numpy()
    expected = np.rint(np.clip((image + 1) * 127.5, 0, 255)).transpose(0, 2, 3, 1)
    assert np.abs(pixels - expected).max() <= 1
    assert made.graph("chain").rewrites == ("upsample-convolution", "shuffle-blocks-first")
    assert made.graph("chain", "fp16").parity["psnr_db"] > 45


def test_resolutions_that_are_not_there_are_named(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    early = write_checkpoint(tmp_path / "early.safetensors", PROGAN, grown=8)
    out = ["--out", str(tmp_path / "b"), "--resolution", "16"]
    assert "the generator has 4, 8" in one_error_line([str(early), *out])
    assert "--resolution is a generator's" in one_error_line([str(checkpoints["compact"]), *out])


def test_a_truncation_and_its_centre_are_in_the_manifest(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    generator = read_source(checkpoints["separable"])
    out = ["--out", str(tmp_path / "b"), "--samples", "4", "--truncation", "0.8"]
    made = CliRunner().invoke(main, [str(checkpoints["separable"]), *out])
    assert made.exit_code == 0, made.output
    written = bundle.read(tmp_path / "b")
    network = generator.generator.eval()
    expected = typical_direction(
        lambda z: network(torch.from_numpy(z)).detach().numpy(), generator.latent_size, 64
    )
    assert written.truncation == 0.8
    assert np.allclose(written.centre, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert "--truncation 0.8 is a generator's" in one_error_line([str(checkpoints["compact"]), *out])


def test_upscaler_alone(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    source = read_source(checkpoints["srresnet"])
    made = build.export_bundle([source], tmp_path / "b", name="b", licence="test", samples=4)
    assert [g.name for g in made.graphs] == ["upscaler"]
    assert (made.latent_size, made.scale) == (0, 4)
    with pytest.raises(PgsrError, match="holds no chain"):
        made.graph("chain")


def test_parity_failure_leaves_nothing(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rewrite that is wrong by 2% is refused, and the bundle that stood there stays."""
    sources = [read_source(checkpoints["compact"])]
    out = tmp_path / "b"
    build.export_bundle(sources, out, name="b", licence="test", samples=4)
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def wrong(network: nn.Module) -> bool:
        for parameter in network.parameters():
            parameter.data.mul_(1.02)
        return True

    monkeypatch.setitem(build.rewritten.__globals__["REWRITES"], "wrong", Rewrite(wrong, "by 2%"))
    choice = build.Choice(also=("wrong",))
    with pytest.raises(PgsrError, match="does not match its network"):
        build.export_bundle(sources, out, name="b", licence="test", samples=4, choice=choice)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_grown_equals_the_network_at_that_resolution() -> None:
    network = build_network(GENERATORS, PROGAN, 4)
    z = torch.from_numpy(draws.latents(0, range(2), 12))
    assert torch.equal(Grown(network, 8)(z), network(z, resolution=8))


# ----------------------------------------------------------------------------
# The command.


def one_error_line(arguments: list[str]) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_bad_input_is_one_line(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    good = checkpoints["progan"]
    damaged = tmp_path / "damaged.safetensors"
    data = bytearray(good.read_bytes())
    data[-100] ^= 4
    damaged.write_bytes(data)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file.txt").write_text("mine")
    out = ["--out", str(tmp_path / "b")]
    assert "damaged" in one_error_line([str(damaged), *out])
    assert "no checkpoint" in one_error_line([str(tmp_path / "absent"), *out])
    assert "at most one generator" in one_error_line([str(good), str(checkpoints["separable"]), *out])
    assert "not a bundle" in one_error_line([str(good), "--out", str(tmp_path / "full")])
    assert "not a bundle" in one_error_line([str(good), "--out", str(damaged)])
    (tmp_path / "faces" / "mine").mkdir(parents=True)
    (tmp_path / "faces" / bundle.MANIFEST).write_text('{"format": "faces"}')
    assert "another manifest" in one_error_line([str(good), "--out", str(tmp_path / "faces")])
    assert sorted(p.name for p in (tmp_path / "faces").iterdir()) == [bundle.MANIFEST, "mine"]
    assert (tmp_path / "full" / "file.txt").read_text() == "mine"
    assert not (tmp_path / "b").exists()


# ----------------------------------------------------------------------------
# What a network gives must be numbers, and not always the same.


def source_with(network: nn.Module, options: dict) -> Source:
    kind = "generator" if "latent_size" in options else "upscaler"
    resolution = 16 if kind == "generator" else 0
    scale = options.get("scale", 1)
    return Source(
        network.eval().requires_grad_(False), kind, options.get("latent_size", 0), resolution, scale, {}
    )


@pytest.mark.parametrize("options", [PROGAN, COMPACT, SRRESNET], ids=lambda o: o["kind"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_networks_without_finite_numbers_do_not_export(options: dict, value: float, tmp_path: Path):
    """Such a graph agrees with its network to the bit: both give black pictures."""
    network = lively(build_network(GENERATORS, options, 3))
    layers = [p for p in network.parameters() if p.dim() == 4]
    with torch.no_grad():
        layers[1].fill_(value)
    with pytest.raises(PgsrError, match=r"cannot be exported: its network gives numbers that are not finite"):
        build.export_bundle([source_with(network, options)], tmp_path / "b", name="x", licence="y", samples=4)
    assert not (tmp_path / "b").exists()


def test_an_overflow_of_half_precision_is_named_as_one(tmp_path: Path):
    """Finite in float32, infinite where GPUs store it in half."""
    network = lively(build_network(GENERATORS, COMPACT, 3))
    with torch.no_grad():
        network.body[0].weight.mul_(1e6)
        network.tail.weight.mul_(1e-6)
    source = source_with(network, COMPACT)
    build.export_bundle([source], tmp_path / "a", name="x", licence="y", samples=4)
    with pytest.raises(PgsrError, match=r"its graph in fp16 gives numbers that are not finite"):
        build.export_bundle([source], tmp_path / "b", precisions=("fp16",), name="x", licence="y", samples=4)


@pytest.mark.parametrize("options", [PROGAN, COMPACT], ids=lambda o: o["kind"])
def test_networks_that_give_one_picture_do_not_export(options: dict, tmp_path: Path):
    network = build_network(GENERATORS, options, 3)
    if options is COMPACT:
        base: Any = network.base
        network.base = nn.Sequential(base, nn.Threshold(2.0, 0.0))
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    with pytest.raises(PgsrError, match=r"its network gives the same picture for every input; nothing was"):
        build.export_bundle([source_with(network, options)], tmp_path / "b", name="x", licence="y", samples=4)


# ----------------------------------------------------------------------------
# Checkpoints whose digest is right and whose contents are not.

ODD: dict[str, list[Any]] = {
    "config": [[], None, {}, {"generator": None}, {"generator": []}, {"generator": {"kind": "none"}}],
    "progress": [[], {}, {"grown_resolution": "16", "images_shown": 1}, {"grown_resolution": 16}],
    "provenance": [None, "x"],
}
OPTIONS = [
    {"latent_size": 0},
    {"latent_size": -3},
    {"feature_base": -1},
    {"resolution": 2**40},
    {"feature_max": 10**12, "feature_base": 10**14},
    {"epsilon": -1.0},
    {"labels": -1},
    {"maps": [0, 1, 2]},
]


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in ODD.items() for value in values], ids=str
)
def test_odd_contents_of_a_checkpoint_are_one_sentence(field: str, value: Any, tmp_path: Path):
    path = write_checkpoint(tmp_path / "odd.safetensors", PROGAN)
    save(path, dataclasses.replace(load(path), **{field: value}))
    with pytest.raises(PgsrError, match=r"odd\.safetensors"):
        read_source(path)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_odd_options_of_a_checkpoint_are_one_sentence(options: dict, tmp_path: Path):
    path = write_checkpoint(tmp_path / "odd.safetensors", PROGAN)
    config = {"generator": {**resolved(GENERATORS, PROGAN), **options}}
    save(path, dataclasses.replace(load(path), config=config))
    with pytest.raises(PgsrError, match=r"odd\.safetensors") as caught:
        read_source(path)
    assert "\n" not in str(caught.value)


def test_a_checkpoints_json_of_great_depth_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_checkpoint(tmp_path / "deep.safetensors", PROGAN)
    checkpoint, deep = load(path), "[" * 100_000 + "]" * 100_000
    monkeypatch.setattr("pgsr.checkpoint.json.dumps", lambda value, **options: deep)
    save(path, checkpoint)
    with pytest.raises(PgsrError, match=r"deep.safetensors is damaged: its config cannot be read"):
        load(path)
