"""The operator against NumPy, against autograd through element-wise code, and against batch norm."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medseg_brn.networks.operator import batch_renorm, batch_statistics, clip_corrections, compute_corrections

EPS = 1e-5
SHAPE = (2, 3, 4, 5, 2)


def make_inputs(
    seed: int, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """x, γ, β, r, d with nothing special about them."""
    generator = torch.Generator().manual_seed(seed)
    channels = shape[1]

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=dtype)

    x = draw(*shape) * 2 + 1
    return [x, draw(channels) + 1, draw(channels), draw(channels).exp(), draw(channels)]


def elementwise(x: Tensor, weight: Tensor, bias: Tensor, r: Tensor, d: Tensor) -> Tensor:
    """The formula as it stands, with μ_B and σ_B part of the graph."""
    axes = [axis for axis in range(x.dim()) if axis != 1]
    mean = x.mean(axes, keepdim=True)
    std = (x.var(axes, correction=0, keepdim=True) + EPS).sqrt()
    weight, bias, r, d = (vector.view(1, -1, *[1] * (x.dim() - 2)) for vector in (weight, bias, r, d))
    return weight * ((x - mean) / std * r + d) + bias


def apply(x: Tensor, weight: Tensor | None, bias: Tensor | None, r: Tensor, d: Tensor) -> Tensor:
    mean, var = batch_statistics(x)
    return batch_renorm(x, weight, bias, mean, var, r, d, EPS)


def test_statistics_are_numpy_s() -> None:
    x = make_inputs(0)[0]
    mean, var = batch_statistics(x)
    np.testing.assert_allclose(mean, x.numpy().mean((0, 2, 3, 4)), rtol=1e-12)
    np.testing.assert_allclose(var, x.numpy().var((0, 2, 3, 4)), rtol=1e-12)


def test_corrections_by_hand() -> None:
    # σ_B² = 4 and 1, σ² = 1 and 4; means 3 and 0 against 1 and 1.
    batch = torch.tensor([3.0, 0.0]), torch.tensor([4.0, 1.0])
    running = torch.tensor([1.0, 1.0]), torch.tensor([1.0, 4.0])
    r, d = compute_corrections(*batch, *running, eps=0.0)
    assert r.tolist() == [2.0, 0.5]
    assert d.tolist() == [2.0, -0.5]


@given(
    raw_r=st.lists(st.floats(2**-10, 2**10, width=32), min_size=1, max_size=5),
    raw_d=st.floats(-100, 100, width=32),
    r_max=st.floats(1, 10, width=32),
    d_max=st.floats(0, 10, width=32),
)
def test_clipped_corrections_stay_within_their_limits(
    raw_r: list[float], raw_d: float, r_max: float, d_max: float
) -> None:
    r, d = clip_corrections(torch.tensor(raw_r), torch.tensor([raw_d]), r_max, d_max)
    np.testing.assert_allclose(r, np.clip(np.float32(raw_r), 1 / r_max, r_max), rtol=1e-6)
    np.testing.assert_allclose(d, np.clip(np.float32([raw_d]), -d_max, d_max), rtol=1e-6)


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**31),
    spatial=st.lists(st.integers(1, 5), min_size=0, max_size=3),
    batch=st.integers(2, 4),
    channels=st.integers(1, 5),
)
def test_output_and_gradients_equal_elementwise_autograd(
    seed: int, spatial: list[int], batch: int, channels: int
) -> None:
    x, weight, bias, r, d = make_inputs(seed, (batch, channels, *spatial))
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    expected = elementwise(*leaves, r, d)
    actual = apply(*leaves, r, d)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        torch.autograd.grad(actual, leaves, grad),
        torch.autograd.grad(expected, leaves, grad),
        rtol=1e-6,
        atol=1e-6,
    )


def test_gradcheck_and_second_derivatives() -> None:
    *leaves, r, d = make_inputs(1, (2, 2, 3, 2, 1))
    leaves = [tensor.requires_grad_() for tensor in leaves]
    assert torch.autograd.gradcheck(lambda *args: apply(*args, r, d), leaves)
    assert torch.autograd.gradgradcheck(lambda *args: apply(*args, r, d), leaves)


@pytest.mark.parametrize(("affine_weight", "affine_bias"), [(False, False), (True, False), (False, True)])
def test_absent_weight_is_one_and_absent_bias_is_zero(affine_weight: bool, affine_bias: bool) -> None:
    x, weight, bias, r, d = make_inputs(2)
    x.requires_grad_()
    actual = apply(x, weight if affine_weight else None, bias if affine_bias else None, r, d)
    ones, zeros = torch.ones_like(weight), torch.zeros_like(bias)
    expected = elementwise(x, weight if affine_weight else ones, bias if affine_bias else zeros, r, d)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual.square().sum(), x), torch.autograd.grad(expected.square().sum(), x)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_keep_float32_statistics(dtype: torch.dtype) -> None:
    x, weight, bias, r, d = make_inputs(3, (2, 3, 8, 9, 7), torch.float32)
    x = (x + 30).to(dtype).requires_grad_()  # a large mean: narrow statistics would lose the variance
    mean, var = batch_statistics(x)
    assert mean.dtype == var.dtype == torch.float32
    torch.testing.assert_close(var.double(), x.double().var((0, 2, 3, 4), correction=0), rtol=1e-4, atol=0)
    weight.requires_grad_()
    y = batch_renorm(x, weight, bias, mean, var, r, d, EPS)
    assert y.dtype == dtype
    expected = elementwise(x.double(), weight.double(), bias.double(), r.double(), d.double())
    torch.testing.assert_close(y.double(), expected, rtol=2e-2, atol=2e-2)
    y.float().square().sum().backward()
    assert x.grad is not None and x.grad.dtype == dtype
    assert weight.grad is not None and weight.grad.dtype == torch.float32


FORMATS = [
    ((2, 3, 4, 5, 6), torch.channels_last_3d),
    ((2, 3, 4, 5), torch.channels_last),
    ((2, 3, 4, 5, 6), torch.contiguous_format),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "memory_format"), FORMATS)
@pytest.mark.parametrize("grad_in_same_format", [True, False])
def test_memory_format_is_kept_forward_and_backward(
    shape: tuple[int, ...], memory_format: torch.memory_format, dtype: torch.dtype, grad_in_same_format: bool
) -> None:
    x, weight, bias, r, d = make_inputs(4, shape, torch.float32)
    x = x.to(dtype)
    grad = torch.randn(shape).to(dtype)
    arranged = x.clone(memory_format=memory_format).requires_grad_()
    y = apply(arranged, weight, bias, r, d)
    y.backward(grad.to(memory_format=memory_format) if grad_in_same_format else grad)
    assert arranged.grad is not None
    assert y.is_contiguous(memory_format=memory_format)
    assert arranged.grad.is_contiguous(memory_format=memory_format)
    plain = x.clone().requires_grad_()
    expected = apply(plain, weight, bias, r, d)
    expected.backward(grad)
    torch.testing.assert_close(y, expected, check_stride=False)
    torch.testing.assert_close(arranged.grad, plain.grad, check_stride=False)


def test_input_that_is_a_slice_of_a_larger_tensor() -> None:
    whole, weight, bias, r, d = make_inputs(5, (4, 3, 6, 6, 6))
    x = whole[::2, :, 1:5, :, ::2]
    torch.testing.assert_close(apply(x, weight, bias, r, d), elementwise(x, weight, bias, r, d))


def test_only_the_input_is_kept_for_backward() -> None:
    x, weight, bias, r, d = make_inputs(6, (2, 4, 16, 16, 16))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
    ):
        apply(x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), r, d)
    large = [tensor for tensor in kept if tensor.numel() >= x.numel()]
    assert [tensor.data_ptr() for tensor in large] == [x.data_ptr()]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_custom_operators_fulfil_torch_s_contract(dtype: torch.dtype) -> None:
    x, weight, bias, r, d = make_inputs(7, dtype=torch.float32)
    x = x.to(dtype, memory_format=torch.channels_last_3d)
    mean, var = batch_statistics(x)
    operators = torch.ops.medseg_brn
    torch.library.opcheck(operators.batch_statistics.default, (x,))
    leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    torch.library.opcheck(operators.batch_renorm.default, (*leaves, mean, var, r, d, EPS))
    grad = torch.randn_like(x)
    torch.library.opcheck(
        operators.batch_renorm_backward.default, (grad, x.detach(), weight.detach(), mean, var, r, d, EPS)
    )
