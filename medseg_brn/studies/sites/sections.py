"""The study's page: what each picture and table shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medseg_brn.reports.page import (
    Block,
    Cell,
    Column,
    Facts,
    Figure,
    Gallery,
    Paragraph,
    Section,
    Table,
)
from medseg_brn.reports.study_report import VERDICTS
from medseg_brn.studies.claims import Claim
from medseg_brn.studies.pictures import draw_outlines, draw_series
from medseg_brn.studies.sites.arms import (
    BATCH,
    DOMAIN,
    GROUP,
    INSTANCE,
    LAYER,
    WIDE,
    Arm,
)
from medseg_brn.studies.sites.cohort import SEEN, Cohort
from medseg_brn.studies.sites.pictures import draw_scanners
from medseg_brn.studies.sites.statements import LINEAR, PARTS, SCANS, SCORE, Measurements

COLUMNS = {
    "seen_training": "seen, training mode",
    "seen_evaluation": "seen, evaluation",
    "seen_recalibrated": "seen, statistics set anew",
    "unseen_evaluation": "unseen, evaluation",
    "unseen_adapted": "unseen, adapted",
}


@dataclass(frozen=True)
class Shown:
    """The first repetition's scans, and what each arm made of them."""

    anatomies: str
    """What they are."""
    cohort: Cohort
    predictions: Mapping[str, np.ndarray]
    """Arm -> (S, X, Y) bool of the first tried scan of each unseen site."""


def make_sections(found: Measurements, claims: Sequence[Claim], shown: Shown) -> list[Section]:
    """Everything that follows the claims."""
    return [
        Section("In plain words", _tell_plainly(found, claims)),
        Section("The linear model", _show_linear(found)),
        Section("Scans of several scanners", _show_scans(found, shown)),
        Section("What this does not tell", [Paragraph(_LIMITS)]),
    ]


_LIMITS = (
    "Sites differ here in how they store the same thing, and in nothing else: patients, contrast, resolution "
    "and how label maps were drawn are alike everywhere. Z-scores within a site, and statistics of its own, "
    "take every difference between sites away; where patients differ between sites too, they take that away "
    "with the rest, which this study cannot show (`study confounding` and `study batch-effects` do). Both "
    "need data of the unseen site, if unlabelled. Networks are small, trainings short, effects synthetic. "
    "Weight standardization, which the toolkit's U-Net has by default, is off: it takes a constant offset "
    "away under any norm. Seeds that take their scans from one dataset share some of them. And a scan's "
    "z-scores depend on how much air it holds, which is alike in all scans here."
)


# ---------------------------------------------------------------- in plain words


def _tell_plainly(found: Measurements, claims: Sequence[Claim]) -> list[Block]:
    rows: list[list[Cell]] = [
        [question, *(answer(found, part) for part in PARTS)] for question, answer in _QUESTIONS.items()
    ]
    explanation = "The numbers behind them: means over seeds, accuracy in the linear model and Dice on scans."
    columns = [Column("Question"), Column("Linear model"), Column("Scans")]
    return [
        Facts("What came of the claims", _sort_claims(claims)),
        Paragraph(explanation),
        Table("Questions and answers", columns, rows),
    ]


def _sort_claims(claims: Sequence[Claim]) -> dict[str, str]:
    """Verdict and part -> the claims' names."""
    told = {}
    for verdict, word in VERDICTS.items():
        for part in PARTS:
            names = [
                claim.name.removeprefix(f"{part}: ")
                for claim in claims
                if claim.holds is verdict and claim.name.startswith(f"{part}: ")
            ]
            if names:
                told[f"{word}, {part}"] = "; ".join(names)
    return told


def _answer_gap(found: Measurements, part: str) -> str:
    return "; ".join(
        f"{norm.name} {_mean(found.values(part, Arm(norm, 'pure'), 'seen_training')):.3f} in training mode, "
        f"{_mean(found.values(part, Arm(norm, 'pure'), 'seen_evaluation')):.3f} in evaluation"
        for norm in (BATCH, WIDE)
    )


