"""NIfTI files: the array in its own type, and the grid with its header."""

import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medseg_brn.errors import DataError
from medseg_brn.volumes.volume import Grid

GEOMETRY_FIELDS = (
    "pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip
"""Header fields that a written file repeats; names, dates and notes about the patient are left behind."""

LARGEST_DEFLATE_RATIO = 1032
"""Deflate, gzip's method, never makes a file smaller than this."""

READ_ERRORS = (OSError, EOFError, ValueError, zlib.error, MemoryError, OverflowError, nib.filebasedimages.ImageFileError)


def read_nifti_array(path: Path) -> tuple[np.ndarray, Grid]:
    """The values, (X, Y, Z) or (X, Y, Z, channels), and the grid of a NIfTI file.

    Integers stay integers where the header scales nothing; scaled values are float32.

    Raises:
        DataError: the file is truncated or no NIfTI image, or places its voxels nowhere.
    """
    image, grid = _open(path)
    proxy: Any = image.dataobj
    try:
        if proxy.slope == 1 and proxy.inter == 0:
            array = np.asanyarray(proxy)
        else:
            array = np.asarray(proxy.get_scaled(np.float32), dtype=np.float32)
    except READ_ERRORS as error:
        raise DataError(
            f"{path} is truncated or damaged: {_reason(error)}; fetch or export the file again."
        ) from error
    array = array.reshape(image.shape[:3] if image.shape[3:] in ((), (1,)) else image.shape)
    return array.astype(array.dtype.newbyteorder("="), copy=False), grid


def read_nifti_grid(path: Path) -> tuple[Grid, int]:
    """The grid and the number of channels of a NIfTI file, from its header alone.

    Raises:
        DataError: the file is no NIfTI image, or places its voxels nowhere.
    """
    image, grid = _open(path)
    return grid, image.shape[3] if len(image.shape) == 4 else 1


def write_nifti(array: np.ndarray, grid: Grid, path: Path) -> None:
    """Writes (X, Y, Z) values as NIfTI, with the transforms and codes of the grid's header where it has one."""
    header = _written_header(grid)
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    image_class = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    image_class(array, grid.affine, header).to_filename(path)


def _open(path: Path) -> tuple[nib.Nifti1Image, Grid]:
    try:
        # Without a memory map: the array belongs to no file, and a truncated file is noticed here.
        image = nib.load(path, mmap=False)
    except READ_ERRORS as error:
        raise DataError(f"{path} is not a NIfTI image: {_reason(error)}; fetch or export the file again.") from error
    if not isinstance(image, nib.Nifti1Pair):
        raise DataError(f"{path} holds {type(image).__name__}, not NIfTI; convert it to NIfTI.")
    _check_layout(path, image)
    try:
        return image, Grid(image.shape[:3], image.affine, _geometry_of(image.header))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _check_layout(path: Path, image: nib.Nifti1Image) -> None:
    """Raises DataError for what is no 3D or channels-last 4D image of real numbers, or larger than its file allows."""
    shape, dtype = image.shape, image.get_data_dtype()
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise DataError(f"{path} has shape {shape}; a volume has three axes, or four with the channels last.")
    if dtype.kind not in "iuf":
        raise DataError(f"{path} holds values of type {dtype}; a volume holds integers or real numbers.")
    wanted = int(np.prod(shape, dtype=object)) * dtype.itemsize
    size = path.stat().st_size
    largest = size * LARGEST_DEFLATE_RATIO if path.name.endswith(".gz") else size
    if wanted > largest:
        raise DataError(
            f"{path} is truncated or damaged: its header announces {shape} voxels, {wanted} bytes, "
            f"and the file has {size} bytes; fetch or export the file again."
        )


def _geometry_of(header: nib.Nifti1Header) -> nib.Nifti1Header:
    """A header with the transforms of another one and nothing else of it."""
    copy = type(header)()
    copy.set_data_shape(header.get_data_shape()[:3])
    for field in GEOMETRY_FIELDS:
        copy[field] = header[field]
    return copy


def _written_header(grid: Grid) -> nib.Nifti1Header:
    """The grid's own header, or one with sform code 1, and qform code 1 where a qform can hold the affine."""
    if grid.header is not None:
        return _geometry_of(grid.header)
    header = nib.Nifti1Header()
    header.set_data_shape(grid.shape)
    header.set_sform(grid.affine, code=1)
    header.set_qform(grid.affine, code=1, strip_shears=True)
    if not np.allclose(header.get_qform(), grid.affine, atol=1e-3):
        header.set_qform(None, code=0)
    header.set_xyzt_units("mm")
    return header


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].rstrip(".") if str(error).strip() else type(error).__name__
