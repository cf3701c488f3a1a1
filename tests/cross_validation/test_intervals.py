"""Differences paired over cases."""

import math

import numpy as np
import pytest
from scipy import stats

from medseg_brn.cross_validation.intervals import compare_paired


def test_the_interval_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    before, after = rng.random(9), rng.random(9)
    found = compare_paired(before, after)
    expected = stats.ttest_rel(after, before).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(np.mean(after) - np.mean(before))


def test_a_case_without_a_value_is_left_out_of_both():
    found = compare_paired([0.5, math.nan, 0.6, 0.1], [0.6, 0.9, 0.8, math.nan])
    assert (found.mean, found.cases) == (pytest.approx(0.15), 2)


def test_equal_differences_leave_no_doubt_and_none_no_gain():
    assert compare_paired([0.25, 0.5], [0.5, 0.75]).is_gain
    nothing = compare_paired([0.2, 0.3], [0.2, 0.3])
    assert (nothing.is_gain, nothing.is_distinguishable) == (False, False)
    assert compare_paired([0.5, 0.75], [0.25, 0.5]).is_distinguishable


@pytest.mark.parametrize("values", [[], [0.5]])
def test_of_fewer_than_two_cases_nothing_can_be_told(values):
    found = compare_paired(values, [value + 0.1 for value in values])
    assert (found.is_gain, found.is_distinguishable) == (False, False)
    assert found.as_dict()["interval_95"] is None
