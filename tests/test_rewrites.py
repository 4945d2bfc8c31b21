"""Every rewrite: exact in float64 and float32, found where it should be and nowhere else, switchable."""

from __future__ import annotations

from itertools import product

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lively import lively
from pgsr.errors import PgsrError
from pgsr.export.bundle_builder import multiply_adds
from pgsr.export.lowering import Fade, Grown, as_steps
from pgsr.export.onnx_file import to_onnx
from pgsr.export.rewrites.reordering import blocks_first, unshuffled
from pgsr.export.rewrites.rules import apply_rule, convolution
from pgsr.export.rewrites.table import REWRITES, TARGETS, choose_rewrites, rewritten
from pgsr.export.rewrites.upsampling import four_by_four, four_kernels
from pgsr.networks import GENERATORS
from pgsr.networks import build as build_network

PROGAN = {"kind": "progan", "resolution": 16, "latent_size": 12, "feature_base": 128, "feature_max": 24}
SEPARABLE = {**PROGAN, "convolution": "separable"}
SRRESNET = {"kind": "srresnet", "scale": 4, "features": 8, "blocks": 2}

# network -> the rewrites that find something in it, of all that there are
NETWORKS: dict[str, tuple[dict, set[str]]] = {
    "vanilla": (
        PROGAN,
        {
            "remove-alpha",
            "fold-gains",
            "merge-first-layer",
            "upsample-convolution",
            "upsample-convolution-four",
            "upsample-convolution-transposed",
            "norm-behind-rgb",
            "divide-in-norm",
        },
    ),
    "wide": (
        {**PROGAN, "feature_base": 4096, "feature_max": 256},
        {
            "remove-alpha",
            "fold-gains",
            "merge-first-layer",
            "upsample-convolution-nine",
            "upsample-convolution",
            "upsample-convolution-four",
            "upsample-convolution-transposed",
            "winograd",
            "norm-behind-rgb",
            "divide-in-norm",
        },
    ),
    "separable": (
        SEPARABLE,
        {
            "remove-alpha",
            "fold-gains",
            "dense-first-layer",
            "upsample-depthwise",
            "upsample-depthwise-transposed",
            "norm-behind-rgb",
            "divide-in-norm",
        },
    ),
    "batch norm, tanh": (
        {**PROGAN, "normalization": "batch", "activation": "relu", "output": "tanh", "equalized": False},
        {
            "remove-alpha",
            "fold-gains",
            "fold-batch-norm",
            "merge-first-layer",
            "upsample-convolution",
            "upsample-convolution-four",
            "upsample-convolution-transposed",
            "divide-in-norm",
        },
    ),
    "separable, batch norm": (
        {**SEPARABLE, "normalization": "batch"},
        {
            "remove-alpha",
            "fold-gains",
            "fold-batch-norm",
            "dense-first-layer",
            "upsample-depthwise",
            "upsample-depthwise-transposed",
            "divide-in-norm",
        },
    ),
    "msggan": (
        {**PROGAN, "kind": "msggan"},
        {
            "fold-gains",
            "merge-first-layer",
            "upsample-convolution",
            "upsample-convolution-four",
            "upsample-convolution-transposed",
            "norm-behind-rgb",
            "divide-in-norm",
        },
    ),
    "began": (
        {"kind": "began", "resolution": 16, "latent_size": 12, "features": 6},
        {"upsample-convolution", "upsample-convolution-four", "upsample-convolution-transposed"},
    ),
    "srresnet": (SRRESNET, {"fold-batch-norm", "convolution-before-shuffle", "shuffle-blocks-first"}),
    "separable srresnet": (
        {**SRRESNET, "convolution": "separable"},
        {"fold-batch-norm", "shuffle-blocks-first"},
    ),
    "compact": ({"kind": "compact", "scale": 2, "features": 8, "layers": 2}, {"shuffle-blocks-first"}),
    "compact bicubic": (
        {"kind": "compact", "scale": 2, "features": 8, "layers": 2, "base": "bicubic"},
        set(),
    ),
    "rednet": ({"kind": "rednet", "features": 8, "layers": 3}, set()),
    "resnet-sr": (
        {"kind": "resnet-sr", "features": 3},
        {
            "fold-batch-norm",
            "pointwise-before-upsampling",
            "upsample-convolution",
            "upsample-convolution-four",
            "upsample-convolution-transposed",
        },
    ),
    "dcgan": ({"kind": "dcgan", "features": 2, "latent_size": 12}, {"fold-batch-norm"}),
    "metz": ({"kind": "metz", "latent_size": 12}, {"fold-batch-norm"}),
}

