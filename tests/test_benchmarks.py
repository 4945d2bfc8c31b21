"""Benchmarks at tiny sizes: the plain reference, the clock, the report, and training in pieces."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import Result
from PIL import Image
from torch import nn

from pgsr.bundle import Bundle
from pgsr.errors import PgsrError
from pgsr.networks import GENERATORS, build
from pgsr.networks.pixels import to_pixels

pytest.importorskip("onnxruntime")

from pgsr.benchmarks.cli import main
from pgsr.benchmarks.gpu import train_shipped
from pgsr.benchmarks.harness import machine
from pgsr.benchmarks.harness.arithmetic import LAYERS, equation_3, traffic
from pgsr.benchmarks.harness.timing import Contender, Timing, measure
from pgsr.benchmarks.references import inference as plain
from pgsr.benchmarks.throughput import bench as throughput_bench
from pgsr.benchmarks.throughput import chains, systems
from pgsr.benchmarks.throughput import settings as throughput
from pgsr.benchmarks.throughput.bench import Bench, checked_difference
from pgsr.benchmarks.throughput.report import bandwidth_lines

TINY = systems.Widths(
    resolution=8, latent_size=16, feature_base=64, feature_max=12, scale=2, sr_blocks=1, sr_features=8
)
Command = Callable[..., Result]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_random_norms(network: nn.Module) -> nn.Module:
    """Batch norms whose statistics and scales matter, PReLUs of different slopes."""
    for i, module in enumerate(network.modules()):
        if isinstance(module, nn.BatchNorm2d):
            size = module.num_features
            module.running_mean = randn(size, seed=i)
            module.running_var = randn(size, seed=i + 1000).abs() + 0.3
            module.weight.data, module.bias.data = randn(size, seed=i + 2000), randn(size, seed=i + 3000)
        if isinstance(module, nn.PReLU):
            module.weight.data.fill_(0.01 * (i + 1))
    return network.eval()


# ----------------------------------------------------------------------------
# The plain reference draws what pgsr's networks draw.


def test_the_plain_generator_draws_the_same_images():
    widths = systems.Widths(resolution=16, latent_size=24, feature_base=128, feature_max=20)
    network = build(GENERATORS, widths.generator("vanilla"), seed=3)
    for i, (name, parameter) in enumerate(network.named_parameters()):
        if name.endswith("bias"):
            parameter.data = randn(*parameter.shape, seed=i)
    reference = plain.PlainGenerator(16, 24, 128, 20)
    reference.load_state_dict(plain.generator_weights(network.state_dict()))
    latents = randn(5, 24)
    with torch.no_grad():
        torch.testing.assert_close(reference(latents), network(latents), atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [2, 4])
def test_the_plain_upscaler_draws_the_same_images(scale):
    network = build(GENERATORS, {"kind": "srresnet", "scale": scale, "features": 8, "blocks": 3}, seed=4)
    with_random_norms(network)
    reference = plain.PlainUpscaler(scale, 8, 3)
    reference.load_state_dict(plain.upscaler_weights(network.state_dict()))
    images = randn(2, 3, 7, 5).clamp(-1, 1)
    with torch.no_grad():
        torch.testing.assert_close(reference.eval()(images), network(images), atol=1e-5, rtol=0)


def test_plain_modules_with_other_weights_draw_other_images():
    network = build(GENERATORS, TINY.generator("vanilla"), seed=0)
    reference = plain.PlainGenerator(8, 16, 64, 12)  # its own random weights
    with torch.no_grad():
        assert not torch.allclose(reference(randn(2, 16)), network(randn(2, 16)), atol=1e-2)


def test_plain_has_the_full_width_by_default():
    parameters = sum(p.numel() for p in plain.PlainGenerator().parameters())
    network = build(GENERATORS, systems.Widths().generator("vanilla"))
    unused = sum(p.numel() for rgb in network.get_submodule("to_rgb")[:-1] for p in rgb.parameters())  # type: ignore[index]
    assert parameters == sum(p.numel() for p in network.parameters()) - unused


def test_plain_pixels_are_those_of_the_package():
    images = randn(2, 3, 4, 4) * 1.5
    assert (plain.to_pixels(images) == to_pixels(images).numpy()).all()


def test_plain_files(tmp_path):
    generator, upscaler = plain.PlainGenerator(8, 16, 64, 12), plain.PlainUpscaler(2, 8, 1).eval()
    latents = randn(3, 16)
    assert plain.write_images(generator, upscaler, latents, 2, tmp_path) == 3
    with torch.no_grad():
        pixels = plain.to_pixels(upscaler(generator(latents)))
    for i, picture in enumerate(pixels):
        with Image.open(tmp_path / f"{i:06d}.png") as file:
            difference = np.abs(np.asarray(file).astype(int) - picture)
        assert difference.shape == (16, 16, 3)
        assert difference.max() <= 1


def test_plain_shares_no_layer_with_the_package():
    text = Path(plain.__file__).read_text()
    assert "from pgsr" not in text
    assert "import pgsr" not in text


# ----------------------------------------------------------------------------
# Timing, with a clock that only calls move.


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def call(self, name: str, seconds: list[float]) -> Callable[[], None]:
        """A call that takes each of `seconds` in turn; the first is the warm-up."""
        rest = iter(seconds)

        def run() -> None:
            self.calls.append(name)
            self.now += next(rest)

        return run


def test_contenders_take_turns_after_a_warm_up():
    clock, rounds = Clock(), []
    contenders = [Contender(n, 1, clock.call(n, [9, 1, 1, 1])) for n in "abc"]
    measure(contenders, 3, lambda: clock.now, rounds.append)
    assert "".join(clock.calls) == "abc" + "abc" * 3
    assert rounds == [1, 2, 3]


def test_median_and_extremes_without_the_warm_up():
    clock = Clock()
    slow = clock.call("a", [100, 4, 2, 8])
    timing = measure([Contender("a", 16, slow)], 3, lambda: clock.now)["a"]
    assert timing.seconds == (4, 2, 8)
    found = timing.as_dict()
    assert (found["seconds_median"], found["seconds_min"], found["seconds_max"]) == (4, 2, 8)
    assert found["images_per_second"] == timing.images_per_second == 4
    assert (found["images_per_second_min"], found["images_per_second_max"]) == (2, 8)


def test_ratios_are_taken_round_by_round():
    slow, fast = Timing(1, (2.0, 20.0, 4.0)), Timing(2, (2.0, 10.0, 1.0))
    assert fast.ratio_to(slow) == 4.0  # of 2, 4, 8; the ratio of medians would be 4 images in 4 s: 4
    assert Timing(1, (1.0, 3.0, 100.0)).ratio_to(Timing(1, (10.0, 2.0, 1.0))) == pytest.approx(2 / 3)
    assert slow.ratio_to(slow) == 1.0


@pytest.mark.parametrize(("names", "rounds"), [("", 1), ("a", 0), ("aa", 1)])
def test_nothing_to_measure(names, rounds):
    contenders = [Contender(name, 1, lambda: None) for name in names]
    with pytest.raises(PgsrError):
        measure(contenders, rounds)


# ----------------------------------------------------------------------------
# The machine.


def test_the_machine_is_described(monkeypatch):
    monkeypatch.setattr(machine, "peak_gflops", lambda threads: 50.0 * threads)
    found = machine.describe(threads=2)
    assert found.cpu
    assert found.cores >= 1
    assert found.memory_bytes > 2**28
    assert found.packages["torch"] == torch.__version__
    assert (found.threads, found.peak_gflops) == (2, 100.0)
    json.dumps(found.as_dict())


def test_the_peak_is_measured():
    assert 0.1 < machine.peak_gflops(threads=1, size=64, rounds=3) < 1e5


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_the_peak_of_few_bits_is_measured(precision: str):
    assert 0.1 < machine.low_peak_gflops(precision, threads=1, size=64, rounds=3) < 1e6


def test_what_a_processor_is_fast_in(monkeypatch):
    monkeypatch.setattr(machine, "peak_gflops", lambda threads: 50.0)
    found = machine.describe(1)
    with_vnni, with_amx = (
        dataclasses.replace(found, instruction_sets=sets)
        for sets in (("avx2", "avx512_vnni"), ("amx_bf16", "amx_int8"))
    )
    assert [with_vnni.is_fast_in(p) for p in ("bf16", "int8")] == [False, True]
    assert [with_amx.is_fast_in(p) for p in ("bf16", "int8")] == [True, True]


def test_instruction_sets_are_read():
    assert machine._instruction_sets("processor : 0\nflags\t\t: fpu avx2 amx_tile avx512fx\n") == (
        "avx2",
        "amx_tile",
    )
    assert machine._instruction_sets("") == ()


@pytest.mark.parametrize(
    ("most", "left"),
    [
        ("avx512_core_vnni", ("avx2", "avx512f", "avx512_vnni")),
        ("AVX2", ("avx2",)),
        ("SSE41", ()),
        ("DEFAULT", ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")),
    ],
)
def test_a_processor_is_what_onednn_may_use_of_it(most: str, left: tuple[str, ...], monkeypatch):
    """So that a report, and the choice of a precision, fit a smaller processor that is played."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", most)
    line = "flags : fpu sse4_1 avx2 avx512f avx512_vnni avx512_bf16 amx_bf16\n"
    assert machine._instruction_sets(line) == left
    monkeypatch.setattr(machine, "peak_gflops", lambda threads: 50.0)
    assert (f"held to {most.upper()}" in machine.describe(1).cpu) is (most != "DEFAULT")


