"""Labels that keep their distance, and drawings that say what they show."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg_brn.studies.confounding.pictures import Line, draw_lines, draw_rows, space_apart


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([0.0, 1.0], [0.0, 1.0]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([1.0, 0.98, 0.0], [1.04, 0.94, 0.0]),
        ([0.0, 0.08, 0.17], [-0.01667, 0.08333, 0.18333]),
    ],
)
def test_crowded_places_move_apart(places, expected):
    assert space_apart(places, 0.1) == pytest.approx(expected, abs=1e-4)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_places_keep_their_order_distance_and_mean(places):
    moved = space_apart(places, 0.07)
    ordered = [moved[index] for index in sorted(range(len(places)), key=places.__getitem__)]
    assert all(later - earlier >= 0.07 - 1e-9 for earlier, later in pairwise(ordered))
    if places:
        assert np.mean(moved) == pytest.approx(np.mean(places))


def test_lines_are_named_and_told():
    line = Line("clip 1", [0, 1], [0.0, 0.5], [0, 1], [[0.01, 0.03], [0.5, 0.52]])
    figure = draw_lines([line], title="Retained", x_label="Δ", caption="below")
    assert "clip 1: 0.020, 0.510" in figure.drawing
    assert figure.drawing.count("clip 1") == 2


def test_rows_hold_a_mean_in_numbers():
    figure = draw_rows({"one": [0.2, 0.4]}, label="share", caption="below", limits=(0, 1))
    assert "one: mean 0.300" in figure.drawing
    assert ">0.300<" in figure.drawing
