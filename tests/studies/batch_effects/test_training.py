"""The classifiers: many at a time are each as if alone, and mini-batches are what they are called."""

import numpy as np
import pytest
import torch
from torch import nn

from medseg_brn.studies.batch_effects.classifiers import NORMS, Classifiers
from medseg_brn.studies.batch_effects.simulation import Setting, simulate_dataset
from medseg_brn.studies.batch_effects.training import Recipe, draw_mini_batches, train

SETTING = Setting(genes=10, differing=5, difference_sd=3.0, samples=16)
RECIPE = Recipe(steps=40)
BATCHES = np.repeat([0, 1, 2], [20, 10, 3])


def make_training(networks):
    datasets = [simulate_dataset(0.0, True, (number,), SETTING) for number in range(networks)]
    values = np.stack([data.training.values for data in datasets])
    groups = np.stack([data.training.groups for data in datasets])
    randoms = [np.random.default_rng((9, number)) for number in range(networks)]
    batches = datasets[0].training.batches
    drawn = np.stack([draw_mini_batches(batches, True, RECIPE.steps, random) for random in randoms])
    return datasets, values, groups, drawn, randoms


@pytest.mark.parametrize("norm", NORMS)
def test_networks_trained_together_are_each_as_if_alone(norm):
    # A few steps: over many, rounding grows to other paths, as it does for one network in another order.
    recipe = Recipe(steps=5)
    datasets, values, groups, drawn, randoms = make_training(3)
    together = train(values, groups, drawn, norm, randoms, recipe)
    held_out = np.stack([data.held_out.values for data in datasets])
    scores = together.score(held_out)
    _, _, _, drawn, randoms = make_training(3)
    alone = train(values[1:2], groups[1:2], drawn[1:2], norm, randoms[1:2], recipe).score(held_out[1:2])
    np.testing.assert_allclose(scores[1], alone[0], rtol=1e-3, atol=1e-4)


def test_a_network_learns_groups_that_differ_much():
    _, values, groups, drawn, randoms = make_training(2)
    scores = train(values, groups, drawn, "batch_renorm", randoms, RECIPE).score(values)
    assert (scores.argmax(axis=2) == groups).mean() > 0.85
    np.testing.assert_allclose(np.exp(scores).sum(axis=2), 1, rtol=1e-5)


def test_one_network_is_the_plain_one():
    classifiers = Classifiers("batch", 4, 2, 10, [np.random.default_rng(0)])
    plain = nn.Sequential(
        nn.BatchNorm1d(4, affine=False), nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2)
    )
    for linear, own in ((plain[1], classifiers.hidden), (plain[4], classifiers.output)):
        linear.weight.data, linear.bias.data = own.weight.data[0].T, own.bias.data[0, 0]
    input = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(classifiers(input[:, None])[:, 0], plain(input))


def test_training_passes_are_shown_as_they_were_and_change_nothing():
    _, values, groups, drawn, randoms = make_training(2)
    trained = train(values, groups, drawn, "batch", randoms, RECIPE)
    before = {name: value.clone() for name, value in trained.classifiers.state_dict().items()}
    shown = trained.observe_training(values, drawn).reshape(2, 40, 8, 10)
    for name, value in trained.classifiers.state_dict().items():
        assert torch.equal(before[name], value)
    chosen = values[1][drawn[1, 7]]
    expected = (chosen - chosen.mean(axis=0)) / chosen.std(axis=0)
    np.testing.assert_allclose(shown[1, 7], expected, atol=1e-4)


def test_pure_mini_batches_hold_one_batch_each_in_proportion():
    drawn = draw_mini_batches(BATCHES, True, 3000, np.random.default_rng(0))
    of_batch = BATCHES[drawn]
    assert (of_batch == of_batch[:, :1]).all()
    shares = np.bincount(of_batch[:, 0]) / 3000
    np.testing.assert_allclose(shares, np.array([20, 10, 3]) / 33, atol=0.03)
    large = drawn[of_batch[:, 0] < 2]
    assert all(len(set(step)) == 8 for step in large.tolist())
    small = drawn[of_batch[:, 0] == 2]
    assert all(set(step) == {30, 31, 32} for step in small.tolist())  # three samples, repeated


def test_mixed_mini_batches_hold_every_sample_alike():
    drawn = draw_mini_batches(BATCHES, False, 3000, np.random.default_rng(0))
    assert all(len(set(step)) == 8 for step in drawn.tolist())
    np.testing.assert_allclose(np.bincount(drawn.ravel()) / 3000, 8 / 33, atol=0.03)
