"""Charts keep every norm apart, and say in words what they show."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg_brn.reports.comparison.charts import (
    Point,
    draw_agreement,
    draw_by_batch_size,
    draw_by_norm,
    spread_apart,
)
from medseg_brn.reports.comparison.curves import MOST_POINTS, draw_losses, draw_over_steps, smooth, summarize
from medseg_brn.reports.comparison.looks import choose_looks, shorten
from medseg_brn.reports.comparison.record import Seams
from medseg_brn.reports.comparison.seams import draw_seams

HOSTILE = "<script>alert(1)</script> $x_2^"
LOOKS = choose_looks(["a", "b"], reference="a")


def words(figure) -> str:
    """The description for screen readers."""
    return str(figure.drawing).split('aria-label="', 1)[1].split('"', 1)[0]


def test_twelve_norms_look_different_and_the_reference_is_thicker():
    looks = choose_looks([f"norm {number}" for number in range(12)], reference="norm 3")
    assert len({(look.colour, str(look.dashes)) for look in looks.values()}) == 12
    assert len({look.marker for look in looks.values()}) == 12
    assert [norm for norm, look in looks.items() if look.width > 2] == ["norm 3"]


def test_names_are_shortened_and_freed_of_control_characters():
    assert shorten("batch_renorm") == "batch renorm"
    assert shorten("x\ny") == "x·y"
    assert len(shorten("n" * 99)) == 24


def test_labels_that_would_cover_one_another_are_moved_apart():
    assert spread_apart([0.5, 0.5, 0.0], 0.25) == pytest.approx([0.5, 0.75, 0.0])
    assert spread_apart([1.0, 1.0], 0.25) == pytest.approx([0.75, 1.0])
    assert spread_apart([], 0.1) == []


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12))
def test_labels_keep_the_gap_the_order_and_the_range(wanted):
    placed = spread_apart(wanted, 0.05)
    order = np.argsort(wanted, kind="stable")
    assert np.all(np.diff(np.array(placed)[order]) >= 0.05 - 1e-12)
    assert max(placed) <= 1


def test_lines_tell_their_values_and_leave_out_what_is_undefined():
    lines = {
        "a": [Point(1, 0.8, 0.7, 0.9), Point(4, 0.9, 0.85, 0.95)],
        "b": [Point(1, math.nan, math.nan, math.nan)],
    }
    told = words(draw_by_batch_size(lines, LOOKS, label="Dice", caption=""))
    assert told == "Dice against batch size. a: 0.8 at 1, 0.9 at 4"


def test_a_mean_below_the_floor_is_written_at_the_edge():
    lines = {"a": [Point(2, 0.8, 0.7, 0.9)], "b": [Point(2, 0.125, math.nan, math.nan)]}
    drawn = str(draw_by_batch_size(lines, LOOKS, label="Dice", caption="", floor=0.8).drawing)
    assert ">0.12<" in drawn


def test_rows_give_means_exact_zeros_and_dashes():
    values = {1: {"a": [0.25, 0.75, math.nan], "b": [0.0]}, 2: {"a": [0.125]}}
    figure = draw_by_norm(values, LOOKS, label="mismatch", caption="", form=".3f", log_scale=True)
    assert words(figure) == (
        "mismatch of each norm. a at batch size 1: 0.500; b at batch size 1: 0.000; a at batch size 2: 0.125"
    )
    drawn = str(figure.drawing)
    assert ">0<" in drawn
    assert ">–<" in drawn
    assert ">0.500<" in drawn


@pytest.mark.parametrize("log_scale", [False, True])
def test_rows_are_drawn_where_nothing_or_only_zero_is_known(log_scale):
    for values in ({1: {}}, {1: {"a": [0.0], "b": [0.0]}}):
        draw_by_norm(values, LOOKS, label="x", caption="", log_scale=log_scale)


def test_agreement_counts_points_within_fifteen_percent():
    points = {"a": [(0.1, 0.114), (0.1, 0.086), (0.1, 0.2)], "b": [(0.0, 0.1)]}
    figure = draw_agreement(points, LOOKS, label="noise", caption="Marks.")
    assert figure.caption == "Marks. 2 of 3 lie within 15\u00a0% of theory."
    draw_agreement({}, LOOKS, label="noise", caption="")


def test_courses_are_medians_and_ranges_over_seeds():
    samples = {10: [1.0, 3.0, 8.0], 20: [math.nan, 2.0], 30: [math.nan]}
    steps, low, middle, high = summarize(samples, positive=False)
    assert [list(part) for part in (steps, low, middle, high)] == [[10, 20], [1, 2], [3, 2], [8, 2]]
    steps, *_ = summarize({10: [0.0], 20: [1.0]}, positive=True)
    assert list(steps) == [20]


def test_courses_of_one_norm_and_of_none_are_drawn():
    draw_over_steps({1: {"a": {1: [0.1]}}}, LOOKS, label="drift", caption="", log_scale=True)
    draw_over_steps({1: {"a": {1: [0.0]}}}, LOOKS, label="drift", caption="", log_scale=True)


def test_losses_are_smoothed_by_medians_and_infinity_is_left_out():
    steps = np.arange(1, 3 * MOST_POINTS + 1)
    losses = np.tile([1.0, 9.0, 2.0], MOST_POINTS)
    middles, medians = smooth(steps, losses)
    assert list(middles[:2]) == [2, 5]
    assert set(medians) == {2.0}
    assert smooth(np.array([1, 2]), np.array([np.inf, np.nan]))[0].size == 0


def test_spikes_are_counted_and_a_missing_cell_is_named():
    losses = np.linspace(1, 0.5, 60)
    losses[40] = 50
    curve = (np.arange(1, 61), losses)
    figure = draw_losses({"a": {1: [curve]}, "b": {2: [curve]}}, LOOKS, caption="Loss.")
    assert figure.caption == "Loss. 2 spikes in all."
    assert str(figure.drawing).count(">no run<") == 2


def test_hostile_names_stay_text():
    looks = choose_looks([HOSTILE])
    figures = [
        draw_by_batch_size({HOSTILE: [Point(1, 0.5, 0.4, 0.6)]}, looks, label=HOSTILE, caption=""),
        draw_by_norm({1: {HOSTILE: [0.5]}}, looks, label=HOSTILE, caption=""),
        draw_agreement({HOSTILE: [(0.1, 0.1)]}, looks, label=HOSTILE, caption=""),
        draw_over_steps({1: {HOSTILE: {1: [0.1]}}}, looks, label=HOSTILE, caption=HOSTILE),
        draw_losses({HOSTILE: {1: [(np.arange(3), np.ones(3))]}}, looks, caption=HOSTILE),
    ]
    for figure in figures:
        assert "<script" not in str(figure.drawing)


def test_seams_are_a_described_picture_even_where_nothing_is_finite():
    picture = np.full((4, 3), np.nan)
    cuts = np.array([2])
    drawn = draw_seams(Seams(picture, picture, picture, cuts, cuts), 0.0, HOSTILE)
    assert str(drawn).startswith('<img alt="&lt;script&gt;')
