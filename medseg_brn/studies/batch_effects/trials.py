"""One piece of the study: some datasets of one association, every arm trained on each, all measured."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from medseg_brn.studies.batch_effects.arms import ARMS, CORRECTIONS, Arm
from medseg_brn.studies.batch_effects.corrections import Corrected
from medseg_brn.studies.batch_effects.gene_tests import LEVEL, compute_gene_p_values
from medseg_brn.studies.batch_effects.measures import (
    compute_auc_within,
    compute_eta_squared,
    compute_macro_auc,
    compute_p_above_chance,
)
from medseg_brn.studies.batch_effects.simulation import Dataset, Samples, Setting, simulate_dataset
from medseg_brn.studies.batch_effects.training import OBSERVED, Recipe, draw_mini_batches, train

Row = dict[str, str | int | float]


@dataclass(frozen=True)
class Piece:
    """Datasets that are done together."""

    association: float
    difference: bool
    """False in the null arm, δ = 0."""
    numbers: tuple[int, ...]
    """Of the datasets."""
    seed: int
    setting: Setting = field(default_factory=Setting)
    recipe: Recipe = field(default_factory=Recipe)


def do_piece(piece: Piece) -> list[Row]:
    """Return the measurements: a row for each dataset and arm, and one for each dataset and gene test."""
    datasets = [
        simulate_dataset(piece.association, piece.difference, _key(piece, number, 0), piece.setting)
        for number in piece.numbers
    ]
    corrected = {name: _correct(name, datasets) for name in CORRECTIONS}
    rows = []
    for arm in ARMS:
        name = arm.method if arm.method in CORRECTIONS else "no correction"
        made = corrected[name]
        if made is not None:
            rows += _do_arm(piece, arm, datasets, made)
    return [drop_unknown(row) for row in rows + _test_all_genes(piece, datasets, corrected)]


def drop_unknown(row: Row) -> Row:
    """Return the row without what is NaN, such as an AUC without pairs."""
    return {name: value for name, value in row.items() if value == value}


def _key(piece: Piece, number: int, purpose: int) -> tuple[int, ...]:
    """What a dataset's random numbers are drawn from: the same at every association."""
    return piece.seed, int(piece.difference), number, purpose


def _correct(name: str, datasets: Sequence[Dataset]) -> list[Corrected] | None:
    """Every dataset corrected, or None where the correction is not possible, which depends on V alone."""
    made = [CORRECTIONS[name](data.training, data.held_out, data.unseen) for data in datasets]
    return [one for one in made if one is not None] or None


def _do_arm(piece: Piece, arm: Arm, datasets: Sequence[Dataset], made: Sequence[Corrected]) -> list[Row]:
    training, held_out, unseen = (_stack([one[part] for one in made]) for part in range(3))
    randoms = [np.random.default_rng(_key(piece, number, 1)) for number in piece.numbers]
    batches = made[0][0].batches
    drawn = np.stack([draw_mini_batches(batches, arm.pure, piece.recipe.steps, random) for random in randoms])
    groups = np.stack([one[0].groups for one in made])
    trained = train(training, groups, drawn, arm.norm, randoms, piece.recipe)
    scores = trained.score(held_out), trained.score(unseen)
    normalized = trained.normalize(held_out)
    observed = trained.observe_training(training, drawn)
    rows = []
    for index, (number, data) in enumerate(zip(piece.numbers, datasets, strict=True)):
        rows.append(
            _name_row(piece, number)
            | {"method": arm.method, "mini_batches": arm.mini_batches}
            | _measure_scores(scores[0][index], scores[1][index], data)
            | _measure_variance(normalized[index], data.held_out, data.differing, "")
            | _measure_observed(observed[index], drawn[index], data)
        )
    return rows


def _stack(samples: Sequence[Samples]) -> np.ndarray:
    return np.stack([one.values for one in samples])


def _name_row(piece: Piece, number: int) -> Row:
    return {"association": piece.association, "null": int(not piece.difference), "dataset": number}


def _measure_scores(held_out: np.ndarray, unseen: np.ndarray, data: Dataset) -> Row:
    groups, batches = data.held_out.groups, data.held_out.batches
    return {
        "auc": compute_macro_auc(held_out, groups),
        "auc_within": compute_auc_within(held_out, groups, batches),
        "auc_unseen": compute_macro_auc(unseen, data.unseen.groups),
        "p_above_chance": compute_p_above_chance(held_out, groups),
    }


def _measure_variance(values: np.ndarray, samples: Samples, differing: np.ndarray, ending: str) -> Row:
    """η² of batch over all genes; of group over those in which the groups differ, or all where none do."""
    counted = differing if differing.any() else np.ones_like(differing)
    return {
        f"eta_batch{ending}": average_known(compute_eta_squared(values, samples.batches)),
        f"eta_group{ending}": average_known(compute_eta_squared(values[:, counted], samples.groups)),
    }


def average_known(values: np.ndarray) -> float:
    """Return the mean of what is not NaN; NaN of nothing."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def _measure_observed(values: np.ndarray, drawn: np.ndarray, data: Dataset) -> Row:
    order = drawn[-OBSERVED:].ravel()
    passed = replace(
        data.training,
        values=values,
        groups=data.training.groups[order],
        batches=data.training.batches[order],
    )
    return _measure_variance(values, passed, data.differing, "_training")


def _test_all_genes(
    piece: Piece, datasets: Sequence[Dataset], corrected: dict[str, list[Corrected] | None]
) -> list[Row]:
    """The share of genes below the level, of those without a difference and of those with one."""
    rows = []
    for index, (number, data) in enumerate(zip(piece.numbers, datasets, strict=True)):
        tested = {
            name: compute_gene_p_values(made[index][0])
            for name, made in corrected.items()
            if made is not None
        }
        tested["batch in the model"] = compute_gene_p_values(data.training, with_batch=True)
        for name, p_values in tested.items():
            if p_values is None:
                continue
            found = p_values < LEVEL
            row = _name_row(piece, number) | {"test": name, "found": float(found[~data.differing].mean())}
            if data.differing.any():
                row["found_differing"] = float(found[data.differing].mean())
            rows.append(row)
    return rows
