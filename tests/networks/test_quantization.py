"""Quantized layers against integers computed by NumPy, and quantized networks against the float ones."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from medseg_brn.errors import ConfigError
from medseg_brn.networks.folding import fold
from medseg_brn.networks.quantization import check_quantizable, measure_ranges, quantize
from medseg_brn.networks.quantized_layers import (
    SLAB,
    QuantizedConv3d,
    QuantizedStem,
    QuantizedUpsampling,
    Scale,
    weight_limit,
)
from medseg_brn.networks.unet3d import UNet3d

LIMIT = weight_limit() or 0
needs_int8 = pytest.mark.skipif(LIMIT == 0, reason="this processor has no 8-bit convolutions")
TAKEN, BEFORE, GIVEN = Scale(0.05, 37), Scale(0.11, 140), Scale(0.07, 9)


def _bytes(*shape: int) -> torch.Tensor:
    """Random features (N, C, X, Y, Z) over the whole range, channels last."""
    n, channels, *size = shape
    features = np.random.default_rng(0).integers(0, 256, (n, *size, channels), dtype=np.uint8)
    return torch.from_numpy(features).permute(0, 4, 1, 2, 3)


def _integers(weight: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Weights (out, ...) as whole numbers, and each output channel's step."""
    values = weight.detach().numpy().astype(np.float32)
    steps = abs(values).reshape(len(values), -1).max(1) / np.float32(LIMIT)
    whole = np.rint(values / steps.reshape(-1, *[1] * (values.ndim - 1)))
    return whole.astype(np.int64), steps.astype(np.float64)


def _convolve(features: np.ndarray, weight: np.ndarray, stride: int, reach: int) -> np.ndarray:
    """Sums of products of integers, offset by offset of the kernel; zeros beyond the border."""
    padded = np.pad(features, ((0, 0), (0, 0), *[(reach, reach)] * 3))
    size = [(length - weight.shape[2]) // stride + 1 for length in padded.shape[2:]]
    sums = np.zeros((len(features), len(weight), *size), np.int64)
    for offset in np.ndindex(weight.shape[2:]):
        x, y, z = (
            slice(start, start + stride * (count - 1) + 1, stride)
            for start, count in zip(offset, size, strict=True)
        )
        sums += np.einsum("nixyz,oi->noxyz", padded[:, :, x, y, z], weight[:, :, *offset])
    return sums


def _to_bytes(values: np.ndarray, scale: Scale) -> np.ndarray:
    return np.clip(np.rint(values / scale.step) + scale.zero, 0, 255).astype(np.int64)


def _by_channel(values: np.ndarray) -> np.ndarray:
    return values.reshape(1, -1, 1, 1, 1)


def _assert_same_bytes(found: torch.Tensor, expected: np.ndarray, at_most: int = 1) -> None:
    """Equal but for a few numbers that float32 rounds to the other side of a half."""
    assert found.dtype == torch.uint8
    assert found.stride(1) == 1
    difference = abs(found.numpy().astype(np.int64) - expected)
    assert difference.max() <= at_most
    assert (difference > 0).mean() < 1e-3


@needs_int8
@pytest.mark.parametrize(
    ("channels", "size", "stride"),
    [((3, 5), (7, 5, 3), 1), ((16, 32), (9, 8, 10), 1), ((6, 8), (8, 6, 10), 2), ((1, 7), (5, 5, 5), 1)],
)
@pytest.mark.parametrize("slope", [None, 0.01, 0.3])
def test_a_convolution_is_the_rounded_sum_of_integer_products(channels, size, stride, slope):
    torch.manual_seed(0)
    plain = nn.Conv3d(*channels, 3, stride=stride, padding=1)
    features = _bytes(2, channels[0], *size)
    whole, steps = _integers(plain.weight)
    sums = _convolve(features.numpy().astype(np.int64) - TAKEN.zero, whole, stride, 1)
    assert plain.bias is not None
    values = sums * _by_channel(steps) * TAKEN.step + _by_channel(plain.bias.detach().numpy())
    if slope is None:
        found = QuantizedConv3d(plain, TAKEN, GIVEN)(features)
        _assert_same_bytes(found, _to_bytes(values, GIVEN))
        return
    between = (_to_bytes(values, BEFORE) - BEFORE.zero) * BEFORE.step
    expected = _to_bytes(np.where(between < 0, slope * between, between), GIVEN)
    found = QuantizedConv3d(plain, TAKEN, GIVEN, before=BEFORE, slope=slope)(features)
    _assert_same_bytes(found, expected, at_most=2)  # one step before the activation is 1.6 after it


@needs_int8
def test_many_threads_look_up_the_same_activations():
    plain, features = nn.Conv3d(4, 8, 3, padding=1), _bytes(1, 4, 33, 31, 29)
    layer = QuantizedConv3d(plain, TAKEN, GIVEN, before=BEFORE, slope=0.01)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 4, 5):
            torch.set_num_threads(count)
            results.append(layer(features))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@needs_int8
