"""Intensity normalization of one channel: CT by training-set constants, MRI by the volume's own.

Intensity operations change values and never the grid; label maps do not pass through here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, Self, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

SchemeName = Literal["zscore", "zscore_nonzero", "ct", "none"]

# Spread below this share of the largest magnitude is float32 rounding, not anatomy.
CONSTANT_TOLERANCE = 1e-6
# Values that are worked on at once.
SLAB_VALUES = 2**22


class IntensityScheme(BaseModel):
    """How one channel is normalized.

    - `zscore`: (x - mean) / std over the (cropped) volume.
    - `zscore_nonzero`: the same with mean and std over the voxels that are not 0; voxels that are
      0 stay 0, which is then the mean of the others.
    - `ct`: clip to [low, high], then (x - mean) / std, all four in HU from the training set's
      foreground (percentiles 0.5 and 99.5, mean, standard deviation; Isensee et al. 2021).
    - `none`: values as they are.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    scheme: SchemeName
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    mean: FiniteFloat | None = None
    std: Annotated[FiniteFloat, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _constants_go_with_scheme(self) -> Self:
        constants = {"low": self.low, "high": self.high, "mean": self.mean, "std": self.std}
        if self.scheme != "ct":
            given = [name for name, value in constants.items() if value is not None]
            if given:
                raise ValueError(f"scheme '{self.scheme}' takes no constants; given: {', '.join(given)}")
            return self
        missing = [name for name, value in constants.items() if value is None]
        if missing:
            raise ValueError(f"scheme 'ct' needs low, high, mean and std; missing: {', '.join(missing)}")
        low, high, *_ = self.ct_constants
        if low >= high:
            raise ValueError(f"low {low} must be below high {high}")
        return self

    @property
    def ct_constants(self) -> tuple[float, float, float, float]:
        """low, high, mean, std of a `ct` scheme, none of which is absent there."""
        return cast("tuple[float, float, float, float]", (self.low, self.high, self.mean, self.std))


def find_not_finite(array: np.ndarray) -> tuple[int, tuple[int, ...]] | None:
    """Returns how many values are NaN or infinite, and the index of the first; None where all are finite."""
    if array.dtype.kind in "iub":
        return None
    wrong, first = 0, None
    for start, slab in iterate_slabs(array):
        finite = np.isfinite(slab)
        count = finite.size - int(np.count_nonzero(finite))
        if count and first is None:
            index = np.unravel_index(int(np.argmin(finite)), finite.shape)
            first = (start + int(index[0]), *(int(n) for n in index[1:]))
        wrong += count
    return None if first is None else (wrong, first)


def iterate_slabs(array: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields slabs across X, and where each begins, so that no temporary is of a volume's size."""
    planes = max(1, SLAB_VALUES // max(1, array[:1].size))
    for start in range(0, len(array), planes):
        yield start, array[start : start + planes]


def measure_intensity(array: np.ndarray, scheme: IntensityScheme) -> "Normalization":
    """Returns the change of values that the scheme means for this channel.

    Args:
        array: (X, Y, Z), finite, any real dtype.
        scheme: `zscore` and `zscore_nonzero` measure `array` itself. A region whose standard deviation is
            within float32 rounding of 0 has no contrast and becomes 0.
    """
    if scheme.scheme == "ct":
        low, high, mean, std = scheme.ct_constants
        return Normalization(mean, std, low=low, high=high)
    if scheme.scheme == "none":
        return Normalization(0.0, 1.0)
    only_nonzero = scheme.scheme == "zscore_nonzero"
    mean, std, largest = _measure(array, only_nonzero)
    flat = std <= CONSTANT_TOLERANCE * largest
    return Normalization(mean, float("inf") if flat else std, only_nonzero=only_nonzero)


@dataclass(frozen=True)
class Normalization:
    """(value - mean) / std, after clipping to [low, high].

    Attributes:
        mean: subtracted.
        std: divided by; infinite where there is no contrast, so that all values become 0.
        low: lower clip.
        high: upper clip.
        only_nonzero: values that are 0 stay 0.
    """

    mean: float
    std: float
    low: float | None = None
    high: float | None = None
    only_nonzero: bool = False

    def apply(self, array: np.ndarray) -> np.ndarray:
        """Returns the values (any shape) normalized, as a new float32 array."""
        values = np.array(array, dtype=np.float32, order="C")
        outside = values == 0 if self.only_nonzero else None
        if self.low is not None:
            np.clip(values, self.low, self.high, out=values)
        values -= np.float32(self.mean)
        values /= np.float32(self.std)
        if outside is not None:
            values[outside] = 0
        return values


def normalize_intensity(array: np.ndarray, scheme: IntensityScheme) -> np.ndarray:
    """Returns the channel (X, Y, Z) normalized by what `measure_intensity` finds, as a new float32 array."""
    return measure_intensity(array, scheme).apply(array)


def _measure(array: np.ndarray, only_nonzero: bool) -> tuple[float, float, float]:
    """Returns mean, standard deviation and largest magnitude, in float64, in two passes."""
    count, total, largest = 0, 0.0, 0.0
    for values in _chosen(array, only_nonzero):
        count += values.size
        total += float(values.sum(dtype=np.float64))
        largest = max(largest, float(np.abs(values).max(initial=0)))
    if count == 0:
        return 0.0, 0.0, 0.0
    mean, squares = total / count, 0.0
    for values in _chosen(array, only_nonzero):
        difference = values.astype(np.float64)
        difference -= mean
        squares += float(np.vdot(difference, difference))
    return mean, (squares / count) ** 0.5, largest


def _chosen(array: np.ndarray, only_nonzero: bool) -> Iterator[np.ndarray]:
    for _, slab in iterate_slabs(array):
        values = slab.astype(np.float32, copy=False).ravel()
        yield values[values != 0] if only_nonzero else values
