"""What is convolved: forms, sizes, and what a convolution computes and moves at the least."""

from __future__ import annotations

from dataclasses import dataclass

FORMS = ("plain", "up")  # 3x3; nearest-neighbour enlargement by 2, then 3x3
CONVOLUTIONS = ("vanilla", "separable")
LAYOUTS = ("NCHW", "NHWC")
PRECISIONS = ("fp32", "bf16", "int8")
BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
KERNEL = 3


@dataclass(frozen=True)
class Case:
    """One convolution that keeps the size, or enlarges first."""

    form: str  # of FORMS
    channels: int  # in
    resolution: int  # of the output; "up" has half of it in
    batch: int
    outputs: int = 0  # maps out; 0: as many as in
    kernel: int = KERNEL

    @property
    def maps(self) -> int:
        """Maps out."""
        return self.outputs or self.channels

    @property
    def input_side(self) -> int:
        return self.resolution // 2 if self.form == "up" else self.resolution

    @property
    def key(self) -> str:
        return f"{self.form} {self.channels} maps, {self.resolution} pixels, batch {self.batch}"

    @property
    def predicted_speedup(self) -> float:
        """By equation 3 of paper 1: 1 / (1 / N + 1 / k²)."""
        return 1 / (1 / self.maps + 1 / self.kernel**2)

    def multiply_adds(self, convolution: str) -> int:
        """Of one image (paper 1, equations 1 and 2): D² M N k², or D² M (k² + N)."""
        taps = self.kernel**2
        each = self.maps * taps if convolution == "vanilla" else taps + self.maps
        return self.resolution**2 * self.channels * each

    def moved_bytes(self, convolution: str, precision: str) -> int:
        """Of a batch, at the least: what each layer reads and writes, and its weights once.

        The maps between depthwise and pointwise are written and read, since no library that is measured fuses
        the two; an enlargement is taken to be part of the convolution behind it, which some do.
        """
        pixels = self.batch * self.resolution**2
        moved = self.batch * self.channels * self.input_side**2 + pixels * self.maps
        weights = self.kernel**2 * self.channels * self.maps
        if convolution == "separable":
            moved += 2 * pixels * self.channels
            weights = (self.kernel**2 + self.maps) * self.channels
        return BYTES[precision] * (moved + weights)


def cases(
    forms: tuple[str, ...], channels: tuple[int, ...], resolutions: tuple[int, ...], batch: int
) -> list[Case]:
    """Every combination, small ones first."""
    return [Case(form, c, side, batch) for form in forms for side in resolutions for c in channels]
