"""Curves say in words what they show."""

import re

import numpy as np

from medseg_brn.reports.curves import MOST_POINTS, draw_curve, draw_points, draw_spread


def label_of(figure) -> str:
    return re.search(r'aria-label="([^"]*)"', figure.drawing)[1]


def test_curve_of_few_steps_is_the_values_themselves():
    figure = draw_curve([1, 2, 3], [4.0, 2.0, 1.0], label="Loss", caption="c")
    assert label_of(figure) == "Loss over steps: from 4 to 1"


def test_curve_of_many_steps_is_medians_of_groups():
    values = np.ones(MOST_POINTS * 10)
    values[-1] = 1000.0  # one outlier among the ten last steps does not move their median
    figure = draw_curve(np.arange(values.size), values, label="Loss", caption="c")
    assert label_of(figure) == "Loss over steps: from 1 to 1"
    assert len(figure.drawing) < 60_000


def test_curve_leaves_out_what_is_not_finite():
    figure = draw_curve([1, 2, 3], [np.nan, 2.0, np.inf], label="Loss", caption="c", log_scale=True)
    assert label_of(figure) == "Loss over steps: from 2 to 2"
    assert label_of(draw_curve([1], [np.nan], label="Loss", caption="c")) == "Loss over steps"


def test_logarithmic_ticks_are_plain_numbers():
    figure = draw_curve([1, 2], [0.5, 2.0], label="Norm", caption="c", log_scale=True)
    assert "mathdefault" not in figure.drawing


def test_points_tell_last_and_best():
    figure = draw_points([10, 20, 30], [0.5, 0.9, 0.8], label="Dice", caption="c")
    assert label_of(figure) == "Dice over steps: last 0.800, best 0.900 at step 20"


def test_spread_tells_the_median_of_each_group_and_bears_empty_ones():
    figure = draw_spread({"liver": [0.8, 0.9, np.nan, 1.0], "nothing": [np.nan]}, label="Dice", caption="c")
    assert label_of(figure) == "Dice per case. liver: median 0.900"
    assert "nothing" in figure.drawing
