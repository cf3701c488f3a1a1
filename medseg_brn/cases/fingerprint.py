"""What a dataset looks like in numbers: voxel sizes, shapes, foreground intensities, class sizes."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from medseg_brn.cases.case import Case
from medseg_brn.cases.dataset import Dataset, read_labelled_case
from medseg_brn.errors import DataError
from medseg_brn.volumes.geometry import canonicalize
from medseg_brn.volumes.volume import Volume

# Enough for the percentiles of a case, and little enough to hold a thousand cases.
SAMPLED_VOXELS = 10_000


@dataclass(frozen=True)
class ChannelStatistics:
    """Intensities of one channel in the foreground, over the voxels drawn from all cases."""

    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float
    minimum: float
    maximum: float


@dataclass(frozen=True)
class Fingerprint:
    """What preprocessing and planning need to know of the training cases.

    Attributes:
        spacing_mm: median voxel size along the canonical axes.
        shape: median number of voxels along the canonical axes.
        channels: foreground intensities of each channel.
        class_voxels: class name -> number of voxels over all cases, background first.
    """

    num_cases: int
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    channels: tuple[ChannelStatistics, ...]
    class_voxels: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Returns the fingerprint in plain JSON types."""
        return asdict(self)


def compute_fingerprint(
    dataset: Dataset, cases: Sequence[Case], on_case: Callable[[Case], object] | None = None
) -> Fingerprint:
    """Returns the fingerprint of `cases`, reading each once.

    From each case at most `SAMPLED_VOXELS` foreground voxels are drawn, the same ones whenever the case is
    measured, so that large structures of few patients do not outweigh the others.

    Args:
        dataset: what the cases belong to.
        cases: labelled cases; those of the training folds alone, or validation leaks into preprocessing.
        on_case: called with each case when it is done.

    Raises:
        DataError: a case cannot be read, or none of them has any foreground.
    """
    spacings, shapes, samples = [], [], []
    class_voxels = np.zeros(dataset.num_classes, np.int64)
    for case in cases:
        images, label_map = read_labelled_case(case, dataset)
        label_map = canonicalize(label_map)
        spacings.append(label_map.spacing_mm)
        shapes.append(label_map.shape)
        samples.append(
            _sample_foreground(case.name, [canonicalize(image) for image in images], label_map.array)
        )
        class_voxels += np.bincount(label_map.array.ravel(), minlength=dataset.num_classes)
        if on_case is not None:
            on_case(case)
    if not sum(sample.shape[1] for sample in samples):
        raise DataError(
            f"None of the {len(cases)} cases of {dataset.name!r} has a foreground voxel, so there is nothing "
            f"to learn; see that the label maps hold the values {dataset.label_values[1:]}."
        )
    spacing_x, spacing_y, spacing_z = np.median(spacings, axis=0).round(6).tolist()
    size_x, size_y, size_z = np.median(shapes, axis=0).round().astype(int).tolist()
    return Fingerprint(
        num_cases=len(cases),
        spacing_mm=(spacing_x, spacing_y, spacing_z),
        shape=(size_x, size_y, size_z),
        channels=tuple(_describe_channel(channel) for channel in np.concatenate(samples, axis=1)),
        class_voxels=dict(zip(dataset.class_names, class_voxels.tolist(), strict=True)),
    )


def _sample_foreground(name: str, images: Sequence[Volume], label_map: np.ndarray) -> np.ndarray:
    """Returns intensities (C, n) of n <= SAMPLED_VOXELS foreground voxels; the case's name is the seed."""
    foreground = np.flatnonzero(label_map)
    if len(foreground) > SAMPLED_VOXELS:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        foreground = foreground[rng.choice(len(foreground), SAMPLED_VOXELS, replace=False, shuffle=False)]
    voxels = np.unravel_index(foreground, label_map.shape)
    return np.stack([image.array[voxels].astype(np.float32) for image in images])


def _describe_channel(intensities: np.ndarray) -> ChannelStatistics:
    low, high = np.percentile(intensities, (0.5, 99.5))
    return ChannelStatistics(
        mean=float(intensities.mean(dtype=np.float64)),
        std=float(intensities.std(dtype=np.float64)),
        percentile_00_5=float(low),
        percentile_99_5=float(high),
        minimum=float(intensities.min()),
        maximum=float(intensities.max()),
    )
