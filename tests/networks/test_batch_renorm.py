"""The layers: every number recomputed, and what they share with batch norm."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from medseg_brn.networks.batch_renorm import (
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    RenormObservation,
    compute_limits,
)
from medseg_brn.networks.normalization import set_renorm_step

AXES = (0, 2, 3, 4)


def make_batches(count: int, *, channels: int = 3, seed: int = 0) -> list[torch.Tensor]:
    """Batches whose means and spreads differ, so that r and d are neither 1 and 0 nor all clipped."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(2, channels, 3, 4, 5, generator=generator, dtype=torch.float64)
        * torch.rand(1, generator=generator, dtype=torch.float64).mul(3).add(0.3)
        + torch.randn(1, channels, 1, 1, 1, generator=generator, dtype=torch.float64)
        for _ in range(count)
    ]


def test_every_number_of_a_run_recomputed_in_numpy() -> None:
    schedule, r_max, d_max, momentum, eps = (2, 5, 8), 1.7, 0.6, 0.2, 1e-3
    layer = BatchRenorm3d(3, eps, momentum, r_max=r_max, d_max=d_max, schedule=schedule, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        layer.bias.copy_(torch.tensor([-1.0, 0.0, 3.0]))
    weight, bias = (p.detach().numpy().reshape(1, 3, 1, 1, 1) for p in (layer.weight, layer.bias))
    mean = var = np.zeros(3)
    clipped = 0
    for step, batch in enumerate(make_batches(12)):
        x = batch.numpy()
        batch_mean, batch_var = x.mean(AXES), x.var(AXES)
        if step == 0:
            mean, var = batch_mean, batch_var
        r_limit = np.interp(step, [schedule[0], schedule[2]], [1, r_max])
        d_limit = np.interp(step, [schedule[0], schedule[1]], [0, d_max])
        raw_r = np.sqrt(batch_var + eps) / np.sqrt(var + eps)
        raw_d = (batch_mean - mean) / np.sqrt(var + eps)
        r, d = np.clip(raw_r, 1 / r_limit, r_limit), np.clip(raw_d, -d_limit, d_limit)
        clipped += int((r != raw_r).sum())
        shaped = [v.reshape(1, 3, 1, 1, 1) for v in (batch_mean, batch_var, r, d)]
        expected = weight * ((x - shaped[0]) / np.sqrt(shaped[1] + eps) * shaped[2] + shaped[3]) + bias
        assert layer.limits() == pytest.approx((r_limit, d_limit))
        np.testing.assert_allclose(layer(batch).detach(), expected, rtol=1e-9, atol=1e-9)
        mean, var = mean + momentum * (batch_mean - mean), var + momentum * (batch_var - var)
        np.testing.assert_allclose(layer.running_mean, mean, rtol=1e-9)
        np.testing.assert_allclose(layer.running_var, var, rtol=1e-9)
        assert layer.num_batches_tracked == step + 1
    assert 0 < clipped < 36  # the run met both cases


class OnDevice(BatchRenorm3d):
    """Never reads a number back, as on a GPU."""

    def _step(self) -> torch.Tensor:
        return self.num_batches_tracked.to(self.running_mean.dtype)


def test_without_reading_numbers_back_the_results_are_the_same() -> None:
    options = {"momentum": 0.3, "r_max": 1.3, "d_max": 0.4, "schedule": (1, 3, 5), "dtype": torch.float64}
    layer, twin = OnDevice(3, **options), BatchRenorm3d(3, **options)
    for batch in make_batches(8):
        torch.testing.assert_close(layer(batch), twin(batch), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.state_dict(), twin.state_dict(), rtol=1e-12, atol=1e-12)


def test_limits_by_hand() -> None:
    layer = BatchRenorm3d(1, r_max=3.0, d_max=5.0, schedule=(10, 20, 30))
    seen = {}
    for step in (0, 10, 15, 20, 25, 30, 1000):
        set_renorm_step(layer, step)
        seen[step] = layer.limits()
    assert seen == {
        0: (1.0, 0.0),
        10: (1.0, 0.0),
        15: (1.5, 2.5),
        20: (2.0, 5.0),
        25: (2.5, 5.0),
        30: (3.0, 5.0),
        1000: (3.0, 5.0),
    }


def test_a_schedule_of_zeros_means_the_final_limits_at_once() -> None:
    assert BatchRenorm3d(1, schedule=(0, 0, 0)).limits() == (3.0, 5.0)


@given(
    step=st.integers(0, 60_000),
    ends=st.lists(st.integers(0, 40_000), min_size=3, max_size=3),
    r_max=st.floats(1, 10),
    d_max=st.floats(0, 10),
)
def test_limits_are_within_range_and_the_same_from_a_tensor(
    step: int, ends: list[int], r_max: float, d_max: float
) -> None:
    schedule = (min(ends), ends[1], ends[2])
    limits = compute_limits(step, r_max, d_max, schedule)
    assert 1 <= limits[0] <= r_max + 1e-9 and 0 <= limits[1] <= d_max
    tensors = compute_limits(torch.tensor(step, dtype=torch.float64), r_max, d_max, schedule)
    assert [float(limit) for limit in tensors] == pytest.approx(list(limits))


def test_first_batch_initialises_statistics_and_is_normalized_as_by_batch_norm() -> None:
    (batch,) = make_batches(1)
    layer = BatchRenorm3d(3, schedule=(0, 0, 0), dtype=torch.float64)
    expected = nn.BatchNorm3d(3, dtype=torch.float64)(batch)
    torch.testing.assert_close(layer(batch), expected)
    np.testing.assert_allclose(layer.running_mean, batch.numpy().mean(AXES))
    np.testing.assert_allclose(layer.running_var, batch.numpy().var(AXES))


def test_within_the_limits_training_and_evaluation_are_one_function() -> None:
    first, second = make_batches(2)
    layer = BatchRenorm3d(3, r_max=100.0, d_max=100.0, schedule=(0, 0, 0), dtype=torch.float64)
    layer(first)
    expected = copy.deepcopy(layer).eval()(second)
    torch.testing.assert_close(layer(second), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_with_limits_of_one_and_zero_it_is_batch_norm(dtype: torch.dtype) -> None:
    layer, reference = BatchRenorm3d(3), nn.BatchNorm3d(3)
    if dtype == torch.float64:
        layer, reference = layer.double(), reference.double()
    for batch in make_batches(4):
        ours, theirs = (batch.to(dtype).requires_grad_() for _ in range(2))
        expected = reference(theirs)
        actual = layer(ours)
        torch.testing.assert_close(actual, expected)
        actual.float().square().sum().backward()
        expected.float().square().sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad)
        torch.testing.assert_close(layer.weight.grad, reference.weight.grad)
        torch.testing.assert_close(layer.bias.grad, reference.bias.grad)


def test_gradcheck_through_the_layer_where_corrections_are_constant() -> None:
    # Far from the running statistics both corrections sit at their limits, so r and d do not move with x.
    layer = BatchRenorm3d(2, r_max=1.5, d_max=0.5, schedule=(0, 0, 0), momentum=0.0, dtype=torch.float64)
    layer(torch.randn(2, 2, 3, 3, 3, dtype=torch.float64) * 0.01)
    x = (torch.randn(2, 2, 2, 2, 2, dtype=torch.float64) * 5 + 40).requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))


