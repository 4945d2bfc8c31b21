"""Training batches: which photographs and which latents, as a function of (seed, images shown).

There is one class for each sort of generator input. Each gives the loop the same two things: what the
generator takes, and the real images to compare with; under torchrun, of this rank's share. Since that is a
function of the images shown, the pixels of the next batch are fetched while a step computes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pgsr import draws
from pgsr.errors import PgsrError
from pgsr.networks.pixels import from_pixels
from pgsr.networks.progan import fade_reals

from ..data.cache import Noise, Photographs, Source, first_size, load_photographs
from ..data.listing import LeftOut, fingerprint_of
from .degradation import compressed, degraded
from .parallel import ALONE, Ranks
from .pixels import box_cuts, boxes, data_indices, middle_boxes, mirror, mirrored, stack_cuts, stacked
from .recipe import Recipe
from .residency import Cuts, Pixels, Residency, chosen_residency, placed, whole
from .schedule import Stage


@dataclass(frozen=True)
class Batch:
    """What one update of a network sees."""

    inputs: Tensor  # the generator's: latents [N, L], or low-resolution images
    reals: Tensor  # [N, 3, H, W] in [-1, 1]
    paired: bool  # whether reals are what the generator should have made of inputs
    labels: Tensor | None = None  # [N] that the inputs hold; in the critic's batch those of the reals
    photographed: Tensor | None = None  # [N] of bool: whether the reals are the inputs' own; None: all are


class TrainingBatches(Protocol):
    """What a source of batches offers the trainer, whatever its generator's inputs are."""

    paired: bool  # whether reals are what the generator should make of the inputs
    count: int  # of the photographs
    residency: Residency  # of the photographs

    @property
    def fingerprint(self) -> str:
        """That of the photographs."""
        ...

    @property
    def older_fingerprint(self) -> str:
        """That which pgsr 0.1 gave them."""
        ...

    others: dict[Path, Photographs]  # of other sources than the run's own

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Files of the run's source that are not trained on."""
        ...

    def tensor(self, values: NDArray[Any] | Tensor) -> Tensor:
        """Puts values on the device, in the networks' own precision."""
        ...

    def for_critic(self, stage: Stage, start: int) -> Batch:
        """The batch of the critics' update that begins with `start` images shown."""
        ...

    def generator_inputs(self, stage: Stage, start: int, critic_batch: Batch | None) -> Batch:
        """The batch of the generator's update after it."""
        ...

    def preview(self, count: int) -> Tensor:
        """Fixed inputs for samples: [count, ...]."""
        ...


class Batches:
    """The parts that all kinds of batches share."""

    paired: bool
    count: int
    residency: Residency

    def __init__(self, recipe: Recipe, device: torch.device, ranks: Ranks) -> None:
        self.recipe, self.device, self.ranks = recipe, device, ranks
        self.opened: list[Photographs] = []
        self.others: dict[Path, Photographs] = {}
        self.dtype = torch.float64 if recipe.run.precision == "float64" else torch.float32

    def tensor(self, values: NDArray[Any] | Tensor) -> Tensor:
        """Puts values on the device, in the networks' own precision."""
        values = values if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))
        return values.to(self.device, self.dtype, non_blocking=True)

    def place(self, *arrays: NDArray[np.uint8]) -> list[Pixels]:
        """Puts pixels where the recipe and the memory let them lie."""
        total = sum(pixels.nbytes for pixels in arrays)
        self.residency = chosen_residency(self.recipe.run.residency, total, self.device)
        return [placed(pixels, self.residency, self.device) for pixels in arrays]

    def following(self, stage: Stage, start: int) -> range:
        """The positions of this rank in the batch after the one that begins at `start`."""
        return self.ranks.share(start + stage.batch, stage.batch)

    def photographs(self, source: Source, side: int) -> Photographs:
        """Those of the run's source, at one size."""
        photographs = source.photographs(side) if isinstance(source, Noise) else self.read(source, side)
        self.opened.append(photographs)
        return photographs

    def read(self, path: Path, side: int) -> Photographs:
        """Reads by one rank of a machine first, so that the others find its cache."""
        what = f"the photographs of {side}x{side}, which another process reads"
        return self.ranks.in_turn(
            lambda: load_photographs(path, side, self.recipe.data.reduce, self.recipe.data.width), what
        )

    @property
    def fingerprint(self) -> str:
        return self.opened[0].fingerprint

    @property
    def older_fingerprint(self) -> str:
        return self.opened[0].older_fingerprint

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        return tuple(dict.fromkeys(file for photographs in self.opened for file in photographs.left_out))

    def check_files(self) -> None:
        """Raises PgsrError if a file behind the pixels has been cut short."""
        for photographs in (*self.opened, *self.others.values()):
            photographs.check_length()


