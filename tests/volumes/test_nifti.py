"""What only NIfTI has: scaling, two transforms, headers of every kind of oddity."""

import gzip
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg_brn.errors import DataError
from medseg_brn.volumes.reading import read_grid, read_volume
from medseg_brn.volumes.volume import Grid, Volume
from medseg_brn.volumes.writing import write_volume

SHAPE = (3, 4, 5)


def save(path, array=None, affine=None, *, sform=1, qform=0, **fields):
    """Writes a NIfTI file with nibabel, and then header fields of one's choice, whether they fit or not."""
    image = nib.Nifti1Image(np.zeros(SHAPE, np.int16) if array is None else array, None)
    affine = np.eye(4) if affine is None else affine
    image.set_sform(affine, code=sform)
    image.set_qform(affine, code=qform)
    image.to_filename(path)
    if fields:
        header = image.header.copy()
        header["vox_offset"] = header.single_vox_offset
        for field, value in fields.items():
            header[field] = value
        path.write_bytes(header.binaryblock + path.read_bytes()[len(header.binaryblock) :])


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "int16", "uint16", "int32", "int64", "float32", "float64"]
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_unscaled_values_keep_their_type_in_native_byte_order(tmp_path, dtype, order):
    values = np.arange(60).reshape(SHAPE).astype(np.dtype(dtype).newbyteorder(order))
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(values.dtype)
    nib.save(nib.Nifti1Image(values, np.eye(4), header), tmp_path / "a.nii")
    array = read_volume(tmp_path / "a.nii").array
    assert array.dtype == np.dtype(dtype)
    assert array.dtype.isnative
    assert np.array_equal(array, values)
    assert not isinstance(array, np.memmap)


def test_scaled_values_are_float32(tmp_path):
    stored = np.arange(60, dtype=np.int16).reshape(SHAPE)
    save(tmp_path / "a.nii", stored, scl_slope=0.5, scl_inter=-1000)
    array = read_volume(tmp_path / "a.nii").array
    assert array.dtype == np.float32
    assert np.array_equal(array, stored * 0.5 - 1000)


def test_scaling_is_not_written_again(tmp_path):
    save(tmp_path / "a.nii", np.full(SHAPE, 7, np.int16), scl_slope=2, scl_inter=1)
    write_volume(read_volume(tmp_path / "a.nii"), tmp_path / "b.nii")
    assert np.array_equal(read_volume(tmp_path / "b.nii").array, np.full(SHAPE, 15, np.float32))


def test_a_float_label_map_keeps_its_integers(tmp_path):
    labels = np.random.default_rng(0).integers(0, 5, SHAPE).astype(np.float32)
    save(tmp_path / "a.nii.gz", labels)
    assert np.array_equal(read_volume(tmp_path / "a.nii.gz").array, labels)


def test_the_sform_goes_before_the_qform(tmp_path):
    image = nib.Nifti1Image(np.zeros(SHAPE, np.uint8), None)
    image.set_qform(np.diag([2, 2, 2, 1]), code=1)
    image.set_sform(np.diag([3, 3, 3, 1]), code=2)
    image.to_filename(tmp_path / "both.nii")
    image.set_sform(None, code=0)
    image.to_filename(tmp_path / "qform.nii")
    assert read_grid(tmp_path / "both.nii").spacing_mm == (3, 3, 3)
    assert read_grid(tmp_path / "qform.nii").spacing_mm == (2, 2, 2)


def test_without_codes_the_voxel_sizes_place_the_volume(tmp_path):
    save(tmp_path / "a.nii", sform=0, qform=0, pixdim=(1, 2, 3, 4, 0, 0, 0, 0))
    grid = read_grid(tmp_path / "a.nii")
    assert np.array_equal(grid.affine, nib.load(tmp_path / "a.nii").affine)
    assert grid.spacing_mm == (2, 3, 4)


def test_a_singular_affine_is_told_with_the_file(tmp_path):
    save(tmp_path / "a.nii", srow_z=(0, 0, 0, 0))
    with pytest.raises(DataError, match=r"a\.nii: The affine .* is singular"):
        read_volume(tmp_path / "a.nii")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_affine_that_is_not_finite_is_told_with_the_file(tmp_path, value):
    save(tmp_path / "a.nii", srow_x=(1, 0, value, 0))
    with pytest.raises(DataError, match=r"a\.nii: The affine .* not finite"):
        read_volume(tmp_path / "a.nii")


def test_voxels_inside_the_header_are_told(tmp_path):
    save(tmp_path / "a.nii", vox_offset=0)
    with pytest.raises(DataError, match=r"a\.nii is damaged: its voxels begin at byte 0"):
        read_volume(tmp_path / "a.nii")


def test_an_impossible_qform_is_told(tmp_path):
    save(tmp_path / "a.nii", sform=0, qform=1, quatern_b=3)
    with pytest.raises(DataError, match=r"a\.nii is not a NIfTI image"):
        read_volume(tmp_path / "a.nii")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 4), np.uint8), r"shape \(3, 4\)"),
        (np.zeros((3, 4, 5, 1, 3), np.uint8), r"shape \(3, 4, 5, 1, 3\)"),
        (np.zeros(SHAPE, np.complex64), "complex64"),
        (np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")]), "'R'"),
    ],
)
def test_what_is_no_volume_of_numbers_is_told(tmp_path, array, words):
    save(tmp_path / "a.nii", array)
    with pytest.raises(DataError, match=words):
        read_volume(tmp_path / "a.nii")