def _answer_composition(found: Measurements, part: str) -> str:
    return "; ".join(
        f"{norm.name} {_mean(found.values(part, Arm(norm, 'pure'), 'seen_evaluation')):.3f} with pure "
        f"batches, {_mean(found.values(part, Arm(norm, 'balanced'), 'seen_evaluation')):.3f} with balanced "
        "ones"
        for norm in (BATCH, WIDE)
    )


def _answer_unseen(found: Measurements, part: str) -> str:
    others = (LAYER, GROUP) if part == LINEAR else (GROUP, INSTANCE)
    return ", ".join(
        f"{norm.name} {_mean(found.values(part, Arm(norm, 'balanced'), 'seen_evaluation')):.3f} → "
        f"{_mean(found.values(part, Arm(norm, 'balanced'), 'unseen_evaluation')):.3f}"
        for norm in (BATCH, WIDE, *others)
    )


def _answer_remedy(found: Measurements, part: str) -> str:
    harmonized = Arm(WIDE, "balanced", harmonized=True)
    adapted = _mean(found.values(part, Arm(BATCH, "pure"), "unseen_adapted"))
    return (
        f"{harmonized.name} {_mean(found.values(part, harmonized, 'unseen_evaluation')):.3f}; BatchNorm "
        f"trained on pure batches, its statistics set anew for the site, {adapted:.3f}; the best without the "
        f"site's data {float(found.best_unharmonized(part).mean()):.3f}"
    )


def _answer_domain(found: Measurements, part: str) -> str:
    arm = Arm(DOMAIN, "pure")
    return (
        f"{_mean(found.values(part, arm, 'seen_evaluation')):.3f} at its own sites, "
        f"{_mean(found.values(part, arm, 'unseen_evaluation')):.3f} at unseen ones"
    )


_QUESTIONS = {
    "Batches of one site each: is the network at inference what it was in training?": _answer_gap,
    "Does it matter whether batches mix sites?": _answer_composition,
    "Is a norm alone at home at a site it has not seen? (seen → unseen sites)": _answer_unseen,
    "What is, given unlabelled data of that site?": _answer_remedy,
    "Do statistics of each site help?": _answer_domain,
}


# ---------------------------------------------------------------- the two parts


def _show_linear(found: Measurements) -> list[Block]:
    explanation = (
        "Items are stored as x = a·z + b + ε, with a gain and an offset of each feature in each of 6 "
        "laboratories; the class is a side of a plane in z, the same everywhere. Batches of 8 hold one "
        "laboratory (pure) or all (balanced). Held-out items are tried as the norm normalizes in training "
        "and in evaluation mode; 12 other laboratories are tried in evaluation mode, and once more with "
        "running statistics set anew from 256 unlabelled items of the laboratory. Harmonized input is the "
        "z-score of each feature within a laboratory, from 256 unlabelled items of its own, of unseen "
        "laboratories too. Statistics of each laboratory (domain-specific) need several items of one in a "
        "batch, and so pure batches; an unseen laboratory has the mixture of all."
    )
    return [Paragraph(explanation), *_show_part(found, LINEAR)]


def _show_scans(found: Measurements, shown: Shown) -> list[Block]:
    explanation = (
        f"The same with images: {shown.anatomies}, {_tell_shape(shown.cohort)} voxels, each stored by one of "
        "8 scanners with a gain, an offset, and strengths of bias field and noise of its own, drawn anew for "
        "every seed. Networks are small U-Nets in the toolkit's own training loop, trained on 6 scans of "
        "each of 4 sites with two whole scans a batch, of one site (pure) or of two (balanced), and tried on "
        "4 other scans of each, and on 4 scans of each of 4 sites that they have not seen. Harmonized input "
        "is a scan's z-score. Adapted statistics come from 4 more scans of the unseen site, without label "
        "maps."
    )
    cohort = shown.cohort
    names = [scanner.name for scanner in cohort.scanners]
    same = "The first seed's scanners: one slice of one anatomy, all in one window."
    predicted = (
        "The first seed's first scan of each unseen site (a row each), evaluation mode. Solid: reference; "
        "dashed: prediction."
    )
    tried = cohort.tried
    middle = tried.images.shape[-1] // 2
    outlines = draw_outlines(
        tried.images[:, 0, 0, :, :, middle].numpy(),
        tried.masks[:, 0, 0, :, :, middle].numpy() > 0,
        shown.predictions,
        predicted,
    )
    return [
        Paragraph(explanation),
        Gallery([draw_scanners(cohort.example.numpy(), names, same)], wide=True),
        _list_scanners(cohort),
        *_show_part(found, SCANS),
        Gallery([outlines], wide=True),
    ]


