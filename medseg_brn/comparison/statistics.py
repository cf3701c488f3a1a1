"""How sure a difference between two norms is: intervals and p values from few seeds and some tens of cases.

Every run is evaluated on the same cases, and run s of every norm has the same initial weights and patches, so
seeds and cases are crossed and differences between norms are paired in both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, special, stats

SMALLEST_P = 1e-100
"""Below it a p value is reported as this."""


@dataclass(frozen=True)
class Estimate:
    """An effect with its 95 % interval, and the two-sided p of its being 0 (NaN where they do not exist).

    p is below .05 exactly where the interval excludes 0.
    """

    effect: float
    low: float
    high: float
    p: float
    covers_seeds: bool = True
    """False where there was one seed: the interval then says nothing of other seeds, only of other cases."""


def estimate_mean(values: np.ndarray) -> Estimate:
    """Return a seeds × cases mean with its variance-components t interval, which is not a drawn bootstrap.

    Seeds and cases are crossed, and the interval is for other seeds *and* other cases. Nothing is drawn,
    because the crossed bootstrap's variance has a closed form (compared with this one's below) and the
    percentiles of three seeds do not reach far enough.

    With value_sc = μ + a_s + b_c + e_sc, the mean squares of seeds, cases and the rest have the expectations

        MS_A = C·σ_a² + σ_e²        MS_B = S·σ_b² + σ_e²        MS_E = σ_e²

    and the mean's variance is (MS_A + MS_B − MS_E)/(S·C). The crossed bootstrap (Owen 2007, "The pigeonhole
    bootstrap") draws seeds and cases with replacement; for a mean its variance is

        [MS_A·(S−1)/S + MS_B·(C−1)/C + MS_E·(S−1)(C−1)/(S·C)] / (S·C).

    It counts e up to three times and a factor of n levels only (n−1)/n times; here
    e counts once and the factors fully. Nor are its percentiles used: of three seeds there are ten distinct
    resamples, and one in 27 holds the lowest seed alone, so the 95 % percentile interval ends at the lowest
    and the highest seed; where only seeds vary, all three lie on one side of the truth with probability 2/2³,
    and it covers .75. Instead each part gets its own t quantile and the half widths add in squares (Howe
    1974; Zou and Donner 2008, "MOVER"):

        h² = [t²_{S−1}·MS_A + t²_{C−1}·max(MS_B − MS_E, 0)] / (S·C)

    that is: the t interval of the seeds' means, which holds e already, and what the cases add to it. p is the
    level at which h reaches |effect|.

    Simulated coverage with normal effects, S = 3, C = 40: .95 where only seeds or only cases vary, .976 where
    both matter alike; at no mixture was p below .05, .01 or .002 clearly more often than that. Taking MS_E
    off MS_A instead, or one Satterthwaite t for the whole sum, is narrower and covers .93 or more, but gives
    p < .002 up to ten times too often, and Holm's adjustment needs those p.

    No method can see what has not happened in its seeds, and the skew that matters here is collapse. Say each
    seed collapses with probability 1/3 (a difference of -.7) and otherwise gains .02, so that the true mean
    is -.22: where no seed collapsed, which is (2/3)^S of the data sets, the gain is all there is. Simulated
    with little noise, "significantly higher" is declared in .29 of all data sets at S = 3, .14 at S = 5 and
    .02 at S = 10, and the interval covers .67, .86 and .88. A milder skew, an exponential's, brings it to
    .88 at S = 3.

    Args:
        values: (S, C) Dice, or paired differences of Dice; NaN where undefined. A case counts where all
            seeds have it; a seed without any case does not count.

    Returns:
        The estimate. One seed: cases only, `covers_seeds` False. One case: seeds only. Without spread the
        interval has no width. One value or none: NaN for what does not exist.
    """
    values = np.atleast_2d(np.asarray(values, dtype=np.float64))
    values = values[~np.isnan(values).all(axis=1)]
    values = values[:, ~np.isnan(values).any(axis=0)]
    seeds, cases = values.shape
    if min(seeds, cases) < 2 or np.ptp(values) == 0:
        return replace(estimate_scalar(values.ravel()), covers_seeds=seeds > 1)
    seed_square, case_square, rest_square = compute_mean_squares(values)
    parts = (
        (seed_square / values.size, seeds - 1),
        (max(case_square - rest_square, 0) / values.size, cases - 1),
    )
    return _estimate_from_parts(float(values.mean()), parts)


def estimate_scalar(values: np.ndarray) -> Estimate:
    """Return the mean of one number per seed with its t interval; of paired differences likewise.

    Args:
        values: (S,), NaN where undefined, which is left out.

    Returns:
        The estimate; one value has no interval and no p, none has no effect either. Equal values have an
        interval without width, and p is 1 where they are 0 and 0 elsewhere.
    """
    values = np.asarray(values, dtype=np.float64).ravel()
    values = values[~np.isnan(values)]
    if values.size < 2:
        effect = float(values[0]) if values.size else math.nan
        return Estimate(effect, math.nan, math.nan, math.nan, covers_seeds=False)
    if np.ptp(values) == 0:
        return _estimate_from_parts(float(values[0]), ())
    variance = float(values.var(ddof=1)) / values.size
    return _estimate_from_parts(float(values.mean()), ((variance, values.size - 1),))


def compute_mean_squares(values: np.ndarray) -> tuple[float, float, float]:
    """Return the mean squares of seeds, cases and the rest; (S, C) values without NaN, S and C at least 2."""
    seeds, cases = values.shape
    seed_effects = values.mean(axis=1) - values.mean()
    case_effects = values.mean(axis=0) - values.mean()
    rest = values - values.mean() - seed_effects[:, None] - case_effects
    return (
        float(cases * np.sum(seed_effects**2) / (seeds - 1)),
        float(seeds * np.sum(case_effects**2) / (cases - 1)),
        float(np.sum(rest**2) / ((seeds - 1) * (cases - 1))),
    )


def compare_spreads(groups: Sequence[np.ndarray]) -> float:
    """Return the p value of groups being equally spread (Brown and Forsythe 1974: distances to the median).

    It is blunt for few values, because the median's own distance is always 0 in a group of odd size: two
    groups of three cannot reach a p below .116, two of five none below .004. Simulated power at .05 for a
    tenfold standard deviation of normal values: 0 (three), .38 (four), .33 (five); with equal standard
    deviations the test finds a difference in 0, .07 and .005 of the cases.

    Args:
        groups: values of each group, NaN left out.

    Returns:
        p, or NaN where it cannot be computed: fewer than two groups, fewer than three values in one (the two
        distances to a median of two values are always equal), or distances that do not vary within any group.
    """
    groups = [np.asarray(group, dtype=np.float64) for group in groups]
    groups = [group[~np.isnan(group)] for group in groups]
    if len(groups) < 2 or min(map(len, groups)) < 3:
        return math.nan
    distances = [np.abs(group - np.median(group)) for group in groups]
    if all(np.allclose(distance, distance[0], rtol=1e-12, atol=1e-15) for distance in distances):
        return math.nan
    return float(stats.levene(*groups, center="median").pvalue)


def adjust_holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values adjusted by Holm's step-down for being one family (Holm 1979).

    The i-th smallest of m is multiplied by m − i + 1, then raised to the one before it and cut at 1.

    Args:
        p_values: each 0 to 1; NaN stays NaN and does not count in the family.
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, math.nan)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # NaN sorts last
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return adjusted.tolist()


def _estimate_from_parts(effect: float, parts: Sequence[tuple[float, int]]) -> Estimate:
    """Estimate whose error is a sum of independent parts, each with a variance and its degrees of freedom."""
    half_width = _half_width(0.05, parts)
    p = _invert(abs(effect), parts)
    return Estimate(effect, effect - half_width, effect + half_width, p)


def _half_width(level: float, parts: Sequence[tuple[float, int]]) -> float:
    return math.sqrt(sum(variance * float(special.stdtrit(df, level / 2)) ** 2 for variance, df in parts))


def _invert(distance: float, parts: Sequence[tuple[float, int]]) -> float:
    """The level at which the half width is the distance."""
    if distance == 0:
        return 1.0
    if distance >= _half_width(SMALLEST_P, parts):
        return SMALLEST_P if any(variance for variance, _ in parts) else 0.0
    # Over log p the half width is smooth from 0 (p = 1) to its largest.
    log_p = optimize.brentq(
        lambda exponent: _half_width(math.exp(exponent), parts) - distance,
        math.log(SMALLEST_P),
        0.0,
        xtol=1e-10,
    )
    return math.exp(log_p)
