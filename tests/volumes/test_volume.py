"""A grid's spacing, orientation and comparison, by numbers a person can check."""

import pickle

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medseg_brn.errors import DataError
from medseg_brn.volumes.reading import read_grid
from medseg_brn.volumes.volume import Grid, Volume


def make_grid(shape=(10, 10, 10), diagonal=(1, 1, 1), origin=(0, 0, 0)) -> Grid:
    affine = np.diag([*diagonal, 1.0])
    affine[:3, 3] = origin
    return Grid(shape, affine)


def test_spacing_is_the_length_of_the_affine_columns():
    affine = np.eye(4)
    affine[:3, 0] = (3, 4, 0)
    assert Grid((2, 2, 2), affine).spacing_mm == (5, 1, 1)


@pytest.mark.parametrize(
    ("diagonal", "axes"), [((1, 1, 1), "RAS"), ((-1, -1, 1), "LPS"), ((-2, 3, -4), "LAI")]
)
def test_orientation_names_where_the_axes_point(diagonal, axes):
    assert make_grid(diagonal=diagonal).orientation == axes


def test_grids_match_within_the_tolerance_at_the_far_corner():
    # The far corner of 11 voxels lies 10 * 0.0001 = 0.001 mm off.
    grid, other = make_grid((11, 1, 1)), make_grid((11, 1, 1), (1.0001, 1, 1))
    assert grid.matches(other, tolerance_mm=0.0011)
    assert not grid.matches(other, tolerance_mm=0.0009)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (make_grid((10, 10, 9)), "shape (10, 10, 10) against (10, 10, 9)"),
        (make_grid(diagonal=(-1, 1, 1)), "orientation RAS against LAS"),
        (make_grid(diagonal=(1, 1, 2)), "spacing (1, 1, 1) mm against (1, 1, 2) mm"),
        (make_grid(origin=(0, 5, 0)), "origin (0, 0, 0) mm against (0, 5, 0) mm"),
    ],
)
def test_a_difference_is_told_with_both_values(other, words):
    assert make_grid().describe_difference(other) == words


def test_a_small_rotation_is_told_by_the_distance_it_makes():
    affine = np.eye(4)
    affine[0, 1], affine[1, 0] = -0.01, 0.01
    assert "voxels lie up to 0.1273 mm apart" in make_grid().describe_difference(Grid((10, 10, 10), affine))


def test_matching_grids_have_no_difference():
    assert make_grid().describe_difference(make_grid(origin=(0, 0, 1e-5))) is None


@pytest.mark.parametrize("diagonal", [(0, 1, 1), (1, 1, 1e-320)])
def test_a_flat_affine_is_refused(diagonal):
    with pytest.raises(DataError, match="singular"):
        make_grid(diagonal=diagonal)


def test_parallel_axes_are_refused():
    affine = np.eye(4)
    affine[:3, 1] = affine[:3, 0]
    with pytest.raises(DataError, match="singular"):
        Grid((2, 2, 2), affine)


@pytest.mark.parametrize("spacing", [1e-3, 1e4])
def test_tiny_and_huge_voxels_are_not_singular(spacing):
    assert make_grid(diagonal=(spacing, spacing, spacing)).spacing_mm == (spacing, spacing, spacing)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_affine_that_is_not_finite_is_refused(value):
    with pytest.raises(DataError, match="not finite"):
        make_grid(origin=(0, value, 0))


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 0), (4, 4, 4, 2)])
def test_a_grid_has_three_positive_sizes(shape):
    with pytest.raises(DataError, match="three sizes"):
        Grid(shape, np.eye(4))


def test_an_affine_cannot_change_under_a_grid():
    affine = np.eye(4)
    grid = Grid((2, 2, 2), affine)
    affine[0, 0] = 7
    assert grid.spacing_mm == (1, 1, 1)
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 7


def test_a_volume_has_its_grids_shape():
    with pytest.raises(DataError, match=r"\(2, 3, 4\).*\(2, 3, 5\)"):
        Volume(np.zeros((2, 3, 4)), make_grid((2, 3, 5)))


def test_a_volume_travels_between_processes():
    header = nib.Nifti1Header()
    header.set_sform(np.eye(4), code=2)
    volume = Volume(np.arange(8).reshape(2, 2, 2), Grid((2, 2, 2), np.eye(4), header))
    copy = pickle.loads(pickle.dumps(volume))  # noqa: S301
    assert np.array_equal(copy.array, volume.array)
    assert copy.grid.header == header


def test_the_qform_that_itk_wrote_lies_on_its_sform(tmp_path):
    """A tilted scan, LPS as ITK has it: rounding of the quaternion puts its far corner 0.005 mm off."""
    tilt, turn = np.deg2rad(12), np.deg2rad(0.7)
    about_x = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    about_z = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    image = sitk.Image((600, 600, 2), sitk.sitkUInt8)
    image.SetSpacing((0.8, 0.8, 5))
    image.SetDirection((about_z @ about_x).ravel())
    image.SetOrigin((-240, -240, 80))
    sitk.WriteImage(image, tmp_path / "sform.nii.gz")
    written = nib.load(tmp_path / "sform.nii.gz")
    written.header["sform_code"] = 0
    nib.Nifti1Image(written.dataobj, None, written.header).to_filename(tmp_path / "qform.nii.gz")
    sform, qform = read_grid(tmp_path / "sform.nii.gz"), read_grid(tmp_path / "qform.nii.gz")
    assert not sform.matches(qform, tolerance_mm=1e-3)
    assert sform.matches(qform)
    assert sform.describe_difference(qform) is None


@pytest.mark.parametrize("spacing", [0.05, 1, 5])
def test_a_shift_of_half_a_voxel_is_never_rounding(spacing):
    grid = make_grid(diagonal=(spacing, spacing, 2 * spacing))
    shifted = make_grid(diagonal=(spacing, spacing, 2 * spacing), origin=(spacing / 2, 0, 0))
    assert not grid.matches(shifted)
    assert grid.describe_difference(shifted).startswith("origin")
    assert grid.matches(make_grid(diagonal=(spacing, spacing, 2 * spacing), origin=(0.01 * spacing, 0, 0)))


def test_a_spacing_that_adds_up_is_told_as_such():
    grid, other = make_grid((100, 10, 10)), make_grid((100, 10, 10), (1.01, 1, 1))
    assert grid.describe_difference(other) == "spacing (1, 1, 1) mm against (1.01, 1, 1) mm"
