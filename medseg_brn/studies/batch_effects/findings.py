"""Measurements looked up: the values of one arm at one association, and their means with intervals."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from medseg_brn.comparison.statistics import Estimate, estimate_scalar
from medseg_brn.studies.batch_effects.gene_tests import LEVEL

Row = Mapping[str, str | int | float]


class Findings:
    """The rows of all pieces, by arm (or gene test), association, and whether δ is 0."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows: dict[tuple[str, float, int], list[Row]] = {}
        for row in sorted(rows, key=lambda row: row["dataset"]):
            name = f"{row['method']}, {row['mini_batches']}" if "method" in row else str(row["test"])
            self._rows.setdefault((name, float(row["association"]), int(row["null"])), []).append(row)

    def take(self, name: str, association: float, column: str, *, null: bool = False) -> np.ndarray:
        """Return one number per dataset, in the datasets' order; none where the arm was not possible.

        Args:
            name: "method, pure" or "method, mixed", or the name of a gene test.
            association: Cramér's V.
            column: of the measurements.
            null: whether to take the null arm.
        """
        rows = self._rows.get((name, association, int(null)), [])
        return np.array([float(row.get(column, math.nan)) for row in rows])

    def estimate(self, name: str, association: float, column: str, *, null: bool = False) -> Estimate:
        """Return the mean over datasets with its interval; see `take`."""
        return estimate_scalar(self.take(name, association, column, null=null))

    def estimate_false_positives(self, name: str, association: float) -> Estimate:
        """Return the share of null datasets called different, with Clopper and Pearson's interval."""
        p_values = self.take(name, association, "p_above_chance", null=True)
        return estimate_rate(int((p_values < LEVEL).sum()), len(p_values))


def estimate_rate(count: int, number: int) -> Estimate:
    """Return a share with its exact binomial 95 % interval (Clopper and Pearson 1934); NaN of nothing."""
    if not number:
        return Estimate(math.nan, math.nan, math.nan, math.nan)
    interval = stats.binomtest(count, number).proportion_ci(0.95, "exact")
    return Estimate(count / number, float(interval.low), float(interval.high), math.nan)
