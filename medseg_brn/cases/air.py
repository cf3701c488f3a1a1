"""Blocks of a scan where there is surely nothing: air around the body, padding around a brain.

The network's grid is divided into blocks on a lattice from voxel 0, so what is found does not depend on how
a volume is cut into tiles. A block is *empty* if no voxel in it, nor in the blocks around it (corners
included), holds anything: for CT nothing above -800 HU, for other channels nothing but exact zeros; with
several channels, in all of them. Of the empty blocks, those count that are connected, through empty ones,
with the left, right, front or back side of the grid. The head and foot ends do not count: there the scan
cuts through lungs, gas and windpipe, which must not be taken for air.

What follows: a structure outside the body, in air, further than a block from anything else is not looked
for. A cavity inside the body is, also where it is cut off above or below.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from medseg_brn.cases.preprocessing import Preprocessing
from medseg_brn.cases.spatial import SpatialRecord
from medseg_brn.volumes.geometry import reorient
from medseg_brn.volumes.volume import Volume

# Above air (-1000 HU) with its noise and below lung (-900 to -600 HU), which is told from air by its vessels:
# no cube of three blocks within a lung is without one.
AIR_BELOW_HU = -800
NEIGHBOURS = np.ones((3, 3, 3), bool)
# Planes of the scan that are looked at together.
SLAB_PLANES = 32


def find_air_blocks(
    channels: Sequence[Volume], preprocessing: Preprocessing, record: SpatialRecord, block: Sequence[int]
) -> np.ndarray | None:
    """Return which blocks of the network's grid are air.

    Args:
        channels: the scan's channels on its own grid.
        preprocessing: tells CT from other channels.
        record: how the scan was prepared.
        block: size of a block in voxels of the network's grid.

    Returns:
        Boolean, one value per block, those at the upper ends being cut off; None where none is air.
    """
    filled = None
    for channel, scheme in zip(channels, preprocessing.intensity, strict=True):
        inside = reorient(channel, record.orientation).array[record.region]
        found = _find_filled(inside, record.network_shape, block, is_ct=scheme.scheme == "ct")
        filled = found if filled is None else filled | found
    assert filled is not None, "a scan has a channel"
    empty = ~ndimage.binary_dilation(filled, NEIGHBOURS)
    seeds = np.zeros_like(empty)
    seeds[[0, -1]] = seeds[:, [0, -1]] = True
    air = ndimage.binary_propagation(seeds & empty, mask=empty)
    return air if air.any() else None


def _find_filled(
    inside: np.ndarray, shape: Sequence[int], block: Sequence[int], *, is_ct: bool
) -> np.ndarray:
    """Return which blocks hold something in one channel (X, Y, Z) of the kept region."""
    ranges = [_block_ranges(*sizes) for sizes in zip(inside.shape, shape, block, strict=True)]
    filled = np.zeros([len(starts) for starts, _ in ranges], bool)
    for x, (start, stop) in enumerate(zip(*ranges[0], strict=True)):
        found = np.zeros(inside.shape[1:], bool)
        for first in range(start, stop, SLAB_PLANES):
            slab = inside[first : min(first + SLAB_PLANES, stop)]
            found |= slab.max(0) > AIR_BELOW_HU if is_ct else (slab != 0).any(0)
        for axis in (0, 1):
            found = _any_in_ranges(found, *ranges[axis + 1], axis)
        filled[x] = found
    return filled


def _block_ranges(own: int, network: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where, in `own` voxels, the blocks of a grid of `network` voxels over the same length lie.

    Each range is wide enough for all voxels that any of the block's is interpolated from. Where voxels are
    lost, smoothing looks a little further; there the blocks around, which must be empty too, see to it.
    """
    edges = np.minimum(np.arange(math.ceil(network / block) + 1) * block, network) * own / network
    starts = np.maximum(0, np.floor(edges[:-1]).astype(int) - 2)
    return starts, np.minimum(own, np.ceil(edges[1:]).astype(int) + 2)


def _any_in_ranges(found: np.ndarray, starts: np.ndarray, stops: np.ndarray, axis: int) -> np.ndarray:
    """Return, along an axis, whether anything is found in each range."""
    parts = [
        found.take(range(start, stop), axis).any(axis, keepdims=True)
        for start, stop in zip(starts, stops, strict=True)
    ]
    return np.concatenate(parts, axis)
