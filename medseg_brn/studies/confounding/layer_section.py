"""The page's first part: layers between two groups, against the formula."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medseg_brn.reports.page import Block, Cell, Column, Figure, Gallery, Paragraph, Section, Table
from medseg_brn.studies.confounding.layers import D_LIMITS, DIFFERENCES, R_LIMITS, STATISTICS, Statistics
from medseg_brn.studies.confounding.norms import (
    BATCH,
    LOOSE,
    MIDDLE,
    MOMENTUM,
    TIGHT,
    compute_mixture_std,
    compute_retained,
    compute_retained_effect,
)
from medseg_brn.studies.confounding.pictures import Line, draw_lines
from medseg_brn.studies.confounding.statements import Measurements

FOLLOWED_BATCHES = 400
ITEM_NORMS = (
    ("group", 1, 0.25),
    ("group", 1, 0.5),
    ("group", 1, 1.0),
    ("group", 4, 0.125),
    ("group", 4, 0.25),
    ("instance", 16, 0.25),
)
"""Kind, groups, and the share of 16 channels that carry the difference."""

REFERENCE_CASES = ((2.0, BATCH), (2.0, TIGHT), (2.0, LOOSE), (6.0, TIGHT))
DIFFERENCE_LABEL = "difference Δ of the groups (spread within: 1)"


@dataclass(frozen=True)
class Extras:
    """What is shown beside the claims."""

    courses: Mapping[str, Sequence[Sequence[float]]]
    """Norm -> for each seed what is retained over a training on pure minibatches, per pair of them."""
    item_norms: Mapping[tuple[str, int, float], Sequence[float]]
    """Norm without running statistics -> what is retained, for each seed."""


def make_layer_section(found: Measurements, extras: Extras) -> Section:
    """Figures of the sweep, the courses and the effect size, and two tables."""
    explanation = (
        "Minibatches hold one group each, at ±Δ/2 with a spread of 1. Retained is the difference of the "
        "groups' mean outputs in training, as a share of Δ/σ_run, which it is in evaluation. Lines are the "
        "formula min(1, 2·d_max·σ_run/Δ); each mark is a mean over seeds, of r_max 1, 1.5 and 3 one upon the "
        "other: r_max changes nothing here."
    )
    which = (
        "It matters where σ_run comes from. Running statistics of the mixture, such as minibatches with both "
        "groups leave, know the difference (σ² = 1 + Δ²/4), so that d never exceeds 1 and a d_max of 1 "
        "retains all. But running_var averages the variance within minibatches: where every minibatch is "
        "pure, it never learns of the difference, σ_run is 1, and every clip retains less. A layer that "
        "begins with statistics of the mixture forgets them within some 1/α minibatches. Just where the clip "
        "begins to bind, the noise of the minibatches' means takes |d| now above it and now below, and only "
        "what is above is cut, which rounds the formula's kink. With n values a channel and pure statistics "
        "what is retained falls short by 0.8/(Δ·√n) there: .025 at n = 4096, Δ = 0.5 and d_max = 0.25."
    )
    sweeps = [
        _draw_sweep(found, "mixture", "Retained, running statistics of the mixture"),
        _draw_sweep(found, "pure", "Retained, running statistics of pure minibatches"),
    ]
    blocks: list[Block] = [
        Paragraph(explanation),
        Gallery(sweeps),
        Paragraph(which),
        Gallery([_draw_courses(extras), _draw_effect(found)]),
        _tabulate_reference(found),
        _tabulate_item_norms(extras),
    ]
    return Section("A layer between two groups", blocks)


def _collect(
    found: Measurements, statistics: Statistics, difference: float, r_max: float, d_max: float, effect: bool
) -> list[float]:
    return [
        one.measured_effect if effect else one.measured
        for seed in found.layers
        for one in seed
        if (one.statistics, one.difference) == (statistics, difference)
        and (one.norm.r_max, one.norm.d_max) == (r_max, d_max)
    ]


def _draw_sweep(found: Measurements, statistics: Statistics, title: str) -> Figure:
    x = np.linspace(min(DIFFERENCES), max(DIFFERENCES), 200)
    stds = [compute_mixture_std(one) if statistics == "mixture" else 1.0 for one in x]
    lines = []
    for d_max in (0.0, *D_LIMITS):
        limits = R_LIMITS if d_max else (1.0,)
        measured = [
            np.mean([_collect(found, statistics, one, r_max, d_max, False) for r_max in limits], axis=0)
            for one in DIFFERENCES
        ]
        name = f"d_max {d_max:g}" if d_max else "BatchNorm"
        y = [compute_retained(one, d_max, std) for one, std in zip(x, stds, strict=True)]
        lines.append(Line(name, x, y, DIFFERENCES, measured))
    caption = "Marks: measured; lines: the formula. BatchNorm is (r_max, d_max) = (1, 0)."
    return draw_lines(lines, title=title, x_label=DIFFERENCE_LABEL, caption=caption)


def _draw_effect(found: Measurements) -> Figure:
    x = np.linspace(min(DIFFERENCES), max(DIFFERENCES), 200)
    lines = []
    for r_max in R_LIMITS:
        measured = [_collect(found, "mixture", one, r_max, 5.0, True) for one in DIFFERENCES]
        y = [compute_retained_effect(one, r_max, 5.0, compute_mixture_std(one)) for one in x]
        lines.append(Line(f"r_max {r_max:g}", x, y, DIFFERENCES, measured))
    caption = (
        "What r_max is for: the difference in units of the spread within groups, as a share of that of the "
        "input; d_max 5, statistics of the mixture. A clipped r leaves the noise larger than in evaluation."
    )
    return draw_lines(lines, title="Retained effect size", x_label=DIFFERENCE_LABEL, caption=caption)


def _draw_courses(extras: Extras) -> Figure:
    x = np.arange(0, FOLLOWED_BATCHES, 2)
    stds = np.sqrt(1 + (1 - MOMENTUM) ** x)
    clips = {norm.name: norm.d_max for norm in (TIGHT, MIDDLE, LOOSE, BATCH)}
    lines = [
        Line(
            name, x, [compute_retained(2.0, clips[name], std) for std in stds], x, list(np.transpose(courses))
        )
        for name, courses in extras.courses.items()
    ]
    return draw_lines(
        lines,
        title="Retained while the statistics forget the groups",
        x_label="pure minibatches after statistics of the mixture",
        caption="Δ = 2, α = 0.01; solid: measured, dashed: the formula with σ_run² = 1 + (1 - α)^t.",
        dots=False,
    )


def _tabulate_reference(found: Measurements) -> Table:
    rows: list[list[Cell]] = []
    for difference, norm in REFERENCE_CASES:
        cells: list[Cell] = [f"{difference:g}", norm.name]
        for statistics in STATISTICS:
            std = compute_mixture_std(difference) if statistics == "mixture" else 1.0
            measured = _collect(found, statistics, difference, norm.r_max, norm.d_max, False)
            cells += [compute_retained(difference, norm.d_max, std), float(np.mean(measured))]
        rows.append(cells)
    headings = ("formula, mixture", "measured", "formula, pure", "measured")
    return Table(
        "Some cases in numbers, by the kind of running statistics",
        [Column("Δ"), Column("Norm"), *(Column(one, ".3f") for one in headings)],
        rows,
    )


def _tabulate_item_norms(extras: Extras) -> Table:
    rows: list[list[Cell]] = []
    for (kind, groups, share), measured in extras.item_norms.items():
        name = (
            "InstanceNorm" if kind == "instance" else "LayerNorm" if groups == 1 else f"GroupNorm ({groups})"
        )
        expected = 0.0 if kind == "instance" else 1 - min(1.0, share * groups)
        rows.append([name, f"{round(16 * share)} of 16", expected, float(np.mean(measured))])
    return Table(
        "Norms without running statistics, which measure every item by itself: the more channels of a norm's "
        "group carry the difference, the more of it is taken for the item's mean (Δ = 2)",
        [
            Column("Norm"),
            Column("Channels with the difference"),
            Column("1 - share", ".3f"),
            Column("measured", ".3f"),
        ],
        rows,
    )
