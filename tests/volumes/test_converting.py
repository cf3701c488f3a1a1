"""Images of other libraries become the Volumes that their files would be."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from monai.data import MetaTensor
from monai.transforms import LoadImage

from medseg_brn.errors import DataError
from medseg_brn.volumes.converting import to_volumes
from medseg_brn.volumes.reading import read_channels, read_volume
from medseg_brn.volumes.volume import Grid, Volume
from medseg_brn.volumes.writing import write_volume

AFFINE = np.array([[0, -2.0, 0, 30], [1.5, 0, 0, -40], [0, 0, 3.0, 7], [0, 0, 0, 1]])


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def assert_same(one: Volume, other: Volume) -> None:
    np.testing.assert_array_equal(one.array, other.array)
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-5)


@pytest.fixture
def path(tmp_path):
    write_volume(Volume(draw(4, 5, 6), Grid((4, 5, 6), AFFINE)), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def test_a_volume_stays_itself(path):
    volume = read_volume(path)
    assert to_volumes(volume) == [volume]


def test_nibabel(path):
    (volume,) = to_volumes(nib.load(path))
    assert_same(volume, read_volume(path))
    assert volume.grid.header is not None
    assert volume.grid.header.get_sform(coded=True)[1] == nib.load(path).header.get_sform(coded=True)[1]


def test_nibabel_image_whose_header_says_something_else():
    image = nib.Nifti1Image(draw(4, 5, 6), AFFINE)
    image.header.set_sform(np.eye(4), code=1)
    (volume,) = to_volumes(image)
    np.testing.assert_array_equal(volume.affine, AFFINE)
    assert volume.grid.header is None


def test_sitk(path):
    (volume,) = to_volumes(sitk.ReadImage(str(path)))
    assert_same(volume, read_volume(path))


def test_monai(path):
    (volume,) = to_volumes(LoadImage(image_only=True)(path))
    assert_same(volume, read_volume(path))
    (volume,) = to_volumes(LoadImage(image_only=True, ensure_channel_first=True)(path))
    assert_same(volume, read_volume(path))


def test_monai_in_lps():
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ AFFINE
    (volume,) = to_volumes(MetaTensor(draw(4, 5, 6), affine=lps, meta={"space": "LPS"}))
    np.testing.assert_allclose(volume.affine, AFFINE)


def test_an_array_with_an_affine(path):
    read = read_volume(path)
    (volume,) = to_volumes(read.array, read.affine)
    assert_same(volume, read)


def test_channels_lie_where_each_library_has_them(tmp_path):
    array = draw(2, 4, 5, 6)
    image = nib.Nifti1Image(np.moveaxis(array, 0, 3), AFFINE)
    nib.save(image, tmp_path / "two.nii.gz")
    expected = read_channels(tmp_path / "two.nii.gz")
    vectors = sitk.GetImageFromArray(array.transpose(3, 2, 1, 0), isVector=True)
    vectors.CopyInformation(sitk.ReadImage(str(tmp_path / "two.nii.gz"))[:, :, :, 0])
    for given in (
        to_volumes(image),
        to_volumes(array, AFFINE),
        to_volumes(MetaTensor(array, affine=AFFINE)),
        to_volumes(vectors),
    ):
        assert len(given) == 2
        for one, other in zip(given, expected, strict=True):
            assert_same(one, other)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            np.zeros((4, 5)),
            r"shape \(4, 5\) was given; a volume has three axes, or four with the channels first",
        ),
        (np.zeros((4, 0, 5)), r"shape \(4, 0, 5\)"),
        (np.zeros((4, 5, 6), complex), "values of type complex128"),
        (nib.Nifti1Image(np.zeros((4, 5, 6, 1, 1), np.float32), AFFINE), "channels last"),
        (sitk.Image(4, 5, sitk.sitkFloat32), r"size \(4, 5\)"),
        (3, "not as int"),
    ],
)
def test_what_is_no_volume(image, message):
    with pytest.raises(DataError, match=message):
        to_volumes(image, AFFINE if isinstance(image, np.ndarray) else None)


def test_an_affine_for_what_has_one_is_refused(path):
    with pytest.raises(DataError, match="tells itself where its voxels lie"):
        to_volumes(nib.load(path), AFFINE)


def test_an_array_alone_is_refused():
    with pytest.raises(DataError, match="give affine"):
        to_volumes(np.zeros((4, 5, 6)))
