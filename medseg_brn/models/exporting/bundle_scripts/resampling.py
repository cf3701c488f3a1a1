"""Changes of voxel size over the same field of view: outer edges stay where they are.

Voxel i of n_new lies at (i + 1/2) n_old / n_new - 1/2 in the old array. Beyond the outermost centres the
edge value continues.
"""

from collections.abc import Sequence

import numpy as np

# A voxel size this close to the target is the target.
SPACING_TOLERANCE = 0.01
# Along slices this much thicker than the pixels are wide, interpolation is linear.
THICK_SLICE_RATIO = 3.0
GAUSSIAN_REACH = 4


def choose_shape(
    shape: Sequence[int], spacing_mm: Sequence[float], target_mm: Sequence[float]
) -> tuple[int, ...]:
    """Return the number of voxels along each axis whose size is nearest to the target, at least 1."""
    wanted = [
        own if abs(own - target) <= SPACING_TOLERANCE * target else target
        for own, target in zip(spacing_mm, target_mm, strict=True)
    ]
    sizes = np.maximum(1, np.round(np.array(shape) * spacing_mm / np.array(wanted))).astype(int)
    return tuple(sizes.tolist())


def resample_image(array: np.ndarray, spacing_mm: Sequence[float], shape: Sequence[int]) -> np.ndarray:
    """Return the image (X, Y, Z) on `shape` voxels, float32.

    Axes that lose voxels are smoothed first. Cubic (Keys, 1981, a = -1/2), except along thick slices, where
    it is linear (Isensee et al. 2021).
    """
    new_spacing_mm = [own * old / new for own, old, new in zip(spacing_mm, array.shape, shape, strict=True)]
    thick = _thick_axis(spacing_mm)
    thick = _thick_axis(new_spacing_mm) if thick is None else thick
    result = np.asarray(array, np.float32)
    for axis in (1, 2, 0):
        old, new = result.shape[axis], shape[axis]
        if old == new:
            continue
        if new < old:
            result = _smooth(result, axis, (old / new - 1) / 2)
        result = _interpolate(result, axis, new, cubic=axis != thick)
    return result


def find_neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each of `new` voxels the `old` ones below and above it, and the share of the one above."""
    position = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    below = np.floor(position).astype(np.intp)
    share = (position - below).astype(np.float32)
    return below, np.minimum(below + (share > 0), old - 1), share


def _thick_axis(spacing_mm: Sequence[float]) -> int | None:
    *_, second, longest = sorted(spacing_mm)
    return list(spacing_mm).index(longest) if longest > THICK_SLICE_RATIO * second else None


def _smooth(array: np.ndarray, axis: int, sigma: float) -> np.ndarray:
    """Return the array smoothed along an axis by a Gaussian of `sigma` voxels, cut off at 4 sigma."""
    reach = int(GAUSSIAN_REACH * sigma + 0.5)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 / sigma**2 * offsets**2)
    weights /= weights.sum()
    places = np.arange(array.shape[axis])
    result = np.zeros(array.shape, np.float64)
    for offset, weight in zip(offsets, weights, strict=True):
        result += weight * array.take(np.clip(places + offset, 0, len(places) - 1), axis)
    return result.astype(np.float32)


def _interpolate(array: np.ndarray, axis: int, new: int, *, cubic: bool) -> np.ndarray:
    old = array.shape[axis]
    position = (np.arange(new) + 0.5) * old / new - 0.5
    below = np.floor(position).astype(int)
    t = position - below
    weights = {0: 1 - t, 1: t}
    if cubic:
        weights = {
            -1: (-(t**3) + 2 * t**2 - t) / 2,
            0: (3 * t**3 - 5 * t**2 + 2) / 2,
            1: (-3 * t**3 + 4 * t**2 + t) / 2,
            2: (t**3 - t**2) / 2,
        }
    along_axis = [new if other == axis else 1 for other in range(3)]
    shape = [new if other == axis else size for other, size in enumerate(array.shape)]
    result = np.zeros(shape, np.float32)
    for offset, weight in weights.items():
        neighbour = array.take(np.clip(below + offset, 0, old - 1), axis)
        result += neighbour * weight.astype(np.float32).reshape(along_axis)
    return result
