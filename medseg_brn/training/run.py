"""A run: an experiment and a folder in, a trained, validated and reported model out.

    RUN/config.yaml  split.json  preprocessing.json  cache/      what it started from
        initial_weights.json                                     where it began with those of a model
        metrics.csv  patches.csv  probes.csv  tensorboard/       while it goes on
        checkpoint/
        model/  validation/  validation.json  fit.json           what it ends with
        suspects.json  diagnosis.json  report.html
        divergence.json  diagnosis.json  report.html             what it ends with where it diverges

Every stage can be repeated: a run that was killed at any moment is brought to its end by `resume`.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from medseg_brn.config import Experiment
from medseg_brn.errors import DivergenceError
from medseg_brn.inference.machine import reset_peak, return_freed_memory
from medseg_brn.inference.precision import choose_device, choose_precision
from medseg_brn.models.package import load_models_by_site
from medseg_brn.networks.domain_norm import set_sites
from medseg_brn.networks.surgery import recalibrate
from medseg_brn.patches.stream import PatchStream, load_batches
from medseg_brn.reports.run_report import write_run_report
from medseg_brn.reports.step_records import StepRecord
from medseg_brn.training.adversarial import make_adversary
from medseg_brn.training.checkpoint import find_checkpoint, load_checkpoint
from medseg_brn.training.data import Progress, TrainingData, prepare_training_data
from medseg_brn.training.diagnosis.fit import measure_fit, segment_suspects
from medseg_brn.training.distributed import Processes, join_processes
from medseg_brn.training.folder import open_run_folder
from medseg_brn.training.initial_weights import InitialModel, begin_with, read_initial_model, write_transfer
from medseg_brn.training.keeping import Keeper
from medseg_brn.training.loop import make_loader, run_steps
from medseg_brn.training.losses import make_loss_of
from medseg_brn.training.packing import save_trained_model
from medseg_brn.training.parts import find_factor
from medseg_brn.training.recording import Recorder
from medseg_brn.training.sites import list_norm_sites
from medseg_brn.training.state import TrainingState, check_network, make_state
from medseg_brn.training.validation import validate_model
from medseg_brn.volumes.atomic import write_text_atomic


@dataclass(frozen=True)
class RunSummary:
    """Where a finished run lies and how good its model is."""

    run_folder: Path
    validation_cases: int
    dice_mean: float | None
    findings: tuple[str, ...] = ()
    """What is suspicious about the run, in one line each, the weightiest first."""


def _silent(stage: str, done: int, total: int) -> None:
    """No progress is shown."""


def train_run(
    experiment: Experiment,
    run_folder: Path,
    *,
    resume: bool = False,
    data_folder: Path | None = None,
    progress: Progress = _silent,
    after_step: Callable[[StepRecord, int], None] | None = None,
) -> RunSummary | None:
    """Train the experiment in `run_folder`, save and validate its model, write the report.

    Args:
        experiment: what to train, on what.
        run_folder: made when absent.
        resume: go on with the run that is there.
        data_folder: where the prepared cases are kept, so that several runs may share them; the run folder
            by default.
        progress: told of stages.
        after_step: told of each optimizer step and of the number of steps.

    Returns:
        What came out; None in processes other than the first.

    Raises:
        ConfigError: the folder holds another run, or holds a run and `resume` is false.
        DataError: the dataset is not what it must be.
        ModelError: the model to begin with is missing or damaged.
        TrainingError: numbers are not finite (`DivergenceError`), or a checkpoint does not fit.
    """
    return_freed_memory()
    reset_peak()  # in one process there may have been a run before this one
    device = choose_device(experiment.training.device)
    dtype = choose_precision(experiment.training.precision, device)
    check_network(experiment, device)
    begins = find_checkpoint(run_folder / "checkpoint") is None
    initial = read_initial_model(experiment) if begins else None
    with join_processes(device) as processes:

        def prepare() -> TrainingData:
            if processes.is_first:
                open_run_folder(experiment, run_folder, resume)
            jobs = torch.get_num_threads() if processes.is_first else 1
            return prepare_training_data(experiment, run_folder, progress, jobs, data_folder)

        data = processes.after_first(prepare)
        try:
            state = _start(experiment, run_folder, data, device, processes, initial, progress)
            _run_steps(experiment, run_folder, data, state, device, dtype, processes, after_step)
            return (
                _finish(experiment, run_folder, data, state, dtype, progress) if processes.is_first else None
            )
        except DivergenceError:
            if processes.is_first:
                write_run_report(run_folder)
            raise


def _start(
    experiment: Experiment,
    run_folder: Path,
    data: TrainingData,
    device: torch.device,
    processes: Processes,
    initial: InitialModel | None,
    progress: Progress,
) -> TrainingState:
    """The state before the first step, with the weights of `initial` where there is one."""
    sites = list_norm_sites(experiment, data.training)
    state = make_state(experiment, data.in_channels, data.num_outputs, device, sites)
    state.adversary = make_adversary(experiment, data.in_channels, data.dataset.targets, device)
    if initial is not None:
        transfer = begin_with(initial, state, data.dataset, experiment.network.norm)
        if processes.is_first:
            write_transfer(transfer, run_folder)
            progress(transfer.tell(), 1, 1)
    return state


def _run_steps(
    experiment: Experiment,
    run_folder: Path,
    data: TrainingData,
    state: TrainingState,
    device: torch.device,
    dtype: torch.dtype,
    processes: Processes,
    after_step: Callable[[StepRecord, int], None] | None,
) -> None:
    """Train the state from the newest checkpoint, or as it is, to the end."""
    checkpoint = find_checkpoint(run_folder / "checkpoint")
    first_step = 0
    if checkpoint is not None:
        first_step = load_checkpoint(
            checkpoint, state.network, state.averaged, state.optimizer, processes.world_size, state.adversary
        )
    stream = PatchStream(
        data.training,
        experiment.patches,
        experiment.seed,
        data.dataset.targets,
        experiment.training.batch_size,
    )
    batches = make_loader(stream, experiment, first_step, processes)
    steps = partial(
        run_steps,
        state,
        batches,
        experiment,
        first_step,
        loss_function=make_loss_of(experiment, data.dataset.targets),
        dtype=dtype,
        processes=processes,
    )
    if not processes.is_first:
        steps()
        return
    with Recorder(run_folder, first_step, adversarial=state.adversary is not None) as recorder:
        keeper = Keeper(experiment, run_folder, data, state, recorder, device, dtype, processes, after_step)
        steps(
            before_step=keeper.before_step,
            after_step=keeper.after_step,
            after_pass=keeper.after_pass,
            on_divergence=keeper.on_divergence,
        )


def _finish(
    experiment: Experiment,
    run_folder: Path,
    data: TrainingData,
    state: TrainingState,
    dtype: torch.dtype,
    progress: Progress,
) -> RunSummary:
    """Save the model, validate it as its users will run it, and write the report."""
    _recalibrate(experiment, data, state)
    _check_finite(experiment, state, run_folder)
    save_trained_model(run_folder, experiment, data, state.best_network)
    dice = None
    if data.validation_cases:
        found = validate_model(
            load_models_by_site(run_folder, experiment.training.device),
            data.validation_cases,
            data.dataset,
            run_folder,
            lambda done, total: progress("validating whole volumes", done, total),
        )
        dice = found["summary"]["dice_mean"]
        save_trained_model(run_folder, experiment, data, state.best_network, found["summary"])
    measure_fit(state.best_network, data, experiment, run_folder, dtype, progress)
    segment_suspects(run_folder, data, experiment, progress)
    progress("writing the report", 0, 1)
    findings = write_run_report(run_folder)
    progress("writing the report", 1, 1)
    told = tuple(finding.tell() for finding in findings)
    return RunSummary(run_folder, len(data.validation_cases), dice, told)


def _check_finite(experiment: Experiment, state: TrainingState, run_folder: Path) -> None:
    """The last step may have spoilt what no loss has seen since.

    Raises:
        DivergenceError: a weight or statistic is not finite.
    """
    numbers = state.best_network.state_dict()
    broken = [name for name, value in numbers.items() if not bool(value.isfinite().all())]
    if broken:
        found = (
            f"{len(broken)} of {len(numbers)} tensors of the trained network are not finite, first"
            f" {broken[0]}"
        )
        remedy = "train again with a lower training.learning_rate or training.gradient_clip"
        told = {"step": experiment.training.steps, "kind": "weights", "found": found, "layer": broken[0]}
        content = told | {"cases": [], "remedy": remedy}
        write_text_atomic(run_folder / "divergence.json", json.dumps(content, indent=1) + "\n")
        raise DivergenceError(f"{found}; {remedy}")


def _recalibrate(experiment: Experiment, data: TrainingData, state: TrainingState) -> None:
    """Set the final network's running statistics to the population's, where the experiment asks for it.

    Frozen parts keep theirs.
    The patches are those that a longer run would have seen next.
    """
    training = experiment.training
    if training.recalibration_patches is None:
        return
    stream = PatchStream(
        data.training,
        experiment.patches,
        experiment.seed,
        data.dataset.targets,
        experiment.training.batch_size,
    )
    first = training.steps * training.accumulation
    last = first + math.ceil(training.recalibration_patches / training.batch_size)
    device = next(state.best_network.parameters()).device

    def images() -> Iterator[Tensor]:
        for batch in load_batches(stream, first, last, training.batch_size):
            set_sites(state.best_network, batch.get("sites", ()))
            yield batch["image"].to(device)

    kept = {
        name: buffer.clone()
        for name, buffer in state.best_network.named_buffers()
        if find_factor(name, training.learning_rate_factors) == 0
    }
    recalibrate(state.best_network, images())
    for name, buffer in state.best_network.named_buffers():
        if name in kept:
            buffer.copy_(kept[name])
