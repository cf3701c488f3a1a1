"""Foreground, rare and small classes, mirroring and augmentation, by hand."""

import pytest

from medseg_brn.cases.targets import Region, Targets
from medseg_brn.planning.rules_patches import (
    choose_augmentation,
    choose_class_weights,
    choose_foreground_by,
    choose_foreground_fraction,
    choose_mirroring,
    find_rare,
    structure_volumes_ml,
)


def test_a_patch_that_is_nearly_the_scan_needs_no_aim():
    assert choose_foreground_fraction((32, 48, 32), (35, 50, 36), {"a": 0.03}, {}).value == 0


def test_small_structures_are_aimed_at():
    large = choose_foreground_fraction((32, 32, 32), (128, 128, 128), {"liver": 0.05}, {})
    small = choose_foreground_fraction((32, 32, 32), (128, 128, 128), {"liver": 0.05, "cyst": 0.001}, {})
    assert (large.value, small.value) == (0.33, 0.5)
    assert "cyst fills 0.10%" in small.reason


def test_classes_of_few_cases(make_fingerprint):
    found = make_fingerprint(
        [(1, 1, 1)] * 4, classes={"organ": [9] * 4, "half": [5, 5, 0, 0], "cyst": [0, 0, 7, 0], "no": [0] * 4}
    )
    rare = find_rare(found)
    assert rare == {"cyst": 1}, "half the cases are enough, and what no case has cannot be drawn"
    choice = choose_foreground_by(rare, 4)
    assert (choice.value, "cyst is in 1 of 4 cases" in choice.reason) == ("class", True)
    assert choose_foreground_by({}, 4).reason.startswith("every class that is there at all")
    assert choose_foreground_fraction((100,) * 3, (100,) * 3, {"cyst": 1e-5}, rare).value == 0.5


def test_weights_are_the_root_of_what_is_missing():
    """1/50 weighs 1; 1/200 is 4 times less, so 2; 1/5000 would be 10, and is held at 3."""
    weights = choose_class_weights({"liver": 1000.0, "a": 20.0, "b": 5.0, "c": 0.2})
    assert weights.value == {"b": 2.0, "c": 3.0}
    assert choose_class_weights({"liver": 1000.0, "spleen": 200.0}).value == {}


def test_regions_are_weighed_by_their_own_volumes(make_fingerprint):
    found = make_fingerprint([(1, 1, 1)] * 2, classes={"edema": [3000, 1000], "core": [1000, 0]})
    targets = Targets(("background", "edema", "core"), (Region("whole", (1, 2), 1), Region("core", (2,), 2)))
    assert structure_volumes_ml(found, targets) == {"whole": 2.5, "core": 1.0}


@pytest.mark.parametrize(
    ("names", "axes", "pairs"),
    [
        (["liver", "spleen"], (), ()),
        (["kidney left", "kidney right", "liver"], (0,), (("kidney left", "kidney right"),)),
        (["Left kidney", "right kidney"], (0,), (("Left kidney", "right kidney"),)),
        (["lung_left", "lung_right", "middle_lobe_right"], (), ()),
        (["femur_l", "femur_r"], (0,), (("femur_l", "femur_r"),)),
        (["vertebrae_L1", "vertebrae_T12"], (), ()),
        (["vertebrae_L1", "vertebrae_R1"], (), ()),
        (["L1", "R1"], (), ()),
        (["left ventricle", "right ventricle", "myocardium"], (), ()),
        (["heart_atrium_left", "heart_atrium_right", "kidney_left", "kidney_right"], (), ()),
        (["left upper lobe", "left lower lobe", "right upper lobe", "right lower lobe"], (), ()),
        (["eye globe left", "eye globe right"], (0,), (("eye globe left", "eye globe right"),)),
        (["kidney left", "kidney right", "femur_l"], (), ()),
    ],
)
def test_mirroring(names, axes, pairs):
    flips, mirrored = choose_mirroring(Targets(("background", *names)))
    assert (flips.value, mirrored.value) == (axes, pairs)


