"""What the norm layers of a network see and do, layer by layer: noise, statistics, clipping."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from medseg_brn.networks.batch_renorm import BatchRenorm
from medseg_brn.networks.operator import batch_statistics, compute_corrections
from medseg_brn.probes import clipping, noise
from medseg_brn.probes.layers import (
    collect_inputs,
    compute_logits,
    eval_mode,
    find_norm_layers,
    has_batch_statistics,
    training_norms,
)
from medseg_brn.probes.noise import ItemMoments
from medseg_brn.probes.statistics import as_tracked, estimation_shift, is_centred, worker_divergence

_PASSES = 20
"""Times the measured half is shuffled into new batches."""


@dataclass(frozen=True)
class Pool:
    """Single items, taken out of a loader's batches; on the CPU."""

    images: Tensor  # (P, C, ...)
    classes: Tensor | None  # (P, 1, ...)
    batch_size: int

    def batches(self, indices: Tensor) -> list[Tensor]:
        """The indices in batches, the last incomplete one dropped."""
        return [batch for batch in indices.split(self.batch_size) if len(batch) == self.batch_size]


def examine_layers(
    network: nn.Module, pool: Pool, order: Tensor, trainable: bool, generator: torch.Generator
) -> dict[str, dict[str, float]]:
    """Per layer all metrics of noise and statistics."""
    moments = _collect_moments(network, pool, order)
    measured = order[len(order) // 2 :]
    chosen = measured if len(measured) >= pool.batch_size else order
    statistics = _collect_statistics(network, pool, chosen) if trainable else {}
    results = {}
    for name, layer in find_norm_layers(network).items():
        found: dict[str, float] = {}
        if name in moments:
            found |= _compare_noise(moments[name], pool.batch_size, generator)
        if name in statistics:
            found |= _compare_statistics(layer, *statistics[name])
        results[name] = {metric: value for metric, value in found.items() if math.isfinite(value)}
    return results


def _collect_moments(network: nn.Module, pool: Pool, order: Tensor) -> dict[str, ItemMoments]:
    """Moments of every item at every norm's input, in evaluation mode.

    There an item's features are its own. In training they are not where batch norms came before: these
    give every batch the same mean, so that items of a batch are no longer independent.
    """
    parts: dict[str, list[ItemMoments]] = {}

    def take(name: str, features: Tensor) -> None:
        known = parts.setdefault(name, [])
        if len(features) != pool.batch_size:
            return  # windows or tokens of an item in the place of items
        moments = ItemMoments.of(features)
        if not known or moments.voxels == known[0].voxels:  # a shared layer may run at several resolutions
            known.append(moments)

    with torch.no_grad(), eval_mode(network), collect_inputs(network, take):
        for batch in pool.batches(order):
            compute_logits(network, pool.images[batch])
    return {name: ItemMoments.concatenate(found) for name, found in parts.items() if found}


def _compare_noise(moments: ItemMoments, batch_size: int, generator: torch.Generator) -> dict[str, float]:
    """Medians over channels: predicted from the first half of the items, measured on the second.

    Batches of independent items follow from the items' moments. Within one pass they share no item, so
    their sample variance is that of independent batches; it is averaged over many passes.
    """
    half = len(moments.first) // 2
    known, others = _select(moments, slice(half)), _select(moments, slice(half, None))
    values = {
        "intraclass_correlation": noise.intraclass_correlation(known),
        "effective_sample_size": noise.effective_sample_size(known),
        "variance_noise_theory": noise.predict_variance_noise(known, batch_size),
        "variance_noise_first_order": noise.predict_variance_noise_first_order(known, batch_size),
        "mean_noise_theory": noise.predict_mean_noise(known, batch_size),
    }
    sd = others.variance.sqrt()
    squares = []
    for _ in range(_PASSES if len(others.first) >= 2 * batch_size else 0):
        order = torch.randperm(len(others.first), generator=generator).to(sd.device)
        batches = order[: len(order) // batch_size * batch_size].view(-1, batch_size)
        means = others.first[batches]  # (batches, B, C)
        variances = others.second[batches].mean(dim=1) + means.var(dim=1, correction=0)
        measured = noise.measure_variance_noise(variances), noise.measure_mean_noise(means.mean(dim=1), sd)
        squares.append(torch.stack(measured).square())
    if squares:
        measured_noise = torch.stack(squares).mean(dim=0).sqrt()
        values["variance_noise_measured"], values["mean_noise_measured"] = measured_noise
    return {name: float(value.nanmedian()) for name, value in values.items()}


def _select(moments: ItemMoments, items: slice) -> ItemMoments:
    first, second, third, fourth = moments.first, moments.second, moments.third, moments.fourth
    return ItemMoments(first[items], second[items], third[items], fourth[items], moments.voxels)


def _collect_statistics(network: nn.Module, pool: Pool, indices: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Batch means and variances (n, C), float64, at every norm's input in training mode."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def take(name: str, features: Tensor) -> None:
        mean, var = batch_statistics(features)
        found.setdefault(name, []).append((mean.double(), var.double()))

    with torch.no_grad(), training_norms(network), collect_inputs(network, take):
        for batch in pool.batches(indices):
            compute_logits(network, pool.images[batch])
    return {
        name: (torch.stack([mean for mean, _ in pairs]), torch.stack([var for _, var in pairs]))
        for name, pairs in found.items()
    }


def _pool_statistics(means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) of equally large batches together: E[μ_B] and E[σ_B² + μ_B²] - E[μ_B]²."""
    return means.mean(dim=0), variances.mean(dim=0) + means.var(dim=0, correction=0)


def _compare_statistics(layer: Any, means: Tensor, variances: Tensor) -> dict[str, float]:
    """Batches in training (n, C): their noise, and against the running statistics and each other."""
    sd = _pool_statistics(means, variances)[1].sqrt()
    found = {
        "variance_noise_in_training": float(noise.measure_variance_noise(variances).nanmedian()),
        "mean_noise_in_training": float(noise.measure_mean_noise(means, sd).nanmedian()),
    }
    if isinstance(layer, _InstanceNorm) or getattr(layer, "running_var", None) is None:
        return found  # an instance norm's running statistics are not meant to be the population's
    population = as_tracked(layer, *_pool_statistics(means, variances))
    of_mean, of_var = estimation_shift(layer.running_mean, layer.running_var, *population)
    found["estimation_shift_var"] = of_var
    if is_centred(layer):
        found["estimation_shift_mean"] = of_mean
    if not has_batch_statistics(layer):
        return found  # frozen: it takes no batch in and clips nothing
    share = len(means) // 2
    if share:
        a = _pool_statistics(means[:share], variances[:share])
        b = _pool_statistics(means[share : 2 * share], variances[share : 2 * share])
        found["worker_divergence"] = worker_divergence(*as_tracked(layer, *a), *as_tracked(layer, *b))
    return found | (_measure_clipping(layer, means, variances) if isinstance(layer, BatchRenorm) else {})


def _measure_clipping(layer: BatchRenorm, means: Tensor, variances: Tensor) -> dict[str, float]:
    """What the layer's current limits cut off the corrections of batches (n, C)."""
    running = layer.running_mean.double(), layer.running_var.double()
    r_raw, d_raw = compute_corrections(means, variances, *running, layer.eps)
    r_max, d_max = layer.limits()
    return {
        "clip_rate_r": clipping.clip_rate_r(r_raw, r_max),
        "clip_rate_d": clipping.clip_rate_d(d_raw, d_max),
        "clipped_mass_r": clipping.clipped_mass_r(r_raw, r_max),
        "clipped_mass_d": clipping.clipped_mass_d(d_raw, d_max),
    }
