"""How noisy a batch's mean and variance are: predicted from moments of single items, and measured.

An item is one patch of a batch at one layer's input; all items are equally large. The mean μ and the
variance σ² of the population are those over all voxels of all items, per channel. Batches are taken to be
drawn from independent items; the voxels of an item may depend on each other as they like, because an item
enters only through its own moments. Behind a layer that normalizes by the batch, an item's features depend
on its batchmates: there the predictions hold for features computed with fixed statistics.

Where a channel has no spread (variance 0), relative noise has no meaning and is NaN; so is every noise
predicted from one item or measured on one batch. Finite features give no infinite result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class ItemMoments:
    """Moments of each item's voxels, (N, C) float64 for N items and C channels.

    The second to fourth are about the item's own mean, not about 0: means of x², x³, x⁴ of features whose
    mean is large against their spread would cancel to nothing, while from these the moments about any
    other centre follow by adding terms of one size.
    """

    first: Tensor
    """x̄_i, the item's mean."""
    second: Tensor
    """s_i, mean of (x - x̄_i)²: the item's biased variance."""
    third: Tensor
    """Mean of (x - x̄_i)³."""
    fourth: Tensor
    """Mean of (x - x̄_i)⁴."""
    voxels: int
    """Voxels of one item."""

    @classmethod
    def of(cls, x: Tensor) -> Self:
        """The moments of the N items of (N, C, *spatial), any floating dtype, without gradient."""
        items = [_moments_of_item(item.flatten(1)) for item in x.detach()]  # one at a time: float64 is large
        first, second, third, fourth = torch.stack(items, 1)
        return cls(first, second, third, fourth, x[0, 0].numel())

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The items of all parts, in order.

        Raises:
            ValueError: no parts, or items of different sizes.
        """
        sizes = sorted({part.voxels for part in parts})
        if len(sizes) != 1:
            raise ValueError(f"items of {sizes} voxels cannot be pooled; give items of one size")
        return cls(
            torch.cat([part.first for part in parts]),
            torch.cat([part.second for part in parts]),
            torch.cat([part.third for part in parts]),
            torch.cat([part.fourth for part in parts]),
            sizes[0],
        )

    @property
    def mean(self) -> Tensor:
        """μ, (C,), over all voxels of all items."""
        return _mean(self.first, 0)

    @property
    def variance(self) -> Tensor:
        """σ², (C,), biased, over all voxels of all items: within items plus between their means."""
        return self.mean_squares.mean(0)

    @property
    def kurtosis(self) -> Tensor:
        """κ = E(x - μ)⁴/σ⁴, (C,), at least 1, 3 for a normal distribution; NaN where σ is 0."""
        offset = self.first - self.mean
        fourth = self.fourth + 4 * self.third * offset + 6 * self.second * offset**2 + offset**4
        return _ratio(fourth.mean(0), self.variance.square())

    @property
    def mean_squares(self) -> Tensor:
        """ū_i, (N, C): each item's mean of u = (x - μ)²."""
        return self.second + (self.first - self.mean).square()


def effective_sample_size(moments: ItemMoments) -> Tensor:
    """m_eff, (C,): the number of independent voxels whose mean square is as noisy as that of one item.

        m_eff = m / Σ_h w(h)·ρ_sq(h) = Var(u over voxels) / Var(ū over items),    u = (x - μ)²

    with m voxels, the autocorrelation ρ_sq of u about its mean over all items, at offset h, and the share
    w(h) = Π(1 - |h_k|/n_k) of voxels that have a neighbour at h. The two are equal because the sum of
    w·ρ over all h adds up the square of each item's deviation (Wiener-Khinchin at frequency 0). Both
    variances are biased: the items given are the population, which takes many items where m_eff is large.

    Returns:
        (C,) float64, at least 1; NaN for one item, a constant channel, or items of equal ū (infinite m_eff).
    """
    if len(moments.first) < 2:
        return torch.full_like(moments.mean, torch.nan)
    var_of_squares = (moments.kurtosis - 1) * moments.variance.square()
    return _ratio(var_of_squares, _mean_square_deviation(moments.mean_squares))


def predict_variance_noise(moments: ItemMoments, batch_size: int) -> Tensor:
    """Relative standard error of the batch variance, sd(σ_B²)/E[σ_B²], (C,), for batches of B items.

    Exact for independent items, however much their means differ. With b_i = x̄_i - μ, τ² = Var(b),

        σ_B² = mean(s_i + b_i²) - mean(b_i)² = (1/B) Σ_i e_i - (1/B²) Σ_{i≠j} b_i·b_j,
        e_i = s_i + (1 - 1/B)·b_i²

    A product of two different b is uncorrelated with any other, and with every e; hence

        E[σ_B²] = E[e],    Var(σ_B²) = Var(e)/B + 2(B - 1)·τ⁴/B³

    At B = 1 only the items' own variances count; for large B it is the first-order formula. The moments
    of e and b are estimated from the N items with N - 1 degrees of freedom, μ being estimated too.

    Args:
        moments: of at least 2 items; the relative error of the result is about 1/sqrt(2N), and more where
            few items hold much of the variance.
        batch_size: items B in a batch.

    Returns:
        (C,) float64, at least 0; NaN for one item, and where E[σ_B²] is 0 (at B = 1, constant items).

    Raises:
        ValueError: batch size below 1.
    """
    _check_batch_size(batch_size)
    between = _sample_variance(moments.first)  # τ²
    count = len(moments.first)
    correction = count / max(count - 1, 1)  # makes τ² the mean of b²
    offset_squares = (moments.first - moments.mean).square() * correction
    energy = moments.second + (1 - 1 / batch_size) * offset_squares  # e
    variance = _sample_variance(energy) / batch_size
    variance = variance + 2 * (batch_size - 1) * between.square() / batch_size**3
    return _ratio(variance.sqrt(), energy.mean(0))


