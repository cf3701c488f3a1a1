"""From a scan's own grid to the network's and back: canonical axes, crop, voxel size.

    input grid --canonical axes--> RAS+ --crop--> [lower, upper) --resample--> network grid

A `SpatialRecord` holds what the way back needs. Everything here moves voxels and never changes
what they mean: images are interpolated, label maps keep their classes.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from medseg_brn.errors import ModelError, ScoresError
from medseg_brn.volumes.geometry import (
    Order,
    crop_grid,
    reorient,
    resample_array,
    resample_slabs,
    resampled_grid,
)
from medseg_brn.volumes.volume import Grid, Volume

CropName = Literal["none", "nonzero", "body"]

BODY_THRESHOLD_HU = -500.0
# nnU-Net's rule (Isensee et al. 2021): slices this much thicker than the pixels are wide carry
# little shape from one to the next, and a cubic spline through them rings.
THICK_SLICE_RATIO = 3.0
# A voxel size this close to the target is the target: resampling would blur and gain nothing.
SPACING_TOLERANCE = 0.01
# Connected pieces are looked for on no more voxels than this; their numbers take four bytes each.
COMPONENT_VOXELS = 2**25


@dataclass(frozen=True, eq=False)
class SpatialRecord:
    """How one scan was brought to the network's grid, so that a result can be brought back.

    Attributes:
        input_grid: The scan's own grid.
        lower: First voxel kept, in canonical axes.
        upper: One past the last voxel kept, in canonical axes.
        network_grid: The grid of what the network sees, in canonical axes.
        orientation: What is called canonical axes above: RAS+, or those of a model that takes others.
    """

    input_grid: Grid
    lower: tuple[int, int, int]
    upper: tuple[int, int, int]
    network_grid: Grid
    orientation: str = "RAS"

    @property
    def network_shape(self) -> tuple[int, int, int]:
        """Shape of what the network sees."""
        return self.network_grid.shape

    @property
    def canonical_shape(self) -> tuple[int, int, int]:
        """Shape of the whole scan in canonical axes."""
        empty = np.broadcast_to(np.uint8(0), self.input_grid.shape)  # of no size in memory
        return reorient(Volume(empty, self.input_grid), self.orientation).shape

    @property
    def cropped_shape(self) -> tuple[int, int, int]:
        """Shape of the kept region at the scan's own voxel size, in canonical axes."""
        return _as_triple(high - low for low, high in zip(self.lower, self.upper, strict=True))

    @property
    def region(self) -> tuple[slice, slice, slice]:
        """The kept region as an index into a canonical array."""
        x, y, z = (slice(low, high) for low, high in zip(self.lower, self.upper, strict=True))
        return x, y, z


def plan_space(
    channels: Sequence[Volume], crop: CropName, spacing_mm: Sequence[float], orientation: str = "RAS"
) -> SpatialRecord:
    """Returns how these channels of one scan (on one grid) get to voxels of `spacing_mm`.

    Args:
        channels: The scan's channels on their own grid; `body` looks for the body in the first.
        crop: Region kept; when there is nothing to find (a blank scan), everything is.
        spacing_mm: Target voxel size along the canonical axes; an axis within 1 % of it is left as it is.
        orientation: What the canonical axes are (`volumes.geometry.reorient`).
    """
    canonical = [reorient(channel, orientation) for channel in channels]
    lower, upper = find_crop([channel.array for channel in canonical], crop)
    kept = crop_grid(canonical[0].grid, lower, upper)
    wanted_mm = [
        own if abs(own - target) <= SPACING_TOLERANCE * target else target
        for own, target in zip(kept.spacing_mm, spacing_mm, strict=True)
    ]
    return SpatialRecord(channels[0].grid, lower, upper, resampled_grid(kept, wanted_mm), orientation)


