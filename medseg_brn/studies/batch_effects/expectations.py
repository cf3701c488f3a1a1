"""What was expected of the simulation, each statement with the bound that falsifies it, before any run."""

from collections.abc import Sequence

import numpy as np

from medseg_brn.studies.batch_effects.findings import Findings
from medseg_brn.studies.claims import Bounds, Claim, claim_estimate, claim_mean, claim_number

RENORM, BATCH, RAW = "renorm, pure", "BatchNorm, pure", "no correction, pure"
ZSCORE, COMBAT = "z-score per batch, pure", "ComBat, pure"


def judge(findings: Findings, associations: Sequence[float]) -> list[Claim]:
    """Return the claims; mini-batches are of one batch each where nothing else is said."""
    return [
        *_judge_balanced(findings),
        *_judge_confounded(findings),
        _judge_falsifier(findings, associations),
        *_judge_null(findings),
    ]


def _judge_balanced(findings: Findings) -> list[Claim]:
    def compare(column: str, first: str, second: str) -> np.ndarray:
        return findings.take(first, 0.0, column) - findings.take(second, 0.0, column)

    return [
        _claim(
            "Balanced: ComBat removes the batch effect",
            "At V = 0 the batch explains less of ComBat's held-out data than of what renorm's first layer "
            "makes of them: difference of η² below 0",
            compare("eta_batch", COMBAT, RENORM),
            Bounds(below=0),
        ),
        _claim(
            "Balanced: ComBat wins",
            "At V = 0 the classifier after ComBat tells the groups of held-out samples better than the one "
            "with renorm: difference of AUC above 0",
            compare("auc", COMBAT, RENORM),
            Bounds(above=0),
        ),
        _claim(
            "Balanced: renorm leaves γ",
            "At V = 0 renorm's training passes keep more than 0.8 of the η² of batch that the data have",
            _share_kept(findings, RENORM, 0.0, "eta_batch_training"),
            Bounds(above=0.8),
        ),
        _claim(
            "Balanced: BatchNorm takes γ out of training",
            "At V = 0 BatchNorm's training passes keep less than 0.01 of the η² of batch, since each "
            "mini-batch is of one batch",
            _share_kept(findings, BATCH, 0.0, "eta_batch_training"),
            Bounds(below=0.01),
            note="At evaluation it normalizes by running statistics, and γ is all there.",
        ),
    ]


def _share_kept(findings: Findings, name: str, association: float, column: str) -> np.ndarray:
    """Of what the same mini-batches hold without a norm."""
    return findings.take(name, association, column) / findings.take(RAW, association, column)


def _judge_confounded(findings: Findings) -> list[Claim]:
    renorm = findings.take(RENORM, 1.0, "auc")
    keeps = "At V = 1 renorm's training passes keep more than 0.8 of the η² of {} that the data have"
    return [
        _claim(
            "Confounded: renorm keeps δ",
            keeps.format("group"),
            _share_kept(findings, RENORM, 1.0, "eta_group_training"),
            Bounds(above=0.8),
            note="Over the genes in which the groups differ; what part of it is the batches' cannot be told.",
        ),
        _claim(
            "Confounded: renorm keeps γ",
            keeps.format("batch"),
            _share_kept(findings, RENORM, 1.0, "eta_batch_training"),
            Bounds(above=0.8),
        ),
        _claim(
            "Confounded: renorm above per-batch z-score",
            "At V = 1 the classifier with renorm tells held-out samples of the same batches better than "
            "after per-batch z-scores: difference of AUC above 0",
            renorm - findings.take(ZSCORE, 1.0, "auc"),
            Bounds(above=0),
            note="At V = 1 the batch gives the group away: see the unseen batch and the null arm.",
        ),
        _claim(
            "Confounded: renorm above BatchNorm",
            "At V = 1 the classifier with renorm is better than with BatchNorm, whose mini-batches of one "
            "batch hold one group: difference of AUC above 0",
            renorm - findings.take(BATCH, 1.0, "auc"),
            Bounds(above=0),
        ),
        _claim(
            "Confounded: what renorm keeps is largely the batch",
            "At V = 1 renorm's AUC on held-out samples of the same batches exceeds that in an unseen batch "
            "by more than 0.05",
            renorm - findings.take(RENORM, 1.0, "auc_unseen"),
            Bounds(above=0.05),
        ),
    ]


def _judge_falsifier(findings: Findings, associations: Sequence[float]) -> Claim:
    beaten, beaten_unseen = (
        [v for v in associations if _is_beaten(findings, v, column)] for column in ("auc", "auc_unseen")
    )
    return claim_number(
        "z-score per batch does not beat renorm at every V",
        f"The number of associations at which per-batch z-scores have the higher AUC, by a 95 % interval "
        f"above 0, is below {len(associations)}",
        len(beaten),
        Bounds(below=len(associations)),
        note=f"They have it at V = {_tell(beaten)}; in an unseen batch, where the batch does not give the "
        f"group away, at V = {_tell(beaten_unseen)}.",
    )


def _is_beaten(findings: Findings, association: float, column: str) -> bool:
    difference = findings.take(ZSCORE, association, column) - findings.take(RENORM, association, column)
    return _claim("", "", difference, Bounds(above=0)).holds is True


def _tell(associations: Sequence[float]) -> str:
    return ", ".join(f"{v:g}" for v in associations) or "none"


def _judge_null(findings: Findings) -> list[Claim]:
    called = (
        "Without any difference between groups, at V = {}, {} finds one (AUC above 0.5 at the level .05) in "
    )
    rows = (
        ("Null arm: renorm, balanced", RENORM, 0.0, "less than 0.1 of the data sets", Bounds(below=0.1)),
        (
            "Null arm: z-score per batch, confounded",
            ZSCORE,
            1.0,
            "less than 0.1 of the data sets",
            Bounds(below=0.1),
        ),
        (
            "Null arm: renorm, confounded, exceeds the level",
            RENORM,
            1.0,
            "more than 0.05 of the data sets, since it keeps γ",
            Bounds(above=0.05),
        ),
    )
    claims = [
        claim_estimate(
            name,
            called.format(f"{association:g}", arm.split(",")[0]) + rule,
            findings.estimate_false_positives(arm, association),
            bounds,
        )
        for name, arm, association, rule, bounds in rows
    ]
    return [
        *claims,
        _claim(
            "Null arm: genes after ComBat with group exceed the level",
            "Without any difference, at V = 0.5, a t test after ComBat with the group as covariate finds "
            "more than 0.05 of the genes at the level .05 (Nygaard 2016)",
            findings.take("ComBat with group", 0.5, "found", null=True),
            Bounds(above=0.05),
        ),
        _claim(
            "Null arm: genes by a model that holds the batch keep the level",
            "Without any difference, at V = 0.5, the F test of the group in a linear model with the batch "
            "finds between 0.04 and 0.06 of the genes at the level .05",
            findings.take("batch in the model", 0.5, "found", null=True),
            Bounds(above=0.04, below=0.06),
        ),
    ]


def _claim(name: str, expected: str, values: np.ndarray, bounds: Bounds, note: str = "") -> Claim:
    return claim_mean(name, expected, values.tolist(), bounds, note)
