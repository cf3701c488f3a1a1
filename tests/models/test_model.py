"""Prediction: on the scan's own grid whatever its axes, with the dataset's own label values."""

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg_brn.cases.preprocessing import Preprocessing, prepare_images
from medseg_brn.errors import DataError
from medseg_brn.models.architecture import build_network
from medseg_brn.models.model import Model
from medseg_brn.volumes.reading import read_volume
from medseg_brn.volumes.volume import Grid, Volume
from medseg_brn.volumes.writing import write_volume

CPU = torch.device("cpu")


def _oblique() -> np.ndarray:
    turn = nib.eulerangles.euler2mat(0.3, -0.2, 0.5)
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.9, 1.1, 3.0])
    affine[:3, 3] = (-17.3, 4.25, 1 / 3)
    return affine


AFFINES = {
    "anisotropic": np.diag([0.7, 0.7, 5.0, 1.0]),
    "LPS": np.array([[-1, 0, 0, 90], [0, -1, 0, 126], [0, 0, 1.5, -72], [0, 0, 0, 1.0]]),
    "oblique": _oblique(),
    "PIR": np.array([[0, 0, 2, -3], [-1, 0, 0, 4], [0, -1.2, 0, 5], [0, 0, 0, 1.0]]),
}


@pytest.fixture
def model(network, description) -> Model:
    return Model.from_network(network, description, CPU, torch.float32)


def _scan(affine: np.ndarray, shape=(11, 9, 7), seed=0) -> Volume:
    array = np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)
    return Volume(array, Grid(shape, affine))


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_the_label_map_lies_on_the_scan_s_grid_to_the_last_bit(tmp_path, model, name, suffix):
    path = tmp_path / f"scan{suffix}"
    write_volume(_scan(AFFINES[name]), path)
    scan = read_volume(path)
    label_map = model.predict(path)
    assert label_map.shape == scan.shape
    np.testing.assert_array_equal(label_map.affine, scan.affine)
    assert set(np.unique(label_map.array)) <= {0, 2, 500}
    assert len(np.unique(label_map.array)) > 1
    assert label_map.array.dtype == np.uint16


def test_a_nifti_result_repeats_both_transforms_and_their_codes(tmp_path, model):
    image = nib.Nifti1Image(_scan(np.eye(4)).array, None)
    image.set_sform(_oblique(), code=4)
    image.set_qform(_oblique(), code=2)
    nib.save(image, tmp_path / "scan.nii.gz")
    write_volume(model.predict(tmp_path / "scan.nii.gz"), tmp_path / "out.nii.gz")
    before, after = (nib.load(tmp_path / name).header for name in ("scan.nii.gz", "out.nii.gz"))
    for field in ("qform_code", "sform_code", "quatern_b", "srow_x", "srow_z", "pixdim", "qoffset_x"):
        np.testing.assert_array_equal(after[field], before[field])


def test_without_resampling_the_answer_is_the_network_s(network, description):
    identity = Preprocessing.model_validate({"spacing_mm": (1, 1, 1), "intensity": [{"scheme": "none"}]})
    model = Model.from_network(
        network, description.model_copy(update={"preprocessing": identity}), CPU, torch.float32
    )
    scan = Volume(
        np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32), Grid((8,) * 3, np.eye(4))
    )
    with torch.no_grad():
        expected = network(torch.from_numpy(scan.array)[None, None]).softmax(1)[0].numpy()
    label_map, probabilities = model.predict(scan, probabilities=True)
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    np.testing.assert_array_equal(label_map.array, np.array([0, 2, 500])[expected.argmax(0)])


@pytest.mark.parametrize("name", ["LPS", "PIR"])
def test_the_answer_does_not_depend_on_how_the_scan_is_stored(model, name):
    """The same scan with other axes gives the same label at the same place in the patient."""
    scan = _scan(AFFINES[name])
    canonical = nib.as_closest_canonical(nib.Nifti1Image(scan.array, scan.affine))
    turned = Volume(canonical.get_fdata(dtype=np.float32), Grid(canonical.shape, canonical.affine))
    found = model.predict(scan)
    expected = nib.Nifti1Image(found.array, found.affine)
    np.testing.assert_array_equal(
        model.predict(turned).array, np.asarray(nib.as_closest_canonical(expected).dataobj)
    )


def test_probabilities_lie_on_the_scan_s_grid_and_sum_to_1(model):
    scan = _scan(AFFINES["oblique"])
    label_map, probabilities = model.predict(scan, probabilities=True)
    assert probabilities.shape == (3, *scan.shape)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
    values = np.array([0, 2, 500])
    np.testing.assert_array_equal(values[probabilities.argmax(0)], label_map.array)


def test_paths_volumes_and_lists_of_one_are_the_same_scan(tmp_path, model):
    path = tmp_path / "scan.nii.gz"
    write_volume(_scan(AFFINES["LPS"]), path)
    expected = model.predict(path).array
    for images in (str(path), [path], (str(path),), read_volume(path), [read_volume(path)]):
        np.testing.assert_array_equal(model.predict(images).array, expected)


