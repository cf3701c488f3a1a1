"""From the network's probabilities back to the scan: interpolated first, decided then."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms import Transform

from .air import spread_blocks
from .resampling import find_neighbours

REGION_THRESHOLD = 0.5


class RestoreLabelMapd(Transform):
    """Makes of `pred`, probabilities (K, x, y, z), a label map (1, X, Y, Z) of classes on the scan's grid.

    Each class is interpolated linearly to the scan's voxels before it is decided which one they have, so that
    borders fall between the network's voxels. Outside the crop, and in air, is background.
    """

    def __init__(self, written_classes: Sequence[int] = ()) -> None:
        """Take how classes are decided.

        Args:
            written_classes: of regions, the class that each writes where its probability exceeds 1/2, later
                ones over earlier ones; none where the channels are classes, of which the likeliest wins.
        """
        self.written_classes = tuple(written_classes)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the data with the label map.

        Raises:
            ValueError: a probability is NaN.
        """
        scores = np.array(torch.as_tensor(data["pred"]).cpu(), np.float32)
        if np.isnan(scores.min()):
            raise ValueError("The network's probabilities contain NaN, so no class wins")
        lower, upper, size = (tuple(map(int, row)) for row in data["region"])
        air = ~spread_blocks(np.asarray(data["occupied"], bool), scores.shape[1:])
        scores[:, air] = 0
        if not self.written_classes:
            scores[0, air] = 1
        label_map = np.zeros(size, np.int32)
        inside = label_map[tuple(slice(*bounds) for bounds in zip(lower, upper, strict=True))]
        x, y, z = (find_neighbours(*sizes) for sizes in zip(scores.shape[1:], inside.shape, strict=True))
        for plane, (below, above, share) in enumerate(zip(*x, strict=True)):
            mixed = _mix(scores[:, below], scores[:, above], share)
            mixed = _mix(mixed[:, :, z[0]], mixed[:, :, z[1]], z[2])
            mixed = _mix(mixed[:, y[0]], mixed[:, y[1]], y[2][:, None])
            inside[plane] = self._decide(mixed)
        return {**data, "pred": MetaTensor(torch.from_numpy(label_map)[None], meta=data["image"].meta)}

    def _decide(self, scores: np.ndarray) -> np.ndarray:
        if not self.written_classes:
            return scores.argmax(0)
        classes = np.zeros(scores.shape[1:], np.int32)
        for written, probability in zip(self.written_classes, scores, strict=True):
            classes[probability > REGION_THRESHOLD] = written
        return classes


def _mix(lower: np.ndarray, upper: np.ndarray, share: np.ndarray | np.float32) -> np.ndarray:
    return lower + (upper - lower) * share
