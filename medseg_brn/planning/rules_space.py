"""Rules of preprocessing: voxel size, crop, intensities."""

import math
from collections.abc import Sequence

import numpy as np

from medseg_brn.cases.fingerprint import Fingerprint
from medseg_brn.planning import recipe
from medseg_brn.planning.choice import Choice
from medseg_brn.reports.wording import times

Spacing = tuple[float, float, float]


def choose_spacing(fingerprint: Fingerprint) -> Choice[Spacing]:
    """Voxel size of the network's grid in mm: the median, and less along thick slices."""
    median = fingerprint.spacing_mm
    axis = int(np.argmax(median))
    others = [size for index, size in enumerate(median) if index != axis]
    if median[axis] < recipe.THICK_SLICE_RATIO * max(others):
        return Choice(median, f"median of {fingerprint.num_cases} cases{_tell_spread(fingerprint)}")
    thin = fingerprint.percentile_spacing_mm(recipe.THICK_SLICE_PERCENTILE)[axis]
    chosen = list(median)
    chosen[axis] = max(thin, max(others))
    x, y, z = chosen
    reason = (
        f"median {times(median)} mm, but axis {axis} is {median[axis] / max(others):.1f} times as coarse as "
        f"the others: there the {recipe.THICK_SLICE_PERCENTILE}th percentile, {chosen[axis]:.4g} mm, so that "
        "cases with thinner slices keep them"
    )
    return Choice((x, y, z), reason)


def _tell_spread(fingerprint: Fingerprint) -> str:
    low, high = (fingerprint.percentile_spacing_mm(percentile) for percentile in (0, 100))
    if np.allclose(low, high, rtol=0.01):
        return ", which all have it"
    return f", from {times(low)} to {times(high)} mm"


def coarsen_spacing(
    spacing: Choice[Spacing],
    fingerprint: Fingerprint,
    shape: Sequence[int],
    patch: Sequence[int],
    patch_told: str = "an affordable patch",
) -> Choice[Spacing]:
    """Larger voxels where the largest patch holds too little of a scan; else the same choice.

    Args:
        spacing: what was chosen first.
        fingerprint: of the dataset.
        shape: the median scan's voxels at that size.
        patch: the largest at that size.
        patch_told: what it is, by what keeps it from being larger.
    """
    own_mm = spacing.value
    share = math.prod(patch) / math.prod(shape)
    smallest_ml = min(
        (float(np.median(volumes)) for name in list(fingerprint.class_voxels)[1:]
         if (volumes := fingerprint.class_volumes_ml(name))),
        default=0.0,
    )  # fmt: skip
    chosen, held = own_mm, share
    edge = min(own_mm)
    while held < recipe.LEAST_PATCH_SHARE:
        edge *= 1.05
        x, y, z = (size if size >= edge else float(f"{edge:.3g}") for size in own_mm)
        voxel_ml = x * y * z / 1000
        if edge > recipe.COARSEST_SPACING_MM or smallest_ml < recipe.LEAST_STRUCTURE_VOXELS * voxel_ml:
            break
        chosen, held = (x, y, z), share * x * y * z / math.prod(own_mm)
    if chosen == own_mm:
        return spacing
    reason = (
        f"{spacing.reason}; but of a scan of {times(shape)} voxels at {times(own_mm)} mm {patch_told} would "
        f"hold 1/{1 / share:.0f}, too little to know where it is: with larger voxels 1/{1 / held:.0f}"
    )
    return Choice(chosen, reason)


def choose_crop(fingerprint: Fingerprint, modalities: Sequence[str]) -> Choice[str]:
    """Region kept: about the body for CT, about all that is not 0 for other scans, or everything."""
    kept = float(np.median([case.content_fraction for case in fingerprint.cases]))
    what = "the body's box" if modalities[0] == "ct" else "the box of voxels that are not 0"
    if kept >= recipe.CROP_WORTH_IT:
        return Choice("none", f"{what} is {kept:.0%} of the median scan: little to gain")
    return Choice(
        "body" if modalities[0] == "ct" else "nonzero",
        f"{what} is {kept:.0%} of the median scan; the rest is not worth a patch",
    )


def choose_intensity(fingerprint: Fingerprint, modalities: Sequence[str]) -> Choice[str]:
    """Intensity normalization of all channels."""
    kinds = set(modalities)
    if len(kinds) > 1:
        return Choice("auto", "CT and other channels: each by its own scheme")
    if kinds == {"ct"}:
        flat = [
            index
            for index, channel in enumerate(fingerprint.channels)
            if channel.percentile_00_5 >= channel.percentile_99_5
        ]
        if flat:
            return Choice("zscore", f"CT, but channel {flat[0]} has one value in all of the foreground")
        low, high = fingerprint.channels[0].percentile_00_5, fingerprint.channels[0].percentile_99_5
        return Choice(
            "ct", f"Hounsfield units: clipped to the foreground's {low:.0f} to {high:.0f} HU, z-scored"
        )
    zeros = float(np.median([case.zero_fraction for case in fingerprint.cases]))
    if zeros >= recipe.SKULL_STRIPPED:
        return Choice(
            "zscore_nonzero", f"MRI with {zeros:.0%} exact zeros around what was cut out, which say nothing"
        )
    return Choice(
        "zscore", f"MRI units are arbitrary: each scan by its own mean and spread ({zeros:.1%} zeros)"
    )
