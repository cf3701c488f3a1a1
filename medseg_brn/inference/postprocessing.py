"""What is done to a label map after prediction, structure by structure: an option, never a default.

In this order: small pieces are removed, all but the largest piece is removed, holes are filled. Pieces are
connected through faces. What is removed becomes background, and only background is filled, so a structure
never takes a voxel from another.

Structures are the classes of the label map as it is written. A model of regions has them too: a rule for
`enhancing tumour`, written as 3, looks at the voxels with 3, and one for `label 1` at those that belong to
the whole tumour and to no smaller region.
"""

import difflib
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

from medseg_brn.config import PostprocessingConfig
from medseg_brn.errors import ConfigError
from medseg_brn.volumes.volume import Volume


def choose_rules(
    rules: Mapping[str, PostprocessingConfig], class_names: Sequence[str]
) -> dict[int, PostprocessingConfig]:
    """Return the rules by class instead of by name.

    Args:
        rules: by the name of a structure.
        class_names: of all classes, the background first.

    Raises:
        ConfigError: a name is none of a structure.
    """
    structures = list(class_names[1:])
    for name in rules:
        if name not in structures:
            nearest = difflib.get_close_matches(name, structures, n=1, cutoff=0)
            raise ConfigError(
                f"inference.postprocessing names {name!r}, which is no structure of this dataset or model; "
                f"its structures: {', '.join(structures)}; the nearest: {', '.join(nearest)}"
            )
    return {class_names.index(name): rule for name, rule in rules.items()}


def postprocess_label_map(label_map: Volume, rules: Mapping[int, PostprocessingConfig]) -> Volume:
    """Apply the rules of each class, in the order given.

    Args:
        label_map: classes, 0 being the background; changed in place.
        rules: by class.

    Returns:
        The label map.
    """
    if not rules:
        return label_map
    voxel_mm3 = abs(float(np.linalg.det(label_map.affine[:3, :3])))
    boxes = ndimage.find_objects(label_map.array)
    for value, rule in rules.items():
        box = boxes[value - 1] if value <= len(boxes) else None
        if box is not None:  # the class occurs
            _apply(label_map.array[box], value, rule, voxel_mm3)
    return label_map


def _apply(region: np.ndarray, value: int, rule: PostprocessingConfig, voxel_mm3: float) -> None:
    """Apply one class's rules to the part of the label map (a view) with all of its voxels."""
    if rule.keep_largest or rule.remove_below_mm3 > 0:
        pieces, count = ndimage.label(region == value)
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)
        sizes[0] = 0
        kept = sizes >= math.ceil(rule.remove_below_mm3 / voxel_mm3 - 1e-9)
        if rule.keep_largest:
            kept &= np.arange(count + 1) == sizes.argmax()
        region[(pieces > 0) & ~kept[pieces]] = 0
    if rule.fill_holes:
        mask = region == value
        # A hole is closed by this structure alone, so its own voxels and the box's border bound the search.
        holes = ndimage.binary_fill_holes(mask) & ~mask
        region[holes & (region == 0)] = value
