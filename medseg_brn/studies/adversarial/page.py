"""The study's page: what each picture and table shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medseg_brn.reports.page import Block, Cell, Column, Gallery, Paragraph, Section, Table
from medseg_brn.studies.adversarial.arms import ARMS, WITHOUT
from medseg_brn.studies.adversarial.closed_form import LIMITS
from medseg_brn.studies.adversarial.pictures import draw_courses, draw_leaks
from medseg_brn.studies.adversarial.statements import Measurements
from medseg_brn.studies.adversarial.trials import Found
from medseg_brn.studies.pictures import draw_outlines, draw_series

NAMES = [arm.name for arm in ARMS]
QUALITY = {
    "dice": "Dice",
    "surface_distance": "surface distance, voxels",
    "pieces": "pieces",
    "empty": "empty",
    "volume_ratio": "spread of volumes / references'",
    "likeness": "likeness above references'",
}


@dataclass(frozen=True)
class Shown:
    """Volumes of the first seed whose predictions are shown."""

    images: np.ndarray
    """(n, X, Y)."""
    reference: np.ndarray
    """(n, X, Y) bool."""
    predictions: Mapping[str, np.ndarray]
    """Arm -> (n, X, Y) bool."""


def make_sections(found: Measurements, pieces: Mapping[str, Sequence[Found]], shown: Shown) -> list[Section]:
    """Everything that follows the claims.

    Args:
        found: the rows.
        pieces: arm -> what its pieces of work found, one per seed.
        shown: example predictions.
    """
    return [
        _show_closed_form(found),
        _show_discrimination(found, pieces),
        _show_refinement(found, pieces, shown),
    ]


def _show_closed_form(found: Measurements) -> Section:
    text = (
        "One real value from N(+δ/2, 1) and one fake from N(-δ/2, 1) are a batch; what the norm makes of an "
        "item is called real where it is above 0. Alone, an item can be told with accuracy Φ(δ/2) at best. "
        "BatchNorm turns any two values into +1 and -1, so it tells which of the two is larger: Φ(δ/√2). "
        "Renorm gives back the distance to the population as far as its limits let it. With (1.5, 0.5) the "
        "shift d of at most 0.5 never outweighs the scale r of at least 1/1.5, so nothing is given back. "
        "With (3, 5) only pairs that lie closer than a third of the population's spread still leak."
    )
    caption = (
        "Lines: the formula. Dots: the layers themselves on drawn pairs, with 95 % intervals over draws."
    )
    rows: list[list[Cell]] = [
        [
            separation,
            limits.name,
            *(
                float(found.values("closed form", limits.name, column, separation).mean())
                for column in ("accuracy_formula", "accuracy_training", "accuracy_single")
            ),
        ]
        for separation in found.separations()
        for limits in LIMITS
    ]
    columns = [
        Column("δ", "g"),
        Column("Norm"),
        Column("Formula", ".4f"),
        Column("Measured", ".4f"),
        Column("Best for one sample", ".4f"),
    ]
    return Section(
        "In closed form",
        [
            Paragraph(text),
            Gallery([draw_leaks(found, caption)], wide=True),
            Table("Accuracy by separation", columns, rows),
        ],
    )


def _show_discrimination(found: Measurements, pieces: Mapping[str, Sequence[Found]]) -> Section:
    stage = "discrimination"
    text = (
        "A segmenter is trained and then left as it is; a discriminator learns to tell its label maps from "
        "the references, image and label map being shown together. Each of its steps has one real and one "
        "fake of the same volume, in one batch (mixed) or in two (separate). On held-out pairs its accuracy "
        "is measured as it normalizes in training and, in evaluation mode, on single samples; the difference "
        "is the leak. The best accuracy on single samples that any arm reached is a lower bound of what one "
        "sample tells; it is the highest of several measured numbers, and so a little too high by chance."
    )
    training, single = (
        {name: found.values(stage, name, column) for name in NAMES}
        for column in ("accuracy_training", "accuracy_single")
    )
    best = found.best_single()
    rows: list[list[Cell]] = [
        [
            name,
            *(
                float(found.values(stage, name, column).mean())
                for column in ("accuracy_training", "accuracy_single", "leak")
            ),
            float((training[name] - best).mean()),
            *(
                float(found.values(stage, name, column).mean())
                for column in ("influence", "spikes", "loss_late", "loss_late_sd")
            ),
        ]
        for name in NAMES
    ]
    headings = (
        "Accuracy in training",
        "On single samples",
        "Leak",
        "Above the best for one",
        "Influence",
        "Spikes",
        "Late loss",
        "Its spread",
    )
    blocks: list[Block] = [
        Paragraph(text),
        Gallery(
            [
                draw_series(
                    {"normalized as in training": training, "single samples": single},
                    label="accuracy on held-out pairs",
                    caption="Dots: seeds. Bars: means with 95 % intervals. Dashed: guessing.",
                    reference={"": 0.5},
                ),
                draw_series(
                    {"leak": {name: found.values(stage, name, "leak") for name in NAMES}},
                    label="leak",
                    caption="Accuracy in training minus accuracy on single samples, by seed.",
                    reference={"": 0.0},
                ),
                draw_series(
                    {"influence": {name: found.values(stage, name, "influence") for name in NAMES}},
                    label="influence of the batchmate",
                    caption="Standard deviation of an item's scores over its batchmates, relative to that of "
                    "all scores. Separate batches have one item, which has no batchmate.",
                    reference={"": 0.0},
                ),
            ],
            wide=True,
        ),
        Table(
            "Means over seeds",
            [Column("Discriminator"), *(Column(heading, ".3f") for heading in headings)],
            rows,
        ),
        Gallery(draw_courses({name: _losses(pieces[name], stage) for name in NAMES}, "hinge loss")),
    ]
    return Section("Discriminators of a fixed segmenter", blocks)


def _show_refinement(found: Measurements, pieces: Mapping[str, Sequence[Found]], shown: Shown) -> Section:
    stage = "refinement"
    names = [WITHOUT, *NAMES]
    text = (
        "The same segmenter is trained on at batch size 1, alone or against a new discriminator that sees "
        "its probabilities; everything else is the same, the order of the volumes included. Dice and surface "
        "distance are those of held-out volumes. Two numbers look for mode collapse: how much the predicted "
        "volumes vary relative to the references' (1 is as much), and how much more alike predictions of "
        "different volumes are than their references (0 is not at all)."
    )
    differences = {
        column: {name: found.difference(stage, column, name, WITHOUT) for name in NAMES}
        for column in ("dice", "surface_distance")
    }
    rows: list[list[Cell]] = [
        [
            name,
            *(_mean(found.values(stage, name, column)) for column in QUALITY),
            *(_mean(found.values(stage, name, column)) for column in ("spikes", "loss_late_sd")),
        ]
        for name in names
    ]
    headings = (*QUALITY.values(), "spikes", "spread of the late loss")
    slices = "Middle slices of the first seed's held-out volumes. Solid: reference; dashed: prediction."
    blocks: list[Block] = [
        Paragraph(text),
        Gallery(
            [
                draw_series(
                    {"Dice": differences["dice"]},
                    label="Dice minus that without a discriminator",
                    caption="Seed by seed. To the right of the line the discriminator helps.",
                    reference={"": 0.0},
                ),
                draw_series(
                    {"surface": differences["surface_distance"]},
                    label="surface distance minus that without a discriminator, in voxels",
                    caption="Seed by seed. To the left of the line the discriminator helps.",
                    reference={"": 0.0},
                ),
                draw_series(
                    {"spread": {name: found.values(stage, name, "volume_ratio") for name in names}},
                    label="spread of the predicted volumes relative to the references'",
                    caption="Mode collapse would show as a number near 0.",
                    reference={"": 1.0},
                ),
            ],
            wide=True,
        ),
        Table(
            "Means over seeds",
            [Column("Refined against"), *(Column(heading, ".3f") for heading in headings)],
            rows,
        ),
        Gallery([draw_outlines(shown.images, shown.reference, shown.predictions, slices)], wide=True),
        Gallery(draw_courses({name: _losses(pieces[name], stage) for name in NAMES}, "hinge loss")),
    ]
    return Section("Segmentations refined against a discriminator", blocks)


def _losses(pieces: Sequence[Found], stage: str) -> list[np.ndarray]:
    return [piece.losses[stage] for piece in pieces]


def _mean(values: np.ndarray) -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None
