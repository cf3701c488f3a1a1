"""Labels that keep their distance, and drawings that say what they show."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg_brn.studies.pictures import draw_outlines, draw_series, space_apart


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


def test_rows_hold_a_mean_in_numbers():
    one, other = {"a": np.array([0.2, 0.4]), "b": np.array([0.5, np.nan])}, {"b": np.array([0.1, 0.3])}
    figure = draw_series({"first": one, "second": other}, label="share", caption="below", limits=(0, 1))
    assert "first: a 0.300, b 0.500; second: b 0.200" in figure.drawing
    for number in ("0.300", "0.500", "0.200"):
        assert f">{number}<" in figure.drawing


def test_what_rows_are_seen_against_is_named():
    rows = {"only": {"a": np.array([0.2, 0.4])}}
    figure = draw_series(rows, label="share", caption="below", reference={"guessing": 0.5, "": 0.1})
    assert "guessing" in figure.drawing


def test_an_empty_or_a_full_mask_has_no_outline():
    masks = np.stack([np.zeros((4, 5), bool), np.ones((4, 5), bool)])
    figure = draw_outlines(np.random.default_rng(0).random((2, 4, 5)), masks, {"arm": ~masks}, "below")
    assert "arm" in figure.drawing
