"""Intervals and p values against hand-worked numbers, naive computations and simulated data."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from medseg_brn.comparison.statistics import (
    Estimate,
    adjust_holm,
    compare_spreads,
    compute_mean_squares,
    estimate_mean,
    estimate_scalar,
)

HAND_MATRIX = np.array([[1.0, 2.0, 3.0], [3.0, 6.0, 9.0]])
"""Mean 4; seed means 2 and 6; case means 2, 4, 6; left in the entries are 1, 0, −1 and −1, 0, 1."""


def make_values(
    rng: np.random.Generator, seeds: int, cases: int, seed_part: float, case_part: float, rest_part: float
) -> np.ndarray:
    """Normal (seeds, cases) values around 0; the parts are those of the variance of their mean."""
    return (
        rng.normal(0, math.sqrt(seed_part * seeds), (seeds, 1))
        + rng.normal(0, math.sqrt(case_part * cases), (1, cases))
        + rng.normal(0, math.sqrt(rest_part * seeds * cases), (seeds, cases))
    )


def draw_crossed_bootstrap(rng: np.random.Generator, values: np.ndarray, draws: int) -> np.ndarray:
    """Means of resamples of seeds and cases: each is weighted by how often it was drawn."""
    seeds, cases = values.shape
    seed_counts = rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws)
    case_counts = rng.multinomial(cases, np.full(cases, 1 / cases), draws)
    means: np.ndarray = ((seed_counts @ values) * case_counts).sum(axis=1) / values.size
    return means


def simulate_p(seeds: int, cases: int, parts: tuple[float, float, float], datasets: int = 1000) -> np.ndarray:
    """p of data sets whose true mean is 0; it is at least .05 where the interval holds 0."""
    rng = np.random.default_rng(1)
    return np.array([estimate_mean(make_values(rng, seeds, cases, *parts)).p for _ in range(datasets)])


class TestEstimateScalar:
    def test_three_values_by_hand(self) -> None:
        estimate = estimate_scalar(np.array([1.0, 2.0, 3.0]))
        half_width = 4.302653 / math.sqrt(3)  # t at 2 degrees of freedom, standard deviation 1
        assert estimate.effect == 2
        assert (estimate.low, estimate.high) == pytest.approx((2 - half_width, 2 + half_width))

    def test_p_is_that_of_the_t_test(self) -> None:
        values = np.array([0.3, 0.1, -0.05, 0.2])
        assert estimate_scalar(values).p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)

    def test_undefined_values_are_left_out(self) -> None:
        assert estimate_scalar(np.array([1.0, math.nan, 3.0])) == estimate_scalar(np.array([1.0, 3.0]))

    def test_one_value_has_no_interval(self) -> None:
        estimate = estimate_scalar(np.array([0.4]))
        assert estimate.effect == 0.4
        assert np.isnan([estimate.low, estimate.high, estimate.p]).all()
        assert not estimate.covers_seeds

    def test_no_value_has_no_effect(self) -> None:
        assert math.isnan(estimate_scalar(np.array([math.nan])).effect)

    def test_equal_values_have_no_width(self) -> None:
        assert estimate_scalar(np.zeros(3)) == Estimate(0, 0, 0, 1)
        assert estimate_scalar(np.full(3, 0.1)) == Estimate(0.1, 0.1, 0.1, 0)


class TestEstimateMean:
    def test_mean_squares_by_hand(self) -> None:
        assert compute_mean_squares(HAND_MATRIX) == pytest.approx((24, 8, 2))

    def test_interval_by_hand(self) -> None:
        estimate = estimate_mean(HAND_MATRIX)
        half_width = math.sqrt((12.706205**2 * 24 + 4.302653**2 * (8 - 2)) / 6)  # t at 1 and 2 degrees
        assert estimate.effect == 4
        assert (estimate.low, estimate.high) == pytest.approx((4 - half_width, 4 + half_width))

    def test_bootstrap_variance_has_the_closed_form(self) -> None:
        values = make_values(np.random.default_rng(2), 3, 8, 0.3, 0.3, 0.4)
        rng = np.random.default_rng(3)
        means = [values[np.ix_(rng.integers(0, 3, 3), rng.integers(0, 8, 8))].mean() for _ in range(20_000)]
        seed_square, case_square, rest_square = compute_mean_squares(values)
        expected = seed_square * 2 / 3 + case_square * 7 / 8 + rest_square * (2 / 3) * (7 / 8)
        assert np.var(means) == pytest.approx(expected / 24, rel=0.05)

    def test_mean_squares_estimate_the_variance_of_the_mean(self) -> None:
        rng = np.random.default_rng(4)
        squares = [compute_mean_squares(make_values(rng, 3, 10, 0.5, 0.2, 0.3)) for _ in range(4000)]
        seed_square, case_square, rest_square = np.mean(squares, axis=0)
        assert (seed_square + case_square - rest_square) / 30 == pytest.approx(1, rel=0.05)

    def test_only_seeds_vary(self) -> None:
        """Then the cases add nothing, and the interval is the t interval of the seeds."""
        seed_means = np.array([0.1, 0.3, 0.25, 0.2])
        from_matrix, from_means = estimate_mean(np.tile(seed_means[:, None], 12)), estimate_scalar(seed_means)
        assert (from_matrix.low, from_matrix.high, from_matrix.p) == pytest.approx(
            (from_means.low, from_means.high, from_means.p)
        )

    def test_only_cases_vary(self) -> None:
        case_means = np.random.default_rng(0).normal(0.02, 0.1, 20)
        estimate = estimate_mean(np.tile(case_means, (3, 1)))
        test = stats.ttest_1samp(case_means, 0)
        interval = test.confidence_interval()
        assert (estimate.low, estimate.high, estimate.p) == pytest.approx(
            (interval.low, interval.high, test.pvalue)
        )

    def test_undefined_cases_are_left_out(self) -> None:
        values = np.random.default_rng(0).normal(size=(3, 6))
        with_gaps = np.insert(values, 2, [math.nan, 0.5, math.nan], axis=1)
        assert estimate_mean(with_gaps) == estimate_mean(values)

    def test_a_seed_without_cases_is_left_out(self) -> None:
        values = np.random.default_rng(0).normal(size=(3, 6))
        assert estimate_mean(np.vstack([values, np.full(6, math.nan)])) == estimate_mean(values)

    def test_one_seed_covers_cases_only(self) -> None:
        values = np.random.default_rng(0).normal(size=(1, 20))
        estimate = estimate_mean(values)
        assert not estimate.covers_seeds
        assert estimate.p == pytest.approx(stats.ttest_1samp(values[0], 0).pvalue)

    def test_one_case_leaves_the_seeds(self) -> None:
        values = np.array([[0.1], [0.4], [0.3]])
        assert estimate_mean(values) == estimate_scalar(values[:, 0])

    def test_equal_values_have_no_width(self) -> None:
        assert estimate_mean(np.zeros((3, 4))) == Estimate(0, 0, 0, 1)
        assert estimate_mean(np.full((1, 4), 0.7)) == Estimate(0.7, 0.7, 0.7, 0, covers_seeds=False)

    @pytest.mark.parametrize("shape", [(0, 0), (0, 4), (3, 0)])
    def test_nothing_has_no_effect(self, shape: tuple[int, int]) -> None:
        assert math.isnan(estimate_mean(np.empty(shape)).effect)

    @given(arrays(float, st.tuples(st.integers(1, 5), st.integers(2, 8)), elements=st.integers(-99, 99)))
    def test_p_agrees_with_the_interval(self, values: np.ndarray) -> None:
        estimate = estimate_mean(values / 100)
        assert 0 <= estimate.p <= 1
        if abs(estimate.p - 0.05) > 1e-8:
            assert (estimate.p < 0.05) == (not estimate.low <= 0 <= estimate.high)

    @given(arrays(float, (3, 5), elements=st.integers(-99, 99)))
    def test_units_do_not_matter(self, values: np.ndarray) -> None:
        """Twice the values: twice the interval, the same p; and the sign only mirrors."""
        one, other = estimate_mean(values), estimate_mean(-2 * values)
        assert (other.low, other.high) == pytest.approx((-2 * one.high, -2 * one.low), abs=1e-9)
        assert other.p == pytest.approx(one.p, rel=1e-6)

    @pytest.mark.parametrize(
        "parts",
        [(0.95, 0.03, 0.02), (0.02, 0.95, 0.03), (0.45, 0.45, 0.1), (0.1, 0.3, 0.6)],
        ids=["seeds", "cases", "both", "rest"],
    )
    def test_coverage(self, parts: tuple[float, float, float]) -> None:
        assert 0.92 <= np.mean(simulate_p(3, 40, parts) >= 0.05) <= 0.985

    @pytest.mark.slow
    @pytest.mark.parametrize(("seeds", "cases"), [(3, 10), (4, 20), (5, 40)])
    @pytest.mark.parametrize(
        "parts", [(1, 0, 0), (0.9, 0.05, 0.05), (0.5, 0.5, 0), (0.2, 0.2, 0.6), (0, 0.5, 0.5), (0, 1, 0)]
    )
    def test_coverage_everywhere(self, seeds: int, cases: int, parts: tuple[float, float, float]) -> None:
        p = simulate_p(seeds, cases, parts, datasets=4000)
        assert 0.935 <= np.mean(p >= 0.05) <= 0.985
        assert np.mean(p < 0.01) <= 0.015
        assert np.mean(p < 0.002) <= 0.005

    @pytest.mark.slow
    def test_percentiles_of_three_seeds_do_not_reach_far_enough(self) -> None:
        """Where only seeds vary they end at the lowest and the highest seed, and cover 1 - 2/2³ = .75."""
        rng = np.random.default_rng(5)
        datasets, draws, covered, ours = 800, 2000, 0, 0
        for _ in range(datasets):
            values = make_values(rng, 3, 40, 1, 0, 0)
            low, high = np.percentile(draw_crossed_bootstrap(rng, values, draws), [2.5, 97.5])
            covered += low <= 0 <= high
            ours += estimate_mean(values).p >= 0.05
        assert stats.binomtest(covered, datasets, 0.75).pvalue > 0.01
        assert stats.binomtest(ours, datasets, 0.95).pvalue > 0.01

    @pytest.mark.slow
    @pytest.mark.parametrize(("seeds", "found_higher", "covered"), [(3, 0.29, 0.67), (5, 0.14, 0.86)])
    def test_collapses_that_did_not_happen_are_not_seen(
        self, seeds: int, found_higher: float, covered: float
    ) -> None:
        """The docstring's figures: a third of the seeds collapses, the others gain, the true mean is -.22."""
        rng = np.random.default_rng(6)
        datasets, higher, held = 2000, 0, 0
        for _ in range(datasets):
            effects = np.where(rng.random((seeds, 1)) < 1 / 3, -0.7, 0.02) + rng.normal(0, 0.002, (seeds, 1))
            noise = rng.normal(0, 0.01, 40) + rng.normal(0, 0.02, (seeds, 40))
            estimate = estimate_mean(effects + noise)
            higher += estimate.p < 0.05 and estimate.effect > 0
            held += estimate.low <= -0.22 <= estimate.high
        assert higher / datasets == pytest.approx(found_higher, abs=0.03)
        assert held / datasets == pytest.approx(covered, abs=0.03)


