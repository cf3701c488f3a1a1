"""Measures against counts by hand and naive computations."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from medseg_brn.studies.batch_effects import measures

RANDOM = np.random.default_rng(0)


def test_eta_squared_by_hand():
    values = np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 2.0], [2.0, 0.0, 2.0], [2.0, 1.0, 4.0]])
    batches, groups = np.array([5, 5, 7, 7]), np.array([0, 1, 0, 1])
    # Of the third gene, 0 2 2 4: SS = 8, between batches (1, 3) 4, between groups likewise 4.
    np.testing.assert_allclose(measures.compute_eta_squared(values, batches), [1, 0, 0.5])
    np.testing.assert_allclose(measures.compute_eta_squared(values, groups), [0, 1, 0.5])


def test_a_gene_that_does_not_vary_has_no_eta_squared():
    found = measures.compute_eta_squared(np.full((4, 1), 0.1), np.array([0, 0, 1, 1]))
    assert math.isnan(found[0])


@given(st.floats(0.1, 10), st.floats(-10, 10), st.integers(0, 2**32 - 1))
def test_eta_squared_is_the_same_for_a_scaled_and_shifted_gene(scale, shift, seed):
    random = np.random.default_rng(seed)
    values, levels = random.normal(size=(12, 3)), np.arange(12) % 3
    np.testing.assert_allclose(
        measures.compute_eta_squared(scale * values + shift, levels),
        measures.compute_eta_squared(values, levels),
        rtol=1e-8,
    )


def count_pairs(scores, positive):
    pairs = [(a > b) + (a == b) / 2 for a in scores[positive] for b in scores[~positive]]
    return sum(pairs) / len(pairs)


@given(st.lists(st.integers(0, 4), min_size=6, max_size=12), st.integers(0, 2**32 - 1))
def test_the_auc_counts_pairs(scores, seed):
    scores = np.array(scores, float)
    positive = np.random.default_rng(seed).permutation(len(scores)) < 3
    assert measures.compute_auc(scores, positive) == pytest.approx(count_pairs(scores, positive), abs=1e-12)


def test_of_three_groups_each_is_told_from_the_rest():
    scores, groups = RANDOM.normal(size=(12, 3)), np.arange(12) % 3
    expected = np.mean([count_pairs(scores[:, k], groups == k) for k in range(3)])
    assert measures.compute_macro_auc(scores, groups) == pytest.approx(expected)


def test_within_batches_a_batch_effect_counts_for_nothing():
    groups, batches = np.array([0, 0, 1, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 1])
    score = np.array([1.0, 3.0, 2.0, 11.0, 12.0, 10.5])  # batch 0: one of two pairs; batch 1: one of two
    scores = np.stack([-score, score], axis=1)
    assert measures.compute_auc_within(scores, groups, batches) == 0.5
    shifted = scores + 100 * np.stack([-batches, batches], axis=1)
    assert measures.compute_auc_within(shifted, groups, batches) == 0.5
    assert math.isnan(measures.compute_auc_within(scores, batches, batches))


def test_chance_is_judged_by_mann_and_whitney():
    groups = np.repeat([0, 1], 10)
    score = RANDOM.normal(size=20) + groups
    expected = stats.mannwhitneyu(score[10:], score[:10], alternative="greater").pvalue
    found = measures.compute_p_above_chance(np.stack([-score, score], axis=1), groups)
    assert found == pytest.approx(expected)


@given(st.integers(0, 2**32 - 1))
def test_cramers_v_is_scipys(seed):
    random = np.random.default_rng(seed)
    groups, batches = np.r_[0, 1, 2, random.integers(0, 3, 30)], np.r_[0, 1, 1, random.integers(0, 2, 30)]
    table = stats.contingency.crosstab(groups, batches).count
    expected = stats.contingency.association(table, method="cramer")
    assert measures.compute_cramers_v(groups, batches) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("groups", "batches", "inseparable"),
    [
        ([0, 1, 0, 1], [0, 0, 1, 1], 0),
        ([0, 0, 1, 1], [0, 0, 1, 1], 1),
        ([0, 1, 0, 1], [0, 0, 1, 2], 0),  # one batch that holds both is enough
        ([0, 1, 1, 2], [0, 0, 1, 1], 0),  # 0 and 2 meet by way of 1
        ([0, 1, 2, 2], [0, 0, 1, 2], 1),  # 2 has batches of its own
        ([0, 1, 2], [0, 1, 2], 2),
    ],
)
def test_what_cannot_be_told_apart_is_counted(groups, batches, inseparable):
    groups, batches = np.array(groups), np.array(batches)
    assert measures.count_inseparable(groups, batches) == inseparable
    assert measures.can_be_told_apart(groups, batches) is (inseparable == 0)
