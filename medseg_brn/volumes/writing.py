"""Volumes to files, whole or not at all."""

from pathlib import Path

import numpy as np

from medseg_brn.errors import DataError
from medseg_brn.volumes.atomic import atomic_path
from medseg_brn.volumes.image_file import reason
from medseg_brn.volumes.itk import write_itk
from medseg_brn.volumes.nifti import write_nifti
from medseg_brn.volumes.volume import Volume

NIFTI_SUFFIXES = (".nii.gz", ".nii")
WRITTEN_SUFFIXES = (*NIFTI_SUFFIXES, ".nrrd", ".mha")


def write_volume(volume: Volume, path: Path | str) -> None:
    """Writes a volume in the format its suffix names, on the very grid the volume has.

    A NIfTI file repeats both transforms of the file the grid was read from, with their codes. Values keep
    their type where the formats have it; else they take the next one that holds them all: bool becomes uint8,
    float16 becomes float32, and 64-bit integers, which few programs read, become 32-bit ones where they fit.

    Raises:
        DataError: the suffix is none of those, the values are no real numbers, the grid is sheared and the
            format has no shear, or the place cannot be written to.
    """
    path = Path(path)
    if not path.name.lower().endswith(WRITTEN_SUFFIXES):
        raise DataError(f"Cannot write {path}: its name must end in one of {', '.join(WRITTEN_SUFFIXES)}.")
    array = _storable(volume.array, path)
    write = write_nifti if path.name.lower().endswith(NIFTI_SUFFIXES) else write_itk
    with atomic_path(path) as temporary:
        try:
            write(array, volume.grid, temporary)
        except (RuntimeError, DataError) as error:
            raise DataError(f"Cannot write {path}: {reason(error)}.") from error


def _storable(array: np.ndarray, path: Path) -> np.ndarray:
    """The same values in a type that image formats have."""
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "b":
        return array.astype(np.uint8)
    if kind in "iu" and size == 8:
        narrow = np.int32 if kind == "i" else np.uint32
        limits = np.iinfo(narrow)
        fits = limits.min <= array.min() and array.max() <= limits.max
        return array.astype(narrow) if fits else array
    if kind == "f" and size == 2:
        return array.astype(np.float32)
    if kind not in "iuf" or size > 8:
        raise DataError(f"Cannot write {path}: values of type {array.dtype} are no integers or real numbers.")
    return array
