"""A scan as a model's networks see it, and all that is needed to bring their answer back."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg_brn.cases.air import find_air_blocks
from medseg_brn.cases.case import Case
from medseg_brn.cases.dataset import read_images
from medseg_brn.cases.preprocessing import Preprocessing, prepare_images
from medseg_brn.cases.spatial import SpatialRecord
from medseg_brn.errors import DataError
from medseg_brn.volumes.reading import volume_stem
from medseg_brn.volumes.scratch import Scratch
from medseg_brn.volumes.volume import Grid, Volume

Images = str | Path | Volume | Sequence[str | Path] | Sequence[Volume]

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
    """

    name: str
    grid: Grid
    images: tuple[np.ndarray, ...]
    record: SpatialRecord
    occupied: np.ndarray | None
    channels: tuple[Volume, ...]
    scratch: Scratch
    site: str | None = None


def prepare_scan(
    images: Images,
    preprocessings: Sequence[Preprocessing],
    *,
    skip_air: bool,
    keep_channels: bool,
    scratch: Scratch,
    model_name: str,
    modalities: Sequence[str],
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

    Raises:
        DataError: a file cannot be read, the channels do not fit the model or each other, or voxels are NaN
            or infinite.
    """
    name, volumes = read_scan(images, scratch)
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


def read_scan(images: Images, scratch: Scratch) -> tuple[str, list[Volume]]:
    """Return a name for messages, and the channels.

    Raises:
        DataError: there are none, they are neither paths nor Volumes, or a file cannot be read.
    """
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
