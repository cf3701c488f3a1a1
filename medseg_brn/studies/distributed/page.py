"""The study's page: Dice, statistics that drift apart, and what is sent."""

import numpy as np

from medseg_brn.comparison.statistics import estimate_scalar
from medseg_brn.reports.page import (
    Block,
    Cell,
    Column,
    Figure,
    Gallery,
    Paragraph,
    Section,
    Table,
)
from medseg_brn.studies.distributed.arms import (
    ARMS,
    LOCAL_BATCH,
    LOCAL_RENORM,
    MERGED_1,
    MERGED_10,
    SHARDS,
    Shards,
)
from medseg_brn.studies.distributed.pictures import draw_courses
from medseg_brn.studies.distributed.statements import COUNTED_STEPS, Measurements, late_divergence
from medseg_brn.studies.pictures import draw_series


def make_sections(found: Measurements) -> list[Section]:
    """Three sections, which follow the claims."""
    return [
        Section("Dice on scans that no worker saw", _describe_dice(found)),
        Section("Statistics that drift apart", _describe_divergence(found)),
        Section("What is sent, and how long a step takes", _describe_traffic(found)),
    ]


def _describe_dice(found: Measurements) -> list[Block]:
    explanation = (
        "Every worker trains on crops of its own, one a step, and gradients are averaged: the weights are "
        "the same in all workers. Iid shards are dealt by chance. Skewed ones are sorted by how much "
        "foreground a crop holds, four fifths of each shard: the first worker sees mostly background, the "
        "last one mostly brain. All arms of one seed start from the same weights and see the same crops in "
        "the same order. Each dot is a seed, with heads of its own; bars are 95 % intervals over seeds."
    )
    meaning = (
        "The table tells where a difference comes from. Dice is that of the network as the toolkit saves it,"
        " with the workers' running statistics merged at the end in every arm. With a worker's own "
        "statistics, not merged, the arms that never merge show what each worker would have deployed. With "
        "the population's, measured anew on all workers' crops with the final weights, what remains between "
        "the arms is in the weights and no longer in the running statistics."
    )
    return [
        Paragraph(explanation),
        Gallery(
            [_draw_dice(found, shards, workers) for workers in found.worker_counts for shards in SHARDS],
            wide=True,
        ),
        Paragraph(meaning),
        _tabulate_dice(found),
    ]


def _draw_dice(found: Measurements, shards: Shards, workers: int) -> Figure:
    groups = {arm.name: found.read(arm, shards, workers, "dice") for arm in ARMS}
    lowest, highest = min(map(np.min, groups.values())), max(map(np.max, groups.values()))
    margin = 0.05 * (highest - lowest) + 0.01
    return draw_series(
        {"Dice": groups},
        label=f"Dice, {shards} shards, {workers} workers",
        caption=f"{shards.capitalize()} shards, {workers} workers, one crop a step and worker.",
        limits=(max(0.0, lowest - margin), min(1.0, highest + margin)),
    )


def _tabulate_dice(found: Measurements) -> Table:
    rows: list[list[Cell]] = []
    for workers in found.worker_counts:
        for shards in SHARDS:
            for arm in ARMS:
                dice, own, population = (
                    found.read(arm, shards, workers, name) for name in ("dice", "dice_own", "dice_population")
                )
                spread = float(dice.std(ddof=1)) if dice.size > 1 else None
                rows.append(
                    [workers, shards, arm.name, dice.mean(), spread, own.mean(), population.mean(), dice.size]
                )
    numbers = ("Dice", "sd over seeds", "own statistics", "population's statistics")
    return Table(
        "Mean Dice over seeds, by the statistics that the trained network is evaluated with",
        [
            Column("Workers"),
            Column("Shards"),
            Column("Arm"),
            *(Column(name, ".3f") for name in numbers),
            Column("Seeds"),
        ],
        rows,
    )


def _describe_divergence(found: Measurements) -> list[Block]:
    explanation = (
        "Symmetric Kullback-Leibler divergence of the workers' running statistics, mean over pairs of "
        "workers and channels, before a merge where one is due. With renorm the statistics are part of the "
        "training forward: workers whose statistics differ train different functions with the same weights. "
        "A merge at every step leaves the difference that one batch makes; one in ten steps lets it grow ten"
        " times before it is taken back to 0. SyncBatchNorm's statistics never differ, and BatchNorm's local"
        " ones do not enter training, only evaluation."
    )
    figures = []
    for workers in found.worker_counts:
        for shards in SHARDS:
            courses = {}
            for arm in (LOCAL_BATCH, LOCAL_RENORM, MERGED_10, MERGED_1):
                results = found.select(arm, shards, workers)
                courses[arm.name] = (results[0].watched_steps, [one.divergence_before for one in results])
            figures.append(
                draw_courses(
                    courses,
                    title=f"Divergence in nats, {shards} shards, {workers} workers",
                    caption="Geometric mean over seeds; bands from the least to the most.",
                )
            )
    rows: list[list[Cell]] = [
        [
            workers,
            shards,
            arm.name,
            *(float(np.mean([late_divergence(one) for one in found.select(arm, shards, workers)])),),
        ]
        for workers in found.worker_counts
        for shards in SHARDS
        for arm in ARMS
    ]
    columns = [Column("Workers"), Column("Shards"), Column("Arm"), Column("Divergence", ".3g")]
    caption = "Divergence in nats before merges, mean over the second half of the run and over seeds"
    return [Paragraph(explanation), Gallery(figures), Table(caption, columns, rows)]


def _describe_traffic(found: Measurements) -> list[Block]:
    explanation = (
        "Collectives and bytes are counted at torch's collective operators in one worker, during "
        f"{COUNTED_STEPS} steps in the middle of a short run; those of the gradients come first, the norms' "
        "are what an arm has beyond local BatchNorm. Bytes are what a worker hands over. A merge takes two "
        "numbers a channel and two a layer, SyncBatchNorm four a channel and one a layer: half the bytes, "
        "and the merge is one message for which nobody waits until the step ends, where SyncBatchNorm waits "
        "twice in every layer. Times are of processes that share one machine, with no network between them, "
        "and of a network so small that a message costs as much as a layer: they show the cost of waiting, "
        "not that of a large network on a cluster."
    )
    rows: list[list[Cell]] = []
    for workers in found.worker_counts:
        for arm in ARMS:
            traffic = found.traffic[arm, workers]
            seconds = np.concatenate([found.read(arm, shards, workers, "step_seconds") for shards in SHARDS])
            estimate = estimate_scalar(1000 * seconds)
            rows.append(
                [
                    workers,
                    arm.name,
                    traffic.total_collectives / COUNTED_STEPS,
                    found.extra_per_step(arm, workers, lambda one: one.total_collectives),
                    traffic.total_bytes / COUNTED_STEPS,
                    found.extra_per_step(arm, workers, lambda one: one.total_bytes),
                    estimate.effect,
                    f"{estimate.low:.1f} to {estimate.high:.1f}",
                ]
            )
    columns = [
        Column("Workers"),
        Column("Arm"),
        Column("Collectives a step", ".3g"),
        Column("of the norms", ".3g"),
        Column("Bytes a step", ",.0f"),
        Column("of the norms", ",.0f"),
        Column("Milliseconds a step", ".1f"),
        Column("95 % interval"),
    ]
    return [Paragraph(explanation), Table("Per step and worker", columns, rows)]
