"""Means over cases and classes, with figures a person can check."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medseg_brn.evaluation.results import CaseEvaluation, ClassMetrics, Evaluation, bootstrap_dice_interval

NAN = math.nan


def metrics(
    dice: float, hd95_mm: float = 1.0, prediction_ml: float = 2.0, reference_ml: float = 3.0
) -> ClassMetrics:
    return ClassMetrics(dice, 0.5, hd95_mm, 0.7, prediction_ml, reference_ml)


def cohort(*cases: dict[str, ClassMetrics]) -> Evaluation:
    return Evaluation(tuple(CaseEvaluation(f"p{n}", case) for n, case in enumerate(cases)), tolerance_mm=1.0)


def test_mean_over_cases_then_over_classes():
    evaluation = cohort(
        {"liver": metrics(0.9), "tumour": metrics(0.2)},
        {"liver": metrics(0.7), "tumour": metrics(NAN, NAN, 0, 0)},
    )
    summary = evaluation.summary()
    assert summary["classes"]["liver"]["dice_mean"] == pytest.approx(0.8)
    assert summary["classes"]["tumour"]["dice_mean"] == pytest.approx(0.2)
    assert summary["dice_mean"] == pytest.approx(0.5)
    assert evaluation.cases[1].dice_mean == pytest.approx(0.7)


def test_standard_deviation_is_the_samples():
    summary = cohort(*({"a": metrics(dice)} for dice in (0.5, 0.7, 0.9))).summary()
    assert summary["classes"]["a"]["dice_sd"] == pytest.approx(0.2)


def test_undefined_distances_are_counted_and_left_out_of_the_mean():
    summary = cohort(
        {"a": metrics(0.8, hd95_mm=3)},
        {"a": metrics(0.0, NAN, prediction_ml=0, reference_ml=5)},
        {"a": metrics(0.0, NAN, prediction_ml=1, reference_ml=0)},
        {"a": metrics(NAN, NAN, prediction_ml=0, reference_ml=0)},
    ).summary()["classes"]["a"]
    assert summary["hd95_mm_mean"] == 3
    assert summary["dice_mean"] == pytest.approx(0.8 / 3)
    assert (summary["missed"], summary["false_alarms"], summary["absent"]) == (1, 1, 1)


def test_volumes_differ_with_a_sign():
    summary = cohort(
        {"a": metrics(0.8, prediction_ml=4, reference_ml=3)},
        {"a": metrics(0.8, prediction_ml=1, reference_ml=4)},
    ).summary()["classes"]["a"]
    assert summary["volume_difference_ml_mean"] == pytest.approx(-1)
    assert summary["absolute_volume_difference_ml_mean"] == pytest.approx(2)


def test_json_has_null_where_a_metric_is_undefined():
    content = json.loads(json.dumps(cohort({"a": metrics(NAN, NAN, 0, 0)}).as_dict(), allow_nan=False))
    assert content["cases"][0]["case"] == "p0"
    assert content["cases"][0]["classes"]["a"]["dice"] is None
    assert content["cases"][0]["classes"]["a"]["volume_difference_ml"] == 0
    assert content["summary"]["dice_mean"] is None
    assert content["summary"]["dice_interval_95"] is None
    assert content["summary"]["classes"]["a"]["dice_sd"] is None


def test_no_cases_at_all():
    assert cohort().as_dict()["summary"] == {
        "dice_mean": None,
        "dice_interval_95": None,
        "cases": 0,
        "tolerance_mm": 1.0,
        "classes": {},
    }


def test_interval_is_that_of_a_naive_bootstrap():
    dice = np.random.default_rng(1).random((40, 2))
    random = np.random.default_rng(2)
    means = [dice[random.integers(0, 40, 40)].mean() for _ in range(4000)]
    assert bootstrap_dice_interval(dice, resamples=4000) == pytest.approx(
        np.percentile(means, (2.5, 97.5)), abs=0.008
    )


def test_interval_is_the_same_each_time_and_needs_two_cases():
    dice = np.array([[0.5, NAN], [0.9, 0.1]])
    assert bootstrap_dice_interval(dice) == bootstrap_dice_interval(dice)
    assert bootstrap_dice_interval(dice[:1]) is None
    assert bootstrap_dice_interval(np.array([[0.5], [NAN]])) is None


@settings(max_examples=50, deadline=None)
@given(arrays(np.float64, (4, 2), elements=st.one_of(st.just(NAN), st.floats(0, 1))))
def test_interval_lies_within_what_was_observed(dice):
    interval = bootstrap_dice_interval(dice, resamples=200)
    if interval is not None:
        assert np.nanmin(dice) - 1e-12 <= interval[0] <= interval[1] <= np.nanmax(dice) + 1e-12
