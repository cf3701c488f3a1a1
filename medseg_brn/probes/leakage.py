"""How much a normalization in training mode tells an item's class through the other item of its batch.

A batch is one real value from N(+δ/2, 1) and one fake from N(-δ/2, 1). Seen alone, an item is classified
best by its sign. A norm over the batch also shows it how it compares with an item of the other class,
which no single sample shows at inference: an advantage that is not real.
"""

from collections.abc import Callable
from math import erf, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from medseg_brn.networks.normalization import set_renorm_step

# Layers that see one item at a time, whatever is in the batch.
_WITHIN_ITEM = (nn.GroupNorm, nn.LayerNorm, nn.Identity, _InstanceNorm)


def bayes_accuracy(separation: float) -> float:
    """Best accuracy for one item on its own, Φ(δ/2), in [0.5, 1]; separation δ of the means in sd."""
    return (1 + erf(separation / 2 / sqrt(2))) / 2


@torch.no_grad()
def measure_leakage(
    make_layer: Callable[[int], nn.Module], separation: float = 1.0, pairs: int = 20_000, seed: int = 0
) -> float:
    """Accuracy that a norm's training mode adds to `bayes_accuracy`, about 0 where nothing leaks.

    The layer normalizes all pairs at once, one channel each, in a batch (2, pairs, 1, 1, 1) with the running
    statistics of the population, mean 0 and variance 1 + δ²/4, which stay, and with renorm's limits final.
    An output above 0, which lies midway between the classes, is called real.

    A layer that normalizes each item alone (group, layer, instance or none) returns exactly 0 and is not
    measured: what it computes of an item does not depend on the other one.

    Args:
        make_layer: makes a three-dimensional layer with this many channels, each normalized by itself, its
            scale positive and its shift 0.
        separation: δ, distance of the class means in standard deviations of a class, at least 0.
        pairs: real-fake pairs; the standard error is at most 0.5/sqrt(pairs), 0.0035 by default.
        seed: of the values drawn.

    Returns:
        Accuracy - Φ(δ/2). BatchNorm, which turns any two values into ±1, has Φ(δ/√2) - Φ(δ/2): the larger
        is called real, and is with P(real > fake).

    Raises:
        ValueError: no pairs.
    """
    if pairs < 1:
        raise ValueError(f"{pairs} pairs cannot be measured; draw at least 1")
    layer = make_layer(pairs)
    if isinstance(layer, _WITHIN_ITEM):
        return 0.0
    _settle(layer, separation)
    real, fake = layer(_draw_pairs(separation, pairs, seed, layer)).flatten(1)
    accuracy = ((real > 0).double().mean() + (fake <= 0).double().mean()) / 2
    return float(accuracy) - bayes_accuracy(separation)


def _settle(layer: Any, separation: float) -> None:
    """As late in training: the statistics are the population's and stay, the limits are final."""
    layer.train()
    if getattr(layer, "running_var", None) is not None:
        layer.running_mean.zero_()
        layer.running_var.fill_(1 + separation**2 / 4)
        layer.num_batches_tracked.fill_(1)  # renorm's first batch would be normalized without statistics
        layer.momentum = 0.0
    set_renorm_step(layer, step=1, schedule=(0, 0, 0))


def _draw_pairs(separation: float, pairs: int, seed: int, layer: nn.Module) -> Tensor:
    """(2, pairs, 1, 1, 1) on the layer's device and in its dtype: real values first, then fake ones."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2, pairs, 1, 1, 1, generator=generator, dtype=torch.float64)
    values[0] += separation / 2
    values[1] -= separation / 2
    numbers = [*layer.parameters(), *layer.buffers()]
    return values.to(numbers[0]) if numbers else values
