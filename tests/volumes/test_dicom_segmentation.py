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


def draw_labels(series: Path) -> Volume:
    grid = read_volume(series).grid
    array = np.random.default_rng(0).choice([0, 0, 2, 500], size=grid.shape).astype(np.uint16)
    array[:, :, 1] = 0  # a slice without any structure
    return Volume(array, grid)


@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL])
def test_read_back_by_highdicom(tmp_path, write_dicom_series, orientation):
    series = write_dicom_series(tmp_path / "series", 5, orientation)
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


def test_each_frame_refers_to_its_slice(tmp_path, write_dicom_series):
    series = write_dicom_series(tmp_path / "series", 4, AXIAL)
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


def test_simpleitk_counts_the_same_voxels(tmp_path, write_dicom_series):
    series = write_dicom_series(tmp_path / "series", 4, AXIAL)
    labels = draw_labels(series)
    write_dicom_segmentation(labels, series, SEGMENTS, tmp_path / "seg.dcm", "tiny model")
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "seg.dcm")))
    assert np.count_nonzero(found) == np.isin(labels.array, [2, 500]).sum()


def test_missing_thickness_is_the_distance_of_slices(tmp_path, write_dicom_series):
    series = write_dicom_series(tmp_path / "series", 4, AXIAL, SliceThickness=None)
    write_dicom_segmentation(draw_labels(series), series, SEGMENTS, tmp_path / "seg.dcm", "tiny model")
    found = pydicom.dcmread(tmp_path / "seg.dcm")
    measures = found.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert float(measures.SliceThickness) == 3


def test_another_series_is_refused(tmp_path, write_dicom_series):
    series, longer = (
        write_dicom_series(tmp_path / "a", 4, AXIAL),
        write_dicom_series(tmp_path / "b", 5, AXIAL),
    )
    with pytest.raises(DataError, match=r"4 slices and .* 5 files"):
        write_dicom_segmentation(draw_labels(series), longer, SEGMENTS, tmp_path / "seg.dcm", "tiny")
    assert not (tmp_path / "seg.dcm").exists()


def test_a_series_that_lacks_what_a_segmentation_says(tmp_path, write_dicom_series):
    series = write_dicom_series(tmp_path / "series", 4, AXIAL, FrameOfReferenceUID=None)
    with pytest.raises(DataError, match=r"Frame Of Reference UID.*take the label map as NIfTI"):
        write_dicom_segmentation(draw_labels(series), series, SEGMENTS, tmp_path / "seg.dcm", "tiny")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["series"]
