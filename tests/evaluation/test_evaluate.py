"""Cases and folders, from volumes and files."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg_brn.cases.label_description import Structures
from medseg_brn.errors import DataError
from medseg_brn.evaluation.evaluate import evaluate_case, evaluate_folders
from medseg_brn.volumes.volume import Grid, Volume
from medseg_brn.volumes.writing import write_volume

LESION = Structures({"lesion": (1,)})
SPACING_MM = (1.0, 2.0, 5.0)


def label_map(*voxels: tuple[tuple[int, int, int], int], origin_mm: float = 0.0, dtype=np.uint8) -> Volume:
    affine = np.diag([*SPACING_MM, 1.0])
    affine[0, 3] = origin_mm
    array = np.zeros((6, 5, 4), dtype=dtype)
    for index, label in voxels:
        array[index] = label
    return Volume(array, Grid(array.shape, affine))


def test_one_voxel_beside_another():
    """Along Y, where voxels are 2 mm apart; a voxel is 1 x 2 x 5 mm = 0.01 ml."""
    prediction = label_map(((1, 1, 1), 7), ((4, 4, 3), 7))
    reference = label_map(((1, 2, 1), 7), ((4, 4, 3), 7))
    (lesion,) = evaluate_case(prediction, reference, Structures({"lesion": (7,)}), tolerance_mm=1.0).values()
    assert lesion.dice == 0.5
    assert lesion.surface_dice == 0.5
    assert lesion.average_surface_distance_mm == pytest.approx(1.0)
    assert lesion.hd95_mm == pytest.approx(1.9)  # 95 % of the way from 0 to 2 mm
    assert lesion.prediction_ml == pytest.approx(0.02)
    assert lesion.volume_difference_ml == pytest.approx(0)


def test_a_sheared_and_turned_grid():
    """Voxels of 1 x 2 x 5 mm whose second axis leans over by 45°, all turned about z by 30°.

    The volume of a voxel is its base times its height, 0.01 ml, though its second edge is 2.83 mm long; a
    step along X and one back along Y ends 1 mm aside and 2 mm ahead.
    """
    sheared = np.array([[1.0, 2, 0], [0, 2, 0], [0, 0, 5]])
    turn = np.array([[math.sqrt(3) / 2, -0.5, 0], [0.5, math.sqrt(3) / 2, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ sheared
    arrays = np.zeros((2, 6, 5, 4), dtype=np.uint8)
    arrays[0, 2, 2, 2], arrays[1, 3, 1, 2] = 1, 1
    prediction, reference = (Volume(array, Grid(array.shape, affine)) for array in arrays)
    (metrics,) = evaluate_case(prediction, reference, LESION).values()
    assert metrics.prediction_ml == pytest.approx(0.01)
    assert metrics.reference_ml == pytest.approx(0.01)
    assert metrics.hd95_mm == pytest.approx(math.sqrt(1 + 4))


def test_classes_do_not_mix():
    volume = label_map(((0, 0, 0), 1), ((1, 0, 0), 2), ((2, 0, 0), 2))
    swapped = label_map(((0, 0, 0), 2), ((1, 0, 0), 1), ((2, 0, 0), 2))
    result = evaluate_case(swapped, volume, Structures({"one": (1,), "two": (2,), "three": (3,)}))
    assert [result[name].dice for name in ("one", "two")] == [0, 0.5]
    assert math.isnan(result["three"].dice)
    assert result["three"].reference_ml == 0


def test_regions_overlap():
    """Whole is 1, 2 and 3, core is 3. The prediction lacks one of three voxels and misses the core."""
    reference = label_map(((0, 0, 0), 1), ((1, 0, 0), 2), ((2, 0, 0), 3))
    prediction = label_map(((0, 0, 0), 2), ((1, 0, 0), 3))
    result = evaluate_case(prediction, reference, Structures({"whole": (1, 2, 3), "core": (3,)}))
    assert list(result) == ["whole", "core"]
    assert result["whole"].dice == pytest.approx(2 * 2 / (2 + 3))
    assert (result["whole"].prediction_ml, result["whole"].reference_ml) == pytest.approx((0.02, 0.03))
    assert result["core"].dice == 0
    assert result["core"].hd95_mm == pytest.approx(1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_region_is_evaluated_as_its_mask(seed):
    """Against the masks as label maps of their own, cut where the reference is to be ignored."""
    arrays = np.random.default_rng(seed).integers(0, 5, (2, 6, 5, 4)).astype(np.uint8)
    arrays[0][arrays[0] == 4] = 0
    structures = Structures({"a": (1, 3), "b": (2,), "c": (2, 3)}, ignore_value=4)
    prediction, reference = (Volume(array, Grid(array.shape, np.eye(4))) for array in arrays)
    found = evaluate_case(prediction, reference, structures)
    for name, values in structures.label_values.items():
        masks = [(np.isin(array, values) & (arrays[1] != 4)).astype(np.uint8) for array in arrays]
        alone = evaluate_case(*(Volume(mask, prediction.grid) for mask in masks), LESION)["lesion"]
        assert found[name].as_dict() == pytest.approx(alone.as_dict())


def test_what_the_reference_ignores_counts_in_no_metric():
    structures = Structures({"lesion": (1,)}, ignore_value=9)
    reference = label_map(((0, 0, 0), 1), ((3, 3, 3), 9), ((4, 4, 3), 9))
    prediction = label_map(((0, 0, 0), 1), ((3, 3, 3), 1))
    lesion = evaluate_case(prediction, reference, structures)["lesion"]
    assert (lesion.dice, lesion.hd95_mm, lesion.prediction_ml) == (1, 0, pytest.approx(0.01))
    assert evaluate_case(reference, reference, structures)["lesion"].dice == 1
    with pytest.raises(DataError, match="prediction has 1 voxels with 9, the value to be ignored"):
        evaluate_case(label_map(((1, 0, 0), 9)), reference, structures)


def test_classes_that_nothing_names_are_called_by_value():
    result = evaluate_case(label_map(((0, 0, 0), 9)), label_map(((0, 0, 0), 9), ((1, 1, 1), 4)))
    assert list(result) == ["class_4", "class_9"]
    assert result["class_4"].dice == 0


def test_floats_that_hold_integers_are_labels_and_others_are_not():
    reference = label_map(((0, 0, 0), 1))
    assert evaluate_case(label_map(((0, 0, 0), 1), dtype=np.float32), reference)["class_1"].dice == 1
    with pytest.raises(DataError, match=r"prediction.*0\.5"):
        evaluate_case(label_map(((0, 0, 0), 0.5), dtype=np.float32), reference)


def test_value_outside_the_classes_is_refused():
    with pytest.raises(DataError, match=r"prediction.* 5 "):
        evaluate_case(label_map(((0, 0, 0), 5)), label_map(), LESION)


def test_other_grid_is_refused_with_both_values():
    with pytest.raises(DataError, match=r"origin \(0, 0, 0\) mm against \(3, 0, 0\) mm.*resample"):
        evaluate_case(label_map(origin_mm=3), label_map())


@pytest.fixture
def folders(tmp_path):
    """Predictions of a, b, damaged, lost, moved; references of a, b, c, damaged, moved."""
    one, two = label_map(((0, 0, 0), 1)), label_map(((0, 0, 0), 1), ((1, 1, 1), 2))
    for name in ("a", "b", "lost"):
        write_volume(one, tmp_path / "predictions" / f"{name}.nii.gz")
    write_volume(label_map(origin_mm=3), tmp_path / "predictions" / "moved.nii.gz")
    (tmp_path / "predictions" / "damaged.nii.gz").write_bytes(b"no image")
    for name, volume in {"a": one, "b": two, "c": two, "damaged": one, "moved": one}.items():
        write_volume(volume, tmp_path / "data" / "labelsTr" / f"{name}.nii.gz")
    return tmp_path / "predictions", tmp_path / "data" / "labelsTr"


@pytest.mark.parametrize("jobs", [1, 2])
def test_bad_cases_are_told_and_the_others_evaluated(folders, jobs):
    told = []
    evaluation = evaluate_folders(*folders, jobs=jobs, progress=lambda *count: told.append(count))
    assert [case.case for case in evaluation.cases] == ["a", "b"]
    failures = {failure.case: failure.message for failure in evaluation.failures}
    assert set(failures) == {"damaged", "moved", "lost"}
    assert "damaged.nii.gz" in failures["damaged"]
    assert "(3, 0, 0) mm" in failures["moved"]
    assert "no reference" in failures["lost"]
    assert evaluation.unpredicted == ("c",)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_class_that_one_case_lacks_is_absent_there(folders):
    evaluation = evaluate_folders(*folders)
    assert evaluation.class_names == ("class_1", "class_2")
    np.testing.assert_array_equal(evaluation.values("dice"), [[1, np.nan], [1, 0]])
    assert evaluation.summary()["classes"]["class_2"]["absent"] == 1


def test_class_names_come_from_the_description_beside_the_references(folders):
    labels = {"0": "background", "1": "liver", "2": "tumour"}
    (folders[1].parent / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert evaluate_folders(*folders).class_names == ("liver", "tumour")
    assert evaluate_folders(*folders, structures=Structures({"x": (1,), "y": (2,)})).class_names == ("x", "y")


def test_real_references_against_themselves(data_folder):
    references = data_folder / "Task04_Hippocampus" / "labelsTr"
    evaluation = evaluate_folders(
        references / "hippocampus_001.nii.gz", references / "hippocampus_001.nii.gz"
    )
    assert evaluation.class_names == ("Anterior", "Posterior")
    assert evaluation.summary()["dice_mean"] == 1
    np.testing.assert_array_equal(evaluation.values("hd95_mm"), [[0, 0]])
