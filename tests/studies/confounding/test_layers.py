"""Layers between two groups, against answers known by hand and against a naive renorm."""

import math

import pytest
import torch

from medseg_brn.studies.confounding import layers
from medseg_brn.studies.confounding.layers import (
    alternate,
    follow_layer,
    learn_statistics,
    load_statistics,
    measure_item_norm,
    mix,
)
from medseg_brn.studies.confounding.norms import (
    BATCH,
    LOOSE,
    TIGHT,
    compute_mixture_std,
    compute_retained,
    compute_retained_effect,
    make_renorm,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("difference", "d_max", "expected"),
    [(2.0, 0.0, 0.0), (2.0, 0.5, 0.707), (2.0, 5.0, 1.0), (6.0, 0.5, 0.527)],
)
def test_the_formula_with_statistics_of_the_mixture(difference, d_max, expected):
    std = compute_mixture_std(difference)
    assert compute_retained(difference, d_max, std) == pytest.approx(expected, abs=5e-4)


def test_the_formula_with_pure_statistics():
    assert compute_retained(2.0, 0.5, 1.0) == 0.5
    assert compute_retained(6.0, 0.5, 1.0) == pytest.approx(1 / 6)


def test_a_clip_of_one_suffices_with_statistics_of_the_mixture():
    assert min(compute_retained(one, 1.0, compute_mixture_std(one)) for one in (0.1, 1, 10, 1000)) == 1


def test_a_clipped_r_costs_effect_size():
    """σ_run = sqrt(10): r = 1/σ_run is clipped to 1, and the noise is sqrt(10) times as large."""
    assert compute_retained_effect(6.0, 1.0, 5.0, math.sqrt(10)) == pytest.approx(1 / math.sqrt(10))
    assert compute_retained_effect(6.0, 4.0, 5.0, math.sqrt(10)) == 1


def test_minibatches_hold_one_group_or_both():
    low, high = alternate(20.0, 2, generator())
    assert low.max() < -4 and high.min() > 4
    (mixed,) = mix(20.0, 1, generator())
    signs = mixed.sign().mean((1, 2))
    assert signs.tolist() == [-1, 1, -1, 1]


@pytest.mark.parametrize(("statistics", "variance"), [("mixture", 2.0), ("pure", 1.0)])
def test_running_variance_knows_the_difference_where_minibatches_hold_both_groups(
    monkeypatch, statistics, variance
):
    monkeypatch.setattr(layers, "LEARNING_BATCHES", 200)
    buffers = learn_statistics(statistics, 2.0, generator())
    assert buffers["running_var"].mean() == pytest.approx(variance, rel=0.02)


@pytest.mark.parametrize("norm", [BATCH, TIGHT, LOOSE, make_renorm(1, 5), make_renorm(3, 0.25)])
def test_a_layer_retains_what_naive_renorm_does(norm):
    """Two minibatches by the paper's equations in plain numbers, with μ = 0 and σ = 1.5."""
    outputs, naive = [], []
    layer = norm.make(layers.CHANNELS, affine=False)
    statistics = layer.state_dict()
    statistics["running_var"] = torch.full((layers.CHANNELS,), 2.25)
    statistics["num_batches_tracked"] = torch.tensor(1)
    load_statistics(layer, statistics, frozen=True)
    for values in alternate(3.0, 2, generator()):
        outputs.append(layer(values))
        mean = values.mean((0, 2), keepdim=True)
        std = values.std((0, 2), keepdim=True, correction=0)
        r = (std / 1.5).clamp(1 / norm.r_max, norm.r_max)
        d = (mean / 1.5).clamp(-norm.d_max, norm.d_max)
        naive.append((values - mean) / std * r + d)
    torch.testing.assert_close(torch.stack(outputs), torch.stack(naive), atol=1e-4, rtol=1e-4)
    assert torch.equal(layer.running_var, statistics["running_var"])
    retained = float(outputs[1].mean() - outputs[0].mean()) * 1.5 / 3
    assert retained == pytest.approx(compute_retained(3.0, norm.d_max, 1.5), abs=0.02)


def test_what_is_retained_falls_while_the_statistics_forget(monkeypatch):
    """From sqrt(2)/2 with statistics of the mixture towards 1/2: σ² = 1 + .99^t."""
    monkeypatch.setattr(layers, "LEARNING_BATCHES", 200)
    course = follow_layer(TIGHT, 2.0, 300, seed=0)
    assert len(course) == 150
    assert course[0] == pytest.approx(0.707, abs=0.01)
    assert course[50] == pytest.approx(math.sqrt(1 + 0.99**100) / 2, abs=0.01)
    assert course[149] == pytest.approx(math.sqrt(1 + 0.99**298) / 2, abs=0.01)


@pytest.mark.parametrize(
    ("kind", "groups", "share", "expected"),
    [
        ("group", 1, 0.25, 0.75),
        ("group", 1, 1.0, 0.0),
        ("group", 4, 0.125, 0.5),
        ("group", 4, 0.25, 0.0),
        ("instance", 16, 0.25, 0.0),
    ],
)
def test_norms_of_items_retain_what_few_channels_carry(kind, groups, share, expected):
    assert measure_item_norm(kind, groups, share, 2.0, seed=0) == pytest.approx(expected, abs=0.01)


def test_the_sweep_is_the_formula_at_all_points(monkeypatch):
    monkeypatch.setattr(layers, "LEARNING_BATCHES", 300)
    monkeypatch.setattr(layers, "DIFFERENCES", (1.0, 4.0))
    monkeypatch.setattr(layers, "MEASURED_BATCHES", 10)
    found = layers.sweep_layers(3)
    assert len(found) == 2 * 2 * len(layers.SWEPT)
    for one in found:
        assert one.measured == pytest.approx(one.expected, abs=0.03)
        assert one.measured_effect == pytest.approx(one.expected_effect, abs=0.03)
    assert found == layers.sweep_layers(3)
    assert found != layers.sweep_layers(4)
