"""Blocks of a scan where there is surely nothing: air around the body, padding around a brain.

The network's grid is divided into blocks. A block is empty if no voxel in it, nor in the blocks around it,
holds anything: for CT nothing above -800 HU, for other channels nothing but exact zeros. Air are those empty
blocks that are connected, through empty ones, with the left, right, front or back side of the grid.
"""

import math
from collections.abc import Sequence

import numpy as np

AIR_BELOW_HU = -800
BLOCK = 16


def find_occupied_blocks(
    channels: Sequence[np.ndarray], are_ct: Sequence[bool], shape: Sequence[int]
) -> np.ndarray:
    """Return which blocks of the network's grid are not air.

    Args:
        channels: each (X, Y, Z), as measured, cropped.
        are_ct: of each channel, whether it is CT in HU.
        shape: of the network's grid.
    """
    filled = np.zeros([math.ceil(size / BLOCK) for size in shape], bool)
    for channel, is_ct in zip(channels, are_ct, strict=True):
        found = channel > AIR_BELOW_HU if is_ct else channel != 0
        for axis in range(3):
            found = _any_in_blocks(found, axis, shape[axis])
        filled |= found
    for axis in range(3):
        filled = _widen(filled, axis)
    empty = ~filled
    air = np.zeros_like(empty)
    air[[0, -1]] = air[:, [0, -1]] = True
    air &= empty
    count = -1
    while count != air.sum():
        count = air.sum()
        air = (_widen(air, 0) | _widen(air, 1) | _widen(air, 2)) & empty
    return ~air


def spread_blocks(occupied: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return of each voxel of the network's grid whether its block is occupied."""
    x, y, z = (np.arange(size) // BLOCK for size in shape)
    return occupied[np.ix_(x, y, z)]


def _any_in_blocks(found: np.ndarray, axis: int, network: int) -> np.ndarray:
    """Return whether anything is found, along an axis, where the voxels of each block are taken from."""
    own = found.shape[axis]
    edges = np.minimum(np.arange(math.ceil(network / BLOCK) + 1) * BLOCK, network) * own / network
    starts = np.maximum(0, np.floor(edges[:-1]).astype(int) - 2)
    stops = np.minimum(own, np.ceil(edges[1:]).astype(int) + 2)
    parts = [
        found.take(range(start, stop), axis).any(axis, keepdims=True)
        for start, stop in zip(starts, stops, strict=True)
    ]
    return np.concatenate(parts, axis)


def _widen(mask: np.ndarray, axis: int) -> np.ndarray:
    """Return the mask and its neighbours on both sides along an axis."""
    result = mask.copy()
    wider = np.moveaxis(result, axis, 0)
    own = np.moveaxis(mask, axis, 0)
    wider[1:] |= own[:-1]
    wider[:-1] |= own[1:]
    return result
