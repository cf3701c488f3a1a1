"""Small noisy volumes of a body with a stalk: a shape that a discriminator can know and noise can fray."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medseg_brn.cases.phantom_shapes import (
    Canvas,
    FloatArray,
    capsule_depth,
    ellipsoid_depth,
    sample_deformation,
    sample_noise,
    smooth_union,
)

SIZE = 16
"""Voxels along each axis, of 1 mm."""
SMOOTH_NOISE, WHITE_NOISE = 0.25, 0.5
"""Standard deviations, the body's brightness being 1 and that around it 0."""


@dataclass(frozen=True)
class Volumes:
    """n volumes and their references."""

    images: Tensor
    """(n, 1, X, Y, Z) float32, each of mean 0 and standard deviation 1."""
    classes: Tensor
    """(n, 1, X, Y, Z) int64: 1 in the body, else 0."""

    def __len__(self) -> int:
        return len(self.images)


def draw_volumes(count: int, key: Sequence[int]) -> Volumes:
    """Draw volumes; number i of a key is the same whatever the count."""
    drawn = [draw_volume(np.random.default_rng((*key, number))) for number in range(count)]
    images = torch.from_numpy(np.stack([image for image, _ in drawn]))[:, None]
    classes = torch.from_numpy(np.stack([mask for _, mask in drawn])).long()[:, None]
    return Volumes(images, classes)


def draw_volume(random: np.random.Generator) -> tuple[FloatArray, np.ndarray]:
    """Draw one volume.

    The body is a bent ellipsoid with a stalk. A ball of the same brightness lies beside it and does not
    belong to it.

    Returns:
        image (X, Y, Z) float32 of mean 0 and standard deviation 1, and mask (X, Y, Z) uint8.
    """
    axis = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
    positions = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"))
    bend = sample_deformation(
        random, scale_sd=0.1, rotation_sd_degrees=40, amplitude_mm=0.5, wavelength_mm=20
    )
    points = bend(positions)
    centre = random.normal(0, 0.7, 3)
    direction = random.normal(size=3)
    direction /= np.linalg.norm(direction)
    body = ellipsoid_depth(points, centre, random.uniform(2.6, 4.2, 3))
    stalk = capsule_depth(points, centre, centre + direction * random.uniform(5, 6.5), 1.6, 1.1)
    ball = ellipsoid_depth(positions, centre - direction * 6.5, np.full(3, random.uniform(1.2, 1.8)))
    canvas = Canvas((SIZE,) * 3, 0.0, edge_mm=1.0)
    canvas.paint(ball, 1.0)
    canvas.paint(smooth_union(body, stalk, 1.5), 1.0, 1)
    smooth = sample_noise(random, wavelength_mm=7)(positions)
    white = random.normal(size=(SIZE,) * 3).astype(np.float32)
    image = canvas.image + SMOOTH_NOISE * smooth + WHITE_NOISE * white
    return ((image - image.mean()) / image.std()).astype(np.float32), canvas.label_map
