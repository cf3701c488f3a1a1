"""A test of every gene for a difference between groups, as is common after a correction.

After a correction that knew the groups, the test does not know how much of the batches' difference was taken
for the groups', and finds differences that are not there when the groups are unevenly spread over the batches
(Nygaard 2016, PMC4679072; Zindler 2020). A linear model that holds the batch knows.
"""

import numpy as np
from scipy import stats

from medseg_brn.studies.batch_effects.measures import can_be_told_apart
from medseg_brn.studies.batch_effects.simulation import Samples

LEVEL = 0.05


def compute_gene_p_values(samples: Samples, *, with_batch: bool = False) -> np.ndarray | None:
    """Return each gene's p value of a difference between groups, by the F test of a linear model.

    For two groups and no batch in the model it is Student's two-sided t test.

    Args:
        samples: (n, genes).
        with_batch: whether the model holds the batches besides the groups.

    Returns:
        (genes,), or None where the model holds the batches and cannot tell them from the groups.
    """
    groups = _indicators(samples.groups)[:, 1:]
    if with_batch and not can_be_told_apart(samples.groups, samples.batches):
        return None
    reduced = _indicators(samples.batches) if with_batch else np.ones((len(groups), 1))
    full = np.concatenate([reduced, groups], axis=1)
    rest = _residual_square(full, samples.values)
    freedom = len(full) - full.shape[1]
    explained = _residual_square(reduced, samples.values) - rest
    return stats.f.sf(explained / groups.shape[1] / (rest / freedom), groups.shape[1], freedom)


def _indicators(levels: np.ndarray) -> np.ndarray:
    return (levels[:, None] == np.unique(levels)).astype(float)


def _residual_square(design: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(genes,) sums of squares that the design leaves."""
    orthogonal, _ = np.linalg.qr(design)
    return ((values - orthogonal @ (orthogonal.T @ values)) ** 2).sum(axis=0)
