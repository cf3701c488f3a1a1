"""Noise of a batch's statistics: the theory against loops, enumeration, simulation and known fields."""

from itertools import product
from math import pi, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg_brn.probes.noise import (
    ItemMoments,
    effective_sample_size,
    intraclass_correlation,
    measure_mean_noise,
    measure_variance_noise,
    predict_mean_noise,
    predict_variance_noise,
    predict_variance_noise_first_order,
)

NOISE = (predict_variance_noise, predict_variance_noise_first_order, predict_mean_noise)


def make_field(*shape: int, seed: int = 0) -> torch.Tensor:
    """Items of different means and spreads, skewed within."""
    random = np.random.default_rng(seed)
    items = (*shape[:2], *[1] * (len(shape) - 2))
    mean, scale = random.normal(size=items), random.gamma(2, size=items)
    return torch.from_numpy(mean + scale * random.gamma(1, size=shape))


def make_items(count: int, spread: float, seed: int) -> torch.Tensor:
    """(count, 1, 4, 4) whose means differ by `spread`; an item far from the others also has more energy."""
    random = np.random.default_rng(seed)
    mean = spread * (random.gamma(2, size=(count, 1, 1, 1)) - 2)
    scale = (0.3 + 0.5 * np.abs(mean)) * random.lognormal(sigma=0.4, size=mean.shape)
    return torch.from_numpy(mean + scale * random.normal(size=(count, 1, 4, 4)))


def make_smooth_fields(count: int, smoothing: float, size: int, seed: int) -> torch.Tensor:
    """(count, 1, size, size, size): white noise after a Gaussian filter that wraps around, variance 1."""
    frequency = np.fft.fftfreq(size)
    line = np.exp(-2 * (pi * smoothing * frequency) ** 2)
    response = line[:, None, None] * line[:, None] * line
    white = np.random.default_rng(seed).normal(size=(count, 1, size, size, size))
    smooth = np.fft.ifftn(np.fft.fftn(white, axes=(2, 3, 4)) * response, axes=(2, 3, 4)).real
    return torch.from_numpy(smooth / sqrt(np.square(response).mean()))