class LatentBatches(Batches):
    """Latents in, whole photographs as reals, both at the stage's resolution and fade."""

    paired = False

    def __init__(self, recipe: Recipe, source: Source, device: torch.device, ranks: Ranks = ALONE) -> None:
        super().__init__(recipe, device, ranks)
        (side,) = stored_sides(recipe)
        photographs = without_last(self.photographs(source, side), recipe.data.held_out, source)
        self.count = len(photographs)
        (self.pixels,) = self.place(photographs.pixels)
        self.latent_size: int = recipe.generator["latent_size"]
        self.kinds: int = recipe.generator.get("labels", 0)
        self.labels = labels_of(photographs, self.kinds, source)

    def latents(self, purpose: str, positions: range) -> Tensor:
        return self.tensor(draws.normals(self.recipe.seed, purpose, positions, self.latent_size))

    def batch(self, latents: Tensor, reals: Tensor, pictures: list[int]) -> Batch:
        """Makes a batch, with the labels of these pictures if they have any."""
        if self.labels is None:
            return Batch(latents, reals, self.paired)
        labels = torch.from_numpy(self.labels[pictures]).to(self.device, non_blocking=True)
        return Batch(self.with_labels(latents, labels), reals, self.paired, labels)

    def with_labels(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Latents, each followed by its label as a one-hot vector: [N, latent_size + kinds]."""
        return torch.cat([latents, F.one_hot(labels, self.kinds).to(latents.dtype)], dim=1)

    def cuts(self, positions: range) -> Cuts:
        """The pixels that the real images shown at positions are made of."""
        if self.recipe.data.stacked:
            return stack_cuts(self.pixels, self.recipe.seed, positions)
        indices = data_indices(self.recipe.seed, positions, self.count)
        if self.recipe.data.box:
            return box_cuts(self.pixels.side, indices, positions, self.recipe)
        return whole(indices, self.pixels.side)

    def reals(self, stage: Stage, positions: range) -> Tensor:
        self.check_files()
        cuts = self.cuts(positions)
        if self.recipe.data.box:
            images = self.tensor(boxes(self.pixels, cuts, self.recipe))
        elif self.recipe.data.stacked:
            images = self.tensor(stacked(self.pixels, cuts))
        else:
            images = self.tensor(from_pixels(self.pixels.cut(cuts)))
        if self.recipe.data.mirror:
            images = mirror(images, mirrored(self.recipe.seed, positions))
        factor = images.shape[-1] // stage.resolution
        if factor > 1:
            images = F.avg_pool2d(images, factor)
        return fade_reals(images, stage.alpha)

    def for_critic(self, stage: Stage, start: int) -> Batch:
        positions = self.ranks.share(start, stage.batch)
        pictures = data_indices(self.recipe.seed, positions, self.count)
        reals = self.reals(stage, positions)
        self.pixels.expect(lambda: self.cuts(self.following(stage, start)))
        return self.batch(self.latents("critic latent", positions), reals, pictures)

    def generator_inputs(self, stage: Stage, start: int, critic_batch: Batch | None) -> Batch:
        """Latents of its own, labels as often as pictures have them; `seen` (the critic's last batch) lends
        its reals."""
        seed, positions = self.recipe.seed, self.ranks.share(start, stage.batch)
        latents = self.latents("generator latent", positions)
        reals = critic_batch.reals if critic_batch is not None else self.reals(stage, positions)
        pictures = [int(draws.uniforms(seed, "label", p, 1)[0] * self.count) for p in positions if self.kinds]
        return self.batch(latents, reals, pictures)

    def evaluation(self, positions: range) -> Tensor:
        """Latents for measuring quality, with the labels of as many photographs."""
        rows = self.latents("evaluation", positions)
        if self.labels is None:
            return rows
        labels = self.labels[data_indices(self.recipe.seed, positions, self.count)]
        return self.with_labels(rows, torch.from_numpy(labels).to(self.device))

    def preview(self, count: int) -> Tensor:
        """Fixed latents: the same that `pgsr-generate --seed` of the recipe's seed uses; labels in turn."""
        rows = self.tensor(draws.latents(self.recipe.seed, range(count), self.latent_size))
        if not self.kinds:
            return rows
        return self.with_labels(rows, torch.arange(count, device=self.device) % self.kinds)


class CropBatches(Batches):
    """Low-resolution crops in, the same crops of the photographs as reals (super-resolution)."""

    paired = True

    def __init__(self, recipe: Recipe, source: Source, device: torch.device, ranks: Ranks = ALONE) -> None:
        super().__init__(recipe, device, ranks)
        self.scale: int = recipe.generator["scale"]
        self.crop = recipe.schedule.resolution
        side = recipe.data.resolution
        if side < self.crop or side % self.scale or self.crop % self.scale:
            raise PgsrError(
                f"super-resolution crops of {self.crop} at scale {self.scale} do not fit photographs of "
                f"{side}: set data.resolution to the photographs' side"
            )
        high, low = self.photographs(source, side), self.photographs(source, side // self.scale)
        self.rows = rows_of_pairs(high, low, recipe.data.held_out, source)
        self.count = len(self.rows)
        pictures = [high.pixels, low.pixels]
        if recipe.data.generated and not isinstance(source, Noise):
            path = Path(recipe.data.generated)
            self.others[path] = self.read(path, side // self.scale)
        pictures += [photographs.pixels for photographs in self.others.values()]
        self.high, self.low, *others = self.place(*pictures)
        self.generated = others[0] if others else None

    @property
    def fingerprint(self) -> str:
        """That of the photographs, and of the generator's pictures where there are any."""
        if not self.others:
            return super().fingerprint
        return fingerprint_of([super().fingerprint, *(other.fingerprint for other in self.others.values())])

    def cuts(self, positions: range) -> tuple[Cuts, Cuts]:
        """The crops at positions, of high and of low resolution."""
        seed, low_crop = self.recipe.seed, self.crop // self.scale
        lows, highs = [], []
        for p, index in zip(positions, data_indices(seed, positions, self.count), strict=True):
            steps = self.low.side - low_crop + 1
            top, left = (int(u * steps) for u in draws.uniforms(seed, "crop", p, 2))
            of_high, of_low = map(int, self.rows[index])
            lows.append((of_low, top, left))
            highs.append((of_high, top * self.scale, left * self.scale))
        return Cuts(tuple(highs), self.crop), Cuts(tuple(lows), low_crop)

    def with_generated(self, low: Tensor, positions: range) -> tuple[Tensor, Tensor | None]:
        """The inputs, some of them replaced by crops of the generator's pictures, and which are left."""
        if self.generated is None:
            return low, None
        shares = draws.uniform_rows(self.recipe.seed, "generated", positions, 4)
        chosen = shares[:, 0] < self.recipe.data.generated_share
        steps = self.generated.side - low.shape[-1] + 1
        places = (shares[chosen, 1:] * [len(self.generated), steps, steps]).astype(int)
        if chosen.any():
            cuts = Cuts(tuple((n, top, left) for n, top, left in places.tolist()), low.shape[-1])
            low[torch.from_numpy(chosen)] = self.tensor(from_pixels(self.generated.cut(cuts)))
        return low, torch.from_numpy(~chosen).to(self.device)

    def for_critic(self, stage: Stage, start: int) -> Batch:
        self.check_files()
        positions = self.ranks.share(start, stage.batch)
        of_high, of_low = self.cuts(positions)
        high = self.tensor(from_pixels(self.high.cut(of_high)))
        low = self.tensor(from_pixels(self.low.cut(of_low)))
        data = self.recipe.data
        worse = (data.filters, data.blur, data.noise, data.coarse_noise, data.jpeg)
        low = degraded(low, high, self.recipe.seed, positions, *worse)
        low, photographed = self.with_generated(low, positions)
        self.high.expect(lambda: self.cuts(self.following(stage, start))[0])
        self.low.expect(lambda: self.cuts(self.following(stage, start))[1])
        if self.recipe.data.mirror:
            flips = mirrored(self.recipe.seed, positions)
            low, high = mirror(low, flips), mirror(high, flips)
        return Batch(low, high, self.paired, photographed=photographed)

    def generator_inputs(self, stage: Stage, start: int, critic_batch: Batch | None) -> Batch:
        """The critic's last batch, since its pairs serve the pixel loss as well."""
        return critic_batch if critic_batch is not None else self.for_critic(stage, start)

    def preview(self, count: int) -> Tensor:
        """The first photographs of the set, reduced, and compressed if those of training are."""
        rows = self.rows[: min(count, self.count), 1].tolist()
        images = self.tensor(from_pixels(self.low.cut(whole(rows, self.low.side))))
        jpeg = self.recipe.data.jpeg
        return compressed(images, self.recipe.seed, range(len(rows)), jpeg) if jpeg else images


class BoxBatches(Batches):
    """Boxes of the photographs reduced as reals, reduced again as inputs (paper 3, section 2)."""

    paired = True

    def __init__(self, recipe: Recipe, source: Source, device: torch.device, ranks: Ranks = ALONE) -> None:
        super().__init__(recipe, device, ranks)
        self.scale: int = recipe.generator["scale"]
        (side,) = stored_sides(recipe)
        photographs = without_last(self.photographs(source, side), recipe.data.held_out, source)
        self.count = len(photographs)
        (self.pixels,) = self.place(photographs.pixels)

    def cuts(self, positions: range) -> Cuts:
        """The boxes at positions."""
        indices = data_indices(self.recipe.seed, positions, self.count)
        return box_cuts(self.pixels.side, indices, positions, self.recipe)

    def for_critic(self, stage: Stage, start: int) -> Batch:
        self.check_files()
        positions = self.ranks.share(start, stage.batch)
        reals = self.tensor(boxes(self.pixels, self.cuts(positions), self.recipe))
        self.pixels.expect(lambda: self.cuts(self.following(stage, start)))
        if self.recipe.data.mirror:
            reals = mirror(reals, mirrored(self.recipe.seed, positions))
        return Batch(F.avg_pool2d(reals, self.scale), reals, self.paired)

    def generator_inputs(self, stage: Stage, start: int, critic_batch: Batch | None) -> Batch:
        """The critic's last batch, as of `CropBatches`."""
        return critic_batch if critic_batch is not None else self.for_critic(stage, start)

    def preview(self, count: int) -> Tensor:
        """The boxes in the middle of the first photographs, reduced."""
        images = middle_boxes(self.pixels, min(count, self.count), self.recipe)
        return self.tensor(F.avg_pool2d(images, self.scale))


def stored_sides(recipe: Recipe) -> list[int]:
    """The sides that photographs are decoded at: one, or that of super-resolution's outputs and inputs."""
    data = recipe.data
    if "latent_size" in recipe.generator:
        return [data.resolution or data.box or recipe.schedule.resolution]
    if data.box:
        return [data.resolution or data.box]
    return [data.resolution, data.resolution // int(recipe.generator["scale"])]


def with_fitting_boxes(recipe: Recipe, source: Source) -> Recipe:
    """The recipe for these photographs: where the first is smaller than `data.resolution`, boxes give way to
    whole photographs, reduced as a box is. So what is trained on is a function of recipe and data still."""
    data, trained = recipe.data, recipe.schedule.resolution
    if isinstance(source, Noise) or not data.box:
        return recipe
    size, height = first_size(source), data.resolution or data.box
    if size is None or min(size) < trained or (size[0] >= (data.width or height) and size[1] >= height):
        return recipe
    side = min(size) - min(size) % trained
    return replace(recipe, data=replace(data, resolution=side, width=0, box=side))


def batches_for(recipe: Recipe, source: Source, device: torch.device, ranks: Ranks) -> TrainingBatches:
    """The sort that the recipe's generator takes: latents, low-resolution crops, or boxes reduced."""
    fitting = with_fitting_boxes(recipe, source)
    if fitting != recipe and ranks.rank == 0:
        side, wanted = fitting.data.resolution, recipe.data
        print(
            f"note: {source} has photographs smaller than {wanted.resolution or wanted.box} "
            f"(data.resolution): whole ones at {side}x{side} take the place of boxes of {wanted.box}",
            file=sys.stderr,
        )
    recipe = fitting
    if "latent_size" in recipe.generator:
        return LatentBatches(recipe, source, device, ranks)
    sort = BoxBatches if recipe.data.box else CropBatches
    return sort(recipe, source, device, ranks)


def rows_of_pairs(high: Photographs, low: Photographs, held_out: int, source: Source) -> NDArray[np.int64]:
    """The rows of pictures that are there in both sizes: [N, 2]. A picture that is too small or damaged in
    one is left out of both. Raises PgsrError if fewer than two pairs are trained on."""
    _, of_high, of_low = np.intersect1d(
        high.in_listing(), low.in_listing(), assume_unique=True, return_indices=True
    )
    count = len(of_high) - held_out
    if count < 2:
        sides = f"{high.pixels.shape[1]} and {low.pixels.shape[1]}"
        raise PgsrError(
            f"{source} has {len(of_high)} pictures that are there at {sides}, of which data.held_out takes "
            f"{held_out}: training needs at least 2"
        )
    return np.stack([of_high, of_low], axis=1)[:count]


def without_last(photographs: Photographs, held_out: int, source: Source) -> Photographs:
    """The photographs that are trained on. Raises PgsrError if fewer than two are."""
    if not held_out:
        return photographs
    count = len(photographs) - held_out
    if count < 2:
        raise PgsrError(f"data.held_out is {held_out}, but {source} has only {len(photographs)} pictures")
    labels = None if photographs.labels is None else photographs.labels[:count]
    return replace(photographs, pixels=photographs.pixels[:count], labels=labels)


def labels_of(photographs: Photographs, kinds: int, source: Source) -> NDArray[np.int64] | None:
    """The photographs' labels for a generator conditioned on `kinds` classes; None for an unconditional one.

    Raises PgsrError if there are none, or others.
    """
    if not kinds:
        return None
    if photographs.labels is None:
        raise PgsrError(f"{source} has no labels, but generator.labels is {kinds}: prepare it with labels")
    if photographs.labels.max() >= kinds:
        raise PgsrError(
            f"{source} has labels up to {photographs.labels.max()}, but generator.labels is {kinds}"
        )
    return photographs.labels
