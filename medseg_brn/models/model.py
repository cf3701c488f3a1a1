"""A loaded model: from a scan to a label map on the scan's own grid."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

import numpy as np
import torch
from torch import nn

from medseg_brn.cases.case import Case
from medseg_brn.cases.dataset import read_images
from medseg_brn.cases.preprocessing import prepare_images
from medseg_brn.cases.spatial import restore_probabilities, restore_scores
from medseg_brn.errors import DataError
from medseg_brn.inference.windows import Progress, predict_probabilities
from medseg_brn.models.description import ModelDescription
from medseg_brn.networks.surgery import fold
from medseg_brn.volumes.reading import volume_stem
from medseg_brn.volumes.volume import Volume

Images = str | Path | Volume | Sequence[str | Path] | Sequence[Volume]


@dataclass(frozen=True)
class Model:
    """A network ready to predict, and the description it came with.

    Attributes:
        network: folded, in evaluation mode, on `device`, in channels_last_3d.
        description: classes, label values, preprocessing, patch size and all else.
        device: where it computes.
        dtype: what its convolutions compute in, float32 or bfloat16.
    """

    network: nn.Module
    description: ModelDescription
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def from_network(
        cls, network: nn.Module, description: ModelDescription, device: torch.device, dtype: torch.dtype
    ) -> "Model":
        """Make a model of a trained network, which stays as it is: a copy is folded."""
        folded = fold(network, (1, description.in_channels, *description.patch_size))
        folded.requires_grad_(False)
        folded.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # torch's stub
        return cls(folded, description, device, dtype)

    @overload
    def predict(
        self,
        images: Images,
        *,
        probabilities: Literal[False] = False,
        overlap: float | None = None,
        mirror_axes: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> Volume: ...

    @overload
    def predict(
        self,
        images: Images,
        *,
        probabilities: Literal[True],
        overlap: float | None = None,
        mirror_axes: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> tuple[Volume, np.ndarray]: ...

    def predict(
        self,
        images: Images,
        *,
        probabilities: bool = False,
        overlap: float | None = None,
        mirror_axes: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> Volume | tuple[Volume, np.ndarray]:
        """Segment one scan.

        Args:
            images: a file, a folder with a DICOM series, or a Volume; or a list of them, one per channel
                in the order of the training data. One 4D file may hold all channels.
            probabilities: also return each class's probability.
            overlap: of neighbouring windows, as a share in [0, 1); the model's own by default.
            mirror_axes: axes 0, 1, 2 (canonical: left-right, front-back, up-down) mirrored for test-time
                augmentation; the model's own by default.
            progress: called with (windows done, windows in all).

        Returns:
            The label map, with the label values of the training data, on exactly the grid of the (first)
            image; with `probabilities` also their array (K, X, Y, Z), float32 in [0, 1], on that grid.

        Raises:
            DataError: a file cannot be read, the channels do not fit the model or each other, or voxels are
                NaN or infinite.
        """
        name, volumes = _read_channels(images)
        self._check_channel_count(name, len(volumes))
        prepared = prepare_images(volumes, self.description.preprocessing, name)
        settings = self.description.inference
        predicted = predict_probabilities(
            self.network,
            prepared.array,
            patch_size=self.description.patch_size,
            overlap=settings.overlap if overlap is None else overlap,
            mirror_axes=settings.mirror_axes if mirror_axes is None else mirror_axes,
            device=self.device,
            dtype=self.dtype,
            progress=progress,
        )
        scores = predicted.cpu().numpy()
        classes = restore_scores(scores, prepared.record)
        label_map = Volume(_to_label_values(classes, self.description.label_values), volumes[0].grid)
        return (label_map, restore_probabilities(scores, prepared.record)) if probabilities else label_map

    def _check_channel_count(self, name: str, count: int) -> None:
        modalities = self.description.modalities
        if count != len(modalities):
            raise DataError(
                f"Case {name!r} has {_count(count, 'channel')}, but model {self.description.name!r} takes "
                f"{len(modalities)} ({', '.join(modalities)}); give one image per channel, in the order of "
                f"the training data: {name}_0000, {name}_0001 and so on in a folder, or one 4D file"
            )


def _read_channels(images: Images) -> tuple[str, list[Volume]]:
    """Return a name for messages, and the channels."""
    items = [images] if isinstance(images, str | Path | Volume) else list(images)
    if not items:
        raise DataError("There are no images to predict: the list is empty")
    volumes = [item for item in items if isinstance(item, Volume)]
    if len(volumes) == len(items):
        return "image", volumes
    paths = tuple(Path(item) for item in items if isinstance(item, str | Path))
    if len(paths) < len(items):
        kinds = ", ".join(sorted({type(item).__name__ for item in items}))
        raise DataError(f"Images are given as paths or as Volumes, not as {kinds}")
    name = volume_stem(paths[0].resolve()) or "image"
    return name, read_images(Case(name, paths))


def _to_label_values(classes: np.ndarray, label_values: Sequence[int]) -> np.ndarray:
    """Return the label map with each class replaced by its value, in the smallest integer type for all."""
    smallest = np.result_type(*(np.min_scalar_type(value) for value in label_values))
    return np.asarray(label_values, dtype=smallest)[classes]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
