"""Images in 16 bits: exactly where their values are integers of a small range, else in equal steps."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from medseg_brn.errors import DataError

LARGEST_CODE = 2**16 - 1

SLAB_VOXELS = 2**22
"""Voxels that are looked at together."""


@dataclass(frozen=True, eq=False)
class QuantizedImage:
    """Values as codes: `offset + step * code`, at most half a step from what they stand for.

    Attributes:
        codes: (X, Y, Z) uint16, X fastest in memory.
        step: between the values of neighbouring codes.
        offset: the value of code 0.
        exact: every finite value is just that of its code.
        low: the smallest finite value; 0 where there is none.
        high: the largest.
        missing: how many voxels are NaN or infinite. If any are, they and no others have code 0.
    """

    codes: np.ndarray
    step: float
    offset: float
    exact: bool
    low: float
    high: float
    missing: int


def quantize(array: np.ndarray) -> QuantizedImage:
    """Codes of the values of an image.

    Integers, of whatever type, that span less than 65535 are kept exactly; other values are rounded to steps
    of a 65535th (65534th beside missing ones) of their range.

    Args:
        array: (X, Y, Z) of integers or real numbers.

    Raises:
        DataError: the values span more than a double holds.
    """
    low, high, missing, whole = _survey(array)
    reserved = int(missing > 0)
    codes_left = LARGEST_CODE - reserved
    with np.errstate(over="ignore"):
        span = np.float64(high) - np.float64(low)
    if not np.isfinite(span):
        raise DataError(f"The image's values go from {low:g} to {high:g}, too far apart; rescale the image.")
    exact = bool((whole and span <= codes_left) or span == 0)
    # A range of denormal numbers has steps that are no more than zero.
    step = 1.0 if exact else max(float(span) / codes_left, float(np.finfo(np.float64).tiny))
    codes = np.empty(array.shape, np.uint16, order="F")
    for first, last in _slabs(array.shape):
        slab = array[..., first:last].astype(np.float64)
        finite = np.isfinite(slab)
        found = np.rint((np.where(finite, slab, low) - low) / step) + reserved
        codes[..., first:last] = np.where(finite, found, 0)
    return QuantizedImage(codes, step, low - reserved * step, exact, low, high, missing)


def _survey(array: np.ndarray) -> tuple[float, float, int, bool]:
    """The finite range, how many values are not finite, and whether all others are integers."""
    low, high, missing, whole = np.inf, -np.inf, 0, True
    for first, last in _slabs(array.shape):
        slab = array[..., first:last]
        if array.dtype.kind == "f":
            finite = np.isfinite(slab)
            missing += int(slab.size - np.count_nonzero(finite))
            slab = slab[finite]
            whole = whole and bool((np.rint(slab) == slab).all())
        if slab.size:
            low, high = min(low, float(slab.min())), max(high, float(slab.max()))
    return (low, high, missing, whole) if low <= high else (0.0, 0.0, missing, whole)


def _slabs(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """First and last plane (excluded) along Z of parts of about `SLAB_VOXELS`."""
    planes = max(1, SLAB_VOXELS // max(1, shape[0] * shape[1]))
    for first in range(0, shape[2], planes):
        yield first, min(first + planes, shape[2])
