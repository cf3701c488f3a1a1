"""The page: what each part measured, drawn and told."""

from collections.abc import Sequence

import numpy as np

from medseg_brn.reports.page import Block, Cell, Column, Figure, Gallery, Paragraph, Section, Table
from medseg_brn.studies.confounding import association, null_arm, training
from medseg_brn.studies.confounding.layer_section import Extras, make_layer_section
from medseg_brn.studies.confounding.norms import BATCH, LAYER, LOOSE
from medseg_brn.studies.confounding.null_arm import COHORTS, LEVEL, compute_centred_rate, estimate_rate
from medseg_brn.studies.confounding.pictures import Line, draw_estimates, draw_lines
from medseg_brn.studies.confounding.statements import Measurements
from medseg_brn.studies.pictures import draw_series


def make_sections(found: Measurements, extras: Extras) -> list[Section]:
    """All parts in the order in which they build on each other."""
    return [
        make_layer_section(found, extras),
        Section("Networks trained on one group at a time", _show_markers(found)),
        Section("Biology and batch effect", _show_association(found)),
        Section("Diagnosis from two sites", _show_diagnoses(found)),
        Section("Nothing to find", _show_null(found)),
    ]


# ---------------------------------------------------------------- trained networks


def _show_markers(found: Measurements) -> list[Block]:
    explanation = (
        "The label needs the group and a trait that varies within groups; minibatches of 16 hold one group "
        "each. In training mode BatchNorm hides the group from the network: only the trait can be learned, "
        "and in evaluation the group comes through weights that never met it, as a disturbance. (3, 0) is a "
        "wider r_max alone, (1, 5) a wider d_max alone."
    )
    limit = (
        "Retained is not yet learned. Renorm's backward pass is BatchNorm's whatever its clips: r and d are "
        "constants to the gradient, whose mean over the minibatch is taken away in each channel. So the "
        "weights before a norm learn nothing from a difference that a whole minibatch shares; only γ, β and "
        "the last layer do, from features as chance made them. The table's last column tells: the first "
        "layer's weights on the group's features against those on noise. LayerNorm has no such limit, and "
        "where it stands far above every clip in accuracy, this is why."
    )
    best, blind = training.compute_best_accuracy(True), training.compute_best_accuracy(False)
    references = {f"best without the group {blind:.3f}": blind, f"with it {best:.3f}": best}
    retained = draw_series(
        {"retained": {norm.name: found.marker(norm, "retained") for norm in training.NORMS if norm != LAYER}},
        label="retained of the groups' difference after the first norm",
        caption="Dots: seeds; bar: 95 % interval of the mean; diamond: the formula, summed over channels.",
        limits=(-0.05, 1.1),
        expected={norm.name: float(found.marker(norm, "expected").mean()) for norm in training.NORMS},
    )
    accuracy = draw_series(
        {"accuracy": {norm.name: found.marker(norm, "eval_accuracy") for norm in training.NORMS}},
        label="held-out accuracy in evaluation mode",
        caption="Dashed: the best that is possible with and without knowing the group.",
        limits=(0.5, 1.0),
        reference=references,
    )
    gap = draw_series(
        {"gap": {norm.name: found.gap(norm) for norm in training.NORMS}},
        label="accuracy in training mode less that in evaluation mode",
        caption="On the same held-out items. Above 0, a network is worse at inference than it seemed.",
        limits=_fit([found.gap(norm) for norm in training.NORMS]),
        reference={"0": 0.0},
    )
    attributes = {
        "train_accuracy": "training mode",
        "eval_accuracy": "evaluation mode",
        "disparity": "mean |p - p|",
        "train_contrast": "logits, training",
        "eval_contrast": "logits, evaluation",
        "group_weight": "weights on the group",
    }
    rows: list[list[Cell]] = [
        [norm.name, *(float(found.marker(norm, name).mean()) for name in attributes)]
        for norm in training.NORMS
    ]
    caption = (
        "Means over seeds: accuracies, difference of an item's probability between the modes, and difference "
        "of the groups' mean logits in either mode, and weights as told above"
    )
    columns = [Column("Norm"), *(Column(heading, ".3f") for heading in attributes.values())]
    figures = Gallery([retained, accuracy, gap], wide=True)
    return [Paragraph(explanation), figures, Paragraph(limit), Table(caption, columns, rows)]


def _fit(groups: Sequence[np.ndarray]) -> tuple[float, float]:
    values = np.concatenate([*groups, np.zeros(1)])
    margin = 0.08 * (float(np.ptp(values)) + 0.01)
    return float(values.min()) - margin, float(values.max()) + margin


# ---------------------------------------------------------------- biology and batch effect


