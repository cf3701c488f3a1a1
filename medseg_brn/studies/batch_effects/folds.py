"""Folds that hold each group of each batch as evenly as its samples allow, and labels permuted in batches."""

from dataclasses import dataclass

import numpy as np

from medseg_brn.errors import DataError

FOLDS = 5


@dataclass(frozen=True)
class Split:
    """Which samples are trained on and which are held out; (n,) bool each."""

    training: np.ndarray
    held_out: np.ndarray
    unseen: bool
    """Whether the held-out samples are of a batch that training has none of."""


def make_folds(groups: np.ndarray, batches: np.ndarray, random: np.random.Generator) -> list[Split]:
    """Draw five folds, each the held-out part of a split.

    Samples are dealt in random order, each to the fold that has the fewest of its group and batch, then of
    its batch, of its group, and of all.

    Args:
        groups: (n,) from 0.
        batches: (n,) from 0.
        random: draws.

    Raises:
        DataError: some training part lacks a group, or has fewer than two samples of a batch.
    """
    cells = groups * (batches.max() + 1) + batches
    fold_of = np.full(len(groups), -1)
    for sample in random.permutation(len(groups)):
        loads = [_count_per_fold(fold_of, level == level[sample]) for level in (cells, batches, groups)]
        loads.append(_count_per_fold(fold_of, np.ones(len(groups), bool)))
        fold_of[sample] = np.lexsort(loads[::-1])[0]
    splits = [Split(fold_of != fold, fold_of == fold, False) for fold in range(FOLDS)]
    for split in splits:
        too_few = np.bincount(batches[split.training], minlength=batches.max() + 1).min() < 2
        if too_few or len(np.unique(groups[split.training])) < len(np.unique(groups)):
            raise DataError("the samples are too few for five folds that each train on every group and batch")
    return splits


def leave_batches_out(groups: np.ndarray, batches: np.ndarray) -> list[Split]:
    """Return a split for each batch that holds two groups or more and without which no group is lost.

    Without it at least two batches must be left, or nothing could be corrected.
    """
    splits = [Split(batches != batch, batches == batch, True) for batch in np.unique(batches)]
    return [
        split
        for split in splits
        if len(np.unique(groups[split.held_out])) > 1
        and len(np.unique(groups[split.training])) == len(np.unique(groups))
        and len(np.unique(batches[split.training])) > 1
    ]


def permute_within_batches(
    groups: np.ndarray, batches: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Return the groups of samples exchanged inside each batch: no difference, the same association."""
    permuted = groups.copy()
    for batch in np.unique(batches):
        own = np.flatnonzero(batches == batch)
        permuted[own] = groups[random.permutation(own)]
    return permuted


def _count_per_fold(fold_of: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """(FOLDS,) samples dealt so far."""
    return np.bincount(fold_of[counted & (fold_of >= 0)], minlength=FOLDS)
