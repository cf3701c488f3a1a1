"""The page of the simulation: what classifiers reach, what norms keep, and what is found in nothing."""

from collections.abc import Sequence

from medseg_brn.comparison.statistics import Estimate
from medseg_brn.reports.page import Block, Cell, Column, Figure, Gallery, Paragraph, Section, Table
from medseg_brn.studies.batch_effects.arms import ARMS, CORRECTIONS, METHODS
from medseg_brn.studies.batch_effects.findings import Findings
from medseg_brn.studies.batch_effects.gene_tests import LEVEL
from medseg_brn.studies.batch_effects.pictures import collect, draw_over_association

TESTS = (*CORRECTIONS, "batch in the model")
IMPOSSIBLE = (
    "ComBat with the group as covariate, and a model that holds the batch, have no numbers at V = 1, where "
    "group and batch are the same thing."
)
AT_USE = (
    "What it sees when it is used. A norm with running statistics is then an affine map, which leaves η² as "
    "it is in the data."
)


def make_sections(findings: Findings, associations: Sequence[float]) -> list[Section]:
    """Return what follows the claims."""
    return [
        _show_classifiers(findings, associations),
        _show_variance(findings, associations),
        _show_null_arm(findings, associations),
        _show_gene_tests(findings, associations),
    ]


def _draw(findings: Findings, associations: Sequence[float], column: str, label: str, caption: str) -> Figure:
    level = (0.5, "chance") if column.startswith("auc") else None
    return draw_over_association(
        collect(METHODS, associations, lambda name, v: findings.estimate(f"{name}, pure", v, column)),
        label=label,
        caption=caption,
        level=level,
    )


def _show_classifiers(findings: Findings, associations: Sequence[float]) -> Section:
    figures = [
        _draw(
            findings,
            associations,
            "auc",
            "AUC, held-out samples of the same batches",
            "As a cross-validation within the collected data would find it. Where V is high, knowing the "
            "batch is knowing the group, and what has left the batch effect in profits.",
        ),
        _draw(
            findings,
            associations,
            "auc_unseen",
            "AUC, samples of an unseen batch",
            "Half of each group, so that the batch says nothing: what has been learned of the groups "
            "themselves. Per-batch z-scores and ComBat here use the whole unseen batch, its groups unknown; "
            "norms and no correction take each sample alone.",
        ),
        _draw(
            findings,
            associations,
            "auc_within",
            "AUC within batches, held-out samples",
            "Only pairs from the same batch are compared, which the batch effect itself cannot order. At V = "
            "1 there are none.",
        ),
    ]
    text = (
        "The same small network, its two norms apart, was trained on the same data in every case; "
        "mini-batches hold samples of one batch, as laboratories deliver them. The table has mixed ones too. "
        "Bars are 95 % "
        "intervals over data sets. " + IMPOSSIBLE
    )
    return Section(
        "Telling the groups apart", [Paragraph(text), Gallery(figures), _table(findings, associations)]
    )


def _table(findings: Findings, associations: Sequence[float]) -> Table:
    columns = ("auc", "auc_within", "auc_unseen", "eta_batch_training", "eta_batch", "eta_group")
    rows: list[list[Cell]] = []
    for association in associations:
        for arm in ARMS:
            name = f"{arm.method}, {arm.mini_batches}"
            estimates = [findings.estimate(name, association, column) for column in columns]
            cells = [_tell(one) for one in estimates]
            rows.append([f"{association:g}", arm.method, arm.mini_batches, *cells])
    headings = (
        "V",
        "Method",
        "Mini-batches",
        "AUC",
        "AUC within batches",
        "AUC unseen batch",
        "η² batch, training passes",
        "η² batch, held out",
        "η² group, held out",
    )
    return Table("Every arm: mean ± half the 95 % interval", [Column(heading) for heading in headings], rows)


def _tell(estimate: Estimate) -> Cell:
    if estimate.effect != estimate.effect:
        return None
    if estimate.low != estimate.low:
        return f"{estimate.effect:.3f}"
    return f"{estimate.effect:.3f} ± {(estimate.high - estimate.low) / 2:.3f}"


