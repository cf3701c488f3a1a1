"""Probabilities from overlapping windows, for networks whose answer depends on the tile.

Windows of the patch size lie over the volume; where they overlap, their probabilities are averaged with a
Gaussian weight that trusts a window's centre most (Isensee et al. 2021). Planes across X are handed on as
soon as no later window touches them, so the sums take the memory of one row of windows, however long the
volume is.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, product

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medseg_brn.inference.tiles import Box

Progress = Callable[[int, int], None]

# For a single small sample, torch's fp32 convolutions on the CPU do not use oneDNN and take several times as
# long, so small windows go two at a time: half the time for windows of 32 x 48 x 32 voxels.
SMALL_WINDOW_VOXELS = 64**3
FLOAT_BYTES = 4
# The Gaussian's standard deviation as a share of the window, and its least weight against the centre's: each
# voxel of the volume must have a weight, also one that lies in a window's corner only.
SIGMA_SHARE = 0.125
LEAST_WEIGHT = 1e-3


@torch.inference_mode()
def iterate_window_slabs(
    network: Callable[[Tensor], Tensor],
    image: np.ndarray,
    *,
    patch_size: Sequence[int],
    overlap: float = 0.5,
    mirror_axes: Sequence[int] = (),
    mirrored_channels: Sequence[int] | None = None,
    exclusive: bool = True,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> Iterator[Tensor]:
    """Yield the probability of each class or region at each voxel, slab by slab.

    Args:
        network: gives logits (N, K, X, Y, Z); in evaluation mode and on `device`.
        image: (C, X, Y, Z) float32 on the network's grid; a volume smaller than the patch is padded with
            zeros on both sides, as training pads it.
        patch_size: window size in voxels, one that fits the network's strides.
        overlap: share of the window that neighbours have in common, in [0, 1).
        mirror_axes: axes 0, 1, 2 along which the window is also predicted mirrored; all combinations
            are averaged, so n axes take 2^n times as long.
        mirrored_channels: as for `mirror_back`.
        exclusive: as for `compute_probabilities`.
        device: where the network computes.
        dtype: what convolutions compute in: float32 or bfloat16.
        progress: called with (windows done, windows in all) after each pass of the network.

    Yields:
        (K, t, Y, Z) float32 in [0, 1], summing to 1 over exclusive classes at every voxel, consecutive along
        X; on `device`.
    """
    device, shape = torch.device(device), image.shape[1:]
    size = tuple(patch_size)
    before = [max(0, length - given) // 2 for length, given in zip(size, shape, strict=True)]
    padded = [max(length, given) for length, given in zip(size, shape, strict=True)]
    starts = [list_starts(*sizes, overlap) for sizes in zip(padded, size, strict=True)]
    weights = make_weights(size).to(device)
    total, done = math.prod(map(len, starts)), 0
    together = 2 if math.prod(size) <= SMALL_WINDOW_VOXELS else 1
    row = _Row(size[0], padded[1:], weights)
    for position, x in enumerate(starts[0]):
        corners = [(x, y, z) for y, z in product(*starts[1:])]
        for first in range(0, len(corners), together):
            chosen = corners[first : first + together]
            windows = torch.stack([_read(image, corner, size, before) for corner in chosen]).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                probabilities = _predict_mirrored(network, windows, mirror_axes, mirrored_channels, exclusive)
            for corner, window in zip(chosen, probabilities, strict=True):
                row.add(corner, window)
            done += len(chosen)
            if progress is not None:
                progress(done, total)
        following = starts[0][position + 1] if position + 1 < len(starts[0]) else padded[0]
        planes = row.take(following - x)
        yield _crop(planes, x, before, shape)


def compute_probabilities(logits: Tensor, axis: int, exclusive: bool) -> Tensor:
    """Return probabilities in [0, 1] of the logits' shape.

    Args:
        logits: with the channels along `axis`.
        axis: of the channels.
        exclusive: a voxel has one of the classes (softmax), or else lies in any number of regions (sigmoid).
    """
    return logits.softmax(axis) if exclusive else logits.sigmoid()


def count_windows(shape: Sequence[int], patch_size: Sequence[int], overlap: float) -> int:
    """Return how many windows cover a volume of `shape` (X, Y, Z)."""
    return math.prod(
        len(list_starts(max(length, size), size, overlap))
        for length, size in zip(shape, patch_size, strict=True)
    )


def count_row_bytes(shape: Sequence[int], patch_size: Sequence[int], num_classes: int) -> int:
    """Return what sums and means of a row of windows take at most, for a volume of `shape` (X, Y, Z)."""
    _, y, z = (max(length, size) for length, size in zip(shape, patch_size, strict=True))
    return FLOAT_BYTES * patch_size[0] * y * z * (2 * num_classes + 2)


def list_starts(length: int, size: int, overlap: float) -> list[int]:
    """Return where windows of `size` begin along an axis of `length` voxels.

    Size 4, overlap 0.5, so a step of 2; the last window ends where 7 voxels end:

        0 1 2 3 4 5 6
        [-----]
            [-----]
              [-----]
    """
    step = max(1, int(size * (1 - overlap)))
    count = 1 + math.ceil((length - size) / step)
    return [min(number * step, length - size) for number in range(count)]


def make_weights(size: Sequence[int]) -> Tensor:
    """Return a window's Gaussian weights (x, y, z), 1 in the middle."""
    weights = torch.ones(())
    for length in size:
        offsets = torch.arange(length) - (length - 1) / 2
        axis = torch.exp(-0.5 * (offsets / (SIGMA_SHARE * length)) ** 2)
        weights = weights[..., None] * axis
    return weights.clamp_(min=LEAST_WEIGHT)


