"""Air: found around a body, never in it, whatever the file's axes."""

from pathlib import Path

import numpy as np
import pytest

from medseg_brn.cases.air import find_air_blocks
from medseg_brn.cases.preprocessing import Preprocessing
from medseg_brn.cases.spatial import plan_space
from medseg_brn.volumes.reading import read_volume
from medseg_brn.volumes.volume import Grid, Volume

CT = {"scheme": "ct", "low": -100, "high": 200, "mean": 50, "std": 70}
BLOCK = (4, 4, 4)


def _preprocessing(spacing_mm=(1.0, 1.0, 1.0), *schemes) -> Preprocessing:
    return Preprocessing.model_validate({"spacing_mm": spacing_mm, "intensity": schemes or (CT,)})


def _find(array, preprocessing=None, affine=None, block=BLOCK):
    arrays = array if isinstance(array, list) else [array]
    grid = Grid(arrays[0].shape, np.eye(4) if affine is None else affine)
    preprocessing = preprocessing or _preprocessing()
    volumes = [Volume(each, grid) for each in arrays]
    record = plan_space(volumes, "none", preprocessing.spacing_mm)
    return find_air_blocks(volumes, preprocessing, record, block)


def _body(shape=(40, 40, 24), lower=(16, 16, 0), upper=(24, 24, 24)) -> np.ndarray:
    """Air with its noise, and a box of tissue."""
    array = np.random.default_rng(0).normal(-1000, 30, shape).astype(np.int16)
    array[tuple(slice(*ends) for ends in zip(lower, upper, strict=True))] = 40
    return array


def test_a_block_away_from_the_body_is_air():
    """The box fills blocks 4 and 5 of 10; what is interpolated from it reaches 3 and 6, and around these
    2 and 7 are kept."""
    air = _find(_body())
    assert air.shape == (10, 10, 6)
    expected = np.ones((10, 10, 6), bool)
    expected[2:8, 2:8] = False
    np.testing.assert_array_equal(air, expected)


def test_a_cavity_is_never_air_also_where_the_scan_cuts_it():
    array = _body((80, 80, 32), (16, 16, 0), (64, 64, 32))
    array[24:56, 24:56, 4:] = -1000  # gas, open at the top
    air = _find(array)
    assert not air[2:18, 2:18].any()
    assert air[0, 0].all()


def test_nothing_is_left_out_where_the_body_fills_the_scan():
    assert _find(np.full((16, 16, 16), 40, np.int16)) is None


def test_a_blank_scan_is_all_air():
    assert _find(np.full((16, 16, 16), -1000, np.int16)).all()


def test_zeros_around_a_brain_and_all_channels_must_be_empty():
    brain, lesion = np.zeros((40, 40, 24), np.float32), np.zeros((40, 40, 24), np.float32)
    brain[18:22, 18:22, 10:14] = 0.3
    lesion[2:4, 2:4, 10:14] = -1
    zscore = {"scheme": "zscore_nonzero"}
    one = _find(brain, _preprocessing((1, 1, 1), zscore))
    both = _find([brain, lesion], _preprocessing((1, 1, 1), zscore, zscore))
    assert one[0, 0, 3]
    assert not both[0, 0, 3]
    assert one[9, 9, 3]
    assert both[9, 9, 3]
    assert not one[4, 4, 2]


@pytest.mark.parametrize("spacing_mm", [(0.6, 0.7, 1.0), (1.9, 1.4, 2.0)])
def test_on_another_grid_no_voxel_near_the_body_is_air(spacing_mm):
    array = _body()
    air = _find(array, _preprocessing(spacing_mm))
    shape = np.round(np.divide(array.shape, spacing_mm)).astype(int)
    assert air.shape == tuple(-(-shape // 4))
    centres = [
        (np.arange(n) + 0.5) * step for n, step in zip(air.shape, np.multiply(4, spacing_mm), strict=True)
    ]
    for x, y in np.argwhere(air.any(2)):
        distance = max(abs(centres[0][x] - 20) - 4, abs(centres[1][y] - 20) - 4)
        assert distance > 4 * min(spacing_mm[:2])
    assert air.any()


def test_the_order_and_direction_of_the_file_s_axes_do_not_matter():
    array = _body(lower=(12, 20, 0), upper=(18, 30, 20))
    turned = np.flip(array.transpose(2, 0, 1), (0, 1))
    affine = np.array([[0, -1, 0, 39], [0, 0, 1, 0], [-1, 0, 0, 23], [0, 0, 0, 1.0]])
    np.testing.assert_array_equal(_find(turned, affine=affine), _find(array))


def test_no_labelled_voxel_of_a_real_scan_is_in_air(data_folder):
    folder = Path(data_folder) / "abdomen_ct"
    scan, labels = (read_volume(folder / name) for name in ("example_ct_sm.nii.gz", "example_seg.nii.gz"))
    preprocessing = _preprocessing(scan.spacing_mm)
    record = plan_space([scan], "none", scan.spacing_mm)
    air = find_air_blocks([scan], preprocessing, record, (8, 8, 8))
    assert air is not None
    voxels = air.repeat(8, 0).repeat(8, 1).repeat(8, 2)[tuple(map(slice, record.network_shape))]
    from medseg_brn.volumes.geometry import canonicalize

    assert (canonicalize(labels).array[voxels] == 0).all()
    assert 0.02 < air.mean() < 0.9
