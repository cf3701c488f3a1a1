"""What is done to a label map after prediction, structure by structure; needs SciPy."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms import Transform
from scipy import ndimage


class PostprocessLabelMapd(Transform):
    """Removes small pieces of a structure, then all but its largest, and fills its holes.

    Pieces are connected through faces. Only what belongs to no other structure is filled. Regions are each
    seen as a whole, whatever classes they were written with; what is removed of a region is removed of the
    regions inside it too.
    """

    def __init__(
        self,
        rules: Sequence[Mapping[str, Any]],
        num_classes: int,
        regions: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Take the rules.

        Args:
            rules: each with `structure`, a class or the number of a region, and `keep_largest`,
                `remove_below_mm3`, `fill_holes`.
            num_classes: of the label map, the background counted.
            regions: each with the `classes` that it covers and its `written_class`.
        """
        self.rules, self.num_classes, self.regions = rules, num_classes, regions

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the data with `pred`, a label map (1, X, Y, Z) of classes, changed."""
        pred: MetaTensor = data["pred"]
        label_map = np.array(pred.as_tensor().cpu()[0])
        voxel_mm3 = abs(float(np.linalg.det(pred.affine.cpu().numpy()[:3, :3])))
        if self.regions:
            self._apply_to_regions(label_map, voxel_mm3)
        else:
            for rule in self.rules:
                before = label_map == rule["structure"]
                after = _apply(before, label_map == 0, rule, voxel_mm3)
                label_map[before & ~after] = 0
                label_map[after] = rule["structure"]
        return {**data, "pred": MetaTensor(torch.from_numpy(label_map)[None], meta=pred.meta)}

    def _apply_to_regions(self, label_map: np.ndarray, voxel_mm3: float) -> None:
        rules = {rule["structure"]: rule for rule in self.rules}
        before = label_map.copy()
        label_map[...] = 0
        removed: list[tuple[set[int], np.ndarray]] = []
        for number, region in enumerate(self.regions):
            covered = set(region["classes"])
            mask = np.isin(before, sorted(covered))
            for outer, lost in removed:
                if covered < outer:
                    mask &= ~lost
            if number in rules:
                free = np.isin(before, self._list_free_classes(covered))
                after = _apply(mask, free, rules[number], voxel_mm3)
                removed.append((covered, mask & ~after))
                mask = after
            label_map[mask] = region["written_class"]

    def _list_free_classes(self, covered: set[int]) -> list[int]:
        """Background, and classes that belong to no regions but those around this one."""
        others = [set(one["classes"]) for one in self.regions if not covered <= set(one["classes"])]
        return [index for index in range(self.num_classes) if not any(index in own for own in others)]


def _apply(mask: np.ndarray, free: np.ndarray, rule: Mapping[str, Any], voxel_mm3: float) -> np.ndarray:
    if rule["keep_largest"] or rule["remove_below_mm3"] > 0:
        pieces, count = ndimage.label(mask)
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)
        sizes[0] = 0
        kept = sizes >= np.ceil(rule["remove_below_mm3"] / voxel_mm3 - 1e-9)
        kept[0] = False
        if rule["keep_largest"]:
            kept &= np.arange(count + 1) == sizes.argmax()
        mask = kept[pieces]
    if rule["fill_holes"]:
        mask = mask | (ndimage.binary_fill_holes(mask) & free)
    return mask