def iterate_mirrorings(axes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield every subset of the axes: (0, 2) gives (), (0,), (2,), (0, 2)."""
    for size in range(len(axes) + 1):
        yield from combinations(axes, size)


def mirror_back(scores: Tensor, axes: Sequence[int], mirrored_channels: Sequence[int] | None) -> Tensor:
    """Return the scores (…, K, X, Y, Z) of a mirrored image as those of the plain one.

    Args:
        scores: of the mirrored image.
        axes: 0, 1, 2, along which it was mirrored.
        mirrored_channels: for each channel the one that it is in an image mirrored along axis 0, where left
            and right change places; None where all stay what they are.
    """
    if 0 in axes and mirrored_channels is not None:
        scores = scores[..., list(mirrored_channels), :, :, :]
    return scores.flip([axis - 3 for axis in axes])


class _Row:
    """Sums of weighted probabilities, and of weights, of the planes that windows still touch."""

    def __init__(self, thickness: int, plane: Sequence[int], weights: Tensor) -> None:
        self._shape, self._weights = (thickness, *plane), weights
        self._sums = torch.empty(0)
        self._weight_sums = weights.new_zeros(self._shape)

    def add(self, corner: Sequence[int], probabilities: Tensor) -> None:
        """Add a window (K, x, y, z) of the row."""
        if self._sums.numel() == 0:
            self._sums = probabilities.new_zeros((len(probabilities), *self._shape))
        y, z = (
            slice(start, start + length)
            for start, length in zip(corner[1:], probabilities.shape[2:], strict=True)
        )
        self._sums[:, :, y, z] += probabilities * self._weights
        self._weight_sums[:, y, z] += self._weights

    def take(self, count: int) -> Tensor:
        """Return the mean probabilities of the first planes (K, count, y, z), and go on with the rest."""
        means = self._sums[:, :count] / self._weight_sums[:count]
        for sums in (*self._sums, self._weight_sums):  # one class after the other, lest all be copied at once
            kept = len(sums) - count
            sums[:kept] = sums[count:].clone()
            sums[kept:].zero_()
        return means


def _read(image: np.ndarray, corner: Sequence[int], size: Sequence[int], before: Sequence[int]) -> Tensor:
    """Return a window (C, x, y, z) of the volume as it is padded."""
    first = [start - extra for start, extra in zip(corner, before, strict=True)]
    box: list[slice] = []
    padding: list[int] = []
    for start, length, given in zip(first, size, image.shape[1:], strict=True):
        box.append(slice(max(0, start), min(start + length, given)))
        padding = [max(0, -start), max(0, start + length - given), *padding]
    return functional.pad(torch.from_numpy(np.ascontiguousarray(image[:, *box])), padding)


def _crop(planes: Tensor, start: int, before: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Return of padded planes (K, x, y, z), which begin at `start`, those of the volume itself."""
    x, y, z = before
    first, last = max(0, x - start), min(planes.shape[1], x + shape[0] - start)
    inner: Box = (slice(first, last), slice(y, y + shape[1]), slice(z, z + shape[2]))
    return planes[:, *inner]


def _predict_mirrored(
    network: Callable[[Tensor], Tensor],
    windows: Tensor,
    mirror_axes: Sequence[int],
    mirrored_channels: Sequence[int] | None,
    exclusive: bool,
) -> Tensor:
    """Return the mean probabilities over all mirrorings of the windows, the plain one among them."""
    mean = torch.zeros(())
    for count, axes in enumerate(iterate_mirrorings(mirror_axes), 1):
        logits = network(windows.flip([axis + 2 for axis in axes]))  # (N, K, X, Y, Z)
        probabilities = mirror_back(
            compute_probabilities(logits.float(), 1, exclusive), axes, mirrored_channels
        )
        mean = probabilities if count == 1 else mean + (probabilities - mean) / count
    return mean
