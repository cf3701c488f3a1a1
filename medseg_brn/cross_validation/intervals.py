"""Whether one way of segmenting is better than another: differences paired over cases, with t intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Difference:
    """A mean difference over cases with its 95 % interval.

    Attributes:
        mean: NaN without a case.
        low, high: the t interval's ends; NaN below two cases.
        cases: how many it rests on.
    """

    mean: float
    low: float
    high: float
    cases: int

    @property
    def is_gain(self) -> bool:
        """Whether the interval lies above 0."""
        return self.low > 0

    @property
    def is_distinguishable(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; null for NaN."""
        mean, low, high = (None if math.isnan(value) else value for value in (self.mean, self.low, self.high))
        return {
            "difference": mean,
            "interval_95": None if low is None or high is None else [low, high],
            "cases": self.cases,
        }


def compare_paired(before: Sequence[float] | np.ndarray, after: Sequence[float] | np.ndarray) -> Difference:
    """Mean of `after - before` over cases, with the t interval of paired differences.

    Several scans of a patient are not independent, and the true interval is wider.

    Args:
        before: one value per case; NaN where undefined, which leaves the case out.
        after: the same cases in the same order.
    """
    differences = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    differences = differences[~np.isnan(differences)]
    count = len(differences)
    if not count:
        return Difference(math.nan, math.nan, math.nan, 0)
    mean = float(differences.mean())
    if count == 1:
        return Difference(mean, math.nan, math.nan, 1)
    half = float(stats.t.ppf(0.975, count - 1) * differences.std(ddof=1) / math.sqrt(count))
    return Difference(mean, mean - half, mean + half, count)
