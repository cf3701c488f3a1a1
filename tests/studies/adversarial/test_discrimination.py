"""Accuracy, leak and influence of discriminators whose rule is known."""

import numpy as np
import pytest
import torch
from torch import nn

from medseg_brn.config import AdversarialConfig
from medseg_brn.studies.adversarial.arms import ARMS
from medseg_brn.studies.adversarial.discrimination import (
    Pairs,
    describe_losses,
    make_pairs,
    measure_influence,
    measure_single_accuracy,
    measure_training_accuracy,
    train_discriminator,
)
from medseg_brn.studies.adversarial.segmenter import Recipe
from medseg_brn.studies.adversarial.shapes import Volumes

TINY = Recipe(discriminator_steps=3, discriminator_channels=4)


class FirstChannel(nn.Module):
    """Scores the first channel, after a norm of it."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, items):
        return self.norm(items[:, :1])


def make_levels(real: list[float], fake: list[float]) -> Pairs:
    """Items of one level each."""

    def make(levels):
        return torch.tensor(levels).reshape(-1, 1, 1, 1, 1).expand(-1, 3, 2, 2, 2).contiguous()

    return Pairs(make(real), make(fake))


def test_batch_norm_sees_which_is_larger():
    """Real is always 1 above its fake, but levels differ: alone, half of the items are told wrongly."""
    pairs = make_levels([2.0, -2.0, 1.5, -3.0], [1.0, -3.0, 0.5, -4.0])
    discriminator = FirstChannel(nn.BatchNorm3d(1))
    assert measure_training_accuracy(discriminator, pairs, mixed=True) == 1.0
    assert measure_single_accuracy(discriminator, pairs) == 0.5
    assert discriminator.norm.num_batches_tracked == 0  # it was only looked at
    assert measure_influence(discriminator, pairs, mixed=True) > 0.1
    assert measure_influence(discriminator, pairs, mixed=False) == 0.0


def test_nothing_leaks_without_a_norm():
    pairs = make_levels([2.0, -2.0, 1.5, -3.0], [1.0, -3.0, 0.5, -4.0])
    discriminator = FirstChannel(nn.Identity())
    assert measure_training_accuracy(discriminator, pairs, mixed=True) == 0.5
    assert measure_training_accuracy(discriminator, pairs, mixed=False) == 0.5
    assert measure_single_accuracy(discriminator, pairs) == 0.5
    assert measure_influence(discriminator, pairs, mixed=True) == 0.0


def test_pairs_hold_label_maps():
    classes = torch.tensor([0, 1]).reshape(1, 1, 1, 1, 2)
    logits = torch.tensor([[3.0, 1.0], [2.0, 0.0]]).reshape(1, 2, 1, 1, 2)
    pairs = make_pairs(Volumes(torch.full((1, 1, 1, 1, 2), 7.0), classes), logits)
    assert pairs.real.reshape(3, 2).tolist() == [[7, 7], [1, 0], [0, 1]]
    assert pairs.fake.reshape(3, 2).tolist() == [[7, 7], [1, 1], [0, 0]]


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_every_arm_trains_and_the_same_again(arm):
    config = arm.configure(begin=0.0, channels=4, layers=2)
    assert isinstance(config, AdversarialConfig)
    generator = torch.Generator().manual_seed(0)
    pairs = Pairs(*(torch.randn(4, 3, 16, 16, 16, generator=generator) for _ in range(2)))
    found = [train_discriminator(TINY, config, pairs, 1, np.random.default_rng(0)) for _ in range(2)]
    assert np.array_equal(found[0][1], found[1][1]) and len(found[0][1]) == 3
    for name, value in found[0][0].state_dict().items():
        assert torch.equal(value, found[1][0].state_dict()[name])


def test_losses_by_hand():
    losses = np.array([2.0] * 30 + [50.0] + [1.0] * 9 + [3.0])
    found = describe_losses(losses)
    assert found["spikes"] == pytest.approx(2 / 41)  # 50, and 3 after eleven ones and twos
    late = losses[-10:]
    assert found["loss_late"] == pytest.approx(late.mean()) and found["loss_late_sd"] == pytest.approx(
        late.std()
    )
