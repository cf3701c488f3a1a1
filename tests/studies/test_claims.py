"""Claims: what interval upholds, falsifies or leaves open."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg_brn.studies.claims import Bounds, claim_mean, claim_number


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.1, 0.2, True), (-0.1, 0.2, None), (-0.2, -0.1, False), (-0.2, 0.0, False), (0.0, 0.1, None)],
)
def test_a_lower_bound_is_upheld_by_intervals_above_it_alone(low, high, expected):
    assert Bounds(above=0).judge(low, high) is expected


def test_two_bounds_are_upheld_between_them():
    bounds = Bounds(above=1, below=2)
    assert [bounds.judge(*pair) for pair in ((1.2, 1.8), (1.8, 2.2), (2.1, 2.2), (0.5, 2.5))] == [
        True,
        None,
        False,
        None,
    ]


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=2).map(sorted), st.floats(-10, 10))
def test_a_claim_and_its_contrary_never_both_hold(interval, bound):
    above, below = Bounds(above=bound).judge(*interval), Bounds(below=bound).judge(*interval)
    assert not (above is True and below is True)


def test_the_mean_of_three_seeds_by_hand():
    # mean 2, standard deviation 1: t(0.975, 2) / sqrt(3) = 4.302653 / 1.732051 = 2.484138
    claim = claim_mean("three", "above 0", [1.0, 2.0, 3.0], Bounds(above=0))
    assert claim.measured == 2
    assert claim.interval == pytest.approx((-0.484138, 4.484138), abs=1e-6)
    assert claim.holds is None


def test_one_seed_leaves_a_claim_open():
    claim = claim_mean("one", "above 0", [5.0], Bounds(above=0))
    assert (claim.measured, claim.interval, claim.holds) == (5, None, None)


def test_a_counted_number_has_no_interval_and_needs_none():
    claim = claim_number("two collectives", "at most 2", 2, Bounds(below=2.5))
    assert claim.as_dict() == {
        "name": "two collectives",
        "expected": "at most 2",
        "measured": 2,
        "interval": None,
        "holds": True,
        "note": "",
    }


def test_what_could_not_be_measured_is_null_and_open():
    found = claim_number("none", "above 0", math.nan, Bounds(above=0)).as_dict()
    assert (found["measured"], found["holds"]) == (None, None)
