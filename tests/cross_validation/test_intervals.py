"""Differences paired over cases."""

import math

import numpy as np
import pytest
from scipy import stats

from medseg_brn.cross_validation.intervals import compare_evaluations, compare_paired
from medseg_brn.evaluation.results import CaseEvaluation, ClassMetrics, Evaluation


@pytest.mark.parametrize("confidence", [0.95, 0.999])
def test_the_interval_is_that_of_the_paired_t_test(confidence):
    rng = np.random.default_rng(0)
    before, after = rng.random(9), rng.random(9)
    found = compare_paired(before, after, confidence)
    expected = stats.ttest_rel(after, before).confidence_interval(confidence)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(np.mean(after) - np.mean(before))


def test_a_case_without_a_value_is_left_out_of_both():
    found = compare_paired([0.5, math.nan, 0.6, 0.1], [0.6, 0.9, 0.8, math.nan])
    assert (found.mean, found.cases) == (pytest.approx(0.15), 2)


@pytest.mark.parametrize("count", range(5))
def test_of_fewer_than_five_cases_nothing_can_be_told(count):
    found = compare_paired([0.5] * count, [0.75] * count)
    assert found.as_dict()["interval"] is None
    assert not (found.low > 0 or found.high < 0)
    found = compare_paired([0.5] * 5, [0.75] * 5)
    assert (found.low, found.high) == (0.25, 0.25)


def make_evaluation(dice: np.ndarray) -> Evaluation:
    """Of cases (rows) and structures (columns)."""
    cases = [
        CaseEvaluation(
            f"case{number}",
            {f"s{k}": ClassMetrics(value, math.nan, math.nan, math.nan, 1, 1) for k, value in enumerate(row)},
        )
        for number, row in enumerate(dice)
    ]
    return Evaluation(tuple(cases), 1.0)


def test_cohorts_are_compared_by_what_their_summaries_say():
    """Per structure over cases, then over structures; a structure that one case has counts as much."""
    before, after = np.full((6, 2), 0.8), np.full((6, 2), 0.9)
    before[1:, 1] = after[1:, 1] = math.nan
    after[0, 1] = 0.2
    found = compare_evaluations(make_evaluation(before), make_evaluation(after))
    assert found.mean == pytest.approx((0.1 + -0.6) / 2)  # over cases first, it would be near 0.02


def test_the_bootstrap_draws_the_same_cases_for_both():
    rng = np.random.default_rng(1)
    before = rng.random((12, 2))
    after = before + np.array([0.02, 0.04])
    after[:, 0] += rng.normal(0, 0.01, 12)
    found = compare_evaluations(make_evaluation(before), make_evaluation(after))
    # without undefined values, the mean of means is that of all differences
    differences = (after - before).mean(axis=1)
    draws = np.random.default_rng(0).multinomial(12, [1 / 12] * 12, size=2000)
    means = [np.repeat(differences, counts).mean() for counts in draws]
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))
    assert math.isnan(compare_evaluations(make_evaluation(before[:4]), make_evaluation(after[:4])).low)
