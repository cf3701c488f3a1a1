"""Schedules, against values worked out by hand."""

import pytest

from medseg_brn.config import NetworkConfig, TrainingConfig
from medseg_brn.training.schedules import compute_learning_rate, compute_renorm_schedule


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
