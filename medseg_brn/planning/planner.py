"""The plan: from a dataset and budgets to one experiment, every choice with its reason, its cost measured."""

import itertools
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg_brn.cases.dataset import Case, Dataset
from medseg_brn.cases.fingerprint import Fingerprint, compute_fingerprint
from medseg_brn.cases.folds import group_by_patient
from medseg_brn.config import Experiment, TrainingConfig
from medseg_brn.errors import DataError
from medseg_brn.experiment import PHANTOM_PATHS, parse_experiment
from medseg_brn.inference.machine import core_count
from medseg_brn.planning.assembling import Draft, assemble
from medseg_brn.planning.candidates import Budget, Candidate, Problem, choose_candidate, is_capped
from medseg_brn.planning.choice import Choice, Choices, nest
from medseg_brn.planning.machine import Machine, examine_machine
from medseg_brn.planning.pacing import find_largest, predict_pace, predict_validation
from medseg_brn.planning.prediction import Prediction
from medseg_brn.planning.requests import Request
from medseg_brn.planning.rules_space import choose_crop, choose_spacing, coarsen_spacing
from medseg_brn.planning.rules_training import Pace, count_held_out, wanted_step_seconds
from medseg_brn.planning.search import ROUNDS, Found, search
from medseg_brn.planning.trial import Trial, TrialOrder, choose_trial_steps, run_trial
from medseg_brn.planning.warnings import (
    read_load,
    warn_of_classes,
    warn_of_load,
    warn_of_measuring,
    warn_of_memory,
)
from medseg_brn.reports.wording import times
from medseg_brn.training.data import open_dataset

Progress = Callable[[str, int, int], None]

# A validation that is predicted to take longer than this is not tried.
VALIDATION_SECONDS = 120.0


@dataclass(frozen=True)
class Plan:
    """An experiment, and why it is what it is.

    Attributes:
        memory_bytes: what the training process may take (on a GPU: of the GPU), as asked for or as the
            machine has it.
        choices: dotted option -> value and reason.
        trials: what was measured in the search.
        warnings: what a person should know before starting.
    """

    request: Request
    dataset: Dataset
    fingerprint: Fingerprint
    machine: Machine
    memory_bytes: float
    experiment: Experiment
    choices: Choices
    prediction: Prediction
    trials: tuple[Trial, ...]
    warnings: tuple[str, ...]


def make_plan(
    request: Request,
    progress: Progress,
    folder: Path,
    run_trial: Callable[[TrialOrder], Trial] = run_trial,
) -> Plan:
    """The plan for a dataset.

    Args:
        request: dataset and budgets.
        progress: told of stages.
        folder: where a phantom cohort is made; nothing else is written there.
        run_trial: measures a network.

    Raises:
        ConfigError: a budget is no budget, or the device is not there.
        DataError: the dataset cannot be read or has nothing to learn from.
    """
    load = read_load()  # before this command's own processes add to it
    dataset = _open(request, progress, folder)
    cases = dataset.labelled_cases
    if not cases:
        raise DataError(f"{dataset.name} has no case with a label map, so there is nothing to learn from")
    done = iter(range(1, len(cases) + 1))
    jobs = min(len(cases), core_count())
    start = time.perf_counter()
    fingerprint = compute_fingerprint(
        dataset,
        cases,
        on_case=lambda _: progress("measuring cases", next(done), len(cases)),
        contents=True,
        jobs=jobs,
    )
    read_seconds = (time.perf_counter() - start) * jobs / len(cases)
    progress("timing this machine", 0, 1)
    machine = examine_machine(request.device)
    progress("timing this machine", 1, 1)
    planner = _Planner(request, dataset, fingerprint, machine, read_seconds, load, progress, run_trial)
    return planner.plan()


def _open(request: Request, progress: Progress, folder: Path) -> Dataset:
    options = {"path": request.path, "layout": request.layout, "modalities": request.modalities}
    experiment = parse_experiment({"dataset": options}, "the options")
    return open_dataset(experiment, folder, progress)


