"""Intensity normalization of one channel: CT by training-set constants, MRI by the volume's own.

Intensity operations change values and never the grid; label maps do not pass through here.
"""

from typing import Annotated, Literal, Self, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

SchemeName = Literal["zscore", "zscore_nonzero", "ct", "none"]

# Spread below this share of the largest magnitude is float32 rounding, not anatomy.
CONSTANT_TOLERANCE = 1e-6


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
    """Returns how many values are NaN or infinite, and the index of the first; None where all are finite.

    It needs two bytes a voxel, where a list of all the indices would need 24.
    """
    finite = np.isfinite(array)
    if finite.all():
        return None
    first = np.unravel_index(int(np.argmin(finite)), finite.shape)
    return finite.size - int(np.count_nonzero(finite)), tuple(int(index) for index in first)


def normalize_intensity(array: np.ndarray, scheme: IntensityScheme) -> np.ndarray:
    """Returns the channel normalized, as a new float32 array.

    Args:
        array: (X, Y, Z), finite, any real dtype.
        scheme: What to do; `zscore` and `zscore_nonzero` measure `array` itself. A region whose
            standard deviation is within float32 rounding of 0 has no contrast and becomes 0.

    Returns:
        (X, Y, Z) float32.
    """
    values = np.array(array, dtype=np.float32, order="C")
    if scheme.scheme == "ct":
        low, high, mean, std = scheme.ct_constants
        np.clip(values, low, high, out=values)
        values -= mean
        values /= std
    elif scheme.scheme == "zscore":
        values = _standardize(values)
    elif scheme.scheme == "zscore_nonzero":
        inside = values != 0
        values[inside] = _standardize(values[inside])
    return values


def _standardize(values: np.ndarray) -> np.ndarray:
    """Makes float32 values (values - mean) / std, in place; no values, or constant ones, become 0."""
    if values.size == 0:
        return values
    mean, std = values.mean(dtype=np.float64), values.std(dtype=np.float64)
    if std <= CONSTANT_TOLERANCE * max(abs(values.min()), abs(values.max())):
        values[...] = 0
        return values
    values -= np.float32(mean)
    values /= np.float32(std)
    return values
