"""Rotation, zoom and smooth deformation of a patch: drawn in mm, done in one resampling.

Thick slices are not turned out of their plane: where one axis has voxels three times as long as another, a
rotation that mixes the two would cut steps into smooth surfaces, and there is nothing between the slices to
zoom into (nnU-Net's "dummy 2D" augmentation, Isensee et al. 2021).
"""

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, RandomizableTransform
from torch.nn import functional

from medseg_brn.config import AugmentationConfig

SpacingMm = tuple[float, float, float]
THICK_RATIO = 3.0
KNOT_VOXELS = 10.0
"""Distance of the smooth deformation's control points, in voxels of the finest axis."""


def region_size(
    config: AugmentationConfig | None, size: Sequence[int], spacing_mm: SpacingMm = (1.0, 1.0, 1.0)
) -> tuple[int, int, int]:
    """Voxels to cut from a volume so that a patch of `size`, turned about an axis and zoomed, stays inside.

    A corner of a patch rotated by up to θ about an axis lies at most `s + sin(θ) · (others)` from the centre
    along an axis, in mm, and zooming out by the factor z < 1 divides that by z. The result differs from
    `size` by an even number per axis, so that the patch's centre stays on the voxel lattice. Rotations about
    several axes at once may reach a little further, where the region's border is repeated.
    """
    x, y, z = size
    if config is None or not moves(config):
        return x, y, z
    sine = math.sin(math.radians(min(config.rotation_degrees, 90.0)))
    sides_mm = [side * spacing for side, spacing in zip(size, spacing_mm, strict=True)]
    free = free_axes(spacing_mm)
    reaches = []
    for axis in range(3):
        others = sum(sides_mm[other] for other in range(3) if turns(axis, other, spacing_mm))
        zoom = min(config.scale[0], 1.0) if axis in free else 1.0
        reach_mm = (sides_mm[axis] + sine * others) / zoom
        elastic_mm = 2 * config.elastic_mm if axis in free and config.elastic_probability > 0 else 0.0
        reaches.append((reach_mm + elastic_mm) / spacing_mm[axis])
    margins = [math.ceil(round((reach - side) / 2, 9)) for reach, side in zip(reaches, size, strict=True)]
    return x + 2 * margins[0], y + 2 * margins[1], z + 2 * margins[2]


def moves(config: AugmentationConfig) -> bool:
    """Whether any patch is rotated, zoomed or deformed."""
    return config.spatial_probability > 0 or (config.elastic_mm > 0 and config.elastic_probability > 0)


def turns(one: int, other: int, spacing_mm: SpacingMm) -> bool:
    """Whether a rotation may mix two axes: their voxels are about as long."""
    ratio = spacing_mm[one] / spacing_mm[other]
    return one != other and 1 / THICK_RATIO < ratio < THICK_RATIO


def free_axes(spacing_mm: SpacingMm) -> tuple[int, ...]:
    """The axes that are zoomed and deformed: all but those of thick slices."""
    return tuple(axis for axis in range(3) if spacing_mm[axis] < THICK_RATIO * min(spacing_mm))


