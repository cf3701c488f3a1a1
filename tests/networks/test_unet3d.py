import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from medseg_brn.errors import ConfigError
from medseg_brn.networks.convolution import Conv3d, WeightStandardizedConv3d
from medseg_brn.networks.normalization import NORMALIZATIONS
from medseg_brn.networks.unet3d import ConvBlock, UNet3d, check_patch_size

NORMS = [name for name in NORMALIZATIONS if name not in ("sync_batch", "domain_batch")]  # a GPU's, told sites
ANISOTROPIC = {
    "strides": [(1, 1, 1), (2, 2, 1), (2, 2, 2)],
    "kernels": [(3, 3, 1), (3, 3, 3), (3, 3, 3)],
}


def _make(norm="batch_renorm", in_channels=2, **options) -> UNet3d:
    torch.manual_seed(0)
    return UNet3d(in_channels, 3, (4, 6, 8), norm=norm, **options)


@pytest.mark.parametrize("encoder", ["plain", "residual"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("weight_standardization", [False, True])
def test_logits_have_the_image_s_size_and_every_parameter_learns(encoder, norm, weight_standardization):
    network = _make(norm, encoder=encoder, weight_standardization=weight_standardization)
    logits = network(torch.randn(2, 2, 8, 12, 8))
    assert logits.shape == (2, 3, 8, 12, 8)
    (logits * torch.randn_like(logits)).sum().backward()
    unused = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []


@pytest.mark.parametrize("encoder", ["plain", "residual"])
@pytest.mark.parametrize(
    ("encoder_blocks", "decoder_blocks", "expected"),
    [(1, 2, ([1, 1, 1], [2, 2])), (3, 1, ([3, 3, 3], [1, 1])), ((1, 2, 3), (2, 1), ([1, 2, 3], [2, 1]))],
)
def test_levels_have_as_many_blocks_as_asked(encoder, encoder_blocks, decoder_blocks, expected):
    network = _make(encoder=encoder, encoder_blocks=encoder_blocks, decoder_blocks=decoder_blocks)
    levels = [len(level) for level in network.encoder]
    # the stem is the finest level's first plain block, and stands before its residual ones
    assert [levels[0] + (encoder == "plain"), *levels[1:]] == expected[0]
    assert isinstance(network.stem, ConvBlock)
    # the decoder starts at the coarsest level
    assert [len(level) for level in reversed(network.decoder)] == expected[1]


@pytest.mark.parametrize("blocks", [(1, 2), 0, (1, 0, 1)])
def test_numbers_of_blocks_that_do_not_fit_the_levels_are_refused(blocks):
    with pytest.raises(ConfigError, match=r"encoder_blocks is .* 3 of them"):
        _make(encoder_blocks=blocks)


def test_anisotropic_levels():
    network = _make(**ANISOTROPIC)
    assert network.strides_total == (4, 4, 2)
    assert network(torch.randn(1, 2, 8, 4, 6)).shape == (1, 3, 8, 4, 6)
    # The first level looks at single slices: its kernels have no extent along Z.
    assert network.stem[0].kernel_size == (3, 3, 1)


def test_a_single_level_is_a_network_too():
    assert UNet3d(1, 2, (4,))(torch.randn(2, 1, 3, 4, 5)).shape == (2, 2, 3, 4, 5)


def test_deep_supervision_gives_coarser_logits_while_training_only():
    network = UNet3d(1, 3, (4, 4, 4, 4), deep_supervision=True)
    image = torch.randn(1, 1, 16, 16, 16)
    logits = network(image)
    assert [tuple(level.shape[2:]) for level in logits] == [(16,) * 3, (8,) * 3, (4,) * 3]
    sum(level.square().sum() for level in logits).backward()
    assert all(p.grad is not None and p.grad.any() for p in network.coarser_heads.parameters())
    assert network.eval()(image).shape == (1, 3, 16, 16, 16)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("encoder", ["plain", "residual"])
@pytest.mark.parametrize("weight_standardization", [False, True])
def test_a_norm_follows_its_convolution_directly_and_takes_the_place_of_its_bias(
    norm, encoder, weight_standardization
):
    network = _make(norm, encoder=encoder, weight_standardization=weight_standardization)
    expected = WeightStandardizedConv3d if weight_standardization else Conv3d
    pairs = 0
    for module in network.modules():
        if not isinstance(module, nn.Sequential):
            continue
        children = list(module)
        for convolution, after in pairwise(children):
            if isinstance(convolution, nn.Conv3d):
                assert type(convolution) is expected
                assert (convolution.bias is not None) == (norm == "none")
                assert isinstance(after, nn.Identity) == (norm == "none")
                pairs += 1
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv3d)]
    assert pairs == len(convolutions) - 1  # the head has no norm