def predict_variance_noise_first_order(moments: ItemMoments, batch_size: int) -> Tensor:
    """The textbook's relative standard error of σ_B², sqrt((κ - 1)/(B·m_eff)), (C,).

    It takes the variance about μ instead of the batch's own mean: wrong, either way, at small B where the
    items' means differ. See `effective_sample_size` and `predict_variance_noise`.

    Returns:
        (C,) float64, at least 0; NaN for one item or a constant channel.

    Raises:
        ValueError: batch size below 1.
    """
    _check_batch_size(batch_size)
    if len(moments.first) < 2:
        return torch.full_like(moments.mean, torch.nan)
    # (κ - 1)/m_eff = Var(ū)/σ⁴, which also holds where m_eff is infinite.
    return _ratio(_mean_square_deviation(moments.mean_squares).div(batch_size).sqrt(), moments.variance)


def measure_variance_noise(batch_variances: Tensor) -> Tensor:
    """Relative standard error sd(σ_B²)/mean(σ_B²), (C,), of the variances (n, C) of n batches.

    Returns:
        (C,) float64, at least 0; NaN for one batch or a channel whose variances are 0.
    """
    variances = batch_variances.double()
    return _ratio(_sample_variance(variances).sqrt(), variances.mean(0))


def predict_mean_noise(moments: ItemMoments, batch_size: int) -> Tensor:
    """Standard deviation of the batch mean μ_B of B independent items in units of σ, (C,).

        Var(μ_B) = Var(x̄_i)/B = τ²/B + σ_w²/m_eff

    The variance of the items' means holds both terms: τ², by which the items' expected means differ, and
    the noise of a mean over correlated voxels within one item, σ_w²/m_eff for the B·m voxels of the batch
    (m_eff here that of x, not of its square). One sample per item cannot tell them apart, and need not.

    Returns:
        (C,) float64, at least 0 (0 where all items have the same mean); NaN for one item or a constant
        channel.

    Raises:
        ValueError: batch size below 1.
    """
    _check_batch_size(batch_size)
    return _ratio((_sample_variance(moments.first) / batch_size).sqrt(), moments.variance.sqrt())


def measure_mean_noise(batch_means: Tensor, population_sd: Tensor) -> Tensor:
    """Standard deviation of the means (n, C) of n batches in units of the population's (C,).

    Returns:
        (C,) float64, at least 0; NaN for one batch or a population_sd of 0.
    """
    return _ratio(_sample_variance(batch_means.double()).sqrt(), population_sd.double())


def intraclass_correlation(moments: ItemMoments) -> Tensor:
    """τ²/(τ² + σ_w²), (C,): the share of the population's variance that lies between the items' means.

    τ² is the biased variance of the items' means and σ_w² the mean variance within items; they add up to
    σ². 0: every item has the same mean; 1: every item is constant. Independent voxels give about 1/m.

    Returns:
        (C,) float64 in [0, 1]; NaN for one item or a constant channel.
    """
    if len(moments.first) < 2:
        return torch.full_like(moments.mean, torch.nan)
    between = _mean_square_deviation(moments.first)
    return _ratio(between, between + moments.second.mean(0))


def _moments_of_item(x: Tensor) -> Tensor:
    """The four moments (4, C) of (C, voxels)."""
    x = x.double()
    mean = _mean(x, 1)
    x = x - mean.unsqueeze(1)
    squares = x.square()
    return torch.stack([mean, squares.mean(1), (squares * x).mean(1), squares.square().mean(1)])


def _mean(x: Tensor, dim: int) -> Tensor:
    """The mean as seen from the first value: of equal values exactly that value, so no spread appears."""
    first = x.narrow(dim, 0, 1)
    return ((x - first).mean(dim, keepdim=True) + first).squeeze(dim)


def _mean_square_deviation(x: Tensor) -> Tensor:
    """Biased variance (C,) of (N, C); exactly 0 where the values are equal."""
    return (x - _mean(x, 0)).square().mean(0)


def _sample_variance(x: Tensor) -> Tensor:
    """Unbiased variance (C,) of (n, C); NaN for n = 1."""
    if len(x) < 2:
        return torch.full_like(x.sum(0), torch.nan)
    return _mean_square_deviation(x) * (len(x) / (len(x) - 1))


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient; NaN where the denominator is not positive."""
    return torch.where(denominator > 0, numerator / denominator, torch.nan)


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch size {batch_size} must be at least 1")
