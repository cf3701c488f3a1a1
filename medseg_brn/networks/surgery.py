"""Changes to finished networks: other normalization layers, folded convolutions, population statistics."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from medseg_brn.errors import ModelError
from medseg_brn.networks.batch_renorm import BatchRenorm
from medseg_brn.networks.domain_norm import DomainBatchNorm
from medseg_brn.networks.folding import fold, replace_layer
from medseg_brn.networks.mabn import MABN
from medseg_brn.networks.normalization import (
    BATCH_NORM_CLASSES,
    BATCH_RENORM_CLASSES,
    INSTANCE_NORM_CLASSES,
    MABN_CLASSES,
    make_normalization,
)

_WITH_BATCH_STATISTICS = (BatchRenorm, MABN, _BatchNorm)
_NORMALIZATIONS = (*_WITH_BATCH_STATISTICS, _InstanceNorm, nn.GroupNorm)

__all__ = ["convert_normalization", "fold", "recalibrate"]


def convert_normalization(module: nn.Module, name: str, **options: Any) -> nn.Module:
    """Replaces every batch, renorm, MABN, instance and group norm layer by the one named.

    γ, β and eps are kept where both layers have them. The statistics are kept between BatchNorm and
    renorm (which then goes on from them, and from their number of batches); from other layers they
    start fresh. The momentum is the new layer's default: renorm wants a smaller one than BatchNorm.

    MABN has no mean. From BatchNorm or renorm, it takes γ, β and χ̂² = σ² + μ² such that in evaluation it is
    the function that the layer was: γ·(x - μ)/σ + β = (γ·χ̂/σ)·x/χ̂ + (β - γ·μ/σ), where it has γ and β.
    Its simple averages start fresh, with a new warm-up. The way back keeps γ, β and statistics as they
    are: μ = 0 and σ = χ̂, until training moves them.

    Args:
        module: a network, changed in place, or a normalization layer.
        name: as in `make_normalization`.
        options: as in `make_normalization`.

    Returns:
        The network; where `module` is itself a normalization layer, the new layer.

    Raises:
        ConfigError: unknown name.
        ModelError: no normalization layer to convert.
    """
    if isinstance(module, _NORMALIZATIONS):
        return _convert_layer(module, name, options)
    layers = [layer for layer in module.modules() if isinstance(layer, _NORMALIZATIONS)]
    if not layers:
        raise ModelError(
            f"{type(module).__name__} has no batch, renorm, MABN, instance or group norm layer "
            f"to convert to {name!r}; build it with one of these"
        )
    for layer in layers:
        replace_layer(module, layer, _convert_layer(layer, name, options))
    return module


@torch.no_grad()
def recalibrate(module: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """Sets the statistics of every renorm, MABN and BatchNorm layer to the population's (Wu & Johnson 2021).

    Each layer normalizes by the batch while the moments of its input are pooled over all batches, each
    value with the same weight: mean E[μ_B], variance E[σ_B² + μ_B²] - E[μ_B]². All layers in one pass.
    MABN, which subtracts no mean, normalizes by the batch's second moment, and has E[σ_B² + μ_B²].

    Source: "Rethinking Batch in BatchNorm", arXiv:2105.07576 (PreciseBN).

    Args:
        module: a network, changed in place; the statistics of layers that no batch reaches stay.
        batches: inputs of the network, on its device.

    Returns:
        The network.

    Raises:
        ModelError: no batches.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, _WITH_BATCH_STATISTICS)]
    moments = {layer: _Moments() for layer in layers if layer.running_var is not None}
    training = [part for part in module.modules() if part.training]
    hooks = [layer.register_forward_hook(moments[layer].take_in) for layer in moments]
    passes = 0
    try:
        module.eval()  # no dropout, and no layer updates its moving averages
        for batch in batches:
            module(batch)
            passes += 1
    finally:
        for hook in hooks:
            hook.remove()
        for part in training:
            part.training = True
    if not passes:
        raise ModelError("recalibration got no batches; give it at least one")
    for layer, pooled in moments.items():
        if pooled.count:
            pooled.write_to(layer)
    return module


class _Moments:
    """First and second moments of a layer's input, pooled in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | float = 0.0
        self.square: Tensor | float = 0.0

    def take_in(self, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """A forward hook: pools the input, and lets the layer's output be normalized by the batch."""
        (x,) = inputs
        count = x.numel() // x.size(1)
        var, mean = torch.var_mean(x.double(), dim=[0, *range(2, x.dim())], correction=0)
        if isinstance(layer, MABN):  # no mean: what it calls variance is the moment about zero
            mean, var = torch.zeros_like(mean), var + mean.square()
        share = count / (self.count + count)
        self.count += count
        self.mean = self.mean + share * (mean - self.mean)
        self.square = self.square + share * (var + mean.square() - self.square)
        if isinstance(layer, MABN):
            of_batch = mean.to(layer.running_mean.dtype), var.to(layer.running_var.dtype)
            return F.batch_norm(x, *of_batch, layer.weight, layer.bias, eps=layer.eps)
        return F.batch_norm(x, None, None, layer.weight, layer.bias, training=True, eps=layer.eps)

    def write_to(self, layer: Any) -> None:
        """Makes these the layer's statistics."""
        mean, square = torch.as_tensor(self.mean), torch.as_tensor(self.square)
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(square - mean.square())
        layer.num_batches_tracked.clamp_(min=1)  # 0 would let a renorm layer start again


def _convert_layer(layer: Any, name: str, options: dict[str, Any]) -> nn.Module:
    channels = layer.num_channels if isinstance(layer, nn.GroupNorm) else layer.num_features
    options = {"affine": layer.affine, "eps": layer.eps, **options}
    new: Any = make_normalization(name, channels, dimensions=_spatial_dimensions(layer), **options)
    if isinstance(new, nn.Identity):
        return new
    if isinstance(new, DomainBatchNorm):  # all sites begin as the layer was
        del options["sites"]
        new.domains = nn.ModuleList(_convert_layer(layer, "batch", options) for _ in new.sites)
        return new.train(layer.training)
    kept = ["weight", "bias"]
    if isinstance(layer, _WITH_BATCH_STATISTICS) and isinstance(new, _WITH_BATCH_STATISTICS):
        kept += ["running_mean", "running_var", "num_batches_tracked"]
    numbers = [*layer.parameters(), *layer.buffers()]
    if numbers:
        new.to(numbers[0].device, numbers[0].dtype)
    with torch.no_grad():
        for key in kept:
            source, target = getattr(layer, key), getattr(new, key)
            if source is not None and target is not None:
                target.copy_(source).requires_grad_(source.requires_grad)
        if "running_var" in kept and new.running_var is not None:
            fresh = (new.running_mean == 0).all() & (new.running_var == 1).all()
            new.num_batches_tracked.clamp_(min=int(not fresh))  # statistics without a count are statistics
            if isinstance(new, MABN):
                new.absorb_mean()
    return new.train(layer.training)


def _spatial_dimensions(layer: nn.Module) -> int:
    """The layer's own, where it has any (GroupNorm and SyncBatchNorm take all), else 3."""
    for classes in (BATCH_RENORM_CLASSES, MABN_CLASSES, BATCH_NORM_CLASSES, INSTANCE_NORM_CLASSES):
        for dimensions, kind in enumerate(classes, start=1):
            if isinstance(layer, kind):
                return dimensions
    return 3
