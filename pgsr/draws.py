"""Counter-based random draws: every number is a pure function of (seed, purpose, index).

Nothing here has state, so image i of seed s is the same whatever the batch, the order, the number of
workers or the machine, and training resumes without any generator state (contracts 3 and 4).

Only the raw stream of numpy's Philox is used, which numpy promises never to change (NEP 19); the
distributions, which it may change, are made here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

# Each purpose is a stream of its own. Append only: a number in use may never change its meaning.
PURPOSES = {
    "latent": 0,  # generated images: trainer previews, export parity, runtime
    "critic latent": 1,  # latents of the images the critic is trained on
    "order": 2,  # the data set's order, one permutation an epoch
    "mirror": 3,  # horizontal flips of the training images
    "penalty": 4,  # where between real and generated the gradient penalty looks
    "crop": 5,  # corners of super-resolution training crops
    "picture": 6,  # the procedural data set
    "generator latent": 7,  # latents the generator is trained on
    "noise": 8,  # on super-resolution inputs
    "degradation": 9,  # how strong the noise on those is, and their blur and filter
    "swd": 11,  # patches and directions of the sliced Wasserstein distance
    "step": 10,  # what networks draw inside a training step
    "stack": 12,  # the three pictures whose channels make one stacked image
    "digits": 13,  # order and shifts of the digit classifier's training
    "film": 14,  # the latents that an interpolation video blurs, one a frame
    "centre": 15,  # latents among which truncation looks for the typical face
    "label": 16,  # of the images the generator is trained on
    "wild": 17,  # drawn pictures in the wild
    "evaluation": 18,  # latents and photographs that quality is measured by
    "augment real": 19,  # transforms of the photographs that critics see
    "augment fake": 20,  # of the generated images in the critics' updates
    "augment generator": 21,  # and in the generator's
    "coarse noise": 22,  # on super-resolution inputs, of blocks
    "generated": 23,  # which super-resolution inputs are crops of a generator's images, and which crops
}


def raw(seed: int, purpose: str, index: int, count: int) -> NDArray[np.uint64]:
    """`count` uint64 of the stream (seed, purpose, index); streams never overlap.

    seed, index: 0 <= value < 2**64.
    """
    return _generator(seed, purpose, index).random_raw(count)


def _generator(seed: int, purpose: str, index: int) -> np.random.Philox:
    key = np.array([seed, PURPOSES[purpose]], dtype=np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, index, 0, 0], dtype=np.uint64))


def uniforms(seed: int, purpose: str, index: int, count: int) -> NDArray[np.float64]:
    """`count` numbers in [0, 1), of 53 random bits each."""
    return _unit(raw(seed, purpose, index, count))


def uniform_rows(seed: int, purpose: str, indices: Iterable[int], count: int) -> NDArray[np.float64]:
    """`uniforms` of each index: a row of `count` numbers in [0, 1) each, [N, count]."""
    return _unit(_raw_rows(seed, purpose, list(indices), count))


def _unit(numbers: NDArray[np.uint64]) -> NDArray[np.float64]:
    """The upper 53 bits as numbers in [0, 1)."""
    return (numbers >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normals(seed: int, purpose: str, indices: Iterable[int], size: int) -> NDArray[np.float32]:
    """One row of `size` standard normal numbers for each index (Box and Muller, 1958): [N, size]."""
    pairs = (size + 1) // 2
    u = _unit(_raw_rows(seed, purpose, list(indices), 2 * pairs))
    radius = np.sqrt(-2.0 * np.log(1.0 - u[:, :pairs]))  # 1 - u is in (0, 1]: no log of zero
    angle = 2.0 * np.pi * u[:, pairs:]
    rows = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return rows[:, :size].astype(np.float32)


def _raw_rows(seed: int, purpose: str, indices: Sequence[int], count: int) -> NDArray[np.uint64]:
    """`raw` of each index, a row each. One generator does for all: making one takes as long as a row."""
    rows = np.empty((len(indices), count), dtype=np.uint64)
    generator = _generator(seed, purpose, 0)
    state = generator.state
    counter = state["state"]["counter"]
    for row, index in zip(rows, indices, strict=True):
        counter[:] = (0, index, 0, 0)
        generator.state = state
        row[:] = generator.random_raw(count)
    return rows


def latents(seed: int, indices: Iterable[int], size: int) -> NDArray[np.float32]:
    """The latents of images `indices` of `seed`: float32 [N, size], standard normal.

    Networks normalise them to the hypersphere themselves (paper 2, section A.1).
    """
    return normals(seed, "latent", indices, size)


def permutation(seed: int, purpose: str, index: int, count: int) -> NDArray[np.int64]:
    """A random order of range(count)."""
    return np.argsort(raw(seed, purpose, index, count), kind="stable").astype(np.int64)
