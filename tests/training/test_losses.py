"""Dice + cross-entropy, against a naive computation in NumPy."""

import math

import numpy as np
import pytest
import torch

from medseg_brn.cases.targets import Targets
from medseg_brn.training.losses import make_loss

TARGETS = Targets(("background", "one", "two"))


def naive_loss(logits: np.ndarray, classes: np.ndarray) -> float:
    """Mean over foreground classes of 1 - Dice pooled over the batch, plus mean cross-entropy."""
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = exponentials / exponentials.sum(1, keepdims=True)
    one_hot = np.stack([classes[:, 0] == value for value in range(logits.shape[1])], axis=1)
    cross_entropy = -np.log((probabilities * one_hot).sum(1)).mean()
    dice = []
    for value in range(1, logits.shape[1]):
        overlap = (probabilities[:, value] * one_hot[:, value]).sum()
        total = probabilities[:, value].sum() + one_hot[:, value].sum()
        dice.append(2 * overlap / total)
    return float(cross_entropy + 1 - np.mean(dice))


def make_example(seed: int = 0, size: int = 8):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, size, size, size, generator=generator, dtype=torch.float64)
    classes = torch.randint(0, 3, (2, 1, size, size, size), generator=generator)
    return logits, classes


def test_the_loss_is_pooled_foreground_dice_and_cross_entropy():
    logits, classes = make_example()
    assert make_loss(TARGETS)(logits, classes).item() == pytest.approx(
        naive_loss(logits.numpy(), classes.numpy()), rel=1e-4
    )


def test_a_perfect_prediction_costs_nothing_and_a_wrong_one_more():
    _, classes = make_example()
    perfect = 50.0 * torch.nn.functional.one_hot(classes[:, 0], 3).movedim(-1, 1).float()
    assert make_loss(TARGETS)(perfect, classes).item() == pytest.approx(0, abs=1e-4)
    assert make_loss(TARGETS)(-perfect, classes).item() > 1


def test_deep_supervision_halves_the_weight_of_each_coarser_level():
    logits, classes = make_example()
    coarse = torch.randn(2, 3, 4, 4, 4, dtype=torch.float64)
    coarse_classes = classes[:, :, 1::2, 1::2, 1::2]
    expected = (
        naive_loss(logits.numpy(), classes.numpy()) + 0.5 * naive_loss(coarse.numpy(), coarse_classes.numpy())
    ) / 1.5
    assert make_loss(TARGETS, deep_supervision=True)([logits, coarse], classes).item() == pytest.approx(
        expected, rel=1e-4
    )


def test_a_network_of_two_levels_has_one_level_of_logits_to_supervise():
    logits, classes = make_example()
    assert make_loss(TARGETS, deep_supervision=True)(logits, classes).item() == pytest.approx(
        make_loss(TARGETS)(logits, classes).item()
    )


def test_a_class_absent_from_the_batch_keeps_the_loss_finite():
    logits, classes = make_example()
    loss = make_loss(TARGETS)(logits.float().requires_grad_(), torch.zeros_like(classes))
    assert math.isfinite(loss.item())
