"""What is measured: variance explained, area under the curve, association, and what can be told apart."""

import math
from collections.abc import Callable

import numpy as np
from scipy import stats


def compute_eta_squared(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return each gene's share of variance that lies between the levels, η² = SS_between / SS_total.

    It does not change when a gene is scaled or shifted. Without any effect it is (levels - 1)/(n - 1) on
    average, not 0. Group and batch are taken one at a time: where they are associated, each also explains
    what belongs to the other.

    Args:
        values: (n, genes).
        levels: (n,) group or batch of each sample.

    Returns:
        (genes,) in [0, 1]; NaN for a gene that does not vary.
    """
    _, index, counts = np.unique(levels, return_inverse=True, return_counts=True)
    centred = values - values.mean(axis=0)
    sums = np.zeros((len(counts), values.shape[1]))
    np.add.at(sums, index, centred)
    between = (sums**2 / counts[:, None]).sum(axis=0)
    total = (centred**2).sum(axis=0)
    # A gene that does not vary but for rounding has no share of anything.
    varies = total > 1e-12 * np.maximum((values**2).sum(axis=0), 1e-300)
    return np.where(varies, between / np.where(varies, total, 1), math.nan)


def compute_auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the share of pairs, one positive and one negative, that the scores order; ties count half.

    Args:
        scores: (n,) higher for positive.
        positive: (n,) bool.

    Returns:
        In [0, 1]; NaN where there are no pairs.
    """
    count = int(positive.sum())
    pairs = count * (len(positive) - count)
    if not pairs:
        return math.nan
    ranks = stats.rankdata(scores)
    return float((ranks[positive].sum() - count * (count + 1) / 2) / pairs)


def compute_macro_auc(scores: np.ndarray, groups: np.ndarray) -> float:
    """Return the AUC of two groups, or the mean over groups of the AUC of one against the rest.

    Args:
        scores: (n, groups) log probabilities or the like.
        groups: (n,) from 0.
    """
    return _average(scores, groups, lambda score, positive: compute_auc(score, positive))


def compute_auc_within(scores: np.ndarray, groups: np.ndarray, batches: np.ndarray) -> float:
    """Return the AUC of pairs from the same batch only, which a batch effect can neither help nor harm.

    Batches count by their number of pairs; NaN where no batch holds two groups. See `compute_macro_auc`.
    """

    def within(score: np.ndarray, positive: np.ndarray) -> float:
        ordered = pairs = 0.0
        for batch in np.unique(batches):
            own = batches == batch
            number = float(positive[own].sum() * (~positive[own]).sum())
            if number:
                ordered += number * compute_auc(score[own], positive[own])
                pairs += number
        return ordered / pairs if pairs else math.nan

    return _average(scores, groups, within)


def compute_p_above_chance(scores: np.ndarray, groups: np.ndarray) -> float:
    """Return the one-sided Mann-Whitney p of an AUC of 0.5; for more than two groups, Bonferroni's of them.

    Args:
        scores: (n, groups).
        groups: (n,) from 0.
    """
    compared = _compared(scores)
    ps = [
        float(
            stats.mannwhitneyu(scores[groups == k, k], scores[groups != k, k], alternative="greater").pvalue
        )
        for k in compared
        if 0 < np.count_nonzero(groups == k) < len(groups)
    ]
    return min(1.0, min(ps) * len(ps)) if ps else math.nan


def compute_cramers_v(groups: np.ndarray, batches: np.ndarray) -> float:
    """Return the association of group and batch: 0 where each batch holds the same mixture, at most 1.

    V² = χ² / (n · (min(groups, batches) - 1)), without correction for small samples.
    """
    table = _count(groups, batches)
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    chi_square = ((table - expected) ** 2 / expected).sum()
    return math.sqrt(chi_square / (table.sum() * (min(table.shape) - 1)))


def can_be_told_apart(groups: np.ndarray, batches: np.ndarray) -> bool:
    """Return whether the data determine every difference between groups besides the batches."""
    return count_inseparable(groups, batches) == 0


def count_inseparable(groups: np.ndarray, batches: np.ndarray) -> int:
    """Return how many differences between groups are differences between batches too.

    That is by how much the rank of [group | batch], an indicator column each, falls short of the number of
    its columns but the one for the constant that both hold. Nothing tells which of the two it is.
    """
    table = _count(groups, batches)
    group_index, batch_index = np.nonzero(table)
    design = np.concatenate(
        [np.eye(table.shape[0])[group_index], np.eye(table.shape[1])[batch_index]], axis=1
    )
    return sum(table.shape) - 1 - int(np.linalg.matrix_rank(design))


def _count(groups: np.ndarray, batches: np.ndarray) -> np.ndarray:
    """(groups, batches) contingency table, without empty rows and columns."""
    group_names, group_index = np.unique(groups, return_inverse=True)
    batch_names, batch_index = np.unique(batches, return_inverse=True)
    table = np.zeros((len(group_names), len(batch_names)))
    np.add.at(table, (group_index, batch_index), 1)
    return table


def _compared(scores: np.ndarray) -> range:
    """The groups whose score is compared with the rest's: the second alone where there are two."""
    return range(1, 2) if scores.shape[1] == 2 else range(scores.shape[1])


def _average(
    scores: np.ndarray, groups: np.ndarray, measure: Callable[[np.ndarray, np.ndarray], float]
) -> float:
    """The mean over the compared groups of a measure of (scores, positive), NaN left out."""
    values = [measure(scores[:, k], groups == k) for k in _compared(scores)]
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
