"""A MONAI bundle's transforms in terms of our preprocessing; those that it cannot express are refused."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from medseg_brn.cases.intensity import IntensityScheme
from medseg_brn.cases.preprocessing import Preprocessing
from medseg_brn.errors import ModelError
from medseg_brn.models.importing.bundle_values import BundleConfig, split_component

Arguments = Mapping[str, Any]
Found = dict[str, Any]

# What reading a scan does here in any case, or has no part in its values.
WITHOUT_EFFECT = {
    "LoadImage", "EnsureChannelFirst", "EnsureType", "CastToType", "ToTensor", "AddChannel", "AsChannelFirst",
    "Identity",
}  # fmt: skip


def describe_preprocessing(config: BundleConfig, channels: int, *, is_ct: bool) -> Preprocessing:
    """Return the bundle's preprocessing.

    Args:
        config: whose `preprocessing` is a Compose of transforms, in their dictionary form or the other.
        channels: of the image.
        is_ct: in which air is below 0.

    Raises:
        ModelError: it is something else, or there is no voxel size.
    """
    found: Found = {"orientation": "stored", "crop": "none", "intensity": None, "spacing_mm": None}
    found |= {"channels": channels, "is_ct": is_ct, "unscaled": None}
    steps = config.read("preprocessing")
    if isinstance(steps, Mapping):
        target, arguments = split_component(steps, f"{config.path}: preprocessing")
        if target.rpartition(".")[2] != "Compose":
            raise ModelError(
                f"{config.path}: preprocessing._target_ is {target!r}, and Compose is known here"
            )
        steps = arguments.get("transforms")
    if not isinstance(steps, list):
        raise ModelError(f"{config.path}: preprocessing has no list of transforms")
    for number, step in enumerate(steps):
        place = f"{config.path}: preprocessing#transforms#{number}"
        target, arguments = split_component(step, place)
        _take(target, arguments, found, f"{place} ({target})")
    if found["spacing_mm"] is None:
        raise ModelError(
            f"{config.path}: preprocessing has no Spacingd, so the network takes voxels of any size, and "
            "here it has one; add the voxel size that it was trained on"
        )
    if found["unscaled"] is not None:
        raise ModelError(f"{found['unscaled']} scales by a scan's extremes, which cannot be expressed here")
    return Preprocessing(
        spacing_mm=found["spacing_mm"],
        crop=found["crop"],
        intensity=(IntensityScheme(**(found["intensity"] or {"scheme": "none"})),) * channels,
        orientation=found["orientation"],
    )


def _take(target: str, arguments: Arguments, found: Found, place: str) -> None:
    """Note what a transform does."""
    prefix, _, name = target.rpartition(".")
    name = re.sub("(d|D|Dict)$", "", name)
    if prefix not in ("", "monai.transforms") or name not in (*WITHOUT_EFFECT, *TRANSFORMS):
        known = ", ".join(sorted(TRANSFORMS))
        raise ModelError(
            f"{place} is not known here; besides reading, {known} and their dictionary forms are"
        )
    keys = arguments.get("keys", "image")
    _refuse_effect(arguments, place)
    if name in TRANSFORMS and "image" in (keys if isinstance(keys, list) else [keys]):
        TRANSFORMS[name](arguments, found, place)


def _refuse_effect(arguments: Arguments, place: str) -> None:
    """Reading that turns axes, and casts that round values, have an effect after all."""
    if arguments.get("as_closest_canonical") and "Orientation" not in place:
        raise ModelError(f"{place} turns axes while reading; say it as Orientationd with axcodes RAS")
    kinds = arguments.get("dtype")
    rounding = [kind for kind in (kinds if isinstance(kinds, list) else [kinds]) if "int" in str(kind)]
    if rounding:
        raise ModelError(f"{place} rounds values to {rounding[0]}, which cannot be expressed here")


def _take_orientation(arguments: Arguments, found: Found, place: str) -> None:
    codes = "RAS" if arguments.get("as_closest_canonical") else str(arguments.get("axcodes"))
    if found["spacing_mm"] is not None and codes != found["orientation"]:
        raise ModelError(f"{place} stands after Spacing, whose voxel size is along other axes then")
    if len(codes) != 3 or any(code not in pair for code, pair in zip(codes, ("RL", "AP", "SI"), strict=True)):
        raise ModelError(f"{place}: axcodes are {codes!r}; here X, Y, Z may be reversed, not exchanged")
    found["orientation"] = codes


def _take_spacing(arguments: Arguments, found: Found, place: str) -> None:
    size = arguments.get("pixdim")
    if isinstance(size, int | float):
        size = [size] * 3
    numbers = size if isinstance(size, list) else []
    if len(numbers) != 3 or not all(isinstance(one, int | float) and one > 0 for one in numbers):
        raise ModelError(f"{place}: pixdim is {size!r}, and three lengths above 0 are expected")
    found["spacing_mm"] = numbers


def _take_range(arguments: Arguments, found: Found, place: str) -> None:
    """(x - a_min) / (a_max - a_min) · (b_max - b_min) + b_min of clipped x is (x - mean) / std."""
    _check_first(found, place)
    names = ("a_min", "a_max", "b_min", "b_max")
    given = [arguments.get(name) for name in names]
    numbers = [float(one) for one in given if isinstance(one, int | float)]
    if len(numbers) < 4 or not (numbers[0] < numbers[1] and numbers[2] < numbers[3]):
        raise ModelError(f"{place}: {', '.join(names)} are {given}, and two rising ranges are expected")
    if arguments.get("clip") is not True:
        raise ModelError(f"{place} does not clip, which cannot be expressed here")
    low, high, first, last = numbers
    std = (high - low) / (last - first)
    found["intensity"] = {"scheme": "ct", "low": low, "high": high, "mean": low - first * std, "std": std}


def _take_normalization(arguments: Arguments, found: Found, place: str) -> None:
    _check_first(found, place)
    given = [name for name in ("subtrahend", "divisor") if arguments.get(name) is not None]
    if given:
        raise ModelError(f"{place}: {given[0]} is given; here mean and deviation are the scan's own")
    if found["channels"] > 1 and not arguments.get("channel_wise"):
        raise ModelError(f"{place} normalizes all channels together; here it is channel by channel")
    if not arguments.get("nonzero"):
        found["unscaled"] = None  # what a linear scaling before it did
    found["intensity"] = {"scheme": "zscore_nonzero" if arguments.get("nonzero") else "zscore"}


def _take_scaling(arguments: Arguments, found: Found, place: str) -> None:
    """To the range [minv, maxv] from a scan's own; a normalization that follows undoes it."""
    _check_first(found, place)
    if arguments.get("channel_wise") is not True and found["channels"] > 1:
        raise ModelError(f"{place} scales all channels together; here it is channel by channel")
    found["unscaled"] = place


def _take_crop(arguments: Arguments, found: Found, place: str) -> None:
    """MONAI keeps the bounds of what is above 0, which is what is not 0 where nothing is below."""
    _check_first(found, place)
    if found["is_ct"]:
        raise ModelError(f"{place} crops a CT to what is above 0 HU, which cannot be expressed here")
    unknown = set(arguments) - {"keys", "source_key", "allow_smaller", "margin", "k_divisible"}
    if unknown or arguments.get("margin", 0) != 0 or arguments.get("k_divisible", 1) != 1:
        raise ModelError(f"{place} crops otherwise than to the bounds of what is not 0: {dict(arguments)}")
    found["crop"] = "nonzero"


def _check_first(found: Found, place: str) -> None:
    if found["intensity"] is not None:
        raise ModelError(f"{place} stands after another change of intensities, and here there is one")


TRANSFORMS: Mapping[str, Callable[[Arguments, Found, str], None]] = {
    "Orientation": _take_orientation,
    "Spacing": _take_spacing,
    "ScaleIntensity": _take_scaling,
    "ScaleIntensityRange": _take_range,
    "NormalizeIntensity": _take_normalization,
    "CropForeground": _take_crop,
}
