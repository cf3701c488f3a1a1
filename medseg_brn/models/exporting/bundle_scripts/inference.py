"""How the network is run: on the whole volume where its norms are folded, else in overlapping windows.

Both give probabilities, averaged over mirrorings where the model asks for them.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any

import torch
from monai.inferers import Inferer, SlidingWindowInferer
from torch import Tensor
from torch.nn import functional

Network = Callable[[Tensor], Tensor]


class WholeVolumeInferer(Inferer):
    """Computes a volume in one piece: no seams and nothing averaged over windows."""

    def __init__(
        self,
        multiples: Sequence[int],
        exclusive: bool,
        mirror_axes: Sequence[int] = (),
        mirrored_channels: Sequence[int] | None = None,
    ) -> None:
        """Take the settings.

        Args:
            multiples: sizes are padded with zeros, at their upper ends, to multiples of these.
            exclusive: as for `compute_probabilities`.
            mirror_axes: as for `average_mirrored`.
            mirrored_channels: as for `average_mirrored`.
        """
        super().__init__()
        self.multiples, self.exclusive = multiples, exclusive
        self.mirror_axes, self.mirrored_channels = mirror_axes, mirrored_channels

    def __call__(self, inputs: Tensor, network: Network, *args: Any, **kwargs: Any) -> Tensor:
        """(N, C, X, Y, Z) -> probabilities (N, K, X, Y, Z)."""

        def predict(image: Tensor) -> Tensor:
            sizes = image.shape[2:]
            missing = [-size % step for size, step in zip(sizes, self.multiples, strict=True)]
            padded = functional.pad(image, [n for extra in reversed(missing) for n in (0, extra)])
            x, y, z = sizes
            return compute_probabilities(network(padded)[:, :, :x, :y, :z], self.exclusive)

        return average_mirrored(predict, _as_plain(inputs), self.mirror_axes, self.mirrored_channels)


class WindowInferer(SlidingWindowInferer):
    """Averages overlapping windows with a Gaussian weight."""

    def __init__(
        self,
        roi_size: Sequence[int],
        overlap: float,
        exclusive: bool,
        mirror_axes: Sequence[int] = (),
        mirrored_channels: Sequence[int] | None = None,
    ) -> None:
        """Take the settings: those of MONAI's class, and those of `WholeVolumeInferer`."""
        super().__init__(roi_size, overlap=overlap, mode="gaussian", sigma_scale=0.125)
        self.exclusive = exclusive
        self.mirror_axes, self.mirrored_channels = mirror_axes, mirrored_channels

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """(N, C, X, Y, Z) -> probabilities (N, K, X, Y, Z)."""

        def predict(windows: Tensor) -> Tensor:
            return compute_probabilities(network(windows), self.exclusive)

        def predict_mirrored(windows: Tensor) -> Tensor:
            return average_mirrored(predict, windows, self.mirror_axes, self.mirrored_channels)

        return super().__call__(_as_plain(inputs), predict_mirrored)


def compute_probabilities(logits: Tensor, exclusive: bool) -> Tensor:
    """Return softmax where a voxel has one class, or sigmoid where it may lie in several regions."""
    return logits.softmax(1) if exclusive else logits.sigmoid()


def average_mirrored(
    predict: Network, image: Tensor, axes: Sequence[int], mirrored_channels: Sequence[int] | None
) -> Tensor:
    """Return the mean prediction over all mirrorings of the image, the plain one among them.

    Args:
        predict: gives probabilities.
        image: (N, C, X, Y, Z).
        axes: 0, 1, 2, along which it is mirrored.
        mirrored_channels: for each channel the one that it is in an image mirrored along axis 0, where left
            and right change places; None where all stay what they are.
    """
    mean = torch.zeros(())
    for count, chosen in enumerate(_subsets(axes), 1):
        flipped = [axis + 2 for axis in chosen]
        scores = predict(image.flip(flipped))
        if 0 in chosen and mirrored_channels is not None:
            scores = scores[:, list(mirrored_channels)]
        scores = scores.flip(flipped)
        mean = scores if count == 1 else mean + (scores - mean) / count
    return mean


def _subsets(axes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    for size in range(len(axes) + 1):
        yield from combinations(axes, size)


def _as_plain(image: Any) -> Tensor:
    """Return the tensor without MONAI's record of what was done to it, which each operation would copy."""
    return image.as_tensor() if hasattr(image, "as_tensor") else image
