"""What is done to a label map after prediction, structure by structure: an option, never a default.

In this order: small pieces are removed, all but the largest piece is removed, holes are filled. Pieces are
connected through faces. Only what belongs to no other structure is filled, so a structure never takes a voxel
from another.

Structures are the classes of the label map, or the regions where a network learns regions: each is then seen
as a whole, whatever values its voxels were written with. What is removed becomes background, or, inside other
regions, a part of those alone: a piece of the tumour's core that is removed stays tumour. What is removed of
a region is removed of the regions inside it too.
"""

import difflib
import math
from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from medseg_brn.cases.targets import Region, Targets
from medseg_brn.config import PostprocessingConfig
from medseg_brn.errors import ConfigError
from medseg_brn.volumes.volume import Volume

Rules = Mapping[str, PostprocessingConfig]
"""By the name of a structure."""


def check_rules(rules: Rules, targets: Targets) -> None:
    """Check that every rule is for a structure.

    Args:
        rules: what is to be done.
        targets: the structures.

    Raises:
        ConfigError: a name is none of a structure.
    """
    structures = targets.structure_names
    for name in rules:
        if name not in structures:
            nearest = difflib.get_close_matches(name, structures, n=1, cutoff=0)
            raise ConfigError(
                f"inference.postprocessing names {name!r}, which is no structure of this dataset or model; "
                f"its structures: {', '.join(structures)}; the nearest: {', '.join(nearest)}"
            )


def postprocess_label_map(label_map: Volume, rules: Rules, targets: Targets) -> Volume:
    """Apply the rules of each structure: of classes in the order given, of regions in theirs.

    Args:
        label_map: classes, 0 being the background; changed in place. One of regions is as `Targets.decide`
            writes it.
        rules: by structure.
        targets: what the classes are.

    Returns:
        The label map.

    Raises:
        ConfigError: a rule names no structure.
    """
    check_rules(rules, targets)
    if not rules:
        return label_map
    voxel_mm3 = abs(float(np.linalg.det(label_map.affine[:3, :3])))
    if targets.regions:
        _apply_to_regions(label_map.array, rules, targets, voxel_mm3)
        return label_map
    boxes = ndimage.find_objects(label_map.array)
    for name, rule in rules.items():
        (value,) = targets.structures[name]
        box = boxes[value - 1] if value <= len(boxes) else None
        if box is not None:  # the class occurs
            part = label_map.array[box]  # a view
            before = part == value
            after = _apply(before, part == 0, rule, voxel_mm3)
            part[before & ~after] = 0
            part[after] = value
    return label_map


def _apply_to_regions(array: np.ndarray, rules: Rules, targets: Targets, voxel_mm3: float) -> None:
    """Apply rules to the regions' masks, and write the regions anew in their order."""
    before = array.copy()
    array[...] = 0
    removed: list[tuple[Region, np.ndarray]] = []  # of regions that may contain later ones
    for region in targets.regions:
        mask = np.isin(before, region.classes)
        for outer, lost in removed:
            if set(region.classes) < set(outer.classes):
                mask &= ~lost
        rule = rules.get(region.name)
        box = next(iter(ndimage.find_objects(mask.view(np.uint8))), None) if rule is not None else None
        if rule is not None and box is not None:
            free = np.isin(before[box], _list_free_classes(region, targets))
            after = _apply(mask[box], free, rule, voxel_mm3)
            lost = np.zeros_like(mask)
            lost[box] = mask[box] & ~after
            removed.append((region, lost))
            mask[box] = after
        array[mask] = region.written_class


def _list_free_classes(region: Region, targets: Targets) -> list[int]:
    """Background, and classes that belong to no regions but those around this one: what it may fill."""
    others = [set(one.classes) for one in targets.regions if not set(region.classes) <= set(one.classes)]
    return [index for index in range(targets.num_classes) if not any(index in own for own in others)]


def _apply(mask: np.ndarray, free: np.ndarray, rule: PostprocessingConfig, voxel_mm3: float) -> np.ndarray:
    """Return a structure's mask by its rule.

    Args:
        mask: the part of the volume with all voxels of the structure.
        free: voxels that it may fill.
        rule: what to do.
        voxel_mm3: volume of a voxel.
    """
    if rule.keep_largest or rule.remove_below_mm3 > 0:
        pieces, count = ndimage.label(mask)
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)
        sizes[0] = 0
        kept = sizes >= math.ceil(rule.remove_below_mm3 / voxel_mm3 - 1e-9)
        kept[0] = False
        if rule.keep_largest:
            kept &= np.arange(count + 1) == sizes.argmax()
        mask = kept[pieces]
    if rule.fill_holes:
        # A hole is closed by this structure alone, so its own voxels and the box's border bound the search.
        mask = mask | (ndimage.binary_fill_holes(mask) & free)
    return mask
