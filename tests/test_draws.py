"""pgsr.draws: numbers that are functions of (seed, purpose, index), the same for ever."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pgsr import draws


def test_raw_stream_never_changes():
    assert draws.raw(0, "latent", 0, 4).tolist() == GOLDEN_RAW[0]
    assert draws.raw(2**64 - 1, "crop", 12_345, 4).tolist() == GOLDEN_RAW[1]


def test_uniforms_never_change():
    assert draws.uniforms(7, "penalty", 3, 3).tolist() == GOLDEN_UNIFORMS


def test_latents_never_change():
    """To one unit in the last place: the C library's log and cos may differ by that between machines."""
    expected = np.array(GOLDEN_LATENTS, dtype=np.float32)
    np.testing.assert_array_max_ulp(draws.latents(1, [5, 0], 5), expected, maxulp=1)


def test_purposes_keep_their_numbers():
    assert draws.PURPOSES == {
        "latent": 0,
        "critic latent": 1,
        "order": 2,
        "mirror": 3,
        "penalty": 4,
        "crop": 5,
        "picture": 6,
        "generator latent": 7,
        "noise": 8,
        "degradation": 9,
        "step": 10,
        "swd": 11,
        "stack": 12,
        "digits": 13,
        "film": 14,
        "centre": 15,
        "label": 16,
        "wild": 17,
        "evaluation": 18,
        "augment real": 19,
        "augment fake": 20,
        "augment generator": 21,
        "coarse noise": 22,
        "generated": 23,
    }


def test_normals_are_box_muller_of_the_uniforms():
    u = draws.uniforms(3, "latent", 9, 6)
    pairs = [math.sqrt(-2 * math.log(1 - a)) for a in u[:3]], [2 * math.pi * b for b in u[3:]]
    expected = [r * math.cos(t) for r, t in zip(*pairs, strict=True)]
    expected += [r * math.sin(t) for r, t in zip(*pairs, strict=True)]
    np.testing.assert_allclose(draws.normals(3, "latent", [9], 6)[0], expected, rtol=1e-6)
    np.testing.assert_allclose(draws.normals(3, "latent", [9], 5)[0], expected[:5], rtol=1e-6)


@pytest.mark.parametrize("size", [1, 7, 512])
def test_a_latent_does_not_depend_on_its_batch(size: int):
    whole = draws.latents(11, range(20), size)
    one_by_one = np.concatenate([draws.latents(11, [i], size) for i in range(20)])
    backwards = draws.latents(11, reversed(range(20)), size)[::-1]
    assert whole.tobytes() == one_by_one.tobytes() == backwards.tobytes()


@pytest.mark.parametrize("index", [0, 5, 2**63, 2**64 - 1])
def test_rows_are_the_streams_of_their_indices(index: int):
    """The largest index, too, is a whole number and no rounded one."""
    rows = draws.uniform_rows(3, "swd", [7, index, 2], 5)
    assert rows.shape == (3, 5)
    assert rows[1].tolist() == draws.uniforms(3, "swd", index, 5).tolist()
    assert draws.uniforms(3, "swd", index, 5).tolist() != draws.uniforms(3, "swd", index ^ 1, 5).tolist()


def test_no_latents_is_an_empty_array():
    assert draws.latents(0, [], 8).shape == (0, 8)


def test_a_longer_draw_begins_with_the_shorter():
    assert (draws.raw(4, "latent", 2, 100)[:10] == draws.raw(4, "latent", 2, 10)).all()


def test_streams_differ_by_seed_purpose_and_index():
    streams = [
        draws.raw(seed, purpose, index, 64)
        for seed in (0, 1, 2**63)
        for purpose in draws.PURPOSES
        for index in (0, 1, 2**40)
    ]
    values = np.concatenate(streams)
    assert len(np.unique(values)) == len(values)


def test_a_stream_does_not_run_into_its_neighbour():
    """Index i + 1 starts 2**64 blocks after index i, so even long draws have nothing in common."""
    long, neighbour = draws.raw(0, "latent", 0, 100_000), draws.raw(0, "latent", 1, 100_000)
    assert not np.intersect1d(long, neighbour).size


def kolmogorov_smirnov(sample: np.ndarray, cdf) -> float:
    """The largest distance between the sample's distribution and a cdf, times sqrt(n)."""
    ordered = np.sort(sample)
    n = len(ordered)
    expected = np.array([cdf(x) for x in ordered])
    steps = np.arange(n + 1) / n
    return math.sqrt(n) * max((steps[1:] - expected).max(), (expected - steps[:-1]).max())


def test_latents_are_standard_normal():
    sample = draws.latents(0, range(400), 100).astype(np.float64).ravel()
    n = len(sample)
    assert abs(sample.mean()) < 4 / math.sqrt(n)
    assert abs(sample.var() - 1) < 4 * math.sqrt(2 / n)
    assert kolmogorov_smirnov(sample, lambda x: (1 + math.erf(x / math.sqrt(2))) / 2) < 1.95  # p = 0.001


def test_latent_entries_are_not_correlated():
    rows = draws.latents(0, range(4000), 16).astype(np.float64)
    correlation = np.corrcoef(rows.T) - np.eye(16)
    assert abs(correlation).max() < 5 / math.sqrt(4000)


def test_uniforms_are_uniform_and_below_one():
    sample = np.concatenate([draws.uniforms(0, "crop", i, 50) for i in range(400)])
    assert sample.min() >= 0
    assert sample.max() < 1
    assert kolmogorov_smirnov(sample, lambda x: x) < 1.95


@pytest.mark.parametrize("count", [1, 2, 17, 1000])
def test_a_permutation_holds_everything_once(count: int):
    assert sorted(draws.permutation(3, "order", 5, count)) == list(range(count))


def test_all_permutations_of_three_come_equally_often():
    counts: dict[tuple[int, ...], int] = {}
    for index in range(6000):
        order = tuple(draws.permutation(0, "order", index, 3).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert sum((c - 1000) ** 2 / 1000 for c in counts.values()) < 20.5  # chi square, 5 degrees, p = 0.001


GOLDEN_RAW = [
    [213000021201967259, 4455796210202625458, 2055444239878205049, 10411612076246414556],
    [953319747487460581, 18212904019816469317, 9276043579424736375, 11596109607957068556],
]
GOLDEN_UNIFORMS = [0.27129477892803255, 0.22263463910424952, 0.44631515718041914]
GOLDEN_LATENTS = [
    [0.4832899, -1.8884557, -0.7198582, 0.5692645, -0.06058973],
    [0.83443415, 1.5742294, 0.55178416, 0.16519694, -1.1396925],
]
