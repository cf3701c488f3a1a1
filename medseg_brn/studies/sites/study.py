"""The study of several sites: the linear model, then segmentation with scanners of different habits."""

from functools import partial
from pathlib import Path
from typing import Any

from medseg_brn.studies.outcome import Outcome, Progress, do_all
from medseg_brn.studies.sites import linear_training, segmentation
from medseg_brn.studies.sites.anatomies import Anatomies, Heads, read_anatomies
from medseg_brn.studies.sites.arms import LINEAR_ARMS, SCAN_ARMS
from medseg_brn.studies.sites.cohort import NEEDED, Cohort, draw_cohort
from medseg_brn.studies.sites.linear_training import LinearTrial, train_linear
from medseg_brn.studies.sites.sections import Shown, make_sections
from medseg_brn.studies.sites.segmentation import ScanTrial, train_on_scans
from medseg_brn.studies.sites.statements import Measurements, judge

LINEAR_SEEDS, LINEAR_STEPS, FEWEST_LINEAR_STEPS = 10, 1500, 100
SCAN_SEEDS, SCAN_STEPS, FEWEST_SCAN_STEPS = 6, 160, 8
FEWEST = 2

QUESTION = (
    "Every laboratory and every scanner stores the same thing with a scale and an offset of its own. A norm "
    "that takes its statistics from a batch of one site takes these away while it trains, and has other "
    "statistics at inference. What of this does batch renormalization mend: the discrepancy between training "
    "and inference, or the sites' effect itself? And what do batches that mix sites, statistics of each "
    "site, norms without statistics, and harmonized input do, at the sites that were trained on and at "
    "others?"
)


def study_sites(seed: int, scale: float, progress: Progress, data: Path | None = None) -> Outcome:
    """Draw sites, train, measure and judge.

    Args:
        seed: draws everything.
        scale: times as many seeds as the default, at least two; what would be fewer than that shortens the
            trainings.
        progress: told how far it is.
        data: a dataset whose scans take the place of the phantom's.

    Raises:
        DataError: the dataset is not what it must be; see `read_anatomies`.
    """
    anatomies: Anatomies = Heads() if data is None else read_anatomies(data, NEEDED)
    linear, linear_steps = choose_size(LINEAR_SEEDS, LINEAR_STEPS, FEWEST_LINEAR_STEPS, scale)
    scans, scan_steps = choose_size(SCAN_SEEDS, SCAN_STEPS, FEWEST_SCAN_STEPS, scale)
    trials = [LinearTrial(arm, number, seed, linear_steps) for number in range(linear) for arm in LINEAR_ARMS]
    rows = do_all(train_linear, trials, "Linear model", progress)
    cohorts = do_all(partial(_draw, anatomies, seed), range(scans), "Scans", progress)
    pieces = [(ScanTrial(arm, scan_steps), cohort) for cohort in cohorts for arm in SCAN_ARMS]
    results = do_all(train_on_scans, pieces, "Segmentation", progress)
    rows += [result.row for result in results]
    found = Measurements(rows)
    claims = judge(found)
    predictions = {arm.name: result.shown for arm, result in zip(SCAN_ARMS, results, strict=False)}
    return Outcome(
        study="sites",
        title="Several sites: what a norm does with scanners that differ",
        question=QUESTION,
        settings={
            "seed": seed,
            "scale": scale,
            **_describe(linear, linear_steps, scans, scan_steps),
            "anatomies": anatomies.name,
        },
        claims=claims,
        rows=rows,
        sections=make_sections(found, claims, Shown(anatomies.name, cohorts[0], predictions)),
    )


def choose_size(seeds: int, steps: int, fewest_steps: int, scale: float) -> tuple[int, int]:
    """Seeds and steps at a scale."""
    factor = min(1.0, seeds * scale / FEWEST)
    return max(FEWEST, round(seeds * scale)), max(fewest_steps, round(steps * factor))


def _draw(anatomies: Anatomies, seed: int, number: int) -> Cohort:
    return draw_cohort(anatomies, number, seed)


def _describe(linear: int, linear_steps: int, scans: int, scan_steps: int) -> dict[str, Any]:
    return {
        "linear model: seeds": linear,
        "linear model: steps": linear_steps,
        "linear model: batch size": linear_training.BATCH_SIZE,
        "linear model: momentum of running statistics": linear_training.MOMENTUM,
        "scans: seeds": scans,
        "scans: steps": scan_steps,
        "scans: batch size": segmentation.BATCH_SIZE,
        "scans: channels": list(segmentation.CHANNELS),
        "scans: momentum of running statistics": segmentation.MOMENTUM,
    }
