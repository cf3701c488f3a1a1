"""Scans and how their crops are dealt."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medseg_brn.studies.distributed.shards import deal_crops, draw_cohort


def test_a_cohort_is_drawn_again_the_same_and_another_one_differs():
    first, again, other = draw_cohort(3, 0), draw_cohort(3, 0), draw_cohort(3, 1)
    assert first.crops.equal(again.crops)
    assert first.scan_labels.equal(again.scan_labels)
    assert not first.crops.equal(other.crops)
    assert first.crops.shape == first.crop_labels.shape == (24 * 8, 1, 16, 16, 16)
    assert first.scans.shape == (8, 1, 24, 28, 24)
    assert first.scans.mean((1, 2, 3, 4)).abs().max() < 1e-5
    assert first.scans.std((1, 2, 3, 4)).allclose(torch.ones(8), atol=1e-3)
    assert set(first.crop_labels.unique().tolist()) == {0, 1}


def test_foreground_is_what_is_not_background():
    cohort = draw_cohort(0, 0)
    shares = cohort.foreground_shares()
    assert shares[5] == np.count_nonzero(cohort.crop_labels[5].numpy()) / 16**3


@given(st.integers(4, 60), st.integers(2, 4), st.sampled_from(["iid", "skewed"]), st.integers(0, 99))
def test_shards_are_disjoint_and_of_one_size(crops, workers, kind, seed):
    rng = np.random.default_rng(seed)
    shards = deal_crops(rng.random(crops), workers, kind, rng)
    together = np.concatenate(shards)
    assert len(shards) == workers
    assert {len(shard) for shard in shards} == {crops // workers}
    assert len(set(together.tolist())) == len(together)


def test_four_fifths_of_a_skewed_shard_are_sorted_by_foreground():
    shares = np.random.default_rng(0).random(100)
    low, high = deal_crops(shares, 2, "skewed", np.random.default_rng(1))
    # of 50 crops 10 come by chance, the other 40 are the lower or the higher half of what remains
    assert shares[low[10:]].max() < shares[high[10:]].min()
    assert np.mean(shares[high]) - np.mean(shares[low]) == pytest.approx(0.5 * 0.8, abs=0.1)
    one, other = deal_crops(shares, 2, "iid", np.random.default_rng(1))
    assert abs(np.mean(shares[one]) - np.mean(shares[other])) < 0.15
