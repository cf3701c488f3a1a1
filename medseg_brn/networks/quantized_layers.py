"""Layers that compute in 8-bit integers: features are unsigned bytes, weights signed ones.

    value = step · (byte − zero),   step and zero one pair per tensor of features
    value = step · byte,            one step per output channel of weights

Products are summed exactly in 32 bits, so a voxel's features do not depend on how a volume is cut.
(Jacob et al. 2018, arXiv:1712.05877.)
"""

import copy
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

# Element-wise work goes over so many numbers at a time. They stay in a processor's cache, and are as many as
# torch gives to one thread: several would wait for each other thousands of times, on busy cores for long.
BLOCK = 2**15
# Convolutions that need more than bytes in between give so many numbers at a time.
SLAB = 2**22


@dataclass(frozen=True)
class Scale:
    """How bytes stand for numbers: value = step · (byte − zero), so that 0 is exactly one of them."""

    step: float
    zero: int

    @classmethod
    def spanning(cls, low: float, high: float) -> Self:
        """Return the scale whose bytes reach from `low` to `high`, and to 0."""
        low, high = min(low, 0.0), max(high, 0.0)
        step = (high - low) / 255 or 1.0
        return cls(step, round(-low / step))

    def quantize(self, values: Tensor) -> Tensor:
        """Return the nearest bytes."""
        return (values / self.step).round_().add_(self.zero).clamp_(0, 255).to(torch.uint8)

    def restore(self, features: Tensor) -> Tensor:
        """Return the numbers that bytes stand for, float32."""
        return (features.float() - self.zero) * self.step


class QuantizedConv3d(nn.Module):
    """A convolution, and the LeakyReLU after it if there is one, from bytes to bytes or to numbers.

    The convolution gives bytes that span what comes before the activation, and a table turns them into those
    of what comes after it. Zeros beyond the border are real ones.

    Attributes:
        in_channels, out_channels, kernel_size, stride: as of `nn.Conv3d`.
    """

    def __init__(
        self,
        convolution: nn.Conv3d,
        taken: Scale,
        given: Scale | None = None,
        *,
        before: Scale | None = None,
        slope: float = 1.0,
    ) -> None:
        """Quantize the weights of a convolution, which stays as it is.

        Args:
            convolution: without groups or dilation.
            taken: of the bytes that it takes.
            given: of the bytes that it gives; None gives float32.
            before: of the bytes before the activation; None where there is no activation.
            slope: the activation's for negative numbers.
        """
        super().__init__()
        self.in_channels, self.out_channels = convolution.in_channels, convolution.out_channels
        self.kernel_size, self.stride = convolution.kernel_size, convolution.stride
        self._geometry = [list(convolution.stride), list(convolution.padding), [1, 1, 1], 1]
        self._taken, self._convolved = (taken.step, taken.zero), before or given
        self._table = None if before is None or given is None else _make_table(before, slope, given)
        weight, limit = convolution.weight.detach().float(), weight_limit() or 127
        self._steps = weight.abs().amax((1, 2, 3, 4)).clamp_min_(1e-12) / limit
        whole = (weight / self._steps.view(-1, 1, 1, 1, 1)).round_().clamp_(-limit, limit).to(torch.int8)
        self._zeros = torch.zeros(self.out_channels, dtype=torch.int64)
        bias = convolution.bias
        self._bias = torch.zeros(self.out_channels) if bias is None else bias.detach().float()
        self._weight = torch.ops.onednn.qconv_prepack(
            whole.contiguous(), self._steps, *self._taken, *self._geometry, None
        )

    def forward(self, features: Tensor) -> Tensor:
        """(N, in, X, Y, Z) uint8, channels last -> (N, out, X / s, Y / s, Z / s) uint8 or float32."""
        scale = self._convolved
        given = (1.0, 0, torch.float32) if scale is None else (scale.step, scale.zero, torch.uint8)
        convolved: Tensor = torch.ops.onednn.qconv3d_pointwise(
            *(features, *self._taken, self._weight, self._steps, self._zeros, self._bias, *self._geometry),
            *(*given, "none", [], ""),
        )
        if self._table is not None:
            _look_up_(convolved, self._table)
        return convolved


