"""Normalization layers for volumes by name."""

from math import gcd
from typing import Any

from torch import nn

from medseg_brn.errors import ConfigError
from medseg_brn.networks.batch_renorm import BatchRenorm3d, Schedule, _BatchRenorm

NORMALIZATIONS = ("batch_renorm", "batch", "sync_batch", "group", "instance", "layer", "none")


def make_normalization(name: str, channels: int, **options: Any) -> nn.Module:
    """Makes the normalization of a (N, channels, X, Y, Z) tensor.

    Args:
        name: one of `NORMALIZATIONS`.
        channels: feature channels.
        options: keyword arguments of the layer made, such as `momentum` or `r_max`; for `group` also
            `groups` (8, or the largest number of groups below that divides `channels`).

    Raises:
        ConfigError: unknown name.
    """
    match name:
        case "batch_renorm":
            return BatchRenorm3d(channels, **options)
        case "batch":
            return nn.BatchNorm3d(channels, **options)
        case "sync_batch":
            return nn.SyncBatchNorm(channels, **options)
        case "group":
            return nn.GroupNorm(gcd(options.pop("groups", 8), channels), channels, **options)
        case "instance":
            return nn.InstanceNorm3d(channels, **{"affine": True, **options})
        case "layer":
            return nn.GroupNorm(1, channels, **options)
        case "none":
            return nn.Identity()
    raise ConfigError(f"Normalization '{name}' does not exist; choose one of {', '.join(NORMALIZATIONS)}.")


def set_renorm_step(module: nn.Module, step: int, schedule: Schedule | None = None) -> None:
    """Sets how far every batch-renorm layer of `module` is in its schedule, so that it counts optimizer steps.

    A layer that has seen a batch never goes back to step 0, where the next batch would replace its statistics.

    Args:
        module: a network, changed in place.
        step: optimizer steps done.
        schedule: new schedule of the layers; None keeps theirs.
    """
    for layer in module.modules():
        if isinstance(layer, _BatchRenorm):
            layer.num_batches_tracked.clamp_(max=1).clamp_(min=step)
            if schedule is not None:
                layer.schedule = schedule
