"""Rules of training patches: where they are drawn, how they are changed, and which classes count."""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from medseg_brn.cases.fingerprint import Fingerprint
from medseg_brn.cases.mirroring import find_mirrored_channels
from medseg_brn.cases.targets import Targets
from medseg_brn.errors import ConfigError
from medseg_brn.patches.deformation import find_free_axes
from medseg_brn.planning import recipe
from medseg_brn.planning.choice import Choice, Choices
from medseg_brn.reports.wording import times

SIDES = {"left": "right", "right": "left", "l": "r", "r": "l", "lh": "rh", "rh": "lh"}
# How words begin that name structures of which the left one is not the mirror image of the right one. Some
# have namesakes that are (the brain's ventricles and lobes): a name does not tell, so these are off as well.
ASYMMETRIC = (
    "ventric", "atri", "auric", "lung", "lobe", "bronch", "coronar", "carotid", "subclavian", "brachioceph",
)  # fmt: skip


def choose_foreground_fraction(
    patch: Sequence[int], shape: Sequence[int], shares: Mapping[str, float], rare: Mapping[str, int]
) -> Choice[float]:
    """Share of patches that are centred on foreground.

    Args:
        patch: patch size.
        shape: the median scan as the network sees it.
        shares: structure -> share of the median scan that it fills.
        rare: structures that few cases have.
    """
    ratio = min(size / length for size, length in zip(patch, shape, strict=True))
    if ratio >= recipe.WHOLE_SCAN_RATIO and not rare:
        return Choice(
            0.0,
            f"a patch holds at least {min(ratio, 1):.0%} of the scan along every axis: the foreground is in",
        )
    name = min(shares, key=lambda name: shares[name])
    share = shares[name]
    if share < recipe.SMALL_STRUCTURE_SHARE:
        return Choice(
            recipe.FOREGROUND_FRACTION_SMALL, f"{name} fills {share:.2%} of a scan: seldom met by chance"
        )
    return Choice(recipe.FOREGROUND_FRACTION, f"the smallest structure, {name}, fills {share:.1%} of a scan")


def choose_foreground_by(rare: Mapping[str, int], num_cases: int) -> Choice[str]:
    """What a foreground patch draws first: the case or the class."""
    if not rare:
        return Choice("case", "every class that is there at all is in at least half of the cases")
    name = min(rare, key=lambda name: rare[name])
    others = f" (and {len(rare) - 1} more)" if len(rare) > 1 else ""
    return Choice(
        "class", f"{name} is in {rare[name]} of {num_cases} cases{others}: it is met as often as any other"
    )


def find_rare(fingerprint: Fingerprint) -> dict[str, int]:
    """Foreground classes in less than half of the cases, and their numbers of cases; none is not few."""
    limit = recipe.RARE_CLASS_SHARE * fingerprint.num_cases
    names = list(fingerprint.class_voxels)[1:]
    return {name: count for name in names if 0 < (count := fingerprint.class_cases[name]) < limit}


def structure_volumes_ml(fingerprint: Fingerprint, targets: Targets) -> dict[str, float]:
    """Structure (class or region) -> mean volume in the cases that have it; those of none left out."""
    found = {}
    for name, classes in targets.structures.items():
        volumes = [sum(case.class_volumes_ml[index] for index in classes) for case in fingerprint.cases]
        if any(volumes):
            found[name] = float(np.mean([volume for volume in volumes if volume > 0]))
    return found


def choose_class_weights(volumes_ml: Mapping[str, float]) -> Choice[dict[str, float]]:
    """How much structures count in the loss: more than 1 for those far smaller than the largest."""
    largest = max(volumes_ml, key=lambda name: volumes_ml[name])
    weights = {}
    for name, volume in volumes_ml.items():
        missing = volumes_ml[largest] / (recipe.WEIGHTED_RATIO * volume)
        if missing > 1:
            weights[name] = min(recipe.MOST_WEIGHT, round(math.sqrt(missing), 2))
    if not weights:
        return Choice({}, f"no structure is smaller than 1/{recipe.WEIGHTED_RATIO} of {largest}")
    return Choice(
        weights,
        f"smaller than 1/{recipe.WEIGHTED_RATIO} of {largest} ({volumes_ml[largest]:.3g} ml): the root of "
        f"what is missing, at most {recipe.MOST_WEIGHT:g}",
    )


def choose_mirroring(
    targets: Targets,
) -> tuple[Choice[tuple[int, ...]], Choice[tuple[tuple[str, str], ...]]]:
    """Axes mirrored in training, and the classes that change places where axis 0 is.

    Off, unless classes name a side by a word of its own (left, right, l, r, lh, rh), each has its partner,
    none is known to differ from it in shape (`ASYMMETRIC`), and the mirror image of every region is the
    region that its name says. Names tell no more than that: other parts of a mirrored scan, such as the
    liver, lie on the wrong side all the same.
    """
    class_names = targets.class_names[1:]
    partners = {name: _other_side(name, class_names) for name in class_names}
    sided = {name: partner for name, partner in partners.items() if partner is not None}
    if not sided:
        told = (
            "no class names a side, but a body is not symmetric: add an axis where mirrored scans are likely"
        )
        return Choice((), told), Choice((), "no class names a side")
    pairs = tuple(
        (name, partner)
        for name, partner in sided.items()
        if partner and class_names.index(name) < class_names.index(partner)
    )
    wrong = _find_wrong_class(sided) or _find_wrong_region(pairs, targets)
    if wrong is not None:
        return Choice((), wrong), Choice((), wrong)
    count = f"{len(pairs)} pair{'s' if len(pairs) > 1 else ''} of left and right"
    return (
        Choice((0,), f"{count}, changing places: twice the examples of each"),
        Choice(pairs, f"{len(sided)} classes name a side, and all have a partner"),
    )


