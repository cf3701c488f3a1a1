"""Gene expression with batch effects, X_ij = μ_i + δ_{i,g(j)} + γ_{i,b(j)} + ε_ij."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

GROUPS = 2


@dataclass(frozen=True)
class Samples:
    """Samples of some batches."""

    values: np.ndarray
    """(n, genes) float64, log expression."""
    groups: np.ndarray
    """(n,) int, from 0."""
    batches: np.ndarray
    """(n,) int, from 0."""


@dataclass(frozen=True)
class Dataset:
    """What one study would collect, and the truth that it would not know."""

    training: Samples
    held_out: Samples
    """Other samples of the same batches, with the same association."""
    unseen: Samples
    """Samples of a batch that training has none of, half of each group."""
    differing: np.ndarray
    """(genes,) bool: δ is not 0."""


@dataclass(frozen=True)
class Setting:
    """What is drawn; standard deviations are in units of the noise ε."""

    genes: int = 100
    differing: int = 20
    """Genes in which the groups differ."""
    difference_sd: float = 0.5
    """Of the groups' difference δ_{i,1} - δ_{i,0} over the differing genes."""
    batch_sd: float = 1.0
    """Of γ over genes and batches."""
    batches: int = 4
    samples: int = 24
    """Per batch in training, and again held out; a multiple of 8, so that every association is exact."""


def simulate_dataset(
    association: float, difference: bool, key: Sequence[int], setting: Setting = Setting()
) -> Dataset:
    """Draw a dataset; the same key at another association has the same genes, batches and noise.

    In the first half of the batches (1 + V)/2 of the samples are of group 1, in the others (1 - V)/2, in
    training and held out alike: Cramér's V of group and batch is the association.

    Args:
        association: Cramér's V, a multiple of 0.25 from 0 to 1.
        difference: whether the groups differ; False is the null arm, δ = 0.
        key: what the random numbers are drawn from.
        setting: sizes and effects.
    """
    random = np.random.default_rng(key)
    sizes = [setting.samples] * setting.batches
    groups = np.concatenate(
        [_group_of(size, association, batch, setting) for batch, size in enumerate(sizes)]
    )
    batches = np.repeat(np.arange(setting.batches), setting.samples)
    unseen_groups = _group_of(setting.samples, 0.0, 0, setting)
    unseen_batches = np.full(setting.samples, setting.batches)

    level = random.normal(8, 2, setting.genes)
    differing = np.arange(setting.genes) < setting.differing
    half = random.normal(0, setting.difference_sd / 2, setting.genes) * differing * difference
    group_effects = np.stack([-half, half])
    batch_effects = random.normal(0, setting.batch_sd, (setting.batches + 1, setting.genes))

    def draw(groups: np.ndarray, batches: np.ndarray) -> Samples:
        noise = random.normal(size=(len(groups), setting.genes))
        return Samples(level + group_effects[groups] + batch_effects[batches] + noise, groups, batches)

    return Dataset(
        draw(groups, batches),
        draw(groups, batches),
        draw(unseen_groups, unseen_batches),
        differing & difference,
    )


def _group_of(size: int, association: float, batch: int, setting: Setting) -> np.ndarray:
    """(size,) groups of one batch: as many of group 1 as the association asks for."""
    sign = 1 if batch < setting.batches / 2 else -1
    count = size * (1 + sign * association) / 2
    if count != round(count):
        raise ValueError(
            f"{size} samples cannot hold {count:g} of group 1; take V in steps of 0.25 and n by 8"
        )
    return (np.arange(size) < round(count)).astype(np.int64)
