"""The training loop: patches in, optimizer steps out."""

import math
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medseg_brn.config import Experiment, TrainingConfig
from medseg_brn.errors import DataError, DivergenceError, TrainingError
from medseg_brn.networks.domain_norm import set_sites
from medseg_brn.networks.normalization import freeze_statistics, set_renorm_step
from medseg_brn.patches.stream import MicroBatches, PatchBatch, PatchStream, collate_patches
from medseg_brn.reports.step_records import StepRecord
from medseg_brn.training.adversarial import Adversary, start_adversary
from medseg_brn.training.diagnosis.divergence import (
    Cause,
    Divergence,
    find_spoilt_statistics,
    trace_divergence,
)
from medseg_brn.training.distributed import Processes, average_windows, share_gradients
from medseg_brn.training.losses import Loss
from medseg_brn.training.parts import freeze_parts
from medseg_brn.training.schedules import (
    checkpoint_is_due,
    compute_learning_rate,
    compute_renorm_schedule,
    merge_is_due,
    statistics_are_frozen,
)
from medseg_brn.training.state import TrainingState
from medseg_brn.training.statistics_merge import StatisticsMerge

Observer = Callable[[PatchBatch, Tensor, Tensor], None]
"""Told of a batch, its (finest) logits and its classes on the network's device."""


