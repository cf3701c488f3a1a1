"""What is written comes back to the last bit, on the same grid, or is not written at all."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from medseg_brn.errors import DataError
from medseg_brn.volumes.geometry import canonicalize, restore_orientation
from medseg_brn.volumes.reading import read_volume
from medseg_brn.volumes.volume import Grid, Volume
from medseg_brn.volumes.writing import write_volume

SHAPE = (2, 3, 4)
TRANSFORM_FIELDS = ("qform_code", "sform_code", "pixdim", "quatern_b", "quatern_c", "quatern_d")
TRANSFORM_FIELDS += ("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units")
ORIENTATIONS = list(product(permutations(range(3)), product((1, -1), repeat=3)))


@st.composite
def affines(draw) -> np.ndarray:
    permutation, signs = draw(st.sampled_from(ORIENTATIONS))
    spacing = draw(st.tuples(*[st.floats(0.1, 10)] * 3))
    angles = draw(st.one_of(st.just((0, 0, 0)), st.tuples(*[st.floats(-180, 180)] * 3)))
    affine = np.eye(4)
    axes = np.eye(3)[list(permutation)].T * signs
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ axes * spacing
    affine[:3, 3] = draw(st.tuples(*[st.floats(-500, 500)] * 3))
    return affine


codes = st.integers(0, 4)
dtypes = st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"])


@settings(max_examples=60, deadline=None)
@given(affines(), affines(), codes, codes, dtypes)
def test_nifti_repeats_values_and_both_transforms_to_the_last_bit(
    tmp_path_factory, sform, qform, sform_code, qform_code, dtype
):
    folder = tmp_path_factory.getbasetemp()
    values = np.random.default_rng(0).integers(0, 100, SHAPE).astype(dtype)
    image = nib.Nifti1Image(values, None)
    image.set_qform(qform, code=qform_code)
    image.set_sform(sform, code=sform_code)
    image.header.set_xyzt_units("mm", "sec")
    image.to_filename(folder / "input.nii")

    volume = read_volume(folder / "input.nii")
    canonical = canonicalize(volume)
    restored = restore_orientation(canonical.array, volume.grid)
    write_volume(Volume(restored, volume.grid), folder / "output.nii")

    before, after = nib.load(folder / "input.nii"), nib.load(folder / "output.nii")
    assert np.asarray(after.dataobj).tobytes() == values.tobytes()
    assert after.get_data_dtype() == before.get_data_dtype()
    assert after.affine.tobytes() == before.affine.tobytes()
    for field in TRANSFORM_FIELDS:
        assert after.header[field].tobytes() == before.header[field].tobytes(), field


def test_a_label_map_repeats_the_scans_geometry_in_its_own_type(tmp_path):
    image = nib.Nifti1Image(np.zeros(SHAPE, np.float32), np.diag([-1, -2, 3, 1]))
    image.set_qform(image.affine, code=3)
    image.to_filename(tmp_path / "scan.nii.gz")
    grid = read_volume(tmp_path / "scan.nii.gz").grid
    write_volume(Volume(np.ones(SHAPE, np.uint8), grid), tmp_path / "labels.nii.gz")
    labels = nib.load(tmp_path / "labels.nii.gz")
    assert labels.get_data_dtype() == np.uint8
    assert int(labels.header["qform_code"]) == 3
    assert np.array_equal(labels.affine, image.affine)


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize(
    ("values", "stored"),
    [
        (np.array([False, True]), np.uint8),
        (np.array([-(2**31), 2**31 - 1]), np.int32),
        (np.array([0, 2**32 - 1], np.uint64), np.uint32),
        (np.array([0, 2**31]), np.int64),
        (np.array([0, 2**32], np.uint64), np.uint64),
        (np.array([0.5, -65504], np.float16), np.float32),
        (np.array([0.1, 1e300]), np.float64),
        (np.array([1, 258], ">i2"), np.int16),
    ],
)
def test_values_are_kept_in_the_nearest_type_that_formats_have(tmp_path, suffix, values, stored):
    volume = Volume(values.reshape(2, 1, 1), Grid((2, 1, 1), np.eye(4)))
    write_volume(volume, tmp_path / f"a{suffix}")
    array = read_volume(tmp_path / f"a{suffix}").array
    assert array.dtype == stored
    assert np.array_equal(array, volume.array)


@pytest.mark.parametrize("layout", ["C", "F", "reversed"])
@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
def test_memory_layout_does_not_matter(tmp_path, layout, suffix):
    values = np.arange(24, dtype=np.uint8).reshape(SHAPE)
    laid_out = {"C": values, "F": np.asfortranarray(values), "reversed": np.flip(values.copy())}[layout]
    write_volume(Volume(laid_out, Grid(SHAPE, np.eye(4))), tmp_path / f"a{suffix}")
    assert np.array_equal(read_volume(tmp_path / f"a{suffix}").array, laid_out)


def test_complex_values_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.nii: values of type complex128"):
        write_volume(Volume(np.zeros(SHAPE, complex), Grid(SHAPE, np.eye(4))), tmp_path / "a.nii")


@pytest.mark.parametrize("name", ["a.png", "a", "a.mhd", "a.gz"])
def test_an_unknown_suffix_is_told_with_the_known_ones(tmp_path, name):
    with pytest.raises(
        DataError, match=rf"{name}: its name must end in one of \.nii\.gz, \.nii, \.nrrd, \.mha"
    ):
        write_volume(Volume(np.zeros(SHAPE), Grid(SHAPE, np.eye(4))), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path):
    grid = Grid(SHAPE, np.eye(4))
    write_volume(Volume(np.ones(SHAPE, np.uint8), grid), tmp_path / "a.nrrd")
    sheared = np.eye(4)
    sheared[0, 1] = 0.5
    with pytest.raises(DataError, match="shear"):
        write_volume(Volume(np.zeros(SHAPE, np.uint8), Grid(SHAPE, sheared)), tmp_path / "a.nrrd")
    assert [path.name for path in tmp_path.iterdir()] == ["a.nrrd"]
    assert read_volume(tmp_path / "a.nrrd").array.min() == 1


def test_one_slice_stays_three_dimensional(tmp_path):
    for suffix in (".nii", ".nrrd", ".mha"):
        write_volume(
            Volume(np.zeros((4, 5, 1), np.uint8), Grid((4, 5, 1), np.eye(4))), tmp_path / f"a{suffix}"
        )
        assert read_volume(tmp_path / f"a{suffix}").shape == (4, 5, 1)
