"""Tests of single genes against scipy and a naive linear model."""

import numpy as np
from scipy import stats

from medseg_brn.studies.batch_effects.gene_tests import compute_gene_p_values
from medseg_brn.studies.batch_effects.simulation import Samples, simulate_dataset

RANDOM = np.random.default_rng(0)


def test_two_groups_are_compared_as_by_student():
    part = simulate_dataset(0.5, True, (0,)).training
    expected = stats.ttest_ind(part.values[part.groups == 1], part.values[part.groups == 0]).pvalue
    np.testing.assert_allclose(compute_gene_p_values(part), expected)


def test_three_groups_are_compared_by_analysis_of_variance():
    values, groups = RANDOM.normal(size=(15, 4)), np.arange(15) % 3
    expected = stats.f_oneway(*(values[groups == k] for k in range(3))).pvalue
    np.testing.assert_allclose(compute_gene_p_values(Samples(values, groups, groups * 0)), expected)


def test_with_the_batch_in_the_model_it_is_the_t_test_of_a_coefficient():
    part = simulate_dataset(0.5, True, (1,)).training
    design = np.stack([*(part.batches == b for b in range(4)), part.groups], axis=1).astype(float)
    inverse = np.linalg.inv(design.T @ design)
    for gene in (0, 50):
        beta = inverse @ design.T @ part.values[:, gene]
        variance = ((part.values[:, gene] - design @ beta) ** 2).sum() / (96 - 5)
        t = beta[4] / np.sqrt(variance * inverse[4, 4])
        expected = 2 * stats.t.sf(abs(t), 96 - 5)
        np.testing.assert_allclose(compute_gene_p_values(part, with_batch=True)[gene], expected)


def test_a_batch_that_is_the_group_leaves_nothing_to_test():
    assert compute_gene_p_values(simulate_dataset(1.0, True, (0,)).training, with_batch=True) is None
