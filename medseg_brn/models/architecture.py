"""From the experiment's network section to a network."""

from collections.abc import Sequence
from typing import Any

from medseg_brn.config import NetworkConfig, ZooNetworkConfig
from medseg_brn.networks.unet3d import UNet3d
from medseg_brn.networks.zoo import ZooNetwork, make_zoo_network

Network = UNet3d | ZooNetwork


def build_network(
    config: NetworkConfig, in_channels: int, num_outputs: int, sites: Sequence[str] = ()
) -> UNet3d:
    """Make the network that the options describe, with fresh weights and the final renorm limits.

    Args:
        config: the experiment's `network` section. Its `renorm_schedule` is training's affair.
        in_channels: channels of the images.
        num_outputs: channels of the logits: classes, the background counted, or regions.
        sites: those of the training cases, for the norm `domain_batch`; others take no notice of them.

    Raises:
        ConfigError: strides, kernels or numbers of blocks that make no network; no sites for `domain_batch`.
    """
    return UNet3d(
        in_channels,
        num_outputs,
        config.channels,
        strides=config.strides,
        kernels=config.kernels,
        encoder=config.encoder,
        encoder_blocks=config.encoder_blocks,
        decoder_blocks=config.decoder_blocks,
        norm=config.norm,
        norm_options=norm_options(config, sites),
        weight_standardization=config.weight_standardization,
        deep_supervision=config.deep_supervision,
    )


def build_described(
    config: NetworkConfig | ZooNetworkConfig, in_channels: int, num_outputs: int, sites: Sequence[str] = ()
) -> Network:
    """Make the network that a model's description tells of; as `build_network`, or one of MONAI's zoo."""
    if isinstance(config, ZooNetworkConfig):
        return make_zoo_network(config.name, config.arguments, in_channels, num_outputs)
    return build_network(config, in_channels, num_outputs, sites)


def count_blocks(config: NetworkConfig) -> int:
    """Return how many blocks the network has at most, without making one."""
    levels = len(config.channels)
    given = ((config.encoder_blocks, levels), (config.decoder_blocks, levels - 1))
    return levels + sum(each * depth if isinstance(each, int) else sum(each) for each, depth in given)


def norm_options(config: NetworkConfig, sites: Sequence[str] = ()) -> dict[str, Any]:
    """What the network's norm layers are made with, as they are at the end of training."""
    if config.norm not in ("batch_renorm", "mabn", "batch", "sync_batch", "domain_batch"):
        return {}
    options: dict[str, Any] = {"momentum": config.momentum}
    if config.norm == "batch_renorm":
        options |= {"r_max": config.r_max, "d_max": config.d_max, "schedule": (0, 0, 0)}
    if config.norm == "domain_batch":
        options |= {"sites": tuple(sites)}
    if config.norm == "mabn":
        options |= {"warmup": 0, "r_start": 0}
    return options
