"""Folds of a user's samples, and labels permuted inside batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg_brn.errors import DataError
from medseg_brn.studies.batch_effects.folds import leave_batches_out, make_folds, permute_within_batches


def test_each_fold_holds_each_group_of_each_batch_alike():
    groups, batches = np.tile([0, 1], 30), np.repeat([0, 1, 2], 20)  # ten of each group in each batch
    for split in make_folds(groups, batches, np.random.default_rng(0)):
        held_out = split.held_out
        assert not (held_out & split.training).any() and (held_out | split.training).all()
        for batch in range(3):
            assert np.bincount(groups[held_out & (batches == batch)]).tolist() == [2, 2]


@given(st.integers(0, 2**32 - 1))
def test_every_sample_is_held_out_once_and_every_batch_trained_on(seed):
    random = np.random.default_rng(seed)
    groups = np.r_[np.tile([0, 1], 6), random.integers(0, 2, 13)]
    batches = np.r_[np.repeat([0, 1], 6), random.integers(0, 2, 13)]
    splits = make_folds(groups, batches, random)
    assert np.sum([split.held_out for split in splits], axis=0).tolist() == [1] * 25
    for split in splits:
        assert set(groups[split.training]) == {0, 1}
        assert np.bincount(batches[split.training]).min() >= 2


def test_too_few_samples_are_refused():
    with pytest.raises(DataError, match="too few for five folds"):
        make_folds(np.array([0, 1, 0, 1, 0, 1]), np.array([0, 0, 0, 0, 1, 1]), np.random.default_rng(0))


def test_batches_that_are_needed_are_not_left_out():
    groups, batches = np.array([0, 1, 0, 1, 0, 0, 2]), np.array([0, 0, 1, 1, 2, 2, 1])
    left_out = [np.flatnonzero(split.held_out).tolist() for split in leave_batches_out(groups, batches)]
    assert left_out == [[0, 1]]  # batch 1 alone holds group 2, and batch 2 holds one group


def test_two_batches_leave_none_to_correct_between():
    assert leave_batches_out(np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])) == []


@given(st.integers(0, 2**32 - 1))
def test_permuted_groups_keep_the_counts_of_each_batch(seed):
    random = np.random.default_rng(seed)
    groups, batches = random.integers(0, 3, 40), random.integers(0, 4, 40)
    permuted = permute_within_batches(groups, batches, random)
    for batch in range(4):
        assert sorted(permuted[batches == batch]) == sorted(groups[batches == batch])


def test_where_group_is_batch_a_permutation_changes_nothing():
    groups = np.repeat([0, 1], 10)
    assert permute_within_batches(groups, groups, np.random.default_rng(0)).tolist() == groups.tolist()