class RandDeformd(MapTransform, RandomizableTransform):
    """Cuts a patch out of the middle of a region, turned, zoomed and deformed at random.

    Args:
        config: angles, zoom factors, displacement, and the shares of patches that are changed.
        size: the patch's (X, Y, Z); the region has `region_size` voxels.
        spacing_mm: voxel size.
    """

    def __init__(self, config: AugmentationConfig, size: Sequence[int], spacing_mm: SpacingMm) -> None:
        MapTransform.__init__(self, ("image", "label"))
        RandomizableTransform.__init__(self, 1.0)
        self._config, self._size, self._spacing_mm = config, tuple(size), spacing_mm
        axes = [(torch.arange(n) - (n - 1) / 2) * mm for n, mm in zip(size, spacing_mm, strict=True)]
        self._places_mm = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)  # (X, Y, Z, 3)
        self._splines = [
            _spline_weights(n, KNOT_VOXELS * min(spacing_mm) / mm)
            for n, mm in zip(size, spacing_mm, strict=True)
        ]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `image` (C, *size), interpolated linearly, and `label` (1, *size), by the nearest voxel."""
        sample = dict(data)
        matrix, displacement_mm = self._draw()
        if matrix is None and displacement_mm is None:
            return sample | {key: _cut_middle(sample[key], self._size) for key in ("image", "label")}
        places_mm = self._places_mm if matrix is None else self._places_mm @ matrix.T
        if displacement_mm is not None:
            places_mm = places_mm + displacement_mm
        grid = _to_grid(places_mm, self._spacing_mm, sample["image"].shape[1:])
        for key, mode in (("image", "bilinear"), ("label", "nearest")):
            moved = functional.grid_sample(
                sample[key][None], grid, mode=mode, padding_mode="border", align_corners=True
            )
            sample[key] = moved[0]
        return sample

    def _draw(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The matrix (3, 3) that places are multiplied by, and displacements (X, Y, Z, 3) in mm."""
        config = self._config
        matrix, displacement = None, None
        if self.R.random() < config.spatial_probability:
            matrix = torch.from_numpy(self._draw_matrix().astype(np.float32))
        if config.elastic_mm > 0 and self.R.random() < config.elastic_probability:
            displacement = self._draw_displacement()
        return matrix, displacement

    def _draw_matrix(self) -> np.ndarray:
        """Rotations about the axes one after the other, and a zoom of each; from the patch to the region."""
        config, limit = self._config, math.radians(self._config.rotation_degrees)
        free = free_axes(self._spacing_mm)
        matrix = np.eye(3)
        for one, other in itertools.combinations(range(3), 2):
            angle = self.R.uniform(-limit, limit)
            if turns(one, other, self._spacing_mm):
                rotation = np.eye(3)
                rotation[one, one] = rotation[other, other] = math.cos(angle)
                rotation[one, other], rotation[other, one] = -math.sin(angle), math.sin(angle)
                matrix = matrix @ rotation
        zoom = self.R.uniform(1 / config.scale[1], 1 / config.scale[0], 3)
        return matrix @ np.diag([zoom[axis] if axis in free else 1.0 for axis in range(3)])

    def _draw_displacement(self) -> torch.Tensor:
        """Cubic B-splines, which stay within their coefficients (-elastic_mm, elastic_mm)."""
        shape = (3, *(weights.shape[1] for weights in self._splines))
        limit = self._config.elastic_mm
        coefficients = torch.from_numpy(self.R.uniform(-limit, limit, shape).astype(np.float32))
        for axis in set(range(3)) - set(free_axes(self._spacing_mm)):
            coefficients[axis] = 0
        return torch.einsum("cijk,xi,yj,zk->xyzc", coefficients, *self._splines)


def _spline_weights(length: int, distance: float) -> torch.Tensor:
    """Weight (voxels, knots) of each knot's uniform cubic B-spline at each voxel; each row sums to 1."""
    distance = max(distance, 2.0)
    place = np.arange(length) / distance
    first = np.floor(place).astype(int)
    t = place - first
    pieces = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    weights = np.zeros((length, int(first[-1]) + 4), np.float32)
    for offset, piece in enumerate(pieces):
        weights[np.arange(length), first + offset] = piece / 6
    return torch.from_numpy(weights)


def _to_grid(places_mm: torch.Tensor, spacing_mm: SpacingMm, region: Sequence[int]) -> torch.Tensor:
    """Places (X, Y, Z, 3) in mm from the region's middle, as `grid_sample` wants them: (1, X, Y, Z, 3).

    There -1 and 1 are the centres of the first and last voxel, and the last axis comes first.
    """
    halves_mm = [max(n - 1, 1) / 2 * mm for n, mm in zip(region, spacing_mm, strict=True)]
    return (places_mm / torch.tensor(halves_mm)).flip(-1)[None]


def _cut_middle(array: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    starts = [(n - s) // 2 for n, s in zip(array.shape[1:], size, strict=True)]
    x, y, z = (slice(start, start + s) for start, s in zip(starts, size, strict=True))
    return array[:, x, y, z]
