"""Changes of a volume's grid: orientation, spacing, crop. Pure functions.

Axes and affines follow `volume.py`. Grids made here carry no NIfTI header, for the header describes the grid
it was read from.
"""

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Literal

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from scipy.ndimage import gaussian_filter1d

from medseg_brn.volumes.volume import Grid, Volume

Order = Literal["linear", "nearest", "cubic"]

GAUSSIAN_REACH = 4
"""How many standard deviations SciPy's Gaussian looks at."""

SLAB_VALUES = 2**22
"""Values that are resampled at once."""

CANONICAL = np.array([[0, 1], [1, 1], [2, 1]])
"""nibabel's orientation array of RAS+: axis i runs along world axis i, forwards."""


AS_STORED = "stored"
"""In the place of an orientation's letters: axes stay as they are."""


def canonicalize(volume: Volume) -> Volume:
    """Permutes and flips the axes so that X, Y, Z run nearest to right, anterior, superior.

    No value is interpolated and every voxel keeps its place in mm, so an oblique grid stays oblique. The
    array is a view of the volume's; a volume that is canonical already is returned itself.
    """
    return reorient(volume, "RAS")


def reorient(volume: Volume, orientation: str) -> Volume:
    """Permutes and flips the axes as `canonicalize` does, so that they run nearest to the directions named.

    Args:
        volume: on any grid.
        orientation: the direction of each axis: "RAS" are the canonical axes, "LPS" those of DICOM; or
            `AS_STORED`, which changes nothing.
    """
    changes = _changes_of_axes(volume.affine, orientation)
    if np.array_equal(changes, CANONICAL):
        return volume
    array = apply_orientation(volume.array, changes)
    affine = volume.affine @ inv_ornt_aff(changes, volume.shape)
    return Volume(array, Grid(array.shape, affine))


def restore_orientation(array: np.ndarray, grid: Grid, orientation: str = "RAS") -> np.ndarray:
    """Undoes `reorient`: an array in the axes named, in the axes of the grid it came from.

    Args:
        array: (X, Y, Z) or (X, Y, Z, channels), in canonical axes unless others are named.
        grid: the grid before `reorient`.
        orientation: as for `reorient`.

    Returns:
        A view of the same values, with the shape of `grid`; channels stay last.

    Raises:
        ValueError: the array has not the shape that `reorient` gives a volume on `grid`.
    """
    changes = _changes_of_axes(grid.affine, orientation)
    # Axis i of the grid became axis source[i], reversed where flip[i] is -1.
    source, flip = changes[:, 0].astype(int), changes[:, 1]
    moved = array.transpose(*source, *range(3, array.ndim))
    restored = np.flip(moved, axis=tuple(axis for axis in range(3) if flip[axis] < 0))
    if restored.shape[:3] != grid.shape:
        raise ValueError(
            f"a canonical array of shape {array.shape} does not come from a grid of shape {grid.shape}"
        )
    return restored


def _changes_of_axes(affine: np.ndarray, orientation: str) -> np.ndarray:
    """nibabel's orientation array from the axes of an affine to those named."""
    if orientation == AS_STORED:
        return CANONICAL
    return ornt_transform(io_orientation(affine), axcodes2ornt(tuple(orientation)))


def resampled_grid(grid: Grid, spacing_mm: Sequence[float]) -> Grid:
    """The grid over the same field of view whose spacing is the nearest possible to `spacing_mm`.

    Outer edges stay where they are, as in this row of 4 voxels of 1 mm and 2 voxels of 2 mm:

        | 0 | 1 | 2 | 3 |
        |   0   |   1   |

    so a size is a whole number of voxels, at least 1, and the spacing is what the field of view divided by it
    is.
    """
    wanted = np.asarray(spacing_mm, dtype=np.float64)
    if wanted.shape != (3,) or not (np.isfinite(wanted) & (wanted > 0)).all():
        raise ValueError(f"spacing_mm is three positive lengths in mm, not {tuple(spacing_mm)}")
    old_shape = np.array(grid.shape)
    shape = np.maximum(1, np.round(old_shape * grid.spacing_mm / wanted)).astype(int)
    if np.array_equal(shape, old_shape):
        return grid
    factor = old_shape / shape
    affine = grid.affine.copy()
    affine[:3, :3] *= factor
    affine[:3, 3] += grid.affine[:3, :3] @ (factor / 2 - 0.5)
    return Grid(_sizes(shape), affine)


def crop_grid(grid: Grid, lower: Sequence[int], upper: Sequence[int]) -> Grid:
    """The grid of the voxels from `lower` (included) to `upper` (excluded), each still in its place in mm.

    Raises:
        ValueError: the box is empty or reaches outside the grid.
    """
    first, last = np.array(lower, dtype=int), np.array(upper, dtype=int)
    if (first < 0).any() or (last > grid.shape).any() or (first >= last).any():
        raise ValueError(
            f"a crop from {tuple(lower)} to {tuple(upper)} is not inside a grid of shape {grid.shape}"
        )
    affine = grid.affine.copy()
    affine[:3, 3] += grid.affine[:3, :3] @ first
    return Grid(_sizes(last - first), affine)