# What must be there for a rewrite to find its layers.
NEEDS = ("fold-gains", "remove-alpha")


def network_of(name: str) -> nn.Module:
    network = lively(build_network(GENERATORS, NETWORKS[name][0], 1)).requires_grad_(False)
    return Grown(network, 16) if NETWORKS[name][0]["kind"] in ("progan", "msggan") else network  # type: ignore[arg-type]


def inputs_of(name: str) -> Tensor:
    options = NETWORKS[name][0]
    shape = (2, 12) if "latent_size" in options else (2, 3, 8, 8)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("name", NETWORKS)
def test_steps_compute_what_the_network_does(name: str):
    """Before any rewrite of arithmetic, to the bit."""
    network, x = network_of(name), inputs_of(name).float()
    assert torch.equal(rewritten(network, ("remove-alpha",))[0](x), network(x))


@pytest.mark.parametrize(
    ("name", "rewrite"), [(n, r) for n, r in product(NETWORKS, REWRITES) if r in NETWORKS[n][1]]
)
def test_each_rewrite_is_exact(name: str, rewrite: str):
    """Alone, but for what it needs: 1e-12 in float64, rounding in float32."""
    network, x = network_of(name).double(), inputs_of(name)
    made, applied = rewritten(network, (*NEEDS, rewrite))
    assert rewrite in applied
    expected = network(x)
    scale = max(1.0, float(expected.abs().max()))
    assert (made(x) - expected).abs().max() <= 1e-12 * scale
    again, _ = rewritten(network_of(name), (*NEEDS, rewrite))
    assert (again(x.float()) - expected).abs().max() <= 2e-5 * scale


@pytest.mark.parametrize("name", NETWORKS)
def test_each_rewrite_finds_its_networks_and_no_others(name: str):
    found = {rewrite for rewrite in REWRITES if rewrite in rewritten(network_of(name), (*NEEDS, rewrite))[1]}
    assert found == NETWORKS[name][1]


@pytest.mark.parametrize(("name", "target"), list(product(NETWORKS, TARGETS)))
def test_what_a_target_chooses_is_exact_together(name: str, target: str):
    network, x = network_of(name).double(), inputs_of(name)
    expected = network(x)
    made, _ = rewritten(network, choose_rewrites(target))
    assert (made(x) - expected).abs().max() <= 1e-12 * max(1.0, float(expected.abs().max()))


def test_rewriting_leaves_the_network_alone():
    network = network_of("vanilla")
    before = {k: v.clone() for k, v in network.state_dict().items()}
    rewritten(network, tuple(REWRITES))
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


# ----------------------------------------------------------------------------
# What they are for: fewer multiply-adds, fewer operations.


def test_upsampled_convolutions_multiply_four_ninths_as_much():
    """Every first convolution of a block from 36 to 16 a low pixel; `one` computes a rim that is cropped."""
    network = as_steps(Grown(build_network(GENERATORS, {**PROGAN, "resolution": 8}), 8))
    # 24 maps at 4 x 4, 16 at 8 x 8
    z = torch.randn(1, 12)
    counted = {
        form: multiply_adds(rewritten(network, (*NEEDS, form))[0], z)
        for form in ("fold-gains", "upsample-convolution-four", "upsample-convolution-transposed")
    }
    blocks = 24 * 16 * 9 * 8 * 8  # 24 -> 16 maps, 3 x 3, at 8 x 8
    assert counted["fold-gains"] - counted["upsample-convolution-four"] == blocks * 5 // 9
    one = multiply_adds(rewritten(network, (*NEEDS, "upsample-convolution"))[0], z)
    assert one - counted["upsample-convolution-four"] == 4 * 4 * 24 * 16 * (25 - 16)


