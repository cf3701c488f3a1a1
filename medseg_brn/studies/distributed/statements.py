"""The study's claims: each stated, with its bound, before anything was measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medseg_brn.studies.claims import Bounds, Claim, claim_mean, claim_number
from medseg_brn.studies.distributed.arms import (
    LOCAL_BATCH,
    LOCAL_RENORM,
    MERGED,
    MERGED_1,
    MERGED_10,
    SHARDS,
    SYNC_BATCH,
    Arm,
    Shards,
)
from medseg_brn.studies.distributed.counting import Traffic
from medseg_brn.studies.distributed.training import COUNTED_FROM, COUNTED_TO, TrialResult

COUNTED_STEPS = COUNTED_TO - COUNTED_FROM + 1
MOST_BEHIND_SD = 2.0


@dataclass(frozen=True)
class Measurements:
    """All that was measured."""

    results: Sequence[TrialResult]
    traffic: Mapping[tuple[Arm, int], Traffic]
    """Of the first worker in `COUNTED_STEPS` steps, by arm and number of workers."""
    norm_layers: int

    @property
    def worker_counts(self) -> list[int]:
        """Numbers of workers, ascending."""
        return sorted({workers for _, workers in self.traffic})

    def select(self, arm: Arm, shards: Shards, workers: int) -> list[TrialResult]:
        """One result per repetition, in their order."""
        return sorted(
            (
                result
                for result in self.results
                if (result.trial.arm, result.trial.shards, result.workers) == (arm, shards, workers)
            ),
            key=lambda result: result.trial.repetition,
        )

    def read(self, arm: Arm, shards: Shards, workers: int, attribute: str) -> np.ndarray:
        """One number per repetition."""
        return np.array([getattr(result, attribute) for result in self.select(arm, shards, workers)])

    def extra_per_step(self, arm: Arm, workers: int, of: Callable[[Traffic], int]) -> float:
        """What an arm's norms add per step to the collectives or bytes of the gradients.

        Those of local BatchNorm, which sends nothing else, are the gradients'.
        """
        return (of(self.traffic[arm, workers]) - of(self.traffic[LOCAL_BATCH, workers])) / COUNTED_STEPS


def make_claims(found: Measurements) -> list[Claim]:
    """All claims, judged."""
    return [
        *_claim_collectives(found),
        *_claim_bytes(found),
        *_claim_divergence(found),
        *_claim_iid(found),
        *_claim_skewed(found),
    ]


def _claim_collectives(found: Measurements) -> list[Claim]:
    two_a_layer = 2 * found.norm_layers
    stated = (
        (SYNC_BATCH, two_a_layer, f"two per norm layer and step, {two_a_layer} in all"),
        (MERGED_1, 1.0, "one per step, whatever the number of layers"),
        (MERGED_10, 0.1, "one in ten steps"),
    )
    return [
        claim_number(
            f"collectives, {arm.name}",
            f"{told}, beyond those of the gradients",
            _mean_over_workers(found, arm, lambda traffic: traffic.total_collectives),
            Bounds(number - 1e-9, number + 1e-9),
            f"counted in {COUNTED_STEPS} steps, with {_list(found.worker_counts)} workers",
        )
        for arm, number, told in stated
    ]


def _claim_bytes(found: Measurements) -> list[Claim]:
    synchronized = _mean_over_workers(found, SYNC_BATCH, lambda traffic: traffic.total_bytes)
    return [
        claim_number(
            f"bytes, {arm.name}",
            f"at most 1/{arm.merge_every} of what SyncBatchNorm sends beyond the gradients"
            if arm.merge_every != 1
            else "no more than SyncBatchNorm sends beyond the gradients",
            _mean_over_workers(found, arm, lambda traffic: traffic.total_bytes) / synchronized,
            Bounds(below=1 / (arm.merge_every or 1) + 1e-9),
            "as a share of SyncBatchNorm's",
        )
        for arm in MERGED
    ]


def _claim_divergence(found: Measurements) -> list[Claim]:
    after = [
        divergence
        for result in found.results
        if result.trial.arm in MERGED
        for step, divergence in zip(result.watched_steps, result.divergence_after, strict=True)
        if step % (result.trial.arm.merge_every or 1) == 0
    ]
    claims = [
        claim_number(
            "workers' statistics after a merge",
            "the same in all workers, to the last bit: a divergence of 0",
            max(after, default=float("nan")),
            Bounds(-1e-300, 1e-300),
            f"largest of {len(after)} merges",
        )
    ]
    for workers in found.worker_counts:
        for shards in SHARDS:
            own, merged = (
                np.array([late_divergence(one) for one in found.select(arm, shards, workers)])
                for arm in (LOCAL_RENORM, MERGED_10)
            )
            claims.append(
                claim_mean(
                    f"divergence between merges, {shards}, {workers} workers",
                    "merged every 10 steps, the workers' statistics stay closer than never merged: the"
                    " ratio's logarithm lies below 0",
                    np.log(merged / own),
                    Bounds(below=0),
                    "natural logarithm, second half of the run, paired by seed",
                )
            )
    return claims


def _claim_iid(found: Measurements) -> list[Claim]:
    claims = []
    for workers in found.worker_counts:
        for arm in MERGED:
            merged, synchronized = (found.read(one, "iid", workers, "dice") for one in (arm, SYNC_BATCH))
            claims.append(
                claim_mean(
                    f"iid, {arm.name} against SyncBatchNorm, {workers} workers",
                    f"its Dice trails by less than {MOST_BEHIND_SD:g} seed standard deviations: the"
                    f" difference in these lies above -{MOST_BEHIND_SD:g}",
                    (merged - synchronized) / pool_seed_sd(merged, synchronized),
                    Bounds(above=-MOST_BEHIND_SD),
                    f"Dice {merged.mean():.3f} and {synchronized.mean():.3f}, paired by seed; the standard"
                    " deviation is that over seeds, of both arms",
                )
            )
    return claims


def _claim_skewed(found: Measurements) -> list[Claim]:
    compared = (
        *((arm, LOCAL_BATCH, "dice", "local BatchNorm") for arm in MERGED),
        (MERGED_1, LOCAL_BATCH, "dice_own", "local BatchNorm with each worker's own statistics"),
        (MERGED_1, LOCAL_RENORM, "dice", "local renorm"),
    )
    claims = []
    for workers in found.worker_counts:
        for arm, other, attribute, told in compared:
            merged = found.read(arm, "skewed", workers, "dice")
            theirs = found.read(other, "skewed", workers, attribute)
            claims.append(
                claim_mean(
                    f"skewed, {arm.name} against {told}, {workers} workers",
                    "its Dice is higher: the difference lies above 0",
                    merged - theirs,
                    Bounds(above=0),
                    f"Dice {merged.mean():.3f} and {theirs.mean():.3f}, paired by seed",
                )
            )
    return claims


def late_divergence(result: TrialResult) -> float:
    """Mean divergence before merges over the second half of the run."""
    half = result.trial.steps / 2
    late = zip(result.watched_steps, result.divergence_before, strict=True)
    return float(np.mean([divergence for step, divergence in late if step > half]))


def pool_seed_sd(one: np.ndarray, other: np.ndarray) -> float:
    """Standard deviation over seeds within two arms; NaN for less than two seeds, or without spread."""
    if one.size < 2:
        return float("nan")
    pooled = float(np.sqrt((one.var(ddof=1) + other.var(ddof=1)) / 2))
    return pooled if pooled > 0 else float("nan")


def _mean_over_workers(found: Measurements, arm: Arm, of: Callable[[Traffic], int]) -> float:
    return float(np.mean([found.extra_per_step(arm, workers, of) for workers in found.worker_counts]))


def _list(numbers: Sequence[int]) -> str:
    return " and with ".join(map(str, numbers))
