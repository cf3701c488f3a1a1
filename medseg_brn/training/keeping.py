"""What is kept of a run while it goes on: records of every step, probes, validations, checkpoints."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from medseg_brn.config import Experiment
from medseg_brn.probes.watching import Watcher
from medseg_brn.reports.step_records import StepRecord
from medseg_brn.training.checkpoint import save_checkpoint
from medseg_brn.training.data import TrainingData
from medseg_brn.training.diagnosis.divergence import Divergence
from medseg_brn.training.diagnosis.patches import PatchLog
from medseg_brn.training.distributed import Processes
from medseg_brn.training.recording import Recorder
from medseg_brn.training.schedules import checkpoint_is_due, validation_is_due
from medseg_brn.training.state import TrainingState
from medseg_brn.training.validation import validate_quickly
from medseg_brn.volumes.atomic import write_text_atomic


class Keeper:
    """Listens to the training loop of the first process and writes what must outlast it."""

    def __init__(
        self,
        experiment: Experiment,
        run_folder: Path,
        data: TrainingData,
        state: TrainingState,
        recorder: Recorder,
        device: torch.device,
        dtype: torch.dtype,
        processes: Processes,
        listener: Callable[[StepRecord, int], None] | None,
    ) -> None:
        self._experiment = experiment
        self._checkpoints = run_folder / "checkpoint"
        self._data = data
        self._state = state
        self._recorder = recorder
        self._device = device
        self._dtype = dtype
        self._world_size = processes.world_size
        self._listener = listener
        every = experiment.training.probe_every
        self._watcher = Watcher(state.network, every) if every is not None else None
        self._patches = PatchLog(data.dataset.targets)
        self.after_pass = self._patches.take_in
        self._divergence = run_folder / "divergence.json"
        self._divergence.unlink(missing_ok=True)  # of a run that now goes on

    def before_step(self, step: int) -> None:
        """Let the probes see a step that is to be sampled."""
        if self._watcher is not None:
            self._watcher.before_step(step)

    def after_step(self, record: StepRecord) -> None:
        """Record a finished step; validate and save a checkpoint where one is due."""
        training = self._experiment.training
        self._recorder.write_patches(self._patches.read(record.step))
        if self._watcher is not None:
            self._recorder.write_samples(self._watcher.after_step(record.step))
        if validation_is_due(record.step, training):
            record = replace(record, dice=self._validate())
        self._recorder.write(record)
        if checkpoint_is_due(record.step, training):
            # Rows first: a checkpoint without its rows could not be told from a complete one.
            self._recorder.flush()
            self._save(record.step)
        if self._listener is not None:
            self._listener(record, training.steps)

    def on_divergence(self, divergence: Divergence) -> None:
        """Write what the run ended with to `divergence.json`."""
        write_text_atomic(self._divergence, json.dumps(divergence.as_dict(), indent=1) + "\n")

    def _save(self, step: int) -> None:
        state = self._state
        save_checkpoint(
            self._checkpoints,
            step,
            state.network,
            state.averaged,
            state.optimizer,
            self._world_size,
            state.adversary,
        )

    def _validate(self) -> float | None:
        cases = self._data.validation[: self._experiment.training.validation_cases]
        if not cases:
            return None
        return validate_quickly(
            self._state.best_network,
            cases,
            self._experiment,
            self._data.dataset.targets,
            self._device,
            self._dtype,
        )
