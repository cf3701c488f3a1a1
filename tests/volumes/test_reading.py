"""Whatever the format, a volume is read whole or refused in one message."""

import gzip

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medseg_brn.errors import DataError
from medseg_brn.volumes.reading import (
    VOLUME_SUFFIXES,
    is_volume_path,
    list_image_files,
    read_channels,
    read_grid,
    read_volume,
    volume_stem,
)
from medseg_brn.volumes.volume import Grid, Volume
from medseg_brn.volumes.writing import write_volume

SHAPE = (9, 10, 11)


@pytest.fixture
def volume() -> Volume:
    """Noise, which does not compress, on a grid with a voxel size per axis."""
    affine = np.diag([-1, 2, 3, 1.0])
    affine[:3, 3] = (5, -6, 7)
    values = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)
    return Volume(values, Grid(SHAPE, affine))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".NII.GZ", ".nrrd", ".mha"])
def test_every_format_gives_the_same_volume(tmp_path, volume, suffix):
    path = tmp_path / f"scan{suffix}"
    write_volume(volume, path)
    read = read_volume(path)
    assert read.array.dtype == np.int16
    assert np.array_equal(read.array, volume.array)
    assert np.allclose(read.affine, volume.affine, atol=1e-12)
    assert read_grid(path).matches(volume.grid)
    assert is_volume_path(path)
    assert volume_stem(path) == "scan"


@pytest.mark.parametrize("suffix", VOLUME_SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"This is a text.\n" * 50, b"\0" * 400])
def test_a_file_of_another_kind_is_refused_without_noise(tmp_path, capfd, suffix, content):
    path = tmp_path / f"notes{suffix}"
    path.write_bytes(content)
    for read in (read_volume, read_grid, read_channels):
        with pytest.raises(DataError, match=f"notes{suffix} is"):
            read(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, volume, suffix, kept):
    path = tmp_path / f"scan{suffix}"
    write_volume(volume, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DataError, match=rf"scan{suffix} is .*(fetch|export)"):
        read_volume(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_truncated_mhd_pair_is_refused_without_noise(tmp_path, capfd, compressed, volume):
    sitk.WriteImage(
        sitk.GetImageFromArray(volume.array), str(tmp_path / "scan.mhd"), useCompression=compressed
    )
    data = tmp_path / ("scan.zraw" if compressed else "scan.raw")
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(DataError, match=f"is truncated.*{data.name}"):
        read_volume(tmp_path / "scan.mhd")
    data.unlink()
    with pytest.raises(DataError, match=f"{data.name}, which does not exist"):
        read_volume(tmp_path / "scan.mhd")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_gigantic_nifti_header_asks_for_no_memory(tmp_path, suffix):
    header = nib.Nifti1Header()
    header.set_data_shape((30000, 30000, 30000))
    header["vox_offset"] = 352
    content = header.binaryblock + bytes(1000)
    path = tmp_path / f"scan{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    with pytest.raises(DataError, match="its header announces 30000x30000x30000 values"):
        read_volume(path)


def test_a_gigantic_metaimage_header_asks_for_no_memory(tmp_path):
    fields = "ObjectType = Image\nNDims = 3\nDimSize = 90000 90000 90000\nElementType = MET_SHORT\n"
    (tmp_path / "scan.mha").write_text(f"{fields}ElementDataFile = LOCAL\nabc")
    with pytest.raises(DataError, match="announces 1458000000000000 bytes"):
        read_volume(tmp_path / "scan.mha")
    (tmp_path / "zipped.mha").write_text(f"{fields}CompressedData = True\nElementDataFile = LOCAL\nabc")
    with pytest.raises(DataError, match="announces 90000x90000x90000"):
        read_volume(tmp_path / "zipped.mha")


def test_a_gigantic_nrrd_header_asks_for_no_memory(tmp_path):
    (tmp_path / "scan.nrrd").write_text(
        "NRRD0004\ntype: short\ndimension: 3\nsizes: 90000 90000 90000\n"
        "spacings: 1 1 1\nencoding: gzip\nendian: little\n\nabc"
    )
    with pytest.raises(DataError, match="announces 90000x90000x90000"):
        read_volume(tmp_path / "scan.nrrd")


def test_a_missing_path_is_told(tmp_path):
    with pytest.raises(DataError, match=r"scan\.nii does not exist"):
        read_volume(tmp_path / "scan.nii")


@pytest.mark.parametrize("name", ["scan.png", "scan", "slice.dcm"])
def test_an_unknown_suffix_is_told_with_the_known_ones(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=rf"{name} is none of \.nii\.gz, .*folder of the series"):
        read_volume(tmp_path / name)
    assert not is_volume_path(tmp_path / name)


def test_names_that_begin_with_a_dot_are_no_volumes(tmp_path):
    (tmp_path / "._scan.nii.gz").touch()
    assert not is_volume_path(tmp_path / "._scan.nii.gz")


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a.nii.gz", "a"),
        ("a.b.nii", "a.b"),
        ("a.nrrd", "a"),
        ("a.mha", "a"),
        ("series", "series"),
        ("a.gz", "a.gz"),
    ],
)
def test_a_stem_is_the_name_without_the_volume_suffix(name, stem):
    assert volume_stem(f"/somewhere/{name}") == stem


