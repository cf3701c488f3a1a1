"""Discriminators of a fixed segmenter's label maps: how well they do in training, and on one sample."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg_brn.config import AdversarialConfig
from medseg_brn.probes.curves import spike_fraction
from medseg_brn.probes.dependence import batchmate_dependence
from medseg_brn.probes.layers import eval_mode, training_norms
from medseg_brn.studies.adversarial.segmenter import CPU, TARGETS, Recipe, make_experiment
from medseg_brn.studies.adversarial.shapes import Volumes
from medseg_brn.training.adversarial import make_adversary

INFLUENCE_ITEMS, INFLUENCE_MATES = 32, 8
"""Items whose batchmates are exchanged are drawn from so many, and each is seen in so many batches."""


@dataclass(frozen=True)
class Pairs:
    """Image and label map of n volumes, as a discriminator sees them."""

    real: Tensor
    """(n, 3, X, Y, Z): image, background, body, by the reference."""
    fake: Tensor
    """The same by a prediction."""

    def __len__(self) -> int:
        return len(self.real)


def make_pairs(volumes: Volumes, logits: Tensor) -> Pairs:
    """References and predicted label maps, both of 0 and 1.

    Probabilities would tell a prediction by their being neither; label maps must be told by their shape.
    """
    real, fake = (
        F.one_hot(classes, TARGETS.num_outputs).movedim(-1, 1).float()
        for classes in (volumes.classes[:, 0], logits.argmax(1))
    )
    return Pairs(torch.cat([volumes.images, real], 1), torch.cat([volumes.images, fake], 1))


def train_discriminator(
    recipe: Recipe, config: AdversarialConfig, pairs: Pairs, seed: int, random: np.random.Generator
) -> tuple[nn.Module, np.ndarray]:
    """A discriminator after steps of one real and one fake each, and its hinge losses (steps,)."""
    experiment = make_experiment(recipe, seed, recipe.discriminator_steps, adversarial=config)
    adversary = make_adversary(experiment, 1, TARGETS, CPU)
    assert adversary is not None
    losses = []
    for step in range(recipe.discriminator_steps):
        adversary.start(step)
        item = int(random.integers(len(pairs)))
        losses.append(float(adversary.learn(pairs.real[item : item + 1], pairs.fake[item : item + 1])))
        adversary.finish()
    return adversary.discriminator, np.array(losses)


@torch.no_grad()
def measure_training_accuracy(discriminator: nn.Module, pairs: Pairs, mixed: bool) -> float:
    """Share of items told rightly by their mean score, normalized as in training, in [0, 1].

    Args:
        discriminator: unchanged.
        pairs: each is passed by itself.
        mixed: whether as one batch of two, or as two of one.
    """
    right = 0
    with training_norms(discriminator):
        for item in range(len(pairs)):
            real, fake = pairs.real[item : item + 1], pairs.fake[item : item + 1]
            batches = [torch.cat([real, fake])] if mixed else [real, fake]
            scores = torch.cat([_score(discriminator, batch) for batch in batches])
            right += int(scores[0] > 0) + int(scores[1] <= 0)
    return right / (2 * len(pairs))


@torch.no_grad()
def measure_single_accuracy(discriminator: nn.Module, pairs: Pairs) -> float:
    """Share of items told rightly in evaluation mode, where no item is normalized by another, in [0, 1]."""
    with eval_mode(discriminator):
        real, fake = (
            torch.cat([_score(discriminator, part) for part in items.split(16)])
            for items in (pairs.real, pairs.fake)
        )
    return float(torch.cat([real > 0, fake <= 0]).double().mean())


def measure_influence(discriminator: nn.Module, pairs: Pairs, mixed: bool) -> float:
    """How far an item's scores depend on its batchmate; see `batchmate_dependence`. 0 where it has none."""
    items = torch.stack([pairs.real, pairs.fake], 1).flatten(0, 1)[:INFLUENCE_ITEMS]
    return batchmate_dependence(discriminator, items, 2 if mixed else 1, INFLUENCE_MATES)


def describe_losses(losses: np.ndarray) -> dict[str, float]:
    """Share of spikes, and mean and standard deviation over the last quarter."""
    late = losses[-max(1, len(losses) // 4) :]
    return {
        "spikes": spike_fraction(losses),
        "loss_late": float(late.mean()),
        "loss_late_sd": float(late.std()),
    }


def _score(discriminator: nn.Module, items: Tensor) -> Tensor:
    """(n,) mean over the neighbourhoods."""
    return discriminator(items).flatten(1).mean(1)
