"""The 3D U-Net: the whole network in one file, read from top to bottom."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medseg_brn.errors import ConfigError
from medseg_brn.networks.checkpointing import compute_twice
from medseg_brn.networks.convolution import Conv3d, WeightStandardizedConv3d
from medseg_brn.networks.normalization import make_normalization

Size3 = tuple[int, int, int]
NEGATIVE_SLOPE = 0.01


@dataclass(frozen=True)
class _Layers:
    """What all blocks of one network have in common: the normalization and the kind of convolution."""

    norm: str
    norm_options: Mapping[str, Any] = field(default_factory=dict)
    weight_standardization: bool = False

    def convolution_and_norm(
        self, in_channels: int, out_channels: int, kernel: Size3, stride: Size3 = (1, 1, 1)
    ) -> list[nn.Module]:
        """A convolution and, directly after it so that it folds, its normalization."""
        make_convolution = WeightStandardizedConv3d if self.weight_standardization else Conv3d
        convolution = make_convolution(
            in_channels,
            out_channels,
            kernel,
            stride,
            padding=(kernel[0] // 2, kernel[1] // 2, kernel[2] // 2),
            bias=self.norm == "none",  # a norm's own shift makes the bias redundant
        )
        return [convolution, make_normalization(self.norm, out_channels, **self.norm_options)]


class ConvBlock(nn.Sequential):
    """Convolution, normalization, LeakyReLU."""

    def __init__(
        self, layers: _Layers, in_channels: int, out_channels: int, kernel: Size3, stride: Size3 = (1, 1, 1)
    ) -> None:
        # In place is safe: the layers before it keep their input for the backward pass, not their output.
        super().__init__(
            *layers.convolution_and_norm(in_channels, out_channels, kernel, stride),
            nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True),
        )


class ResidualBlock(nn.Module):
    """Two convolutions with a shortcut around them (He et al. 2016, arXiv:1603.05027's original form).

    The shortcut is the identity; where the block strides it is an average pooling, and where it changes
    the number of channels a 1×1×1 convolution follows (He et al. 2019, arXiv:1812.01187, "ResNet-D").
    """

    def __init__(
        self, layers: _Layers, in_channels: int, out_channels: int, kernel: Size3, stride: Size3 = (1, 1, 1)
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *ConvBlock(layers, in_channels, out_channels, kernel, stride),
            *layers.convolution_and_norm(out_channels, out_channels, kernel),
        )
        shortcut: list[nn.Module] = []
        if math.prod(stride) > 1:
            shortcut.append(nn.AvgPool3d(stride, stride))
        if in_channels != out_channels:
            shortcut.extend(layers.convolution_and_norm(in_channels, out_channels, (1, 1, 1)))
        self.shortcut = nn.Sequential(*shortcut)
        self.activation = nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        """(N, in, X, Y, Z) -> (N, out, X / stride, Y / stride, Z / stride)."""
        return self.activation(self.body(features) + self.shortcut(features))


class UNet3d(nn.Module):
    """A 3D U-Net for segmentation.

    The first block of every encoder level but the finest strides. Every decoder level takes the stride
    back with a transposed convolution (kernel = stride, so no voxel is written twice), concatenates the
    encoder's features of that level and has some plain blocks. At full resolution is where the time goes,
    so numbers of blocks are given per level.

    Initialization: convolutions normal with variance 2 / fan_in (He et al. 2015), transposed ones and
    the head with variance 1 / in_channels, as no rectifier follows them; biases 0.

    Attributes:
        strides_total: (3,) by how much the coarsest level is coarser than the input; patch sizes are
            multiples of it.
        activation_checkpointing: while training, keep each level's inputs only and compute the level again
            in the backward pass: less memory, more time, the same results. Off unless set.
    """

    activation_checkpointing = False

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        channels: Sequence[int],
        *,
        strides: Sequence[Size3] | None = None,
        kernels: Sequence[Size3] | None = None,
        encoder: Literal["plain", "residual"] = "plain",
        encoder_blocks: int | Sequence[int] = 2,
        decoder_blocks: int | Sequence[int] = 1,
        norm: str = "batch_renorm",
        norm_options: Mapping[str, Any] | None = None,
        weight_standardization: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        """Make the network.

        Args:
            in_channels: channels of the input image.
            num_classes: channels of the logits: classes, the background counted, or regions.
            channels: feature channels per level, finest first.
            strides: per level, how much coarser than the level before; (1,1,1) then (2,2,2) by default.
            kernels: per level, odd kernel sizes; (3,3,3) by default.
            encoder: `plain` blocks (one convolution each) or `residual` ones (two and a shortcut).
            encoder_blocks: blocks of each encoder level, finest first; one number for all. The stem, always
                a plain block, is the finest level's first one, or stands before its residual ones.
            decoder_blocks: convolutions of each decoder level, finest first; one number for all.
            norm: a name that `make_normalization` knows; `none` gives the convolutions a bias instead.
            norm_options: passed to `make_normalization`.
            weight_standardization: use `WeightStandardizedConv3d` in the blocks.
            deep_supervision: also give logits at the coarser decoder levels while training.

        Raises:
            ConfigError: levels that do not agree, an even kernel size, or a first level that strides.
        """
        super().__init__()
        depth = len(channels)
        strides = list(strides) if strides else [(1, 1, 1)] + [(2, 2, 2)] * (depth - 1)
        kernels = list(kernels) if kernels else [(3, 3, 3)] * depth
        encoder_counts = _per_level("encoder_blocks", encoder_blocks, depth)
        decoder_counts = _per_level("decoder_blocks", decoder_blocks, depth - 1)
        _check_levels(channels, strides, kernels)
        self.in_channels, self.num_classes = in_channels, num_classes
        along_x, along_y, along_z = zip(*strides, strict=True)
        self.strides_total: Size3 = math.prod(along_x), math.prod(along_y), math.prod(along_z)

        layers = _Layers(norm, norm_options or {}, weight_standardization)
        block = ResidualBlock if encoder == "residual" else ConvBlock
        self.stem = ConvBlock(layers, in_channels, channels[0], kernels[0])
        self.encoder = nn.ModuleList()
        for level, (width, kernel) in enumerate(zip(channels, kernels, strict=True)):
            blocks = [block(layers, width, width, kernel) for _ in range(encoder_counts[level] - 1)]
            if level > 0:
                blocks.insert(0, block(layers, channels[level - 1], width, kernel, strides[level]))
            elif encoder == "residual":  # the stem is none of its residual blocks
                blocks.append(block(layers, width, width, kernel))
            self.encoder.append(nn.Sequential(*blocks))

        self.upsampling, self.decoder = nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(depth - 1)):
            width, stride = channels[level], strides[level + 1]
            self.upsampling.append(nn.ConvTranspose3d(channels[level + 1], width, stride, stride))
            widths = [2 * width] + [width] * decoder_counts[level]
            convolutions = (ConvBlock(layers, *pair, kernels[level]) for pair in pairwise(widths))
            self.decoder.append(nn.Sequential(*convolutions))
        self.head = nn.Conv3d(channels[0], num_classes, 1)
        coarser = reversed(channels[1 : depth - 1]) if deep_supervision else ()
        self.coarser_heads = nn.ModuleList(nn.Conv3d(width, num_classes, 1) for width in coarser)
        self._initialize()

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Compute logits.

        Args:
            image: (N, in_channels, X, Y, Z), X, Y and Z multiples of `strides_total`.

        Returns:
            Logits (N, num_classes, X, Y, Z); while training with deep supervision, a list of them, the
            finest first, each next one coarser by its level's stride.

        Raises:
            ConfigError: the number of channels or the size does not fit.
        """
        self._check_input(image)
        features, skips = image, []
        for index in range(len(self.encoder)):
            features = self._run(self._encode, index, features)
            skips.append(features)

        features = skips.pop()  # (N, channels[-1], X / S, Y / S, Z / S), S: strides_total
        coarser_logits = []
        for index in range(len(self.decoder)):
            features = self._run(self._decode, index, features, skips.pop())
            if self.training and index < len(self.coarser_heads):
                coarser_logits.append(self.coarser_heads[index](features))  # (N, K, X / s, Y / s, Z / s)

        logits = self.head(features)  # (N, num_classes, X, Y, Z)
        return [logits, *reversed(coarser_logits)] if coarser_logits else logits

    def _encode(self, index: int, features: Tensor) -> Tensor:
        """(N, channels[i - 1], X / s', Y / s', Z / s') -> (N, channels[i], X / s, Y / s, Z / s), i: `index`.

        s: strides up to level i, s': up to the level before; the finest takes (N, in_channels, X, Y, Z).
        """
        if index == 0:
            features = self.stem(features)  # (N, channels[0], X, Y, Z)
            features = features.contiguous(memory_format=self._memory_format())
        return self.encoder[index](features)

    def _decode(self, index: int, features: Tensor, skip: Tensor) -> Tensor:
        """(N, channels[i + 1], X / s', Y / s', Z / s') -> (N, channels[i], X / s, Y / s, Z / s), as `skip`.

        s: strides up to level i, s': up to the one below; `index` counts from the coarsest level on.
        """
        features = self.upsampling[index](features)  # (N, channels[i], X / s, Y / s, Z / s)
        features = torch.cat((features, skip), dim=1)  # (N, 2 channels[i], X / s, Y / s, Z / s)
        return self.decoder[index](features)

    def _run(self, level: Callable[..., Tensor], index: int, *features: Tensor) -> Tensor:
        """The level's result, with or without its activations kept for the backward pass."""
        if self.training and self.activation_checkpointing and torch.is_grad_enabled():
            return compute_twice(partial(level, index), *features, network=self)
        return level(index, *features)

    def check_patch_size(self, size: Sequence[int]) -> None:
        """Raise ConfigError unless each axis of `size` is a positive multiple of `strides_total`."""
        check_patch_size(size, self.strides_total)

    def _check_input(self, image: Tensor) -> None:
        if image.dim() != 5 or image.shape[1] != self.in_channels:
            raise ConfigError(
                f"Input of shape {tuple(image.shape)} does not fit the network: "
                f"it takes (N, {self.in_channels}, X, Y, Z), {self.in_channels} being its input channels"
            )
        self.check_patch_size(image.shape[2:])

    def _memory_format(self) -> torch.memory_format:
        """Return the weights' own memory format, in which features are kept.

        `network.to(memory_format=torch.channels_last_3d)` is thus all that a caller does. Left alone,
        an image of one channel, to which the formats are the same, would make the features contiguous.
        """
        weight = next(parameter for parameter in self.stem.parameters() if parameter.dim() == 5)
        channels_last = weight.stride(1) == 1 and math.prod(weight.shape[2:]) > 1
        return torch.channels_last_3d if channels_last else torch.contiguous_format

    def _initialize(self) -> None:
        heads = {self.head, *self.coarser_heads}
        for module in self.modules():
            if not isinstance(module, nn.Conv3d | nn.ConvTranspose3d) or module.weight.is_meta:
                continue  # shapes without values have none to draw, and torch loads its compiler to do so
            if isinstance(module, nn.ConvTranspose3d) or module in heads:
                nn.init.normal_(module.weight, std=module.in_channels**-0.5)
            else:
                nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def check_patch_size(size: Sequence[int], strides_total: Size3) -> None:
    """Raise ConfigError where a patch size does not fit a network's strides, naming the nearest that fit."""
    received, smaller, larger = tuple(int(n) for n in size), [], []
    rule = f"it has three axes, each a positive multiple of {strides_total}, the network's total strides"
    if len(received) != 3:
        raise ConfigError(f"Patch size {received} does not fit the network: {rule}")
    for length, stride in zip(received, strides_total, strict=True):
        smaller.append(length // stride * stride)
        larger.append(max(stride, math.ceil(length / stride) * stride))
    if smaller == larger:
        return
    nearest = [tuple(fitting) for fitting in (smaller, larger) if min(fitting) > 0]
    raise ConfigError(
        f"Patch size {received} does not fit the network: {rule}; "
        f"the nearest that fit: {' and '.join(map(str, nearest))}"
    )


def _per_level(name: str, counts: int | Sequence[int], levels: int) -> list[int]:
    """Numbers of blocks of each level, finest first."""
    given = [counts] * levels if isinstance(counts, int) else list(counts)
    if len(given) != levels or any(count < 1 for count in given):
        raise ConfigError(
            f"{name} is {counts}, but takes one number of at least 1, or {levels} of them, one per level"
        )
    return given


def _check_levels(channels: Sequence[int], strides: Sequence[Size3], kernels: Sequence[Size3]) -> None:
    """Raise ConfigError where the levels do not agree."""
    for name, given in (("strides", strides), ("kernels", kernels)):
        if len(given) != len(channels):
            raise ConfigError(
                f"{name} has {len(given)} entries but channels has {len(channels)}; give one per level"
            )
    if any(size % 2 == 0 for kernel in kernels for size in kernel):
        raise ConfigError(f"kernels {list(kernels)}: even sizes have no centre voxel; use odd ones")
    if tuple(strides[0]) != (1, 1, 1):
        raise ConfigError(
            f"The first level strides by {tuple(strides[0])}, so logits would be coarser than the image; "
            "make the first entry of strides (1, 1, 1)"
        )
