"""Small networks trained on minibatches of one group, or of one site, each.

An item has 16 features of unit noise: four that carry the group, four that carry something else, eight that
carry nothing. Two tasks:

*marker*: the other four carry a trait z ~ N(0, 1) that varies within groups, and the label is z + g > 0 with
the group g = ±1. The best answer needs both. Minibatches hold one group each, in turn.

*diagnosis*: the label is the group, and the other four carry the site, by a difference of the same size.
Minibatches hold one site each, in turn; sites and groups are *balanced*, or *confounded*: each site sent one
group. Held-out items have every combination.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from medseg_brn.studies.confounding.layers import hash_seed
from medseg_brn.studies.confounding.norms import (
    BATCH,
    LAYER,
    LOOSE,
    MIDDLE,
    TIGHT,
    Norm,
    compute_retained,
    make_renorm,
)

NORMS = (BATCH, TIGHT, MIDDLE, LOOSE, make_renorm(3, 0), make_renorm(1, 5), LAYER)
DIFFERENCE = 2.0
CARRYING, FEATURES, WIDTH = 4, 16, 32
BATCH_SIZE, STEPS, LEARNING_RATE = 16, 1500, 0.02
HELD_OUT_BATCHES = 256

Design = Literal["balanced", "confounded"]
Batch = tuple[Tensor, Tensor, Tensor]
"""Features (N, 16), labels (N,) in {0, 1}, and groups (N,) as signs."""


@dataclass(frozen=True)
class MarkerResult:
    """One network on the first task; accuracies on the same held-out items, shares in [0, 1]."""

    norm: Norm
    train_accuracy: float
    """In training mode, in minibatches of one group each."""
    eval_accuracy: float
    """In evaluation mode, where it does not matter what the minibatches hold."""
    disparity: float
    """Mean difference of an item's probability between the modes."""
    retained: float
    """Of the groups' difference after the first norm, in training mode against evaluation mode."""
    expected: float
    """What the formula says, from each channel's difference and running statistics."""
    train_contrast: float
    """Difference of the groups' mean logits, in training mode."""
    eval_contrast: float
    """The same in evaluation mode."""
    group_weight: float
    """Root mean square of the first layer's weights on the group's features, against those on noise."""


@dataclass(frozen=True)
class DiagnosisResult:
    """One network on the second task, in evaluation mode, on held-out items of every combination."""

    norm: Norm
    design: Design
    concordant_accuracy: float
    """Where group and site are combined as in confounded training."""
    discordant_accuracy: float
    """Where they are combined the other way."""
    group_contrast: float
    """Difference of mean logits between the groups, within sites."""
    site_contrast: float
    """Difference of mean logits between the sites, within groups."""

    @property
    def site_share(self) -> float:
        """Of the site in what the logits tell: 0 biology only, 1 batch effect only."""
        return abs(self.site_contrast) / (abs(self.group_contrast) + abs(self.site_contrast))


# ---------------------------------------------------------------- the two experiments


def train_on_marker(norm: Norm, seed: int) -> MarkerResult:
    """Trains a network of this norm on the first task; weights and items depend on the seed alone."""
    rng = torch.Generator().manual_seed(hash_seed(seed, 30))
    network = make_network(norm, rng)
    _train(network, (draw_marker(_pure(index), rng) for index in range(STEPS)))
    held_out = [draw_marker(_pure(index), rng) for index in range(HELD_OUT_BATCHES)]
    training, evaluation = (_observe(network, held_out, mode) for mode in (True, False))
    labels, groups = (torch.cat([batch[place] for batch in held_out]) for place in (1, 2))
    in_training, in_evaluation = (_contrast(one.normalized, groups) for one in (training, evaluation))
    weights = in_evaluation**2 / in_evaluation.square().sum()
    return MarkerResult(
        norm,
        _accuracy(training.logits, labels),
        _accuracy(evaluation.logits, labels),
        float((training.logits.sigmoid() - evaluation.logits.sigmoid()).abs().mean()),
        float(in_training @ in_evaluation / in_evaluation.square().sum()),
        float(weights @ _expect_retained(network, norm, _contrast(evaluation.entering, groups))),
        float(_contrast(training.logits, groups)),
        float(_contrast(evaluation.logits, groups)),
        _compare_weights(network),
    )


