"""Normalization layers by name."""

from math import gcd
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from medseg_brn.errors import ConfigError
from medseg_brn.networks.batch_renorm import (
    BatchRenorm,
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    Schedule,
)
from medseg_brn.networks.domain_norm import DomainBatchNorm
from medseg_brn.networks.mabn import MABN, MABN1d, MABN2d, MABN3d

NORMALIZATIONS = (
    "batch_renorm", "mabn", "batch", "sync_batch", "domain_batch", "group", "instance", "layer", "none",
)  # fmt: skip

# What computes a voxel from a neighbourhood of fixed size, or only holds other layers.
_LOCAL = (
    nn.Conv3d, nn.ConvTranspose3d, nn.AvgPool3d, nn.MaxPool3d, BatchRenorm, MABN, _BatchNorm,
    _InstanceNorm, nn.Identity, nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Dropout3d,
    nn.Dropout, nn.Sequential, nn.ModuleList,
)  # fmt: skip

BATCH_RENORM_CLASSES = (BatchRenorm1d, BatchRenorm2d, BatchRenorm3d)
MABN_CLASSES = (MABN1d, MABN2d, MABN3d)
BATCH_NORM_CLASSES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE_NORM_CLASSES = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def make_normalization(name: str, channels: int, *, dimensions: int = 3, **options: Any) -> nn.Module:
    """Makes the normalization of a (N, channels, X, Y, Z) tensor.

    Args:
        name: one of `NORMALIZATIONS`. `layer` normalizes each item over channels and voxels alike
            (GroupNorm with one group), `instance` is affine, `none` changes nothing. `mabn` belongs after
            convolutions with centred filters (see `MABN3d`). `domain_batch` takes the option `sites`, and
            needs `set_sites` before each batch (see `DomainBatchNorm`).
        channels: feature channels.
        dimensions: spatial dimensions, 1 to 3.
        options: keyword arguments of the layer made, such as `momentum` or `r_max`; for `group` also
            `groups` (8, reduced to what divides `channels`); `none` ignores them.

    Raises:
        ConfigError: unknown name, or no sites for `domain_batch`.
    """
    match name:
        case "batch_renorm":
            return BATCH_RENORM_CLASSES[dimensions - 1](channels, **options)
        case "mabn":
            return MABN_CLASSES[dimensions - 1](channels, **options)
        case "batch":
            return BATCH_NORM_CLASSES[dimensions - 1](channels, **options)
        case "sync_batch":
            return nn.SyncBatchNorm(channels, **options)
        case "domain_batch":
            return DomainBatchNorm(channels, dimensions=dimensions, **options)
        case "group":
            return nn.GroupNorm(gcd(options.pop("groups", 8), channels), channels, **options)
        case "instance":
            return INSTANCE_NORM_CLASSES[dimensions - 1](channels, **{"affine": True, **options})
        case "layer":
            return nn.GroupNorm(1, channels, **options)
        case "none":
            return nn.Identity()
    raise ConfigError(f"normalization {name!r} does not exist; choose one of {', '.join(NORMALIZATIONS)}")


def find_tile_dependence(network: nn.Module) -> str | None:
    """Return why a network's answer at a voxel depends on the tile it is computed in, or None if it does not.

    In evaluation mode, convolutions, norms with running statistics, activations and pooling of a fixed size
    are fixed functions of a voxel's neighbourhood. A norm that measures its own input is not, nor is a layer
    that is not known to be one of these.
    """
    for layer in network.modules():
        if isinstance(layer, nn.GroupNorm | _InstanceNorm | nn.LayerNorm) and not _has_statistics(layer):
            return f"{type(layer).__name__} normalizes by the mean and variance of the tile itself"
        if isinstance(layer, BatchRenorm | _BatchNorm) and not _has_statistics(layer):
            return f"{type(layer).__name__} has no running statistics and takes those of the tile"
        if next(layer.children(), None) is None and not isinstance(layer, _LOCAL):
            return f"{type(layer).__name__} is not known to give every tile the same answer"
    return None


def _has_statistics(layer: nn.Module) -> bool:
    return getattr(layer, "running_var", None) is not None


def set_renorm_step(module: nn.Module, step: int, schedule: Schedule | None = None) -> None:
    """Tells every batch-renorm layer the optimizer's step, which its limits then follow.

    A layer that has seen a batch never returns to step 0, where the next one would replace its statistics.
    MABN layers, which count batches, take from a schedule when their averages begin (its first step) and
    when r may differ from 1 (its last).

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
        if isinstance(layer, MABN) and schedule is not None:
            layer.warmup, layer.r_start = schedule[0], schedule[2]


def freeze_statistics(module: nn.Module) -> None:
    """Puts every norm with batch statistics into evaluation mode: it applies the running ones, unchanged.

    Each is marked with `batch_dependent = False`, as one that is not trained by the batch any more.
    `module.train()` takes back the mode but not the mark; then call this again.
    """
    for layer in module.modules():
        if _is_made_for_batches(layer):
            layer.eval()
            layer.batch_dependent = False  # type: ignore[assignment]  # the stubs allow tensors and modules


def has_batch_statistics(layer: nn.Module) -> bool:
    """Whether training normalizes an item by the other items of its batch too.

    A layer may say it with an attribute `batch_dependent`, as `freeze_statistics` makes frozen ones say no.
    Of those that say nothing, batch norms and batch renorms do.
    """
    return bool(getattr(layer, "batch_dependent", _is_made_for_batches(layer)))


def _is_made_for_batches(layer: nn.Module) -> bool:
    """Whether layers of this class have batch statistics, be this one frozen or not."""
    return isinstance(layer, BatchRenorm | _BatchNorm) or bool(getattr(type(layer), "batch_dependent", False))