def _show_variance(findings: Findings, associations: Sequence[float]) -> Section:
    shown = (
        ("batch", "_training", "What the network sees while it learns, in mini-batches of one batch."),
        ("batch", "", AT_USE),
        (
            "group",
            "_training",
            "Over the genes in which the groups differ. At V = 1 it holds the batches' too.",
        ),
        ("group", "", "At V = 1, what takes the batches out takes the groups out with them."),
    )
    figures = [
        _draw(
            findings,
            associations,
            f"eta_{effect}{ending}",
            f"η² of {effect}, {'training passes' if ending else 'held-out samples'}",
            caption,
        )
        for effect, ending, caption in shown
    ]
    text = (
        "η² is the share of a gene's variance that lies between batches (mean over all genes) or between "
        "groups (mean over the genes in which they differ), in the corrected data or, where there is a norm, "
        "in its first layer's output, which is that of the genes. It is taken one factor at a time: where "
        "group and batch are associated, each share holds some of the other's. Where lines of norms meet the "
        "one without correction, everything is kept. Without any effect it would be about 0.03 for four "
        "batches and 0.01 for two groups."
    )
    return Section("What is kept of batch and group", [Paragraph(text), Gallery(figures)])


def _show_null_arm(findings: Findings, associations: Sequence[float]) -> Section:
    figures = [
        _draw_false_positives(findings, associations, mini_batches) for mini_batches in ("pure", "mixed")
    ]
    rows: list[list[Cell]] = []
    for association in associations:
        for arm in ARMS:
            one = findings.estimate_false_positives(f"{arm.method}, {arm.mini_batches}", association)
            if one.effect == one.effect:
                interval = f"{one.low:.3f} to {one.high:.3f}"
                rows.append(
                    [f"{association:g}", arm.method, arm.mini_batches, one.effect, interval, _judge(one)]
                )
    columns = [Column("V"), Column("Method"), Column("Mini-batches"), Column("Rate", ".3f")]
    text = (
        "The groups do not differ at all, so whatever is found is false. A held-out test does not protect "
        "from it: the held-out samples come from the same batches, and with the same association."
    )
    return Section(
        "Found where there is nothing",
        [
            Paragraph(text),
            Gallery(figures),
            Table(
                "False-positive rate at the level .05",
                [*columns, Column("95 % interval"), Column("Level .05")],
                rows,
            ),
        ],
    )


def _draw_false_positives(findings: Findings, associations: Sequence[float], mini_batches: str) -> Figure:
    return draw_over_association(
        collect(
            METHODS,
            associations,
            lambda name, v: findings.estimate_false_positives(f"{name}, {mini_batches}", v),
        ),
        label=f"Share of data sets called different, δ = 0, {mini_batches} mini-batches",
        caption="Held-out AUC above 0.5 by a one-sided Mann-Whitney test at the level .05; exact binomial "
        "95 % intervals.",
        level=(LEVEL, "level .05"),
    )


def _judge(estimate: Estimate) -> str:
    if estimate.low > LEVEL:
        return "exceeded"
    return "below it" if estimate.high < LEVEL else "kept"


def _show_gene_tests(findings: Findings, associations: Sequence[float]) -> Section:
    figures = [
        draw_over_association(
            collect(TESTS, associations, lambda name, v: findings.estimate(name, v, "found", null=True)),
            label="Share of genes called different, δ = 0",
            caption="Two-sided t test of each gene in the corrected training samples, and the F test of the "
            "group in a linear model that holds the batch.",
            level=(LEVEL, "level .05"),
        ),
        draw_over_association(
            collect(TESTS, associations, lambda name, v: findings.estimate(name, v, "found_differing")),
            label="Share of differing genes found",
            caption="The same tests where the groups differ: power, to be read beside the false findings.",
            level=(LEVEL, "level .05"),
        ),
    ]
    shown = (("found", True), ("found", False), ("found_differing", False))
    rows: list[list[Cell]] = [
        [f"{v:g}", name, *(_tell(findings.estimate(name, v, column, null=null)) for column, null in shown)]
        for v in associations
        for name in TESTS
    ]
    headings = ("V", "Test after", "False, δ = 0", "False, other genes differ", "True")
    blocks: list[Block] = [
        Paragraph(
            "Data that were corrected with the groups known are no longer independent samples: the batches' "
            "differences were estimated together with the groups', and the test that follows does not know "
            "it (Nygaard 2016; Zindler 2020). A model that holds the batch needs no correction and keeps its "
            "level."
        ),
        Gallery(figures),
        Table(
            "Share of genes below .05, mean ± half the 95 % interval over data sets",
            [Column(heading) for heading in headings],
            rows,
        ),
    ]
    return Section("Tests of single genes after a correction", blocks)
