"""NRRD and MetaImage: the same voxel lies in the same place as SimpleITK says, LPS turned into RAS."""

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from medseg_brn.errors import DataError
from medseg_brn.volumes.reading import read_volume
from medseg_brn.volumes.volume import Grid, Volume
from medseg_brn.volumes.writing import write_volume

SHAPE = (3, 4, 5)
SHEARED = np.array([[1, 0.3, 0, 7], [0, 1, 0, -8], [0, 0, 2, 9], [0, 0, 0, 1.0]])


@st.composite
def perpendicular_affines(draw) -> np.ndarray:
    angles = draw(st.tuples(*[st.floats(-180, 180)] * 3))
    signs = draw(st.tuples(*[st.sampled_from((-1, 1))] * 3))
    spacing = draw(st.tuples(*[st.floats(0.1, 10)] * 3))
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * signs * spacing
    affine[:3, 3] = draw(st.tuples(*[st.floats(-500, 500)] * 3))
    return affine


def place_by_itk_mm(path, index) -> np.ndarray:
    """Where SimpleITK puts a voxel, in RAS+."""
    x, y, z = sitk.ReadImage(str(path)).TransformIndexToPhysicalPoint([int(i) for i in index])
    return np.array([-x, -y, z])


@settings(max_examples=15, deadline=None)
@given(perpendicular_affines())
def test_formats_and_simpleitk_agree_on_every_place(tmp_path_factory, affine):
    folder = tmp_path_factory.getbasetemp()
    values = np.arange(60, dtype=np.uint8).reshape(SHAPE)
    for suffix in (".nrrd", ".mha", ".nii.gz"):
        path = folder / f"scan{suffix}"
        write_volume(Volume(values, Grid(SHAPE, affine)), path)
        read = read_volume(path)
        assert np.array_equal(read.array, values)
        assert np.allclose(read.affine, affine, atol=1e-4 if suffix == ".nii.gz" else 1e-9)
        for index in ((0, 0, 0), (2, 3, 4), (2, 0, 1)):
            assert np.allclose(place_by_itk_mm(path, index), (affine @ [*index, 1])[:3], atol=1e-3)
            assert sitk.ReadImage(str(path))[index] == read.array[index]


def test_world_axes_of_an_nrrd_file_are_understood(tmp_path):
    header = "NRRD0004\ntype: uchar\ndimension: 3\nspace: {}\nsizes: 2 3 4\nencoding: raw\n"
    header += "space directions: (2,0,0) (0,3,0) (0,0,4)\nspace origin: (10,20,30)\n\n"
    for space, signs in (("right-anterior-superior", (1, 1)), ("left-posterior-superior", (-1, -1))):
        (tmp_path / "scan.nrrd").write_bytes(header.format(space).encode() + bytes(range(24)))
        volume = read_volume(tmp_path / "scan.nrrd")
        assert volume.affine[:2, 3].tolist() == [10 * signs[0], 20 * signs[1]]
        assert np.diag(volume.affine).tolist() == [2 * signs[0], 3 * signs[1], 4, 1]
        assert volume.array[1, 0, 0] == 1
        assert volume.array[0, 1, 0] == 2
        assert volume.array[0, 0, 1] == 6


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_a_shear_is_refused_and_nothing_is_written(tmp_path, suffix):
    volume = Volume(np.zeros(SHAPE, np.uint8), Grid(SHAPE, SHEARED))
    with pytest.raises(DataError, match=rf"scan{suffix}: .* shear of 0\.287.*write \.nii\.gz"):
        write_volume(volume, tmp_path / f"scan{suffix}")
    assert list(tmp_path.iterdir()) == []
    write_volume(volume, tmp_path / "scan.nii.gz")
    assert np.allclose(read_volume(tmp_path / "scan.nii.gz").affine, SHEARED)


def test_a_sheared_nrrd_file_of_others_is_read_where_it_lies(tmp_path):
    (tmp_path / "scan.nrrd").write_bytes(
        b"NRRD0004\ntype: uchar\ndimension: 3\nspace: right-anterior-superior\nsizes: 3 4 5\nencoding: raw\n"
        b"space directions: (1,0,0) (0.3,1,0) (0,0,2)\nspace origin: (7,-8,9)\n\n" + bytes(60)
    )
    assert np.allclose(read_volume(tmp_path / "scan.nrrd").affine, SHEARED)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_values_keep_their_type(tmp_path, suffix, dtype):
    # The largest value of 64-bit integers does not fit into 32 bits, so they stay what they are.
    largest = np.iinfo(dtype).max if dtype[0] in "iu" else np.finfo(dtype).max
    values = np.full(SHAPE, largest, dtype)
    write_volume(Volume(values, Grid(SHAPE, np.eye(4))), tmp_path / f"a{suffix}")
    array = read_volume(tmp_path / f"a{suffix}").array
    assert array.dtype == np.dtype(dtype)
    assert np.array_equal(array, values)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (sitk.Image(4, 5, sitk.sitkUInt8), r"shape \(4, 5\)"),
        (sitk.Image([2, 3, 4, 5], sitk.sitkUInt8), r"shape \(2, 3, 4, 5\)"),
        (sitk.Image(2, 3, 4, sitk.sitkComplexFloat32), "complex"),
    ],
)
def test_what_is_no_volume_of_numbers_is_told(tmp_path, image, words):
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    with pytest.raises(DataError, match=words):
        read_volume(tmp_path / "a.nrrd")


def test_an_mhd_pair_is_read(tmp_path):
    values = np.arange(60, dtype=np.int16).reshape(SHAPE)
    image = sitk.GetImageFromArray(values.transpose(2, 1, 0))
    image.SetSpacing((1, 2, 3))
    sitk.WriteImage(image, str(tmp_path / "scan.mhd"))
    volume = read_volume(tmp_path / "scan.mhd")
    assert np.array_equal(volume.array, values)
    assert volume.spacing_mm == (1, 2, 3)
