"""Boxes of photographs as training images (paper 3, section 2), and photographs that are held out."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pgsr import draws
from pgsr.errors import PgsrError
from pgsr.trainer.data.cache import load_photographs
from pgsr.trainer.step import recipe as config
from pgsr.trainer.step.batches import LatentBatches, batches_for
from pgsr.trainer.step.parallel import ALONE
from pgsr.trainer.step.pixels import data_indices, middle_boxes, mirrored
from pgsr.trainer.step.schedule import build
from pictures import png, write_zip

CPU = torch.device("cpu")
START, COUNT = 24, 8
SMALL = ("schedule.batch=8", "generator.features=1", "discriminator.features=1")


def recipe(*settings: str) -> config.Recipe:
    """Photographs of 16, boxes of 8 reduced to 4, inputs of 1."""
    trained = ("schedule.resolution=4", "schedule.start_resolution=4")
    stored = ("data.width=0", "data.resolution=16", "data.box=8")
    critic = ("discriminator.kind=mlp", "discriminator.crop=4")
    return config.load("sr-gan", (*SMALL, *critic, *trained, *stored, *settings))


def batch_of(chosen: config.Recipe, source: Path):
    batches = batches_for(chosen, source, CPU, ALONE)
    return batches, batches.for_critic(build(chosen.schedule).at(START), START)


def slow_boxes(source: Path, count: int, mirror: bool = True) -> np.ndarray:
    """Each real image pixel by pixel: [N, 3, 4, 4]."""
    pixels = load_photographs(source, 16).pixels
    positions = range(START, START + COUNT)
    made = np.zeros((COUNT, 3, 4, 4))
    for k, (p, index) in enumerate(zip(positions, data_indices(0, positions, count), strict=True)):
        top, left = (int(u * 9) for u in draws.uniforms(0, "crop", p, 2))
        for y in range(4):
            for x in range(4):
                block = pixels[index, top + 2 * y : top + 2 * y + 2, left + 2 * x : left + 2 * x + 2]
                made[k, :, y, x] = block.astype(float).mean(axis=(0, 1)) / 127.5 - 1
        if mirror and mirrored(0, range(p, p + 1))[0]:
            made[k] = made[k, :, :, ::-1]
    return made


def test_boxes_are_reduced_twice(toy: Path):
    _, batch = batch_of(recipe(), toy)
    expected = slow_boxes(toy, 40)
    assert batch.paired
    np.testing.assert_allclose(batch.reals, expected, atol=1e-5)
    assert batch.inputs.shape == (COUNT, 3, 1, 1)
    np.testing.assert_allclose(batch.inputs[:, :, 0, 0], expected.mean(axis=(2, 3)), atol=1e-5)


def test_boxes_lie_everywhere():
    corners = {tuple(int(u * 9) for u in draws.uniforms(0, "crop", p, 2)) for p in range(2000)}
    assert {top for top, _ in corners} == {left for _, left in corners} == set(range(9))


def test_a_whole_photograph_is_a_box_of_its_size(toy: Path):
    chosen = recipe("data.resolution=0", "data.box=8", "data.mirror=false")  # 8 is a size of the archive
    _, batch = batch_of(chosen, toy)
    positions = range(START, START + COUNT)
    pixels = load_photographs(toy, 8).pixels[data_indices(0, positions, 40)]
    expected = pixels.reshape(COUNT, 4, 2, 4, 2, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2) / 127.5 - 1
    np.testing.assert_allclose(batch.reals, expected, atol=1e-5)


def test_the_generator_sees_what_the_critic_saw(toy: Path):
    batches, batch = batch_of(recipe(), toy)
    assert batches.generator_inputs(None, START, batch) is batch


def test_previews_are_of_the_middle(toy: Path):
    batches = batches_for(recipe(), toy, CPU, ALONE)
    pixels = load_photographs(toy, 16).pixels[:3, 4:12, 4:12].astype(float)
    expected = pixels.mean(axis=(1, 2)) / 127.5 - 1
    np.testing.assert_allclose(batches.preview(3)[:, :, 0, 0], expected, atol=1e-5)
    assert hasattr(batches, "pixels")
    assert middle_boxes(batches.pixels, 3, recipe()).shape == (3, 3, 4, 4)


def test_noise_to_face_takes_boxes_too(toy: Path):
    chosen = config.load("tiny", ("data.resolution=16", "data.box=16", "schedule.batch=8"))
    whole = config.load("tiny", ("schedule.batch=8",))
    stage = build(chosen.schedule).at(START)
    images = [LatentBatches(r, toy, CPU).reals(stage, range(START, START + 8)) for r in (chosen, whole)]
    torch.testing.assert_close(images[0], images[1])
    assert images[0].shape[-1] == stage.resolution


PAPER_3 = ("sr-gan", "sr-wgan", "sr-wgan-gp", "dcgan-64-gan", "dcgan-64-wgan-gp")


@pytest.mark.parametrize("name", PAPER_3)
def test_the_recipes_of_paper_3_take_its_boxes(name: str, tmp_path: Path, own_cache: Path):
    """Random boxes of 128 of photographs as large as aligned CelebA's, reduced to 64."""
    pictures = [(f"{i}.png", png((178, 218), i)) for i in range(3)]
    chosen = config.load(name, ("schedule.batch=4", "generator.features=1", "discriminator.features=1"))
    batches, batch = batch_of(chosen, write_zip(tmp_path / "celeba.zip", pictures))
    assert batches.pixels.side == 218
    assert batch.reals.shape == (4, 3, 64, 64)
    seen = batches.cuts(range(START, START + 2000))
    assert seen.side == 128
    assert {top for _, top, _ in seen.places} == set(range(218 - 128 + 1))
    assert {left for _, _, left in seen.places} == set(range(20, 20 + 178 - 128 + 1))


