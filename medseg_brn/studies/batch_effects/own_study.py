"""The study of batch effects on a user's own expression data."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medseg_brn.errors import DataError
from medseg_brn.studies.batch_effects.arms import ARMS
from medseg_brn.studies.batch_effects.corrections import require_combat
from medseg_brn.studies.batch_effects.folds import (
    FOLDS,
    leave_batches_out,
    make_folds,
    permute_within_batches,
)
from medseg_brn.studies.batch_effects.measures import compute_cramers_v, count_inseparable
from medseg_brn.studies.batch_effects.own_page import OwnFindings, make_own_sections
from medseg_brn.studies.batch_effects.own_trials import OwnPiece, do_own_piece
from medseg_brn.studies.batch_effects.reading import Expression, read_expression
from medseg_brn.studies.batch_effects.training import SIZE, Recipe
from medseg_brn.studies.claims import Bounds, Claim, claim_mean, claim_number
from medseg_brn.studies.outcome import Outcome, Progress, do_all

REPEATS = 5
PERMUTATIONS = 39
TOGETHER = 5
"""Labellings in one piece of work."""

QUESTION = (
    "How well does a small classifier tell the groups of samples it has not seen, after a correction of the "
    "batches, with a norm in it, or with neither; what of it could the batches alone have brought; and what "
    "is kept of the differences between groups and between batches?"
)


def study_own_data(
    path: Path, group: str, batch: str, seed: int, scale: float, progress: Progress
) -> Outcome:
    """Cross-validate every arm on a user's data, with the groups as they are and permuted inside batches.

    Args:
        path: .csv or .h5ad; see `read_expression`.
        group: column of what shall be told apart.
        batch: column of the batches.
        seed: draws folds, permutations, initial weights and mini-batches.
        scale: times as many repeats and permutations as the default, at least two.
        progress: told how far it is.

    Raises:
        ConfigError: scanpy is not installed.
        DataError: the data are not what they must be.
    """
    data = read_expression(path, group, batch)
    require_combat()
    permutations = max(2, round(PERMUTATIONS * scale))
    pieces = _make_pieces(path, data, seed, max(2, round(REPEATS * scale)), permutations)
    rows = [row for done in do_all(do_own_piece, pieces, "Your laboratories", progress) for row in done]
    findings = OwnFindings(rows)
    return Outcome(
        study="batch-effects",
        title=f"Batch effects in {path.name}",
        question=QUESTION,
        settings=_describe(path, data, group, batch)
        | {
            "seed": seed,
            "scale": scale,
            "folds": FOLDS,
            "repeats": max(2, round(REPEATS * scale)),
            "permutations": permutations,
            "samples per mini-batch": SIZE,
            **dataclasses.asdict(Recipe()),
        },
        claims=_judge(data, findings),
        rows=rows,
        sections=make_own_sections(data, findings),
    )


def _describe(path: Path, data: Expression, group: str, batch: str) -> dict[str, Any]:
    return {
        "data": path.name,
        "group column": group,
        "batch column": batch,
        "samples": len(data.samples.groups),
        "genes": len(data.genes),
        "genes of smaller variance left out": data.left_out,
    }


def _make_pieces(
    path: Path, data: Expression, seed: int, repeats: int, permutations: int
) -> Sequence[OwnPiece]:
    samples, random = data.samples, np.random.default_rng(seed)
    try:
        folds = tuple(tuple(make_folds(samples.groups, samples.batches, random)) for _ in range(repeats))
    except DataError as error:
        raise DataError(f"{path}: {error}; join small groups or batches, or leave them out") from None
    batches_out = tuple(leave_batches_out(samples.groups, samples.batches))
    labellings = [(0, samples.groups)]
    for number in range(1, permutations + 1):
        labellings.append((number, permute_within_batches(samples.groups, samples.batches, random)))
    chunks = [tuple(labellings[first : first + TOGETHER]) for first in range(1, len(labellings), TOGETHER)]
    pieces = [OwnPiece(samples, arm, (labellings[0],), folds, batches_out, seed) for arm in ARMS]
    pieces += [OwnPiece(samples, arm, chunk, folds, (), seed) for arm in ARMS if arm.pure for chunk in chunks]
    return [*pieces, *(OwnPiece(samples, None, chunk) for chunk in [(labellings[0],), *chunks])]


def _judge(data: Expression, findings: OwnFindings) -> list[Claim]:
    samples = data.samples
    inseparable = count_inseparable(samples.groups, samples.batches)
    difference = findings.take("renorm, pure", "auc") - findings.take("z-score per batch, pure", "auc")
    return [
        claim_number(
            "Group and batch can be told apart",
            "[group | batch] has full rank: no difference between groups is one between batches",
            inseparable,
            Bounds(below=0.5),
            note=f"Cramér's V is {compute_cramers_v(samples.groups, samples.batches):.2f}. Measured is the "
            "number of differences between groups that nothing in the data tells from the batches.",
        ),
        claim_number(
            "renorm finds the groups beyond the batches",
            "The classifier with renorm has a higher held-out AUC than with the groups permuted inside "
            "batches: p below 0.05",
            findings.compute_p("renorm, pure"),
            Bounds(below=0.05),
            note="At V = 1 a permutation inside batches changes nothing, and p is 1.",
        ),
        claim_mean(
            "renorm above z-score per batch",
            "The classifier with renorm tells held-out samples better than after per-batch z-scores: "
            "difference of AUC above 0",
            difference.tolist(),
            Bounds(above=0),
            note="The interval is for other folds and initial weights with these samples, not for other "
            "samples.",
        ),
    ]
