"""Which configuration is chosen, on made-up results; and what cannot be compared."""

import copy
from pathlib import Path

import pytest

from medseg_brn.config import Experiment
from medseg_brn.cross_validation.choice import Contender, choose_contender, choose_model, tell_reason
from medseg_brn.cross_validation.configurations import (
    Configuration,
    refuse_differences,
    refuse_overlap,
    refuse_unfinished,
)
from medseg_brn.errors import ConfigError, DataError
from medseg_brn.evaluation.results import CaseEvaluation, ClassMetrics, Evaluation

NAN = float("nan")


def configuration(name: str, weights_bytes: int = 100) -> Configuration:
    return Configuration(name, Path(name), Experiment(), {}, (), weights_bytes)


def contender(dice: list[float], *parts: Configuration) -> Contender:
    """Evaluated with these Dice, case by case."""
    cases = [
        CaseEvaluation(f"c{number}", {"organ": ClassMetrics(value, NAN, NAN, NAN, 1.0, 1.0)})
        for number, value in enumerate(dice)
    ]
    return Contender(parts, Evaluation(tuple(cases), 1.0))


SMALL, LARGE = configuration("small", 100), configuration("large", 900)
BASE = [0.80, 0.85, 0.90, 0.70, 0.75, 0.82]


def shift(*gains: float) -> list[float]:
    return [dice + gain for dice, gain in zip(BASE, gains, strict=True)]


def test_what_is_surely_better_is_chosen_however_large():
    small = contender(BASE, SMALL)
    large = contender(shift(0.05, 0.04, 0.06, 0.05, 0.05, 0.04), LARGE)
    chosen, differences = choose_contender([small, large])
    assert chosen is large
    assert differences[0].mean == pytest.approx(-0.29 / 6)
    assert differences[0].high < 0
    assert differences[1].mean == 0
    assert "no simpler one is shown to be as good" in tell_reason([small, large], chosen)


def test_the_smaller_one_is_chosen_where_it_is_shown_to_be_as_good():
    small = contender(BASE, SMALL)
    large = contender(shift(0.005, -0.004, 0.003, -0.002, 0.001, 0.0), LARGE)
    assert large.dice_mean > small.dice_mean
    chosen, differences = choose_contender([large, small])
    assert chosen is small
    assert -0.01 < differences[1].low < 0
    assert "large has the highest mean Dice out of fold, but small is simpler" in tell_reason(
        [large, small], chosen
    )


@pytest.mark.parametrize("cases", [3, 6])
def test_that_no_difference_can_be_told_does_not_make_them_equal(cases):
    """Their difference is within chance, and may be far more than the margin."""
    small = contender([0.95, 0.93, 0.75] * (cases // 3), SMALL)
    large = contender([0.901] * cases, configuration("large", 900))
    chosen, differences = choose_contender([small, large])
    assert chosen is large
    assert cases == 3 or differences[0].high > 0


def test_weights_within_a_tenth_are_equally_simple():
    better = contender(shift(*[0.002] * 6), configuration("better", 101))
    small = contender(BASE, SMALL)
    chosen, _ = choose_contender([small, better])
    assert chosen is better
    assert tell_reason([small, better], chosen) == (
        "better has the highest mean Dice out of fold, and none is simpler."
    )
    larger = contender(shift(*[0.002] * 6), configuration("larger", 120))
    assert choose_contender([small, larger])[0] is small


def test_one_network_is_simpler_than_two_small_ones():
    pair = contender(
        [dice + 0.001 * (-1) ** n for n, dice in enumerate(BASE)], SMALL, configuration("tiny", 1)
    )
    large = contender(BASE, LARGE)
    assert choose_contender([pair, large])[0] is large


def test_of_equals_of_one_size_the_better_is_chosen():
    other = contender([0.79, 0.86, 0.90, 0.70, 0.75, 0.80], configuration("other", 100))
    assert choose_contender([other, contender(BASE, SMALL)])[0].name == "small"


def summary(**changes) -> dict:
    made = {
        "label_values": {"background": 0, "organ": 1},
        "folds": 2,
        "summary": {"classes": {"organ": {}}},
        "cases": [
            {"case": "a", "fold": 0, "reference": "a.nii"},
            {"case": "b", "fold": 1, "reference": "b.nii"},
        ],
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


def test_other_references_are_refused_wherever_they_lie(tmp_path):
    for name, content in (("one", b"1"), ("same", b"1"), ("other", b"2")):
        (tmp_path / name).write_bytes(content)
    made = {
        name: summary(cases=[{"case": "a", "fold": 0, "reference": str(tmp_path / name)}])
        for name in ("one", "same", "other", "missing")
    }
    refuse_differences((Path("one"), made["one"]), (Path("same"), made["same"]))
    for name in ("other", "missing"):
        with pytest.raises(DataError, match=f"case a has other references, .*one and .*{name}"):
            refuse_differences((Path("one"), made["one"]), (Path(name), made[name]))


@pytest.mark.parametrize("output", ["runs/small", "runs/small/chosen", "runs", "."])
def test_a_place_that_would_overwrite_a_run_is_refused(output, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [Path("runs/large"), tmp_path / "runs" / "small"]
    with pytest.raises(ConfigError, match="would overwrite its model; name another folder"):
        refuse_overlap(runs, Path(output))
    refuse_overlap(runs, Path("runs/smaller"))


def test_a_cross_validation_that_is_not_finished_is_refused(tmp_path):
    folds = [{"fold": 0, "status": "finished"}, {"fold": 1, "status": "failed"}]
    with pytest.raises(ConfigError, match=r"not finished \(fold 1\); finish it with --resume"):
        refuse_unfinished(tmp_path, summary(per_fold=folds))
    last = {"status": "failed", "error": "no memory"}
    with pytest.raises(ConfigError, match=r"not finished \(the last training, on all cases\)"):
        refuse_unfinished(tmp_path, summary(final_run=last))
    with pytest.raises(ConfigError, match="it has no model"):
        refuse_unfinished(tmp_path, summary())


@pytest.mark.parametrize("folders", [[], ["a"], ["a", "b", "a"]])
def test_a_choice_is_among_two_or_more(folders, tmp_path):
    with pytest.raises(ConfigError, match="two cross-validations or more"):
        choose_model([Path(folder) for folder in folders], tmp_path / "chosen")


def test_a_folder_that_is_no_cross_validation_is_told(tmp_path):
    with pytest.raises(DataError, match=r"a holds no finished cross-validation: .* --all-folds"):
        choose_model([tmp_path / "a", tmp_path / "b"], tmp_path / "chosen")
