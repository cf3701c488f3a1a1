"""Boxes of a volume: lists of tiles, tiles with their halo, and where one lies within the other."""

import math
from collections.abc import Sequence
from itertools import product

from medseg_brn.networks.unet3d import Size3

Box = tuple[slice, slice, slice]


def round_up(shape: Sequence[int], multiple: Sequence[int]) -> Size3:
    """The next larger shape of which every size is a multiple."""
    x, y, z = (math.ceil(size / step) * step for size, step in zip(shape, multiple, strict=True))
    return x, y, z


def list_tiles(shape: Sequence[int], tile: Sequence[int]) -> list[Box]:
    """Boxes of the tile's size, smaller at the upper ends, that cover the shape; X changes slowest."""
    cuts = [
        [slice(start, min(start + step, size)) for start in range(0, size, step)]
        for size, step in zip(shape, tile, strict=True)
    ]
    return [(x, y, z) for x, y, z in product(*cuts)]


def expand(box: Box, halo: Sequence[int], shape: Sequence[int], lattice: Sequence[int] = (1, 1, 1)) -> Box:
    """The box with its halo, out to the next point of the lattice, as far as the volume goes.

    Halo 1, lattice 2, in a volume of 10 voxels; the box (=) becomes the range marked by -:

        0 1 2 3 4 5 6 7 8 9
              = = =
            - - - - - -
    """
    x, y, z = (
        slice(max(0, (side.start - extra) // step * step), min(size, -(-(side.stop + extra) // step) * step))
        for side, extra, size, step in zip(box, halo, shape, lattice, strict=True)
    )
    return x, y, z


def within(box: Box, outer: Box) -> Box:
    """The box as an index into an array that covers `outer`."""
    x, y, z = (
        slice(inner.start - side.start, inner.stop - side.start)
        for inner, side in zip(box, outer, strict=True)
    )
    return x, y, z


def scale_up(box: Box, stride: Sequence[int]) -> Box:
    """The box in voxels that are `stride` times finer."""
    x, y, z = (slice(side.start * step, side.stop * step) for side, step in zip(box, stride, strict=True))
    return x, y, z


def scale_down(box: Box, stride: Sequence[int]) -> Box:
    """The box, whose ends lie on the stride's lattice, in voxels that are `stride` times coarser."""
    x, y, z = (slice(side.start // step, side.stop // step) for side, step in zip(box, stride, strict=True))
    return x, y, z


def box_shape(box: Box) -> Size3:
    """The number of voxels along each axis."""
    x, y, z = (side.stop - side.start for side in box)
    return x, y, z


def whole(shape: Sequence[int]) -> Box:
    """The box of a whole volume."""
    x, y, z = (slice(0, size) for size in shape)
    return x, y, z