def test_boxes_of_photographs_higher_than_wide_lie_in_them(tmp_path: Path, own_cache: Path):
    """Photographs of 12 x 20 in squares of 20: every box as cut from the picture itself."""
    pictures = [(f"{i}.png", png((12, 20), i)) for i in range(3)]
    source = write_zip(tmp_path / "high.zip", pictures)
    chosen = recipe("data.resolution=20", "data.width=12", "data.mirror=false")
    _, batch = batch_of(chosen, source)
    positions = range(START, START + COUNT)
    for k, (p, index) in enumerate(zip(positions, data_indices(0, positions, 3), strict=True)):
        pixels = np.asarray(Image.open(io.BytesIO(pictures[index][1])).convert("RGB"), np.float64)
        u, v = draws.uniforms(0, "crop", p, 2)
        top, left = int(u * 13), int(v * 5)
        box = pixels[top : top + 8, left : left + 8].reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
        np.testing.assert_allclose(batch.reals[k], box.transpose(2, 0, 1) / 127.5 - 1, atol=1e-5)


@pytest.mark.parametrize("size", [(40, 30), (24, 40), (12, 20)])
def test_larger_photographs_give_their_middle(size: tuple[int, int], tmp_path: Path, own_cache: Path):
    """Reduced to 12 x 20 as Pillow does, with black beside it."""
    pictures = [(f"{i}.png", png(size, i)) for i in range(2)]
    pixels = load_photographs(write_zip(tmp_path / "large.zip", pictures), 20, "lanczos", 12).pixels
    picture = Image.open(io.BytesIO(pictures[0][1])).convert("RGB")
    scale = min(size[0] / 12, size[1] / 20)
    left, top = (size[0] - 12 * scale) / 2, (size[1] - 20 * scale) / 2
    box = (left, top, left + 12 * scale, top + 20 * scale)
    middle = picture.resize((12, 20), Image.Resampling.LANCZOS, box=box)
    np.testing.assert_array_equal(pixels[0, :, 4:16], np.asarray(middle))
    assert not pixels[0, :, :4].any()
    assert not pixels[0, :, 16:].any()


@pytest.mark.parametrize("settings", [("data.width=7",), ("data.width=16",), ("data.width=12", "data.box=0")])
def test_widths_that_do_not_fit_are_refused(settings: tuple[str, ...]):
    with pytest.raises(PgsrError, match=r"data\.width is"):
        recipe(*settings)


@pytest.mark.parametrize("prepared", [True, False])
def test_smaller_photographs_are_taken_whole(prepared: bool, toy: Path, tmp_path: Path, capsys):
    """An archive of pictures of 16 and 8, or a zip of some of 20, where boxes are of 24 x 24 of 32 x 32."""
    source = toy if prepared else write_zip(tmp_path / "s.zip", [(f"{i}.png", png(20, i)) for i in range(3)])
    side = 16 if prepared else 20
    wanted = recipe("data.resolution=32", "data.box=24", "data.mirror=false")
    batches, batch = batch_of(wanted, source)
    assert (
        f"has photographs smaller than 32 (data.resolution): whole ones at {side}x{side}"
        in capsys.readouterr().err
    )
    positions = range(START, START + COUNT)
    pixels = load_photographs(source, side).pixels[data_indices(0, positions, batches.count)]
    block = side // 4
    reduced = pixels.reshape(COUNT, 4, block, 4, block, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2) / 127.5 - 1
    np.testing.assert_allclose(batch.reals, reduced, atol=1e-5)


@pytest.mark.parametrize("sort", ["boxes", "latents"])
def test_the_last_photographs_are_held_out(toy: Path, sort: str):
    if sort == "boxes":
        batches, batch = batch_of(recipe("data.held_out=35"), toy)
        np.testing.assert_allclose(batch.reals, slow_boxes(toy, 5), atol=1e-5)
    else:
        batches = batches_for(config.load("tiny", ("data.held_out=35",)), toy, CPU, ALONE)
        assert hasattr(batches, "pixels")
        assert len(batches.pixels) == 5
    assert batches.count == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("data.box=6",), "data.box is 6, but must be a multiple of 4"),
        (("data.box=-4",), "data.box is -4, but must be at least 0"),
        (("data.held_out=-1",), "data.held_out is -1, but must be at least 0"),
        (("data.box=32",), r"data.box is 32, but photographs are 16 \(data.resolution\)"),
        (("generator.kind=mlp-sr",), "schedule.resolution is 4, but generator.input_size is 16"),
    ],
)
def test_wrong_settings_are_named(settings: tuple[str, ...], message: str):
    with pytest.raises(PgsrError, match=message):
        recipe(*settings)


def test_too_many_held_out_is_named(toy: Path):
    with pytest.raises(PgsrError, match=r"data.held_out is 39, but .* has only 40 pictures"):
        batches_for(recipe("data.held_out=39"), toy, CPU, ALONE)
