"""DICOM: a folder that holds the slices of one series."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from medseg_brn.errors import DataError
from medseg_brn.volumes.image_file import ImageFile
from medseg_brn.volumes.itk import affine_of, check_layout, make_grid, read_array, read_information

DESCRIPTION, MODALITY, POSITION = "0008|103e", "0008|0060", "0020|0032"

LARGEST_UNEVENNESS = 0.1
"""A step between slices may differ from the median one by this share of it, for positions are rounded."""

MAGIC_OFFSET, MAGIC = 128, b"DICM"
DIRECTORY_NAME = "DICOMDIR"
"""A table of contents that media carry; it is written in DICOM and holds no image."""


@dataclass(frozen=True)
class Slice:
    """One file of a series, by its header."""

    path: Path
    shape: tuple[int, ...]
    affine: np.ndarray
    """(4, 4) pixel index to RAS+ mm; the third column, the step to the next slice, is a guess of ITK's."""
    description: str
    """Modality and series description, for messages."""
    placed: bool
    """Whether the file says where the slice lies."""
    pixel_type: int
    """SimpleITK's number for the type of the rescaled values."""

    @property
    def origin_mm(self) -> np.ndarray:
        """(3,) place of the first pixel."""
        return self.affine[:3, 3]


def holds_dicom(folder: Path) -> bool:
    """Whether a folder holds DICOM files, by their .dcm suffix or the magic word inside them."""
    return any(_is_dicom(path) for path in sorted(folder.iterdir()))


def open_dicom(folder: Path) -> ImageFile:
    """The grid of the one DICOM series in a folder, and its values on request.

    Slices are ordered by their place. The third axis is the step between them, not the normal of the first,
    so that slices shifted against each other (a tilted gantry) make the sheared grid they are and not a wrong
    one. Values are rescaled, to Hounsfield units for CT: integers where every slice's scale allows it, else
    float32.

    Raises:
        DataError: no DICOM file, several series, a slice missing or twice in one place, or slices that differ
            in shape or orientation.
    """
    slices = _find_slices(folder)
    first = slices[0]
    if len(slices) == 1:
        # A single file tells all: one slice, or all frames of an enhanced image.
        shape, affine = first.shape, first.affine
    else:
        affine = first.affine.copy()
        affine[:3, 2] = _step_mm(folder, slices)
        shape = (*first.shape[:2], len(slices))
    return ImageFile(folder, make_grid(folder, shape, affine), 1, lambda _: _read_array(folder, slices))


def list_slices(folder: Path) -> list[Path]:
    """The files of the one DICOM series in a folder, in the order of its volume's third axis.

    Raises:
        DataError: as `open_dicom`.
    """
    return [one.path for one in _find_slices(folder)]


def _find_slices(folder: Path) -> list[Slice]:
    """The slices of the one series in a folder, ordered by their place."""
    slices = [_read_slice(path) for path in _series_paths(folder)]
    if len(slices) > 1:
        _check_alike(folder, slices)
        first = slices[0].affine
        normal = np.cross(first[:3, 0], first[:3, 1])
        slices.sort(key=lambda one: float(one.origin_mm @ normal))
    return slices


def _is_dicom(path: Path) -> bool:
    if not path.is_file():
        return False
    if path.suffix.lower() == ".dcm":
        return True
    with path.open("rb") as file:
        file.seek(MAGIC_OFFSET)
        return file.read(len(MAGIC)) == MAGIC


def _series_paths(folder: Path) -> list[Path]:
    """The files of the only series in a folder."""
    series = {
        name: [Path(path) for path in sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), name)]
        for name in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    }
    if len(series) > 1:
        found = "; ".join(
            f"{_read_slice(paths[0]).description}, {len(paths)} files, series {name}"
            for name, paths in series.items()
        )
        raise DataError(
            f"The folder {folder} holds {len(series)} DICOM series: {found}. "
            "Keep each in a folder of its own."
        )
    paths = [path for paths in series.values() for path in paths]
    # GDCM passes over files that it cannot read, and a volume would lack their slices.
    listed = {DIRECTORY_NAME, *(path.name for path in paths)}
    for path in sorted(folder.iterdir()):
        if path.name not in listed and _is_dicom(path):
            raise DataError(f"{path} is truncated or no DICOM image; fetch or export it again.")
    if not paths:
        raise DataError(f"The folder {folder} holds no DICOM series; give the folder that holds the slices.")
    return paths


