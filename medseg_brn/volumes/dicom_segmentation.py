"""DICOM-SEG: a label map as a DICOM object that refers to the slices of its series, by highdicom."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from medseg_brn.errors import ConfigError, DataError
from medseg_brn.volumes.atomic import atomic_path
from medseg_brn.volumes.dicom import list_slices
from medseg_brn.volumes.volume import Volume

ANATOMICAL_STRUCTURE = ("91723000", "SCT", "Anatomical Structure")
CODING_SCHEME = "99MEDSEGBRN"
"""Names of structures are the dataset's own, and so is the scheme of their codes, made of the names."""
LONGEST_CODE, LONGEST_NAME = 16, 64
MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)
"""Attributes that DICOM wants present, be they empty (type 2)."""


@dataclass(frozen=True)
class Segment:
    """One structure of a label map."""

    value: int
    """Of its voxels in the label map."""
    name: str


def write_dicom_segmentation(
    label_map: Volume, series: Path, segments: Sequence[Segment], path: Path, made_by: str
) -> None:
    """Write a label map of a DICOM series as a DICOM-SEG object, whole or not at all.

    It belongs to the patient and the study of the series, and each frame refers to the slice that it lies on.
    All segments are described, also those that no voxel has.

    Args:
        label_map: on the grid that the series has when it is read (`open_dicom`).
        series: the folder with its slices.
        segments: what label values stand for, at least one; other values are left out.
        path: file to write, usually .dcm.
        made_by: name of the model.

    Raises:
        ConfigError: highdicom is missing.
        DataError: the series is no stack of single slices, is not that of the label map, or lacks what a
            DICOM-SEG object must say.
    """
    highdicom = import_highdicom()
    from pydicom import dcmread

    files = list_slices(series)
    if len(files) != label_map.shape[2] or len(files) < 2:
        raise DataError(
            f"The label map has {label_map.shape[2]} slices and {series} {len(files)} files; DICOM-SEG is"
            " written for series of one file a slice, and for the series that was segmented"
        )
    # With force, as GDCM, which has read the series, also takes files without a preamble.
    sources = [dcmread(file, stop_before_pixels=True, force=True) for file in files]
    for source in sources:
        _fill_in(source, label_map.spacing_mm[2])
    frames = np.zeros(label_map.shape, np.uint16)
    for number, segment in enumerate(segments, start=1):
        frames[label_map.array == segment.value] = number
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of attributes that the series itself has in an odd form
            found = highdicom.seg.Segmentation(
                source_images=sources,
                pixel_array=np.ascontiguousarray(frames.transpose(2, 1, 0)),  # (slices, rows, columns)
                segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=_describe(highdicom, segments, made_by),
                series_instance_uid=highdicom.UID(),
                series_number=_next_series_number(sources[0]),
                sop_instance_uid=highdicom.UID(),
                instance_number=1,
                manufacturer="medseg_brn",
                manufacturer_model_name=made_by[:LONGEST_NAME],
                software_versions=version("medseg-brn"),
                device_serial_number="0",
                content_label="SEGMENTATION",
                series_description=f"Segmentation by {made_by}"[:LONGEST_NAME],
            )
            with atomic_path(path) as temporary:
                found.save_as(temporary)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = str(error).rstrip(".")
        raise DataError(
            f"The series in {series} cannot be referred to by a DICOM-SEG object: {what}; export it again"
            " from its archive, or take the label map as NIfTI"
        ) from error


def _fill_in(source: Any, thickness_mm: float) -> None:
    """Give a slice what it may leave out, and anonymizing does, and a segmentation repeats: empty."""
    for name in MAY_BE_EMPTY:
        if name not in source:
            setattr(source, name, "")
    if getattr(source, "SliceThickness", None) is None:
        source.SliceThickness = thickness_mm


def import_highdicom() -> Any:
    """The package that writes DICOM-SEG.

    Raises:
        ConfigError: it is missing.
    """
    try:
        import highdicom
    except ModuleNotFoundError:
        raise ConfigError(
            'DICOM-SEG needs highdicom, which is not installed; pip install "medseg-brn[dicom]"'
        ) from None
    return highdicom


def _describe(highdicom: Any, segments: Sequence[Segment], made_by: str) -> list[Any]:
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=made_by[:LONGEST_NAME],
        version=version("medseg-brn"),
        family=highdicom.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"),
    )
    return [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=segment.name[:LONGEST_NAME],
            segmented_property_category=highdicom.sr.CodedConcept(*ANATOMICAL_STRUCTURE),
            segmented_property_type=highdicom.sr.CodedConcept(
                sha256(segment.name.encode()).hexdigest()[:LONGEST_CODE],
                CODING_SCHEME,
                segment.name[:LONGEST_NAME],
            ),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_uid=highdicom.UID(),
            tracking_id=segment.name[:LONGEST_NAME],
        )
        for number, segment in enumerate(segments, start=1)
    ]


def _next_series_number(source: Any) -> int:
    """A number beside the series' own, as workstations list a study by them."""
    return 1000 + int(getattr(source, "SeriesNumber", None) or 0) % 1000
