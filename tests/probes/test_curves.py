"""Spikes, slopes and collapses, by hand and against a loop over steps."""

from math import inf, isnan, nan
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medseg_brn.probes.curves import (
    batch_size_ratio,
    batch_size_slope,
    find_collapses,
    find_spikes,
    spike_fraction,
)

LEVELS = [0.0, 1.0, 2.0, 3.0, 4.0]


def find_spikes_by_loop(losses: list[float], window: int) -> list[bool]:
    spikes = []
    for step, loss in enumerate(losses):
        earlier = [value for value in losses[max(0, step - window) : step] if np.isfinite(value)]
        spike = not np.isfinite(loss)
        if not spike and len(earlier) >= 10:
            middle = median(earlier)
            scale = 1.4826 * median(abs(value - middle) for value in earlier)
            spike = loss > middle + 6 * max(scale, 2**-23 * abs(middle))
        spikes.append(spike)
    return spikes


@settings(deadline=None)
@given(
    arrays(float, st.integers(0, 60), elements=st.sampled_from([*LEVELS, 50.0, nan, inf, -inf])),
    st.integers(10, 20),
)
def test_spikes_are_those_a_loop_finds(losses, window) -> None:
    assert find_spikes(losses, window).tolist() == find_spikes_by_loop(losses.tolist(), window)


def test_a_spike_by_hand() -> None:
    """Losses 0, 1, 2, 3, 4, 0, ...: median 2, MAD 1, so the threshold is 2 + 6·1.4826 = 10.8956."""
    losses = np.array([*LEVELS * 4, 10.9, 10.89, 1.0])
    assert np.flatnonzero(find_spikes(losses)).tolist() == [20]
    assert spike_fraction(losses) == pytest.approx(1 / 23)


def test_the_first_ten_steps_are_not_judged() -> None:
    losses = np.array([1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 1000.0])
    assert not find_spikes(losses).any()
    assert find_spikes(np.append(losses, 1000.0))[10]


def test_a_loss_that_stands_still_spikes_only_beyond_rounding() -> None:
    assert not find_spikes(np.full(30, 0.7)).any()
    assert not find_spikes(np.append(np.full(20, 0.7), np.nextafter(np.float32(0.7), np.float32(1)))).any()
    assert find_spikes(np.append(np.full(20, 0.7), 0.71))[20]
    assert find_spikes(np.append(np.zeros(20), 1e-3))[20]


def test_a_falling_loss_has_no_spikes_and_old_steps_are_forgotten() -> None:
    assert spike_fraction(np.exp(-np.arange(500) / 100)) == 0
    stages = np.array([*LEVELS * 20, *[level + 100 for level in LEVELS] * 20])
    found = np.flatnonzero(find_spikes(stages))
    assert found[0] == 100
    assert found[-1] < 100 + 51


def test_losses_that_are_not_numbers_are_spikes_and_judge_nothing() -> None:
    losses = np.array([nan, *LEVELS * 3, inf, 1.0])
    assert np.flatnonzero(find_spikes(losses)).tolist() == [0, 16]
    assert spike_fraction(np.full(20, nan)) == 1


def test_no_steps_have_no_spike_fraction() -> None:
    assert find_spikes(np.array([])).tolist() == []
    assert isnan(spike_fraction(np.array([])))


def test_what_is_no_loss_curve_is_refused() -> None:
    with pytest.raises(ValueError, match="window 9 must be at least 10"):
        find_spikes(np.zeros(3), window=9)
    with pytest.raises(ValueError, match=r"\(2, 3\) must be one-dimensional"):
        find_spikes(np.zeros((2, 3)))


def test_slope_is_dice_per_doubling() -> None:
    assert batch_size_slope([1, 2, 4], [0.5, 0.6, 0.7]) == pytest.approx(0.1)
    assert batch_size_slope([1, 1, 4, 4], [0.4, 0.6, 0.8, 1.0]) == pytest.approx(0.2)
    assert batch_size_slope([1, 2, 4, 8], [0.8] * 4) == pytest.approx(0)


def test_slope_of_every_column() -> None:
    dice = np.array([[0.5, 0.9, nan], [0.6, 0.8, 0.5], [0.7, 0.7, 0.5]])
    assert batch_size_slope([1, 2, 4], dice) == pytest.approx([0.1, -0.1, nan], nan_ok=True)
    assert np.isnan(batch_size_slope([2, 2, 2], dice)).tolist() == [True] * 3
    assert batch_size_slope([1, 2], np.empty((2, 0))).shape == (0,)
    with pytest.raises(ValueError, match=r"\(2,\) and Dice of shape \(3, 3\)"):
        batch_size_slope([1, 2], dice)
    with pytest.raises(ValueError, match=r"\(3,\) and Dice of shape \(3, 3\)"):
        batch_size_ratio([1, 2, 4], dice)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 64), st.floats(0, 1)), min_size=2, max_size=8))
def test_slope_is_numpys_least_squares(runs) -> None:
    sizes, dice = zip(*runs, strict=True)
    if len(set(sizes)) < 2:
        assert isnan(batch_size_slope(sizes, dice))
        assert isnan(batch_size_ratio(sizes, dice))
    else:
        expected = np.polyfit(np.log2(sizes), dice, 1)[0]
        assert batch_size_slope(sizes, dice) == pytest.approx(expected, abs=1e-9)


def test_ratio_of_the_smallest_to_the_largest_size() -> None:
    assert batch_size_ratio([4, 2, 1, 1], [0.8, 0.1, 0.5, 0.7]) == pytest.approx(0.6 / 0.8)
    assert isnan(batch_size_ratio([1, 4], [0.5, 0.0]))
    assert isnan(batch_size_ratio([1, 4], [nan, 0.5]))
    assert isnan(batch_size_slope([1, 2, 4], [0.5, nan, 0.5]))


@pytest.mark.parametrize("compute", [batch_size_slope, batch_size_ratio])
def test_runs_that_do_not_match_are_refused(compute) -> None:
    with pytest.raises(ValueError, match=r"\(2,\) and Dice of shape \(3,\)"):
        compute([1, 2], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="batch size 0 must be at least 1"):
        compute([0, 2], [0.1, 0.2])


def test_collapsed_runs_are_below_half_the_median_or_diverged() -> None:
    assert find_collapses(np.array([0.8, 0.9, 0.8, 0.39, 0.4])).tolist() == [False, False, False, True, False]
    assert find_collapses(np.array([0.8, nan, nan, nan, 0.3])).tolist() == [False, True, True, True, False]
    assert find_collapses(np.array([0.8, nan, nan, 0.9, 0.3])).tolist() == [False, True, True, False, True]
    assert find_collapses(np.array([nan, nan])).tolist() == [True, True]
    assert find_collapses(np.zeros(3)).tolist() == [False, False, False]
    assert find_collapses(np.array([])).tolist() == []