# ----------------------------------------------------------------------------
# Equation 3 and the counted multiply-adds.


def test_equation_3_of_one_layer():
    saving = equation_3(nn.Conv2d(6, 10, 3, padding=1), torch.zeros(1, 6, 5, 5))
    assert saving.vanilla == 5 * 5 * 6 * 10 * 9
    assert saving.separable == pytest.approx(5 * 5 * 6 * (9 + 10))  # equation 2
    assert saving.ratio == pytest.approx(1 / 10 + 1 / 9)


def test_equation_3_leaves_pointwise_and_latent_layers():
    assert equation_3(nn.Conv2d(6, 10, 1), torch.zeros(1, 6, 5, 5)).ratio == 1
    first = equation_3(nn.ConvTranspose2d(6, 10, 4), torch.zeros(1, 6, 1, 1))
    assert (first.vanilla, first.ratio) == (6 * 10 * 16, 1)


def test_traffic_of_a_graph_is_that_counted_by_hand():
    """Two layers in half precision: inputs, outputs and weights, of 2 bytes each."""
    helper, half = onnx.helper, onnx.TensorProto.FLOAT16
    weights = {
        "first.w": np.zeros((8, 3, 3, 3), np.float16),
        "second.w": np.zeros((8, 1, 3, 3), np.float16),
    }
    nodes = [
        helper.make_node("Conv", ["x", "first.w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second.w"], ["y"], group=8, strides=[2, 2], pads=[1, 1, 1, 1]),
    ]
    ports = [
        [helper.make_tensor_value_info(name, half, ["n", maps, side, side])]
        for name, maps, side in (("x", 3, 16), ("y", 8, 8))
    ]
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()]
    model = helper.make_model(helper.make_graph(nodes, "g", *ports, tensors), ir_version=10)
    first = 3 * 16**2 + 8 * 16**2 + 8 * 3 * 9 / 4  # the weights are shared by a batch of 4
    second = 8 * 16**2 + 8 * 8**2 + 8 * 9 / 4
    assert traffic(model.SerializeToString(), 4) == 2 * (first + second)


