"""Which configuration is chosen, on made-up results; and what cannot be compared."""

import copy
from pathlib import Path

import pytest

from medseg_brn.config import Experiment
from medseg_brn.cross_validation.choice import (
    Candidate,
    Configuration,
    choose_candidate,
    choose_model,
    refuse_differences,
    refuse_unfinished,
)
from medseg_brn.errors import ConfigError, DataError
from medseg_brn.evaluation.results import CaseEvaluation, ClassMetrics

NAN = float("nan")


def configuration(name: str, weights_bytes: int = 100) -> Configuration:
    return Configuration(name, Path(name), Experiment(), {}, (), weights_bytes)


def candidate(dice: list[float], *parts: Configuration) -> Candidate:
    """Evaluated with these Dice, case by case."""
    cases = [
        CaseEvaluation(f"c{number}", {"organ": ClassMetrics(value, NAN, NAN, NAN, 1.0, 1.0)})
        for number, value in enumerate(dice)
    ]
    return Candidate(parts, tuple(cases))


SMALL, LARGE = configuration("small", 100), configuration("large", 900)
BASE = [0.80, 0.85, 0.90, 0.70, 0.75, 0.82]


def test_what_is_surely_better_is_chosen_however_large():
    better = [dice + gain for dice, gain in zip(BASE, [0.05, 0.04, 0.06, 0.05, 0.05, 0.04], strict=True)]
    small, large = candidate(BASE, SMALL), candidate(better, LARGE)
    chosen, differences = choose_candidate([small, large])
    assert chosen is large
    assert differences[0].mean == pytest.approx(-0.29 / 6)
    assert differences[0].high < 0
    assert differences[1].mean == 0


def test_the_smaller_one_is_chosen_where_they_cannot_be_told_apart():
    as_good = [dice + gain for dice, gain in zip(BASE, [0.05, -0.04, 0.03, -0.02, 0.01, 0.0], strict=True)]
    small, large = candidate(BASE, SMALL), candidate(as_good, LARGE)
    assert large.dice_mean > small.dice_mean
    assert choose_candidate([large, small])[0] is small


def test_one_network_is_simpler_than_two_small_ones():
    pair = candidate(
        [dice + 0.001 * (-1) ** n for n, dice in enumerate(BASE)], SMALL, configuration("tiny", 1)
    )
    large = candidate(BASE, LARGE)
    assert choose_candidate([pair, large])[0] is large


def test_of_equals_of_one_size_the_better_is_chosen():
    other = candidate([0.79, 0.86, 0.90, 0.70, 0.75, 0.80], configuration("other", 100))
    assert choose_candidate([other, candidate(BASE, SMALL)])[0].name == "small"


def summary(**changes) -> dict:
    made = {
        "label_values": {"background": 0, "organ": 1},
        "folds": 2,
        "summary": {"classes": {"organ": {}}},
        "cases": [{"case": "a", "fold": 0}, {"case": "b", "fold": 1}],
        "per_fold": [{"fold": 0, "status": "finished"}, {"fold": 1, "status": "finished"}],
    }
    return copy.deepcopy(made) | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": 5}, "their number of folds differ, 2 and 5"),
        ({"label_values": {"background": 0, "organ": 2}}, "their label values differ"),
        ({"summary": {"classes": {"vessel": {}}}}, r"structures differ, \['organ'\] and \['vessel'\]"),
        ({"cases": [{"case": "a", "fold": 1}, {"case": "b", "fold": 0}]}, "2 cases .* a by fold 0 and 1"),
        ({"cases": [{"case": "a", "fold": 0}]}, "1 cases .* b by fold 1 and none; .*split_seed"),
    ],
)
def test_other_cases_folds_or_structures_are_refused_by_name(changes, message):
    with pytest.raises(DataError, match=f"(?s)one and other cannot be compared: .*{message}"):
        refuse_differences((Path("one"), summary()), (Path("other"), summary(**changes)))
    refuse_differences((Path("one"), summary()), (Path("other"), summary()))


def test_a_cross_validation_that_is_not_finished_is_refused(tmp_path):
    folds = [{"fold": 0, "status": "finished"}, {"fold": 1, "status": "failed"}]
    with pytest.raises(ConfigError, match=r"not finished \(fold 1\); finish it with --resume"):
        refuse_unfinished(tmp_path, summary(per_fold=folds))
    with pytest.raises(ConfigError, match="it has no model"):
        refuse_unfinished(tmp_path, summary())


@pytest.mark.parametrize("folders", [[], ["a"], ["a", "b", "a"]])
def test_a_choice_is_among_two_or_more(folders, tmp_path):
    with pytest.raises(ConfigError, match="two cross-validations or more"):
        choose_model([Path(folder) for folder in folders], tmp_path / "chosen")


def test_a_folder_that_is_no_cross_validation_is_told(tmp_path):
    with pytest.raises(DataError, match=r"a holds no finished cross-validation: .* --all-folds"):
        choose_model([tmp_path / "a", tmp_path / "b"], tmp_path / "chosen")