class QuantizedStem(nn.Module):
    """The first convolution and its LeakyReLU, from the float32 image to bytes.

    It is computed in float32, as bytes would be too coarse for an image; slab by slab, as its float32
    features of a whole tile would take more memory than all else.

    Attributes:
        convolution: gives features in steps of the bytes, with zeros added along Y and Z only.
    """

    def __init__(self, convolution: nn.Conv3d, slope: float, given: Scale) -> None:
        """Copy a convolution; `given` is the scale of the bytes after the activation."""
        super().__init__()
        scaled: Any = copy.deepcopy(convolution).float().requires_grad_(False)
        scaled.weight.data = (scaled.weight / given.step).to(memory_format=torch.channels_last_3d)
        if scaled.bias is not None:
            scaled.bias.data = scaled.bias / given.step
        # For plans, which count in bytes: the image and its padded copy have 4 bytes a number.
        scaled.live_in_channels = 8 * scaled.in_channels
        self.convolution = scaled
        self._slope, self._zero = slope, given.zero

    def forward(self, image: Tensor) -> Tensor:
        """(N, in, X, Y, Z) float32 -> (N, out, X, Y, Z) uint8, channels last."""
        own = self.convolution
        count, channels, length, *plane = image.shape
        _, beyond_y, beyond_z = own.padding
        reach = own.kernel_size[0] // 2
        padded = image.new_zeros((count, length + 2 * reach, *plane, channels)).permute(0, 4, 1, 2, 3)
        padded[:, :, reach : reach + length] = image
        features = torch.empty((count, length, *plane, own.out_channels), dtype=torch.uint8)
        for start, stop in _slabs(length, count * math.prod(plane) * own.out_channels):
            part = padded[:, :, start : stop + 2 * reach]
            geometry = ((0, beyond_y, beyond_z), own.stride, own.dilation, own.groups)
            values = torch.mkldnn_convolution(part, own.weight, own.bias, *geometry)
            features[:, start:stop] = self._quantize(values.permute(0, 2, 3, 4, 1))
        return features.permute(0, 4, 1, 2, 3)

    def _quantize(self, values: Tensor) -> Tensor:
        """Return the bytes of features in steps, which are used up."""
        flat = values.reshape(-1)
        given = torch.empty(flat.shape, dtype=torch.uint8)
        for block, target in zip(flat.split(BLOCK), given.split(BLOCK), strict=True):
            functional.leaky_relu_(block, self._slope).add_(self._zero + 0.5).clamp_(0, 255)
            target.copy_(block.to(torch.int16))  # a third of the time of going straight to bytes
        return given.view(values.shape)


class QuantizedUpsampling(nn.Module):
    """A transposed convolution whose kernel is its stride, from bytes to bytes.

    Every input voxel gives a block of output voxels that no other one gives to. So it is a 1 × 1 × 1
    convolution to the channels of all voxels of the block, which are then put in their places.

    Attributes:
        stride: of the transposed convolution.
    """

    def __init__(self, transposed: nn.ConvTranspose3d, taken: Scale, given: Scale) -> None:
        """Quantize the weights of a transposed convolution, which stays as it is."""
        super().__init__()
        self.stride = transposed.stride
        in_channels, channels, *block = transposed.weight.shape
        flat = nn.Conv3d(in_channels, math.prod(block) * channels, 1)
        weight = transposed.weight.detach().permute(2, 3, 4, 1, 0)  # (a, b, c, out, in)
        flat.weight.data = weight.reshape(-1, in_channels, 1, 1, 1)
        bias = transposed.bias
        flat.bias.data = weight.new_zeros(channels) if bias is None else bias.detach()  # type: ignore[union-attr]
        flat.bias.data = flat.bias.data.repeat(math.prod(block))  # type: ignore[union-attr]
        self._channels = channels
        self._flat = QuantizedConv3d(flat, taken, given)

    def forward(self, features: Tensor) -> Tensor:
        """(N, in, X, Y, Z) -> (N, out, a·X, b·Y, c·Z), uint8, channels last."""
        count, _, x, y, z = features.shape
        a, b, c = self.stride
        placed = torch.empty((count, x, a, y, b, z, c, self._channels), dtype=torch.uint8)
        for start, stop in _slabs(x, count * y * z * self._flat.out_channels):
            blocks = self._flat(features[:, :, start:stop]).permute(0, 2, 3, 4, 1)
            blocks = blocks.reshape(count, stop - start, y, z, a, b, c, self._channels)
            placed[:, start:stop] = blocks.permute(0, 1, 4, 2, 5, 3, 6, 7)
        return placed.view(count, a * x, b * y, c * z, self._channels).permute(0, 4, 1, 2, 3)


