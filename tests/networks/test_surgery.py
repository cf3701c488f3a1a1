"""Converted layers keep what they should; recalibrated statistics are the population's."""

import numpy as np
import pytest
import torch
from torch import nn

from medseg_brn.errors import ConfigError, ModelError
from medseg_brn.networks.batch_renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from medseg_brn.networks.mabn import MABN1d, MABN2d, MABN3d
from medseg_brn.networks.surgery import convert_normalization, recalibrate


def make_trained_batch_norm() -> nn.BatchNorm3d:
    torch.manual_seed(0)
    layer = nn.BatchNorm3d(4, eps=1e-3)
    nn.init.normal_(layer.weight, 1, 0.3)
    nn.init.normal_(layer.bias)
    for _ in range(5):
        layer(torch.randn(2, 4, 3, 3, 3) * 2 + 5)
    return layer


def test_batch_norm_to_renorm_keeps_weights_and_statistics() -> None:
    source = make_trained_batch_norm()
    network = nn.Sequential(nn.Conv3d(1, 4, 1), nn.Sequential(source))
    x = torch.randn(1, 4, 3, 3, 3)
    expected = source.eval()(x)
    converted = convert_normalization(network.train(), "batch_renorm", schedule=(0, 0, 0))
    layer = converted[1][0]
    assert converted is network and type(layer) is BatchRenorm3d and layer.training
    assert layer.num_batches_tracked == 5 and layer.momentum == 0.01
    assert torch.equal(layer.eval()(x), expected)
    # It goes on from the statistics instead of starting again.
    layer.train()(torch.randn(2, 4, 3, 3, 3) + 100)
    assert (layer.running_mean < 10).all()


def test_renorm_to_batch_norm_and_back() -> None:
    source = make_trained_batch_norm()
    state = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    there = convert_normalization(source, "batch_renorm")
    back = convert_normalization(there, "batch")
    assert type(back) is nn.BatchNorm3d and back.eps == 1e-3
    torch.testing.assert_close(dict(back.state_dict()), state, rtol=0, atol=0)


@pytest.mark.parametrize("between", ["batch", "batch_renorm"])
def test_mabn_takes_the_mean_into_weight_and_bias(between: str) -> None:
    source = convert_normalization(make_trained_batch_norm(), between)
    moment = source.running_var + source.running_mean.square()
    x = torch.randn(1, 4, 3, 3, 3) * 2 + 5
    expected = source.eval()(x)
    layer = convert_normalization(source, "mabn")
    assert type(layer) is MABN3d and layer.running_mean.tolist() == [0] * 4
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.running_var, moment)
    # It goes on from the statistics, and its averages from the next batch on.
    assert layer.num_batches_tracked == 1 and not layer.recent_squares.any()
    layer.train()(torch.randn(2, 4, 3, 3, 3) + 1000)
    assert (layer.running_var < 0.1 * 1000**2).all()


def test_mabn_to_renorm_keeps_the_function() -> None:
    source = convert_normalization(make_trained_batch_norm(), "mabn").eval()
    x = torch.randn(1, 4, 3, 3, 3)
    expected = source(x)
    layer = convert_normalization(source, "batch_renorm")
    assert type(layer) is BatchRenorm3d and torch.equal(layer(x), expected)


def test_mabn_without_weight_and_bias_takes_the_moment_only() -> None:
    source = nn.BatchNorm1d(2, affine=False)
    source.running_mean.fill_(3.0), source.running_var.fill_(4.0)
    assert convert_normalization(source, "mabn").running_var.tolist() == [13.0, 13.0]


@pytest.mark.parametrize(
    ("source", "kind"),
    [(nn.BatchNorm1d(4), MABN1d), (nn.InstanceNorm2d(4), MABN2d), (nn.GroupNorm(2, 4), MABN3d)],
)
def test_fresh_layers_become_fresh_mabn(source: nn.Module, kind: type[nn.Module]) -> None:
    layer = convert_normalization(source, "mabn")
    assert type(layer) is kind and layer.num_batches_tracked == 0 and layer.running_var.tolist() == [1.0] * 4
    assert type(convert_normalization(layer, "mabn", window=3)) is kind


def test_statistics_without_a_count_are_not_thrown_away() -> None:
    source = make_trained_batch_norm()
    source.num_batches_tracked.zero_()  # as loaded from a file that has no count
    layer = convert_normalization(source, "batch_renorm")
    assert layer.num_batches_tracked == 1


def test_fresh_batch_norm_stays_fresh() -> None:
    assert convert_normalization(nn.BatchNorm3d(4), "batch_renorm").num_batches_tracked == 0