class _Planner:
    """One planning: rules, search, trials, and the rules that depend on what was measured."""

    def __init__(
        self,
        request: Request,
        dataset: Dataset,
        fingerprint: Fingerprint,
        machine: Machine,
        read_seconds: float,
        load: float | None,
        progress: Progress,
        run_trial: Callable[[TrialOrder], Trial],
    ) -> None:
        self._request, self._dataset, self._fingerprint = request, dataset, fingerprint
        self._machine, self._read_seconds, self._load = machine, read_seconds, load
        self._progress, self._run_trial = progress, run_trial
        self._tried = itertools.count()
        patients = group_by_patient(dataset.labelled_cases)
        self._held_out = count_held_out(fingerprint.num_cases, len(patients))
        self._budget = Budget(
            step_seconds=wanted_step_seconds(request.time_seconds),
            memory_bytes=request.memory_bytes or machine.memory_bytes,
            unit_seconds=machine.unit_seconds,
        )
        self._crop = choose_crop(fingerprint, dataset.modalities)
        self._spacing, self._problem = self._choose_space()

    def plan(self) -> Plan:
        """Search where there is a machine to try on; else the model's candidate."""
        if self._machine.measured:
            found = search(self._problem, self._budget, self._try)
        else:
            found = Found(choose_candidate(self._problem, self._budget), (), None, self._budget)
        self._progress("trying the network", ROUNDS, ROUNDS)
        return self._finish(found)

    def _choose_space(self) -> tuple[Choice[tuple[float, float, float]], Problem]:
        spacing = choose_spacing(self._fingerprint)
        problem = self._pose(spacing)
        patch = choose_candidate(problem, self._budget).patch
        told = f"the largest patch ({times(patch)})" if is_capped(patch, problem) else "an affordable patch"
        coarser = coarsen_spacing(spacing, self._fingerprint, problem.shape, patch, told)
        return coarser, self._pose(coarser)

    def _pose(self, spacing: Choice[tuple[float, float, float]]) -> Problem:
        shapes = self._fingerprint.shapes_at(spacing.value, cropped=self._crop.value != "none")
        x, y, z = (max(1, int(size)) for size in np.median(shapes, axis=0))
        return Problem(
            shape=(x, y, z),
            spacing_mm=spacing.value,
            in_channels=len(self._dataset.modalities),
            num_outputs=self._dataset.targets.num_outputs,
            device=self._machine.device,
            precision=self._machine.precision,
        )

    def _draft(self, candidate: Candidate, pace: Pace) -> Draft:
        return Draft(
            path=self._request.path
            if self._request.path in PHANTOM_PATHS
            else str(Path(self._request.path).absolute()),
            layout=self._request.layout,
            modalities=self._request.modalities,
            dataset=self._dataset,
            fingerprint=self._fingerprint,
            machine=self._machine,
            problem=self._problem,
            candidate=candidate,
            spacing=self._spacing,
            crop=self._crop,
            pace=pace,
            name=_name(self._dataset.name),
            device=self._request.device,
        )

    def _try(self, candidate: Candidate) -> Trial:
        self._progress("trying the network", next(self._tried), ROUNDS)
        choices, _ = assemble(self._draft(candidate, self._predict_pace(candidate)))
        experiment = parse_experiment(nest(choices), "the planned experiment")
        steps = choose_trial_steps(candidate.cost.step_seconds, self._request.time_seconds)
        case = _largest_case(self._dataset, self._fingerprint)
        validate = predict_validation(candidate, self._problem, self._fingerprint) <= VALIDATION_SECONDS
        return self._run_trial(TrialOrder(experiment, self._dataset, case, steps, validate))

    def _finish(self, found: Found) -> Plan:
        pace = self._predict_pace(found.candidate, found.trial)
        choices, warnings = assemble(self._draft(found.candidate, pace))
        experiment = parse_experiment(nest(choices), "the planned experiment")
        return Plan(
            request=self._request,
            dataset=self._dataset,
            fingerprint=self._fingerprint,
            machine=self._machine,
            memory_bytes=self._budget.memory_bytes,
            experiment=experiment,
            choices=choices,
            prediction=_predict(experiment.training, pace, found, self._machine.name),
            trials=found.trials,
            warnings=(
                *warnings,
                *warn_of_classes(self._fingerprint),
                *warn_of_memory(found, self._machine.device),
                *warn_of_measuring(found, self._machine),
                *warn_of_load(self._load, self._machine.cores),
            ),
        )

    def _predict_pace(self, candidate: Candidate, trial: Trial | None = None) -> Pace:
        return predict_pace(
            candidate,
            self._problem,
            self._fingerprint,
            self._machine,
            self._request.time_seconds,
            self._read_seconds,
            self._held_out,
            trial,
        )


def _predict(training: TrainingConfig, pace: Pace, found: Found, machine: str) -> Prediction:
    validations = 1 + (training.steps // training.validate_every if training.validate_every else 0)
    training_seconds = training.steps * pace.step_seconds
    validation_seconds = validations * pace.validation_seconds
    modelled_mb = found.candidate.cost.memory_bytes / 1e6
    return Prediction(
        step_seconds=pace.step_seconds,
        peak_memory_mb=found.trial.peak_memory_mb if found.trial else modelled_mb,
        training_seconds=training_seconds,
        validation_seconds=validation_seconds,
        setup_seconds=pace.setup_seconds,
        total_seconds=training_seconds + validation_seconds + pace.setup_seconds,
        measured=found.trial is not None,
        machine=machine,
    )


def _largest_case(dataset: Dataset, fingerprint: Fingerprint) -> Case:
    name = find_largest(fingerprint).name
    return next(case for case in dataset.labelled_cases if case.name == name)


def _name(name: str) -> str:
    """A model's name: small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "experiment"