def find_crop(
    channels: Sequence[np.ndarray], crop: CropName
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Returns the bounds [lower, upper) of the region to keep, in voxels of the arrays.

    Args:
        channels: Arrays (X, Y, Z) of one scan.
        crop: `none` keeps everything; `nonzero` the bounding box of voxels that are not 0 in any
            channel; `body` that of the largest connected piece of the first channel (CT, in HU)
            above -500 HU.
    """
    full: tuple[int, int, int] = channels[0].shape
    if crop == "none":
        return (0, 0, 0), full
    if crop == "body":
        return _find_body(channels[0])
    return _find_bounds(channels)


def _find_body(array: np.ndarray) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Returns the bounds of the body; in a large scan looked for on every second voxel or fewer, and wider
    by as many."""
    step = math.ceil((array.size / COMPONENT_VOXELS) ** (1 / 3))
    mask = _largest_component(array[::step, ::step, ::step] > BODY_THRESHOLD_HU)
    boxes = ndimage.find_objects(mask.view(np.uint8))
    if not boxes:
        return (0, 0, 0), array.shape
    wider = step - 1
    lower = (max(0, side.start * step - wider) for side in boxes[0])
    upper = (min(n, side.stop * step + wider) for side, n in zip(boxes[0], array.shape, strict=True))
    return _as_triple(lower), _as_triple(upper)


def _find_bounds(channels: Sequence[np.ndarray]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Returns the bounds of all that is not 0 in any channel."""
    shape = channels[0].shape
    found = [np.zeros(size, bool) for size in shape]
    for x in range(shape[0]):
        plane = np.logical_or.reduce([channel[x] != 0 for channel in channels])
        found[0][x] = plane.any()
        found[1] |= plane.any(1)
        found[2] |= plane.any(0)
    if not found[0].any():
        return (0, 0, 0), _as_triple(shape)
    ends = [np.flatnonzero(axis)[[0, -1]] for axis in found]
    return _as_triple(int(first) for first, _ in ends), _as_triple(int(last) + 1 for _, last in ends)


def resample_image(
    read_planes: Callable[[int, int], np.ndarray],
    old_shape: Sequence[int],
    spacing_mm: Sequence[float],
    out: np.ndarray,
) -> None:
    """Resamples an image channel over the same field of view, slab by slab.

    Axes that lose voxels are smoothed first. Cubic, except along thick slices (an axis whose voxels
    are more than 3 times as long as along both others), where it is linear; nnU-Net's rule (Isensee
    et al. 2021), which takes the nearest slice there.

    Args:
        read_planes: Gives the planes [first, last) of the channel, (x, Y, Z).
        old_shape: Its shape.
        spacing_mm: Its voxel size.
        out: (X, Y, Z) float32, of the shape wanted; filled.
    """
    new_spacing_mm = [own * old / new for own, old, new in zip(spacing_mm, old_shape, out.shape, strict=True)]
    thick = next((axis for axis in map(_thick_axis, (spacing_mm, new_spacing_mm)) if axis is not None), None)
    orders: list[Order] = ["linear" if axis == thick else "cubic" for axis in range(3)]
    for start, slab in resample_slabs(read_planes, old_shape, out.shape, orders, antialias=True):
        out[start : start + len(slab)] = slab


def resample_label_map(label_map: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Returns the label map on `shape` voxels: each class's mask resampled linearly, the largest wins.

    Holds a few volumes at a time, however many classes there are. Ties go to the lower class.

    Args:
        label_map: (X, Y, Z) classes, unsigned integers.
        shape: Shape wanted; the field of view stays the same.
    """
    if label_map.shape == tuple(shape):
        return label_map
    classes = np.unique(label_map)
    masks = ((label_map == value).astype(np.float32) for value in classes)
    return classes[_running_argmax(masks, shape)]


def _running_argmax(scores: Iterable[np.ndarray], shape: Sequence[int]) -> np.ndarray:
    """Returns the index of the largest score after linear resampling, as np.argmax would."""
    best = np.full(shape, -np.inf, dtype=np.float32)
    winners = np.zeros(shape, dtype=np.uint8)
    index = -1
    for index, score in enumerate(scores):
        if index == np.iinfo(np.uint8).max + 1:
            winners = winners.astype(np.uint16)
        for x, plane in enumerate(_resample_planes(score, shape)):
            winners[x][plane > best[x]] = index
            np.maximum(best[x], plane, out=best[x])  # a NaN stays, and is found below
    if index < 0:
        raise ModelError("There are no class scores to make a label map of; the network must have classes.")
    if np.isnan(best.min()):
        raise ScoresError("The network's scores contain NaN, so no class wins; check its weights and input.")
    return winners


def _resample_planes(score: np.ndarray, shape: Sequence[int]) -> Iterator[np.ndarray]:
    """Yields the planes (Y, Z) of the linearly resampled scores, so that the whole is never held."""
    if score.shape == tuple(shape):
        yield from score
        return
    stack = resample_array(score, (len(score), *shape[1:]), "linear")
    # The plane numbers, resampled likewise, tell where in the stack each plane wanted lies.
    numbers = np.arange(len(stack), dtype=np.float32).reshape(-1, 1, 1)
    # Rounding may put the last one a little beyond the stack.
    for position in np.minimum(resample_array(numbers, (shape[0], 1, 1), "linear").ravel(), len(stack) - 1):
        below = int(position)
        above = position - np.float32(below)  # share of the plane above
        yield stack[below] if above == 0 else (1 - above) * stack[below] + above * stack[below + 1]


def _thick_axis(spacing_mm: Sequence[float]) -> int | None:
    """Returns the axis of thick slices, or None where there is no single one."""
    *_, second, longest = sorted(spacing_mm)
    return list(spacing_mm).index(longest) if longest > THICK_SLICE_RATIO * second else None


def _largest_component(mask: np.ndarray) -> np.ndarray:
    """Returns the largest face-connected piece of the mask (the first of equals)."""
    labels, count = ndimage.label(mask)
    if count <= 1:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


def _as_triple(values: Iterable[int]) -> tuple[int, int, int]:
    x, y, z = values
    return x, y, z
