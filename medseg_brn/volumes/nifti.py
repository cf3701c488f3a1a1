"""NIfTI files: values in their own type, and grids that keep the transforms of the header."""

import gzip
import logging
import zlib
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np

from medseg_brn.errors import DataError
from medseg_brn.volumes.image_file import ImageFile, check_size, reason
from medseg_brn.volumes.scratch import Scratch
from medseg_brn.volumes.volume import Grid

GEOMETRY_FIELDS = (
    "pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip
"""Header fields that a written file repeats; names, dates and notes about the patient are left behind."""

CHUNK_BYTES = 2**24

SPACE_UNITS = 0b111
"""The bits of `xyzt_units` that tell the unit of lengths; the others tell that of time."""

OTHER_UNITS = {1: "metres", 3: "micrometres"}
"""Units of lengths that are not mm; 0, unknown, is mm by all custom."""

DAMAGES = (
    OSError, EOFError, ValueError, OverflowError, MemoryError, zlib.error,
    nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError,
)  # fmt: skip
"""What nibabel and gzip raise on files that are damaged or no NIfTI."""

# nibabel's notes on small oddities of a header would stand between a command's messages.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)


def open_nifti(path: Path) -> ImageFile:
    """The grid of a .nii or .nii.gz file, NIfTI-1 or NIfTI-2, and its values on request.

    The affine is the sform where its code is set, else the qform, else the voxel sizes with the centre at the
    origin, as nibabel has it. Integers stay integers where the header scales nothing; scaled values are
    float32.

    Raises:
        DataError: the file is truncated or no NIfTI image, holds no real numbers, has no three axes (or four
            with the channels last), tells its lengths in another unit than mm, or has a singular or not
            finite affine; when its values are read, also that they do not fit into memory.
    """
    try:
        image: Any = nib.load(path)
    except DAMAGES as error:
        raise DataError(f"{path} is not a NIfTI image: {reason(error)}; fetch or export it again.") from error
    if not isinstance(image, nib.Nifti1Pair):
        raise DataError(f"{path} is not NIfTI but {type(image).__name__}; convert it to NIfTI.")
    _check_layout(path, image)
    _check_unit(path, image.header)
    try:
        grid = Grid(image.shape[:3], image.affine, _geometry_of(image.header))  # type: ignore[arg-type]
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    channels = image.shape[3] if len(image.shape) == 4 else 1
    return ImageFile(path, grid, channels, lambda scratch: _read_array(path, image, scratch))


def write_nifti(array: np.ndarray, grid: Grid, path: Path) -> None:
    """Writes (X, Y, Z) values as NIfTI, with the transforms and codes of the grid's header if it has one."""
    header = _new_header(grid) if grid.header is None else _geometry_of(grid.header)
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    image_class = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    image_class(array, grid.affine, header).to_filename(path)


def _check_layout(path: Path, image: nib.Nifti1Pair) -> None:
    proxy: Any = image.dataobj
    shape, dtype = image.shape, image.get_data_dtype()
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise DataError(f"{path} has shape {shape}; a volume has three axes, or four with the channels last.")
    if dtype.kind not in "iuf":
        raise DataError(f"{path} holds values of type {dtype}; a volume holds integers or real numbers.")
    if proxy.offset < image.header.single_vox_offset:
        raise DataError(
            f"{path} is damaged: its voxels begin at byte {proxy.offset}, inside the header of "
            f"{image.header.single_vox_offset} bytes; fetch or export it again."
        )
    check_size(path, shape, dtype.itemsize, compressed=_is_compressed(path))


def _check_unit(path: Path, header: nib.Nifti1Header) -> None:
    """Raises DataError for a unit that would make every spacing, volume and distance wrong."""
    code = int(header["xyzt_units"])
    unit = OTHER_UNITS.get(code & SPACE_UNITS)
    if unit is not None:
        sizes = ", ".join(f"{size:.4g}" for size in header["pixdim"][1:4])
        raise DataError(
            f"{path} tells its lengths in {unit} (xyzt_units {code}, voxels of {sizes}), and "
            "only mm are read; convert both transforms of its header to mm, or, where they are in mm in "
            "truth, correct the unit alone."
        )


def _read_array(path: Path, image: Any, scratch: Scratch) -> np.ndarray:
    """(X, Y, Z) or (X, Y, Z, channels) values; a fourth axis of one channel is dropped.

    They are read piece by piece, so that beside the values themselves nothing of their size is made.
    """
    proxy, dtype = image.dataobj, image.get_data_dtype()
    scaled = (proxy.slope, proxy.inter) != (1, 0)
    num_bytes = prod(image.shape) * dtype.itemsize
    try:
        values = scratch.empty((prod(image.shape),), np.float32 if scaled else dtype.newbyteorder("="))
        with gzip.open(path) if _is_compressed(path) else path.open("rb") as stream:
            stream.seek(proxy.offset)
            _read_values(stream, dtype, values, (proxy.slope, proxy.inter) if scaled else None, scratch)
            # Only at its end does gzip compare its checksum with what was read.
            while stream.read(CHUNK_BYTES):
                pass
    except MemoryError as error:
        raise DataError(
            f"{path} does not fit into memory: its values take {num_bytes / 2**30:.3g} GiB; crop or "
            "resample it, or use a machine with more memory."
        ) from error
    except DAMAGES as error:
        raise DataError(
            f"{path} is truncated or damaged: {reason(error)}; fetch or export it again."
        ) from error
    array = values.reshape(image.shape, order="F")
    return array[..., 0] if image.shape[3:] == (1,) else array


def _read_values(
    stream: BinaryIO | gzip.GzipFile,
    dtype: np.dtype,
    values: np.ndarray,
    scaling: tuple[float, float] | None,
    scratch: Scratch,
) -> None:
    """Fills `values` with the next ones of the stream, times slope plus intercept where they are scaled."""
    step = CHUNK_BYTES // dtype.itemsize
    for start in range(0, len(values), step):
        wanted = min(step, len(values) - start) * dtype.itemsize
        data = stream.read(wanted)
        if len(data) < wanted:
            raise EOFError(f"expected {values.size * dtype.itemsize} bytes of values and found fewer")
        piece = np.frombuffer(data, dtype)
        if scaling is not None:
            piece = piece.astype(np.float64) * scaling[0] + scaling[1]
        values[start : start + len(piece)] = piece
        scratch.release(values)


def _is_compressed(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _geometry_of(header: nib.Nifti1Header) -> nib.Nifti1Header:
    """A new header with both transforms of another one and nothing else of it."""
    geometry = type(header)()
    geometry.set_data_shape(header.get_data_shape()[:3])
    for field in GEOMETRY_FIELDS:
        geometry[field] = header[field]
    return geometry


def _new_header(grid: Grid) -> nib.Nifti1Header:
    """A header with the affine as sform, and as qform too where no shear forbids it; codes 1, "scanner"."""
    header = nib.Nifti1Header()
    header.set_data_shape(grid.shape)
    header.set_sform(grid.affine, code=1)
    header.set_qform(grid.affine, code=1, strip_shears=True)
    if not np.allclose(header.get_qform(), grid.affine, atol=1e-3):
        header.set_qform(None, code=0)
    header.set_xyzt_units("mm")
    return header
