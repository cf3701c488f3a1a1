"""What the scanners see: heads of the phantom, or scans of a dataset, all on one small grid.

Images are (24, 28, 24) voxels on a scale of 0 to 1; to be found is one structure: the head's brain, or all
foreground of a dataset together.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from medseg_brn.cases.dataset import Case, Dataset, read_dataset, read_labelled_case
from medseg_brn.cases.phantom_head import sample_head
from medseg_brn.cases.phantom_shapes import FloatArray
from medseg_brn.errors import DataError
from medseg_brn.volumes.geometry import canonicalize, resample_array

SHAPE, HEAD_VOXEL_MM = (24, 28, 24), 8.0
DARKEST, BRIGHTEST = 2.0, 98.0
"""Percentiles of a dataset's scan that become 0 and 1."""

Masks = NDArray[np.bool_]


class Anatomies(Protocol):
    """Where the study's anatomies come from."""

    @property
    def name(self) -> str:
        """What they are, for the page."""

    def draw(self, count: int, random: np.random.Generator) -> tuple[FloatArray, Masks]:
        """Images (count, X, Y, Z) and masks of the structure, of different people."""


class Heads:
    """Heads of the phantom, as many as one likes."""

    name = "heads of the phantom"

    def draw(self, count: int, random: np.random.Generator) -> tuple[FloatArray, Masks]:
        """See `Anatomies`."""
        axes = [(np.arange(size, dtype=np.float32) - (size - 1) / 2) * HEAD_VOXEL_MM for size in SHAPE]
        points = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
        drawn = [sample_head(random).draw(points, HEAD_VOXEL_MM) for _ in range(count)]
        return np.stack([one.image for one in drawn]), np.stack([one.label_map > 0 for one in drawn])


@dataclass(frozen=True, eq=False)
class OwnScans:
    """Scans of a dataset; a draw takes some by chance."""

    name: str
    images: FloatArray
    """(n, X, Y, Z)."""
    masks: Masks

    def draw(self, count: int, random: np.random.Generator) -> tuple[FloatArray, Masks]:
        """See `Anatomies`."""
        chosen = random.choice(len(self.images), count, replace=False)
        return self.images[chosen], self.masks[chosen]


def read_anatomies(path: Path, needed: int) -> OwnScans:
    """The labelled cases of a dataset, each brought to the study's grid and scale.

    The scale takes away what real scanners did to a scan's gain and offset, so that the only ones are those
    which the study puts in.

    Args:
        path: the dataset's folder, its `dataset.json`, or a CSV manifest.
        needed: cases that the study draws at once.

    Raises:
        DataError: there is no dataset, it has fewer labelled cases or several channels, or a case cannot be
            read, is of one value all over, or has no foreground left on the study's grid.
    """
    dataset = read_dataset(path)
    cases = dataset.labelled_cases
    if len(cases) < needed:
        raise DataError(
            f"{path} has {len(cases)} labelled cases, and the study of sites needs {needed}, each for one "
            "site and one purpose; give a larger dataset, or leave --data out to use the phantom"
        )
    if len(dataset.modalities) != 1:
        raise DataError(
            f"{path} has {len(dataset.modalities)} channels a case, and the study of sites takes one; give a "
            "dataset of one channel, or leave --data out to use the phantom"
        )
    images, masks = zip(*(_read_case(case, dataset) for case in cases), strict=True)
    return OwnScans(f"{len(cases)} scans of {dataset.name}", np.stack(images), np.stack(masks))


def _read_case(case: Case, dataset: Dataset) -> tuple[FloatArray, Masks]:
    (volume,), label_map = read_labelled_case(case, dataset)
    foreground = (label_map.array > 0) & (label_map.array < dataset.num_classes)
    image, mask = (
        resample_array(canonicalize(type(volume)(array, volume.grid)).array, SHAPE, "linear", antialias=True)
        for array in (volume.array.astype(np.float32), foreground.astype(np.float32))
    )
    low, high = np.percentile(volume.array, (DARKEST, BRIGHTEST))
    if high <= low or not (mask >= 0.5).any():
        lacking = "intensities that differ" if high <= low else f"foreground on a grid of {SHAPE} voxels"
        raise DataError(
            f"Case {case.name!r} has no {lacking}; correct the case or take it out of the dataset"
        )
    return ((image - low) / (high - low)).astype(np.float32), mask >= 0.5