def make_loader(
    stream: PatchStream, experiment: Experiment, first_step: int, processes: Processes
) -> Iterator[PatchBatch]:
    """Batches of every forward pass from optimizer step `first_step` to the run's end.

    Raises:
        DataError: a case cannot be read; the message names it.
        TrainingError: a loader process was killed.
    """
    training, workers = experiment.training, experiment.patches.workers
    indices = MicroBatches(
        first_step * training.accumulation,
        training.steps * training.accumulation,
        training.batch_size,
        processes.rank,
        processes.world_size,
    )
    # The platform's own way of starting processes: in a process that trains one of several runs side by side,
    # the default is another one, which the loader cannot use.
    context = multiprocessing.get_context(multiprocessing.get_all_start_methods()[0])
    loader: Iterable[PatchBatch | DataError] = DataLoader(
        stream,
        batch_sampler=indices,
        num_workers=workers,
        collate_fn=collate_patches,
        prefetch_factor=4 if workers else None,
        multiprocessing_context=context if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
    try:
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise TrainingError(
            f"A loader process died ({error}); set patches.workers=0 to load in the training process"
        ) from None


def run_steps(
    state: TrainingState,
    batches: Iterator[PatchBatch],
    experiment: Experiment,
    first_step: int,
    *,
    loss_function: Loss,
    dtype: torch.dtype,
    processes: Processes,
    before_step: Callable[[int], None] | None = None,
    after_step: Callable[[StepRecord], None] | None = None,
    after_pass: Observer | None = None,
    on_divergence: Callable[[Divergence], None] | None = None,
) -> None:
    """Train from `first_step` to the end.

    `before_step` is told of the number (from 1) of each step that begins, `after_step` of each finished one,
    `after_pass` of each forward and backward pass, `on_divergence` of what is then raised.

    Raises:
        DivergenceError: loss, gradient or running statistics are not finite; the message names the step, the
            cases, and the layer in which it began. The optimizer has not made the step.
    """
    training = experiment.training
    schedule = compute_renorm_schedule(experiment.network, training.steps)
    network = share_gradients(state.network, processes)
    merge = _prepare_merge(state, training, processes)
    if state.adversary is not None:
        state.adversary.join(processes)
    state.network.train()
    for step in range(first_step, training.steps):
        start = time.perf_counter()
        waited = 0.0
        set_renorm_step(state.network, step, schedule)
        if statistics_are_frozen(step, training):
            freeze_statistics(state.network)
        freeze_parts(state.network, training.learning_rate_factors)
        adversary = start_adversary(state.adversary, step)
        if before_step is not None:
            before_step(step + 1)
        learning_rate = compute_learning_rate(step, training)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate * group["factor"]
        losses, trained = [], []
        for number in range(1, training.accumulation + 1):
            before = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - before
            trained.append(batch)
            merges_now = number == training.accumulation and merge_is_due(step + 1, training)
            after_forward = partial(merge.note_pass, merges_now)
            passing = (loss_function, training.accumulation, dtype, adversary, after_forward, after_pass)
            losses.append(_backward(network, batch, *passing))
        loss, norm = sum(losses) / len(losses), _clip_gradients(state.network, training.gradient_clip)
        cause = _find_cause(state, trained, loss, norm, loss_function, dtype, adversary)
        if cause is not None:
            _raise_divergence(step + 1, loss, norm, trained, cause, on_divergence)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        merge.finish()
        if adversary is not None:
            adversary.finish()
        if state.averaged is not None:
            state.averaged.update_parameters(state.network)
            merge.renew()
        if checkpoint_is_due(step + 1, training):
            average_windows(_list_networks(state), processes)
        adversarial = {} if adversary is None else adversary.read_losses()
        seconds = time.perf_counter() - start
        if after_step is not None:
            after_step(
                StepRecord(step + 1, loss, learning_rate, norm, seconds, waited / seconds, **adversarial)
            )


def _prepare_merge(state: TrainingState, training: TrainingConfig, processes: Processes) -> StatisticsMerge:
    """Merges of the network's statistics, and of the averaged one's where they come to differ."""
    # Merged at every step, the averaged network's statistics never differ between processes.
    averaged = None if training.merge_statistics_every == 1 else state.averaged
    return StatisticsMerge(state.network, processes, averaged)


def _backward(
    network: nn.Module,
    batch: PatchBatch,
    loss_function: Loss,
    accumulation: int,
    dtype: torch.dtype,
    adversary: Adversary | None,
    after_forward: Callable[[], None],
    observe: Observer | None,
) -> float:
    """Add one batch's gradient; return its loss, without what the adversary adds."""
    device = next(network.parameters()).device
    image = batch["image"].to(device, non_blocking=True, memory_format=torch.channels_last_3d)
    classes = batch["label"].to(device, non_blocking=True)
    set_sites(network, batch.get("sites", ()))
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        logits = network(image)
    after_forward()
    finest = logits if isinstance(logits, Tensor) else logits[0]
    loss = loss_function(logits, classes)
    lowered = loss
    if adversary is not None:
        lowered = loss + adversary.challenge(image, finest, classes, 1 / accumulation)
    (lowered / accumulation).backward()
    if observe is not None:
        observe(batch, finest, classes)
    return float(loss.detach())


def _find_cause(
    state: TrainingState,
    trained: Sequence[PatchBatch],
    loss: float,
    norm: float,
    loss_function: Loss,
    dtype: torch.dtype,
    adversary: Adversary | None,
) -> Cause | None:
    """Why the optimizer must not make a step with these batches; None where all its numbers are finite."""
    if math.isfinite(loss) and math.isfinite(norm):
        cause = find_spoilt_statistics(state.network, trained)
    else:
        cause = trace_divergence(state.network, trained, loss_function, dtype)
    return cause if adversary is None else adversary.explain(cause)


def _raise_divergence(
    step: int,
    loss: float,
    norm: float,
    trained: Sequence[PatchBatch],
    cause: Cause,
    on_divergence: Callable[[Divergence], None] | None,
) -> NoReturn:
    cases = cause.cases or sorted({case for batch in trained for case in batch["cases"]})
    divergence = Divergence(step, loss, norm, tuple(cases), cause)
    if on_divergence is not None:
        on_divergence(divergence)
    raise DivergenceError(divergence.message())


def _list_networks(state: TrainingState) -> list[nn.Module]:
    return [state.network] if state.averaged is None else [state.network, state.averaged.module]


def _clip_gradients(network: nn.Module, limit: float | None) -> float:
    """Scale the gradients down to norm `limit`; return the norm they had."""
    return float(nn.utils.clip_grad_norm_(network.parameters(), math.inf if limit is None else limit))
