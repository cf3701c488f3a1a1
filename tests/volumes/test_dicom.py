"""A DICOM series becomes one volume, or is refused by what is wrong with it."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medseg_brn.errors import DataError
from medseg_brn.volumes.geometry import canonicalize
from medseg_brn.volumes.reading import is_volume_path, read_grid, read_volume, volume_stem

AXIAL = "1\\0\\0\\0\\1\\0"
SAGITTAL = "0\\1\\0\\0\\0\\-1"


def write_series(
    folder: Path,
    places,
    *,
    series="1.2.3.4",
    name="CT body",
    orientation=AXIAL,
    suffix=".dcm",
    rows=4,
    values=None,
) -> list[Path]:
    """Writes one slice of 5 columns of 0.7 mm and rows of 0.8 mm per place; slice i has values of 10 i."""
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    modality, _, description = name.partition(" ")
    paths = []
    for i, place in enumerate(places):
        value = 10 * i if values is None else values[i]
        image = sitk.GetImageFromArray(np.full((1, rows, 5), value, np.int16))
        image.SetSpacing((0.7, 0.8, 1))
        for tag, text in {
            "0008|0060": modality,
            "0008|103e": description,
            "0008|0018": f"{series}.{i + 1}",
            "0020|000d": "1.2.3",
            "0020|000e": series,
            "0020|0032": "\\".join(map(str, place)),
            "0020|0037": orientation,
            "0028|1052": "-1000",
            "0028|1053": "1",
        }.items():
            image.SetMetaData(tag, text)
        # Names in no order, as archives have them.
        paths.append(folder / f"{modality}{(i * 7 + 3) % 11:02d}{suffix}")
        writer.SetFileName(str(paths[-1]))
        writer.Execute(image)
    return paths


def along_z(*heights):
    return [(10, 20, height) for height in heights]


@pytest.mark.parametrize("suffix", [".dcm", "", ".IMA"])
def test_slices_are_ordered_by_their_place(tmp_path, suffix):
    write_series(tmp_path / "scan", along_z(4, 0, 6, 2), suffix=suffix)
    (tmp_path / "scan" / "notes.txt").write_text("not an image " * 50)
    volume = read_volume(tmp_path / "scan")
    assert volume.array[0, 0].tolist() == [10, 30, 0, 20]
    assert volume.shape == (5, 4, 4)
    assert np.allclose(volume.affine, [[-0.7, 0, 0, -10], [0, -0.8, 0, -20], [0, 0, 2, 0], [0, 0, 0, 1]])
    assert read_grid(tmp_path / "scan").matches(volume.grid)
    assert is_volume_path(tmp_path / "scan")
    assert volume_stem(tmp_path / "scan") == "scan"


def test_sagittal_slices_lie_where_they_say(tmp_path):
    write_series(tmp_path / "scan", [(x, 0, 0) for x in (-3, 0, 3)], orientation=SAGITTAL)
    volume = read_volume(tmp_path / "scan")
    assert volume.grid.orientation[:2] == "PI"
    for k in range(3):
        value = volume.array[0, 0, k]
        x_lps = {0: -3, 10: 0, 20: 3}[int(value)]
        assert np.allclose(volume.affine @ [0, 0, k, 1], [-x_lps, 0, 0, 1])


def test_a_tilted_gantry_makes_a_sheared_grid(tmp_path):
    write_series(tmp_path / "scan", [(0, i, 2 * i) for i in range(4)])
    volume = read_volume(tmp_path / "scan")
    assert np.allclose(volume.affine[:3, 2], (0, -1, 2))


def test_values_are_rescaled(tmp_path):
    paths = write_series(tmp_path / "scan", along_z(0, 1), values=(24, 1024))
    assert read_volume(tmp_path / "scan").array[0, 0].tolist() == [24, 1024]
    # Stored are the values without the intercept: 1024 and 2024.
    for path in paths:
        path.write_bytes(path.read_bytes().replace(b"-1000 ", b"0.5   "))
    volume = read_volume(tmp_path / "scan")
    assert volume.array.dtype == np.float32
    assert volume.array[0, 0].tolist() == [1024.5, 2024.5]


def test_slices_with_scales_of_their_own_keep_their_fractions(tmp_path):
    paths = write_series(tmp_path / "scan", along_z(0, 1), values=(24, 1024))
    paths[1].write_bytes(paths[1].read_bytes().replace(b"-1000 ", b"0.5   "))
    assert read_volume(tmp_path / "scan").array[0, 0].tolist() == [24, 2024.5]


def test_a_single_slice_is_a_volume(tmp_path):
    write_series(tmp_path / "scan", along_z(5))
    assert read_volume(tmp_path / "scan").shape == (5, 4, 1)


def test_all_frames_in_one_file_are_a_volume(tmp_path):
    values = np.arange(60, dtype=np.uint16).reshape(3, 4, 5)
    image = sitk.GetImageFromArray(values.transpose(2, 1, 0))
    image.SetSpacing((1, 2, 3))
    image.SetOrigin((7, 8, 9))
    sitk.WriteImage(image, str(tmp_path / "frames.dcm"))
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.array, values)
    assert np.allclose(volume.affine, [[-1, 0, 0, -7], [0, -2, 0, -8], [0, 0, 3, 9], [0, 0, 0, 1]])


def test_several_series_are_listed(tmp_path):
    write_series(tmp_path / "scan", along_z(0, 1, 2))
    write_series(tmp_path / "scan", along_z(0, 1), series="1.2.3.5", name="MR head")
    with pytest.raises(DataError, match="2 DICOM series") as caught:
        read_volume(tmp_path / "scan")
    assert "CT body, 3 files, series 1.2.3.4" in str(caught.value)
    assert "MR head, 2 files, series 1.2.3.5" in str(caught.value)
    assert "Keep each in a folder of its own" in str(caught.value)


def test_a_missing_slice_is_told(tmp_path):
    write_series(tmp_path / "scan", along_z(0, 2, 4, 8, 10))
    with pytest.raises(DataError, match=r"CT\d\d\.dcm and CT\d\d\.dcm lie 4 mm apart, most others 2 mm"):
        read_volume(tmp_path / "scan")


def test_rounded_places_are_no_gap(tmp_path):
    write_series(tmp_path / "scan", along_z(0, 1.3, 2.5, 3.8, 5))
    assert read_volume(tmp_path / "scan").spacing_mm[2] == pytest.approx(1.25)


def test_two_slices_in_one_place_are_told(tmp_path):
    write_series(tmp_path / "scan", along_z(0, 2, 4, 0, 2, 4))
    with pytest.raises(DataError, match=r"two slices in one place, CT\d\d\.dcm and CT\d\d\.dcm"):
        read_volume(tmp_path / "scan")


def test_slices_of_differing_shape_are_told(tmp_path):
    write_series(tmp_path / "scan", along_z(0, 2, 4))
    write_series(tmp_path / "scan", along_z(6), rows=6, name="CR body")
    with pytest.raises(DataError, match=r"differ in shape: .*\(5, 4, 1\).*\(5, 6, 1\)"):
        read_volume(tmp_path / "scan")


def test_a_scout_among_the_slices_is_told(tmp_path):
    write_series(tmp_path / "scan", along_z(0, 2, 4))
    write_series(tmp_path / "scan", along_z(6), orientation=SAGITTAL, name="CR body")
    with pytest.raises(DataError, match="differ in pixel size or orientation"):
        read_volume(tmp_path / "scan")


@pytest.mark.parametrize("kept", [10, 300, -2000, -1])
def test_a_truncated_slice_is_told_and_never_left_out(tmp_path, kept):
    path = write_series(tmp_path / "scan", along_z(0, 2, 4), rows=400)[1]
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=f"{path.name} is truncated"):
        read_volume(tmp_path / "scan")


def test_a_directory_of_media_is_no_slice(tmp_path):
    write_series(tmp_path / "scan", along_z(0, 2, 4))
    (tmp_path / "scan" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    assert read_volume(tmp_path / "scan").shape == (5, 4, 3)


def test_a_folder_without_slices_is_told(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    assert not is_volume_path(tmp_path)
    with pytest.raises(DataError, match="holds no DICOM series"):
        read_volume(tmp_path)


def test_a_real_series_lies_on_the_grid_of_its_label_map(data_folder):
    scan = read_volume(data_folder / "abdomen_ct" / "dicom")
    labels = read_volume(data_folder / "abdomen_ct" / "example_seg_dicom.nii.gz")
    scan, labels = canonicalize(scan), canonicalize(labels)
    assert scan.grid.describe_difference(labels.grid) is None
    # Class 5 is the liver: in Hounsfield units, and nowhere else in the body so evenly.
    assert 40 < np.median(scan.array[labels.array == 5]) < 140
