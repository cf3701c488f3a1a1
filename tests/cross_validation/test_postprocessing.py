"""Post-processing decided out of fold, on hand-made label maps where the right answer is known."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

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
        cases: int = CASES,
    ) -> Decision:
        predictions = []
        for number in range(cases):
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


def test_pieces_smaller_than_those_of_the_references_are_removed(decide):
    def predict(array: np.ndarray, number: int) -> None:
        array[15, 0, : 3 + number % 3] = VALUES["vessel"]

    decision = decide(predict)
    assert decision.rules == {"vessel": PostprocessingConfig(remove_below_mm3=8 * 2)}


def test_a_slip_of_the_annotator_does_not_set_the_smallest_size(decide):
    """256 pieces of 16 mm³ and one of 2: their 1st percentile is 16."""

    def refer(array: np.ndarray, number: int) -> None:
        array[8:] = 0
        for shift in np.ndindex(2, 2, 2):
            array[8 + shift[0] :: 4, shift[1] :: 4, shift[2] :: 4] = VALUES["vessel"]
        if number == 0:
            array[6, 14, 14] = VALUES["vessel"]

    def predict(array: np.ndarray, number: int) -> None:
        array[0, 15, : 3 + number % 3] = VALUES["vessel"]

    assert decide(predict, refer).rules == {"vessel": PostprocessingConfig(remove_below_mm3=16)}


def test_what_helps_in_one_of_many_trials_is_chance(decide):
    def predict(array: np.ndarray, number: int) -> None:
        array[15, 0, : max(0, number - 2)] = VALUES["organ"]

    decision = decide(predict)
    gains = [1 - 250 / (250 + max(0, number - 2)) for number in range(CASES)]
    trial = next(trial for trial in decision.trials if trial.added == "keep_largest")
    assert trial.gain.mean == pytest.approx(np.mean(gains))
    # By itself it would pass; of two structures' three options, 12 trials may come.
    probability = stats.ttest_1samp(gains, 0).pvalue
    assert 0.05 / 12 < probability < 0.05
    assert trial.gain.confidence == pytest.approx(1 - 0.05 / 12)
    assert decision.rules == {}


@pytest.mark.parametrize(("cases", "helps"), [(2, False), (4, False), (5, True)])
def test_few_cases_show_nothing_however_alike_they_are(decide, cases, helps):
    def predict(array: np.ndarray, number: int) -> None:
        array[15, 0, :4] = VALUES["organ"]

    assert bool(decide(predict, cases=cases).rules) == helps


def test_rules_that_do_harm_together_are_not_both_kept(decide):
    """Taking a false organ out of a vessel's cavity lets the vessel fill it."""

    def refer(array: np.ndarray, number: int) -> None:
        array[8:] = 0
        array[8:14, 8:14, 8:14] = VALUES["vessel"]
        array[10:12, 10:12, 10:12] = 0

    def predict(array: np.ndarray, number: int) -> None:
        array[10:12, 10:12, 10:12] = VALUES["organ"]
        array[9, 9, 9 : 10 + number % 2] = 0  # a hole

    decision = decide(predict, refer)
    assert decision.rules == {"organ": PostprocessingConfig(keep_largest=True)}
    (dropped,) = [trial for trial in decision.trials if trial.harmed is not None]
    assert (dropped.structure, dropped.added, dropped.harmed) == ("vessel", "fill_holes", "vessel")
    assert dropped.gain.low > 0


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


def test_regions_have_rules_of_their_own(decide):
    """All but the smallest pieces of both classes together, of 8 voxels, are removed."""
    regions = (Region("everything", (1, 2), 1), Region("vessels", (2,), 2))
    decision = decide(add_organ_strays, regions=regions)
    assert decision.rules == {"everything": PostprocessingConfig(remove_below_mm3=8 * 2)}
    before = [2 * 141 / (141 + 141 + 3 + number % 3 + number % 2) for number in range(CASES)]
    assert decision.trials[0].dice_before == pytest.approx(np.mean(before))
    assert {trial.structure for trial in decision.trials} == {"everything", "vessels"}


def test_what_an_inner_region_loses_is_no_hole_in_the_one_around_it(decide):
    def predict(array: np.ndarray, number: int) -> None:
        array[2, 2, 2 : 3 + number % 3] = VALUES["vessel"]  # inside the organ

    regions = (Region("everything", (1, 2), 1), Region("vessels", (2,), 2))
    decision = decide(predict, regions=regions)
    assert decision.rules == {"vessels": PostprocessingConfig(remove_below_mm3=8 * 2)}
    (kept,) = (trial for trial in decision.trials if trial.kept)
    assert (kept.dice_after, kept.harmed) == (1.0, None)
