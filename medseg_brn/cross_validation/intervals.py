"""Whether one way of segmenting is better than another: differences paired over cases, with intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from medseg_brn.evaluation.results import Evaluation, resample_dice

FEWEST_CASES = 5
"""Below this number of cases, no interval is given: nothing can be shown."""


@dataclass(frozen=True)
class Difference:
    """A difference over cases with its interval.

    Attributes:
        mean: NaN without a case.
        low, high: the interval's ends; NaN below `FEWEST_CASES` cases.
        cases: how many it rests on.
        confidence: of the interval, in (0, 1).
    """

    mean: float
    low: float
    high: float
    cases: int
    confidence: float = 0.95

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; null for NaN."""
        return {
            "difference": None if math.isnan(self.mean) else self.mean,
            "interval": None if math.isnan(self.low) else [self.low, self.high],
            "confidence": self.confidence,
            "cases": self.cases,
        }


def compare_paired(
    before: Sequence[float] | np.ndarray, after: Sequence[float] | np.ndarray, confidence: float = 0.95
) -> Difference:
    """Mean of `after - before` over cases, with the t interval of paired differences.

    Several scans of a patient are not independent, and the true interval is wider.

    Args:
        before: one value per case; NaN where undefined, which leaves the case out.
        after: the same cases in the same order.
        confidence: of the interval.
    """
    differences = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    differences = differences[~np.isnan(differences)]
    count = len(differences)
    mean = float(differences.mean()) if count else math.nan
    if count < FEWEST_CASES:
        return Difference(mean, math.nan, math.nan, count, confidence)
    quantile = stats.t.ppf((1 + confidence) / 2, count - 1)
    half = float(quantile * differences.std(ddof=1) / math.sqrt(count))
    return Difference(mean, mean - half, mean + half, count, confidence)


def compare_evaluations(before: Evaluation, after: Evaluation) -> Difference:
    """Difference of the summaries' mean Dice, `after - before`, with its paired bootstrap interval, 95 %.

    Cases are drawn with replacement, the same for both. The interval is a percentile one, a little narrow for
    few cases, and too narrow where a patient has several scans.

    Args:
        before: a cohort.
        after: the same cases in the same order.
    """
    means = [evaluation.summary()["dice_mean"] for evaluation in (before, after)]
    mean = math.nan if None in means else means[1] - means[0]
    count = len(before.cases)
    if count < FEWEST_CASES or math.isnan(mean):
        return Difference(mean, math.nan, math.nan, count)
    drawn = resample_dice(after.values("dice")) - resample_dice(before.values("dice"))
    low, high = np.nanpercentile(drawn, (2.5, 97.5))
    return Difference(mean, float(low), float(high), count)