@functools.cache
def weight_limit() -> int | None:
    """Return the largest weight that this processor multiplies right, or None where it cannot at all.

    Instructions before VNNI (2019) add two products in 16 bits and cut off what is more than these hold:
    255 · 127 · 2 is, 255 · 63 · 2 is not. Asked is not what the processor calls itself but a convolution of
    the largest numbers. Weights of 7 bits instead of 8 are what older processors then have to do with.
    """
    return next((limit for limit in (127, 63) if _multiplies(limit)), None)


def _multiplies(limit: int) -> bool:
    features = torch.full((1, 4, 4, 4, 16), 255, dtype=torch.uint8).permute(0, 4, 1, 2, 3)
    weight, steps = torch.full((16, 16, 3, 3, 3), limit, dtype=torch.int8), torch.ones(16)
    geometry, zeros = ([1, 1, 1], [0, 0, 0], [1, 1, 1], 1), torch.zeros(16, dtype=torch.int64)
    try:
        packed = torch.ops.onednn.qconv_prepack(weight, steps, 1.0, 0, *geometry, None)
        found = torch.ops.onednn.qconv3d_pointwise(
            *(features, 1.0, 0, packed, steps, zeros, torch.zeros(16), *geometry),
            *(1.0, 0, torch.float32, "none", [], ""),
        )
    except (RuntimeError, AttributeError):  # a torch without oneDNN has no such operator
        return False
    return bool(torch.allclose(found, torch.tensor(16.0 * 27 * 255 * limit), rtol=1e-5))


def _make_table(before: Scale, slope: float, given: Scale) -> Tensor:
    """Return, for each pair of bytes before the activation, the pair after it: (65536,) int16."""
    values = before.restore(torch.arange(256))
    after = given.quantize(functional.leaky_relu(values, slope))
    first, second = after[None, :].expand(256, 256), after[:, None].expand(256, 256)
    return torch.stack((first, second), -1).contiguous().view(torch.int16).view(-1)


def _look_up_(features: Tensor, table: Tensor) -> None:
    """Replace each byte of features, channels last, by the table's; two at a time, which halves the time."""
    threads = torch.get_num_threads()
    flat = features.permute(0, 2, 3, 4, 1).view(-1)
    if odd := len(flat) % 2:
        flat[-1:] = table.view(torch.uint8)[2 * flat[-1:].long()]
    pairs = flat[: len(flat) - odd]
    # `take` is the slower, but many threads share it.
    together = threads if threads >= 4 else 1
    for block in pairs.split(2 * BLOCK * together):
        places, target = block.view(torch.uint16).to(torch.int64), block.view(torch.int16)
        if together == 1:
            torch.index_select(table, 0, places, out=target)
        else:
            torch.take(table, places, out=target)


def _slabs(length: int, plane: int) -> Iterator[tuple[int, int]]:
    """Yield where slabs of about `SLAB` numbers begin and end, of planes that have `plane` each."""
    thickness = max(1, SLAB // plane)
    yield from ((start, min(start + thickness, length)) for start in range(0, length, thickness))
