"""A user's own data: every arm cross-validated, with the groups as they are and permuted inside batches."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from medseg_brn.studies.batch_effects.arms import CORRECTIONS, Arm
from medseg_brn.studies.batch_effects.folds import Split
from medseg_brn.studies.batch_effects.gene_tests import LEVEL, compute_gene_p_values
from medseg_brn.studies.batch_effects.measures import (
    compute_auc_within,
    compute_eta_squared,
    compute_macro_auc,
)
from medseg_brn.studies.batch_effects.simulation import Samples
from medseg_brn.studies.batch_effects.training import Recipe, draw_mini_batches, train
from medseg_brn.studies.batch_effects.trials import Row, average_known, drop_unknown


@dataclass(frozen=True)
class OwnPiece:
    """Labellings of the samples under one arm, or under the tests of single genes."""

    samples: Samples
    arm: Arm | None
    """None tests the genes."""
    labellings: tuple[tuple[int, np.ndarray], ...]
    """Number (0 as they are, then permuted) and (n,) groups of each."""
    repeats: tuple[tuple[Split, ...], ...] = ()
    """Folds of each repeat; permuted labellings are done with the first alone."""
    batches_out: tuple[Split, ...] = ()
    """One batch left out each, for the groups as they are."""
    seed: int = 0
    recipe: Recipe = field(default_factory=Recipe)


def do_own_piece(piece: OwnPiece) -> list[Row]:
    """Return a row for each labelling and repeat, or for each labelling and gene test."""
    rows = []
    for number, groups in piece.labellings:
        samples = replace(piece.samples, groups=groups)
        if piece.arm is None:
            rows += [row | {"labelling": number} for row in _test_genes(samples)]
            continue
        for repeat, folds in enumerate(piece.repeats if number == 0 else piece.repeats[:1]):
            splits = (*folds, *piece.batches_out) if number == 0 and repeat == 0 else folds
            # Every labelling has the same initial weights and mini-batches: equal ones have equal results.
            measured = _cross_validate(samples, piece.arm, splits, (piece.seed, repeat), piece.recipe)
            if measured is not None:
                arm: Row = {"method": piece.arm.method, "mini_batches": piece.arm.mini_batches}
                rows.append(arm | {"labelling": number, "repeat": repeat} | measured)
    return [drop_unknown(row) for row in rows]


def _cross_validate(
    samples: Samples, arm: Arm, splits: Sequence[Split], key: Sequence[int], recipe: Recipe
) -> Row | None:
    """The arm's measures; None where its correction is not possible, without that of batches left out."""
    corrected = [(split, _correct(samples, arm, split)) for split in splits]
    if any(values is None for split, values in corrected if not split.unseen):
        return None
    made = [(split, values) for split, values in corrected if values is not None]
    splits = [split for split, _ in made]
    randoms = [np.random.default_rng((*key, index)) for index in range(len(splits))]
    drawn = np.stack(
        [_draw(samples, split, arm, recipe, random) for split, random in zip(splits, randoms, strict=True)]
    )
    values = np.stack([one for _, one in made])
    trained = train(values, np.tile(samples.groups, (len(splits), 1)), drawn, arm.norm, randoms, recipe)
    return _measure(samples, splits, trained.score(values), trained.normalize(values))


def _draw(
    samples: Samples, split: Split, arm: Arm, recipe: Recipe, random: np.random.Generator
) -> np.ndarray:
    training = np.flatnonzero(split.training)
    return training[draw_mini_batches(samples.batches[training], arm.pure, recipe.steps, random)]


def _correct(samples: Samples, arm: Arm, split: Split) -> np.ndarray | None:
    """(n, genes): the split's training samples and held-out ones corrected, each in its place."""
    nothing = np.zeros_like(split.held_out)
    parts = (
        (split.training, nothing, split.held_out)
        if split.unseen
        else (split.training, split.held_out, nothing)
    )
    correction = CORRECTIONS[arm.method] if arm.method in CORRECTIONS else CORRECTIONS["no correction"]
    made = correction(*(_select(samples, part) for part in parts))
    if made is None:
        return None
    values = np.zeros_like(samples.values)
    for part, one in zip(parts, made, strict=True):
        values[part] = one.values
    return values


def _select(samples: Samples, part: np.ndarray) -> Samples:
    return Samples(samples.values[part], samples.groups[part], samples.batches[part])


def _measure(samples: Samples, splits: Sequence[Split], scores: np.ndarray, normalized: np.ndarray) -> Row:
    """Means over folds, within which one network scores all."""
    columns: dict[str, list[float]] = {}
    for split, score, values in zip(splits, scores, normalized, strict=True):
        part = split.held_out
        groups, batches = samples.groups[part], samples.batches[part]
        measured = {"auc_unseen": compute_macro_auc(score[part], groups)}
        if not split.unseen:
            measured = {
                "auc": compute_macro_auc(score[part], groups),
                "auc_within": compute_auc_within(score[part], groups, batches),
                "eta_batch": average_known(compute_eta_squared(values[part], batches)),
                "eta_group": average_known(compute_eta_squared(values[part], groups)),
            }
        for name, value in measured.items():
            columns.setdefault(name, []).append(value)
    return {name: average_known(np.array(values)) for name, values in columns.items()}


def _test_genes(samples: Samples) -> list[Row]:
    """The share of genes below the level after each correction, and by a model that holds the batch."""
    nothing = _select(samples, np.zeros(len(samples.groups), bool))
    tested = {"batch in the model": compute_gene_p_values(samples, with_batch=True)}
    for name, correction in CORRECTIONS.items():
        made = correction(samples, nothing, nothing)
        tested[name] = None if made is None else compute_gene_p_values(made[0])
    return [
        {"test": name, "found": float((p_values < LEVEL).mean())}
        for name, p_values in tested.items()
        if p_values is not None
    ]