def batch_statistics(items: torch.Tensor, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and biased variances (n, C) of successive batches of (N, C, ...)."""
    batches = items.flatten(2).unflatten(0, (-1, batch_size)).transpose(1, 2).flatten(2)
    return batches.mean(2), batches.var(2, correction=0)


def test_moments_of_two_items_by_hand() -> None:
    moments = ItemMoments.of(torch.tensor([[[0.0, 2.0]], [[4.0, 6.0]]]))  # deviations from 3: -3, -1, 1, 3
    assert moments.voxels == 2
    assert moments.first.tolist() == [[1], [5]]
    assert moments.second.tolist() == [[1], [1]]
    assert moments.third.tolist() == [[0], [0]]
    assert moments.fourth.tolist() == [[1], [1]]
    assert moments.mean.tolist() == [3]
    assert moments.variance.tolist() == [5]
    assert moments.kurtosis.item() == pytest.approx(41 / 25)
    assert moments.mean_squares.tolist() == [[5], [5]]
    assert intraclass_correlation(moments).item() == pytest.approx(4 / 5)
    assert predict_mean_noise(moments, 2).item() == pytest.approx(sqrt(8 / 2 / 5))


@pytest.mark.parametrize("shape", [(5, 3, 7), (4, 2, 3, 5), (3, 2, 2, 3, 4)])
def test_moments_are_those_of_all_voxels(shape) -> None:
    x = make_field(*shape)
    values = x.transpose(0, 1).flatten(1).numpy()
    deviation = values - values.mean(1, keepdims=True)
    moments = ItemMoments.of(x)
    assert moments.voxels == x[0, 0].numel()
    np.testing.assert_allclose(moments.mean, values.mean(1), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, values.var(1), rtol=1e-12)
    expected = (deviation**4).mean(1) / values.var(1) ** 2
    np.testing.assert_allclose(moments.kurtosis, expected, rtol=1e-12)
    items = x.flatten(2).numpy()
    cubes = (items - items.mean(2, keepdims=True)) ** 3
    np.testing.assert_allclose(moments.third, cubes.mean(2), rtol=1e-9, atol=1e-12)


def test_a_large_mean_costs_no_accuracy() -> None:
    x = (make_field(6, 2, 4, 4, 4) * 2**20).round() / 2**20  # so that the shift below is exact
    near, far = ItemMoments.of(x), ItemMoments.of(x + 2.0**20)
    np.testing.assert_allclose(far.variance, near.variance, rtol=1e-9)
    np.testing.assert_allclose(far.kurtosis, near.kurtosis, rtol=1e-9)
    np.testing.assert_allclose(effective_sample_size(far), effective_sample_size(near), rtol=1e-8)
    np.testing.assert_allclose(predict_variance_noise(far, 2), predict_variance_noise(near, 2), rtol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_features_are_pooled_in_float64_without_gradient(dtype) -> None:
    x = make_field(3, 2, 4, 4).to(dtype).requires_grad_()
    moments, wide = ItemMoments.of(x), ItemMoments.of(x.double())
    assert moments.first.dtype == torch.float64
    assert not moments.first.requires_grad
    torch.testing.assert_close(moments.fourth, wide.fourth, rtol=0, atol=0)


def test_parts_are_pooled_in_order() -> None:
    x = make_field(6, 2, 3, 3)
    pooled = ItemMoments.concatenate([ItemMoments.of(x[:2]), ItemMoments.of(x[2:3]), ItemMoments.of(x[3:])])
    for name in ("first", "second", "third", "fourth"):
        torch.testing.assert_close(getattr(pooled, name), getattr(ItemMoments.of(x), name), rtol=0, atol=0)
    assert pooled.voxels == 9
    with pytest.raises(ValueError, match=r"\[4, 9\] voxels"):
        ItemMoments.concatenate([pooled, ItemMoments.of(x[..., :2, :2])])
    with pytest.raises(ValueError, match=r"\[\] voxels"):
        ItemMoments.concatenate([])


def effective_sample_size_by_loops(field: np.ndarray) -> float:
    """m/Σ w(h)·ρ(h) for (N, X, Y, Z), every pair of voxels looked at."""
    squares = (field - field.mean()) ** 2
    deviation = squares - squares.mean()
    shape = field.shape[1:]
    voxels = list(product(*map(range, shape)))
    pairs: dict[tuple[int, ...], list[float]] = {}
    for a, b in product(voxels, voxels):
        offset = tuple(np.subtract(b, a))
        pairs.setdefault(offset, []).extend(item[a] * item[b] for item in deviation)
    autocovariance = {offset: np.mean(products) for offset, products in pairs.items()}
    total = 0.0
    for offset, covariance in autocovariance.items():
        overlap = np.prod([1 - abs(h) / n for h, n in zip(offset, shape, strict=True)])
        total += overlap * covariance / autocovariance[0, 0, 0]
    return len(voxels) / total


def effective_sample_size_of_field(field: np.ndarray) -> np.ndarray:
    """The same for (N, C, *spatial), (C,), with all pairs summed by Fourier transforms."""
    spatial = tuple(range(2, field.ndim))
    over = (0, *spatial)
    squares = (field - field.mean(over, keepdims=True)) ** 2
    deviation = squares - squares.mean(over, keepdims=True)
    padded = [2 * size for size in field.shape[2:]]  # room for every offset without wrapping around
    spectrum = np.square(np.abs(np.fft.rfftn(deviation, s=padded, axes=spatial))).sum(0)
    # Sum over the voxel pairs h apart: m·w(h) times the autocovariance at h; h = 0 comes first.
    pairs = np.fft.irfftn(spectrum, s=padded, axes=[axis - 1 for axis in spatial]).reshape(field.shape[1], -1)
    return field[0, 0].size / (pairs / pairs[:, :1]).sum(1)


def test_effective_sample_size_three_ways() -> None:
    field = make_field(3, 2, 3, 2, 2)
    expected = [effective_sample_size_by_loops(field[:, channel].numpy()) for channel in range(2)]
    np.testing.assert_allclose(effective_sample_size(ItemMoments.of(field)), expected, rtol=1e-10)
    np.testing.assert_allclose(effective_sample_size_of_field(field.numpy()), expected, rtol=1e-10)


@settings(deadline=None)
@given(
    st.integers(2, 5),
    st.lists(st.integers(1, 5), min_size=1, max_size=3).filter(lambda size: np.prod(size) > 1),
    st.integers(0, 1000),
)
def test_moments_and_autocorrelation_agree(count, size, seed) -> None:
    field = make_field(count, 2, *size, seed=seed)
    by_moments = effective_sample_size(ItemMoments.of(field))
    np.testing.assert_allclose(effective_sample_size_of_field(field.numpy()), by_moments, rtol=1e-6)
    assert (by_moments >= 1 - 1e-9).all()


def test_constant_items_count_as_one_voxel_and_white_noise_as_all() -> None:
    random = np.random.default_rng(0)
    constant = torch.from_numpy(random.normal(size=(50, 1, 1, 1, 1))).expand(50, 1, 4, 4, 4)
    assert effective_sample_size(ItemMoments.of(constant)).item() == pytest.approx(1)
    white = torch.from_numpy(random.normal(size=(4000, 1, 4, 4, 4)))
    assert effective_sample_size(ItemMoments.of(white)).item() == pytest.approx(64, rel=0.05)


def test_smoothed_noise_of_32_voxels_a_side() -> None:
    """κ = 3; Σρ² over offsets is (s·√(2π))³, so theory has no free number: .0877 against a naive .0078."""
    exact = sqrt(2 * (2 * sqrt(2 * pi)) ** 3 / 32**3)
    assert exact == pytest.approx(0.0877, abs=5e-5)
    moments = ItemMoments.of(make_smooth_fields(150, 2, 32, seed=0))
    assert sqrt((moments.kurtosis.item() - 1) / 32**3) == pytest.approx(0.0078, abs=1e-4)
    assert predict_variance_noise_first_order(moments, 1).item() == pytest.approx(exact, rel=0.15)
    others = make_smooth_fields(150, 2, 32, seed=1)
    measured = measure_variance_noise(batch_statistics(others, 1)[1]).item()
    assert predict_variance_noise(moments, 1).item() == pytest.approx(measured, rel=0.15)


def test_first_order_is_the_formula() -> None:
    moments = ItemMoments.of(make_field(9, 3, 4, 4))
    expected = ((moments.kurtosis - 1) / (3 * effective_sample_size(moments))).sqrt()
    torch.testing.assert_close(predict_variance_noise_first_order(moments, 3), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
def test_variance_noise_is_that_of_all_possible_batches(batch_size) -> None:
    """Every batch of five items, drawn with replacement; copies of the items make N - 1 as good as N."""
    items = make_items(5, spread=2, seed=3)
    chosen = torch.tensor(list(product(range(5), repeat=batch_size))).flatten()
    means, variances = batch_statistics(items[chosen], batch_size)
    copies = ItemMoments.of(items.repeat(500, 1, 1, 1))
    exact = (variances.std(correction=0) / variances.mean()).item()
    assert predict_variance_noise(copies, batch_size).item() == pytest.approx(exact, rel=1e-3)
    exact = (means.std(correction=0) / copies.variance.sqrt()).item()
    assert predict_mean_noise(copies, batch_size).item() == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
@pytest.mark.parametrize("spread", [0.0, 0.5, 5.0])
def test_noise_of_other_items_is_predicted(batch_size, spread) -> None:
    moments = ItemMoments.of(make_items(5_000, spread, seed=0))
    means, variances = batch_statistics(make_items(80_000, spread, seed=1), batch_size)
    measured = measure_variance_noise(variances).item()
    assert predict_variance_noise(moments, batch_size).item() == pytest.approx(measured, rel=0.15)
    measured = measure_mean_noise(means, moments.variance.sqrt()).item()
    assert predict_mean_noise(moments, batch_size).item() == pytest.approx(measured, rel=0.05)


def test_items_that_differ_only_in_mean_have_quiet_variances_at_batch_size_1() -> None:
    """The first-order formula takes the means' spread for noise; from large batches it is right."""
    random = np.random.default_rng(0)
    items = torch.from_numpy(random.normal(size=(5000, 1, 64)) + 10 * random.normal(size=(5000, 1, 1)))
    moments = ItemMoments.of(items)
    assert predict_variance_noise(moments, 1).item() == pytest.approx(sqrt(2 / 63), rel=0.05)
    assert predict_variance_noise_first_order(moments, 1).item() > 1
    expected = predict_variance_noise_first_order(moments, 1000).item()
    assert predict_variance_noise(moments, 1000).item() == pytest.approx(expected, rel=2e-3)


def test_normal_items_of_one_voxel_have_the_noise_of_a_sample_variance() -> None:
    """The variance of B normal values has the relative error sqrt(2/(B - 1))."""
    moments = ItemMoments.of(torch.from_numpy(np.random.default_rng(0).normal(size=(20_000, 1, 1))))
    for batch_size in (2, 3, 8):
        expected = sqrt(2 / (batch_size - 1))
        assert predict_variance_noise(moments, batch_size).item() == pytest.approx(expected, rel=0.02)


def test_few_items_predict_without_bias() -> None:
    """Squared predictions from 4 items each, averaged: what N - 1 is for."""
    parts = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 20_000, 8)))
    noise = predict_mean_noise(ItemMoments.of(parts), 2).square() * ItemMoments.of(parts).variance
    assert noise.mean().item() == pytest.approx(1 / 16, rel=0.02)


