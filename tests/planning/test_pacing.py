"""Stages of a run, by hand."""

import pytest

from medseg_brn.planning.candidates import Budget, Problem, choose_candidate
from medseg_brn.planning.machine import Machine
from medseg_brn.planning.pacing import find_largest, predict_pace, predict_validation
from medseg_brn.planning.trial import Trial

MACHINE = Machine("cpu", "bf16", 2, 2, 2e-11, True, 8e9, "a machine")
PROBLEM = Problem((32, 32, 32), (1.0, 1.0, 1.0), 1, 2, "cpu", "bf16")
CANDIDATE = choose_candidate(PROBLEM, Budget(10.0, 8e9, 2e-11))


def test_measured_times_are_taken(make_fingerprint):
    """Ten equal cases, two held out: 2 × 3 s. Each takes 0.5 s to read: measured once, prepared by two."""
    found = make_fingerprint([(1, 1, 1)] * 10, (32, 32, 32))
    trial = Trial(0.4, 0.0, 600, 700, setup_seconds=8, validation_seconds=3, finish_seconds=2, steps=9)
    pace = predict_pace(CANDIDATE, PROBLEM, found, MACHINE, 1800, 0.5, 2, trial)
    assert pace.step_seconds == 0.4
    assert pace.validation_seconds == pytest.approx(6)
    assert pace.setup_seconds == pytest.approx(8 + 2 + 10 * 0.5 * 2)


def test_without_a_trial_the_model_tells(make_fingerprint):
    """A case of one patch: a third of half a step, as a step has two patches."""
    found = make_fingerprint([(1, 1, 1)] * 5, (32, 32, 32))
    expected = CANDIDATE.cost.step_seconds / 6 + 3
    assert predict_validation(CANDIDATE, PROBLEM, found) == pytest.approx(expected)
    assert predict_pace(CANDIDATE, PROBLEM, found, MACHINE, 1800, 0.5, 1).validation_seconds == pytest.approx(
        expected
    )


def test_where_nothing_is_held_out_nothing_is_validated(make_fingerprint):
    """Six scans, maybe of one patient."""
    found = make_fingerprint([(1, 1, 1)] * 6)
    assert predict_pace(CANDIDATE, PROBLEM, found, MACHINE, 1800, 0.5, 0).validation_seconds == 0


def test_the_largest_case_has_foreground(make_fingerprint):
    found = make_fingerprint([(1, 1, 1)] * 2, classes={"organ": [0, 5]})
    assert find_largest(found).name == "case_1"
