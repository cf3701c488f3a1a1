"""How far a layer's statistics are from the population's, from what they were, and from another worker's.

Means and variances are (C,) tensors, one number per channel; the computation is in float64.
"""

import torch
from torch import Tensor, nn


def is_centred(layer: nn.Module) -> bool:
    """Whether a norm's running statistics are a mean and the variance about it, not a second moment alone.

    True but for layers that say otherwise with an attribute `centred`, as MABN does.
    """
    return bool(getattr(layer, "centred", True))


def as_tracked(layer: nn.Module, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of features as the layer's running statistics would hold them.

    These are as they come, or 0 and E[x²] = σ² + μ² where the layer is not centred.
    """
    return (mean, var) if is_centred(layer) else (torch.zeros_like(mean), var + mean.square())


def estimation_shift(
    running_mean: Tensor, running_var: Tensor, population_mean: Tensor, population_var: Tensor
) -> tuple[float, float]:
    """Relative distance of the running mean and variance from the population's.

        ‖μ̂ - μ_pop‖ / ‖σ_pop‖    and    ‖σ̂² - σ²_pop‖ / ‖σ²_pop‖    (Euclidean norms over channels)

    Source: Huang et al. 2022, arXiv:2203.10778 (estimation shift of BatchNorm).

    Returns:
        Both at least 0; 0 where the statistics are the population's; NaN where the population has no
        variance in any channel.
    """
    mean_shift = _norm(running_mean.double() - population_mean.double())
    var_shift = _norm(running_var.double() - population_var.double())
    return (
        _ratio(mean_shift, _norm(population_var.double().sqrt())),
        _ratio(var_shift, _norm(population_var.double())),
    )


def statistics_drift(
    mean_before: Tensor, var_before: Tensor, mean_now: Tensor, var_now: Tensor, eps: float = 1e-5
) -> float:
    """How far running statistics moved between two steps, at least 0.

        mean_c[ ((μ_t - μ_{t-k})/σ_t)² + ln²(σ_t/σ_{t-k}) ],    σ = sqrt(variance + eps)

    A mean that moved by one standard deviation counts 1, a standard deviation that grew e-fold counts 1.
    """
    return float(compute_drift(mean_before, var_before, mean_now, var_now, eps))


def compute_drift(
    mean_before: Tensor, var_before: Tensor, mean_now: Tensor, var_now: Tensor, eps: float = 1e-5
) -> Tensor:
    """`statistics_drift` as a 0-dim tensor, for which nothing waits for the device."""
    before, now = var_before.double() + eps, var_now.double() + eps
    moved = (mean_now.double() - mean_before.double()).square() / now
    grown = (now / before).log() / 2
    return (moved + grown.square()).mean()


def worker_divergence(
    mean_a: Tensor, var_a: Tensor, mean_b: Tensor, var_b: Tensor, eps: float = 1e-5
) -> float:
    """Symmetric Kullback-Leibler divergence of two workers' statistics in nats, mean over channels.

    KL(a‖b) + KL(b‖a) of normal distributions with these means and the variances v = var + eps:

        ½·[ v_a/v_b + v_b/v_a - 2 + (μ_a - μ_b)²·(1/v_a + 1/v_b) ]

    At least 0; 0 for equal statistics; the order of the workers does not matter.
    """
    a, b = var_a.double() + eps, var_b.double() + eps
    spread = (a - b).square() / (a * b)  # v_a/v_b + v_b/v_a - 2 without its cancellation
    distance = (mean_a.double() - mean_b.double()).square() * (1 / a + 1 / b)
    return float((spread + distance).mean() / 2)


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values))


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else float("nan")
