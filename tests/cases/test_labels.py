"""Label values: those found, and the consecutive classes made of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg_brn.cases.labels import MAX_VALUES, find_values, map_to_classes
from medseg_brn.errors import DataError


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.uint64, np.float32, np.float64])
def test_values_become_consecutive_classes(dtype: type) -> None:
    label_map = np.array([[[0, 1, 2], [4, 4, 0]]], dtype)
    classes = map_to_classes(label_map, (0, 1, 2, 4), "a.nii.gz")
    assert classes.dtype == np.uint8
    assert classes.tolist() == [[[0, 1, 2], [3, 3, 0]]]


def test_masks_of_booleans_are_label_maps() -> None:
    assert map_to_classes(np.array([[[True, False]]]), (0, 1), "mask").tolist() == [[[1, 0]]]


def test_more_than_256_classes_take_two_bytes() -> None:
    values = np.arange(300).reshape(1, 1, 300)
    classes = map_to_classes(values, tuple(range(300)), "parcels")
    assert classes.dtype == np.uint16
    assert np.array_equal(classes, values)


@given(
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=6, unique=True),
    st.lists(st.integers(0, 5), min_size=1, max_size=30),
)
def test_any_values_map_as_a_dictionary_does(values: list[int], drawn: list[int]) -> None:
    voxels = [values[n % len(values)] for n in drawn]
    label_map = np.array(voxels).reshape(len(voxels), 1, 1)
    naive = [values.index(voxel) for voxel in voxels]
    assert map_to_classes(label_map, values, "any").ravel().tolist() == naive
    found, counts = find_values(label_map, "any")
    assert dict(zip(found.tolist(), counts.tolist(), strict=True)) == {
        v: voxels.count(v) for v in set(voxels)
    }


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, -np.inf, 1e30])
def test_values_that_are_no_integers_are_refused(value: float) -> None:
    label_map = np.zeros((2, 3, 4), np.float64)
    label_map[0, 0, :2] = value
    with pytest.raises(
        DataError,
        match=rf"label.nii.gz has 2 voxels that are no integers, such as {value:g}".replace("+", r"\+"),
    ):
        map_to_classes(label_map, (0, 1), "label.nii.gz")


def test_unknown_values_are_told_with_their_voxels() -> None:
    label_map = np.array([[[0, 1, 7, 7, 9]]], np.uint8)
    with pytest.raises(DataError, match=r"7 \(2 voxels\), 9 \(1 voxel\), beside 0, 1; correct the label map"):
        map_to_classes(label_map, (0, 1), "label.nii.gz")


def test_an_image_is_not_taken_for_a_label_map() -> None:
    image = np.arange(MAX_VALUES + 1).reshape(-1, 1, 1)
    with pytest.raises(DataError, match=rf"holds {MAX_VALUES + 1} different values from 0 to {MAX_VALUES}"):
        find_values(image, "image.nii.gz")
