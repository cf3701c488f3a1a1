"""One worker's part in training one network: the toolkit's own loop, watched."""

import copy
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from medseg_brn.cases.targets import Targets
from medseg_brn.config import Experiment, NetworkConfig, TrainingConfig
from medseg_brn.evaluation.overlap import compute_dice_from_confusion, count_confusion
from medseg_brn.networks.surgery import recalibrate
from medseg_brn.patches.stream import PatchBatch
from medseg_brn.probes.statistics import worker_divergence
from medseg_brn.reports.step_records import StepRecord
from medseg_brn.studies.distributed.arms import SHARDS, Arm, Shards
from medseg_brn.studies.distributed.counting import Traffic, TrafficCounter
from medseg_brn.studies.distributed.shards import CLASS_NAMES, Cohort, deal_crops
from medseg_brn.studies.distributed.sync_batch_norm import synchronize_batch_norms
from medseg_brn.training.distributed import Processes
from medseg_brn.training.loop import run_steps
from medseg_brn.training.losses import make_loss
from medseg_brn.training.state import TrainingState, make_state

CHANNELS = (6, 12, 24)
MOMENTUM = 0.05
LEARNING_RATE = 0.01
WATCH_EVERY = 5
POPULATION_BATCH = 32
COUNTED_FROM, COUNTED_TO = 11, 20
"""Steps whose collectives are counted: ten, after the first ones, in which gradients are put into groups."""
TARGETS = Targets(CLASS_NAMES)


@dataclass(frozen=True)
class Trial:
    """One network to train."""

    arm: Arm
    shards: Shards
    repetition: int
    seed: int
    steps: int
    counted: bool = False
    """Whether it is trained to count what workers send, and not evaluated."""

    @property
    def experiment(self) -> Experiment:
        """As the toolkit's command line would have it from a file."""
        draws = np.random.SeedSequence((self.seed, self.repetition, 1))
        return Experiment(
            seed=int(draws.generate_state(1)[0]),
            network=NetworkConfig(channels=CHANNELS, norm=self.arm.norm, momentum=MOMENTUM),
            training=TrainingConfig(
                steps=self.steps,
                batch_size=1,
                optimizer="adamw",
                learning_rate=LEARNING_RATE,
                ema_decay=None,
                merge_statistics_every=self.arm.merge_every,
                checkpoint_every=self.steps,
            ),
        )


@dataclass(frozen=True)
class TrialResult:
    """What came out of a trial; Dice is the mean over structures of the mean over held-out scans."""

    trial: Trial
    workers: int
    dice: float
    """Of the network as it would be saved, with the workers' running statistics merged."""
    dice_own: float
    """With a worker's statistics as they were before the last merge; mean over workers."""
    dice_population: float
    """With the statistics of all workers' crops, measured anew with the final weights."""
    step_seconds: float
    """Median."""
    watched_steps: list[int]
    divergence_before: list[float]
    """Of the workers' statistics at those steps, before a merge if there is one; nats, mean over pairs."""
    divergence_after: list[float]


@dataclass
class _Watch:
    """Running statistics of every few steps, before and after a merge, and how long steps took."""

    network: nn.Module
    latest: Tensor | None = None
    before: list[Tensor] = field(default_factory=list)
    after: list[Tensor] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def after_pass(self, *_: object) -> None:
        self.latest = read_statistics(self.network)

    def after_step(self, record: StepRecord) -> None:
        self.seconds.append(record.seconds)
        if record.step % WATCH_EVERY == 0:
            assert self.latest is not None
            self.before.append(self.latest)
            self.after.append(read_statistics(self.network))


def train(trial: Trial, cohort: Cohort, processes: Processes, device: torch.device) -> TrialResult | None:
    """Train with the other workers, who call this too; the first is told what came out, the others None."""
    state = _make_state(trial, device)
    own = _deal(trial, cohort, processes)
    watch = _Watch(state.network)
    _run(trial, state, _draw_batches(trial, cohort, own, processes.rank), processes, watch)
    assert watch.latest is not None
    dice_own = evaluate(_with_statistics(state.network, watch.latest), cohort)
    dices_own = _gather(torch.tensor(dice_own, dtype=torch.float64), device)
    courses = _gather(torch.stack([torch.stack(watch.before), torch.stack(watch.after)]), device)
    if not processes.is_first:
        return None
    population = copy.deepcopy(state.network)
    recalibrate(population, (crops.to(device) for crops in cohort.crops.split(POPULATION_BATCH)))
    before, after = (
        [compute_divergence(courses[:, moment, step]) for step in range(courses.shape[2])]
        for moment in (0, 1)
    )
    return TrialResult(
        trial,
        processes.world_size,
        evaluate(state.network, cohort),
        float(dices_own.mean()),
        evaluate(population, cohort),
        statistics.median(watch.seconds),
        [WATCH_EVERY * (number + 1) for number in range(len(before))],
        before,
        after,
    )