def test_traffic_of_what_is_exported(found_bundle: Bundle):
    graph = found_bundle.graph("chain")
    data = found_bundle.path(graph).read_bytes()
    one, eight = traffic(data, 1), traffic(data, 8)
    held = sum(t.nbytes for t in weights_of(data))
    assert one - eight == pytest.approx(held * 7 / 8)
    assert one > held


def weights_of(data: bytes) -> list[np.ndarray]:
    """Of the layers of a graph."""
    graph = onnx.load_from_string(data).graph
    names = {node.input[1] for node in graph.node if node.op_type in LAYERS}
    return [onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name in names]


@pytest.fixture(scope="module")
def found_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    widths = systems.Widths(8, 16, 64, 12, 2, 1, 8)
    return systems.new_system(widths, "separable", tmp_path_factory.mktemp("system")).bundle


def by_hand(convolution: str) -> dict[str, int]:
    """Multiply-adds of TINY: maps are 12 at 4 x 4 and 8 at 8 x 8, 8 in the upscaler from 8 to 16."""

    def conv(inputs: int, outputs: int, kernel: int, side: int) -> int:
        if convolution == "vanilla":
            return inputs * outputs * kernel**2 * side**2
        return inputs * (kernel**2 + outputs) * side**2

    first = 16 * 12 * 16  # the latent's; a separable one's spreading is not counted
    generator = first + conv(12, 12, 3, 4) + conv(12, 8, 3, 8) + conv(8, 8, 3, 8) + 8 * 3 * 8**2
    upscaler = conv(3, 8, 9, 8) + 3 * conv(8, 8, 3, 8) + conv(8, 32, 3, 8) + conv(8, 3, 9, 16)
    return {"generator": generator, "upscaler": upscaler, "chain": generator + upscaler}


