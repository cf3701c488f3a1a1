"""From the experiment's network section to a network."""

from typing import Any

from medseg_brn.config import NetworkConfig
from medseg_brn.networks.unet3d import UNet3d


def build_network(config: NetworkConfig, in_channels: int, num_classes: int) -> UNet3d:
    """Make the network that the options describe, with fresh weights.

    Its renorm layers have their final limits at once; a training run sets the schedule.

    Args:
        config: the experiment's `network` section.
        in_channels: channels of the images.
        num_classes: classes, the background counted.

    Raises:
        ConfigError: strides or kernels that make no network.
    """
    return UNet3d(
        in_channels,
        num_classes,
        config.channels,
        strides=config.strides,
        kernels=config.kernels,
        encoder=config.encoder,
        blocks_per_level=config.blocks_per_level,
        norm=config.norm,
        norm_options=_norm_options(config),
        weight_standardization=config.weight_standardization,
        deep_supervision=config.deep_supervision,
    )


def _norm_options(config: NetworkConfig) -> dict[str, Any]:
    match config.norm:
        case "batch_renorm":
            limits = {"r_max": config.r_max, "d_max": config.d_max, "schedule": (0, 0, 0)}
            return {"momentum": config.momentum, **limits}
        case "batch" | "sync_batch":
            return {"momentum": config.momentum}
    return {}