def test_a_class_without_partner_is_named():
    targets = Targets(("background", "lung", "middle_lobe_right"))
    assert "'middle_lobe_right' names a side" in choose_mirroring(targets)[0].reason


def test_two_sides_are_counted_as_two_classes_and_one_pair():
    flips, pairs = choose_mirroring(Targets(("background", "kidney left", "kidney right")))
    assert flips.reason.startswith("1 pair of left and right")
    assert pairs.reason.startswith("2 classes name a side")


def test_structures_that_differ_in_shape_are_told():
    reason = choose_mirroring(Targets(("background", "Left Ventricle", "Right Ventricle")))[0].reason
    assert reason.startswith("'Left Ventricle' may differ in shape from its partner")


def test_a_letter_with_a_number_is_no_side():
    assert "no class names a side" in choose_mirroring(Targets(("background", "vertebrae_L1")))[0].reason


SIDED = (Region("left core", (2,), 2), Region("right core", (4,), 4))


@pytest.mark.parametrize(
    ("names", "regions", "axes", "reason"),
    [
        (
            ("left edema", "left core", "right edema", "right core"),
            (Region("left tumour", (1, 2), 1), Region("right tumour", (3, 4), 3), *SIDED),
            (0,),
            "2 pairs of left and right",
        ),
        (
            ("label 1", "left core", "label 3", "right core"),
            (Region("left tumour", (1, 2), 1), Region("right tumour", (3, 4), 3), *SIDED),
            (),
            "mirror image of a region would be no region",
        ),
        (
            ("label 1", "left core", "label 3", "right core"),
            (Region("whole", (1, 2, 3, 4), 1), Region("left wing", (3,), 3), *SIDED),
            (),
            "the region 'left wing' names a side",
        ),
        (
            ("label 1", "label 2"),
            (Region("left", (1,), 1), Region("right", (2,), 2)),
            (),
            "no class names a side",
        ),
    ],
)
def test_regions_have_a_say_in_mirroring(names, regions, axes, reason):
    flips, pairs = choose_mirroring(Targets(("background", *names), regions))
    assert (flips.value, bool(pairs.value)) == (axes, bool(axes))
    assert reason in flips.reason


def test_bias_fields_are_of_large_mri(make_fingerprint):
    small, large = make_fingerprint(shape=(40, 50, 40)), make_fingerprint(shape=(160, 190, 160))
    assert choose_augmentation(small, ["mri"], (1, 1, 1))["bias_field"].value == 0
    assert choose_augmentation(large, ["mri"], (1, 1, 1))["bias_field"].value > 0
    assert choose_augmentation(large, ["ct"], (1, 1, 1))["bias_field"].value == 0
    assert choose_augmentation(large, ["ct", "mri"], (1, 1, 1))["bias_field"].value > 0


def test_thick_slices_turn_in_their_planes_only(make_fingerprint):
    found = make_fingerprint()
    assert choose_augmentation(found, ["mri"], (1, 1, 1))["rotation_degrees"].value == 20
    thick = choose_augmentation(found, ["mri"], (0.5, 0.5, 3))["rotation_degrees"]
    assert (thick.value, thick.reason.endswith("thick slices turn in their planes only")) == (20, True)


def test_low_resolution_is_imitated_where_it_occurs(make_fingerprint):
    """Half of the cases at 1 mm and half at 1.6: the 90th percentile is 1.6 times the 10th."""
    mixed = make_fingerprint([(1, 1, 1)] * 5 + [(1, 1, 1.6)] * 5)
    assert choose_augmentation(mixed, ["mri"], (1, 1, 1))["low_resolution"].value == 1.6
    assert choose_augmentation(make_fingerprint(), ["mri"], (1, 1, 1))["low_resolution"].value == 1