def test_the_residual_shortcut_is_the_identity_where_shapes_agree():
    first, second = _make(encoder="residual").encoder[1]
    assert len(second.shortcut) == 0
    assert [type(layer).__name__ for layer in first.shortcut] == ["AvgPool3d", "Conv3d", "BatchRenorm3d"]
    features = torch.randn(2, 6, 4, 4, 4)
    with torch.no_grad():
        second.body[-1].weight.zero_()  # γ = 0 silences the body, so that the shortcut is what remains
    torch.testing.assert_close(second(features), nn.functional.leaky_relu(features, 0.01))


@pytest.mark.parametrize("in_channels", [1, 2])
@pytest.mark.parametrize("encoder", ["plain", "residual"])
def test_channels_last_weights_keep_features_so_and_change_no_logits(in_channels, encoder):
    network = _make("batch", in_channels, encoder=encoder, weight_standardization=True).eval()
    image = torch.randn(2, in_channels, 16, 16, 8)
    expected = network(image)
    seen = []
    network.to(memory_format=torch.channels_last_3d)
    for level in [*network.encoder, *network.decoder]:
        level.register_forward_hook(
            lambda module, args, out: seen.append(out.is_contiguous(memory_format=torch.channels_last_3d))
        )
    torch.testing.assert_close(network(image), expected, atol=1e-5, rtol=1e-5)
    assert seen == [True] * 5


def test_in_place_activations_leave_gradients_right():
    network = _make("group", 1, encoder="residual", weight_standardization=True).double()
    image = torch.randn(1, 1, 8, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda image: network(image).sum(1), image, atol=1e-4)


def test_initial_weights_follow_the_stated_rule_and_the_seed():
    torch.manual_seed(3)
    network = UNet3d(1, 3, (32, 64), norm="batch")
    weight = network.encoder[1][1][0].weight
    assert weight.var().item() == pytest.approx(2 / (64 * 27), rel=0.05)
    assert network.upsampling[0].weight.var().item() == pytest.approx(1 / 64, rel=0.05)
    assert not network.head.bias.any()
    torch.manual_seed(3)
    again = UNet3d(1, 3, (32, 64), norm="batch").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in network.state_dict().items())


@given(
    size=st.tuples(*[st.integers(1, 300)] * 3),
    strides=st.tuples(*[st.sampled_from([1, 2, 4, 8, 16, 6])] * 3),
)
def test_sizes_named_in_the_error_fit_and_are_the_nearest(size, strides):
    if all(length % stride == 0 for length, stride in zip(size, strides, strict=True)):
        check_patch_size(size, strides)
        return
    with pytest.raises(ConfigError, match=re.escape(f"Patch size {size}")) as caught:
        check_patch_size(size, strides)
    named = re.findall(r"\((\d+), (\d+), (\d+)\)", str(caught.value).split("nearest that fit")[1])
    named = [tuple(map(int, numbers)) for numbers in named]
    for fitting in named:
        check_patch_size(fitting, strides)
        assert all(abs(a - b) < stride for a, b, stride in zip(fitting, size, strides, strict=True))
    larger = named[-1]
    assert all(a >= b for a, b in zip(larger, size, strict=True))
    assert (len(named) == 2) == all(length >= stride for length, stride in zip(size, strides, strict=True))


@pytest.mark.parametrize("size", [(0, 8, 8), (-4, 8, 8), (8, 8), (8, 8, 8, 8)])
def test_sizes_that_are_none_are_refused(size):
    with pytest.raises(ConfigError, match=re.escape(str(size))):
        _make().check_patch_size(size)


def test_a_wrong_input_is_refused_with_the_same_message():
    network = _make()
    with pytest.raises(ConfigError) as checked:
        network.check_patch_size((8, 9, 8))
    with pytest.raises(ConfigError, match=re.escape(str(checked.value))):
        network(torch.zeros(1, 2, 8, 9, 8))
    assert "(8, 8, 8) and (8, 12, 8)" in str(checked.value)
    with pytest.raises(ConfigError, match=r"\(1, 3, 8, 8, 8\).*\(N, 2, X, Y, Z\)"):
        network(torch.zeros(1, 3, 8, 8, 8))
    with pytest.raises(ConfigError, match=r"\(2, 8, 8, 8\)"):
        network(torch.zeros(2, 8, 8, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": [(1, 1, 1), (2, 2, 2)]}, "strides has 2 entries but channels has 3"),
        ({"kernels": [(3, 3, 3)] * 4}, "kernels has 4 entries but channels has 3"),
        ({"kernels": [(3, 3, 3), (2, 3, 3), (3, 3, 3)]}, "even"),
        ({"strides": [(2, 2, 2)] * 3}, r"first level strides by \(2, 2, 2\)"),
        ({"norm": "nothing"}, "'nothing'"),
    ],
)
def test_levels_that_make_no_network_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        UNet3d(1, 2, (4, 4, 4), **options)
