"""Quality and mode collapse by hand."""

import numpy as np
import pytest

from medseg_brn.studies.adversarial.quality import compute_dice, measure_likeness, measure_quality


def make_mask(*voxels: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros((4, 4, 4), bool)
    for voxel in voxels:
        mask[voxel] = True
    return mask


ONE = make_mask((0, 0, 0), (0, 0, 1))
OTHER = make_mask((0, 0, 1), (0, 0, 2), (0, 0, 3), (0, 1, 3))
EMPTY = make_mask()


def test_dice_by_hand():
    assert compute_dice(ONE, OTHER) == pytest.approx(2 * 1 / 6)
    assert compute_dice(ONE, ONE) == compute_dice(EMPTY, EMPTY) == 1.0
    assert compute_dice(ONE, EMPTY) == 0.0


def test_likeness_is_the_mean_of_all_pairs():
    assert measure_likeness(np.stack([ONE, OTHER, EMPTY])) == pytest.approx((1 / 3 + 0 + 0) / 3)
    assert measure_likeness(np.stack([ONE, ONE, ONE])) == 1.0


def test_perfect_predictions():
    masks = np.stack([ONE, OTHER])
    assert measure_quality(masks, masks) == {
        "dice": 1.0,
        "surface_distance": 0.0,
        "pieces": 1.0,
        "empty": 0.0,
        "volume_ratio": 1.0,
        "likeness": 0.0,
    }


def test_a_constant_output_is_a_collapse():
    found = measure_quality(np.stack([ONE, ONE]), np.stack([ONE, OTHER]))
    assert found["volume_ratio"] == 0.0
    assert found["likeness"] == pytest.approx(1 - 1 / 3)
    assert found["dice"] == pytest.approx((1 + 1 / 3) / 2)


def test_empty_predictions_and_pieces():
    split = make_mask((0, 0, 0), (2, 2, 2), (3, 3, 0))
    found = measure_quality(np.stack([EMPTY, split]), np.stack([ONE, OTHER]))
    assert found["empty"] == 0.5
    assert found["pieces"] == 1.5
    assert np.isfinite(found["surface_distance"])
    assert np.isnan(measure_quality(np.stack([EMPTY] * 2), np.stack([ONE, OTHER]))["surface_distance"])