def resample_array(
    array: np.ndarray, shape: Sequence[int], order: Order, *, antialias: bool = False
) -> np.ndarray:
    """Values of an array at the voxels of another shape over the same field of view.

    Outer edges are aligned: voxel i of n_new lies at (i + 1/2) n_old / n_new - 1/2 in the old array. Beyond
    the outermost centres the edge value continues.

    Args:
        array: (X, Y, Z).
        shape: the three sizes wanted.
        order: "nearest" for label maps; "linear" and "cubic" (Keys, 1981, a = -1/2) for values.
        antialias: smooth the axes that lose voxels first, by a Gaussian of (n_old / n_new - 1) / 2 voxels;
            for images, never for label maps.

    Returns:
        An array of `shape`: of the same type for "nearest", else float32.
    """
    if order == "nearest":
        return array[
            np.ix_(*(_nearest_indices(old, new) for old, new in zip(array.shape, shape, strict=True)))
        ]
    result = np.asarray(array, dtype=np.float32)
    # The axis that shrinks most goes first: the later ones then have less to do.
    for axis in sorted(range(3), key=lambda axis: shape[axis] / array.shape[axis]):
        result = _change_axis(result, axis, shape[axis], order, antialias)
    return result.copy() if result is array else result


def resample_slabs(
    read_planes: Callable[[int, int], np.ndarray],
    old_shape: Sequence[int],
    shape: Sequence[int],
    orders: Sequence[Order],
    *,
    antialias: bool = False,
) -> Iterator[tuple[int, np.ndarray]]:
    """Values of an array at the voxels of another shape, as `resample_array` has them, slab by slab.

    Args:
        read_planes: gives the planes [first, last) of the array, (x, Y, Z).
        old_shape: of the array.
        shape: the three sizes wanted.
        orders: "linear" or "cubic", per axis.
        antialias: as in `resample_array`.

    Yields:
        The plane at which a slab begins, and its values (x, *shape[1:]), float32, consecutive along X.
    """
    old, new = old_shape[0], shape[0]
    sigma = (old / new - 1) / 2 if antialias and new < old else 0.0
    margin = int(GAUSSIAN_REACH * sigma + 0.5)
    # Where planes are lost, those read for a slab are more than those made.
    values_read = prod(old_shape[1:]) * max(1.0, old / new)
    planes = max(1, int(SLAB_VALUES / max(values_read, prod(shape[1:]))))
    for start in range(0, new, planes):
        stop = min(start + planes, new)
        position = (np.arange(start, stop) + 0.5) * old / new - 0.5
        first, last = start, stop
        if old != new:
            first = max(0, int(np.floor(position[0])) - 1 - margin)
            last = min(old, int(np.floor(position[-1])) + 3 + margin)
        stack = np.asarray(read_planes(first, last), dtype=np.float32)
        for axis in (1, 2):
            stack = _change_axis(stack, axis, shape[axis], orders[axis], antialias)
        if old != new:
            stack = gaussian_filter1d(stack, sigma, axis=0, mode="nearest") if sigma else stack
            stack = _interpolate(stack, 0, position - first, orders[0])
        yield start, stack


def _change_axis(array: np.ndarray, axis: int, new: int, order: Order, antialias: bool) -> np.ndarray:
    """Resamples one axis, smoothed first where it loses voxels."""
    old = array.shape[axis]
    if old == new:
        return array
    if antialias and new < old:
        array = gaussian_filter1d(array, (old / new - 1) / 2, axis=axis, mode="nearest")
    return _interpolate(array, axis, (np.arange(new) + 0.5) * old / new - 0.5, order)


def _sizes(shape: np.ndarray) -> tuple[int, int, int]:
    x, y, z = shape.tolist()
    return x, y, z


def _nearest_indices(old: int, new: int) -> np.ndarray:
    """(new,) index of the old voxel around each new centre; the upper one where it lies on a border."""
    return np.minimum(((2 * np.arange(new) + 1) * old) // (2 * new), old - 1)


def _interpolate(array: np.ndarray, axis: int, position: np.ndarray, order: Order) -> np.ndarray:
    """Interpolates along one axis: a weighted sum of 2 (linear) or 4 (cubic) neighbours, edges repeated."""
    old, new = array.shape[axis], len(position)
    below = np.floor(position).astype(int)
    along_axis = [new if other == axis else 1 for other in range(3)]
    result = np.zeros([new if other == axis else array.shape[other] for other in range(3)], dtype=np.float32)
    for offset, weight in WEIGHTS[order](position - below).items():
        neighbour = np.take(array, np.clip(below + offset, 0, old - 1), axis=axis)
        neighbour *= weight.astype(np.float32).reshape(along_axis)
        result += neighbour
    return result


def _linear_weights(t: np.ndarray) -> dict[int, np.ndarray]:
    """Weights of the neighbours 0 and 1 at fraction t above neighbour 0."""
    return {0: 1 - t, 1: t}


def _cubic_weights(t: np.ndarray) -> dict[int, np.ndarray]:
    """Weights of the neighbours -1, 0, 1, 2 at fraction t above neighbour 0: Keys' cubic, a = -1/2."""
    return {
        -1: (-(t**3) + 2 * t**2 - t) / 2,
        0: (3 * t**3 - 5 * t**2 + 2) / 2,
        1: (-3 * t**3 + 4 * t**2 + t) / 2,
        2: (t**3 - t**2) / 2,
    }


WEIGHTS = {"linear": _linear_weights, "cubic": _cubic_weights}
