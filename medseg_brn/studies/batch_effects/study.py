"""The study of batch effects in expression data, over the association of group and batch."""

import dataclasses

from medseg_brn.studies.batch_effects.corrections import require_combat
from medseg_brn.studies.batch_effects.expectations import judge
from medseg_brn.studies.batch_effects.findings import Findings
from medseg_brn.studies.batch_effects.page import make_sections
from medseg_brn.studies.batch_effects.simulation import Setting
from medseg_brn.studies.batch_effects.training import SIZE, Recipe
from medseg_brn.studies.batch_effects.trials import Piece, do_piece
from medseg_brn.studies.outcome import Outcome, Progress, do_all

ASSOCIATIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
DATASETS = 20
NULL_DATASETS = 200
TOGETHER = 50
"""Datasets in one piece of work."""

QUESTION = (
    "Expression profiles X_ij = μ_i + δ_ig + γ_ib + ε_ij (gene i, sample j of group g in batch b) of two "
    "groups in four batches, from each batch holding both alike (Cramér's V = 0) to each holding one only (V "
    "= 1). What do a correction of the data, a norm in the classifier, or neither keep of the groups' "
    "difference δ and of the batches' γ; how well does a classifier then tell the groups of samples it has "
    "not seen; and what is found where δ = 0?"
)


def study_batch_effects(seed: int, scale: float, progress: Progress) -> Outcome:
    """Simulate, train, measure and judge.

    Args:
        seed: draws everything.
        scale: times as many datasets as the default, at least two.
        progress: told how far it is.

    Raises:
        ConfigError: scanpy is not installed.
    """
    require_combat()
    counts = {True: max(2, round(DATASETS * scale)), False: max(2, round(NULL_DATASETS * scale))}
    pieces = [
        Piece(association, difference, tuple(range(first, min(first + TOGETHER, count))), seed)
        for difference, count in counts.items()
        for association in ASSOCIATIONS
        for first in range(0, count, TOGETHER)
    ]
    rows = [row for done in do_all(do_piece, pieces, "Simulated laboratories", progress) for row in done]
    findings = Findings(rows)
    return Outcome(
        study="batch-effects",
        title="Batch effects in gene expression",
        question=QUESTION,
        settings={
            "seed": seed,
            "scale": scale,
            "associations": list(ASSOCIATIONS),
            "datasets per association": counts[True],
            "datasets per association, null arm": counts[False],
            "samples per mini-batch": SIZE,
            **dataclasses.asdict(Setting()),
            **dataclasses.asdict(Recipe()),
        },
        claims=judge(findings, ASSOCIATIONS),
        rows=rows,
        sections=make_sections(findings, ASSOCIATIONS),
    )
