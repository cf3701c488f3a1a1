"""A dataset's scans on the study's grid, and what is refused."""

import json
import shutil

import numpy as np
import pytest

from medseg_brn.cases.phantom import make_phantom
from medseg_brn.errors import DataError
from medseg_brn.studies.sites.anatomies import SHAPE, read_anatomies
from medseg_brn.volumes.reading import read_volume
from medseg_brn.volumes.volume import Volume
from medseg_brn.volumes.writing import write_volume


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_phantom(tmp_path_factory.mktemp("phantom") / "heads", cases=3, voxel_mm=8)


def test_scans_of_any_gain_come_on_one_scale_and_one_grid(dataset):
    anatomies = read_anatomies(dataset, needed=3)
    assert anatomies.images.shape == anatomies.masks.shape == (3, *SHAPE)
    assert anatomies.name == "3 scans of Phantom head"
    low, high = np.percentile(anatomies.images, (2, 98), axis=(1, 2, 3))
    np.testing.assert_allclose(low, 0, atol=0.1)
    np.testing.assert_allclose(high, 1, atol=0.2)  # a coarser grid blurs what is bright
    assert ((anatomies.masks.mean((1, 2, 3)) > 0.1) & (anatomies.masks.mean((1, 2, 3)) < 0.4)).all()


def test_a_case_stored_with_another_gain_and_offset_is_the_same_anatomy(dataset, tmp_path):
    changed = shutil.copytree(dataset, tmp_path / "changed")
    path = changed / "imagesTr" / "head_000.nii.gz"
    image = read_volume(path)
    write_volume(Volume(3 * image.array.astype(np.float32) + 100, image.grid), path)
    np.testing.assert_allclose(
        read_anatomies(changed, needed=3).images, read_anatomies(dataset, needed=3).images, atol=1e-4
    )


def test_a_draw_takes_different_scans(dataset):
    anatomies = read_anatomies(dataset, needed=3)
    images, masks = anatomies.draw(3, np.random.default_rng(0))
    assert sorted(images.sum((1, 2, 3))) == sorted(anatomies.images.sum((1, 2, 3)))
    chosen = [int(np.flatnonzero((anatomies.images == image).all((1, 2, 3)))[0]) for image in images]
    np.testing.assert_array_equal(masks, anatomies.masks[chosen])


def test_too_few_cases_are_refused_with_the_number_needed(dataset):
    with pytest.raises(
        DataError, match=r"3 labelled cases, and the study of sites needs 4.*leave --data out"
    ):
        read_anatomies(dataset, needed=4)


def test_a_case_without_foreground_is_named(dataset, tmp_path):
    spoilt = shutil.copytree(dataset, tmp_path / "spoilt")
    path = spoilt / "labelsTr" / "head_001.nii.gz"
    label_map = read_volume(path)
    write_volume(Volume(np.zeros_like(label_map.array), label_map.grid), path)
    with pytest.raises(DataError, match=r"'head_001' has no foreground on a grid of \(24, 28, 24\)"):
        read_anatomies(spoilt, needed=3)


def test_a_blank_scan_is_named(dataset, tmp_path):
    spoilt = shutil.copytree(dataset, tmp_path / "spoilt")
    path = spoilt / "imagesTr" / "head_002.nii.gz"
    image = read_volume(path)
    write_volume(Volume(np.full_like(image.array, 7), image.grid), path)
    with pytest.raises(DataError, match="'head_002' has no intensities that differ"):
        read_anatomies(spoilt, needed=3)


def test_several_channels_are_refused(dataset, tmp_path):
    spoilt = shutil.copytree(dataset, tmp_path / "spoilt")
    description = json.loads((spoilt / "dataset.json").read_text())
    description["modality"] = {"0": "T1", "1": "T2"}
    (spoilt / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match="2 channels a case, and the study of sites takes one"):
        read_anatomies(spoilt, needed=3)


def test_no_dataset_is_an_error_that_names_the_place(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        read_anatomies(tmp_path / "nowhere", needed=1)
