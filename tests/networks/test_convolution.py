import numpy as np
import pytest
import torch
from torch import nn

from medseg_brn.networks.convolution import Conv3d, WeightStandardizedConv3d


def _standardize(weight: np.ndarray, eps: float) -> np.ndarray:
    """The formula, filter by filter."""
    out = np.empty_like(weight)
    for index, one in enumerate(weight):
        out[index] = (one - one.mean()) / np.sqrt(one.size * one.var() + eps)
    return out


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(("in_channels", "kernel"), [(1, (3, 3, 3)), (4, (3, 1, 5)), (4, (1, 1, 1))])
def test_weights_equal_the_formula_and_keep_their_memory_format(memory_format, in_channels, kernel):
    conv = WeightStandardizedConv3d(in_channels, 5, kernel, bias=False).to(memory_format=memory_format)
    with torch.no_grad():
        conv.weight.add_(0.3)  # a mean to be taken away
    expected = _standardize(conv.weight.detach().double().numpy(), conv.eps)
    standardized = conv.standardized_weight()
    np.testing.assert_allclose(standardized.detach().numpy(), expected, atol=1e-6)
    assert standardized.is_contiguous(memory_format=memory_format)
    if in_channels > 1 and kernel != (1, 1, 1):
        assert standardized.stride() == conv.weight.stride()


def test_filters_have_mean_0_and_variance_1_over_fan_in():
    conv = WeightStandardizedConv3d(8, 4, 3, bias=False)
    filters = conv.standardized_weight().flatten(1)
    torch.testing.assert_close(filters.mean(1), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(filters.var(1, correction=0) * 8 * 27, torch.ones(4), atol=1e-3, rtol=0)


def test_a_filter_s_scale_and_offset_do_not_matter():
    conv = WeightStandardizedConv3d(3, 2, 3, bias=False)
    before = conv.standardized_weight().detach()
    with torch.no_grad():
        conv.weight.mul_(7).add_(2)
    torch.testing.assert_close(conv.standardized_weight().detach(), before, atol=1e-4, rtol=0)


def test_it_convolves_with_the_standardized_weights():
    conv = WeightStandardizedConv3d(2, 3, 3, stride=2, padding=1)
    plain = nn.Conv3d(2, 3, 3, stride=2, padding=1)
    plain.load_state_dict({"weight": conv.standardized_weight().detach(), "bias": conv.bias.detach()})
    image = torch.randn(2, 2, 6, 5, 4)
    torch.testing.assert_close(conv(image), plain(image))


def test_only_a_convolution_with_a_bias_has_a_gain():
    assert WeightStandardizedConv3d(2, 3, 3, bias=False).gain is None
    conv = WeightStandardizedConv3d(2, 3, 3)
    with torch.no_grad():
        conv.gain.copy_(torch.tensor([1.0, 2.0, 0.0]))
    norms = conv.standardized_weight().flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.tensor([1.0, 2.0, 0.0]), atol=1e-4, rtol=0)


def test_gradients_are_right():
    conv = WeightStandardizedConv3d(2, 2, (3, 1, 1), padding=(1, 0, 0)).double()
    image = torch.randn(1, 2, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    weight = conv.weight.detach().clone().requires_grad_()

    def convolve(image, weight):
        return torch.func.functional_call(conv, {"weight": weight}, image)

    assert torch.autograd.gradcheck(convolve, (image, weight))


@pytest.mark.parametrize("make", [Conv3d, WeightStandardizedConv3d])
@pytest.mark.parametrize(("length", "kernel"), [(1, 3), (2, 3), (3, 3), (2, 5), (4, 5), (6, 5)])
def test_gradients_under_autocast_are_those_of_fp32_within_bf16_precision(make, length, kernel):
    torch.manual_seed(0)
    conv = make(16, 16, kernel, padding=kernel // 2, bias=False).to(memory_format=torch.channels_last_3d)
    features = torch.randn(2, 16, length, 4, 4).to(memory_format=torch.channels_last_3d)
    upstream = torch.randn(2, 16, length, 4, 4)
    expected = torch.autograd.grad(conv(features), conv.weight, upstream)[0]
    for _ in range(5):
        # What a kernel wrongly reads of freed memory shows where that memory held large values.
        spoilt = [torch.full((2**size,), 1e30) for size in range(4, 18)]
        del spoilt
        with torch.autocast("cpu", torch.bfloat16):
            convolved = conv(features)
        assert convolved.dtype == torch.bfloat16
        found = torch.autograd.grad(convolved, conv.weight, upstream.bfloat16())[0]
        assert (found - expected).abs().max() < 0.02 * expected.abs().max()
