"""What a description says of label values: classes, regions and the ignore label, in both spellings."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg_brn.cases.label_description import Labels, RegionValues, Structures, parse_labels
from medseg_brn.cases.targets import Region, Targets
from medseg_brn.errors import DataError

BRATS = {
    "background": 0,
    "whole tumor": [1, 2, 3],
    "tumor core": [2, 3],
    "enhancing tumor": [3],
    "ignore": 4,
}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"0": "background", "2": "right", "1": "left"}, [("background", 0), ("left", 1), ("right", 2)]),
        ({"background": 0, "tumour": 1}, [("background", 0), ("tumour", 1)]),
        ({"mask": 255, "background": 0}, [("background", 0), ("mask", 255)]),
        ({"enhancing": 4, "edema": 2}, [("background", 0), ("edema", 2), ("enhancing", 4)]),
        ({"background": "0", "tumour": "3"}, [("background", 0), ("tumour", 3)]),
        ({"background": 0, "1": 1}, [("background", 0), ("1", 1)]),
        ({"background": [0], "tumour": [3]}, [("background", 0), ("tumour", 3)]),
    ],
    ids=[
        "decathlon",
        "nnunet",
        "0 and 255",
        "gaps and no background",
        "quoted values",
        "names that are numbers",
        "lists of one",
    ],
)
def test_both_spellings_give_names_and_values_in_order(labels: dict, expected: list) -> None:
    parsed = parse_labels(labels, "dataset.json")
    assert list(zip(parsed.class_names, parsed.label_values, strict=True)) == expected
    assert (parsed.regions, parsed.ignore_value) == ((), None)
    assert parsed.structures == Structures({name: (value,) for name, value in expected[1:]})


def test_brats_by_hand() -> None:
    assert parse_labels(BRATS, "dataset.json", [1, 2, 3]) == Labels(
        class_names=("background", "label 1", "label 2", "enhancing tumor"),
        label_values=(0, 1, 2, 3),
        regions=(
            Region("whole tumor", (1, 2, 3), 1),
            Region("tumor core", (2, 3), 2),
            Region("enhancing tumor", (3,), 3),
        ),
        ignore_value=4,
    )


def test_values_with_gaps_become_consecutive_classes() -> None:
    labels = parse_labels({"tumour": [10, 40], "core": 40, "ignore": 7}, "dataset.json", ["10", 40])
    assert labels.label_values == (0, 10, 40)
    assert labels.regions == (Region("tumour", (1, 2), 1), Region("core", (2,), 2))
    assert labels.known_values == (0, 10, 40, 7)
    assert labels.targets == Targets(("background", "label 10", "core"), labels.regions, ignore_class=3)
    assert labels.structures == Structures({"tumour": (10, 40), "core": (40,)}, 7)


@pytest.mark.parametrize(
    "labels", [{"background": 0, "vessel": 1, "ignore": 9}, {"0": "background", "1": "vessel", "9": "Ignore"}]
)
def test_the_ignore_label_is_no_class(labels: dict) -> None:
    parsed = parse_labels(labels, "dataset.json")
    assert (parsed.class_names, parsed.label_values, parsed.ignore_value) == (
        ("background", "vessel"),
        (0, 1),
        9,
    )
    assert parsed.targets.ignore_class == 2


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"background": 0, "tumour": 1.5}, r"'tumour' has the value 1.5; give each class one integer"),
        ({"background": 0, "tumour": True}, r"'tumour' has the value True"),
        ({"background": 0, "tumour": []}, r"'tumour' has the value \[\]"),
        ({"background": 0, "tumour": [1, "x"]}, r"'tumour' has the value \[1, 'x'\]"),
        ({"background": 0, "a": 1, "b": 1}, "repeats a name or a value"),
        ({"background": 0, "a": 0}, "repeats a name or a value"),
        ({"0": "background", "1": "a", "2": "a"}, "repeats a name or a value"),
        (["background", "tumour"], r'"labels" is \[.background., .tumour.\]'),
        ({}, '"labels" is {}'),
        ({"background": 0, "head": [0, 1]}, r"'head' of the values \[0, 1\] includes 0.*leave it out"),
        ({"a": 1, "ignore": [8, 9]}, "ignore label has the values 8, 9; give all voxels.*one value"),
        ({"0": "background", "8": "ignore", "9": "Ignore"}, "ignore label has the values 8, 9"),
        ({"a": 1, "ignore": 1}, "ignore label has the value 1, which is also that of 'a'"),
        ({"a": [1, 2], "ignore": 2}, "ignore label has the value 2, which is also that of 'a'"),
        ({"a": 1, "ignore": 0}, "ignore label has the value 0, which is also that of 'the background'"),
    ],
)
def test_labels_that_cannot_be_are_refused(labels: object, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        parse_labels(labels, "there/dataset.json", [1, 1])
    assert "there/dataset.json" in str(caught.value)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (None, r'has no "regions_class_order".*whole tumor \[1, 2, 3\].*: \[1, 2, 3\]'),
        ([1, 2], r"is \[1, 2\]; write one value for each region in their order"),
        (3, r'"regions_class_order" is 3; write one value'),
        ([1, 2, 7], r"writes the region 'enhancing tumor' as 7, which is none of its values \[3\]"),
        ([1, 1, 3], r"'tumor core' as 1, which is none of its values \[2, 3\]"),
        ([3, 2, 3], "writes two regions with one value"),
        ([1, "two", 3], "'tumor core' as None"),
    ],
)
def test_orders_that_do_not_fit_the_regions_are_refused(order: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_labels(BRATS, "dataset.json", order)


def test_a_region_that_would_never_be_seen_is_refused() -> None:
    with pytest.raises(DataError, match=r"'whole' stands after 'core', which it contains.*list 'whole'"):
        parse_labels({"core": [2, 3], "whole": [1, 2, 3]}, "dataset.json", [2, 1])
    with pytest.raises(DataError, match=r"'a' and 'b' have the same values \[1, 2\]"):
        parse_labels({"a": [1, 2], "b": [2, 1]}, "dataset.json", [1, 2])


def test_a_region_that_is_called_as_a_nameless_value_is_refused() -> None:
    with pytest.raises(DataError, match="repeats a name or a value"):
        parse_labels({"whole": [1, 2], "label 2": [1]}, "dataset.json", [2, 1])


@pytest.mark.parametrize(
    ("labels", "order", "message"),
    [
        (
            {"background": 0, "whole": [1, 2, 3], "core": [2, 3]},
            [2, 3],
            r"'whole' is written as 2, which belongs to 'core' \[2, 3\] too.* read as 'core'",
        ),
        ({"core": [2, 3], "whole": [1, 2, 3]}, [3, 2], "'whole' stands after 'core', which it contains"),
        ({"left": [1, 2], "right": [2, 3]}, [2, 3], "'left' is written as 2, which belongs to 'right'"),
    ],
)
def test_a_region_that_would_be_read_as_another_is_refused(labels: dict, order: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_labels(labels, "dataset.json", order)


@st.composite
def nested_regions(draw: st.DrawFn) -> dict[str, list[int]]:
    """Regions of which any two lie inside each other or apart, in any order."""
    values = draw(st.permutations(range(1, 6)))
    regions, waiting = [], [values]
    while waiting:
        own = waiting.pop()
        if draw(st.booleans()):
            regions.append(own)
        if len(own) > 1:
            cut = draw(st.integers(1, len(own) - 1))
            waiting += [own[:cut], own[cut:]]
    return {f"region {number}": own for number, own in enumerate(draw(st.permutations(regions)))}


@settings(max_examples=300)
@given(nested_regions(), st.data())
def test_nested_regions_are_read_back_from_what_is_written(
    described: dict[str, list[int]], data: st.DataObject
) -> None:
    """What a perfect network gives, written in any order that is accepted, is read as the same regions."""
    order = [data.draw(st.sampled_from(own)) for own in described.values()]
    try:
        labels = parse_labels(described, "dataset.json", order)
    except DataError:
        return
    if not labels.regions:
        return
    classes = np.arange(labels.targets.num_classes)
    masks = [np.isin(classes, region.classes) for region in labels.regions]
    written = np.array(labels.label_values)[labels.targets.decide(np.array(masks, np.float32))]
    for mask, (name, own) in zip(masks, labels.structures.label_values.items(), strict=True):
        assert np.array_equal(np.isin(written, own), mask), name


def test_regions_are_told_in_label_values() -> None:
    labels = parse_labels({"tumour": [10, 40], "core": 40}, "dataset.json", [10, 40])
    assert labels.region_values == (RegionValues("tumour", (10, 40), 10), RegionValues("core", (40,), 40))
    assert parse_labels({"tumour": 1}, "dataset.json").region_values == ()
