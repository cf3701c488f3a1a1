"""Which parts of a volume matter: blocks of air are background without asking the network."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from medseg_brn.inference.tiles import Box
from medseg_brn.networks.levels import Level
from medseg_brn.networks.unet3d import Size3


class Needed:
    """The blocks that hold something, and what is needed of each level to score them.

    A coarser level is needed wherever a block's scores could look: one block further per level, which is
    more than the halo of its convolutions. Blocks lie on a lattice from voxel 0, so what is left out does not
    depend on how a volume is cut into tiles.
    """

    def __init__(
        self, levels: Sequence[Level], occupied: np.ndarray | None, block: Size3, shape: Size3
    ) -> None:
        """Note the blocks.

        Args:
            levels: of the network.
            occupied: boolean (x, y, z) of blocks; None where all are.
            block: size of a block in voxels; levels that do not divide it are computed everywhere.
            shape: of the finest level, which the network's strides may make larger than the image. Beyond
                the image nothing is scored, but what lies there is looked at from within.
        """
        self._levels, self._shape = levels, shape
        self._blocks: list[tuple[np.ndarray, Size3]] = []
        if occupied is None:
            return
        missing = [
            max(0, math.ceil(size / step) - count)
            for size, step, count in zip(shape, block, occupied.shape, strict=True)
        ]
        self._blocks.append((np.pad(occupied, [(0, extra) for extra in missing]), block))
        for level in levels[:-1]:
            occupied, block = self._blocks[-1]
            coarser = _coarsen(block, level)
            if coarser is None:
                break
            self._blocks.append((ndimage.binary_dilation(occupied, np.ones((3, 3, 3))), coarser))

    def bounds(self, index: int, box: Box) -> Box | None:
        """Return the smallest part of a box of level `index` with all that is needed of it, or None."""
        if index >= len(self._blocks):
            return box
        occupied, size = self._blocks[index]
        blocks = tuple(
            slice(side.start // step, -(-side.stop // step)) for side, step in zip(box, size, strict=True)
        )
        found = ndimage.find_objects(occupied[blocks].astype(np.int8))
        if not found:
            return None
        x, y, z = (
            slice(
                max(side.start, (first.start + part.start) * step),
                min(side.stop, (first.start + part.stop) * step),
            )
            for side, first, part, step in zip(box, blocks, found[0], size, strict=True)
        )
        return x, y, z

    def mirrored(self, axes: Sequence[int], shape: Sequence[int]) -> "Needed":
        """Return the same for the volume of `shape` mirrored along the axes, with its own lattice."""
        if not self._blocks:
            return self
        occupied, block = self._blocks[0]
        for axis in axes:
            voxels = np.flip(np.repeat(occupied, block[axis], axis).take(range(shape[axis]), axis), axis)
            starts = np.arange(0, shape[axis], block[axis])
            occupied = np.logical_or.reduceat(voxels, starts, axis)
        return Needed(self._levels, occupied, block, self._shape)

    def leave_out(self, scores: Tensor, start: int, exclusive: bool = True) -> Tensor:
        """Make everything background that is in no needed block.

        Args:
            scores: (K, x, Y, Z) of the planes from `start` on, probabilities; changed in place.
            start: the first plane's number.
            exclusive: whether the background is the first of the channels; else it is where none has any.
        """
        if not self._blocks:
            return scores
        occupied, block = self._blocks[0]
        planes = np.arange(start, start + scores.shape[1]) // block[0]
        y, z = (np.arange(n) // step for n, step in zip(scores.shape[2:], block[1:], strict=True))
        empty = torch.from_numpy(~occupied[np.ix_(planes, y, z)]).to(scores.device)
        scores.masked_fill_(empty, 0)
        if exclusive:
            scores[0].masked_fill_(empty, 1)
        return scores


def _coarsen(block: Size3, level: Level) -> Size3 | None:
    """The block in voxels of the next coarser level; None where it is no whole number, or less than what the
    level's convolutions look at."""
    x, y, z = (
        size // step if size % step == 0 and size // step > math.ceil(halo / step) else 0
        for size, step, halo in zip(block, level.upsample_stride, level.decode.halo, strict=True)  # type: ignore[union-attr]
    )
    return (x, y, z) if min(x, y, z) > 0 else None
