"""Sliced Wasserstein distance: against loops over pixels, against closed forms, and as pictures get worse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from pgsr import draws
from pgsr.errors import PgsrError
from pgsr.trainer.data import procedural
from pgsr.trainer.metrics import swd
from pgsr.trainer.metrics.swd import Descriptors, Samples, distance, distance_between, sliced_wasserstein


def noise_images(count: int, resolution: int, seed: int) -> np.ndarray:
    """Bytes with detail at every level: random 4x4 layouts, magnified, and random pixels over them."""
    rng = np.random.default_rng(seed)
    layout = rng.integers(40, 200, (count, 4, 4, 3)).repeat(resolution // 4, 1).repeat(resolution // 4, 2)
    return (layout + rng.integers(-40, 40, (count, resolution, resolution, 3))).astype(np.uint8)


def faces(start: int, count: int, size: int = 32) -> np.ndarray:
    return np.stack([np.asarray(procedural.draw(i, size)) for i in range(start, start + count)])


COUNT = 64


@pytest.fixture(scope="module")
def reals() -> np.ndarray:
    return faces(0, COUNT)


@pytest.fixture(scope="module")
def others() -> np.ndarray:
    return faces(COUNT, COUNT)


def average(reals: np.ndarray, fakes: np.ndarray, seed: int = 0) -> float:
    return distance_between([reals], [fakes], reals.shape[1], seed).average


# ----------------------------------------------------------------------------
# Against paper 2, section 5, and its authors' conventions, pixel by pixel in float64

BINOMIAL = [1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16]


def inside(i: int, length: int) -> int:
    """Mirrored about the first and the last pixel, which are not repeated."""
    i = abs(i)
    return i if i < length else 2 * (length - 1) - i


def slow_smooth(image: np.ndarray) -> np.ndarray:
    """[side, side, ...]."""
    side = len(image)
    out = np.zeros_like(image)
    for y in range(side):
        for x in range(side):
            for j, v in enumerate(BINOMIAL):
                for i, u in enumerate(BINOMIAL):
                    out[y, x] += v * u * image[inside(y + j - 2, side), inside(x + i - 2, side)]
    return out


def slow_up(image: np.ndarray) -> np.ndarray:
    spread = np.zeros((2 * len(image), 2 * len(image), *image.shape[2:]))
    spread[::2, ::2] = image
    return slow_smooth(spread) * 4


def slow_pyramid(image: np.ndarray) -> dict[int, np.ndarray]:
    levels = {}
    while len(image) > 16:
        smaller = slow_smooth(image)[::2, ::2]
        levels[len(image)] = image - slow_up(smaller)
        image = smaller
    return {**levels, 16: image}


def slow_descriptors(images: np.ndarray, seed: int) -> np.ndarray:
    """Of one level's images [N, side, side, 3], normalised: [N * 128, 147]."""
    level = images.shape[1]
    finer = int(math.log2(level)) - 4  # 0 at 16
    found = []
    for index, image in enumerate(images):
        u = draws.uniforms(seed, "swd", index, 1792)[256 * finer : 256 * (finer + 1)]
        for p in range(128):
            top, left = int(u[p] * (level - 6)), int(u[128 + p] * (level - 6))
            found.append([image[top : top + 7, left : left + 7, c] for c in range(3)])
    array = np.array(found)
    for c in range(3):
        array[:, c] = (array[:, c] - array[:, c].mean()) / array[:, c].std()
    return array.reshape(-1, 147)


def slow_distance(a: np.ndarray, b: np.ndarray, level: int, seed: int) -> float:
    total = 0.0
    for k in range(512):
        row = draws.normals(seed, "swd", [2**63 + 512 * level + k], 147)[0].astype(np.float64)
        row /= math.sqrt(sum(row**2))
        total += np.mean(np.abs(np.sort(a @ row) - np.sort(b @ row)))
    return 1000 * total / 512