def test_evaluation_is_batch_norm_bit_for_bit_and_state_dicts_interchange() -> None:
    reference = nn.BatchNorm3d(3)
    nn.init.normal_(reference.weight)
    for batch in make_batches(3):
        reference(batch.float())
    layer = BatchRenorm3d(3)
    layer.load_state_dict(reference.state_dict(), strict=True)
    x = make_batches(1, seed=9)[0].float()
    assert torch.equal(layer.eval()(x), reference.eval()(x))
    back = nn.BatchNorm3d(3)
    back.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(back.eval()(x), reference(x))
    assert list(layer.state_dict()) == list(reference.state_dict())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (BatchRenorm1d(2), (4, 2)),
        (BatchRenorm1d(2), (4, 2, 5)),
        (BatchRenorm2d(2), (4, 2, 5, 3)),
        (BatchRenorm3d(2), (4, 2, 5, 3, 2)),
    ],
)
def test_each_dimension_normalizes_its_own_shapes_and_refuses_others(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    y = layer(torch.randn(shape) * 3 + 2).detach().numpy()
    axes = tuple(axis for axis in range(len(shape)) if axis != 1)
    np.testing.assert_allclose(y.mean(axes), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(axes), 1, atol=1e-3)
    with pytest.raises(ValueError, match="6D input"):
        layer(torch.zeros(2, 2, 2, 2, 2, 2))


def test_one_value_per_channel_is_refused_in_training_only() -> None:
    layer = BatchRenorm3d(2)
    x = torch.zeros(1, 2, 1, 1, 1)
    with pytest.raises(ValueError, match=r"more than 1 value per channel when training.*\(1, 2, 1, 1, 1\)"):
        layer(x)
    assert layer.eval()(x).shape == x.shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r_max": 0.5}, r"r_max 0\.5 must be at least 1"),
        ({"d_max": -1.0}, r"d_max -1\.0 at least 0"),
        ({"schedule": (10, 5, 20)}, r"schedule \(10, 5, 20\)"),
    ],
)
def test_impossible_limits_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchRenorm3d(2, **options)


