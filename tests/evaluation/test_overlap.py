"""Dice against its definition, written with sets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medseg_brn.evaluation.overlap import compute_dice_from_confusion, count_confusion, cut_ignored

label_maps = arrays(np.uint8, (3, 4, 2), elements=st.integers(0, 3))


def compute_dice(prediction: np.ndarray, reference: np.ndarray, num_classes: int) -> np.ndarray:
    """Dice of each class but the background."""
    confusion = count_confusion(prediction, reference, num_classes)
    return compute_dice_from_confusion(confusion, [(label,) for label in range(1, num_classes)])


def naive_dice(prediction: np.ndarray, reference: np.ndarray, label: int) -> float:
    predicted = {index for index, value in np.ndenumerate(prediction) if value == label}
    referenced = {index for index, value in np.ndenumerate(reference) if value == label}
    if not predicted and not referenced:
        return float("nan")
    return 2 * len(predicted & referenced) / (len(predicted) + len(referenced))


@settings(deadline=None)
@given(label_maps, label_maps)
def test_dice_is_twice_the_intersection_over_the_sum(prediction, reference):
    expected = [naive_dice(prediction, reference, label) for label in (1, 2, 3)]
    np.testing.assert_allclose(compute_dice(prediction, reference, 4), expected)


@settings(deadline=None)
@given(label_maps, label_maps)
def test_dice_is_symmetric_and_within_0_and_1(one, other):
    dice = compute_dice(one, other, 4)
    np.testing.assert_array_equal(dice, compute_dice(other, one, 4))
    assert np.all(np.isnan(dice) | ((dice >= 0) & (dice <= 1)))


def test_one_of_three_voxels_shared_is_a_half():
    prediction = np.array([1, 1, 0, 0]).reshape(1, 4, 1)
    reference = np.array([0, 1, 1, 0]).reshape(1, 4, 1)
    np.testing.assert_array_equal(compute_dice(prediction, reference, 2), [0.5])


def test_absent_class_is_undefined_and_a_class_in_one_map_only_is_zero():
    prediction = np.array([0, 2]).reshape(1, 1, 2)
    reference = np.array([3, 0]).reshape(1, 1, 2)
    np.testing.assert_array_equal(compute_dice(prediction, reference, 4), [np.nan, 0, 0])


def test_confusion_has_the_reference_in_its_rows():
    confusion = count_confusion(np.full((2, 1, 1), 1), np.full((2, 1, 1), 2), 3)
    assert confusion[2, 1] == 2
    assert confusion.sum() == 2


def test_small_label_types_do_not_wrap_around():
    prediction = np.full((1, 1, 1), 199, dtype=np.uint8)
    assert compute_dice(prediction, prediction, 200)[198] == 1


@pytest.mark.parametrize("label", [-1, 2])
def test_label_out_of_range_is_refused(label):
    reference = np.zeros((1, 1, 1), dtype=np.int16)
    with pytest.raises(ValueError, match=rf"prediction holds labels {label} to {label}.*\[0, 2\)"):
        compute_dice(np.full((1, 1, 1), label), reference, 2)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 2, 3\).*\(3, 2, 1\)"):
        compute_dice(np.zeros((1, 2, 3), int), np.zeros((3, 2, 1), int), 2)


def test_what_is_to_be_ignored_becomes_background_in_both():
    prediction, reference = np.array([1, 2, 0, 1]), np.array([3, 2, 3, 0])
    cut_ignored(prediction, reference, 3)
    assert (prediction.tolist(), reference.tolist()) == ([0, 2, 0, 1], [0, 2, 0, 0])
    cut_ignored(prediction, reference, None)
    assert (prediction.tolist(), reference.tolist()) == ([0, 2, 0, 1], [0, 2, 0, 0])
