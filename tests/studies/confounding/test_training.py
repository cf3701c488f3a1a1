"""Small networks: their items, the best that is possible, and what training modes do."""

import pytest
import torch

from medseg_brn.studies.confounding import training
from medseg_brn.studies.confounding.norms import BATCH, LAYER, LOOSE
from medseg_brn.studies.confounding.training import (
    DiagnosisResult,
    compute_best_accuracy,
    draw_diagnosis,
    draw_marker,
    make_network,
    train_on_diagnosis,
    train_on_marker,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_items_carry_group_and_trait_where_they_should():
    groups = torch.tensor([-1.0, 1.0]).repeat(20_000)
    features, labels, same = draw_marker(groups, generator())
    assert same is groups
    means = features[groups > 0].mean(0) - features[groups < 0].mean(0)
    expected = torch.tensor([2.0] * 4 + [0.0] * 12)
    torch.testing.assert_close(means, expected, atol=0.06, rtol=0)
    # z > -1 in the one group, z > 1 in the other
    assert float(labels[groups > 0].mean()) == pytest.approx(0.8413, abs=0.01)
    assert float(labels[groups < 0].mean()) == pytest.approx(0.1587, abs=0.01)
    variances = features[groups > 0].var(0)
    torch.testing.assert_close(variances, torch.tensor([1.0] * 4 + [2.0] * 4 + [1.0] * 8), atol=0.1, rtol=0)


def test_a_diagnosis_has_the_group_in_four_features_and_the_site_in_four():
    groups = torch.tensor([-1.0, 1.0, -1.0, 1.0]).repeat(10_000)
    sites = torch.tensor([-1.0, -1.0, 1.0, 1.0]).repeat(10_000)
    features, labels, _ = draw_diagnosis(groups, sites, generator())
    assert torch.equal(labels > 0.5, groups > 0)
    by_site = features[sites > 0].mean(0) - features[sites < 0].mean(0)
    torch.testing.assert_close(by_site, torch.tensor([0.0] * 4 + [2.0] * 4 + [0.0] * 8), atol=0.06, rtol=0)


def test_the_best_accuracy_by_simulation():
    groups = torch.tensor([-1.0, 1.0]).repeat(100_000)
    features, labels, _ = draw_marker(groups, generator())
    known = 0.8 * features[:, 4:8].mean(1)
    with_group = ((known + groups > 0) == (labels > 0.5)).double().mean()
    without = ((known > 0) == (labels > 0.5)).double().mean()
    assert compute_best_accuracy(True) == pytest.approx(float(with_group), abs=0.004)
    assert compute_best_accuracy(False) == pytest.approx(float(without), abs=0.004)
    assert compute_best_accuracy(True) - compute_best_accuracy(False) > 0.05


def test_networks_of_a_seed_have_the_same_weights_whatever_their_norm():
    first, second = (make_network(norm, generator(4)) for norm in (BATCH, LAYER))
    for one, other in zip(first, second, strict=True):
        if isinstance(one, torch.nn.Linear):
            assert torch.equal(one.weight, other.weight)


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(training, "STEPS", 300)
    monkeypatch.setattr(training, "HELD_OUT_BATCHES", 64)


def test_batch_norm_hides_the_group_and_loose_clips_do_not(short):
    batch, loose = (train_on_marker(norm, 0) for norm in (BATCH, LOOSE))
    assert batch.retained == pytest.approx(0, abs=1e-3)
    assert batch.expected == 0
    assert loose.retained > 0.9
    assert abs(loose.train_contrast) > 5 * abs(batch.train_contrast)
    assert train_on_marker(LOOSE, 0) == loose


def test_what_layer_norm_computes_is_the_same_in_both_modes(short):
    found = train_on_marker(LAYER, 0)
    assert found.train_accuracy == found.eval_accuracy
    assert found.disparity == pytest.approx(0, abs=1e-6)
    assert found.retained == pytest.approx(1, abs=1e-5)


def test_a_diagnosis_is_learned_from_balanced_sites(short):
    found = train_on_diagnosis(LAYER, "balanced", 0)
    assert min(found.concordant_accuracy, found.discordant_accuracy) > 0.9
    confounded = train_on_diagnosis(LAYER, "confounded", 0)
    assert confounded.concordant_accuracy > 0.95 > 0.8 > confounded.discordant_accuracy


def test_the_share_of_the_site_by_hand():
    assert DiagnosisResult(LOOSE, "balanced", 1, 1, group_contrast=3.0, site_contrast=-1.0).site_share == 0.25