def _read_slice(path: Path) -> Slice:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    read_information(path, reader)
    check_layout(path, reader)
    if reader.GetNumberOfComponents() != 1:
        raise DataError(f"{path} is a colour picture, not a slice of a volume; take it out of the folder.")
    words = [reader.GetMetaData(tag).strip() for tag in (MODALITY, DESCRIPTION) if reader.HasMetaDataKey(tag)]
    return Slice(
        path=path,
        shape=reader.GetSize(),
        affine=affine_of(reader),
        description=" ".join(words) or "without description",
        placed=reader.HasMetaDataKey(POSITION),
        pixel_type=reader.GetPixelID(),
    )


def _check_alike(folder: Path, slices: Sequence[Slice]) -> None:
    """Raises DataError unless all slices have a place, and one shape, pixel size and orientation."""
    first = slices[0]
    for one in slices:
        if not one.placed:
            raise DataError(
                f"{one.path} does not say where its slice lies (ImagePositionPatient is missing)."
            )
        if one.shape != first.shape or one.shape[2] != 1:
            raise DataError(
                f"The slices in {folder} differ in shape: {first.path.name} has {first.shape}, "
                f"{one.path.name} has {one.shape}; keep one stack of slices in the folder."
            )
        if not np.allclose(one.affine[:3, :2], first.affine[:3, :2], atol=1e-4):
            raise DataError(
                f"The slices in {folder} differ in pixel size or orientation: {first.path.name} and "
                f"{one.path.name}; take scout images out of the folder."
            )


def _step_mm(folder: Path, slices: Sequence[Slice]) -> np.ndarray:
    """(3,) mean step from one slice to the next; DataError where steps differ, naming where."""
    origins = np.array([one.origin_mm for one in slices])
    steps = np.diff(origins, axis=0)
    median_step = np.median(steps, axis=0)
    allowed_mm = LARGEST_UNEVENNESS * float(np.linalg.norm(median_step))
    lengths_mm = np.linalg.norm(steps, axis=1)
    unevenness_mm = np.linalg.norm(steps - median_step, axis=1)
    if lengths_mm.min() <= allowed_mm:
        raise DataError(
            f"The folder {folder} has two slices in one place, {_pair(slices, int(lengths_mm.argmin()))}: "
            "several time points or echoes; keep one of them in the folder."
        )
    if unevenness_mm.max() > allowed_mm:
        at = int(unevenness_mm.argmax())
        raise DataError(
            f"The slices in {folder} are not evenly spaced: {_pair(slices, at)} lie {lengths_mm[at]:.4g} mm "
            f"apart, most others {np.median(lengths_mm):.4g} mm; one is missing, or one does not belong: "
            "export the series again."
        )
    return (origins[-1] - origins[0]) / (len(slices) - 1)


def _pair(slices: Sequence[Slice], index: int) -> str:
    return f"{slices[index].path.name} and {slices[index + 1].path.name}"


def _read_array(folder: Path, slices: Sequence[Slice]) -> np.ndarray:
    reader: sitk.ImageFileReader | sitk.ImageSeriesReader
    if len(slices) == 1:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(slices[0].path))
    else:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames([str(one.path) for one in slices])
    reader.SetImageIO("GDCMImageIO")
    # Otherwise ITK gives all slices the first one's type, and cuts the others' values where they do not fit.
    types = {one.pixel_type for one in slices}
    if len(types) > 1 or sitk.sitkFloat64 in types:
        reader.SetOutputPixelType(sitk.sitkFloat32)
    return read_array(folder, reader)
