"""Claims are stated before anything is measured; a measurement upholds, falsifies or leaves them open."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medseg_brn.comparison.statistics import Estimate, estimate_scalar


@dataclass(frozen=True)
class Claim:
    """What was expected, and what came out. A number that does not exist is NaN."""

    name: str
    expected: str
    """The statement, with the bound that falsifies it."""
    measured: float
    interval: tuple[float, float] | None
    """95 %; None where the number is exact, or where there is one value only."""
    holds: bool | None
    """None where the interval holds the bound, so that the measurement does not tell."""
    note: str = ""
    """What else must be known to read the number."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: null for NaN, for no interval and for what does not tell."""
        return {
            "name": self.name,
            "expected": self.expected,
            "measured": _null_if_nan(self.measured),
            "interval": None if self.interval is None else [*self.interval],
            "holds": self.holds,
            "note": self.note,
        }


@dataclass(frozen=True)
class Bounds:
    """Where a number must lie: strictly between the two, either of which may be left out."""

    above: float = -math.inf
    below: float = math.inf

    def judge(self, low: float, high: float) -> bool | None:
        """Whether the numbers from `low` to `high` lie inside: all (True), none (False), or some (None)."""
        if low > self.above and high < self.below:
            return True
        if high <= self.above or low >= self.below:
            return False
        return None


def claim_mean(name: str, expected: str, values: Sequence[float], bounds: Bounds, note: str = "") -> Claim:
    """A claim about the mean of one number per seed, by its 95 % t interval over seeds.

    Args:
        name: of the claim, short.
        expected: the statement in words, as it was before the measurement.
        values: one per seed, of independent repetitions; differences between two methods are taken seed by
            seed. NaN is left out.
        bounds: the statement in numbers.
        note: what else must be known to read the number.

    Returns:
        The claim; with fewer than two values it is open.
    """
    return claim_estimate(name, expected, estimate_scalar(np.asarray(values, float)), bounds, note)


def claim_estimate(name: str, expected: str, estimate: Estimate, bounds: Bounds, note: str = "") -> Claim:
    """A claim about an effect with its interval; see `claim_mean`."""
    if math.isnan(estimate.low):
        return Claim(name, expected, estimate.effect, None, None, note)
    interval = (estimate.low, estimate.high)
    return Claim(name, expected, estimate.effect, interval, bounds.judge(*interval), note)


def claim_number(name: str, expected: str, value: float, bounds: Bounds, note: str = "") -> Claim:
    """A claim about a number without sampling error: counted, or known from a formula.

    NaN, which could not be measured, leaves it open.
    """
    holds = None if math.isnan(value) else bounds.judge(value, value)
    return Claim(name, expected, value, None, holds, note)


def _null_if_nan(value: float) -> float | None:
    return value if math.isfinite(value) else None