def test_wide_convolutions_multiply_a_quarter_and_four_ninths():
    """An upsampled one 9 of 36 a low pixel, without its differences' rim, and another 16 of 36."""
    up, layer = nn.Upsample(scale_factor=2.0, mode="nearest"), nn.Conv2d(256, 256, 3, padding=1)
    steps, x = nn.Sequential(up, layer, nn.LeakyReLU(0.2), layer), torch.randn(1, 256, 4, 4)
    made, applied = rewritten(steps, ("upsample-convolution-nine", "winograd"))
    assert applied == ("upsample-convolution-nine", "winograd")
    a_pixel = 256 * 256
    nine = a_pixel * (4 * 4 + 2 * 2 * 4 * 5 + 4 * 5 * 5)
    assert multiply_adds(made, x) == nine + a_pixel * 16 * 4 * 4
    assert multiply_adds(steps, x) == 2 * a_pixel * 9 * 8 * 8
    torch.testing.assert_close(made(x), steps(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changed", ["few maps", "odd sides", "unknown sides"])
def test_no_convolution_by_winograd_of_few_maps_or_perhaps_odd_sides(changed: str):
    layer = nn.Conv2d(256, 128 if changed == "few maps" else 256, 3, padding=1)
    before: dict[str, nn.Module] = {
        "few maps": nn.Upsample(scale_factor=2.0, mode="nearest"),
        "odd sides": nn.Upsample(scale_factor=3.0, mode="nearest"),
        "unknown sides": nn.LeakyReLU(0.2),
    }
    assert rewritten(nn.Sequential(before[changed], layer), ("winograd",))[1] == ()


def test_the_graphs_of_fewer_products_are_exact():
    import onnxruntime

    torch.manual_seed(0)
    up = nn.Upsample(scale_factor=2.0, mode="nearest")
    steps = nn.Sequential(up, nn.Conv2d(256, 256, 3, padding=1), nn.Conv2d(256, 256, 3, padding=1))
    network, _ = rewritten(steps, ["upsample-convolution-nine", "winograd"])
    x = torch.randn(2, 256, 3, 5)
    session = onnxruntime.InferenceSession(to_onnx(network, x, "x", "y", {0: "batch"}, 20, ""))
    (made,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(made), steps(x), rtol=1e-4, atol=1e-5)


def test_pointwise_before_upsampling_multiplies_a_quarter():
    steps = nn.Sequential(nn.Upsample(scale_factor=2.0, mode="nearest"), nn.Conv2d(6, 3, 1))
    x = torch.randn(1, 6, 4, 4)
    made, applied = rewritten(steps, ("pointwise-before-upsampling",))
    assert applied
    assert multiply_adds(made, x) * 4 == multiply_adds(steps, x)
    assert torch.equal(made(x), steps(x))


def test_an_old_branch_that_enlarges_before_its_rgb_layer_is_turned():
    """As peers write the fade: the head after the upsampling."""
    up = nn.Upsample(scale_factor=2.0, mode="nearest")
    fade = Fade([up, nn.Conv2d(6, 3, 1)], [up, nn.Conv2d(6, 3, 3, padding=1)], 0.3)
    made, _ = rewritten(nn.Sequential(fade), ("pointwise-before-upsampling",))
    x = torch.randn(2, 6, 4, 4)
    torch.testing.assert_close(made(x), fade(x))
    assert isinstance(made[0].old[0], nn.Conv2d)


def test_a_fade_in_progress_is_kept():
    fade = Fade([nn.Conv2d(6, 3, 1)], [nn.Conv2d(6, 3, 1)], 0.3)
    assert rewritten(nn.Sequential(fade), ("remove-alpha",))[1] == ()


# ----------------------------------------------------------------------------
# Kernels against slow references.


@pytest.mark.parametrize("factor", [2, 4])
def test_blocks_first_moves_the_same_values(factor: int):
    torch.manual_seed(0)
    shuffled = nn.Sequential(nn.Conv2d(3, 5 * factor**2, 1), nn.PReLU(), nn.PixelShuffle(factor))
    x = torch.randn(2, 3, 4, 6)
    expected = shuffled(x)
    assert apply_rule(shuffled, blocks_first)
    assert not any(isinstance(step, nn.PixelShuffle) for step in shuffled)
    assert torch.equal(shuffled(x), expected)


def test_the_graph_of_blocks_first_is_one_operation_and_exact():
    import onnxruntime

    torch.manual_seed(0)
    network, _ = rewritten(nn.Sequential(nn.Conv2d(3, 20, 1), nn.PixelShuffle(2)), ["shuffle-blocks-first"])
    x = torch.randn(2, 3, 4, 6)
    model = onnx.load_model_from_string(to_onnx(network, x, "x", "y", {0: "batch"}, 20, ""))
    assert [node.op_type for node in model.graph.node] == ["Conv", "DepthToSpace"]
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (made,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(made), network(x), rtol=1e-6, atol=1e-6)


def test_what_a_map_has_its_own_slope_for_is_not_reordered():
    steps = [nn.Conv2d(3, 8, 1), nn.PReLU(8), nn.PixelShuffle(2)]
    assert blocks_first(steps, 0) is None
    assert blocks_first([nn.Conv2d(8, 8, 1, groups=8), nn.PixelShuffle(2)], 0) is None


def test_four_kernels_by_hand():
    k = torch.arange(9.0).view(1, 1, 3, 3)
    first, _, _, last = four_kernels(k)
    assert first[0, 0].tolist() == [[0, 1 + 2], [3 + 6, 4 + 5 + 7 + 8]]
    assert last[0, 0].tolist() == [[0 + 1 + 3 + 4, 2 + 5], [6 + 7, 8]]


def test_four_by_four_is_the_box_of_the_kernel():
    k = torch.randn(2, 3, 3, 3, dtype=torch.float64)
    box = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    boxed = F.conv2d(k.flip(2, 3).view(6, 1, 3, 3), box, padding=1).view(2, 3, 4, 4)
    torch.testing.assert_close(four_by_four(k), boxed)


@pytest.mark.parametrize(("factor", "side"), [(2, 9), (2, 3), (2, 5), (3, 5), (4, 7)])
def test_unshuffled_kernels(factor: int, side: int):
    x = torch.randn(1, 2 * factor**2, 5, 6, dtype=torch.float64)
    weight = torch.randn(3, 2, side, side, dtype=torch.float64)
    expected = F.conv2d(F.pixel_shuffle(x, factor), weight, padding=side // 2)
    low = unshuffled(weight, factor)
    made = F.pixel_shuffle(F.conv2d(x, low, padding=low.shape[-1] // 2), factor)
    assert (made - expected).abs().max() <= 1e-12


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, padding=1, stride=2),
        nn.Conv2d(4, 4, 3, padding=0),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 8, 3, padding=1, groups=4),
        nn.Conv2d(4, 4, 5, padding=2),
    ],
)
def test_convolutions_of_other_kinds_are_left_alone(layer: nn.Module):
    up = nn.Upsample(scale_factor=2.0, mode="nearest")
    for steps in ([up, layer], [nn.Upsample(scale_factor=2.0, mode="bilinear"), nn.Conv2d(4, 4, 1)]):
        assert rewritten(nn.Sequential(*steps), tuple(REWRITES))[1] == ()
    shuffled = nn.Sequential(nn.PixelShuffle(2), nn.PReLU(4), nn.Conv2d(4, 2, 3, padding=1))
    assert rewritten(shuffled, tuple(REWRITES))[1] == ()  # a slope a map is not the same to every value


def test_sequences_of_other_networks_are_rewritten_too():
    """A module that is not known as a whole, as an importer brings it."""

    class Peer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            up = nn.Upsample(scale_factor=2.0, mode="nearest")
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), up, nn.Conv2d(4, 3, 3, padding=1))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) * 2

    network, x = Peer().eval(), torch.randn(2, 3, 6, 7)
    made, applied = rewritten(network)
    assert applied == ("upsample-convolution", "shuffle-blocks-first")
    torch.testing.assert_close(made(x), network(x))


