"""A U-Net as a list of levels whose pieces can be run on a part of a volume.

Each piece computes an output box from an input box that is a little larger. How much larger, its halo, is
what makes evaluation in tiles exact: a tile is computed with its halo and the halo is then thrown away.
At the volume's own border nothing is added, so there the convolutions pad with zeros, as they do when the
volume is computed whole.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from medseg_brn.networks.unet3d import ResidualBlock, Size3, UNet3d


@dataclass(frozen=True, eq=False)
class Piece:
    """Consecutive layers of one level.

    Attributes:
        layers: run one after the other.
        halo: voxels of the output (per axis and side) that are spoilt where the input was cut off.
        stride: output voxels are this many input voxels wide.
        in_channels: channels of the input.
        channels: channels of the output.
        multiplications: per output voxel.
        live_channels: how many channels (of one output voxel) exist at once while it runs, input included.
    """

    layers: tuple[nn.Module, ...]
    halo: Size3
    stride: Size3
    in_channels: int
    channels: int
    multiplications: int
    live_channels: int


@dataclass(frozen=True, eq=False)
class Level:
    """One resolution of the network.

    Attributes:
        encode: from the level's entry (the image, at the finest) to its skip features.
        enter: from the skip features of the next finer level to this level's entry; None at the finest.
        upsample: from the decoded features of the next coarser level; None at the coarsest.
        decode: from upsampled and skip features, concatenated; None at the coarsest.
        upsample_stride: by how much the next coarser level is coarser.
    """

    encode: Piece
    enter: Piece | None
    upsample: nn.Module | None
    decode: Piece | None
    upsample_stride: Size3

    @property
    def channels(self) -> int:
        """Channels of the skip and of the decoded features."""
        return self.encode.channels


def list_levels(network: UNet3d) -> list[Level]:
    """Return the network's levels, finest first.

    Their pieces hold the very layers of `network`, which therefore may be folded, cast or quantized.
    """
    depth = len(network.encoder)
    channels = [_block_channels(network.stem)]
    stages: list[Any] = list(network.encoder)
    decoders: list[Any] = list(network.decoder)
    channels += [_block_channels(stage[0]) for stage in stages[1:]]
    levels = []
    for index, stage in enumerate(stages):
        blocks = list(stage)
        coarsest = index == depth - 1
        before = network.in_channels if index == 0 else channels[index - 1]
        first = network.stem if index == 0 else blocks.pop(0)
        encoding = [first, *blocks] if index == 0 else blocks
        position = depth - 2 - index  # decoder levels are listed coarsest first
        levels.append(
            Level(
                encode=_make_piece(encoding, before if index == 0 else channels[index], channels[index]),
                enter=None if index == 0 else _make_piece([first], before, channels[index]),
                upsample=None if coarsest else network.upsampling[position],
                decode=None
                if coarsest
                else _make_piece(list(decoders[position]), 2 * channels[index], channels[index]),
                upsample_stride=(1, 1, 1) if coarsest else _stride_of(network.upsampling[position]),
            )
        )
    return levels


def _make_piece(blocks: Sequence[nn.Module], in_channels: int, channels: int) -> Piece:
    convolutions = [layer for block in blocks for layer in _convolutions(block)]
    halo, stride = [0, 0, 0], [1, 1, 1]
    for layer in convolutions:
        for axis in range(3):
            # What a cut spoils of a strided convolution's input spoils that much less of its output.
            halo[axis] += math.ceil(layer.kernel_size[axis] // 2 / layer.stride[axis])
            stride[axis] *= layer.stride[axis]
    per_output = math.prod(stride)
    # A quantized stem takes numbers of more bytes than all others.
    taken = [getattr(layer, "live_in_channels", layer.in_channels) for layer in convolutions]
    live = [
        per_output * channels + layer.out_channels
        for channels, layer in zip(taken, convolutions, strict=True)
    ]
    kept = channels if any(isinstance(block, ResidualBlock) for block in blocks) else 0
    return Piece(
        layers=tuple(blocks),
        halo=(halo[0], halo[1], halo[2]),
        stride=(stride[0], stride[1], stride[2]),
        in_channels=in_channels,
        channels=channels,
        multiplications=sum(
            layer.in_channels * layer.out_channels * math.prod(layer.kernel_size) for layer in convolutions
        ),
        live_channels=max(live, default=channels) + kept,
    )


def _convolutions(block: nn.Module) -> Iterator[Any]:
    """Yield the block's convolutions; a residual block's 1 × 1 × 1 shortcut is one, its pooling is not."""
    yield from (layer for layer in block.modules() if hasattr(layer, "in_channels"))


def _stride_of(upsampling: Any) -> Size3:
    x, y, z = upsampling.stride
    return x, y, z


def _block_channels(block: nn.Module) -> int:
    return next(_convolutions(block)).out_channels


def total_stride(levels: Sequence[Level]) -> Size3:
    """By how much the coarsest level is coarser than the image."""
    x, y, z = (math.prod(level.upsample_stride[axis] for level in levels) for axis in range(3))
    return x, y, z
