"""What training mode gives away, against closed forms and figures found by a separate simulation."""

from math import sqrt

import numpy as np
import pytest
import torch
from scipy.stats import norm as normal_distribution
from torch import nn

from medseg_brn.networks.batch_renorm import BatchRenorm3d
from medseg_brn.networks.normalization import make_normalization
from medseg_brn.probes.leakage import bayes_accuracy, measure_leakage

PAIRS = 200_000
FOUR_ERRORS = 4 * 0.5 / sqrt(PAIRS)  # at most


def batch_norm_pair_accuracy(separation: float) -> float:
    """Φ(δ/√2): BatchNorm turns a pair into ±1, and the larger value is the real one with P(real > fake)."""
    return normal_distribution.cdf(separation / sqrt(2))


def make_renorm(r_max: float, d_max: float):
    return lambda channels: BatchRenorm3d(channels, r_max=r_max, d_max=d_max)


def test_closed_forms() -> None:
    assert bayes_accuracy(0) == batch_norm_pair_accuracy(0) == 0.5
    assert bayes_accuracy(1) == pytest.approx(0.691, abs=5e-4)
    assert batch_norm_pair_accuracy(1) == pytest.approx(0.760, abs=5e-4)
    assert bayes_accuracy(3) == pytest.approx(normal_distribution.cdf(1.5))


@pytest.mark.parametrize("separation", [0.0, 0.5, 1.0, 2.0])
def test_batch_norm_leaks_what_the_closed_form_says(separation) -> None:
    expected = batch_norm_pair_accuracy(separation) - bayes_accuracy(separation)
    found = measure_leakage(nn.BatchNorm3d, separation, PAIRS)
    assert found == pytest.approx(expected, abs=FOUR_ERRORS)


@pytest.mark.parametrize(
    ("r_max", "d_max", "accuracy"),
    [(1.0, 0.0, 0.760), (1.5, 0.5, 0.760), (3.0, 1.0, 0.700), (3.0, 5.0, 0.695)],
)
def test_renorm_leaks_less_the_wider_its_limits(r_max, d_max, accuracy) -> None:
    found = bayes_accuracy(1.0) + measure_leakage(make_renorm(r_max, d_max), 1.0, PAIRS)
    assert found == pytest.approx(accuracy, abs=FOUR_ERRORS)


def test_renorm_without_limits_leaks_nothing() -> None:
    assert measure_leakage(make_renorm(1e6, 1e6), 1.0, PAIRS) == pytest.approx(0, abs=FOUR_ERRORS)


@pytest.mark.parametrize(("r_max", "d_max"), [(1.5, 0.5), (3.0, 1.0), (3.0, 5.0)])
def test_the_layer_is_renorm_of_one_pair_after_the_other(r_max, d_max) -> None:
    """The formula in NumPy with the same draws; every pair is a batch of its own."""
    draws = torch.randn(2, 500, generator=torch.Generator().manual_seed(7), dtype=torch.float64).numpy()
    sigma = sqrt(1 + 1.2**2 / 4 + 1e-5)
    right = 0.0
    for real, fake in zip(draws[0] + 0.6, draws[1] - 0.6, strict=True):
        mean, spread = (real + fake) / 2, sqrt(((real - fake) / 2) ** 2 + 1e-5)
        r, d = np.clip(spread / sigma, 1 / r_max, r_max), np.clip(mean / sigma, -d_max, d_max)
        right += ((real - mean) / spread * r + d > 0) / 2 + ((fake - mean) / spread * r + d <= 0) / 2
    found = measure_leakage(make_renorm(r_max, d_max), 1.2, 500, seed=7) + bayes_accuracy(1.2)
    assert found == pytest.approx(right / 500, abs=1e-12)


@pytest.mark.parametrize("name", ["group", "layer", "instance", "none"])
def test_layers_that_see_one_item_leak_exactly_nothing(name) -> None:
    assert measure_leakage(lambda channels: make_normalization(name, channels)) == 0.0


def compute_beside(layer: nn.Module, item: torch.Tensor, mate: torch.Tensor) -> torch.Tensor:
    return layer(torch.stack([item, mate]))[0]


@pytest.mark.parametrize("name", ["group", "layer", "instance", "none", "layer norm", "tracking instance"])
def test_layers_taken_to_see_one_item_compute_the_same_beside_any_other(name) -> None:
    """What an unmeasured 0 rests on: training mode, the item's own output bit for bit."""
    others = {
        "layer norm": nn.LayerNorm([4, 2, 2, 2]),
        "tracking instance": nn.InstanceNorm3d(4, track_running_stats=True),
    }
    layer = (others[name] if name in others else make_normalization(name, 4)).train()
    assert measure_leakage(lambda channels: layer) == 0.0  # one of the kinds that are not measured
    item, *mates = torch.randn(3, 4, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    outputs = [compute_beside(layer, item, mate) for mate in (mates[0], 100 * mates[1] + 7)]
    assert torch.equal(*outputs)
    batch_norm = nn.BatchNorm3d(4)
    assert not torch.equal(*(compute_beside(batch_norm, item, mate) for mate in mates))


def test_the_seed_decides_and_the_layer_is_measured_late_in_training() -> None:
    made: list[BatchRenorm3d] = []

    def make(channels: int) -> BatchRenorm3d:
        made.append(BatchRenorm3d(channels, r_max=3, d_max=5, schedule=(5_000, 25_000, 40_000)))
        return made[-1]

    first, again, other = (measure_leakage(make, pairs=2_000, seed=seed) for seed in (3, 3, 4))
    assert first == again != other
    assert made[0].limits() == (3, 5)
    assert (made[0].running_mean == 0).all()
    assert (made[0].running_var == 1.25).all()


def test_layers_without_statistics_or_parameters_are_measured_too() -> None:
    bare = measure_leakage(lambda c: nn.BatchNorm3d(c, affine=False, track_running_stats=False), 1.0, 5_000)
    assert bare == measure_leakage(nn.BatchNorm3d, 1.0, 5_000)


def test_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="0 pairs"):
        measure_leakage(nn.BatchNorm3d, pairs=0)