def test_a_rule_applies_until_it_is_used_up():
    steps = nn.Sequential(*[nn.Upsample(scale_factor=2.0), nn.Conv2d(3, 3, 1)] * 2)
    assert apply_rule(steps, REWRITES_RULE)
    assert [type(s) for s in steps] == [nn.Conv2d, nn.Conv2d, nn.Upsample, nn.Upsample]


def REWRITES_RULE(steps: list[nn.Module], i: int) -> tuple[int, list[nn.Module]] | None:
    """A rule that sorts: convolutions first."""
    turned = i + 1 < len(steps) and isinstance(steps[i], nn.Upsample) and isinstance(steps[i + 1], nn.Conv2d)
    return (2, [steps[i + 1], steps[i]]) if turned else None


def test_convolution_keeps_values():
    weight, bias = torch.randn(4, 1, 3, 3), torch.randn(4)
    x = torch.randn(1, 4, 5, 5)
    assert torch.equal(convolution(weight, bias, 1, 4)(x), F.conv2d(x, weight, bias, padding=1, groups=4))


# ----------------------------------------------------------------------------
# Switching.


def test_chosen_are_in_order_and_switchable():
    usual = choose_rewrites("onnxruntime")
    assert list(usual) == [name for name in REWRITES if name in usual]
    assert "fold-gains" not in choose_rewrites("onnxruntime", without=["fold-gains"])
    assert "dense-first-layer" in choose_rewrites("openvino", also=["dense-first-layer"])
    assert "norm-behind-rgb" not in choose_rewrites("onnxruntime", precision="fp16")
    assert "balance-separable" in choose_rewrites("onnxruntime", precision="int8")
    assert "balance-separable" not in choose_rewrites(
        "onnxruntime", without=["balance-separable"], precision="int8"
    )
    assert "balance-separable" not in choose_rewrites("onnxruntime")
    transposed = "upsample-depthwise-transposed"
    assert transposed in choose_rewrites("openvino")
    assert transposed not in choose_rewrites("openvino", precision="int8")
    assert transposed in choose_rewrites("openvino", also=[transposed], precision="int8")
    for name in ("winograd", "upsample-convolution-nine"):
        assert name in choose_rewrites("openvino")
        assert name in choose_rewrites("openvino", precision="bf16")
        assert name not in choose_rewrites("openvino", precision="int8")
        assert name not in choose_rewrites("openvino", precision="fp16")


def test_no_transposed_depthwise_convolution_in_bf16_unless_asked_for():
    name = "upsample-depthwise-transposed"
    assert name in choose_rewrites("openvino")
    assert name not in choose_rewrites("openvino", precision="bf16")
    assert name in choose_rewrites("openvino", [name], precision="bf16")


def test_unknown_names_are_named():
    with pytest.raises(PgsrError, match="there is no rewrite 'fold'; there are remove-alpha, fold-gains"):
        choose_rewrites(without=["fold"])
    with pytest.raises(PgsrError, match="onnxruntime, openvino"):
        choose_rewrites("abacus")


def test_nothing_chosen_changes_nothing():
    network, x = network_of("vanilla"), inputs_of("vanilla").float()
    made, applied = rewritten(network, ())
    assert applied == ()
    torch.testing.assert_close(made(x), network(x))  # with the old branch at alpha 1
