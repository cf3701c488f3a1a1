"""Volumes from files, whatever the format: arrays in (X, Y, Z) order on grids in RAS+ mm."""

from pathlib import Path

import numpy as np

from medseg_brn.errors import DataError
from medseg_brn.volumes.nifti import read_nifti_array, read_nifti_grid
from medseg_brn.volumes.volume import Grid, Volume

NIFTI_SUFFIXES = (".nii.gz", ".nii")
ITK_SUFFIXES = (".nrrd", ".mha", ".mhd")
VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, *ITK_SUFFIXES)


def read_volume(path: Path | str) -> Volume:
    """The volume in a NIfTI, NRRD, MHA or MHD file, or in a folder with one DICOM series.

    Values keep the type they are stored in; where the file scales them they are float32.

    Raises:
        DataError: nothing is there, it is truncated or no image, it has several channels, or its affine is singular
            or not finite.
    """
    channels = read_channels(path)
    if len(channels) > 1:
        raise DataError(
            f"{path} has {len(channels)} channels where one volume is expected; split it into one file per channel."
        )
    return channels[0]


def read_channels(path: Path | str) -> list[Volume]:
    """The channels of a file, one volume each: the last axis of a 4D NIfTI, or the single channel of a 3D one.

    Raises:
        DataError: as `read_volume`, save that several channels are welcome.
    """
    path = _existing(path)
    array, grid = read_nifti_array(path)
    return [Volume(channel, grid) for channel in _split(array)]


def read_grid(path: Path | str) -> Grid:
    """The grid of a file or of a folder with a DICOM series, read from the headers alone.

    Raises:
        DataError: nothing is there, it is no image, or its affine is singular or not finite.
    """
    return read_nifti_grid(_existing(path))[0]


def is_volume_path(path: Path | str) -> bool:
    """Whether a path names a volume: by the suffix of a file, or by the DICOM files in a folder.

    Names that begin with a dot are no volumes: systems and interrupted writers leave such files behind.
    """
    path = Path(path)
    return not path.name.startswith(".") and path.is_file() and path.name.lower().endswith(VOLUME_SUFFIXES)


def volume_stem(path: Path | str) -> str:
    """A path's name without its volume suffix: "a.nii.gz" gives "a", and a folder gives its own name."""
    name = Path(path).name
    for suffix in VOLUME_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def _existing(path: Path | str) -> Path:
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist; check the name and the folder.")
    return path


def _split(array: np.ndarray) -> list[np.ndarray]:
    return [array] if array.ndim == 3 else [array[..., channel] for channel in range(array.shape[3])]
