"""What left and right classes become where axis 0 is mirrored, in training and at inference alike."""

import difflib
from collections.abc import Sequence

from medseg_brn.cases.targets import Targets
from medseg_brn.errors import ConfigError

Pairs = Sequence[tuple[str, str]]
"""A left and a right class each, by name."""


def find_mirrored_classes(pairs: Pairs, targets: Targets) -> dict[int, int]:
    """Returns class -> the class that it becomes where axis 0 is mirrored; classes of no pair are left out.

    Raises:
        ConfigError: a pair names something that is no class, or a class that another pair names; or the
            mirror image of a region is no region.
    """
    swapped = _swap_classes(pairs, targets.class_names)
    _mirror_regions(swapped, targets)
    return swapped


def find_mirrored_channels(pairs: Pairs, targets: Targets) -> tuple[int, ...]:
    """Returns for each channel of the logits the one that it is in an image mirrored along axis 0.

    Raises:
        ConfigError: as `find_mirrored_classes`.
    """
    swapped = _swap_classes(pairs, targets.class_names)
    if targets.regions:
        return _mirror_regions(swapped, targets)
    return tuple(swapped.get(index, index) for index in range(targets.num_classes))


def _swap_classes(pairs: Pairs, class_names: Sequence[str]) -> dict[int, int]:
    swapped: dict[int, int] = {}
    for pair in pairs:
        for name in pair:
            if name not in class_names:
                nearest = difflib.get_close_matches(name, class_names, n=1, cutoff=0)
                raise ConfigError(
                    f"patches.augmentation.mirrored_classes names {name!r}, which is no class of this "
                    f"dataset; its classes: {', '.join(class_names)}; the nearest: {', '.join(nearest)}"
                )
        one, other = (class_names.index(name) for name in pair)
        if one in swapped or other in swapped or one == other:
            raise ConfigError(
                f"patches.augmentation.mirrored_classes {pair} names a class twice; each class has one "
                "mirror image"
            )
        swapped |= {one: other, other: one}
    return swapped


def _mirror_regions(swapped: dict[int, int], targets: Targets) -> tuple[int, ...]:
    """Returns for each region the one that is its mirror image."""
    number_of = {frozenset(region.classes): number for number, region in enumerate(targets.regions)}
    found = []
    for region in targets.regions:
        image = frozenset(swapped.get(index, index) for index in region.classes)
        if image not in number_of:
            before, after = (
                ", ".join(targets.class_names[index] for index in sorted(classes))
                for classes in (region.classes, image)
            )
            raise ConfigError(
                f"patches.augmentation.mirrored_classes makes of the region {region.name!r} ({before}) its "
                f"mirror image ({after}), which is no region; name every pair of a left and a right class, "
                "or leave 0 out of patches.augmentation.flip_axes"
            )
        found.append(number_of[image])
    return tuple(found)