def test_gradient_accumulation_and_repeated_forwards_before_one_backward() -> None:
    first, *batches = make_batches(4)
    layer = BatchRenorm3d(3, schedule=(0, 0, 0), momentum=0.3, dtype=torch.float64)
    layer(first)
    apart, together = copy.deepcopy(layer), copy.deepcopy(layer)
    for batch in batches:
        apart(batch).pow(3).sum().backward()
    sum(together(batch).pow(3).sum() for batch in batches).backward()
    torch.testing.assert_close(apart.weight.grad, together.weight.grad)
    torch.testing.assert_close(apart.bias.grad, together.bias.grad)
    torch.testing.assert_close(apart.state_dict(), together.state_dict())


def test_observer_sees_what_was_applied_and_how_much_was_clipped() -> None:
    layer = BatchRenorm3d(2, r_max=2.0, d_max=1.0, schedule=(0, 0, 0), eps=0.0, dtype=torch.float64)
    unit = torch.tensor([-1.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1, 1).expand(2, 2, 1, 1, 1)
    layer(unit)  # statistics: mean 0, variance 1
    seen: list[RenormObservation] = []
    layer.observer = seen.append
    scale = torch.tensor([4.0, 1.5], dtype=torch.float64).view(1, 2, 1, 1, 1)
    shift = torch.tensor([0.5, -3.0], dtype=torch.float64).view(1, 2, 1, 1, 1)
    layer(unit * scale + shift)
    (observation,) = seen
    assert observation.r_raw.tolist() == [4.0, 1.5] and observation.r.tolist() == [2.0, 1.5]
    assert observation.d_raw.tolist() == [0.5, -3.0] and observation.d.tolist() == [0.5, -1.0]
    assert observation.mean.tolist() == [0.5, -3.0] and observation.var.tolist() == [16.0, 2.25]
    assert observation.r_clipped == observation.d_clipped == 0.5
    layer.eval()(unit)
    assert len(seen) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_network_keeps_the_layer_s_numbers_in_float32(dtype: torch.dtype) -> None:
    network = nn.Sequential(nn.Conv3d(1, 4, 1), BatchRenorm3d(4)).to(dtype)
    layer = network[1]
    assert network[0].weight.dtype == dtype
    assert layer.weight.dtype == layer.running_var.dtype == torch.float32
    y = network(torch.randn(2, 1, 4, 4, 4, dtype=dtype))
    y.float().square().sum().backward()
    assert y.dtype == dtype and network[0].weight.grad.dtype == dtype
    assert network.eval()(torch.randn(2, 1, 4, 4, 4, dtype=dtype)).dtype == dtype
    assert BatchRenorm3d(4, dtype=dtype).running_mean.dtype == torch.float32


def test_autocast_trains_with_float32_statistics() -> None:
    network = nn.Sequential(nn.Conv3d(1, 4, 3), BatchRenorm3d(4), nn.ReLU(inplace=True))
    with torch.autocast("cpu", torch.bfloat16):
        y = network(torch.randn(2, 1, 6, 6, 6))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert network[1].running_mean.dtype == network[1].weight.grad.dtype == torch.float32


def test_copies_and_pickles_after_training() -> None:
    layer = BatchRenorm3d(3, dtype=torch.float64)
    (batch,) = make_batches(1)
    with torch.no_grad():
        layer(batch)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):  # noqa: S301 (made on this line)
        torch.testing.assert_close(twin.state_dict(), layer.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_compiled_training_has_no_graph_break_and_equals_eager(memory_format: torch.memory_format) -> None:
    network = nn.Sequential(nn.Conv3d(1, 4, 3), BatchRenorm3d(4, schedule=(1, 2, 3), momentum=0.3), nn.Tanh())
    network.to(memory_format=memory_format)
    twin = copy.deepcopy(network)
    compiled = torch.compile(network, fullgraph=True)
    for step in range(5):
        x = (torch.randn(2, 1, 6, 6, 6) * (step + 1) + step).to(memory_format=memory_format)
        actual, expected = compiled(x), twin(x)
        torch.testing.assert_close(actual, expected)
        actual.pow(3).sum().backward()
        expected.pow(3).sum().backward()
        torch.testing.assert_close(network.state_dict(), twin.state_dict())
        for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