def _find_wrong_class(sided: Mapping[str, str]) -> str | None:
    """Why a class would be wrong on the other side, or None; `sided` gives each its partner, or ""."""
    for name, partner in sided.items():
        if not partner:
            return f"{name!r} names a side and has no partner on the other: mirrored, it would be wrong"
        if _is_asymmetric(name):
            return _tell_asymmetric(name)
    return None


def _find_wrong_region(pairs: Sequence[tuple[str, str]], targets: Targets) -> str | None:
    """Why a region would be wrong once the classes have changed places, or None."""
    names = [region.name for region in targets.regions]
    try:
        channels = find_mirrored_channels(pairs, targets)
    except ConfigError:
        return "the mirror image of a region would be no region: mirrored, it would be wrong"
    for name, channel in zip(names, channels, strict=False):
        partner = _other_side(name, names)
        if partner is not None and names[channel] != partner:
            return f"the region {name!r} names a side and would not become its partner on the other"
        if partner is not None and _is_asymmetric(name):
            return _tell_asymmetric(name)
    return None


def _other_side(name: str, names: Sequence[str]) -> str | None:
    """What is called the same on the other side; "" where it is missing, None where no side is named."""
    words = re.split(r"([\W_]+)", name)  # L1 is one word, and no side
    if not any(word.lower() in SIDES for word in words):
        return None
    wanted = "".join(SIDES.get(word.lower(), word) for word in words).lower()
    return next((other for other in names if other.lower() == wanted), "")


def _is_asymmetric(name: str) -> bool:
    return any(word.startswith(ASYMMETRIC) for word in re.split(r"[\W_]+", name.lower()))


def _tell_asymmetric(name: str) -> str:
    return (
        f"{name!r} may differ in shape from its partner, as left and right ventricles, atria, lungs and "
        "their lobes, bronchi, coronary and other great vessels do: mirrored, it would be wrong"
    )


def choose_augmentation(
    fingerprint: Fingerprint, modalities: Sequence[str], spacing_mm: Sequence[float]
) -> Choices:
    """Random changes of patches, by modality and by what the cases differ in."""
    choices: Choices = {}
    thick = not all(find_free_axes(spacing_mm))
    choices["rotation_degrees"] = Choice(
        recipe.ROTATION_DEGREES,
        "the recipe's: positions differ between scans"
        + ("; thick slices turn in their planes only" if thick else ""),
    )
    choices["scale"] = Choice(recipe.SCALE, "the recipe's: people differ in size by about as much")
    choices["spatial_probability"] = Choice(recipe.SPATIAL_PROBABILITY, "the recipe's")
    choices["elastic_mm"] = Choice(recipe.ELASTIC_MM, "the recipe's: none")
    all_ct = set(modalities) == {"ct"}
    choices["intensity_probability"] = Choice(
        recipe.INTENSITY_PROBABILITY_CT if all_ct else recipe.INTENSITY_PROBABILITY,
        "Hounsfield units are calibrated" if all_ct else "MRI intensities differ from scanner to scanner",
    )
    if all_ct:
        choices["brightness"] = Choice(recipe.BRIGHTNESS_CT, "Hounsfield units are calibrated")
    choices["bias_field"] = _choose_bias_field(fingerprint, modalities)
    choices["low_resolution"] = _choose_low_resolution(fingerprint)
    return choices


def _choose_bias_field(fingerprint: Fingerprint, modalities: Sequence[str]) -> Choice[float]:
    if "mri" not in modalities:
        return Choice(0.0, "CT has none")
    extent_mm = np.median([case.extent_mm for case in fingerprint.cases], axis=0)
    if max(extent_mm) < recipe.BIAS_FIELD_EXTENT_MM:
        return Choice(0.0, f"a coil's field varies little over {times(extent_mm)} mm")
    return Choice(recipe.BIAS_FIELD, f"MRI coils shade scans of {times(extent_mm)} mm")


def _choose_low_resolution(fingerprint: Fingerprint) -> Choice[float]:
    low, high = (fingerprint.percentile_spacing_mm(percentile) for percentile in (10, 90))
    ratio = max(coarse / fine for coarse, fine in zip(high, low, strict=True))
    if ratio < recipe.LOW_RESOLUTION_RATIO:
        return Choice(1.0, f"voxel sizes are alike (90th over 10th percentile {ratio:.2f})")
    chosen = round(min(ratio, recipe.MOST_LOW_RESOLUTION), 1)
    return Choice(chosen, f"voxel sizes differ by {ratio:.2f} (90th over 10th percentile)")