def test_a_dicom_series_is_a_scan(data_folder, network, model):
    folder = data_folder / "abdomen_ct" / "dicom"
    coarse = model.description.preprocessing.model_copy(update={"spacing_mm": (12.0, 12.0, 6.0)})
    quick = Model.from_network(
        network, model.description.model_copy(update={"preprocessing": coarse}), CPU, torch.float32
    )
    label_map = quick.predict(folder)
    assert label_map.shape == (512, 512, 20)
    np.testing.assert_array_equal(label_map.affine, read_volume(folder).affine)


@pytest.mark.parametrize("norm", ["batch_renorm", "instance"])
def test_mirroring_and_overlap_are_the_model_s_own_unless_given(description, norm):
    architecture = description.network.model_copy(update={"norm": norm})
    description = description.model_copy(update={"network": architecture})
    network = build_network(architecture, 1, 3)
    model = Model.from_network(network, description, CPU, torch.float32)
    scan = _scan(AFFINES["LPS"])
    with_own = model.description.model_copy(
        update={
            "inference": model.description.inference.model_copy(update={"mirror_axes": (0,), "overlap": 0.0})
        }
    )
    own = Model.from_network(network, with_own, CPU, torch.float32)
    overlap = None if norm == "batch_renorm" else 0.0  # an overlap that is given asks for windows
    _, expected = model.predict(scan, probabilities=True, overlap=overlap, mirror_axes=(0,))
    _, found = own.predict(scan, probabilities=True)
    np.testing.assert_array_equal(found, expected)
    _, plain = own.predict(scan, probabilities=True, overlap=0.5, mirror_axes=())
    assert not np.array_equal(found, plain)
    assert (model.method_note is None) == (norm == "batch_renorm")


def test_progress_counts_the_windows(model):
    scan = _scan(AFFINES["anisotropic"])
    seen = []
    model.predict(scan, overlap=0.5, progress=lambda done, total: seen.append((done, total)))
    prepared = prepare_images([scan], model.description.preprocessing)
    assert prepared.array.shape[1:] == (8, 6, 18)
    # Windows begin at 0, 4, 8 and 10 along Z, and small ones go two at a time.
    assert seen == [(2, 4), (4, 4)]


@pytest.fixture
def two_channel_model(description) -> Model:
    changes = {
        "modalities": ("mri", "mri"),
        "preprocessing": Preprocessing.model_validate(
            {"spacing_mm": (1, 1, 2), "intensity": [{"scheme": "zscore"}] * 2}
        ),
    }
    torch.manual_seed(1)
    changed = description.model_copy(update=changes)
    return Model.from_network(build_network(changed.network, 2, 3), changed, CPU, torch.float32)


def test_channels_come_as_files_or_as_one_4d_file(tmp_path, two_channel_model):
    scans = [_scan(AFFINES["LPS"], seed=seed) for seed in (0, 1)]
    paths = [tmp_path / f"scan_{index:04d}.nii.gz" for index in (0, 1)]
    for scan, path in zip(scans, paths, strict=True):
        write_volume(scan, path)
    both = np.stack([scan.array for scan in scans], axis=-1)
    nib.save(nib.Nifti1Image(both, AFFINES["LPS"]), tmp_path / "both.nii.gz")
    expected = two_channel_model.predict(paths).array
    np.testing.assert_array_equal(two_channel_model.predict(tmp_path / "both.nii.gz").array, expected)
    np.testing.assert_array_equal(two_channel_model.predict(scans).array, expected)
    assert not np.array_equal(two_channel_model.predict(scans[::-1]).array, expected)


def test_another_number_of_channels_is_told_with_the_remedy(tmp_path, model, two_channel_model):
    write_volume(_scan(AFFINES["LPS"]), tmp_path / "p7.nii.gz")
    with pytest.raises(DataError, match=r"'p7' has 1 channel, .* takes 2 \(mri, mri\).*p7_0000, p7_0001"):
        two_channel_model.predict(tmp_path / "p7.nii.gz")
    with pytest.raises(DataError, match=r"has 2 channels, .* takes 1"):
        model.predict([_scan(np.eye(4)), _scan(np.eye(4))])


def test_images_that_are_none(model):
    with pytest.raises(DataError, match="empty"):
        model.predict([])
    with pytest.raises(DataError, match="not as dict"):
        model.predict({"image": np.zeros((3, 3, 3))})
    with pytest.raises(DataError, match="does not say where its voxels lie; give affine"):
        model.predict([np.zeros((3, 3, 3))])
    with pytest.raises(DataError, match="give all as one kind"):
        model.predict(["scan.nii.gz", np.zeros((3, 3, 3))])


def test_channels_on_different_grids_are_refused(two_channel_model):
    scans = [_scan(AFFINES["LPS"]), _scan(AFFINES["anisotropic"])]
    with pytest.raises(DataError, match="different grids: orientation LPS against RAS"):
        two_channel_model.predict(scans)


def test_making_a_model_leaves_the_network_as_it_was(network, description):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.train()
    Model.from_network(network, description, CPU, torch.float32)
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
