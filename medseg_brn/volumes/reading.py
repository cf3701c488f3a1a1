"""Volumes from files, whatever the format: arrays in (X, Y, Z) order on grids in RAS+ mm."""

import os
import re
from pathlib import Path

from medseg_brn.errors import DataError
from medseg_brn.volumes.dicom import holds_dicom, open_dicom
from medseg_brn.volumes.image_file import ImageFile
from medseg_brn.volumes.itk import open_itk
from medseg_brn.volumes.nifti import open_nifti
from medseg_brn.volumes.scratch import Scratch
from medseg_brn.volumes.volume import Grid, Volume

NIFTI_SUFFIXES = (".nii.gz", ".nii")
ITK_SUFFIXES = (".nrrd", ".mha", ".mhd")
VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, *ITK_SUFFIXES)

VOXEL_FILE = re.compile(rb"^(?:ElementDataFile\s*=|data ?file:)[ \t]*([^\r\n]*)", re.MULTILINE)
"""Where the header of a MetaImage or NRRD says in which file the voxels are."""

HEADER_BYTES = 65536
"""A header is a few hundred bytes."""

PROBABILITIES_ENDING = "_probabilities.nii.gz"
"""How the file of the class probabilities ends that lies beside a predicted label map."""


def read_volume(path: Path | str) -> Volume:
    """The volume in a NIfTI, NRRD, MHA or MHD file, or in a folder that holds one DICOM series.

    Values keep the type they are stored in; where a NIfTI header scales them they are float32.

    Raises:
        DataError: nothing is there, it is truncated or no image, it has several channels, or its affine is
            singular or not finite.
    """
    file = _open(Path(path))
    if file.channels > 1:
        raise DataError(
            f"{path} has {file.channels} channels (shape {(*file.grid.shape, file.channels)}) where one "
            f"volume is "
            "expected; write each channel to a file of its own."
        )
    return Volume(file.read_array(Scratch()), file.grid)


def read_channels(path: Path | str, scratch: Scratch | None = None) -> list[Volume]:
    """The channels of a file, one volume each on the same grid: a 4D NIfTI with channels last, or one volume.

    Args:
        path: the file, or a folder with one DICOM series.
        scratch: where large arrays go; in memory by default.

    Raises:
        DataError: nothing is there, it is truncated or no image, or its affine is singular or not finite.
    """
    file = _open(Path(path))
    array = file.read_array(scratch or Scratch())
    if file.channels == 1:
        return [Volume(array, file.grid)]
    return [Volume(array[..., channel], file.grid) for channel in range(file.channels)]


def read_grid(path: Path | str) -> Grid:
    """The grid of a file, or of a folder that holds one DICOM series, from the headers alone.

    Raises:
        DataError: nothing is there, it is no image, or its affine is singular or not finite.
    """
    return _open(Path(path)).grid


def is_volume_path(path: Path | str) -> bool:
    """Whether a volume can be expected at a path: a file with a volume's suffix, or a folder with DICOM
    files.

    Names that begin with a dot are no volumes: systems and interrupted programs leave such files behind.
    """
    path = Path(path)
    if path.name.startswith("."):
        return False
    return holds_dicom(path) if path.is_dir() else path.is_file() and _has_suffix(path, VOLUME_SUFFIXES)


def list_image_files(path: Path | str) -> list[Path]:
    """The files that an image is made of: itself; a folder's; or a header and the files with its voxels.

    Where a header names them by a list or a pattern, all files beside it are taken.
    """
    path = Path(path)
    if path.is_dir():
        return _list_files(path)
    if not _has_suffix(path, (".mhd", ".nrrd")):
        return [path]
    with path.open("rb") as file:
        found = VOXEL_FILE.search(file.read(HEADER_BYTES))
    name = found[1].decode("utf-8", "replace").strip() if found else "LOCAL"
    if name.upper() == "LOCAL":
        return [path]
    voxels = path.parent / name
    return [path, voxels] if voxels.is_file() else [path, *_list_files(path.parent)]


def volume_stem(path: Path | str) -> str:
    """A path's name without its volume suffix: "a.nii.gz" gives "a"; a folder gives its own name."""
    name = Path(path).name
    for suffix in VOLUME_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def _open(path: Path) -> ImageFile:
    if not path.exists():
        raise DataError(f"{path} does not exist; check the name and the folder.")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path} may not be read by this user; correct its permissions.")
    if path.is_dir():
        return open_dicom(path)
    if _has_suffix(path, NIFTI_SUFFIXES):
        return open_nifti(path)
    if _has_suffix(path, ITK_SUFFIXES):
        return open_itk(path)
    raise DataError(
        f"{path} is none of {', '.join(VOLUME_SUFFIXES)}; convert it, or for DICOM give the folder of the "
        f"series."
    )


def _list_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file())


def _has_suffix(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.name.lower().endswith(suffixes)
