"""Rotation, zoom and smooth deformation of a patch: drawn in mm, done in one resampling.

Thick slices are not turned out of their plane: where one axis has voxels three times as long as another, a
rotation that mixes the two would cut steps into smooth surfaces, and there is nothing between the slices to
zoom into (nnU-Net's "dummy 2D" augmentation, Isensee et al. 2021).
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from medseg_brn.config import AugmentationConfig
from medseg_brn.patches.sampling import cut_box

SpacingMm = tuple[float, float, float]
THICK_RATIO = 3.0
KNOT_VOXELS = 10.0
"""Least distance of the smooth deformation's control points, in voxels of the finest axis."""
KNOT_DISPLACEMENTS = 4.0
"""Least distance of the control points, in largest displacements: nearer ones would fold space."""


def find_free_axes(spacing_mm: Sequence[float]) -> list[bool]:
    """Whether each axis is turned, zoomed and deformed: all are but those of thick slices."""
    return [mm < THICK_RATIO * min(spacing_mm) for mm in spacing_mm]


class Deformation:
    """Draws where the voxels of a patch are taken from.

    Args:
        config: angles, zoom factors, displacement, and the shares of patches that are changed.
        size: the patch's (X, Y, Z).
        spacing_mm: voxel size.
    """

    def __init__(self, config: AugmentationConfig, size: Sequence[int], spacing_mm: SpacingMm) -> None:
        self._config = config
        self._spacing_mm = torch.tensor(spacing_mm)
        self._free = find_free_axes(spacing_mm)
        knots_mm = max(KNOT_VOXELS * min(spacing_mm), KNOT_DISPLACEMENTS * config.elastic_mm)
        axes = [(torch.arange(n) - (n - 1) / 2) * mm for n, mm in zip(size, spacing_mm, strict=True)]
        self._places_mm = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)  # (X, Y, Z, 3)
        self._splines = [_spline_weights(n, knots_mm / mm) for n, mm in zip(size, spacing_mm, strict=True)]

    def draw(self, rng: np.random.Generator) -> torch.Tensor | None:
        """Places (X, Y, Z, 3) of the patch's voxels, in voxels from its middle; None where it stays."""
        config, places_mm = self._config, self._places_mm
        turned = rng.random() < config.spatial_probability
        bent = config.elastic_mm > 0 and rng.random() < config.elastic_probability
        if not (turned or bent):
            return None
        if turned:
            places_mm = places_mm @ torch.from_numpy(self._draw_matrix(rng).astype(np.float32)).T
        if bent:
            places_mm = places_mm + self._draw_displacement(rng)
        return places_mm / self._spacing_mm

    def _draw_matrix(self, rng: np.random.Generator) -> np.ndarray:
        """Rotations about the axes one after the other, and a zoom of each; from the patch to the volume."""
        config, limit = self._config, math.radians(self._config.rotation_degrees)
        matrix = np.eye(3)
        for one, other in itertools.combinations(range(3), 2):
            angle = rng.uniform(-limit, limit)
            if self._free[one] and self._free[other]:
                rotation = np.eye(3)
                rotation[one, one] = rotation[other, other] = math.cos(angle)
                rotation[one, other], rotation[other, one] = -math.sin(angle), math.sin(angle)
                matrix = matrix @ rotation
        zoom = rng.uniform(1 / config.scale[1], 1 / config.scale[0], 3)
        return matrix @ np.diag(np.where(self._free, zoom, 1.0))

    def _draw_displacement(self, rng: np.random.Generator) -> torch.Tensor:
        """Cubic B-splines (X, Y, Z, 3), which stay within their coefficients (-elastic_mm, elastic_mm)."""
        limit, shape = self._config.elastic_mm, (3, *(weights.shape[1] for weights in self._splines))
        drawn = rng.uniform(-limit, limit, shape) * np.reshape(self._free, (3, 1, 1, 1))
        coefficients = torch.from_numpy(drawn.astype(np.float32))
        return torch.einsum("cijk,xi,yj,zk->xyzc", coefficients, *self._splines)


def take_image(array: np.ndarray, places: torch.Tensor) -> torch.Tensor:
    """Patch (C, *size) of an image (C, X, Y, Z), interpolated linearly.

    Args:
        array: it may be memory-mapped: no more than the box around `places` is read. Outside it is 0.
        places: (*size, 3) in voxels of the array; centres have whole numbers.
    """
    lower, upper = _box_around(places)
    box = torch.from_numpy(cut_box(array, lower, upper).astype(np.float32, copy=False))
    # grid_sample has -1 and 1 at the centres of the first and last voxel, and the last axis first
    last = torch.tensor([high - low - 1 for low, high in zip(lower, upper, strict=True)])
    grid = (2 * (places - torch.tensor(lower)) / last - 1).flip(-1)
    return functional.grid_sample(box[None], grid[None], mode="bilinear", align_corners=True)[0]


def take_labels(array: np.ndarray, places: torch.Tensor) -> torch.Tensor:
    """Patch (1, *size) of a label map (1, X, Y, Z): the class with the largest share of each place.

    The shares are those of linear interpolation, as if each class were an image of its own. The nearest
    voxel, which is not asked for more than its own label, would move a turned surface by up to half a voxel
    and cut steps into it: of a small structure that is noise of the size of a network's own error.

    Args:
        array: it may be memory-mapped: no more than the box around `places` is read. Outside it is 0.
        places: (*size, 3) in voxels of the array; centres have whole numbers.
    """
    lower, upper = _box_around(places)
    box = torch.from_numpy(cut_box(array, lower, upper)[0].astype(np.int32))
    local = places.reshape(-1, 3) - torch.tensor(lower)
    first = torch.minimum(local.floor().long(), torch.tensor(box.shape) - 2)
    strides = torch.tensor([box.shape[1] * box.shape[2], box.shape[2], 1])
    corners = torch.tensor(list(itertools.product((0, 1), repeat=3)))
    classes = box.flatten()[((first @ strides)[:, None] + corners @ strides)]  # (N, 8)
    taken = classes[:, 0].clone()
    disputed = (classes != taken[:, None]).any(dim=1)
    taken[disputed] = _vote(classes[disputed], (local - first)[disputed], corners)
    return taken.reshape(1, *places.shape[:-1]).float()


def _vote(classes: torch.Tensor, fractions: torch.Tensor, corners: torch.Tensor) -> torch.Tensor:
    """The class (N,) with the largest weight among eight corners (N, 8); of equal ones the first."""
    weights = torch.where(corners.bool(), fractions[:, None], 1 - fractions[:, None]).prod(dim=-1)
    same = classes[:, :, None] == classes[:, None, :]
    winners = (same * weights[:, None, :]).sum(dim=-1).argmax(dim=1, keepdim=True)
    return classes.gather(1, winners)[:, 0]


def _box_around(places: torch.Tensor) -> tuple[list[int], list[int]]:
    """First voxels, and those after the last, of the least box that interpolation at `places` needs."""
    flat = places.reshape(-1, 3)
    lower = flat.amin(0).floor().int().tolist()
    upper = (flat.amax(0).floor().int() + 2).tolist()
    return lower, upper


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