def test_beyond_the_border_is_zero_and_not_the_byte_zero():
    """Features of real zeros give the bias everywhere, at the border too."""
    plain = nn.Conv3d(2, 3, 3, padding=1)
    assert plain.bias is not None
    plain.bias.data = torch.tensor([-1.0, 0.0, 2.0])
    zeros = torch.full_like(_bytes(1, 2, 4, 4, 4), TAKEN.zero)
    found = QuantizedConv3d(plain, TAKEN)(zeros)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain.bias.data.view(1, 3, 1, 1, 1).expand(1, 3, 4, 4, 4))


@needs_int8
def test_without_a_scale_a_convolution_gives_numbers():
    torch.manual_seed(0)
    plain, features = nn.Conv3d(8, 3, 1), _bytes(1, 8, 5, 4, 3)
    whole, steps = _integers(plain.weight)
    sums = _convolve(features.numpy().astype(np.int64) - TAKEN.zero, whole, 1, 0)
    assert plain.bias is not None
    expected = sums * _by_channel(steps) * TAKEN.step + _by_channel(plain.bias.detach().numpy())
    np.testing.assert_allclose(
        QuantizedConv3d(plain, TAKEN)(features).detach(), expected, rtol=1e-5, atol=1e-5
    )


@needs_int8
@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 3)])
def test_upsampling_gives_each_voxel_s_block_its_own_products(stride):
    torch.manual_seed(0)
    plain, features = nn.ConvTranspose3d(5, 4, stride, stride), _bytes(2, 5, 3, 4, 2)
    values = features.numpy().astype(np.int64) - TAKEN.zero
    expected = np.zeros((2, 4, *(n * step for n, step in zip((3, 4, 2), stride, strict=True))))
    assert plain.bias is not None
    for offset in np.ndindex(stride):
        whole, steps = _integers(plain.weight[:, :, *offset].T)
        sums = np.einsum("nixyz,oi->noxyz", values, whole)
        x, y, z = (slice(start, None, step) for start, step in zip(offset, stride, strict=True))
        expected[:, :, x, y, z] = sums * _by_channel(steps) * TAKEN.step
    expected += _by_channel(plain.bias.detach().numpy())
    _assert_same_bytes(QuantizedUpsampling(plain, TAKEN, GIVEN)(features), _to_bytes(expected, GIVEN))


