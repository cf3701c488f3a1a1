"""Steps, rates and folds, by hand."""

import pytest

from medseg_brn.errors import ConfigError
from medseg_brn.planning.requests import parse_duration
from medseg_brn.planning.rules_training import (
    Pace,
    choose_checkpoint_every,
    choose_ema_decay,
    choose_folds,
    choose_learning_rate,
    choose_steps,
    choose_validation_every,
    choose_workers,
    count_held_out,
    wanted_step_seconds,
)


def test_steps_fill_the_time():
    """1800 s less 60 and 40 are 1700 s, of 1 s each."""
    steps, warning = choose_steps(Pace(1.0, 60, 40, 1800), patches_per_epoch=166, batch_size=2)
    assert (steps.value, warning) == (1700, None)


def test_validations_on_the_way_take_time_from_the_steps():
    """Four on the way and one at the end, 10 s each: 1800 s less 50 are 1750 s, of 1 s each."""
    steps, _ = choose_steps(Pace(1.0, 10, 0, 1800), patches_per_epoch=166, batch_size=2)
    assert steps.reason.startswith("29 min for steps"), "1750 s"
    longer, _ = choose_steps(Pace(0.1, 80, 0, 10_000), patches_per_epoch=10**6, batch_size=2)
    assert longer.value == 96_000, "9600 s, not 9920"


def test_small_datasets_are_not_gone_through_forever():
    """500 epochs of 10 patches in batches of 2 are 2500 steps."""
    steps, _ = choose_steps(Pace(0.1, 0, 0, 36000), patches_per_epoch=10, batch_size=2)
    assert steps.value == 2500
    assert "500 passes" in steps.reason


def test_too_little_time_is_exceeded_with_a_warning():
    steps, warning = choose_steps(Pace(3.0, 30, 30, 120), patches_per_epoch=100, batch_size=2)
    assert steps.value == 200
    assert warning is not None and "give more --time" in warning and "11 min" in warning


def test_rates_follow_the_batch_by_the_root():
    assert [choose_learning_rate(size).value for size in (1, 2, 4)] == [0.0028, 0.004, 0.0057]


def test_averaging_is_the_shipped_experiments():
    assert choose_ema_decay(1700).value == 0.998
    assert choose_ema_decay(200).value == pytest.approx(1 - 1 / 60, abs=1e-4)


@pytest.mark.parametrize(("patients", "folds", "fold"), [(1, 2, None), (3, 3, 0), (208, 5, 0)])
def test_folds(patients, folds, fold):
    found = choose_folds(patients)
    assert (found[0].value, found[1].value) == (folds, fold)


@pytest.mark.parametrize(
    ("cases", "patients", "held_out"), [(10, 10, 2), (208, 208, 42), (6, 1, 0), (6, 3, 2), (1, 1, 0)]
)
def test_whole_patients_are_held_out(cases, patients, held_out):
    """Of 208 patients in five folds the first has 42; six scans of one patient cannot be split."""
    assert count_held_out(cases, patients) == held_out


def test_workers_leave_the_training_process_a_core():
    assert [choose_workers("cpu", cores).value for cores in (1, 2, 4, 16)] == [0, 1, 1, 2]
    assert [choose_workers("cuda", cores).value for cores in (1, 2, 4, 16)] == [0, 1, 3, 8]


def test_validations_cost_little_or_come_at_the_end():
    assert choose_validation_every(1000, Pace(1, 10, 0, 1800)).value == 250
    assert choose_validation_every(1000, Pace(1, 60, 0, 1800)).value is None


def test_a_checkpoint_every_five_minutes():
    assert choose_checkpoint_every(1000, 1.0).value == 300
    assert choose_checkpoint_every(100, 0.1).value == 100


def test_half_of_more_time_goes_to_larger_steps():
    assert wanted_step_seconds(1800) == pytest.approx(1.8)
    assert wanted_step_seconds(4 * 1800) == pytest.approx(3.6)


@pytest.mark.parametrize(
    ("text", "seconds"), [("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("90 min", 5400), ("45s", 45)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "30", "-5m", "0s", "3 weeks"])
def test_what_is_no_duration(text):
    with pytest.raises(ConfigError, match="30m, 2h"):
        parse_duration(text)
