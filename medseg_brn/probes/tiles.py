"""How much a prediction changes because a norm measures a tile instead of the whole volume.

Norms that measure their own input (instance, group, layer norm) give a voxel another answer in another
tile, which shows as seams between tiles. Norms with running statistics do not.
Source: Buglakova et al. 2025, arXiv:2503.19545 (tile mismatch).
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg_brn.cases.targets import Targets
from medseg_brn.errors import DataError
from medseg_brn.probes.layers import (
    NORM_CLASSES,
    apply_activation,
    compute_logits,
    eval_mode,
    find_norm_layers,
)

Box = tuple[slice, ...]


@dataclass(frozen=True)
class TileMismatch:
    """What tile statistics change; see `tile_mismatch`."""

    mean: float
    """Mean |p_tile - p_full| over voxels and classes, in [0, 1]."""
    tiled: Tensor
    """p_tile, (K, ...): the tiles side by side, where seams show."""
    full: Tensor
    """p_full, (K, ...)."""


def tile_mismatch(
    network: nn.Module,
    image: Tensor,
    tile_size: Sequence[int],
    multiple: Sequence[int] | None = None,
    targets: Targets | None = None,
) -> TileMismatch:
    """What the norms' own statistics change when they come from a tile, all else equal.

    Cutting a tile out also changes what convolutions see near its border, and farther in than that few
    voxels are left, or none (`tile_mismatch_by_cropping`). So here the network always passes the *whole*
    volume, once per tile, and only the mean and variance of every norm that measures its own input are
    taken from the tile's part of that layer's input. p_tile is read within the tile. p_full has the
    statistics of the whole volume, padding not counted.

    Norms with running statistics, which evaluation mode applies, are left as they are: a network that has
    no other norms gives exactly 0. So is a `nn.LayerNorm` of one axis, which measures each position alone.

    Args:
        network: any module; unchanged, and used in evaluation mode.
        image: (1, C, ...) in two or three dimensions.
        tile_size: voxels along each spatial axis; the last tile of an axis is moved back into the volume, and
            where a tile is longer than the volume it ends with it.
        multiple: what the network's input sizes must be multiples of; the image is padded with zeros at the
            upper ends up to that.
        targets: what the channels are; exclusive classes by default. No reference is asked, so voxels that
            would be ignored count as any other.

    Raises:
        DataError: sizes that do not fit each other.
    """
    size = tuple(image.shape[2:])
    tiles = _list_tiles(image, tile_size)
    padded = _pad(image, multiple or [1] * len(size))
    whole: Box = tuple(slice(0, length) for length in size)
    inside: Box = (slice(None), *whole)
    full = _predict_with_statistics_of(network, padded, whole, targets)[inside]
    if not _find_measuring_layers(network):
        return TileMismatch(0.0, full, full)
    tiled = torch.empty_like(full)
    for tile in tiles:
        here: Box = (slice(None), *tile)
        tiled[here] = _predict_with_statistics_of(network, padded, tile, targets)[here]
    return TileMismatch(float((tiled - full).abs().mean()), tiled, full)


def tile_mismatch_by_cropping(
    network: nn.Module,
    image: Tensor,
    tile_size: Sequence[int],
    margin: int,
    targets: Targets | None = None,
) -> float:
    """Mean |p_tile - p_full| of tiles cut out and predicted alone, far from their borders.

    The literal definition, for networks whose receptive field leaves voxels to compare.

    Args:
        network: any module; unchanged, and used in evaluation mode.
        image: (1, C, ...), its sizes multiples of the network's strides.
        tile_size: voxels along each spatial axis, likewise multiples, so that tiles lie on the same grid.
        margin: voxels closer than this to a tile's border are left out; half the receptive field leaves
            nothing but the norms to differ.
        targets: as for `tile_mismatch`.

    Raises:
        DataError: sizes that do not fit each other, or a margin that leaves no voxel.
    """
    tiles = _list_tiles(image, tile_size)
    shortest = min(side.stop - side.start for side in tiles[0])
    if not 0 <= 2 * margin < shortest:
        raise DataError(
            f"margin {margin} leaves no voxel of a tile of {tuple(tile_size)} in a volume of "
            f"{tuple(image.shape[2:])}; it must be less than half of {shortest}; "
            "take larger tiles, or tile_mismatch"
        )
    with torch.no_grad(), eval_mode(network):
        full = apply_activation(compute_logits(network, image), targets)
        differences = []
        for tile in tiles:
            here: Box = (slice(None), slice(None), *tile)
            alone = apply_activation(compute_logits(network, image[here]), targets)
            inner = tuple(slice(margin, side.stop - side.start - margin) for side in tile)
            differences.append((alone - full[here])[(slice(None), slice(None), *inner)].abs().mean())
    return float(torch.stack(differences).mean())


def _list_tiles(image: Tensor, tile_size: Sequence[int]) -> list[Box]:
    """Boxes of the tile's size that cover the volume, the last of each axis moved back into it."""
    size = tuple(image.shape[2:])
    if len(image) != 1 or len(size) != len(tile_size):
        raise DataError(
            f"image {tuple(image.shape)} with tiles of {tuple(tile_size)}: give one item (1, C, ...) and a "
            "tile size for each spatial axis"
        )
    if min(tile_size) < 1:
        raise DataError(f"tile size {tuple(tile_size)} must be at least 1 voxel along each axis")
    steps = [min(step, length) for step, length in zip(tile_size, size, strict=True)]
    cuts = [
        [slice(start, start + step) for start in _starts(length, step)]
        for length, step in zip(size, steps, strict=True)
    ]
    return [tuple(box) for box in product(*cuts)]