@pytest.mark.parametrize("source", [nn.InstanceNorm3d(4, affine=True), nn.GroupNorm(2, 4)])
def test_from_other_norms_the_statistics_start_fresh(source: nn.Module) -> None:
    nn.init.constant_(source.weight, 3.0)
    layer = convert_normalization(source, "batch_renorm")
    assert type(layer) is BatchRenorm3d and layer.num_batches_tracked == 0
    assert layer.weight.tolist() == [3.0] * 4 and layer.running_var.tolist() == [1.0] * 4


def test_dimensions_affinity_dtype_and_frozen_weights_are_kept() -> None:
    flat, line = nn.BatchNorm2d(4, affine=False).double(), nn.BatchNorm1d(4)
    line.weight.requires_grad_(False)
    network = convert_normalization(nn.ModuleList([flat, line]), "batch_renorm")
    assert type(network[0]) is BatchRenorm2d and network[0].weight is None
    assert network[0].running_var.dtype == torch.float64
    assert type(network[1]) is BatchRenorm1d
    assert not network[1].weight.requires_grad and network[1].bias.requires_grad


def test_a_layer_used_in_two_places_is_one_layer_still() -> None:
    shared = nn.BatchNorm3d(4)
    network = convert_normalization(nn.Sequential(shared, nn.ReLU(), shared), "batch_renorm")
    assert network[0] is network[2]


def test_nothing_to_convert_and_unknown_names_are_refused() -> None:
    with pytest.raises(ModelError, match=r"Sequential has no .* layer to convert to 'batch_renorm'"):
        convert_normalization(nn.Sequential(nn.ReLU()), "batch_renorm")
    with pytest.raises(ConfigError, match="'renorm' does not exist"):
        convert_normalization(nn.BatchNorm3d(2), "renorm")


@pytest.mark.parametrize("kind", [nn.BatchNorm3d, BatchRenorm3d])
def test_recalibrated_statistics_are_those_of_all_values_together(kind: type[nn.Module]) -> None:
    layer = kind(2)
    network = nn.Sequential(layer, nn.Dropout(0.5)).train()
    batches = [torch.randn(size, 2, 3, 4, 5) * (size + 1) + size for size in (1, 2, 3)]
    assert recalibrate(network, iter(batches)) is network
    pooled = torch.cat(batches).double().numpy()
    np.testing.assert_allclose(layer.running_mean, pooled.mean((0, 2, 3, 4)), rtol=1e-5)
    np.testing.assert_allclose(layer.running_var, pooled.var((0, 2, 3, 4)), rtol=1e-5)
    assert layer.num_batches_tracked >= 1
    assert network.training and layer.training and not layer._forward_hooks


def test_recalibrated_mabn_has_the_second_moment_and_normalizes_by_it() -> None:
    torch.manual_seed(1)
    network = nn.Sequential(MABN3d(2), nn.ReLU(), MABN3d(2)).double()
    network[0].running_var.fill_(50.0)  # stale statistics must not reach the second layer
    batches = [torch.randn(size, 2, 3, 4, 5, dtype=torch.float64) * size + 1 for size in (1, 2, 3)]
    recalibrate(network, batches)
    inputs = [batch.numpy() for batch in batches]
    features = [np.maximum(x / np.sqrt((x**2).mean((0, 2, 3, 4), keepdims=True) + 1e-5), 0) for x in inputs]
    for layer, values in ((network[0], inputs), (network[2], features)):
        np.testing.assert_allclose(layer.running_var, (np.concatenate(values) ** 2).mean((0, 2, 3, 4)))
        assert layer.running_mean.tolist() == [0, 0] and layer.num_batches_tracked == 1


def test_recalibration_feeds_later_layers_batch_normalized_features() -> None:
    torch.manual_seed(1)
    network = nn.Sequential(BatchRenorm3d(2), nn.ReLU(), BatchRenorm3d(2)).double()
    network[0].running_mean.fill_(50.0)  # stale statistics must not reach the second layer
    batches = [torch.randn(2, 2, 3, 3, 3, dtype=torch.float64) * 3 + 7 for _ in range(3)]
    recalibrate(network, batches)
    features = []
    for batch in batches:
        x = batch.numpy()
        mean, var = (f((0, 2, 3, 4), keepdims=True) for f in (x.mean, x.var))
        features.append(np.maximum((x - mean) / np.sqrt(var + 1e-5), 0))
    pooled = np.concatenate(features)
    np.testing.assert_allclose(network[2].running_mean, pooled.mean((0, 2, 3, 4)))
    np.testing.assert_allclose(network[2].running_var, pooled.var((0, 2, 3, 4)))


def test_recalibration_without_batches_is_refused() -> None:
    layer = BatchRenorm3d(2)
    with pytest.raises(ModelError, match="got no batches"):
        recalibrate(layer, [])
    assert layer.training
