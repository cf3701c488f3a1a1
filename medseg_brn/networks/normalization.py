"""Normalization layers by name."""

from math import gcd
from typing import Any

from torch import nn

from medseg_brn.errors import ConfigError
from medseg_brn.networks.batch_renorm import (
    BatchRenorm,
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    Schedule,
)

NORMALIZATIONS = ("batch_renorm", "batch", "sync_batch", "group", "instance", "layer", "none")

BATCH_RENORM_CLASSES = (BatchRenorm1d, BatchRenorm2d, BatchRenorm3d)
BATCH_NORM_CLASSES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE_NORM_CLASSES = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def make_normalization(name: str, channels: int, *, dimensions: int = 3, **options: Any) -> nn.Module:
    """Makes the normalization of a (N, channels, X, Y, Z) tensor.

    Args:
        name: one of `NORMALIZATIONS`. `layer` normalizes each item over channels and voxels alike
            (GroupNorm with one group), `instance` is affine, `none` changes nothing.
        channels: feature channels.
        dimensions: spatial dimensions, 1 to 3.
        options: keyword arguments of the layer made, such as `momentum` or `r_max`; for `group` also
            `groups` (8, reduced to what divides `channels`); `none` ignores them.

    Raises:
        ConfigError: unknown name.
    """
    match name:
        case "batch_renorm":
            return BATCH_RENORM_CLASSES[dimensions - 1](channels, **options)
        case "batch":
            return BATCH_NORM_CLASSES[dimensions - 1](channels, **options)
        case "sync_batch":
            return nn.SyncBatchNorm(channels, **options)
        case "group":
            return nn.GroupNorm(gcd(options.pop("groups", 8), channels), channels, **options)
        case "instance":
            return INSTANCE_NORM_CLASSES[dimensions - 1](channels, **{"affine": True, **options})
        case "layer":
            return nn.GroupNorm(1, channels, **options)
        case "none":
            return nn.Identity()
    raise ConfigError(f"normalization {name!r} does not exist; choose one of {', '.join(NORMALIZATIONS)}")


def set_renorm_step(module: nn.Module, step: int, schedule: Schedule | None = None) -> None:
    """Tells every batch-renorm layer the optimizer's step, which its limits then follow.

    A layer that has seen a batch never returns to step 0, where the next one would replace its statistics.

    Args:
        module: a network, changed in place.
        step: optimizer steps done.
        schedule: new schedule of the layers; None keeps theirs.
    """
    for layer in module.modules():
        if isinstance(layer, BatchRenorm):
            layer.num_batches_tracked.clamp_(max=1).clamp_(min=step)
            if schedule is not None:
                layer.schedule = schedule