@pytest.mark.parametrize("kernel", [(3, 3, 3), (5, 1, 3)])
def test_the_stem_is_the_float_convolution_rounded_once(kernel):
    torch.manual_seed(0)
    padding = tuple(size // 2 for size in kernel)
    # So large that it is computed in several slabs.
    plain, image = nn.Conv3d(2, 48, kernel, padding=padding), torch.randn(1, 2, 21, 96, 101)
    with torch.no_grad():
        values = functional.leaky_relu(plain(image), 0.01).numpy().astype(np.float64)
    scale = Scale.spanning(values.min(), values.max())
    assert values.size > 2 * SLAB
    _assert_same_bytes(QuantizedStem(plain, 0.01, scale)(image), _to_bytes(values, scale))


def test_a_scale_has_zero_as_one_of_its_numbers_and_reaches_both_ends():
    for low, high in ((-2.0, 3.1), (0.5, 4.0), (-3.0, -1.0), (0.0, 0.0)):
        scale = Scale.spanning(low, high)
        zero = torch.tensor([scale.zero], dtype=torch.uint8)
        assert scale.restore(zero).item() == 0
        values = torch.tensor([low, (low + high) / 2, high])
        assert abs(scale.restore(scale.quantize(values)) - values).max() <= 0.51 * scale.step
    assert Scale.spanning(-1.0, 254.0) == Scale(1.0, 1)


def _network(**options) -> UNet3d:
    """A network whose statistics are those of smooth images."""
    torch.manual_seed(0)
    network = UNet3d(1, 3, **{"channels": (8, 12, 16), "encoder_blocks": 2, **options})
    for seed in range(3):
        network(_smooth(seed))
    return network.eval()


def _smooth(seed: int) -> torch.Tensor:
    noise = torch.randn(1, 1, 48, 40, 44, generator=torch.Generator().manual_seed(seed))
    return 8 * functional.avg_pool3d(noise, 5, 1)[:, :, :40, :32, :40]


@needs_int8
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"channels": (8,)},
        {"encoder_blocks": (1, 2, 2), "decoder_blocks": 2, "weight_standardization": True},
        {"strides": [(1, 1, 1), (2, 2, 1), (2, 2, 2)], "kernels": [(3, 3, 1), (3, 3, 3), (5, 3, 3)]},
        {"norm": "batch", "deep_supervision": True},
        {"norm": "none"},
    ],
)
def test_a_quantized_network_is_close_to_the_float_one(options):
    folded = fold(_network(**options))
    network = quantize(folded, measure_ranges(folded, [_smooth(seed) for seed in (10, 11, 12)]))
    with torch.inference_mode():
        expected, found = folded(_smooth(20)), network(_smooth(20))
    assert found.dtype == torch.float32
    error = (found - expected).square().mean().sqrt() / expected.std()
    assert error < (0.1 if LIMIT == 127 else 0.15)
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.95


@needs_int8
def test_the_float_network_stays_as_it_was():
    folded, image = fold(_network()), _smooth(20)
    with torch.inference_mode():
        before = folded(image)
        quantize(folded, measure_ranges(folded, [image]))
        assert torch.equal(folded(image), before)


def test_ranges_are_the_least_and_greatest_over_all_images():
    folded = fold(_network(channels=(4, 6)))
    images = [_smooth(0), 3 * _smooth(1), _smooth(2) - 5]
    found = measure_ranges(folded, images)
    first = folded.stem[0]
    assert found["stem.0.input"] == (
        min(image.min().item() for image in images), max(image.max().item() for image in images),
    )  # fmt: skip
    with torch.no_grad():
        given = torch.cat([first(image) for image in images])
        scores = torch.cat([folded(image) for image in images])
    assert found["stem.0.output"] == pytest.approx((given.min().item(), given.max().item()), rel=1e-5)
    assert found["head.output"] == pytest.approx((scores.min().item(), scores.max().item()), rel=1e-4)
    names = (
        "stem.0",
        "encoder.0.0.0",
        "encoder.1.0.0",
        "encoder.1.1.0",
        "upsampling.0",
        "decoder.0.0.0",
        "head",
    )
    assert set(found) == {f"{name}.{end}" for name in names for end in ("input", "output")}
    assert not any(layer._forward_hooks for layer in folded.modules())


@pytest.mark.parametrize("norm", ["instance", "group", "layer"])
def test_norms_that_do_not_fold_are_refused(norm):
    with pytest.raises(ConfigError, match=r"cannot compute in int8: .* normalizes by the mean and variance"):
        check_quantizable(UNet3d(1, 2, (4, 6), norm=norm))


def test_residual_encoders_are_refused():
    with pytest.raises(ConfigError, match="cannot compute in int8: its encoder is residual"):
        quantize(fold(UNet3d(1, 2, (4, 6), encoder="residual").eval()), {})


def test_a_range_that_is_missing_is_named():
    folded = fold(_network(channels=(4, 6)))
    ranges = measure_ranges(folded, [_smooth(0)])
    del ranges["upsampling.0.input"]
    with pytest.raises(ConfigError, match=r"lack 'upsampling\.0\.input'.*models quantize"):
        quantize(folded, ranges)
