"""Scanners that store the same anatomy differently: x = a·(f·z + ε) + b, with a, b and the strengths of f and
ε a scanner's own, and the field f and the noise ε each scan's.

Anatomies z are on a scale of 0 (dark) to 1 (bright). Label maps never pass through here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg_brn.cases.phantom_shapes import FloatArray, sample_noise

LOG_GAIN, OFFSET = 0.5, 0.5
"""Standard deviations of ln a and of b."""
BIAS, NOISE = (0.05, 0.30), (0.02, 0.10)
"""Ranges from which a scanner's strengths of field and noise are drawn."""
FIELD_LENGTH = 1.5
"""Wavelength of a bias field, in lengths of the scan's longest axis."""


@dataclass(frozen=True)
class Scanner:
    """A site's scanner."""

    name: str
    gain: float
    """a > 0."""
    offset: float
    """b, in stored intensities."""
    bias: float
    """Standard deviation of ln f, a smooth field of mean 0."""
    noise: float
    """Standard deviation of ε; white."""

    def scan(self, anatomy: FloatArray, random: np.random.Generator) -> FloatArray:
        """The image (X, Y, Z) that the scanner stores of an anatomy (X, Y, Z)."""
        field = np.exp(np.float32(self.bias) * draw_field(anatomy.shape, random))
        noise = np.float32(self.noise) * random.standard_normal(anatomy.shape, dtype=np.float32)
        stored = np.float32(self.gain) * (field * anatomy + noise) + np.float32(self.offset)
        return np.asarray(stored, np.float32)


def draw_scanners(names: Sequence[str], random: np.random.Generator) -> tuple[Scanner, ...]:
    """A scanner for each name, independent of each other."""
    return tuple(
        Scanner(
            name,
            gain=float(np.exp(random.normal(0, LOG_GAIN))),
            offset=float(random.normal(0, OFFSET)),
            bias=float(random.uniform(*BIAS)),
            noise=float(random.uniform(*NOISE)),
        )
        for name in names
    )


def draw_field(shape: Sequence[int], random: np.random.Generator) -> FloatArray:
    """A smooth random function on the voxels, of mean 0 and variance 1 over draws, (X, Y, Z)."""
    axes = [(np.arange(size, dtype=np.float32) - (size - 1) / 2) / max(shape) for size in shape]
    places = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    return sample_noise(random, FIELD_LENGTH)(places)


def harmonize(image: NDArray[np.float32]) -> FloatArray:
    """The z-scores of a scan (X, Y, Z): whatever gain and offset it was stored with, they are the same."""
    return np.asarray((image - image.mean()) / image.std(), np.float32)
