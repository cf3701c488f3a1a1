"""Scores back to the scan's grid: slab by slab gives what interpolating every class of the whole gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg_brn.cases.restoring import LabelMapRestorer, ProbabilityRestorer
from medseg_brn.cases.spatial import SpatialRecord, plan_space
from medseg_brn.cases.targets import Region, Targets
from medseg_brn.errors import ModelError
from medseg_brn.volumes.geometry import canonicalize
from medseg_brn.volumes.volume import Grid, Volume

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SWAPPED = np.array([[0, 0, 1.0, 3], [1, 0, 0, 4], [0, -1, 0, 5], [0, 0, 0, 1]])


def _record(shape, network_spacing_mm, affine=None, crop="none", array=None) -> SpatialRecord:
    affine = np.eye(4) if affine is None else affine
    array = np.zeros(shape, np.int16) if array is None else array
    return plan_space([Volume(array, Grid(shape, affine))], crop, network_spacing_mm)


def _slabs(scores, thicknesses):
    start = 0
    while start < scores.shape[1]:
        thickness = next(thicknesses)
        yield scores[:, start : start + thickness]
        start += thickness


def _classes(number) -> Targets:
    return Targets(tuple(f"class {index}" for index in range(number)))


def _restore(restorer_class, scores, record, thicknesses=(3, 1, 4, 2), targets=None):
    restorer = restorer_class(record, targets or _classes(len(scores)))
    for slab in _slabs(scores, iter(list(thicknesses) * 100)):
        restorer.take(slab)
    return restorer.finish()


def _naive(scores, record) -> np.ndarray:
    """Every class at every voxel of the crop (K, X, Y, Z), interpolated axis by axis in float64."""
    values = scores.astype(np.float64)
    for axis, (old, new) in enumerate(zip(record.network_shape, record.cropped_shape, strict=True), 1):
        centres = (np.arange(new) + 0.5) * old / new - 0.5
        values = np.apply_along_axis(
            lambda row, c=centres: np.interp(c, np.arange(len(row)), row), axis, values
        )
    return values


def _scores(shape, num_classes, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).random((num_classes, *shape), dtype=np.float32)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    spacing_mm=st.tuples(*[st.sampled_from([0.4, 0.7, 1.0, 1.3, 2.1])] * 3),
    num_classes=st.integers(1, 4),
    thicknesses=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    smooth=st.booleans(),
    seed=st.integers(0, 999),
)
def test_every_class_is_interpolated_before_the_largest_wins(
    shape, spacing_mm, num_classes, thicknesses, smooth, seed
):
    record = _record(shape, spacing_mm)
    scores = _scores(record.network_shape, num_classes, seed)
    if smooth:  # large areas of one class
        scores[seed % num_classes] += np.linspace(-1, 1, scores.shape[1])[:, None, None].astype(np.float32)
    expected = _naive(scores, record)
    np.testing.assert_allclose(
        _restore(ProbabilityRestorer, scores, record, thicknesses), expected, atol=1e-6
    )
    labels = _restore(LabelMapRestorer, scores, record, thicknesses)
    ordered = np.sort(expected, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-5 if num_classes > 1 else np.ones(labels.shape, bool)
    np.testing.assert_array_equal(labels[clear], expected.argmax(0)[clear])


@given(st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_slabs_of_any_thickness_give_the_same_to_the_last_bit(thicknesses):
    record = _record((13, 8, 9), (1.7, 0.8, 1.1))
    scores = _scores(record.network_shape, 3)
    whole = [_restore(kind, scores, record, [100]) for kind in (LabelMapRestorer, ProbabilityRestorer)]
    slabs = [_restore(kind, scores, record, thicknesses) for kind in (LabelMapRestorer, ProbabilityRestorer)]
    for one, other in zip(whole, slabs, strict=True):
        np.testing.assert_array_equal(one, other)


def test_of_equal_scores_the_lower_class_wins():
    record = _record((6, 6, 6), (2, 2, 2))
    labels = _restore(LabelMapRestorer, np.full((3, *record.network_shape), 0.5, np.float32), record)
    assert (labels == 0).all()


def test_a_border_falls_between_the_network_s_voxels():
    """Two voxels of 3 mm with .9 and .2 for class 1 against a constant .5: 6 voxels of 1 mm along X.

    Their centres are at -1/3, 0, 1/3, 2/3, 1, 4/3; class 1 has .9, .9, .667, .433, .2, .2.
    """
    record = _record((6, 1, 1), (3, 1, 1))
    scores = np.array([[0.5, 0.5], [0.9, 0.2]], np.float32).reshape(2, 2, 1, 1)
    assert _restore(LabelMapRestorer, scores, record).ravel().tolist() == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("affine", [LPS, SWAPPED])
def test_the_result_has_the_scan_s_own_axes(affine):
    record = _record((5, 6, 7), (1, 1, 1), affine)
    scores = _scores(record.network_shape, 3)
    labels = _restore(LabelMapRestorer, scores, record)
    assert labels.shape == (5, 6, 7)
    back = canonicalize(Volume(labels, Grid((5, 6, 7), affine)))
    np.testing.assert_array_equal(back.array, scores.argmax(0))
    probabilities = _restore(ProbabilityRestorer, scores, record)
    for found, score in zip(probabilities, scores, strict=True):
        np.testing.assert_array_equal(canonicalize(Volume(found, Grid((5, 6, 7), affine))).array, score)


def test_outside_the_crop_is_background():
    array = np.zeros((8, 8, 8), np.int16)
    array[2:6, 3:5, 1:7] = 5
    record = _record((8, 8, 8), (1, 1, 1), crop="nonzero", array=array)
    scores = np.zeros((2, 4, 2, 6), np.float32)
    scores[1] = 1
    np.testing.assert_array_equal(_restore(LabelMapRestorer, scores, record), array > 0)
    np.testing.assert_array_equal(_restore(ProbabilityRestorer, scores, record)[0], array == 0)


REGIONS = Targets(
    ("background", "edema", "necrosis", "enhancing"),
    (Region("whole", (1, 2, 3), 1), Region("core", (2, 3), 3), Region("necrosis", (2,), 2)),
)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    spacing_mm=st.tuples(*[st.sampled_from([0.4, 0.7, 1.0, 1.3, 2.1])] * 3),
    thicknesses=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    smooth=st.booleans(),
    seed=st.integers(0, 999),
)
def test_every_region_is_interpolated_before_the_last_is_written(
    shape, spacing_mm, thicknesses, smooth, seed
):
    record = _record(shape, spacing_mm)
    scores = _scores(record.network_shape, 3, seed)
    if smooth:  # large areas of one region
        scores[seed % 3] = np.linspace(0, 1, scores.shape[1])[:, None, None]
    expected = _naive(scores, record)
    labels = _restore(LabelMapRestorer, scores, record, thicknesses, REGIONS)
    naive = np.zeros(labels.shape, int)
    for written, probability in zip((1, 3, 2), expected, strict=True):
        naive[probability > 0.5] = written
    clear = (abs(expected - 0.5) > 1e-5).all(0)
    np.testing.assert_array_equal(labels[clear], naive[clear])
    probabilities = _restore(ProbabilityRestorer, scores, record, thicknesses, REGIONS)
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)


def test_outside_the_crop_no_region_is_probable():
    array = np.zeros((8, 8, 8), np.int16)
    array[2:6, 3:5, 1:7] = 5
    record = _record((8, 8, 8), (1, 1, 1), crop="nonzero", array=array)
    scores = np.ones((3, 4, 2, 6), np.float32)
    found = _restore(LabelMapRestorer, scores, record, targets=REGIONS)
    np.testing.assert_array_equal(found, 2 * (array > 0))
    probabilities = _restore(ProbabilityRestorer, scores, record, targets=REGIONS)
    for region in probabilities:
        np.testing.assert_array_equal(region, array > 0)


def test_over_256_classes_are_told_apart():
    record = _record((2, 1, 1), (1, 1, 1))
    scores = np.zeros((300, 2, 1, 1), np.float32)
    scores[299, 1] = 1
    assert _restore(LabelMapRestorer, scores, record).ravel().tolist() == [0, 299]


def test_scores_of_another_grid_too_few_or_not_a_number_are_refused():
    record = _record((4, 4, 4), (1, 1, 1))
    restorer = LabelMapRestorer(record, _classes(2))
    with pytest.raises(ModelError, match=r"\(2, 1, 4, 5\).*2 channels of \(4, 4, 4\)"):
        restorer.take(np.zeros((2, 1, 4, 5), np.float32))
    restorer.take(np.zeros((2, 3, 4, 4), np.float32))
    with pytest.raises(ModelError, match="3 planes were taken, but the network's grid has 4"):
        restorer.finish()
    with pytest.raises(ModelError, match="NaN"):
        restorer.take(np.full((2, 1, 4, 4), np.nan, np.float32))
