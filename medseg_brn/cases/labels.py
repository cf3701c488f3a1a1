"""Label values: which a label map holds, and their consecutive classes.

Files hold *values* (0 and 255, or 1, 2 and 4); networks know *classes* 0, 1, 2 …, class 0 being the
background. Class `k` stands for the file value `label_values[k]`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medseg_brn.errors import DataError

# Label maps hold a few hundred values at most; more mean that an image was given as a label map.
MAX_VALUES = 1000
# Up to this range, counting each value is faster than sorting the voxels.
COUNTING_RANGE = 1 << 20
# Beyond it, floats do not hold every integer.
LARGEST_INTEGER = 1 << 53


def find_values(label_map: np.ndarray, place: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns the values that a label map holds, ascending, and how many voxels hold each.

    Raises:
        DataError: a voxel is not an integer (floats that hold integers are fine), or there are more
            than `MAX_VALUES` values.
    """
    integers = _as_integers(label_map, place)
    low, high = (int(integers.min()), int(integers.max())) if integers.size else (0, 0)
    if high - low < COUNTING_RANGE:
        # Slab by slab, because bincount makes 8-byte integers of what it counts; along the slowest axis,
        # which is the last one of arrays read from NIfTI.
        counts = np.zeros(high - low + 1, np.int64)
        for slab in integers.T if integers.flags.f_contiguous else integers:
            counts += np.bincount(slab.ravel().astype(np.int64) - low, minlength=len(counts))
        values = np.flatnonzero(counts)
        values, counts = values + low, counts[values]
    else:
        values, counts = np.unique(integers, return_counts=True)
    if len(values) > MAX_VALUES:
        raise DataError(
            f"Label map {place} holds {len(values)} different values from {low} to {high}, but a label map "
            f"has one per class and at most {MAX_VALUES}; see that it is not an image."
        )
    return values, counts


def map_to_classes(label_map: np.ndarray, label_values: Sequence[int], place: str | Path) -> np.ndarray:
    """Returns the label map with each value replaced by its class: uint8, or uint16 beyond 256 classes.

    Args:
        label_map: (X, Y, Z), integers of any dtype.
        label_values: the file value of each class.
        place: the file, for messages.

    Raises:
        DataError: a voxel is not an integer, or has a value that is none of `label_values`.
    """
    integers = _as_integers(label_map, place)
    values, counts = find_values(integers, place)
    class_of = {value: index for index, value in enumerate(label_values)}
    unknown = {
        int(value): int(n) for value, n in zip(values, counts, strict=True) if int(value) not in class_of
    }
    if unknown:
        raise DataError(
            f"Label map {place} holds values that the dataset does not describe: {_tell_counts(unknown)}, "
            f"beside {', '.join(map(str, label_values))}; correct the label map, or describe the values."
        )
    dtype = np.uint8 if len(label_values) <= np.iinfo(np.uint8).max + 1 else np.uint16
    classes = np.array([class_of[int(value)] for value in values], dtype)
    low, high = int(values[0]), int(values[-1])
    if high - low >= COUNTING_RANGE:
        return classes[np.searchsorted(values, integers)]
    table = np.zeros(high - low + 1, dtype)
    table[values - low] = classes
    return table[integers.astype(np.int64) - low if low else integers]


def _as_integers(label_map: np.ndarray, place: str | Path) -> np.ndarray:
    if label_map.dtype.kind in "iub":
        return label_map.astype(np.uint8) if label_map.dtype == bool else label_map
    rounded = np.rint(label_map)
    wrong = ~((rounded == label_map) & (np.abs(rounded) < LARGEST_INTEGER))
    if wrong.any():
        raise DataError(
            f"Label map {place} has {np.count_nonzero(wrong)} voxels that are no integers, such as "
            f"{float(label_map[wrong][0]):g}, but every class has an integer; if it was resampled linearly, "
            "resample it again with nearest-neighbour interpolation."
        )
    return rounded.astype(np.int64)


def _tell_counts(counts: Mapping[int, int], shown: int = 8) -> str:
    told = [f"{value} ({n} voxel{'s' * (n != 1)})" for value, n in list(counts.items())[:shown]]
    return ", ".join(told) + (f" and {len(counts) - shown} more" if len(counts) > shown else "")