def _show_association(found: Measurements) -> list[Block]:
    explanation = (
        "Minibatches hold one site each; sites and groups differ by 2 standard deviations alike, in channels "
        "of their own. Association is Cramér's V of group and site. With balanced sites (V = 0) BatchNorm "
        "does what is hoped for: it removes the batch effect and keeps biology. Renorm (3, 5) keeps both, "
        "as the formula says of either. At V = 1 the lines of the two figures end at the same values: what "
        "is retained of biology is retained of the batch effect, by any norm, because nothing in the "
        "minibatches tells them apart."
    )
    figures = [
        _draw_association(found, "biology", 0, "Retained of biology"),
        _draw_association(found, "batch_effect", 1, "Retained of the batch effect"),
    ]
    return [Paragraph(explanation), Gallery(figures)]


def _draw_association(found: Measurements, attribute: str, place: int, title: str) -> Figure:
    x = np.linspace(0, 1, 101)
    lines = [
        Line(
            norm.name,
            x,
            [association.compute_expected(one, norm.d_max)[place] for one in x],
            association.ASSOCIATIONS,
            [found.kept(norm, one, attribute) for one in association.ASSOCIATIONS],
        )
        for norm in association.NORMS
    ]
    caption = "Running statistics as the same minibatches leave them. Marks: measured; lines: the formula."
    return draw_lines(lines, title=title, x_label="Cramér's V of group and site", caption=caption)


def _show_diagnoses(found: Measurements) -> list[Block]:
    explanation = (
        "The label is the group; group and site differ equally in four features each, and minibatches hold "
        "one site. Trained with balanced sites, a network can learn to leave the site aside. Under perfect "
        "confounding it has no reason to prefer biology: what it learns rests on both. It does well where "
        "group and site are combined as in training and badly where they are not, which held-out cases from "
        "the same two sites never show. BatchNorm removes both and has nothing to learn from."
    )
    kinds = [(norm, design) for design in ("balanced", "confounded") for norm in (BATCH, LOOSE, LAYER)]
    share = draw_series(
        {
            "share": {
                f"{norm.name}, {design}": found.diagnosis(norm, design, "site_share")
                for norm, design in kinds
            }
        },
        label="share of the site in what the logits tell",
        caption="0: biology only; 1: batch effect only. Where neither is learned, it is a share of noise.",
        limits=(-0.02, 1.02),
        reference={"both alike": 0.5},
    )
    attributes = {
        "concordant_accuracy": "accuracy, combined as in confounded training",
        "discordant_accuracy": "accuracy, combined the other way",
        "group_contrast": "logits by group",
        "site_contrast": "logits by site",
    }
    rows: list[list[Cell]] = [
        [norm.name, design, *(float(found.diagnosis(norm, design, name).mean()) for name in attributes)]
        for norm, design in kinds
    ]
    columns = [Column("Norm"), Column("Trained with"), *(Column(one, ".3f") for one in attributes.values())]
    caption = "Means over seeds, held-out items, evaluation mode"
    return [Paragraph(explanation), Gallery([share], wide=True), Table(caption, columns, rows)]


# ---------------------------------------------------------------- the null arm


def _show_null(found: Measurements) -> list[Block]:
    explanation = (
        f"No biology at all: a t test at {LEVEL} of values normalized in training mode should find some in "
        f"{LEVEL:.0%} of the experiments. With pure minibatches and no batch effect, BatchNorm never finds "
        "any: it made the groups' means the same. A batch effect with balanced sites makes tests of what "
        "keeps it blunt, not wrong. BatchNorm removes it, and with it the minibatches' means, of which the "
        f"test is not told; that alone leads to {compute_centred_rate():.3f} (Nygaard, Rødland and Hovig "
        "2016, on batch correction before a test). Under perfect confounding, what retains the batch effect "
        "takes it for biology nearly always."
    )
    titles = {
        "none": "Pure minibatches, no batch effect",
        "balanced": "Balanced sites with a batch effect",
        "confounded": "Perfect confounding with a batch effect",
    }
    rates = {
        cohort: {norm.name: estimate_rate(*found.count(cohort, norm.name)) for norm in null_arm.NORMS}
        for cohort in COHORTS
    }
    figures = []
    for cohort in COHORTS:
        highest = max(one.high for one in rates[cohort].values())
        figures.append(
            draw_estimates(
                rates[cohort],
                label="share of false findings",
                caption=f"{titles[cohort]}. Bars: exact 95 % intervals.",
                limits=(-0.003, max(0.075, 1.05 * highest)),
                reference={f"nominal {LEVEL}": LEVEL},
            )
        )
    return [Paragraph(explanation), Gallery(figures, wide=True)]
