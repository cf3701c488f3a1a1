"""Post-processing: hand-made pieces and holes, and what it may never do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medseg_brn.cases.targets import Region, Targets
from medseg_brn.config import PostprocessingConfig
from medseg_brn.errors import ConfigError
from medseg_brn.inference.postprocessing import check_rules, postprocess_label_map
from medseg_brn.volumes.volume import Grid, Volume


def _process(array, affine=None, **rule):
    array = np.array(array, np.uint8)
    volume = Volume(array, Grid(array.shape, np.eye(4) if affine is None else affine))
    targets = Targets(("background", "one", "two"))
    return postprocess_label_map(volume, {"one": PostprocessingConfig(**rule)}, targets).array


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


# whole (1, 2, 3) > core (2, 3) > enhancing (3); organ (4) apart from them
NESTED = Targets(
    ("background", "edema", "necrosis", "enhancing", "organ"),
    (
        Region("whole", (1, 2, 3), 1),
        Region("core", (2, 3), 2),
        Region("enhancing", (3,), 3),
        Region("organ", (4,), 4),
    ),
)


def _process_regions(row, **rules):
    array = np.array(row, np.uint8).reshape(-1, 1, 1)
    chosen = {name: PostprocessingConfig(**rule) for name, rule in rules.items()}
    return postprocess_label_map(Volume(array, Grid(array.shape, np.eye(4))), chosen, NESTED).array


def test_what_a_region_loses_stays_with_the_region_around_it():
    row = [0, 1, 3, 1, 2, 3, 3, 1, 0, 4]
    found = _process_regions(row, core={"keep_largest": True}).ravel().tolist()
    assert found == [0, 1, 1, 1, 2, 3, 3, 1, 0, 4]  # the small piece of the core was enhancing, now edema
    found = _process_regions(row, enhancing={"remove_below_mm3": 2}).ravel().tolist()
    assert found == [0, 1, 2, 1, 2, 3, 3, 1, 0, 4]


def test_a_region_is_one_piece_whatever_is_inside_it_and_goes_with_all_of_it():
    row = [1, 2, 3, 2, 1, 0, 1, 3, 0, 4]
    found = _process_regions(row, whole={"keep_largest": True}).ravel().tolist()
    assert found == [1, 2, 3, 2, 1, 0, 0, 0, 0, 4]


def test_a_region_fills_background_and_what_lies_around_it_and_nothing_else():
    array = np.full((5, 5, 5), 2, np.uint8)
    array[2, 2, 1:4] = 0, 1, 4
    volume = Volume(array, Grid(array.shape, np.eye(4)))
    found = postprocess_label_map(volume, {"core": PostprocessingConfig(fill_holes=True)}, NESTED).array
    assert found[2, 2, 1:4].tolist() == [2, 2, 4]


def test_rules_name_structures():
    with pytest.raises(ConfigError, match=r"names 'edema', .*structures: whole, core, enhancing, organ"):
        check_rules({"edema": PostprocessingConfig()}, NESTED)
    with pytest.raises(ConfigError, match="the nearest: edema"):
        check_rules({"edma": PostprocessingConfig()}, Targets(NESTED.class_names))


@settings(max_examples=60)
@given(
    arrays(np.uint8, st.tuples(*[st.integers(1, 6)] * 3), elements=st.integers(0, 4)),
    st.sampled_from(["whole", "core", "enhancing"]),
    st.booleans(),
    st.floats(0, 5),
    st.booleans(),
)
def test_regions_around_lose_nothing_and_regions_apart_change_not_at_all(
    array, name, keep_largest, least, fill
):
    rule = PostprocessingConfig(keep_largest=keep_largest, remove_below_mm3=least, fill_holes=fill)
    found = postprocess_label_map(
        Volume(array.copy(), Grid(array.shape, np.eye(4))), {name: rule}, NESTED
    ).array
    np.testing.assert_array_equal(found == 4, array == 4)
    chosen = set(NESTED.structures[name])
    for classes in NESTED.structures.values():
        if chosen < set(classes):
            assert not (np.isin(array, classes) & ~np.isin(found, classes)).any()
    # by the definition: the rule on the mask of a plain class
    plain = postprocess_label_map(
        Volume(np.isin(array, list(chosen)).astype(np.uint8), Grid(array.shape, np.eye(4))),
        {"a": rule.model_copy(update={"fill_holes": False})},
        Targets(("background", "a")),
    ).array
    if not fill:
        np.testing.assert_array_equal(np.isin(found, list(chosen)), plain == 1)
