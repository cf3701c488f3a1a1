"""Class probabilities of a whole volume from overlapping windows."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations

import numpy as np
import torch
from torch import Tensor, nn

Progress = Callable[[int, int], None]

# For a single small sample, torch's fp32 convolutions on the CPU do not use oneDNN and take several times as
# long, so small windows go two at a time: half the time for windows of 32 x 48 x 32 voxels.
SMALL_WINDOW_VOXELS = 64**3


def predict_probabilities(
    network: nn.Module,
    image: Tensor | np.ndarray,
    *,
    patch_size: Sequence[int],
    overlap: float = 0.5,
    mirror_axes: Sequence[int] = (),
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> Tensor:
    """Compute the probability of each class at each voxel.

    Windows of the patch size lie over the volume; where they overlap, their probabilities are averaged
    with a Gaussian weight that trusts a window's centre most. A volume smaller than the patch is padded
    with zeros, as training pads it.

    Args:
        network: gives logits (N, K, X, Y, Z); in evaluation mode and on `device`.
        image: (C, X, Y, Z) float32 on the network's grid.
        patch_size: window size in voxels, one that fits the network's strides.
        overlap: share of the window that neighbours have in common, in [0, 1).
        mirror_axes: axes 0, 1, 2 along which the window is also predicted mirrored; all combinations
            are averaged, so n axes take 2^n times as long.
        device: where the network computes.
        dtype: what convolutions compute in: float32 or bfloat16.
        progress: called with (windows done, windows in all) after each pass of the network.

    Returns:
        (K, X, Y, Z) float32, non-negative and summing to 1 over the classes at every voxel; on `device`,
        or in main memory where the GPU's does not suffice for the whole volume.
    """
    device = torch.device(device)
    blend = partial(
        _blend_windows,
        network,
        torch.as_tensor(image, dtype=torch.float32),
        patch_size=tuple(patch_size),
        overlap=overlap,
        mirror_axes=mirror_axes,
        device=device,
        progress=progress,
    )
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        try:
            return blend(blend_device=device)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
        return blend(blend_device=torch.device("cpu"))


def count_windows(shape: Sequence[int], patch_size: Sequence[int], overlap: float) -> int:
    """Return how many windows cover a volume of `shape` (X, Y, Z).

    Patch 4, overlap 0.5, so a step of 2; the last window ends where 7 voxels end:

        0 1 2 3 4 5 6
        [-----]
            [-----]
              [-----]
    """
    count = 1
    for length, size in zip(shape, patch_size, strict=True):
        step = max(1, int(size * (1 - overlap)))
        count *= 1 + math.ceil(max(0, length - size) / step)
    return count


def _blend_windows(
    network: nn.Module,
    image: Tensor,
    *,
    patch_size: tuple[int, ...],
    overlap: float,
    mirror_axes: Sequence[int],
    device: torch.device,
    progress: Progress | None,
    blend_device: torch.device,
) -> Tensor:
    """Return (K, X, Y, Z) probabilities, blended on `blend_device`."""
    from monai.inferers.utils import sliding_window_inference  # takes as long to import as torch

    total = count_windows(image.shape[1:], patch_size, overlap)
    done = 0

    def predict_windows(windows: Tensor) -> Tensor:  # (N, C, *patch_size) -> (N, K, *patch_size)
        nonlocal done
        probabilities = _predict_mirrored(network, windows, mirror_axes)
        done += len(windows)
        if progress is not None:
            progress(done, total)
        return probabilities

    blended = sliding_window_inference(
        image[None],
        patch_size,
        sw_batch_size=2 if math.prod(patch_size) <= SMALL_WINDOW_VOXELS else 1,
        predictor=predict_windows,
        overlap=overlap,
        mode="gaussian",
        sw_device=device,
        device=blend_device,
    )
    return blended[0]


def _predict_mirrored(network: nn.Module, windows: Tensor, mirror_axes: Sequence[int]) -> Tensor:
    """Return the mean probabilities over all mirrorings of the windows, the plain one among them."""
    mean = torch.zeros(())
    for count, axes in enumerate(_mirrorings(mirror_axes), 1):
        dimensions = [axis + 2 for axis in axes]
        logits = network(windows.flip(dimensions))  # (N, K, X, Y, Z)
        probabilities = logits.float().softmax(1).flip(dimensions)
        mean = probabilities if count == 1 else mean + (probabilities - mean) / count
    return mean


def _mirrorings(axes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield every subset of the axes: (0, 2) gives (), (0,), (2,), (0, 2)."""
    for size in range(len(axes) + 1):
        yield from combinations(axes, size)
