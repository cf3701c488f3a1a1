"""Shapes that know how deep inside them a point lies: what phantoms are drawn from.

Points are (3, ...) arrays in mm, RAS+. A depth is in mm too: positive inside, zero on the surface, negative
outside. Depths combine like sets: `np.minimum` intersects, `np.maximum` unites, `depth - 3` shrinks by 3 mm.
Since a shape is a formula and not a voxel array, one anatomy is drawn on any grid without being resampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class SmoothNoise:
    """A random smooth function of the position with mean 0 and variance 1: the mean of a few plane waves.

    Attributes:
        wave_vectors: (waves, 3) radians per mm.
        phases: (waves,) radians.
    """

    wave_vectors: FloatArray
    phases: FloatArray

    def __call__(self, points: FloatArray) -> FloatArray:
        """Returns the noise at points (3, ...), shape (...)."""
        total = np.zeros(points.shape[1:], np.float32)
        for vector, phase in zip(self.wave_vectors, self.phases, strict=True):
            total += np.cos(np.tensordot(vector, points, axes=1) + phase)
        return cast(FloatArray, total * np.float32(np.sqrt(2 / len(self.phases))))


def sample_noise(rng: np.random.Generator, wavelength_mm: float, waves: int = 8) -> SmoothNoise:
    """Returns noise whose waves are `wavelength_mm` long, plus or minus a quarter, in every direction."""
    directions = rng.normal(size=(waves, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lengths = wavelength_mm * rng.uniform(0.75, 1.25, size=(waves, 1))
    vectors = 2 * np.pi * directions / lengths
    return SmoothNoise(vectors.astype(np.float32), rng.uniform(0, 2 * np.pi, waves).astype(np.float32))


@dataclass(frozen=True, eq=False)
class Deformation:
    """World position → position in the template: an affine map, then a low-frequency displacement.

    Attributes:
        matrix: (3, 3) scales and small rotation.
        displacement: one noise per axis.
        amplitude_mm: standard deviation of the displacement along an axis.
    """

    matrix: FloatArray
    displacement: tuple[SmoothNoise, SmoothNoise, SmoothNoise]
    amplitude_mm: float

    def __call__(self, points: FloatArray) -> FloatArray:
        """Returns the template positions (3, ...) of world positions (3, ...)."""
        straight = np.tensordot(self.matrix, points, axes=1)
        shift = np.stack([noise(points) for noise in self.displacement])
        return cast(FloatArray, straight + np.float32(self.amplitude_mm) * shift)


def sample_deformation(
    rng: np.random.Generator,
    *,
    scale_sd: float,
    rotation_sd_degrees: float,
    amplitude_mm: float,
    wavelength_mm: float,
) -> Deformation:
    """Returns a random deformation; an amplitude of a fortieth of the wavelength or less does not fold it."""
    scales = np.exp(rng.normal(0, scale_sd, size=3))
    matrix = rotation_matrix(rng.normal(0, rotation_sd_degrees, size=3)) @ np.diag(scales)
    noises = (
        sample_noise(rng, wavelength_mm, 5),
        sample_noise(rng, wavelength_mm, 5),
        sample_noise(rng, wavelength_mm, 5),
    )
    return Deformation(matrix.astype(np.float32), noises, amplitude_mm)


def rotation_matrix(degrees: ArrayLike) -> NDArray[np.float64]:
    """Returns the (3, 3) rotation about the x axis, then y, then z.

    >>> rotation_matrix((0, 0, 90)).round().astype(int).tolist()
    [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    """
    x, y, z = np.deg2rad(np.asarray(degrees, float))
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return cast(NDArray[np.float64], about_z @ about_y @ about_x)


def ellipsoid_depth(
    points: FloatArray, centre: ArrayLike, radii: ArrayLike, degrees: ArrayLike | None = None
) -> FloatArray:
    """Returns the depth in an ellipsoid, exact on its surface and to first order around it.

    Args:
        points: (3, ...) mm.
        centre: (3,) mm.
        radii: (3,) mm along x, y, z; `np.inf` makes a cylinder along that axis.
        degrees: rotation of the ellipsoid about x, y, z.
    """
    offset = points - _column(centre, points.ndim)
    if degrees is not None:
        offset = np.tensordot(rotation_matrix(degrees).T.astype(np.float32), offset, axes=1)
    scaled = offset / _column(radii, points.ndim)
    radius = np.sqrt(np.sum(scaled**2, axis=0))
    slope = np.sqrt(np.sum((scaled / _column(radii, points.ndim)) ** 2, axis=0))
    # radius / slope turns fractions of a radius into mm; at the very centre it is 0 / 0, hence `tiny`.
    tiny = np.float32(1e-4)
    return cast(FloatArray, (1 - radius) * (radius + tiny) / (slope + tiny / np.float32(np.min(radii))))


def capsule_depth(
    points: FloatArray, start: ArrayLike, end: ArrayLike, start_mm: float, end_mm: float
) -> FloatArray:
    """Returns the depth in a tube between two points (mm) whose radius goes from `start_mm` to `end_mm`."""
    axis = (np.asarray(end, np.float32) - np.asarray(start, np.float32)).astype(np.float32)
    offset = points - _column(start, points.ndim)
    along = np.clip(np.tensordot(axis, offset, axes=1) / np.dot(axis, axis), 0, 1)
    nearest = axis.reshape((3,) + (1,) * (points.ndim - 1)) * along
    distance = np.sqrt(np.sum((offset - nearest) ** 2, axis=0))
    return cast(FloatArray, np.float32(start_mm) + np.float32(end_mm - start_mm) * along - distance)


def smooth_union(first: FloatArray, second: FloatArray, width_mm: float) -> FloatArray:
    """Returns the union of two depths with the crease between them rounded over `width_mm`."""
    overlap = np.clip(width_mm - np.abs(first - second), 0, None) / width_mm
    return cast(FloatArray, np.maximum(first, second) + np.float32(width_mm / 4) * overlap**2)


def mirror_left_right(points: FloatArray) -> FloatArray:
    """Returns the points folded onto the right side (x >= 0): a shape drawn there appears on both sides."""
    return cast(FloatArray, np.concatenate([np.abs(points[:1]), points[1:]]))


class Canvas:
    """An image and its label map, painted from the back to the front.

    The image blends over the border of a shape, as a voxel holding two tissues does; the label map is cut at
    depth 0.

    Attributes:
        image: (X, Y, Z) float32.
        label_map: (X, Y, Z) uint8 class indices.
    """

    def __init__(self, shape: tuple[int, ...], background: float, edge_mm: float) -> None:
        self.image: FloatArray = np.full(shape, background, np.float32)
        self.label_map: NDArray[np.uint8] = np.zeros(shape, np.uint8)
        self._edge_mm = np.float32(edge_mm)

    def paint(self, depth: FloatArray, value: float | FloatArray, class_index: int | None = None) -> None:
        """Paints `value` where the depth is positive; sets the class there too, unless it is None."""
        cover = np.clip(np.float32(0.5) + depth / self._edge_mm, 0, 1)
        self.image += cover * (value - self.image)
        if class_index is not None:
            self.label_map[depth > 0] = class_index


def _column(vector: ArrayLike, dimensions: int) -> FloatArray:
    return np.asarray(vector, np.float32).reshape((3,) + (1,) * (dimensions - 1))
