"""The folded 3D U-Net in plain torch: convolutions, activations, and norms only where they do not fold."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

NEGATIVE_SLOPE = 0.01
Size3 = tuple[int, int, int]


def as_size(values: Sequence[int]) -> Size3:
    """Return a size as torch takes it; JSON has lists."""
    x, y, z = values
    return x, y, z


def make_norm(name: str, channels: int) -> nn.Module:
    """Return the norm after a convolution: `none` where it was folded into it."""
    match name:
        case "none":
            return nn.Identity()
        case "instance":
            return nn.InstanceNorm3d(channels, affine=True)
        case "group":
            return nn.GroupNorm(math.gcd(8, channels), channels)
        case "layer":
            return nn.GroupNorm(1, channels)
    raise ValueError(f"norm is {name!r}; it takes one of none, instance, group, layer")


def make_convolution(
    norm: str, in_channels: int, out_channels: int, kernel: Sequence[int], stride: Sequence[int] = (1, 1, 1)
) -> list[nn.Module]:
    """Return a convolution and its norm."""
    x, y, z = (size // 2 for size in kernel)
    convolution = nn.Conv3d(
        in_channels, out_channels, as_size(kernel), as_size(stride), (x, y, z), bias=norm == "none"
    )
    return [convolution, make_norm(norm, out_channels)]


class PlainBlock(nn.Sequential):
    """Convolution, norm, LeakyReLU."""

    def __init__(
        self,
        norm: str,
        in_channels: int,
        out_channels: int,
        kernel: Sequence[int],
        stride: Sequence[int] = (1, 1, 1),
    ) -> None:
        super().__init__(
            *make_convolution(norm, in_channels, out_channels, kernel, stride), nn.LeakyReLU(NEGATIVE_SLOPE)
        )


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut: average pooling where it strides, 1 x 1 x 1 where channels change."""

    def __init__(
        self,
        norm: str,
        in_channels: int,
        out_channels: int,
        kernel: Sequence[int],
        stride: Sequence[int] = (1, 1, 1),
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *PlainBlock(norm, in_channels, out_channels, kernel, stride),
            *make_convolution(norm, out_channels, out_channels, kernel),
        )
        shortcut: list[nn.Module] = []
        if math.prod(stride) > 1:
            shortcut.append(nn.AvgPool3d(as_size(stride), as_size(stride)))
        if in_channels != out_channels:
            shortcut.extend(make_convolution(norm, in_channels, out_channels, (1, 1, 1)))
        self.shortcut = nn.Sequential(*shortcut)
        self.activation = nn.LeakyReLU(NEGATIVE_SLOPE)

    def forward(self, features: Tensor) -> Tensor:
        """(N, in, X, Y, Z) -> (N, out, X / stride, Y / stride, Z / stride)."""
        return self.activation(self.body(features) + self.shortcut(features))


class FoldedUNet(nn.Module):
    """A trained 3D U-Net whose norms are part of its convolutions; for inference only.

    Args:
        in_channels: channels of the image.
        out_channels: channels of the logits: classes, the background first, or regions.
        channels: features of each level, finest first.
        strides: of each level, how much coarser it is than the level before.
        kernels: of each level.
        encoder: `plain` or `residual` blocks.
        encoder_blocks: of each encoder level.
        decoder_blocks: of each decoder level, finest first.
        norm: `none`; `instance`, `group` or `layer`, which measure the image itself and so do not fold.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        kernels: Sequence[Sequence[int]],
        encoder: str,
        encoder_blocks: Sequence[int],
        decoder_blocks: Sequence[int],
        norm: str = "none",
    ) -> None:
        super().__init__()
        make_block = partial(ResidualBlock if encoder == "residual" else PlainBlock, norm)
        self.stem = PlainBlock(norm, in_channels, channels[0], kernels[0])
        self.encoder = nn.ModuleList()
        for level, (width, kernel) in enumerate(zip(channels, kernels, strict=True)):
            blocks = [make_block(width, width, kernel) for _ in range(encoder_blocks[level] - 1)]
            if level > 0:
                blocks.insert(0, make_block(channels[level - 1], width, kernel, strides[level]))
            elif encoder == "residual":  # the stem is none of its residual blocks
                blocks.append(make_block(width, width, kernel))
            self.encoder.append(nn.Sequential(*blocks))
        self.upsampling, self.decoder = nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(len(channels) - 1)):
            width, stride = channels[level], as_size(strides[level + 1])
            self.upsampling.append(nn.ConvTranspose3d(channels[level + 1], width, stride, stride))
            widths = [2 * width] + [width] * decoder_blocks[level]
            plain = (PlainBlock(norm, *pair, kernels[level]) for pair in pairwise(widths))
            self.decoder.append(nn.Sequential(*plain))
        self.head = nn.Conv3d(channels[0], out_channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(N, in_channels, X, Y, Z), sizes multiples of the total strides -> logits (N, K, X, Y, Z)."""
        features, skips = self.stem(image), []
        for level in self.encoder:
            features = level(features)
            skips.append(features)
        features = skips.pop()
        for upsample, decode in zip(self.upsampling, self.decoder, strict=True):
            features = decode(torch.cat((upsample(features), skips.pop()), dim=1))
        return self.head(features)
