"""DICOM-SEG read back by highdicom, pydicom and SimpleITK says what the label map says."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medseg_brn.errors import DataError
from medseg_brn.volumes.dicom_segmentation import Segment, write_dicom_segmentation
from medseg_brn.volumes.reading import read_volume
from medseg_brn.volumes.volume import Volume

highdicom = pytest.importorskip("highdicom", reason="needs highdicom, which is in the extra dicom")
pydicom = pytest.importorskip("pydicom")

AXIAL, SAGITTAL = [1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1]
SEGMENTS = [Segment(2, "tumour"), Segment(500, "cyst"), Segment(9, "absent")]


def write_series(folder: Path, slices: int, orientation: list[int], **changes) -> Path:
    """Slices of 8 rows of 1.5 mm and 16 columns of 0.7 mm, 3 mm apart, the last one first by name."""
    folder.mkdir()
    study, frame = pydicom.uid.generate_uid(), pydicom.uid.generate_uid()
    series = pydicom.uid.generate_uid()
    normal = np.cross(orientation[:3], orientation[3:])
    for number in range(slices):
        made = pydicom.Dataset()
        made.file_meta = pydicom.dataset.FileMetaDataset()
        made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = pydicom.uid.CTImageStorage
        made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = pydicom.uid.generate_uid()
        made.StudyInstanceUID, made.SeriesInstanceUID, made.FrameOfReferenceUID = study, series, frame
        made.PatientID, made.PatientName, made.Modality = "p7", "Doe^Jane", "CT"
        made.StudyID, made.SeriesNumber, made.InstanceNumber = "1", 3, number + 1
        made.Rows, made.Columns, made.PixelSpacing = 8, 16, [1.5, 0.7]
        made.ImageOrientationPatient = orientation
        made.ImagePositionPatient = (np.array([10.0, 20.0, 30.0]) + 3.0 * number * normal).tolist()
        made.BitsAllocated = made.BitsStored = 16
        made.HighBit, made.PixelRepresentation, made.SamplesPerPixel = 15, 1, 1
        made.PhotometricInterpretation = "MONOCHROME2"
        made.PixelData = np.full((8, 16), number, np.int16).tobytes()
        for name, value in changes.items():
            setattr(made, name, value)
            if value is None:
                delattr(made, name)
        made.save_as(folder / f"{slices - number:03d}.dcm", enforce_file_format=True)
    return folder


def draw_labels(series: Path) -> Volume:
    grid = read_volume(series).grid
    array = np.random.default_rng(0).choice([0, 0, 2, 500], size=grid.shape).astype(np.uint16)
    array[:, :, 1] = 0  # a slice without any structure
    return Volume(array, grid)


@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL])
def test_read_back_by_highdicom(tmp_path, orientation):
    series = write_series(tmp_path / "series", 5, orientation)
    labels = draw_labels(series)
    write_dicom_segmentation(labels, series, SEGMENTS, tmp_path / "seg.dcm", "tiny model")
    found = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert [one.SegmentLabel for one in found.SegmentSequence] == ["tumour", "cyst", "absent"]
    assert found.PatientID == "p7"
    assert found.StudyInstanceUID == pydicom.dcmread(series / "001.dcm").StudyInstanceUID
    # every voxel is looked up by the place that each says it has, in LPS mm
    volume = found.get_volume(combine_segments=True)
    places = np.argwhere(np.ones(volume.shape, bool))
    lps = places @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    inverse = np.linalg.inv(labels.affine)
    ours = np.rint((lps * [-1, -1, 1]) @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
    expected = np.select([labels.array == one.value for one in SEGMENTS], [1, 2, 3], 0)
    np.testing.assert_array_equal(volume.array.ravel(), expected[tuple(ours.T)])
    covered = np.unique(ours[:, 2])  # slices at an end without any structure are left out
    assert not np.delete(expected, covered, axis=2).any()


def test_each_frame_refers_to_its_slice(tmp_path):
    series = write_series(tmp_path / "series", 4, AXIAL)
    labels = draw_labels(series)
    write_dicom_segmentation(labels, series, SEGMENTS, tmp_path / "seg.dcm", "tiny model")
    found = pydicom.dcmread(tmp_path / "seg.dcm")
    names = {pydicom.dcmread(path).SOPInstanceUID: path for path in series.iterdir()}
    frames = found.pixel_array
    for frame, told in zip(frames, found.PerFrameFunctionalGroupsSequence, strict=True):
        uid = told.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        source = pydicom.dcmread(names[uid])
        number = told.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        index = int(source.pixel_array[0, 0])  # slices hold their number
        z = index if labels.affine[2, 2] * 3 > 0 else 3 - index
        value = SEGMENTS[number - 1].value
        np.testing.assert_array_equal(frame, (labels.array[:, :, z] == value).T)


def test_simpleitk_counts_the_same_voxels(tmp_path):
    series = write_series(tmp_path / "series", 4, AXIAL)
    labels = draw_labels(series)
    write_dicom_segmentation(labels, series, SEGMENTS, tmp_path / "seg.dcm", "tiny model")
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "seg.dcm")))
    assert np.count_nonzero(found) == np.isin(labels.array, [2, 500]).sum()


def test_missing_thickness_is_the_distance_of_slices(tmp_path):
    series = write_series(tmp_path / "series", 4, AXIAL, SliceThickness=None)
    write_dicom_segmentation(draw_labels(series), series, SEGMENTS, tmp_path / "seg.dcm", "tiny model")
    found = pydicom.dcmread(tmp_path / "seg.dcm")
    measures = found.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert float(measures.SliceThickness) == 3


def test_another_series_is_refused(tmp_path):
    series, longer = write_series(tmp_path / "a", 4, AXIAL), write_series(tmp_path / "b", 5, AXIAL)
    with pytest.raises(DataError, match=r"4 slices and .* 5 files"):
        write_dicom_segmentation(draw_labels(series), longer, SEGMENTS, tmp_path / "seg.dcm", "tiny")
    assert not (tmp_path / "seg.dcm").exists()


def test_a_series_that_lacks_what_a_segmentation_says(tmp_path):
    series = write_series(tmp_path / "series", 4, AXIAL, FrameOfReferenceUID=None)
    with pytest.raises(DataError, match=r"Frame Of Reference UID.*take the label map as NIfTI"):
        write_dicom_segmentation(draw_labels(series), series, SEGMENTS, tmp_path / "seg.dcm", "tiny")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["series"]