class TestCompareSpreads:
    def test_against_a_naive_computation(self) -> None:
        groups = [np.array([0.1, 0.5, 0.9, 0.2]), np.array([0.4, 0.45, 0.5, 0.52, 0.3])]
        distances = [[abs(value - float(np.median(group))) for value in group] for group in groups]
        means = [sum(row) / len(row) for row in distances]
        grand = sum(map(sum, distances)) / 9
        between = sum(len(row) * (mean - grand) ** 2 for row, mean in zip(distances, means, strict=True))
        within = sum((d - mean) ** 2 for row, mean in zip(distances, means, strict=True) for d in row)
        assert compare_spreads(groups) == pytest.approx(stats.f.sf(between / (within / 7), 1, 7))

    def test_undefined_values_are_left_out(self) -> None:
        one, other = np.array([0.1, 0.5, 0.9, 0.2]), np.array([0.4, 0.45, 0.5, 0.3])
        assert compare_spreads([np.append(one, math.nan), other]) == compare_spreads([one, other])

    @pytest.mark.parametrize(
        "groups",
        [
            [[0.1, 0.2, 0.5]],
            [[0.1], [0.2, 0.3, 0.5]],
            [[0.1, 0.9], [0.4, 0.5]],
            [[0.5, 0.5, 0.5], [0.7, 0.7, 0.7]],
            [[0.4, 0.6, 0.4, 0.6], [0.7, 0.7, 0.7]],
        ],
        ids=["one group", "one value", "two values", "no spread", "equal distances"],
    )
    def test_not_computable(self, groups: list[list[float]]) -> None:
        assert math.isnan(compare_spreads([np.array(group) for group in groups]))

    def test_three_values_cannot_be_distinguished(self) -> None:
        """However different: distances (a, 0, a) against (0, 0, 0) give F = 4 at 1 and 4 degrees."""
        p = compare_spreads([np.array([0.0, 0.5, 1.0]), np.full(3, 0.5)])
        assert p == pytest.approx(0.1161, abs=1e-4)


class TestAdjustHolm:
    def test_by_hand(self) -> None:
        """Ascending .005, .01, .03, .04 times 4, 3, 2, 1: .02, .03, .06, .04, the last raised to .06."""
        assert adjust_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])

    def test_nan_is_not_in_the_family(self) -> None:
        adjusted = adjust_holm([0.01, math.nan, 0.04])
        assert math.isnan(adjusted[1])
        assert [adjusted[0], adjusted[2]] == pytest.approx([0.02, 0.04])

    def test_empty(self) -> None:
        assert adjust_holm([]) == []
        assert np.isnan(adjust_holm([math.nan])).all()

    @given(st.lists(st.floats(0, 1), max_size=12))
    def test_keeps_order_and_bounds(self, p_values: list[float]) -> None:
        adjusted = adjust_holm(p_values)
        assert all(p <= raised <= 1 for p, raised in zip(p_values, adjusted, strict=True))
        ascending = [adjusted[index] for index in np.argsort(p_values, kind="stable")]
        assert ascending == sorted(ascending)
