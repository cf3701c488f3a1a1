"""Distances between statistics, by hand and against torch's own divergence."""

from math import e, nan, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Normal, kl_divergence

from medseg_brn.networks.mabn import MABN3d
from medseg_brn.probes.statistics import (
    as_tracked,
    estimation_shift,
    is_centred,
    statistics_drift,
    worker_divergence,
)

numbers = st.lists(st.tuples(st.floats(-50, 50), st.floats(0, 100)), min_size=3, max_size=3)


def channels(values) -> tuple[torch.Tensor, torch.Tensor]:
    mean, var = zip(*values, strict=True)
    return torch.tensor(mean, dtype=torch.float64), torch.tensor(var, dtype=torch.float64)


def test_what_layers_track_of_features() -> None:
    mean, var = torch.tensor([3.0, 0.0]), torch.tensor([4.0, 1.0])
    assert is_centred(nn.BatchNorm3d(2)) and not is_centred(MABN3d(2))
    assert as_tracked(nn.BatchNorm3d(2), mean, var) == (mean, var)
    first, second = as_tracked(MABN3d(2), mean, var)
    assert first.tolist() == [0, 0] and second.tolist() == [13, 1]


def test_estimation_shift_by_hand() -> None:
    """Means off by (3, 4): distance 5 to sd (3, 4) of norm 5; variances off by (0, 8) to (9, 16)."""
    running = torch.tensor([4.0, 4.0]), torch.tensor([9.0, 24.0])
    population = torch.tensor([1.0, 0.0]), torch.tensor([9.0, 16.0])
    shift = estimation_shift(*running, *population)
    assert shift == pytest.approx((1, 8 / sqrt(81 + 256)))


def test_estimation_shift_of_the_population_is_0() -> None:
    mean, var = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    assert estimation_shift(mean, var, mean, var) == (0, 0)


def test_a_population_without_variance_has_no_shift() -> None:
    assert estimation_shift(torch.ones(2), torch.ones(2), torch.zeros(2), torch.zeros(2)) == pytest.approx(
        (nan, nan), nan_ok=True
    )


def test_drift_by_hand() -> None:
    """Channel 1: mean moved by two sd (4). Channel 2: sd grew e-fold (1). Channel 3: sd shrank e-fold (1)."""
    before = torch.tensor([0.0, 1.0, 1.0]), torch.tensor([9.0, 1.0, e**2])
    now = torch.tensor([6.0, 1.0, 1.0]), torch.tensor([9.0, e**2, 1.0])
    assert statistics_drift(*before, *now, eps=0) == pytest.approx(6 / 3)
    assert statistics_drift(*now, *now) == 0


def test_eps_keeps_channels_without_variance_finite() -> None:
    dead, alive = (torch.zeros(1), torch.zeros(1)), (torch.zeros(1), torch.ones(1))
    expected = (np.log((1 + 1e-5) / 1e-5) / 2) ** 2
    assert statistics_drift(*dead, *alive) == pytest.approx(expected, rel=1e-6)
    assert 0 < worker_divergence(*dead, *alive) < 1e6


@settings(deadline=None)
@given(numbers, numbers)
def test_worker_divergence_is_the_symmetric_kl_of_normal_distributions(a, b) -> None:
    (mean_a, var_a), (mean_b, var_b) = channels(a), channels(b)
    first, second = Normal(mean_a, (var_a + 1e-3).sqrt()), Normal(mean_b, (var_b + 1e-3).sqrt())
    expected = (kl_divergence(first, second) + kl_divergence(second, first)).mean().item()
    found = worker_divergence(mean_a, var_a, mean_b, var_b, eps=1e-3)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert found == pytest.approx(worker_divergence(mean_b, var_b, mean_a, var_a, eps=1e-3), rel=1e-12)
    assert found >= 0
    assert worker_divergence(mean_a, var_a, mean_a, var_a) == 0


def test_worker_divergence_by_hand() -> None:
    """Equal variances 4, means 2 apart: KL = 2²/(2·4) = ½ each way; the second channel agrees."""
    var = torch.full((2,), 4.0)
    divergence = worker_divergence(torch.zeros(2), var, torch.tensor([2.0, 0.0]), var, eps=0)
    assert divergence == pytest.approx(1 / 2)
