"""Normalization by name, and the schedule driven from outside."""

import re

import pytest
import torch
from torch import nn

from medseg_brn.errors import ConfigError
from medseg_brn.networks.batch_renorm import BatchRenorm3d
from medseg_brn.networks.mabn import MABN3d
from medseg_brn.networks.normalization import (
    NORMALIZATIONS,
    find_tile_dependence,
    freeze_statistics,
    has_batch_statistics,
    make_normalization,
    set_renorm_step,
)
from medseg_brn.networks.unet3d import UNet3d


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("batch_renorm", BatchRenorm3d),
        ("mabn", MABN3d),
        ("batch", nn.BatchNorm3d),
        ("sync_batch", nn.SyncBatchNorm),
        ("group", nn.GroupNorm),
        ("instance", nn.InstanceNorm3d),
        ("layer", nn.GroupNorm),
        ("none", nn.Identity),
    ],
)
def test_each_name_makes_its_layer(name: str, kind: type[nn.Module]) -> None:
    layer = make_normalization(name, 16)
    assert type(layer) is kind
    if name != "sync_batch":  # trains on GPUs only
        assert layer(torch.randn(2, 16, 3, 4, 5)).shape == (2, 16, 3, 4, 5)
    assert len(list(layer.parameters())) == (0 if name == "none" else 2)


def test_all_names_are_covered() -> None:
    assert set(NORMALIZATIONS) == {
        "batch_renorm",
        "mabn",
        "batch",
        "sync_batch",
        "domain_batch",
        "group",
        "instance",
        "layer",
        "none",
    }


@pytest.mark.parametrize(("channels", "groups"), [(16, 8), (12, 4), (7, 1), (4, 4)])
def test_groups_divide_the_channels(channels: int, groups: int) -> None:
    assert make_normalization("group", channels).num_groups == groups


def test_layer_normalizes_each_item_as_a_whole() -> None:
    y = make_normalization("layer", 6)(
        torch.randn(3, 6, 4, 4, 4) * torch.tensor([1.0, 5.0, 9.0]).view(3, 1, 1, 1, 1)
    )
    torch.testing.assert_close(y.flatten(1).std(1, correction=0), torch.ones(3))


def test_options_reach_the_layer() -> None:
    layer = make_normalization("batch_renorm", 4, momentum=0.05, r_max=2.0, d_max=1.0, schedule=(0, 1, 2))
    assert (layer.momentum, layer.r_max, layer.d_max, layer.schedule) == (0.05, 2.0, 1.0, (0, 1, 2))


def test_unknown_name_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="'batchnorm' does not exist; choose one of batch_renorm, mabn, batch,"
    ):
        make_normalization("batchnorm", 4)


def test_optimizer_steps_drive_the_limits_of_every_layer() -> None:
    network = nn.Sequential(BatchRenorm3d(2), nn.Sequential(BatchRenorm3d(2)), nn.BatchNorm3d(2))
    x = torch.randn(2, 2, 3, 3, 3)
    for step in range(3):
        set_renorm_step(network, step, schedule=(0, 4, 8))
        assert network[0].limits() == network[1][0].limits() == (1 + step / 4, 1.25 * step)
        network(x), network(x)  # two forward passes per optimizer step
    assert network[2].num_batches_tracked == 6  # BatchNorm counts for itself


def test_step_zero_does_not_make_a_layer_forget() -> None:
    layer = BatchRenorm3d(2)
    set_renorm_step(layer, 0)
    layer(torch.randn(2, 2, 3, 3, 3))
    before = layer.running_mean.clone()
    set_renorm_step(layer, 0)
    layer(torch.randn(2, 2, 3, 3, 3) + 100)
    assert (layer.running_mean - before).max() < 2  # moved by momentum 0.01, not replaced


class ByTheBatch(nn.Module):
    batch_dependent = True


def test_frozen_layers_are_marked_and_can_be_frozen_again() -> None:
    kinds = [nn.BatchNorm3d(2), BatchRenorm3d(2), MABN3d(2), nn.SyncBatchNorm(2), ByTheBatch()]
    others = [nn.GroupNorm(1, 2), nn.InstanceNorm3d(2, track_running_stats=True), nn.Conv3d(2, 2, 1)]
    network = nn.ModuleList([*kinds, *others])
    assert [has_batch_statistics(layer) for layer in network] == [True] * 5 + [False] * 3
    for _ in range(2):
        freeze_statistics(network.train())
        assert [layer.training for layer in network] == [False] * 5 + [True] * 3
        assert not any(has_batch_statistics(layer) for layer in network)
    assert not any(hasattr(layer, "batch_dependent") for layer in others)
    assert has_batch_statistics(MABN3d(2)) and has_batch_statistics(ByTheBatch())  # the class has no mark


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        ("batch_renorm", None),
        ("mabn", None),
        ("batch", None),
        ("none", None),
        ("group", "GroupNorm normalizes by"),
        ("layer", "GroupNorm normalizes by"),
        ("instance", "InstanceNorm3d normalizes by"),
    ],
)
@pytest.mark.parametrize("encoder", ["plain", "residual"])
def test_norms_that_measure_their_own_input_depend_on_the_tile(norm, encoder, reason):
    found = find_tile_dependence(UNet3d(1, 2, (4, 4), norm=norm, encoder=encoder))
    assert found is None if reason is None else found.startswith(reason)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.BatchNorm3d(2, track_running_stats=False), "BatchNorm3d has no running statistics"),
        (nn.InstanceNorm3d(2, track_running_stats=True), None),
        (nn.AdaptiveAvgPool3d(1), "AdaptiveAvgPool3d is not known"),
        (nn.MultiheadAttention(4, 2), "MultiheadAttention|NonDynamically.* is not known"),
        (nn.Flatten(), "Flatten is not known"),
    ],
)
def test_layers_that_may_look_at_the_whole_tile_are_named(layer, reason):
    found = find_tile_dependence(nn.Sequential(nn.Conv3d(2, 2, 3), layer))
    assert found is None if reason is None else re.match(reason, found)