def test_another_format_nibabel_knows_is_told(tmp_path):
    nib.save(nib.MGHImage(np.zeros(SHAPE, np.float32), np.eye(4)), tmp_path / "a.mgz")
    (tmp_path / "a.mgz").rename(tmp_path / "a.nii.gz")
    with pytest.raises(DataError, match=r"a\.nii\.gz is not"):
        read_volume(tmp_path / "a.nii.gz")


def test_a_damaged_gzip_stream_is_told(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (20, 20, 20)).astype(np.uint8)
    save(tmp_path / "a.nii.gz", noise)
    content = bytearray((tmp_path / "a.nii.gz").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.nii\.gz is truncated or damaged"):
        read_volume(tmp_path / "a.nii.gz")


def test_an_uncompressed_file_named_gz_is_told(tmp_path):
    save(tmp_path / "a.nii")
    (tmp_path / "a.nii").rename(tmp_path / "a.nii.gz")
    with pytest.raises(DataError, match=r"a\.nii\.gz is not a NIfTI image"):
        read_volume(tmp_path / "a.nii.gz")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 347), st.binary(min_size=1, max_size=4), st.booleans())
def test_a_header_with_any_bytes_wrong_is_read_or_refused(tmp_path_factory, at, wrong, compressed):
    folder = tmp_path_factory.getbasetemp()
    save(folder / "whole.nii")
    content = bytearray((folder / "whole.nii").read_bytes())
    content[at : at + len(wrong)] = wrong
    path = folder / ("damaged.nii.gz" if compressed else "damaged.nii")
    path.write_bytes(gzip.compress(content) if compressed else content)
    try:
        volume = read_volume(path)
    except DataError as error:
        assert path.name in str(error)
    else:
        assert volume.array.shape == volume.grid.shape
        assert np.isfinite(volume.affine).all()


def test_patient_notes_are_left_behind(tmp_path):
    save(tmp_path / "a.nii", descrip=b"Jane Doe", db_name=b"ward 7", aux_file=b"jane.txt")
    write_volume(read_volume(tmp_path / "a.nii"), tmp_path / "b.nii")
    content = (tmp_path / "b.nii").read_bytes()
    assert b"Jane" not in content
    assert b"ward" not in content
    assert b"jane" not in content


def test_nifti_2_keeps_its_double_precision_affine(tmp_path):
    affine = np.diag([1 / 3, 1 / 7, 1 / 9, 1])
    nib.save(nib.Nifti2Image(np.zeros(SHAPE, np.uint8), affine), tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    write_volume(volume, tmp_path / "b.nii.gz")
    assert np.array_equal(read_volume(tmp_path / "b.nii.gz").affine, affine)


def test_a_new_header_says_scanner_in_both_transforms(tmp_path):
    write_volume(Volume(np.zeros(SHAPE, np.uint8), Grid(SHAPE, np.diag([-1, 2, 3, 1]))), tmp_path / "a.nii")
    header = nib.load(tmp_path / "a.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    assert np.allclose(header.get_qform(), np.diag([-1, 2, 3, 1]))
    assert header.get_xyzt_units()[0] == "mm"
    assert np.allclose(header.get_zooms(), (1, 2, 3))


def test_a_shear_stands_in_the_sform_alone(tmp_path):
    affine = np.eye(4)
    affine[0, 1] = 0.3
    write_volume(Volume(np.zeros(SHAPE, np.uint8), Grid(SHAPE, affine)), tmp_path / "a.nii")
    image = nib.load(tmp_path / "a.nii")
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 0)
    assert np.allclose(image.affine, affine)
    assert np.allclose(read_volume(tmp_path / "a.nii").affine, affine)


@pytest.mark.parametrize(("unit", "told"), [("meter", "metres"), ("micron", "micrometres")])
def test_lengths_in_another_unit_than_mm_are_refused(tmp_path, unit, told):
    image = nib.Nifti1Image(np.zeros(SHAPE, np.uint8), np.diag([0.5, 0.5, 2, 1]))
    image.header.set_xyzt_units(unit, "sec")
    image.to_filename(tmp_path / "a.nii")
    with pytest.raises(DataError, match=rf"lengths in {told} .*0\.5, 0\.5, 2.*the unit alone"):
        read_grid(tmp_path / "a.nii")


@pytest.mark.parametrize("lengths", ["unknown", "mm"])
@pytest.mark.parametrize("time", ["unknown", "sec", "msec", "usec", "hz"])
def test_the_unit_of_time_does_not_matter(tmp_path, lengths, time):
    image = nib.Nifti1Image(np.zeros(SHAPE, np.uint8), np.eye(4))
    image.header.set_xyzt_units(lengths, time)
    image.to_filename(tmp_path / "a.nii")
    assert read_volume(tmp_path / "a.nii").spacing_mm == (1, 1, 1)


def test_a_volume_beyond_the_memory_is_not_called_damaged(tmp_path):
    """8 GiB of voxels, a hole on the disk, in a process that may have 6 GiB."""
    save(tmp_path / "a.nii", dim=[3, 2048, 2048, 1024, 1, 1, 1, 1])
    with (tmp_path / "a.nii").open("r+b") as file:
        file.truncate(352 + 2 * 2048 * 2048 * 1024)
    program = (
        "import resource, sys\n"
        "from medseg_brn.volumes.reading import read_volume\n"
        "resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))\n"
        "read_volume(sys.argv[1])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.nii")], capture_output=True, text=True, check=False
    )
    assert "a.nii does not fit into memory: its values take 8 GiB" in result.stderr
