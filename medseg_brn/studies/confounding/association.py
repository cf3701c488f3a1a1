"""Groups and sites more and more associated: what a layer retains of the biology and of the batch effect.

A minibatch holds items of one site. Of its items the share (1 + V)/2 belongs to the group that is commoner
there: V is Cramér's V of group and site, 0 for balanced sites, 1 for perfect confounding. Some channels carry
the groups' difference only, others the sites' only, both of the same size; the values' spread is 1. So the
simulation knows which is which, and asks of each what the layer lets through, by the measure of `layers.py`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from medseg_brn.studies.confounding.layers import hash_seed, load_statistics
from medseg_brn.studies.confounding.norms import (
    BATCH,
    LOOSE,
    TIGHT,
    Norm,
    compute_retained,
    make_renorm,
)

ASSOCIATIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
NORMS = (BATCH, TIGHT, LOOSE)
DIFFERENCE = 2.0
ITEMS, CHANNELS, VOXELS = 32, 8, 64
LEARNING_BATCHES, MEASURED_BATCHES = 1000, 60


@dataclass(frozen=True)
class Kept:
    """What one layer lets through at one association, and what the formulas say."""

    association: float
    norm: Norm
    biology: float
    batch_effect: float
    expected_biology: float
    expected_batch_effect: float


def sweep_association(seed: int) -> list[Kept]:
    """All norms at all associations."""
    return [
        kept
        for row, association in enumerate(ASSOCIATIONS)
        for kept in _measure(association, torch.Generator().manual_seed(hash_seed(seed, 10, row)))
    ]


def assign_groups(site: int, association: float) -> Tensor:
    """Signs (ITEMS,) of the items of a minibatch from the site -1 or 1."""
    common = round(ITEMS * (1 + association) / 2)
    return site * torch.cat([torch.ones(common), -torch.ones(ITEMS - common)])


def compute_expected(association: float, d_max: float) -> tuple[float, float]:
    """What is retained of biology and of the batch effect, by the formula, with Δ of both kinds alike.

    In the channels with biology a minibatch's mean is ±V·Δ/2, and the spread within it
    σ² = 1 + (1 - V²)·Δ²/4. Taking the mean away leaves 1 - V² of the groups' difference; of the rest the
    clipped d gives back V·min(V, 2·d_max·σ/Δ). In those with the batch effect it is ±Δ/2, and σ is 1.
    """
    running_std = (1 + (1 - association**2) * DIFFERENCE**2 / 4) ** 0.5
    given_back = min(association, 2 * d_max * running_std / DIFFERENCE)
    return 1 - association**2 + association * given_back, compute_retained(DIFFERENCE, d_max, 1.0)


def _measure(association: float, rng: torch.Generator) -> list[Kept]:
    buffers = _learn(association, rng)
    running_std = buffers["running_var"].sqrt()
    layers = [norm.make(CHANNELS, affine=False) for norm in NORMS]
    for layer in layers:
        load_statistics(layer, buffers, frozen=True)
    contrasts = torch.zeros(len(NORMS), 2, CHANNELS)  # of each norm: between groups, between sites
    for index in range(MEASURED_BATCHES):
        values, groups, site = _draw(index, association, rng)
        for number, layer in enumerate(layers):
            means = layer(values).mean(2)  # (ITEMS, CHANNELS)
            contrasts[number, 0] += 2 * (groups[:, None] * means).mean(0)
            contrasts[number, 1] += 2 * site * means.mean(0)
    retained = contrasts / MEASURED_BATCHES * running_std / DIFFERENCE
    found = []
    for norm, (by_group, by_site) in zip(NORMS, retained, strict=True):
        biology, batch_effect = by_group[: CHANNELS // 2].mean(), by_site[CHANNELS // 2 :].mean()
        expected = compute_expected(association, norm.d_max)
        found.append(Kept(association, norm, float(biology), float(batch_effect), *expected))
    return found


def _learn(association: float, rng: torch.Generator) -> dict[str, Tensor]:
    """Running statistics as such minibatches leave them."""
    layer = make_renorm(3, 5).make(CHANNELS, affine=False)
    for index in range(LEARNING_BATCHES):
        layer(_draw(index, association, rng)[0])
    return layer.state_dict()


def _draw(index: int, association: float, rng: torch.Generator) -> tuple[Tensor, Tensor, int]:
    """Values (ITEMS, CHANNELS, VOXELS), groups (ITEMS,) as signs and the site of a minibatch; in turn."""
    site = 2 * (index % 2) - 1
    groups = assign_groups(site, association)
    values = torch.randn(ITEMS, CHANNELS, VOXELS, generator=rng)
    values[:, : CHANNELS // 2] += (groups * DIFFERENCE / 2)[:, None, None]
    values[:, CHANNELS // 2 :] += site * DIFFERENCE / 2
    return values, groups, site
