"""The study `distributed`: what is done, and the page that shows it."""

from typing import Any

import torch

from medseg_brn.models.architecture import build_network
from medseg_brn.studies.distributed.arms import ARMS, LOCAL_BATCH, SHARDS, Arm
from medseg_brn.studies.distributed.counting import Traffic
from medseg_brn.studies.distributed.page import make_sections
from medseg_brn.studies.distributed.shards import (
    CROP,
    CROPS_PER_SCAN,
    HELD_OUT_SCANS,
    MIXED_SHARE,
    SHAPE,
    TRAINING_SCANS,
    VOXEL_MM,
)
from medseg_brn.studies.distributed.statements import Measurements, make_claims
from medseg_brn.studies.distributed.training import (
    CHANNELS,
    COUNTED_TO,
    LEARNING_RATE,
    MOMENTUM,
    TARGETS,
    Trial,
    TrialResult,
    read_statistics,
)
from medseg_brn.studies.distributed.workers import Counted, choose_backend, train_all
from medseg_brn.studies.outcome import Outcome, Progress, Row

REPETITIONS = {2: 5, 4: 3}
"""Seeds by the number of workers."""
FEWEST = 2
STEPS, SHORTEST = 120, 20

QUESTION = (
    "Several workers train one network, each on its own scans, one crop at a time. SyncBatchNorm lets every "
    "layer of every step wait for all workers' statistics, twice. Renorm normalizes by a memory, which the "
    "workers may merge in one message that nobody waits for, at every step or every tenth. Is that as good "
    "where the scans are dealt by chance, and better than BatchNorm by oneself where they are not? Processes"
    " train for real and every message is counted."
)


def study_distributed(seed: int, scale: float, progress: Progress) -> Outcome:
    """Trains with 2 and with 4 workers, on iid and on skewed shards, five ways to normalize.

    Workers talk by gloo, or by NCCL where each has a GPU of its own.

    Args:
        seed: of everything that is drawn.
        scale: times as many repetitions as the default; at least 2, of fewer steps where it asks for less.
        progress: told of each stage.
    """
    steps = choose_steps(scale)
    results: list[TrialResult] = []
    traffic: dict[tuple[Arm, int], Traffic] = {}
    repetitions = {workers: max(FEWEST, round(count * scale)) for workers, count in REPETITIONS.items()}
    for workers, count in repetitions.items():
        trials = list_trials(seed, count, steps)
        done = 0
        stage = f"{workers} workers"
        progress(stage, 0, len(trials))

        def take(result: TrialResult | Counted, stage: str = stage, total: int = len(trials)) -> None:
            nonlocal done
            if isinstance(result, TrialResult):
                results.append(result)
            else:
                trial, workers, counted = result
                traffic[trial.arm, workers] = counted
            done += 1
            progress(stage, done, total)

        train_all(trials, workers, take)
    found = Measurements(results, traffic, _count_layers())
    return Outcome(
        "distributed",
        "Data-parallel training: merged memory against synchronized batches",
        QUESTION,
        {"seed": seed, "scale": scale, "steps": steps, **_describe(repetitions)},
        make_claims(found),
        _list_rows(found),
        make_sections(found),
    )


def choose_steps(scale: float) -> int:
    """Steps of a run: fewer where even the fewest repetitions are more work than the scale asks for."""
    share = scale * max(REPETITIONS.values()) / FEWEST
    return max(SHORTEST, round(STEPS * min(1.0, share)))


def list_trials(seed: int, repetitions: int, steps: int) -> list[Trial]:
    """Short ones to count messages, one per arm; then all arms, side by side, for every repetition."""
    # One step more than is counted, for the last one merges in every arm.
    counted = [Trial(arm, "iid", 0, seed, COUNTED_TO + 1, counted=True) for arm in ARMS]
    return counted + [
        Trial(arm, shards, repetition, seed, steps)
        for repetition in range(repetitions)
        for shards in SHARDS
        for arm in ARMS
    ]


def _make_network() -> Any:
    with torch.device("meta"):
        return build_network(Trial(LOCAL_BATCH, "iid", 0, 0, 1).experiment.network, 1, TARGETS.num_outputs)


def _count_layers() -> int:
    return sum(name.endswith("running_mean") for name, _ in _make_network().named_buffers())


def _describe(repetitions: dict[int, int]) -> dict[str, Any]:
    network = _make_network()
    return {
        "seeds": ", ".join(f"{count} with {workers} workers" for workers, count in repetitions.items()),
        "backend": ", ".join(f"{choose_backend(one)} with {one} workers" for one in repetitions),
        "network": f"3D U-Net with {_list(CHANNELS)} channels, {_count_layers()} norm layers with"
        f" {read_statistics(network).shape[1]} channels in all",
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "scans": f"{TRAINING_SCANS} to train on, {HELD_OUT_SCANS} held out, of {_list(SHAPE)} voxels of"
        f" {VOXEL_MM:g} mm: phantom heads, in which the brain is to be found",
        "crops": f"{CROPS_PER_SCAN} a scan, of {CROP}³ voxels",
        "share of skewed shards dealt by chance": MIXED_SHARE,
        "batch": "one crop a step and worker",
        "optimizer": f"AdamW, learning rate {LEARNING_RATE:g}",
        "momentum of the statistics": MOMENTUM,
    }


def _list(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


def _list_rows(found: Measurements) -> list[Row]:
    rows: list[Row] = []
    for (arm, workers), traffic in found.traffic.items():
        for name, collectives in traffic.collectives.items():
            counted: Row = {"collective": name, "collectives": collectives, "bytes": traffic.bytes[name]}
            rows.append({"part": "traffic", "workers": workers, "arm": arm.name, **counted})
    for result in found.results:
        trial = result.trial
        about: Row = {
            "workers": result.workers,
            "arm": trial.arm.name,
            "shards": trial.shards,
            "seed": trial.repetition,
        }
        measured = ("dice", "dice_own", "dice_population", "step_seconds")
        rows.append({"part": "network", **about, **{name: getattr(result, name) for name in measured}})
        for step, before, after in zip(
            result.watched_steps, result.divergence_before, result.divergence_after, strict=True
        ):
            watched = {"step": step, "divergence_before": before, "divergence_after": after}
            rows.append({"part": "divergence", **about, **watched})
    return rows
