"""Whatever the axes of a scan: its label map lies on the very same grid, and says the same of each place."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg_brn.models.architecture import build_network
from medseg_brn.models.model import Model
from medseg_brn.volumes.reading import read_volume
from medseg_brn.volumes.writing import write_volume

CPU = torch.device("cpu")
SHAPE, SPACING_MM = (11, 9, 7), (0.9, 1.1, 2.0)
ORIENTATIONS = list(product(permutations(range(3)), product((1, -1), repeat=3)))


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(100, 20, SHAPE).astype(np.float32)


@pytest.fixture(scope="module")
def model(description) -> Model:
    torch.manual_seed(0)
    network = build_network(description.network, 1, description.num_classes).eval()
    return Model.from_network(network, description, CPU, torch.float32)


def _write(path, values: np.ndarray, affine: np.ndarray, sform_code: int, qform_code: int) -> None:
    image = nib.Nifti1Image(values, None)
    image.header.set_sform(affine, code=sform_code)
    image.header.set_qform(affine, code=qform_code)
    nib.save(image, path)


def _predict(model: Model, folder, values: np.ndarray, affine: np.ndarray, codes=(1, 2)) -> np.ndarray:
    """Segment a file, check that the label map's file lies on its grid, and return the labels."""
    _write(folder / "scan.nii.gz", values, affine, *codes)
    write_volume(model.predict(folder / "scan.nii.gz"), folder / "label_map.nii.gz")
    scan, label_map = (nib.load(folder / name) for name in ("scan.nii.gz", "label_map.nii.gz"))
    assert label_map.shape == scan.shape
    np.testing.assert_array_equal(label_map.affine, scan.affine)
    for transform in ("sform", "qform"):
        made, given_ = (getattr(image, f"get_{transform}")(coded=True) for image in (label_map, scan))
        assert made[1] == given_[1]
        if given_[0] is not None:
            np.testing.assert_array_equal(made[0], given_[0])
    return read_volume(folder / "label_map.nii.gz").array


def _reorder(values: np.ndarray, affine: np.ndarray, order, signs) -> tuple[np.ndarray, np.ndarray]:
    """The same voxels in the same places in mm, with other axes."""
    orientation = np.array([[order.index(axis), signs[axis]] for axis in range(3)], float)
    moved = nib.orientations.apply_orientation(values, orientation)
    return moved, affine @ nib.orientations.inv_ornt_aff(orientation, values.shape)


@pytest.mark.parametrize("turned", [False, True], ids=["straight", "oblique"])
def test_all_48_orientations_give_the_same_labels_in_the_same_places(tmp_path, model, values, turned):
    affine = np.diag([*SPACING_MM, 1.0])
    affine[:3, 3] = (-17.3, 4.25, 1 / 3)
    if turned:
        affine[:3, :3] = nib.eulerangles.euler2mat(0.2, -0.15, 0.25) @ affine[:3, :3]
    expected = _predict(model, tmp_path, values, affine)
    assert len(np.unique(expected)) > 1
    assert len(ORIENTATIONS) == 48
    for order, signs in ORIENTATIONS:
        found = _predict(model, tmp_path, *_reorder(values, affine, order, signs))
        moved, _ = _reorder(expected, affine, order, signs)
        np.testing.assert_array_equal(found, moved, err_msg=f"{order} {signs}")


@settings(max_examples=25, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    spacing_mm=st.tuples(*[st.floats(0.4, 5.0)] * 3),
    origin_mm=st.tuples(*[st.floats(-500, 500)] * 3),
    codes=st.sampled_from([(1, 1), (2, 1), (0, 1), (3, 0), (4, 2)]),
)
def test_any_oblique_scan_gets_its_label_map_on_its_own_grid(
    tmp_path_factory, model, values, angles, spacing_mm, origin_mm, codes
):
    affine = np.eye(4)
    affine[:3, :3] = nib.eulerangles.euler2mat(*angles) @ np.diag(spacing_mm)
    affine[:3, 3] = origin_mm
    _predict(model, tmp_path_factory.mktemp("oblique"), values, affine, codes)