def _starts(length: int, step: int) -> list[int]:
    return sorted({min(start, length - step) for start in range(0, length, step)})


def _pad(image: Tensor, multiple: Sequence[int]) -> Tensor:
    missing = [-length % step for length, step in zip(image.shape[2:], multiple, strict=True)]
    return F.pad(image, [amount for count in reversed(missing) for amount in (0, count)])


def _predict_with_statistics_of(
    network: nn.Module, padded: Tensor, region: Box, targets: Targets | None
) -> Tensor:
    """Probabilities (K, ...) of the volume, padding included; norms measure only the region's features."""
    padded_size = padded.shape[2:]

    def measure_region(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        (features,) = inputs
        part = _scale(region, padded_size, features.shape[2:])
        return _normalize(layer, features, features[(slice(None), slice(None), *part)])

    with torch.no_grad(), eval_mode(network), ExitStack() as hooks:
        for layer in _find_measuring_layers(network):
            hooks.callback(layer.register_forward_hook(measure_region).remove)
        return apply_activation(compute_logits(network, padded), targets)[0]


def _find_measuring_layers(network: nn.Module) -> list[nn.Module]:
    """Norms that take statistics over space from their own input in evaluation mode."""
    return [
        layer
        for layer in find_norm_layers(network).values()
        if isinstance(layer, NORM_CLASSES)
        and getattr(layer, "running_var", None) is None
        and not (isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1)
    ]


def _scale(region: Box, image_size: Sequence[int], feature_size: Sequence[int]) -> Box:
    """The region of features that covers the region of the image; at least 2 voxels where there are 2."""
    spans = []
    for side, voxels, count in zip(region, image_size, feature_size, strict=True):
        start, stop = side.start * count // voxels, -(-side.stop * count // voxels)
        spans.append([start, max(stop, start + 1)])
    if math.prod(stop - start for start, stop in spans) == 1:  # one value has no variance
        for span, count in zip(spans, feature_size, strict=True):
            if count > 1:
                span[0] = min(span[0], count - 2)
                span[1] = span[0] + 2
                break
    return tuple(slice(start, stop) for start, stop in spans)


def _normalize(layer: Any, features: Tensor, measured: Tensor) -> Tensor:
    """The layer's formula, with mean and variance of `measured`, a part of its features (1, C, ...)."""
    channels = features.size(1)
    # A batch norm without running statistics is an instance norm here, as there is one item.
    per_channel = hasattr(layer, "num_features")  # batch and instance norms
    groups = channels if per_channel else getattr(layer, "num_groups", 1)
    wide = torch.promote_types(features.dtype, torch.float32)
    var, mean = torch.var_mean(measured.to(wide).reshape(groups, -1), dim=1, correction=0)
    shape = (1, channels, *[1] * (features.dim() - 2))
    scale = (var + layer.eps).rsqrt().repeat_interleave(channels // groups).view(shape)
    output = (features.to(wide) - mean.repeat_interleave(channels // groups).view(shape)) * scale
    for parameter, combine in ((layer.weight, torch.mul), (layer.bias, torch.add)):
        if parameter is not None:  # (C,), or the features' own shape in a layer norm
            output = combine(output, parameter.view(shape) if parameter.dim() == 1 else parameter)
    return output.to(features.dtype)
