"""Post-processing: hand-made pieces and holes, and what it may never do."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medseg_brn.config import PostprocessingConfig
from medseg_brn.inference.postprocessing import postprocess_label_map
from medseg_brn.volumes.volume import Grid, Volume


def _process(array, affine=None, **rule):
    array = np.array(array, np.uint8)
    volume = Volume(array, Grid(array.shape, np.eye(4) if affine is None else affine))
    return postprocess_label_map(volume, {1: PostprocessingConfig(**rule)}).array


def _row(*values):
    return np.array(values).reshape(-1, 1, 1)


def test_only_the_largest_piece_is_kept():
    found = _process(_row(1, 1, 0, 1, 1, 1, 2, 1), keep_largest=True)
    assert found.ravel().tolist() == [0, 0, 0, 1, 1, 1, 2, 0]


def test_pieces_that_touch_at_a_corner_are_two():
    array = np.zeros((2, 2, 1))
    array[0, 0] = array[1, 1] = 1
    assert _process(array, keep_largest=True).sum() == 1


def test_small_pieces_are_told_by_their_volume_in_mm3():
    """Voxels of 0.5 x 2 x 3 = 3 mm³."""
    affine = np.diag([0.5, 2, 3, 1])
    row = _row(1, 0, 1, 1, 0, 1, 1, 1)
    assert _process(row, affine, remove_below_mm3=6).ravel().tolist() == [0, 0, 1, 1, 0, 1, 1, 1]
    assert _process(row, affine, remove_below_mm3=6.1).ravel().tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


def test_holes_are_filled_with_background_s_voxels_only():
    array = np.ones((5, 5, 5))
    array[2, 2, 2] = 0
    array[2, 2, 3] = 2
    array[0, 0, 0] = 0  # open to the outside
    found = _process(array, fill_holes=True)
    assert found[2, 2, 2] == 1
    assert found[2, 2, 3] == 2
    assert found[0, 0, 0] == 0


def test_a_class_that_does_not_occur_and_no_rules_change_nothing():
    assert _process(_row(0, 2, 2), keep_largest=True).ravel().tolist() == [0, 2, 2]
    assert _process(_row(1, 0, 1)).ravel().tolist() == [1, 0, 1]


@settings(max_examples=60)
@given(
    arrays(np.uint8, st.tuples(*[st.integers(1, 6)] * 3), elements=st.integers(0, 2)),
    st.booleans(),
    st.floats(0, 5),
    st.booleans(),
)
def test_no_other_class_changes_and_a_second_time_changes_nothing(array, keep_largest, least, fill):
    rule = {"keep_largest": keep_largest, "remove_below_mm3": least, "fill_holes": fill}
    once = _process(array, **rule)
    np.testing.assert_array_equal(once == 2, array == 2)
    np.testing.assert_array_equal(_process(once, **rule), once)