def test_measured_noise_by_hand() -> None:
    noise = measure_variance_noise(torch.tensor([[1.0, 2.0], [3.0, 2.0]]))
    assert noise.tolist() == pytest.approx([sqrt(2) / 2, 0])
    noise = measure_mean_noise(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.tensor([2.0, 1.0]))
    assert noise.tolist() == pytest.approx([sqrt(2) / 2, 0])


def test_intraclass_correlation_lies_between_its_extremes() -> None:
    random = np.random.default_rng(0)
    between, within = random.normal(size=(2000, 1, 1)), random.normal(size=(2000, 1, 100))
    moments = [ItemMoments.of(torch.from_numpy(share * between + within)) for share in (0.0, 1.0)]
    assert intraclass_correlation(moments[0]).item() == pytest.approx(1 / 100, rel=0.1)
    assert intraclass_correlation(moments[1]).item() == pytest.approx(1.01 / 2.0, rel=0.1)
    assert intraclass_correlation(ItemMoments.of(torch.from_numpy(between))).item() == 1


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 0.1])
def test_constant_channels_are_nan(value) -> None:
    moments = ItemMoments.of(torch.full((7, 2, 3, 3, 3), value, dtype=torch.float64))
    assert moments.variance.tolist() == [0, 0]
    assert moments.mean.tolist() == [value, value]
    results = [moments.kurtosis, effective_sample_size(moments), intraclass_correlation(moments)]
    results += [predict(moments, batch_size) for predict in NOISE for batch_size in (1, 2)]
    assert all(result.isnan().all() for result in results)
    assert measure_variance_noise(torch.zeros(3, 2)).isnan().all()
    assert measure_mean_noise(torch.tensor([[1.0], [2.0]]), torch.zeros(1)).isnan().all()


def test_equal_items_have_no_noise_and_no_effective_size() -> None:
    moments = ItemMoments.of(make_field(1, 2, 3, 3).repeat(5, 1, 1, 1))
    assert effective_sample_size(moments).isnan().all()
    assert all((predict(moments, 2) == 0).all() for predict in NOISE)
    assert intraclass_correlation(moments).tolist() == [0, 0]


def test_one_item_or_one_batch_says_nothing_about_noise() -> None:
    moments = ItemMoments.of(make_field(1, 2, 3, 3))
    assert all(predict(moments, 1).isnan().all() for predict in NOISE)
    assert effective_sample_size(moments).isnan().all()
    assert intraclass_correlation(moments).isnan().all()
    assert measure_variance_noise(torch.ones(1, 2)).isnan().all()
    assert measure_mean_noise(torch.ones(1, 2), torch.ones(2)).isnan().all()


@pytest.mark.parametrize("predict", NOISE)
def test_a_batch_has_at_least_one_item(predict) -> None:
    with pytest.raises(ValueError, match="batch size 0 must be at least 1"):
        predict(ItemMoments.of(make_field(3, 1, 4)), 0)