def test_four_axes_are_channels_and_no_volume(tmp_path):
    values = np.random.default_rng(0).normal(size=(4, 5, 6, 2)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.diag([1, 2, 3, 1])), tmp_path / "scan.nii.gz")
    with pytest.raises(DataError, match=r"scan\.nii\.gz has 2 channels \(shape \(4, 5, 6, 2\)\)"):
        read_volume(tmp_path / "scan.nii.gz")
    first, second = read_channels(tmp_path / "scan.nii.gz")
    assert np.array_equal(first.array, values[..., 0])
    assert np.array_equal(second.array, values[..., 1])
    assert second.spacing_mm == (1, 2, 3)
    assert read_grid(tmp_path / "scan.nii.gz").shape == (4, 5, 6)


def test_a_vector_image_has_channels_too(tmp_path):
    values = np.random.default_rng(0).normal(size=(4, 5, 6, 2)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(values, isVector=True), str(tmp_path / "scan.nrrd"))
    channels = read_channels(tmp_path / "scan.nrrd")
    assert [channel.shape for channel in channels] == [(6, 5, 4), (6, 5, 4)]
    assert np.array_equal(channels[1].array, values[..., 1].transpose(2, 1, 0))


def test_a_fourth_axis_of_one_is_a_volume(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6, 1), np.uint8), np.eye(4)), tmp_path / "scan.nii")
    assert read_volume(tmp_path / "scan.nii").shape == (4, 5, 6)


def test_one_channel_is_a_list_of_one(tmp_path, volume):
    write_volume(volume, tmp_path / "scan.mha")
    (channel,) = read_channels(tmp_path / "scan.mha")
    assert np.array_equal(channel.array, volume.array)


def test_real_volumes_are_read(data_folder):
    volume = read_volume(data_folder / "abdomen_ct" / "example_mr_sm.nii.gz")
    assert volume.array.dtype == np.int16
    assert (volume.shape, volume.grid.orientation) == ((117, 91, 20), "LPS")
    assert np.allclose(volume.spacing_mm, 3)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.nii.gz", "", ["a.nii.gz"]),
        ("a.mha", "NDims = 3\nElementDataFile = LOCAL\n", ["a.mha"]),
        ("a.mhd", "NDims = 3\nElementDataFile = x.raw\n", ["a.mhd", "x.raw"]),
        ("a.mhd", "NDims = 3\nElementDataFile = LIST\nx.raw\n", ["a.mhd", "a.mhd", "x.raw"]),
        ("a.nrrd", "NRRD0004\ntype: short\n\n", ["a.nrrd"]),
        ("a.nrrd", "NRRD0004\ndata file: x.raw\n", ["a.nrrd", "x.raw"]),
        (".", "", ["x.raw"]),
    ],
)
def test_the_files_an_image_is_made_of(tmp_path, name, text, expected):
    (tmp_path / "x.raw").write_bytes(b"1")
    if name != ".":
        (tmp_path / name).write_text(text)
    assert [path.name for path in list_image_files(tmp_path / name)] == expected
