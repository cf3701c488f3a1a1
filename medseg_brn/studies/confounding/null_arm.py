"""The null arm: no biology at all, and how often a t test of the normalized values finds some.

Each channel is an experiment of its own: eight minibatches of 16 items, half of the items of either group,
whose values do not differ. The layer has been trained on such minibatches before, and normalizes these in
training mode; then Student's t test asks whether the groups differ, at the level .05. Three cohorts:

    none         minibatches of one group each, no batch effect
    balanced     two sites of different means; minibatches of one site each, half of either group
    confounded   the same two sites, but each sent the items of one group
"""

from typing import Literal

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from medseg_brn.comparison.statistics import Estimate
from medseg_brn.studies.confounding.layers import hash_seed
from medseg_brn.studies.confounding.norms import BATCH, LAYER, LOOSE, TIGHT, Norm

LEVEL = 0.05
BATCH_EFFECT = 1.0
"""Between the sites' means, in units of the spread within."""
BATCHES, ITEMS = 8, 16
WARM_UP_BATCHES = 100
EXPERIMENTS = 2000
"""Of one piece of work: the layer's channels."""
CHANNELS_TOGETHER = 16
"""Channels that LayerNorm normalizes together."""

Cohort = Literal["none", "balanced", "confounded"]
COHORTS: tuple[Cohort, ...] = ("none", "balanced", "confounded")
RAW = Norm("no norm", "none")
NORMS = (RAW, BATCH, TIGHT, LOOSE, LAYER)


def count_findings(seed: int) -> dict[tuple[Cohort, str], int]:
    """By cohort and norm, in how many of `EXPERIMENTS` experiments p is below `LEVEL`."""
    found = {}
    for number, cohort in enumerate(COHORTS):
        rng = torch.Generator().manual_seed(hash_seed(seed, 20, number))
        # The sites' difference has another sign in each channel, or LayerNorm would see it as one mean.
        signs = torch.randint(0, 2, (EXPERIMENTS,), generator=rng).float() * 2 - 1
        batches = [_draw(cohort, index, signs, rng) for index in range(WARM_UP_BATCHES + BATCHES)]
        groups = torch.cat([group for _, group in batches[-BATCHES:]])
        for norm in NORMS:
            layer = _make_layer(norm)
            outputs = torch.cat([layer(values) for values, _ in batches][-BATCHES:])
            p = compute_p(outputs.double().numpy(), groups.numpy() > 0)
            found[cohort, norm.name] = int((p < LEVEL).sum())
    return found


def compute_p(values: np.ndarray, in_group: np.ndarray) -> np.ndarray:
    """Two-sided p of Student's t test for each column of (items, C) values; 1 where the means are the same.

    BatchNorm makes the means of pure minibatches the same but for rounding, which is no difference.
    """
    difference = values[in_group].mean(0) - values[~in_group].mean(0)
    p = stats.ttest_ind(values[in_group], values[~in_group]).pvalue
    return np.where(np.abs(difference) < 1e-6, 1.0, p)


def estimate_rate(findings: int, experiments: int) -> Estimate:
    """The share of findings with its exact 95 % interval (Clopper and Pearson 1934); p tests for .05."""
    test = stats.binomtest(findings, experiments, LEVEL)
    interval = test.proportion_ci(0.95, "exact")
    return Estimate(findings / experiments, float(interval.low), float(interval.high), float(test.pvalue))


def compute_centred_rate() -> float:
    """The rate of false findings where the mean of every balanced minibatch is taken away beforehand.

    The groups' contrast stays, but 8 minibatches' means are gone from the noise around it: n - 9 degrees of
    freedom are left, and the test believes in n - 2.
    """
    items = BATCHES * ITEMS
    believed, left = items - 2, items - BATCHES - 1
    threshold = stats.t.isf(LEVEL / 2, believed) * (left / believed) ** 0.5
    return float(2 * stats.t.sf(threshold, left))


def _make_layer(norm: Norm) -> nn.Module:
    if norm.kind == "layer":
        return nn.GroupNorm(EXPERIMENTS // CHANNELS_TOGETHER, EXPERIMENTS, affine=False)
    return norm.make(EXPERIMENTS, affine=False)


def _draw(cohort: Cohort, index: int, signs: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Values (ITEMS, EXPERIMENTS) and groups (ITEMS,) as signs of minibatch number `index`."""
    turn = 2.0 * (index % 2) - 1
    pure = torch.full((ITEMS,), turn)
    groups = pure if cohort != "balanced" else torch.tensor([-1.0, 1.0]).repeat(ITEMS // 2)
    values = torch.randn(ITEMS, EXPERIMENTS, generator=rng)
    if cohort != "none":
        values += turn * signs * BATCH_EFFECT / 2
    return values, groups
