"""Real layers fed with minibatches of one group each: how much of the difference comes out again.

Values of the two groups have the means ±Δ/2 and the standard deviation 1. What a layer retains is

    (mean output of the one group - mean output of the other) · σ_run / Δ

that is, the difference of the outputs in training against Δ/σ_run, which it is in evaluation. σ_run belongs
to running statistics of one of two kinds: of the *mixture*, as minibatches that hold both groups leave them,
with σ² = 1 + Δ²/4; or *pure*, as minibatches of one group each leave them, which is the average variance
within minibatches, 1, and knows nothing of the difference.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from medseg_brn.studies.confounding.norms import (
    BATCH,
    MOMENTUM,
    Norm,
    compute_mixture_std,
    compute_retained,
    compute_retained_effect,
    make_renorm,
)

DIFFERENCES = (0.5, 1.0, 2.0, 4.0, 6.0, 8.0)
R_LIMITS, D_LIMITS = (1.0, 1.5, 3.0), (0.25, 0.5, 1.0, 2.0, 5.0)
SWEPT = (BATCH, *(make_renorm(r_max, d_max) for d_max in D_LIMITS for r_max in R_LIMITS))

CHANNELS, ITEMS, VOXELS = 8, 4, 1024
"""A minibatch has 4096 values a channel: the formula is about groups, not about small samples' noise."""
LEARNING_BATCHES, MEASURED_BATCHES = 1000, 40

Statistics = Literal["mixture", "pure"]
STATISTICS: tuple[Statistics, ...] = ("mixture", "pure")


@dataclass(frozen=True)
class Retained:
    """What one layer let through of one difference, and what the formulas say."""

    statistics: Statistics
    difference: float
    norm: Norm
    running_std: float
    measured: float
    expected: float
    measured_effect: float
    """The difference in units of the spread within groups, as a share of that of the input."""
    expected_effect: float


def sweep_layers(seed: int) -> list[Retained]:
    """All norms at all differences, with running statistics of both kinds."""
    found = []
    for row, difference in enumerate(DIFFERENCES):
        for column, statistics in enumerate(STATISTICS):
            rng = torch.Generator().manual_seed(hash_seed(seed, row, column))
            found += _measure_all(statistics, difference, rng)
    return found


def follow_layer(norm: Norm, difference: float, batches: int, seed: int) -> list[float]:
    """What is retained over a training on pure minibatches that begins with statistics of the mixture.

    The statistics follow as in any training, so that σ_run forgets the difference.

    Returns:
        One number per pair of minibatches: (batches // 2).
    """
    rng = torch.Generator().manual_seed(hash_seed(seed, 99))
    layer = norm.make(CHANNELS, affine=False)
    load_statistics(layer, learn_statistics("mixture", difference, rng), frozen=False)
    found = []
    for pair in batched(alternate(difference, batches, rng), 2):
        running_std = float(layer.running_var.mean().sqrt())  # type: ignore[operator]
        means = [float(layer(values).mean()) for values in pair]
        found.append((means[1] - means[0]) * running_std / difference)
    return found


def measure_item_norm(kind: str, groups: int, share: float, difference: float, seed: int) -> float:
    """What a norm without running statistics retains, in the channels that carry the difference.

    Such a norm measures each item by itself, so the minibatches do not matter; but a difference that many
    of its channels share looks like the item's mean. Of 16 channels in `groups` groups the first
    `share` carry the difference; expected is one minus their share of their own group.

    Args:
        kind: "group" or "instance".
        groups: 1 is LayerNorm; without meaning for "instance".
        share: of the channels that carry the difference.
        difference: Δ.
        seed: draws the values.
    """
    rng = torch.Generator().manual_seed(hash_seed(seed, 98))
    channels, carrying = 16, round(16 * share)
    layer = (
        nn.GroupNorm(groups, channels, affine=False)
        if kind == "group"
        else nn.InstanceNorm1d(channels, affine=False)
    )
    means, scales = [], []
    for sign in (-1, 1):
        values = torch.randn(16, channels, VOXELS, generator=rng)
        values[:, :carrying] += sign * difference / 2
        means.append(float(layer(values)[:, :carrying].mean()))
        per_group = groups if kind == "group" else channels
        scales.append(float(values.reshape(16, per_group, -1)[:, 0].var(1, correction=0).mean().sqrt()))
    return (means[1] - means[0]) * sum(scales) / 2 / difference


# ---------------------------------------------------------------- minibatches and statistics


def alternate(difference: float, batches: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Minibatches (ITEMS, CHANNELS, VOXELS) of one group each, at -Δ/2 and +Δ/2 in turn."""
    for index in range(batches):
        yield torch.randn(ITEMS, CHANNELS, VOXELS, generator=rng) + (index % 2 - 0.5) * difference


def mix(difference: float, batches: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Minibatches half of whose items are of either group."""
    signs = torch.tensor([-0.5, 0.5]).repeat(ITEMS // 2)[:, None, None]
    for _ in range(batches):
        yield torch.randn(ITEMS, CHANNELS, VOXELS, generator=rng) + signs * difference


def learn_statistics(statistics: Statistics, difference: float, rng: torch.Generator) -> dict[str, Tensor]:
    """The buffers of a layer that saw many minibatches, with its moving averages as they are."""
    batches = (mix if statistics == "mixture" else alternate)(difference, LEARNING_BATCHES, rng)
    layer = make_renorm(3, 5).make(CHANNELS, affine=False)
    for values in batches:
        layer(values)
    return layer.state_dict()


def load_statistics(layer: nn.Module, statistics: dict[str, Tensor], frozen: bool) -> None:
    """Gives the layer these running statistics, to be kept as they are or to go on from."""
    layer.load_state_dict(statistics)
    layer.momentum = 0.0 if frozen else MOMENTUM  # type: ignore[assignment]


def batched(items: Iterator[Tensor], size: int) -> Iterator[list[Tensor]]:
    """Lists of `size` successive items."""
    return (list(group) for group in zip(*[items] * size, strict=True))


def hash_seed(*numbers: int) -> int:
    """One seed for a generator out of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _measure_all(statistics: Statistics, difference: float, rng: torch.Generator) -> list[Retained]:
    """All norms on the same minibatches and the same running statistics, which are kept as they are."""
    buffers = learn_statistics(statistics, difference, rng)
    layers = [norm.make(CHANNELS, affine=False) for norm in SWEPT]
    for layer in layers:
        load_statistics(layer, buffers, frozen=True)
    sums = torch.zeros(len(SWEPT), 2, 2, dtype=torch.float64)  # of each norm and group: mean, spread
    for index, values in enumerate(alternate(difference, MEASURED_BATCHES, rng)):
        for number, layer in enumerate(layers):
            output = layer(values)
            sums[number, index % 2, 0] += output.mean()
            sums[number, index % 2, 1] += output.std(dim=(0, 2)).mean()
    running_std = float(buffers["running_var"].mean().sqrt())
    expected_std = compute_mixture_std(difference) if statistics == "mixture" else 1.0
    found = []
    for norm, ((low, low_std), (high, high_std)) in zip(
        SWEPT, (sums / (MEASURED_BATCHES / 2)).tolist(), strict=True
    ):
        found.append(
            Retained(
                statistics,
                difference,
                norm,
                running_std,
                (high - low) * running_std / difference,
                compute_retained(difference, norm.d_max, expected_std),
                (high - low) / ((low_std + high_std) / 2) / difference,
                compute_retained_effect(difference, norm.r_max, norm.d_max, expected_std),
            )
        )
    return found