def train_on_diagnosis(norm: Norm, design: Design, seed: int) -> DiagnosisResult:
    """Trains a network of this norm on the second task; weights and noise depend on the seed alone."""
    rng = torch.Generator().manual_seed(hash_seed(seed, 31))
    network = make_network(norm, rng)
    mixed = torch.tensor([-1.0, 1.0]).repeat(BATCH_SIZE // 2)

    def draw(index: int) -> Batch:
        site = _pure(index)
        return draw_diagnosis(site if design == "confounded" else mixed, site, rng)

    _train(network, map(draw, range(STEPS)))
    logits, accuracies = {}, {}
    for group in (-1.0, 1.0):
        for site in (-1.0, 1.0):
            signs = torch.full((HELD_OUT_BATCHES * BATCH_SIZE // 4,), 1.0)
            batch = draw_diagnosis(group * signs, site * signs, rng)
            answers = _observe(network, [batch], training=False).logits
            logits[group, site] = float(answers.mean())
            accuracies[group, site] = _accuracy(answers, batch[1])
    return DiagnosisResult(
        norm,
        design,
        (accuracies[1, 1] + accuracies[-1, -1]) / 2,
        (accuracies[1, -1] + accuracies[-1, 1]) / 2,
        (logits[1, 1] + logits[1, -1] - logits[-1, 1] - logits[-1, -1]) / 2,
        (logits[1, 1] + logits[-1, 1] - logits[1, -1] - logits[-1, -1]) / 2,
    )


def compute_best_accuracy(with_group: bool) -> float:
    """Of the first task, in [.5, 1]: what knows the distribution, and the group for certain or not at all.

    The mean of the trait's four features has the variance 1 + 1/4, so that z is known to be .8 of it, with
    the variance 1/5. The group's features tell it with an error of Φ(-2) alone, so that the first number is
    a little above what is possible.
    """
    means = np.linspace(-8, 8, 4001)
    density = stats.norm.pdf(means, scale=1.25**0.5)
    certain = stats.norm.cdf((0.8 * means + 1) / 0.2**0.5)
    blind = (certain + stats.norm.cdf((0.8 * means - 1) / 0.2**0.5)) / 2
    p = certain if with_group else blind
    return float((np.maximum(p, 1 - p) * density).sum() / density.sum())


# ---------------------------------------------------------------- items


def draw_marker(groups: Tensor, rng: torch.Generator) -> Batch:
    """Items of the first task, of groups (N,) given as signs."""
    trait = torch.randn(len(groups), generator=rng)
    features = _draw_features(groups * DIFFERENCE / 2, trait, rng)
    return features, (trait + groups > 0).float(), groups


def draw_diagnosis(groups: Tensor, sites: Tensor, rng: torch.Generator) -> Batch:
    """Items of the second task, of groups and sites (N,) given as signs."""
    features = _draw_features(groups * DIFFERENCE / 2, sites * DIFFERENCE / 2, rng)
    return features, (groups > 0).float(), groups


def _draw_features(first: Tensor, second: Tensor, rng: torch.Generator) -> Tensor:
    features = torch.randn(len(first), FEATURES, generator=rng)
    features[:, :CARRYING] += first[:, None]
    features[:, CARRYING : 2 * CARRYING] += second[:, None]
    return features


def _pure(index: int) -> Tensor:
    """Signs (BATCH_SIZE,) of minibatch number `index`: all alike, in turn."""
    return torch.full((BATCH_SIZE,), 2.0 * (index % 2) - 1)


# ---------------------------------------------------------------- networks


def make_network(norm: Norm, rng: torch.Generator) -> nn.Sequential:
    """Two hidden layers, each normalized; renorm's clips rise from 2 % of the steps to 16 %."""
    schedule = (STEPS // 50, STEPS // 10, STEPS * 4 // 25)
    network = nn.Sequential(
        nn.Linear(FEATURES, WIDTH, bias=False),
        norm.make(WIDTH, schedule=schedule),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH, bias=False),
        norm.make(WIDTH, schedule=schedule),
        nn.ReLU(),
        nn.Linear(WIDTH, 1),
    )
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=rng)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network


def _train(network: nn.Module, batches: Iterator[Batch]) -> None:
    """Plain stochastic gradient descent with momentum; its rate falls to 0 along a cosine."""
    optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    network.train()
    for features, labels, _ in batches:
        loss = F.binary_cross_entropy_with_logits(network(features)[:, 0], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@dataclass(frozen=True)
class _Observation:
    """All items' logits (N,), and what enters and leaves the first norm (N, WIDTH)."""

    logits: Tensor
    entering: Tensor
    normalized: Tensor


@torch.no_grad()
def _observe(network: nn.Sequential, batches: list[Batch], training: bool) -> _Observation:
    """What the network makes of the batches, one after the other, while its statistics stay as they are."""
    network = deepcopy(network).train(training)
    for layer in network:
        if hasattr(layer, "momentum"):
            layer.momentum = 0.0  # type: ignore[assignment]
    entering = [network[0](features) for features, _, _ in batches]
    normalized = [network[1](values) for values in entering]
    rest: Callable[[Tensor], Tensor] = network[2:]
    logits = [rest(values)[:, 0] for values in normalized]
    return _Observation(torch.cat(logits), torch.cat(entering), torch.cat(normalized))


def _expect_retained(network: nn.Sequential, norm: Norm, differences: Tensor) -> Tensor:
    """By the formula for each channel (WIDTH,) of the first norm; 1 for a norm that has no statistics."""
    if not hasattr(network[1], "running_var"):
        return torch.ones_like(differences)
    stds = (network[1].running_var + network[1].eps).sqrt()  # type: ignore[operator]
    pairs = zip(differences.abs().tolist(), stds.tolist(), strict=True)
    return torch.tensor([compute_retained(difference, norm.d_max, std) for difference, std in pairs])


def _compare_weights(network: nn.Sequential) -> float:
    squares = network[0].weight.detach().square().mean(0)  # type: ignore[operator]
    return float((squares[:CARRYING].mean() / squares[2 * CARRYING :].mean()).sqrt())


def _contrast(values: Tensor, groups: Tensor) -> Tensor:
    """Mean of the one group less that of the other, along the items."""
    return values[groups > 0].mean(0) - values[groups < 0].mean(0)


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float(((logits > 0) == (labels > 0.5)).double().mean())