# ----------------------------------------------------------------------------
# The command, once, at tiny sizes.

ARGUMENTS = (
    "--batch 2 --large-batch 2 --images 3 --shipped-images 5 --rounds 2 --threads 1 --resolution 8 "
    "--precision fp32 --precision int8 --backend onnxruntime --latent-size 16 --feature-base 64 "
    "--feature-max 12 --scale 2 --sr-blocks 1 --sr-features 8"
)


@pytest.fixture(scope="module")
def report(command: Command, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """The command's result with --json, and its report's folder; a drawn bundle stands for the model."""
    import bundles as tiny

    folder = tmp_path_factory.mktemp("bench")
    model = tiny.write_bundle(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "peak_gflops", lambda threads: 2.0)
        patch.setattr(throughput_bench, "low_peak_gflops", lambda precision, threads: 4.0)
        result = command(
            main,
            "throughput",
            *ARGUMENTS.split(),
            *("--json", "--model", model, "--out", folder / "report"),
        )
    assert result.exit_code == 0, result.stderr
    return result, folder / "report"


@pytest.fixture(scope="module")
def found(report: tuple[Result, Path]) -> dict[str, Any]:
    return json.loads(report[0].stdout)


def test_the_json_is_also_the_file(report, found):
    assert json.loads((report[1] / "throughput.json").read_text()) == found
    assert found["benchmark"] == "throughput"
    assert found["settings"]["resolution"] == 8
    assert found["settings"]["model"] == "model"
    assert "/" not in json.dumps(found["settings"])


def test_all_rows_are_there(found):
    rows = [(row["stage"], row["system"], row["way"]) for row in found["rows"]]
    ours, eight = "onnxruntime fp32", "onnxruntime int8"
    ways = [(system, way) for system in ("vanilla", "separable") for way in (ours, eight)]
    ways = [("vanilla", "naive"), *ways[:2], ("separable", "eager"), *ways[2:]]
    stages = [(stage, *way) for stage in ("generator", "upscaler") for way in ways]
    chains = [(stage, *way) for way in ways for stage in ("network", "end to end")]
    shipped = [("network", "tiny", ours), ("end to end", "tiny", ours)]
    assert rows[: len(stages)] == stages
    assert rows[len(stages) : len(stages) + len(chains)] == chains
    rest = rows[len(stages) + len(chains) :]
    assert rest[:2] == shipped
    assert {stage for stage, system, way in rest[2:] if (system, way) == ("tiny", ours)} == {
        *throughput.OUTPUTS
    }
    assert ("encode", "Pillow's defaults", "png") in rest
    assert ("encode", "zlib", "png") in rest
    assert rest[-1][0] == "write"


@pytest.mark.parametrize("convolution", ["vanilla", "separable"])
def test_multiply_adds_are_those_counted_by_hand(found, convolution):
    counted = {r["stage"]: r["multiply_adds"] for r in found["rows"] if r["system"] == convolution}
    expected = by_hand(convolution)
    chain = expected.pop("chain")
    assert counted == {**expected, "network": chain, "end to end": chain}


def test_the_saving_is_that_of_equation_3(found):
    vanilla, separable = by_hand("vanilla"), by_hand("separable")
    for stage, ratio in found["equation_3"].items():
        assert ratio["counted"] == pytest.approx(separable[stage] / vanilla[stage])
        assert ratio["predicted"] == pytest.approx(ratio["counted"], rel=0.01)
    assert set(found["equation_3"]) == {"generator", "upscaler", "chain"}


def test_speeds_follow_from_the_seconds(found):
    for row in found["rows"]:
        assert len(row["seconds"]) == found["settings"]["rounds"] == 2
        assert row["seconds_min"] <= row["seconds_median"] <= row["seconds_max"]
        speed = row["images_per_call"] / row["seconds_median"]
        assert row["images_per_second"] == pytest.approx(speed)
        assert row["gflops"] == pytest.approx(2 * row["graph_multiply_adds"] * speed / 1e9)
        if row["way"] in ("naive", "eager"):
            assert row["graph_multiply_adds"] == row["multiply_adds"]
        if row["multiply_adds"]:
            peak = 4.0 if row["way"].endswith("int8") else 2.0
            assert row["share_of_peak"] == pytest.approx(row["gflops"] / peak)
        else:
            assert row["stage"] in ("encode", "write", *throughput.OUTPUTS)
            assert row["share_of_peak"] is None


def mean_ratio(row, other):
    """The median of two rounds' ratios."""
    more = row["images_per_call"] / other["images_per_call"]
    return sum(more * b / a for a, b in zip(row["seconds"], other["seconds"], strict=True)) / 2


def test_ratios_follow_from_the_rounds(found):
    rows = {(row["stage"], row["system"], row["way"]): row for row in found["rows"]}
    for (stage, system, way), row in rows.items():
        naive = rows.get((stage, "vanilla", "naive"))
        if naive is None:
            assert row["ratio_to_naive"] is None
        else:
            assert row["ratio_to_naive"] == pytest.approx(mean_ratio(row, naive))
        if stage == "end to end":
            network = rows["network", system, way]
            assert row["share_of_network"] == pytest.approx(mean_ratio(row, network))
        elif stage in throughput.OUTPUTS:  # to the network in the rounds of these
            assert 0.0 < row["share_of_network"] < 10.0
        else:
            assert row["share_of_network"] is None


def test_images_of_a_call(found):
    def calls(*systems):
        rows = [row for row in found["rows"] if row["way"] in systems or row["system"] in systems]
        return {row["stage"]: row["images_per_call"] for row in rows}

    stages = {"generator": 2, "upscaler": 2}
    assert calls("naive") == calls("eager") == {**stages, "network": 2, "end to end": 2}
    assert calls("vanilla") == calls("separable") == {**stages, "network": 3, "end to end": 3}
    assert calls("tiny") == dict.fromkeys(("network", "end to end", *throughput.OUTPUTS), 5)
    assert calls("zlib", "whole or not") == {"encode": 16, "write": 16}


def test_no_outputs_of_a_model_that_nothing_could_run(tmp_path: Path):
    import bundles as tiny

    settings = throughput.Settings(model=tiny.write_bundle(tmp_path / "model"), threads=1)
    described = machine.Machine(**{**vars(machine.describe(1)), "peak_gflops": 2.0})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(throughput_bench, "low_peak_gflops", lambda precision, threads: 4.0)
        bench = Bench(settings, described, tmp_path / "scratch", print)
        assert chains.shipped_outputs(bench, []) == []


def test_the_picture_opens(report):
    with Image.open(report[1] / "throughput.png") as picture:
        picture.load()
        assert picture.width > 500


def test_page_and_table_have_all_rows(report, found):
    from pgsr.benchmarks.throughput.report import HEADINGS, table, text

    page = (report[1] / "throughput.md").read_text()
    lines = table(found["rows"]).splitlines()
    assert len(lines) == 1 + len(found["rows"])
    assert all(heading in lines[0] for heading in HEADINGS)
    for row, line in zip(found["rows"], lines[1:], strict=True):
        assert line.startswith(row["stage"])
        assert f"| {row['stage']} | {row['system']} | {row['way']} |" in page
    assert all(note in page for note in found["notes"])
    assert "by equation 3" in text(found)


def test_int8_is_near_enough_and_what_is_missing_is_said(found):
    notes = " ".join(found["notes"])
    for system in ("vanilla", "separable"):
        for stage in ("generator", "upscaler", "chain"):
            assert re.search(rf"onnxruntime int8, {system} {stage}: \d+\.\d dB", notes)
    assert "onnxruntime int8 is not measured" in notes  # of the tiny model, which has none


def test_what_a_gpus_memory_moves_is_said(found):
    rows = [{**row, "share_of_bandwidth": 0.63 if i == 1 else None} for i, row in enumerate(found["rows"])]
    (line,) = bandwidth_lines({**found, "rows": rows, "bandwidth_gbs": 4321.0})
    assert line.startswith("memory: 4321 GB/s copied")
    assert line.endswith("63% of it (vanilla generator, onnxruntime fp32)")
    assert bandwidth_lines(found) == []


@pytest.mark.parametrize(
    ("device", "said"),
    [("auto", "name cpu or cuda"), ("cuda", "sees no CUDA device"), ("tpu", "is not auto")],
)
def test_devices_that_cannot_be_measured(command, device: str, said: str):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    result = command(main, "throughput", "--device", device)
    assert result.exit_code == 1
    assert said in result.stderr


def test_progress_is_on_stderr(report):
    assert "generator: round 2 of 2" in report[0].stderr
    assert report[0].stdout.count("\n") == 1  # the object alone


def test_a_graph_that_computes_something_else_is_an_error():
    system = systems.System("vanilla", nn.Identity(), nn.Identity(), None, {})  # type: ignore[arg-type]
    images = randn(2, 3, 4, 4).numpy()
    assert checked_difference("generator", system, images, images) == 0
    with pytest.raises(PgsrError, match="vanilla generator graph"):
        checked_difference("generator", system, images, images + 0.1)
    with pytest.raises(PgsrError):
        checked_difference("generator", system, images, images[:1])
    with pytest.raises(PgsrError):
        checked_difference("generator", system, images, images * float("nan"))


@pytest.mark.parametrize(
    "wrong",
    ["--batch 1", "--large-batch 0", "--images 0", "--rounds 0", "--threads -1", "--precision int4"],
)
def test_wrong_settings_are_named(command, wrong):
    result = command(main, "throughput", *wrong.split())
    assert result.exit_code == 1
    assert wrong.split()[0] in result.stderr


def test_help_needs_neither_torch_nor_matplotlib():
    heavy = ("torch", "numpy", "onnx", "onnxruntime", "matplotlib")
    program = (
        "import sys\nfrom pgsr.benchmarks.cli import main\n"
        "main(['throughput', '--help'], standalone_mode=False)\n"
        f"print(sorted(m for m in {heavy} if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


# ----------------------------------------------------------------------------
# Training in pieces.

QUICK = "--recipe tiny --set schedule.batch=4 --set run.log_images=8 --set run.sample_grid=4"


def piece(command: Command, data: Path, out: Path, *arguments: Any) -> dict[str, Any]:
    result = command(
        train_shipped.main,
        *QUICK.split(),
        *("--data", data, "--out", out, "--minutes", 0.03, "--device", "cpu", "--json"),
        *arguments,
    )
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def checkpoint_in(folder: Path) -> Path:
    (found,) = folder.glob("*.safetensors")
    return found


@pytest.fixture(scope="module")
def pieces(command: Command, toy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two pieces, the second from where the first stopped."""
    pytest.importorskip("tensorboard")
    folder = tmp_path_factory.mktemp("pieces")
    first, second = folder / "first", folder / "second"
    piece(command, toy, first)
    piece(command, toy, second, "--checkpoint", checkpoint_in(first))
    return first, second


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def test_a_piece_leaves_four_flat_files(pieces):
    for folder in pieces:
        summary = summary_of(folder)
        names = {path.name for path in folder.iterdir()}
        assert names == {*summary["files"], "summary.json"}
        assert sorted(Path(n).suffix for n in names) == [".json", ".jsonl", ".png", ".safetensors"]
        assert all(path.is_file() and path.stat().st_size < 16 * 2**20 for path in folder.iterdir())
        assert f"{summary['images_shown']:09d}.safetensors" in names
        with Image.open(folder / f"{summary['images_shown']:09d}.png") as sheet:
            sheet.load()


def test_a_piece_says_what_it_did(pieces):
    summary = summary_of(pieces[0])
    assert summary["images_shown_before"] == 0
    assert summary["images_shown"] > 0
    assert summary["device"] == "cpu"
    assert summary["batch"] == 4
    assert summary["peak_memory_bytes"] > 2**20
    made = summary["images_shown"] - summary["images_shown_before"]
    assert summary["images_per_second"] == pytest.approx(made / summary["seconds"])
    assert not summary["finished"]


def test_the_second_piece_continues_the_first(pieces):
    from pgsr.checkpoint import load

    first, second = (load(checkpoint_in(folder)) for folder in pieces)
    assert summary_of(pieces[1])["images_shown_before"] == first.progress["images_shown"]
    assert second.progress["images_shown"] > first.progress["images_shown"]
    name = "generator.blocks.0.conv.pointwise.weight"
    assert not torch.equal(first.tensors[name], second.tensors[name])
    moved = (first.tensors[name] - second.tensors[name]).abs().mean()
    assert moved < 0.5 * first.tensors[name].abs().mean()  # the same network, further on
    logged = [json.loads(line) for line in (pieces[1] / "metrics.jsonl").read_text().splitlines()]
    assert all(record["images_shown"] > first.progress["images_shown"] for record in logged)


def test_a_piece_accepts_data_of_another_fingerprint(pieces, command, tmp_path):
    from pgsr.trainer.data.cli import Settings, prepare

    other = tmp_path / "other.zip"
    prepare([], other, Settings((16,), "lanczos", "png", 95), drawn=12)
    checkpoint = checkpoint_in(pieces[0])
    summary = piece(command, other, tmp_path / "out", "--checkpoint", checkpoint)
    assert summary["images_shown_before"] == int(checkpoint.stem)


def test_a_piece_without_a_checkpoint_there_is_an_error(command, toy, tmp_path):
    arguments = ("--data", toy, "--out", tmp_path / "out", "--checkpoint", tmp_path / "absent.safetensors")
    result = command(train_shipped.main, *QUICK.split(), *arguments)
    assert result.exit_code == 1
    assert "no checkpoint" in result.stderr


def test_a_piece_too_short_for_a_step_is_an_error(command, toy, tmp_path):
    pytest.importorskip("tensorboard")
    result = command(
        train_shipped.main, *QUICK.split(), "--data", toy, "--out", tmp_path / "out", "--minutes", 0
    )
    assert result.exit_code == 1
    assert "minutes" in result.stderr