def _show_part(found: Measurements, part: str) -> list[Block]:
    arms = PARTS[part]
    score = SCORE[part]

    def read(column: str) -> dict[str, np.ndarray]:
        return {arm.name: found.values(part, arm, column) for arm in arms}

    figures: list[Figure] = [
        draw_series(
            {"training mode": read("seen_training"), "evaluation mode": read("seen_evaluation")},
            label=f"{score} on held-out items of seen sites",
            caption="Dots: seeds. Bars: means with 95 % intervals over seeds.",
            reference=_tell_best(found, part, "seen_best"),
        ),
        draw_series(
            {"gap": {arm.name: found.gap(part, arm) for arm in arms}},
            label=f"gap: {score} in training mode minus in evaluation mode",
            caption="Seed by seed. Right of the line, a network is worse at inference than it seemed.",
            reference={"0": 0.0},
        ),
        draw_series(
            {
                "evaluation mode": read("unseen_evaluation"),
                "statistics set anew for the site": read("unseen_adapted"),
            },
            label=f"{score} on unseen sites",
            caption="Norms without running statistics cannot be adapted; harmonized input is adapted "
            "already.",
            reference=_tell_best(found, part, "unseen_best"),
        ),
    ]
    settled = (
        "Statistics set anew on training data show what of a gap is in moving averages that lag behind, and "
        "what is in the weights: pure batches are normalized by one site, no statistics of a mixture are."
    )
    if part == SCANS:
        settled += (
            " The momentum is the same for all norms and ten times the toolkit's default, as runs are short "
            "and each site's own statistics see a quarter of them. That does renorm no favour: it normalizes "
            "by these statistics while it trains, and with pure batches they follow whichever site comes "
            "last."
        )
    return [Gallery(figures, wide=True), Paragraph(settled), _tabulate(found, part, arms)]


def _tell_best(found: Measurements, part: str, column: str) -> dict[str, float]:
    """What the best rule reaches, where it is known."""
    if part != LINEAR:
        return {}
    best = _mean(found.values(part, PARTS[part][0], column))
    return {f"best possible {best:.3f}": best}


def _tabulate(found: Measurements, part: str, arms: Sequence[Arm]) -> Table:
    rows: list[list[Cell]] = [
        [
            arm.name,
            *(_mean_or_none(found.values(part, arm, column)) for column in COLUMNS),
            *(round(_mean(values), 3) + 0.0 for values in (found.gap(part, arm), found.drop(part, arm))),
        ]
        for arm in arms
    ]
    headings = [*COLUMNS.values(), "gap", "seen minus unseen"]
    columns = [Column("Arm"), *(Column(heading, ".3f") for heading in headings)]
    return Table(f"Means over seeds, {SCORE[part]}", columns, rows)


def _list_scanners(cohort: Cohort) -> Table:
    rows: list[list[Cell]] = [
        [one.name, one.gain, one.offset, one.bias, one.noise] for one in cohort.scanners
    ]
    headings = ("gain", "offset", "bias field", "noise")
    return Table(
        f"The first seed's scanners; the first {len(SEEN)} are trained on",
        [Column("Site"), *(Column(heading, ".2f") for heading in headings)],
        rows,
    )


def _tell_shape(cohort: Cohort) -> str:
    return "×".join(map(str, cohort.tried.images.shape[3:]))


def _mean(values: np.ndarray) -> float:
    return float(values.mean())


def _mean_or_none(values: np.ndarray) -> float | None:
    return None if np.isnan(values).all() else float(values.mean())
