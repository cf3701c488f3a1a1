"""Label values: their description, those found, and the consecutive classes made of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg_brn.cases.labels import MAX_VALUES, find_values, map_to_classes, parse_labels
from medseg_brn.errors import DataError


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"0": "background", "2": "right", "1": "left"}, [("background", 0), ("left", 1), ("right", 2)]),
        ({"background": 0, "tumour": 1}, [("background", 0), ("tumour", 1)]),
        ({"mask": 255, "background": 0}, [("background", 0), ("mask", 255)]),
        ({"enhancing": 4, "edema": 2}, [("background", 0), ("edema", 2), ("enhancing", 4)]),
        ({"background": "0", "tumour": "3"}, [("background", 0), ("tumour", 3)]),
        ({"background": 0, "1": 1}, [("background", 0), ("1", 1)]),
    ],
    ids=[
        "decathlon",
        "nnunet",
        "0 and 255",
        "gaps and no background",
        "quoted values",
        "names that are numbers",
    ],
)
def test_both_spellings_give_names_and_values_in_order(labels: dict, expected: list) -> None:
    assert list(parse_labels(labels, "dataset.json").items()) == expected


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            {"background": 0, "whole tumour": [1, 2, 3]},
            r"'whole tumour' is a region of the values \[1, 2, 3\].*CSV",
        ),
        (
            {"background": 0, "tumour": 1, "ignore": 9},
            r"'ignore': 9 marks voxels to ignore.*not supported yet",
        ),
        ({"0": "background", "9": "ignore"}, "marks voxels to ignore"),
        ({"background": 0, "tumour": 1.5}, r"'tumour' has the value 1.5; give each class one integer"),
        ({"background": 0, "tumour": True}, r"'tumour' has the value True"),
        ({"background": 0, "a": 1, "b": 1}, "repeats a name or a value"),
        ({"0": "background", "1": "a", "2": "a"}, "repeats a name or a value"),
        (["background", "tumour"], r'"labels" is \[.background., .tumour.\]'),
        ({}, '"labels" is {}'),
    ],
)
def test_labels_that_cannot_be_classes_are_refused(labels: object, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        parse_labels(labels, "there/dataset.json")
    assert "there/dataset.json" in str(caught.value)


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
