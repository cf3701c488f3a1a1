"""The page of a user's own data."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from medseg_brn.comparison.statistics import estimate_scalar
from medseg_brn.reports.page import (
    Block,
    Cell,
    Column,
    Facts,
    Gallery,
    Paragraph,
    Section,
    Table,
)
from medseg_brn.studies.batch_effects.arms import ARMS, CORRECTIONS, METHODS
from medseg_brn.studies.batch_effects.measures import compute_cramers_v, count_inseparable
from medseg_brn.studies.batch_effects.pictures import draw_against_permuted
from medseg_brn.studies.batch_effects.reading import Expression

Row = Mapping[str, str | int | float]


class OwnFindings:
    """The rows of a user's own data, by arm or gene test."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows: dict[str, list[Row]] = {}
        for row in rows:
            name = f"{row['method']}, {row['mini_batches']}" if "method" in row else str(row["test"])
            self._rows.setdefault(name, []).append(row)

    def take(self, name: str, column: str, *, permuted: bool = False) -> np.ndarray:
        """Return one number per repeat with the groups as they are, or one per permutation."""
        rows = [row for row in self._rows.get(name, []) if bool(row["labelling"]) is permuted]
        values = np.array([float(row.get(column, math.nan)) for row in rows])
        return values[~np.isnan(values)]

    def compute_p(self, name: str) -> float:
        """Return the share of labellings, the true one among them, whose AUC is at least the true one's.

        It is compared with the first repeat, whose folds the permutations have.
        """
        observed, permuted = self.take(name, "auc"), self.take(name, "auc", permuted=True)
        if not observed.size or not permuted.size:
            return math.nan
        return float((1 + np.count_nonzero(permuted >= observed[0])) / (1 + len(permuted)))


def make_own_sections(data: Expression, findings: OwnFindings) -> list[Section]:
    """Return what follows the claims."""
    return [_show_data(data), _show_classifiers(findings), _show_genes(findings)]


def _show_data(data: Expression) -> Section:
    samples = data.samples
    inseparable = count_inseparable(samples.groups, samples.batches)
    facts = {
        "Samples": str(len(samples.groups)),
        "Genes": f"{len(data.genes)}"
        + (f"; {data.left_out} others, of smaller variance, were left out" if data.left_out else ""),
        "Cramér's V of group and batch": f"{compute_cramers_v(samples.groups, samples.batches):.3f}",
        "Differences between groups that nothing tells from the batches": str(inseparable),
    }
    counts: list[list[Cell]] = [
        [
            name,
            *(
                int(((samples.batches == b) & (samples.groups == g)).sum())
                for g in range(len(data.group_names))
            ),
        ]
        for b, name in enumerate(data.batch_names)
    ]
    blocks: list[Block] = [
        Facts("What was read", facts),
        Table("Samples of each batch and group", [Column("Batch"), *map(Column, data.group_names)], counts),
    ]
    if inseparable:
        text = (
            "Nothing in these data separates group from batch: [group | batch] is rank deficient. Any "
            "difference between such groups may as well be one between their batches, and no correction, "
            "norm or model can tell. What keeps the one keeps the other, and what removes the batch removes "
            "the group. Only other samples can: of both groups in one batch."
        )
        blocks.insert(0, Paragraph(text))
    return Section("The data", blocks)


def _show_classifiers(findings: OwnFindings) -> Section:
    observed = {name: findings.take(f"{name}, pure", "auc") for name in METHODS}
    permuted = {name: findings.take(f"{name}, pure", "auc", permuted=True) for name in METHODS}
    figure = draw_against_permuted(
        observed,
        permuted,
        label="Held-out AUC",
        caption="Dots: the groups as they are, one per repeat of five folds. Grey: the groups permuted "
        "inside batches, from the 5th to the 95th percentile with the median, which is what the batches "
        "alone bring.",
    )
    columns = ("auc", "auc_within", "auc_unseen", "eta_batch", "eta_group")
    rows: list[list[Cell]] = []
    for arm in ARMS:
        name = f"{arm.method}, {arm.mini_batches}"
        cells = [_tell(findings.take(name, column)) for column in columns]
        null = findings.take(name, "auc", permuted=True)
        p = findings.compute_p(name)
        rows.append(
            [arm.method, arm.mini_batches, *cells, _tell(null), None if math.isnan(p) else round(p, 3)]
        )
    headings = (
        "Method",
        "Mini-batches",
        "AUC",
        "AUC within batches",
        "AUC unseen batch",
        "η² batch, held out",
        "η² group, held out",
        "AUC, groups permuted",
        "p",
    )
    text = (
        "Five folds hold each group of each batch as evenly as can be. The AUC of more than two groups is "
        "the mean of one against the rest. An AUC that permuted groups reach as well is the batches', not "
        "the groups'. Within batches only pairs of the same batch are compared; for an unseen batch each "
        "batch with several groups is left out in turn. η² is the share of a gene's variance between batches "
        "or groups, mean over genes, in the corrected data or the first norm's output; in folds of few "
        "samples it is well above 0 without any effect. ± is half the 95 % interval over repeats with these "
        "samples, or over permutations."
    )
    table = Table("Every arm", [Column(heading) for heading in headings], rows)
    return Section("Telling the groups apart", [Paragraph(text), Gallery([figure], wide=True), table])


def _show_genes(findings: OwnFindings) -> Section:
    rows: list[list[Cell]] = [
        [name, _tell(findings.take(name, "found")), _tell(findings.take(name, "found", permuted=True))]
        for name in (*CORRECTIONS, "batch in the model")
    ]
    columns = [Column("Test after"), Column("Groups as they are"), Column("Groups permuted inside batches")]
    text = (
        "The share of genes with p below .05 in a test of the group. With the groups permuted inside batches "
        "nothing is there to be found beyond the batches, so a share above .05 in the last column is the "
        "rate at which this way of testing finds what is not there (Nygaard 2016)."
    )
    return Section("Tests of single genes", [Paragraph(text), Table("Share of genes found", columns, rows)])


def _tell(values: np.ndarray) -> Cell:
    estimate = estimate_scalar(values)
    if math.isnan(estimate.effect):
        return None
    if math.isnan(estimate.low):
        return f"{estimate.effect:.3f}"
    return f"{estimate.effect:.3f} ± {(estimate.high - estimate.low) / 2:.3f}"