def test_it_is_the_slow_version():
    sets = [noise_images(2, 64, seed) for seed in (1, 2)]
    result = distance_between(sets[:1], sets[1:], 64, seed=5)
    pyramid = slow_pyramid(np.concatenate(sets).astype(np.float64).transpose(1, 2, 0, 3))
    slow = {}
    for level in (64, 32, 16):
        images = pyramid[level].transpose(2, 0, 1, 3)
        a, b = slow_descriptors(images[:2], seed=5), slow_descriptors(images[2:], seed=5)
        slow[level] = slow_distance(a, b, level, seed=5)
    apart = max(abs(result.levels[level] / slow[level] - 1) for level in slow)
    print(f"SWD at 64: {apart:.1e} from the slow version, relative")
    assert list(result.levels) == [64, 32, 16]
    assert result.levels == pytest.approx(slow, rel=1e-5)
    assert result.average == pytest.approx(sum(slow.values()) / 3, rel=1e-5)


def test_the_pyramid_adds_up_to_the_image():
    images = torch.from_numpy(noise_images(2, 128, seed=3)).permute(0, 3, 1, 2).float()
    *finer, whole = swd.laplacian_pyramid(images, 4)
    assert whole.shape == (2, 3, 16, 16)
    for level in reversed(finer):
        whole = swd.pyramid_up(whole) + level
    torch.testing.assert_close(whole, images, rtol=0, atol=1e-4)


def test_a_flat_image_is_flat_in_the_lowest_level_and_nothing_elsewhere():
    *finer, lowest = swd.laplacian_pyramid(torch.full((1, 3, 64, 64), 77.0), 3)
    assert all((level == 0).all() for level in finer)
    assert (lowest == 77).all()


@pytest.mark.parametrize("level", [16, 64])
def test_patches_lie_anywhere_inside_and_all_places_occur(level: int):
    places = swd.positions(0, range(200), [64, 32, 16])[level]
    assert places.shape == (200, 2, 128)
    assert sorted(set(places.flatten().tolist())) == list(range(level - 6))


def test_places_do_not_depend_on_finer_levels():
    short, long = (swd.positions(0, [4], swd.pyramid_levels(r)) for r in (32, 256))
    assert all(torch.equal(short[level], long[level]) for level in (16, 32))


def test_directions_are_unit_vectors_and_every_level_has_its_own():
    along = {level: swd.random_directions(0, level) for level in (16, 32)}
    assert along[16].shape == (512, 147)
    torch.testing.assert_close(along[16].norm(dim=1), torch.ones(512, dtype=torch.float64))
    cosines = along[16] @ torch.cat([along[16], along[32]]).T - torch.eye(512, 1024, dtype=torch.float64)
    assert cosines.abs().max() < 6 / math.sqrt(147)


# ----------------------------------------------------------------------------
# The distance alone, where it has a closed form

SIZE = 20
ALONG = torch.nn.functional.normalize(swd.random_directions(1, 16)[:, :SIZE])  # [512, 20]


def samples(points: Tensor, blocks: int = 1) -> Samples:
    zero, one = torch.zeros(SIZE, dtype=torch.float64), torch.ones(SIZE, dtype=torch.float64)
    return Samples(list(points.float().chunk(blocks)), zero, one)


