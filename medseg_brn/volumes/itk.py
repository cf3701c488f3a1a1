"""NRRD, MHA and MHD files by SimpleITK.

SimpleITK's arrays are (z, y, x) and its world is LPS+: x grows to the patient's left, y to the back. Here,
and in `dicom.py` through the functions here, they become (X, Y, Z) and RAS+. No other code knows the
difference.
"""

import re
from math import prod
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from medseg_brn.errors import DataError
from medseg_brn.volumes.image_file import ImageFile, check_size, reason
from medseg_brn.volumes.meta_image import check_meta_data, read_meta_header
from medseg_brn.volumes.volume import Grid

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

LARGEST_SHEAR = 1e-4
"""Axes whose directions have a larger scalar product than this are not perpendicular."""

# ITK's warnings would stand between a command's messages; what matters of them is checked here.
sitk.ProcessObject.SetGlobalWarningDisplay(False)


def open_itk(path: Path) -> ImageFile:
    """The grid of a .nrrd, .mha or .mhd file, and its values on request.

    Raises:
        DataError: the file is truncated or not of its format, has no three axes, holds no real numbers, or
            has a singular or not finite affine.
    """
    is_nrrd = path.name.lower().endswith(".nrrd")
    meta = None if is_nrrd else read_meta_header(path)
    reader = sitk.ImageFileReader()
    # By the suffix alone, so that a file of another kind is refused and not guessed at.
    reader.SetImageIO("NrrdImageIO" if is_nrrd else "MetaImageIO")
    reader.SetFileName(str(path))
    read_information(path, reader)
    check_layout(path, reader)
    itemsize, channels = value_bytes(reader), reader.GetNumberOfComponents()
    if meta is not None:
        check_meta_data(path, meta, prod(reader.GetSize()) * channels * itemsize)
    data_path = path if meta is None else meta.data_path
    if data_path is not None:
        check_size(data_path, (*reader.GetSize(), channels), itemsize, compressed=True)
    grid = make_grid(path, reader.GetSize(), affine_of(reader))
    return ImageFile(path, grid, channels, lambda _: read_array(path, reader))


def write_itk(array: np.ndarray, grid: Grid, path: Path) -> None:
    """Writes (X, Y, Z) values as .nrrd or .mha, compressed.

    Raises:
        DataError: the affine has a shear, which ITK's formats do not expect.
    """
    lps = LPS_TO_RAS @ grid.affine
    direction = lps[:3, :3] / grid.spacing_mm
    shear = float(np.abs(direction.T @ direction - np.eye(3)).max())
    if shear > LARGEST_SHEAR:
        raise DataError(
            f"The affine {grid.affine[:3].tolist()} has a shear of {shear:.3g}, and the axes of "
            f"{path.suffix} files are perpendicular; write .nii.gz, which holds it."
        )
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    image.SetSpacing(grid.spacing_mm)
    image.SetDirection(direction.ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    sitk.WriteImage(image, str(path), useCompression=True)


def affine_of(reader: sitk.ImageFileReader) -> np.ndarray:
    """(4, 4) affine, voxel index to RAS+ mm, of what SimpleITK says in LPS+ of a 3D image."""
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * reader.GetSpacing()
    lps[:3, 3] = reader.GetOrigin()
    return LPS_TO_RAS @ lps


def make_grid(path: Path, shape: tuple[int, ...], affine: np.ndarray) -> Grid:
    """A grid whose errors name the file."""
    try:
        return Grid((shape[0], shape[1], shape[2]), affine)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def read_information(path: Path, reader: sitk.ImageFileReader) -> None:
    """Reads a header, or raises DataError with ITK's reason."""
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise DataError(
            f"{path} is damaged or of another format: {reason(error)}; export it again."
        ) from error


def read_array(path: Path, reader: sitk.ImageFileReader | sitk.ImageSeriesReader) -> np.ndarray:
    """(X, Y, Z) or (X, Y, Z, channels) values, or DataError with ITK's reason."""
    try:
        array = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise DataError(
            f"{path} is truncated or damaged: {reason(error)}; fetch or export it again."
        ) from error
    return array.transpose(2, 1, 0, *range(3, array.ndim))


def check_layout(path: Path, reader: sitk.ImageFileReader) -> None:
    """Raises DataError for what is no 3D image of real numbers."""
    if reader.GetDimension() != 3:
        raise DataError(f"{path} has shape {reader.GetSize()}; a volume has three axes.")
    if value_bytes(reader) == 0:
        kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
        raise DataError(f"{path} holds values of type {kind}; a volume holds integers or real numbers.")


def value_bytes(reader: sitk.ImageFileReader) -> int:
    """Size of one integer or real number of an image; 0 where it holds complex numbers or runs of labels."""
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    bits = re.match(r"(?:vector of )?(\d+)-bit (?:unsigned integer|signed integer|float)$", kind)
    return int(bits.group(1)) // 8 if bits else 0
