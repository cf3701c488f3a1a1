"""The features of one level, kept whole between its computation and its last use."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from medseg_brn.inference.tiles import Box
from medseg_brn.volumes.scratch import Scratch

# NumPy has no bfloat16; on file its bits are integers of the same size.
_STORED_AS = {torch.bfloat16: np.uint16, torch.float32: np.float32, torch.uint8: np.uint8}


class FeatureMap:
    """Features of a whole level, written and read box by box, in memory or on file.

    They lie channels last, so that slabs across X are contiguous.
    """

    def __init__(self, shape: Sequence[int], scratch: Scratch | None) -> None:
        """Make a map of (X, Y, Z) voxels that takes its channels and number format from what is written.

        Args:
            shape: of the level, in voxels.
            scratch: where a map on file is made; None keeps it where the features are.
        """
        self._shape = tuple(shape)
        self._scratch = scratch
        self._file: np.ndarray | None = None
        self._values: Tensor | None = None  # (X, Y, Z, C)
        self._device = torch.device("cpu")  # of what is written, and hence of what is read

    def write(self, box: Box, features: Tensor) -> None:
        """Keep features (1, C, x, y, z) of a box."""
        values, self._device = features[0].permute(1, 2, 3, 0), features.device
        if self._values is None and self._scratch is None and values.shape[:3] == self._shape:
            self._values = values  # the level was computed in one piece
            return
        if self._values is None:
            self._values = self._make(values)
        self._values[box] = values
        self._release()

    def read(self, box: Box) -> Tensor:
        """Return the features of a box, (1, C, x, y, z), channels last; those of the whole are not a copy."""
        assert self._values is not None, "features are read after they are written"
        features = self._values[box].permute(3, 0, 1, 2)[None]
        copied = features.contiguous(memory_format=torch.channels_last_3d)
        if self._file is not None and copied.data_ptr() == features.data_ptr():
            copied = copied.clone(memory_format=torch.channels_last_3d)
        self._release()
        return copied.to(self._device)

    def _make(self, values: Tensor) -> Tensor:
        shape = (*self._shape, values.shape[-1])
        if self._scratch is None:
            return torch.empty(shape, dtype=values.dtype, device=values.device)
        self._file = self._scratch.file_array(shape, _STORED_AS[values.dtype])
        return torch.from_numpy(self._file).view(values.dtype)

    def _release(self) -> None:
        if self._file is not None and self._scratch is not None:
            self._scratch.release(self._file)
