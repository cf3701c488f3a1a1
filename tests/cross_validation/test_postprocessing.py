"""Post-processing decided out of fold, on hand-made label maps where the right answer is known."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medseg_brn.cases.case import Case
from medseg_brn.cases.dataset import Dataset
from medseg_brn.cases.targets import Region
from medseg_brn.config import PostprocessingConfig
from medseg_brn.cross_validation.postprocessing import Decision, decide_postprocessing
from medseg_brn.volumes.volume import Grid, Volume
from medseg_brn.volumes.writing import write_volume

CASES = 8
GRID = Grid((16, 16, 16), np.diag([1.0, 1.0, 2.0, 1.0]))  # a voxel has 2 mm³
ORGAN = np.s_[1:6, 1:6, 1:6]
VESSELS = (np.s_[8:10, 8:10, 8:10], np.s_[12:14, 12:14, 12:14])
VALUES = {"organ": 10, "vessel": 20}


def make_reference() -> np.ndarray:
    """A cube of 125 voxels, and a structure in two pieces of 8 voxels."""
    array = np.zeros(GRID.shape, np.uint8)
    array[ORGAN] = VALUES["organ"]
    for piece in VESSELS:
        array[piece] = VALUES["vessel"]
    return array


@pytest.fixture
def decide(tmp_path):
    """Decides on references and predictions, changed case by case from one and the same label map."""

    def decide(
        predict: Callable[[np.ndarray, int], None],
        refer: Callable[[np.ndarray, int], None] = lambda array, number: None,
        given: dict[str, PostprocessingConfig] | None = None,
        regions: tuple[Region, ...] = (),
    ) -> Decision:
        predictions = []
        for number in range(CASES):
            reference = make_reference()
            refer(reference, number)
            predicted = reference.copy()
            predict(predicted, number)
            paths = [tmp_path / f"{kind}{number}.nii.gz" for kind in ("reference", "prediction")]
            for path, array in zip(paths, (reference, predicted), strict=True):
                write_volume(Volume(array, GRID), path)
            predictions.append((Case(f"case{number}", (Path("image"),), paths[0]), paths[1]))
        dataset = Dataset(
            "made",
            tmp_path,
            tuple(case for case, _ in predictions),
            ("background", *VALUES),
            (0, *VALUES.values()),
            ("mri",),
            regions=regions,
        )
        return decide_postprocessing(predictions, dataset, given, jobs=1)

    return decide


def add_organ_strays(array: np.ndarray, number: int) -> None:
    """Three to five voxels, and in odd cases one more piece, far from the organ."""
    array[15, 0, : 3 + number % 3] = VALUES["organ"]
    array[0, 15, : number % 2] = VALUES["organ"]


def test_a_perfect_prediction_gets_no_rule(decide):
    decision = decide(lambda array, number: None)
    assert decision.rules == {}
    assert {trial.structure for trial in decision.trials} == {"organ", "vessel"}
    assert {trial.added for trial in decision.trials} == {"keep_largest", "fill_holes", "remove_below_mm3"}
    assert {(trial.dice_before, trial.kept) for trial in decision.trials} == {(1.0, False)}


def test_the_largest_piece_is_kept_where_that_helps_and_not_where_it_harms(decide):
    decision = decide(add_organ_strays)
    assert decision.rules == {"organ": PostprocessingConfig(keep_largest=True)}
    trials = {(trial.structure, trial.added): trial for trial in decision.trials[:6]}
    kept = trials["organ", "keep_largest"]
    strays = [3 + number % 3 + number % 2 for number in range(CASES)]
    before = [2 * 125 / (125 + 125 + n) for n in strays]
    assert kept.dice_before == pytest.approx(np.mean(before))
    assert (kept.dice_after, kept.kept) == (1.0, True)
    assert kept.gain.mean == pytest.approx(1 - np.mean(before))
    # half of the vessels would be lost: 2·8 / (8 + 16)
    assert trials["vessel", "keep_largest"].dice_after == pytest.approx(2 / 3)
    assert not trials["vessel", "keep_largest"].kept


def test_pieces_below_the_smallest_of_the_references_are_removed(decide):
    def predict(array: np.ndarray, number: int) -> None:
        array[15, 0, : 3 + number % 3] = VALUES["vessel"]

    decision = decide(predict)
    assert decision.rules == {"vessel": PostprocessingConfig(remove_below_mm3=8 * 2)}


def test_rules_are_added_one_on_top_of_the_other(decide):
    def predict(array: np.ndarray, number: int) -> None:
        add_organ_strays(array, number)
        array[3, 3, 3 : 4 + number % 2] = 0  # a hole in the organ

    decision = decide(predict)
    assert decision.rules == {"organ": PostprocessingConfig(keep_largest=True, fill_holes=True)}
    kept = [trial for trial in decision.trials if trial.kept]
    assert [trial.added for trial in kept] == ["keep_largest", "fill_holes"]
    assert kept[1].dice_before == pytest.approx(kept[0].dice_after)
    assert kept[1].dice_after == 1.0


def test_what_helps_a_single_case_is_chance(decide):
    def predict(array: np.ndarray, number: int) -> None:
        if number == 0:
            add_organ_strays(array, number)

    decision = decide(predict)
    assert decision.rules == {}
    assert max(trial.gain.mean for trial in decision.trials) > 0


def test_a_false_alarm_that_is_removed_is_a_gain(decide):
    """In most cases there is no vessel, and a voxel of one is predicted: no Dice would see its removal."""

    def refer(array: np.ndarray, number: int) -> None:
        if number > 1:
            array[array == VALUES["vessel"]] = 0

    def predict(array: np.ndarray, number: int) -> None:
        array[15, 0, 0] = VALUES["vessel"]

    assert decide(predict, refer).rules == {"vessel": PostprocessingConfig(remove_below_mm3=16)}


def test_a_structure_whose_rule_was_given_is_left_alone(decide):
    given = {"organ": PostprocessingConfig(fill_holes=True)}
    decision = decide(add_organ_strays, given=given)
    assert decision.rules == given
    assert {trial.structure for trial in decision.trials} == {"vessel"}


def test_a_class_is_judged_by_the_regions_that_cover_it(decide):
    regions = (Region("everything", (1, 2), 1), Region("vessels", (2,), 2))
    decision = decide(add_organ_strays, regions=regions)
    assert decision.rules == {"organ": PostprocessingConfig(keep_largest=True)}
    before = [2 * 141 / (141 + 141 + 3 + number % 3 + number % 2) for number in range(CASES)]
    assert decision.trials[0].dice_before == pytest.approx(np.mean(before))
