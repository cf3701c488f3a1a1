import pytest
from torch import nn

from medseg_brn.config import NetworkConfig
from medseg_brn.models.architecture import build_network
from medseg_brn.networks.batch_renorm import BatchRenorm3d
from medseg_brn.networks.convolution import WeightStandardizedConv3d
from medseg_brn.networks.domain_norm import DomainBatchNorm
from medseg_brn.networks.mabn import MABN3d


def _layers(network: nn.Module, kind: type) -> list:
    return [module for module in network.modules() if isinstance(module, kind)]


def test_every_option_reaches_the_network():
    config = NetworkConfig(
        channels=(4, 8, 12),
        strides=((1, 1, 1), (2, 2, 1), (2, 2, 2)),
        kernels=((3, 3, 1), (3, 3, 3), (3, 3, 5)),
        encoder="residual",
        encoder_blocks=(1, 2, 3),
        decoder_blocks=(2, 1),
        momentum=0.05,
        r_max=2,
        d_max=4,
        deep_supervision=True,
    )
    network = build_network(config, in_channels=2, num_outputs=3)
    assert (network.in_channels, network.num_classes, network.strides_total) == (2, 3, (4, 4, 2))
    assert [len(level) for level in network.encoder] == [1, 2, 3]
    assert [len(level) for level in network.decoder] == [1, 2]
    assert network.encoder[2][0].body[0].kernel_size == (3, 3, 5)
    assert len(network.coarser_heads) == 1
    assert _layers(network, WeightStandardizedConv3d)
    for layer in _layers(network, BatchRenorm3d):
        assert (layer.momentum, layer.r_max, layer.d_max, layer.schedule) == (0.05, 2, 4, (0, 0, 0))


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        ("batch_renorm", BatchRenorm3d),
        ("mabn", MABN3d),
        ("batch", nn.BatchNorm3d),
        ("sync_batch", nn.SyncBatchNorm),
        ("domain_batch", DomainBatchNorm),
        ("group", nn.GroupNorm),
        ("instance", nn.InstanceNorm3d),
        ("layer", nn.GroupNorm),
        ("none", nn.Identity),
    ],
)
def test_every_norm_of_the_config_can_be_built(norm, kind):
    network = build_network(NetworkConfig(channels=(4, 8), norm=norm, momentum=0.2), 1, 2, sites=("a",))
    layers = _layers(network, kind)
    assert len(layers) == 5  # two encoder levels of two blocks, one decoder level of one
    if norm in ("batch", "sync_batch", "mabn"):
        assert {layer.momentum for layer in layers} == {0.2}