def gaussian(count: int, seed: int) -> Tensor:
    return torch.randn(count, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_of_a_set_and_itself_shifted_is_the_mean_shift_along_the_directions():
    points, shift = gaussian(500, seed=1), torch.linspace(-1, 2, SIZE, dtype=torch.float64)
    expected = float((ALONG @ shift).abs().mean())
    assert sliced_wasserstein(samples(points), samples(points + shift), ALONG) == pytest.approx(
        expected, 1e-5
    )


def test_of_two_gaussians_of_one_width():
    """W1 of N(0, 1) and N(m, 1) is |m|."""
    shift = torch.linspace(-1, 2, SIZE, dtype=torch.float64)
    a, b = samples(gaussian(20_000, seed=1)), samples(gaussian(20_000, seed=2) + shift)
    assert sliced_wasserstein(a, b, ALONG) == pytest.approx(float((ALONG @ shift).abs().mean()), rel=0.02)


@pytest.mark.parametrize("width", [0.25, 1.5, 4.0])
def test_of_two_gaussians_of_one_centre(width: float):
    """W1 of N(0, 1) and N(0, s**2) is |s - 1| times the mean of |N(0, 1)|."""
    a, b = samples(gaussian(20_000, seed=1)), samples(gaussian(20_000, seed=2) * width)
    expected = abs(width - 1) * math.sqrt(2 / math.pi)
    assert sliced_wasserstein(a, b, ALONG) == pytest.approx(expected, rel=0.02)


def test_normalising_in_the_projection_is_normalising_the_points():
    points, other = gaussian(300, seed=1), gaussian(300, seed=2)
    mean, width = torch.linspace(-90, 120, SIZE, dtype=torch.float64), torch.linspace(1, 60, SIZE).double()
    unnormalised = Samples([(points * width + mean).float()], mean, width)
    expected = sliced_wasserstein(samples(points), samples(other), ALONG)
    assert sliced_wasserstein(unnormalised, samples(other), ALONG) == pytest.approx(expected, rel=1e-5)


def test_neither_blocks_nor_chunks_of_directions_change_it(monkeypatch):
    a, b = gaussian(300, seed=1), gaussian(300, seed=2)
    expected = sliced_wasserstein(samples(a), samples(b), ALONG)
    assert sliced_wasserstein(samples(a, 7), samples(b, 3), ALONG) == pytest.approx(expected, rel=1e-6)
    monkeypatch.setattr(swd, "CHUNK_BYTES", 4 * 300 * 5)
    assert sliced_wasserstein(samples(a), samples(b), ALONG) == pytest.approx(expected, rel=1e-6)


# ----------------------------------------------------------------------------
# What a metric owes


def test_equal_sets_are_at_distance_zero(reals):
    assert set(distance_between([reals], [reals.copy()], 32, 0).levels.values()) == {0.0}


def test_it_is_symmetric(reals, others):
    assert distance_between([reals], [others], 32, 0) == distance_between([others], [reals], 32, 0)


def test_sets_of_their_own_seeds_are_sampled_apart(reals):
    """As the paper does: a set and itself are then as far apart as chance makes them."""
    a, b = Descriptors(32, seed=0), Descriptors(32, seed=1)
    a.add(reals)
    b.add(reals)
    assert 0 < distance(a, b).average < 40


@pytest.mark.parametrize("seed", [1, 2**64 - 1])
def test_another_seed_gives_nearly_the_same(reals, others, seed: int):
    first, second = average(reals, others), average(reals, others, seed)
    assert first != second == pytest.approx(first, rel=0.15)


def test_larger_samples_of_the_same_pictures_are_nearer(reals, others):
    assert average(reals, others) < average(reals[:20], others[:20]) < average(reals[:4], others[:4])


@pytest.mark.parametrize("fakes", [lambda x: x // 2 + 30, lambda x: x // 2 * np.array([1, 2, 1], np.uint8)])
def test_brightness_contrast_and_tint_do_not_count(reals, fakes):
    even = reals // 2 * 2
    assert average(even, fakes(even)) < 0.01


def blurred(image: np.ndarray, radius: float) -> np.ndarray:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def test_it_grows_with_blur(reals, others):
    sets = [others, *(np.stack([blurred(x, r) for x in others]) for r in (0.5, 1, 4))]
    found = [average(reals, fakes) for fakes in sets]
    assert found == sorted(found)
    assert found[-1] > 5 * found[0]


def test_it_grows_with_noise(reals, others):
    deviation = np.random.default_rng(0).normal(size=others.shape)
    noisy = [np.clip(others + s * deviation, 0, 255).astype(np.uint8) for s in (0, 10, 20, 40)]
    found = [distance_between([reals], [fakes], 32, 0).levels for fakes in noisy]
    averages = [sum(levels.values()) for levels in found]
    assert averages == sorted(averages)
    assert found[1][32] > 2 * found[0][32]
    assert found[1][16] < 1.5 * found[0][16]  # noise is detail: the layout is still right


def test_it_grows_as_modes_are_lost(reals, others):
    found = [average(reals, others[np.arange(COUNT) % modes]) for modes in (COUNT, 20, 6, 2)]
    assert found == sorted(found)
    assert found[-1] > 3 * found[0]


def test_pictures_of_one_colour_are_far_away_but_no_error(reals):
    flat = np.full_like(reals, 77)
    levels = distance_between([reals], [flat], 32, 0).levels
    assert all(300 < value < 1000 for value in levels.values())


# ----------------------------------------------------------------------------
# Streaming


@pytest.mark.parametrize("split", [[1] * 40, [40], [7, 16, 0, 17], [15, 1, 1, 23]])
def test_batches_do_not_matter(reals, others, split: list[int]):
    whole = distance_between([reals[:40]], [others[:40]], 32, 3)
    parts = np.split(reals[:40], np.cumsum(split)[:-1])
    assert distance_between(parts, [others[:40]], 32, 3) == whole


def test_places_depend_on_the_order_of_the_images_alone(reals):
    """The same pictures in another order have other patches, and still nearly the same distribution."""
    assert 0 < average(reals, reals[::-1].copy()) < 40


def test_tensors_and_read_only_arrays_serve(reals, others):
    frozen = reals[:20].copy()
    frozen.flags.writeable = False
    expected = distance_between([reals[:20]], [others[:20]], 32, 0)
    assert distance_between([frozen], [torch.from_numpy(others[:20])], 32, 0) == expected


def test_generators_of_batches_serve(reals, others):
    expected = distance_between([reals[:20]], [others[:20]], 32, 0)
    assert distance_between((x[None] for x in reals[:20]), iter([others[:20]]), 32, 0) == expected


def test_images_are_not_changed(reals, others):
    before = reals[:20].copy()
    distance_between([reals[:20]], [others[:20]], 32, 0)
    assert (reals[:20] == before).all()


def test_adding_may_go_on_after_a_distance(reals, others):
    a, b = Descriptors(32, 0), Descriptors(32, 0)
    for part in (slice(20), slice(20, 50)):
        a.add(reals[part])
        b.add(others[part])
        last = distance(a, b)
    assert last == distance_between([reals[:50]], [others[:50]], 32, 0)


def test_memory_holds_descriptors_and_nothing_else(reals):
    descriptors = Descriptors(32, 0)
    descriptors.add(reals[:64])
    held = sum(b.untyped_storage().nbytes() for level in (32, 16) for b in descriptors.samples(level).blocks)
    assert held == 64 * 2 * 128 * 588


@pytest.mark.gpu
def test_a_gpu_gives_the_same(reals, others):
    expected = distance_between([reals], [others], 32, 0).levels
    assert distance_between([reals], [others], 32, 0, "cuda").levels == pytest.approx(expected, rel=1e-4)


# ----------------------------------------------------------------------------
# Errors


def raises(message: str):
    return pytest.raises(PgsrError, match=f"^{message}$")


@pytest.mark.parametrize("resolution", [-64, 0, 1, 8, 15, 48, 100])
def test_a_resolution_must_be_a_power_of_two_from_16(resolution: int):
    with raises(f"SWD needs a resolution that is a power of two from 16, not {resolution}"):
        Descriptors(resolution, 0)


def test_the_least_resolution_has_one_level():
    images = noise_images(2, 16, seed=1)
    assert list(distance_between([images], [images], 16, 0).levels) == [16]


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (np.zeros((2, 32, 32, 3), np.float32), r"float32 \[2, 32, 32, 3\]"),
        (np.zeros((2, 32, 32, 3), np.int8), r"int8 \[2, 32, 32, 3\]"),
        (torch.zeros(2, 32, 32, 3), r"torch.float32 \[2, 32, 32, 3\]"),
        (np.zeros((2, 3, 32, 32), np.uint8), r"uint8 \[2, 3, 32, 32\]"),
        (np.zeros((2, 64, 64, 3), np.uint8), r"uint8 \[2, 64, 64, 3\]"),
        (np.zeros((2, 32, 32, 1), np.uint8), r"uint8 \[2, 32, 32, 1\]"),
        (np.zeros((32, 32, 3), np.uint8), r"uint8 \[32, 32, 3\]"),
        (np.zeros((), np.uint8), r"uint8 \[\]"),
    ],
)
def test_images_must_be_bytes_of_the_resolution(images, found: str):
    descriptors = Descriptors(32, 0)
    with raises(rf"SWD at 32 takes uint8 \[N, 32, 32, 3\], not {found}"):
        descriptors.add(images)
    assert descriptors.count == 0


@pytest.mark.parametrize(("real", "fake"), [(0, 0), (0, 2), (2, 0), (2, 3)])
def test_both_sets_must_have_as_many_images(real: int, fake: int):
    images = noise_images(5, 16, seed=1)
    with raises(
        f"SWD of {real} real and {fake} generated images: it needs as many of either, and at least one"
    ):
        distance_between([images[:real]], [images[:fake]], 16, 0)


def test_both_sets_must_have_one_resolution():
    with raises("SWD of images of 32 and of 16: bring both to one size"):
        distance(Descriptors(32, 0), Descriptors(16, 0))
