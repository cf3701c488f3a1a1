"""Schedules, against values worked out by hand."""

import pytest

from medseg_brn.config import NetworkConfig, TrainingConfig
from medseg_brn.training.schedules import compute_learning_rate, compute_renorm_schedule, merge_is_due


def make_config(**options) -> TrainingConfig:
    return TrainingConfig(steps=110, learning_rate=1.0, warmup_fraction=10 / 110, **options)


def test_the_learning_rate_rises_linearly_over_the_warm_up():
    config = make_config()
    assert [compute_learning_rate(step, config) for step in (0, 4, 9)] == pytest.approx(
        [1 / 11, 5 / 11, 10 / 11]
    )


@pytest.mark.parametrize(
    ("decay", "at_half", "at_nine_tenths"),
    [("polynomial", 0.5**0.9, 0.1**0.9), ("cosine", 0.5, 0.0244717), ("constant", 1.0, 1.0)],
)
def test_the_learning_rate_falls_as_its_name_says(decay, at_half, at_nine_tenths):
    config = make_config(decay=decay)
    assert compute_learning_rate(10, config) == pytest.approx(1.0)
    assert compute_learning_rate(60, config) == pytest.approx(at_half)
    assert compute_learning_rate(100, config) == pytest.approx(at_nine_tenths, rel=1e-5)


def test_a_run_of_one_step_has_a_learning_rate():
    assert compute_learning_rate(0, TrainingConfig(steps=1, learning_rate=0.5)) == 0.5


def test_the_renorm_schedule_is_scaled_to_the_run():
    network = NetworkConfig(renorm_schedule=(0.1, 0.4, 0.5))
    assert compute_renorm_schedule(network, 2000) == (200, 800, 1000)


@pytest.mark.parametrize(
    ("options", "merges"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        ({"merge_statistics_every": 4}, [4, 8, 10]),
        ({"merge_statistics_every": None}, [10]),
        ({"merge_statistics_every": None, "validate_every": 6}, [6, 10]),
        ({"merge_statistics_every": 4, "checkpoint_every": 3}, [3, 4, 6, 8, 9, 10]),
        # frozen from the sixth step on: the fifth's are the ones to agree on
        ({"merge_statistics_every": 4, "freeze_statistics_at": 0.5}, [4, 5]),
        ({"merge_statistics_every": None, "freeze_statistics_at": 0.45}, [5]),
        ({"freeze_statistics_at": 0.0}, []),
    ],
)
def test_statistics_are_merged_every_few_steps_and_where_all_must_agree(options, merges):
    config = TrainingConfig(steps=10, **options)
    assert [done for done in range(1, 11) if merge_is_due(done, config)] == merges
