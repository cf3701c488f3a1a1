"""A scan as a model's networks see it, and all that is needed to bring their answer back."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medseg_brn.cases.air import find_air_blocks
from medseg_brn.cases.case import Case
from medseg_brn.cases.dataset import read_images
from medseg_brn.cases.preprocessing import Preprocessing, prepare_images
from medseg_brn.cases.spatial import SpatialRecord
from medseg_brn.errors import DataError
from medseg_brn.volumes.converting import to_volumes
from medseg_brn.volumes.reading import volume_stem
from medseg_brn.volumes.scratch import Scratch
from medseg_brn.volumes.volume import Grid, Volume

Images = Any
"""A scan: a path (a file, or a folder with a DICOM series) or an image in memory (`volumes.converting`); or a
sequence of either, one per channel in the order of the training data. One 4D image may hold all channels."""

# Large enough that few blocks straddle the body's surface, small enough to follow it.
AIR_BLOCK = (16, 16, 16)


@dataclass(frozen=True, eq=False)
class PreparedScan:
    """One scan, read and preprocessed.

    Attributes:
        name: for messages.
        grid: the scan's own.
        images: (C, X, Y, Z) float32 on the network's grid, one per member of the model; members with the
            same preprocessing share one.
        record: the way back to the scan's grid.
        occupied: (x, y, z) of blocks of `AIR_BLOCK` voxels that hold something; None where all do.
        channels: the scan's own values on its own grid, where they are kept.
        scratch: where its arrays are, and what is made from them goes; closed by whoever made it.
        site: where it comes from, as far as it is told.
        series: folder of the DICOM series that it was read from, where what is made of it refers to that.
    """

    name: str
    grid: Grid
    images: tuple[np.ndarray, ...]
    record: SpatialRecord
    occupied: np.ndarray | None
    channels: tuple[Volume, ...]
    scratch: Scratch
    site: str | None = None
    series: Path | None = None


def prepare_scan(
    images: Images,
    preprocessings: Sequence[Preprocessing],
    *,
    skip_air: bool,
    keep_channels: bool,
    scratch: Scratch,
    model_name: str,
    modalities: Sequence[str],
    affine: np.ndarray | None = None,
) -> PreparedScan:
    """Read and preprocess a scan.

    Args:
        images: as for `Model.predict`.
        preprocessings: of the model's members, alike but for the intensities' constants.
        skip_air: look for blocks of air.
        keep_channels: keep the scan's own values too.
        scratch: where large arrays go.
        model_name: for messages.
        modalities: of the model's channels.
        affine: as for `Model.predict`.

    Raises:
        DataError: a file cannot be read, the channels do not fit the model or each other, or voxels are NaN
            or infinite.
    """
    name, volumes = read_scan(images, scratch, affine)
    _check_channel_count(name, len(volumes), model_name, modalities)
    prepared = {key: prepare_images(volumes, key, name, scratch) for key in dict.fromkeys(preprocessings)}
    record = prepared[preprocessings[0]].record
    air = find_air_blocks(volumes, preprocessings[0], record, AIR_BLOCK) if skip_air else None
    for volume in volumes:
        scratch.release(volume.array)
    return PreparedScan(
        name,
        volumes[0].grid,
        tuple(prepared[key].array for key in preprocessings),
        record,
        None if air is None else ~air,
        tuple(volumes) if keep_channels else (),
        scratch,
    )


def read_scan(images: Images, scratch: Scratch, affine: np.ndarray | None = None) -> tuple[str, list[Volume]]:
    """Return a name for messages, and the channels.

    Raises:
        DataError: there are none, they are of no known kind, or a file cannot be read.
    """
    items = list(images) if isinstance(images, list | tuple) else [images]
    if not items:
        raise DataError("There are no images to predict: the list is empty")
    paths = tuple(Path(item) for item in items if isinstance(item, str | Path))
    if not paths:
        return "image", [volume for item in items for volume in to_volumes(item, affine)]
    if len(paths) < len(items):
        raise DataError(
            "Some channels are given as paths and others as images in memory; give all as one kind"
        )
    if affine is not None:
        raise DataError(
            "affine was given for files, which say themselves where their voxels lie; leave it out"
        )
    name = volume_stem(paths[0].resolve()) or "image"
    return name, read_images(Case(name, paths), scratch)


def _check_channel_count(name: str, count: int, model_name: str, modalities: Sequence[str]) -> None:
    if count != len(modalities):
        raise DataError(
            f"Case {name!r} has {_count(count, 'channel')}, but model {model_name!r} takes "
            f"{len(modalities)} ({', '.join(modalities)}); give one image per channel, in the order of "
            f"the training data: {name}_0000, {name}_0001 and so on in a folder, or one 4D file"
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