def count_traffic(trial: Trial, cohort: Cohort, processes: Processes, device: torch.device) -> Traffic:
    """What this worker sends in steps `COUNTED_FROM` to `COUNTED_TO` of a trial of more steps than that."""
    state = _make_state(trial, device)
    batches = _draw_batches(trial, cohort, _deal(trial, cohort, processes), processes.rank)
    counter = TrafficCounter()
    watch = _CountingWatch(state.network, counter)
    with counter:
        _run(trial, state, batches, processes, watch)
    return watch.counted


class _CountingWatch(_Watch):
    """Lets a counter see some steps."""

    def __init__(self, network: nn.Module, counter: TrafficCounter) -> None:
        super().__init__(network)
        self.counted = Traffic()
        self._counter = counter

    def after_step(self, record: StepRecord) -> None:
        if record.step == COUNTED_FROM - 1:
            self._counter.traffic = Traffic()
        if record.step == COUNTED_TO:
            self.counted = self._counter.traffic
            self._counter.traffic = Traffic()


def read_statistics(network: nn.Module) -> Tensor:
    """Running means and variances of all layers, (2, C)."""
    buffers = dict(network.named_buffers())
    names = [name for name in buffers if name.endswith("running_mean")]
    means = [buffers[name] for name in names]
    variances = [buffers[name.removesuffix("mean") + "var"] for name in names]
    return torch.stack([torch.cat(means), torch.cat(variances)])


def compute_divergence(statistics_of_workers: Tensor) -> float:
    """Mean over pairs of workers of the symmetric Kullback-Leibler divergence, channels alike.

    Args:
        statistics_of_workers: (W, 2, C) means and variances.
    """
    pairs = combinations(statistics_of_workers, 2)
    return statistics.fmean(worker_divergence(*one, *other) for one, other in pairs)


@torch.no_grad()
def evaluate(network: nn.Module, cohort: Cohort) -> float:
    """Dice on the held-out scans in evaluation mode: per structure the mean over scans, then their mean."""
    network.eval()
    device = next(network.parameters()).device
    predictions = network(cohort.scans.to(device)).argmax(1).cpu().numpy()
    dice = []
    for prediction, label_map in zip(predictions, cohort.scan_labels.numpy(), strict=True):
        confusion = count_confusion(prediction, label_map, TARGETS.num_classes)
        dice.append(compute_dice_from_confusion(confusion, TARGETS.structures.values()))
    network.train()
    columns = np.array(dice).T
    return float(np.mean([np.nanmean(column) for column in columns if not np.isnan(column).all()]))


def _make_state(trial: Trial, device: torch.device) -> TrainingState:
    state = make_state(trial.experiment, 1, TARGETS.num_outputs, device)
    if trial.arm.synchronized:
        synchronize_batch_norms(state.network, device)
    return state


def _deal(trial: Trial, cohort: Cohort, processes: Processes) -> np.ndarray:
    """This worker's crops."""
    rng = np.random.default_rng((trial.seed, trial.repetition, 2))
    return deal_crops(cohort.foreground_shares(), processes.world_size, trial.shards, rng)[processes.rank]


def _draw_batches(trial: Trial, cohort: Cohort, own: np.ndarray, rank: int) -> Iterator[PatchBatch]:
    """Single crops of the worker's own, each once in an epoch, the same for all arms."""
    rng = np.random.default_rng((trial.seed, trial.repetition, 3, SHARDS.index(trial.shards), rank))
    while True:
        for index in rng.permutation(own):
            image, label = cohort.crops[index], cohort.crop_labels[index]
            yield PatchBatch(image=image[None], label=label[None], cases=[f"crop {index}"])


def _run(
    trial: Trial,
    state: TrainingState,
    batches: Iterator[PatchBatch],
    processes: Processes,
    watch: _Watch,
) -> None:
    run_steps(
        state,
        batches,
        trial.experiment,
        0,
        loss_function=make_loss(TARGETS),
        dtype=torch.float32,
        processes=processes,
        after_pass=watch.after_pass,
        after_step=watch.after_step,
    )


def _with_statistics(network: nn.Module, found: Tensor) -> nn.Module:
    """A copy of the network with other running statistics, (2, C)."""
    twin = copy.deepcopy(network)
    layers = [layer for layer in twin.modules() if getattr(layer, "running_mean", None) is not None]
    sizes = [layer.running_mean.numel() for layer in layers]  # type: ignore[operator]
    for layer, mean, var in zip(layers, *(row.split(sizes) for row in found), strict=True):
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(var)
    return twin


def _gather(own: Tensor, device: torch.device) -> Tensor:
    """Every worker's tensor, stacked in the order of ranks."""
    own = own.to(device)
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, own)
    return torch.stack(gathered).cpu()
