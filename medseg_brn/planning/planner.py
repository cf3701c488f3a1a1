"""The plan: from a dataset and budgets to one experiment, every choice with its reason, its cost measured."""

import math
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medseg_brn.cases.dataset import Case, Dataset
from medseg_brn.cases.fingerprint import Fingerprint, compute_fingerprint
from medseg_brn.config import Experiment
from medseg_brn.errors import DataError
from medseg_brn.experiment import PHANTOM_PATHS, parse_experiment
from medseg_brn.inference.machine import core_count
from medseg_brn.planning.assembling import Draft, assemble
from medseg_brn.planning.candidates import Budget, Candidate, Problem, choose_candidate
from medseg_brn.planning.choice import Choice, Choices, nest
from medseg_brn.planning.costs import BASE_BYTES
from medseg_brn.planning.machine import Machine, examine_machine
from medseg_brn.planning.pacing import find_largest, predict_pace, predict_validation
from medseg_brn.planning.prediction import Prediction
from medseg_brn.planning.rules_space import choose_crop, choose_spacing, coarsen_spacing
from medseg_brn.planning.rules_training import Pace, wanted_step_seconds
from medseg_brn.planning.trial import Trial, TrialOrder, choose_trial_steps, run_trial
from medseg_brn.training.data import open_dataset

Progress = Callable[[str, int, int], None]

ROUNDS = 3
"""Candidates that are measured at most."""
# A measured step may exceed its share of the time by so much before a smaller candidate is sought.
TOLERANCE = 1.15
# A validation that is predicted to take longer than this is not tried.
VALIDATION_SECONDS = 120.0


@dataclass(frozen=True)
class Request:
    """What a person asks for.

    Attributes:
        path: of the dataset, or the name of a phantom cohort.
        memory_bytes: that the run may take; None for what the machine has to spare.
        time_seconds: that it may take.
        device: "auto", "cpu" or "cuda".
    """

    path: str
    layout: str = "auto"
    modalities: tuple[str, ...] | None = None
    memory_bytes: float | None = None
    time_seconds: float = 1800.0
    device: str = "auto"


@dataclass(frozen=True)
class Plan:
    """An experiment, and why it is what it is.

    Attributes:
        memory_bytes: what the run may take, as asked for or as the machine has it.
        choices: dotted option -> value and reason.
        trials: what was measured, the last one of the experiment itself.
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


def make_plan(request: Request, progress: Progress, folder: Path) -> Plan:
    """The plan for a dataset.

    Args:
        request: dataset and budgets.
        progress: told of stages.
        folder: where a phantom cohort is made; nothing else is written there.

    Raises:
        ConfigError: a budget is no budget, or the device is not there.
        DataError: the dataset cannot be read or has nothing to learn from.
    """
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
    return _Planner(request, dataset, fingerprint, machine, read_seconds, progress).plan()


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
        progress: Progress,
    ) -> None:
        self._request, self._dataset, self._fingerprint = request, dataset, fingerprint
        self._machine, self._read_seconds, self._progress = machine, read_seconds, progress
        self._budget = Budget(
            step_seconds=wanted_step_seconds(request.time_seconds),
            memory_bytes=request.memory_bytes or machine.memory_bytes,
            unit_seconds=machine.unit_seconds,
        )
        self._crop = choose_crop(fingerprint, dataset.modalities)
        self._spacing, self._problem = self._choose_space()

    def plan(self) -> Plan:
        """Search, try, and search again with what was learnt, until the candidate is within the budgets."""
        candidate = choose_candidate(self._problem, self._budget)
        trials: list[Trial] = []
        while self._machine.measured and len(trials) < ROUNDS:
            self._progress("trying the network", len(trials), ROUNDS)
            trial = self._try(candidate)
            trials.append(trial)
            self._learn(candidate, trial)
            better = choose_candidate(self._problem, self._budget)
            if not trial.killed and (better.patch, better.network) == (candidate.patch, candidate.network):
                break
            if (
                not trial.killed
                and self._is_within(trial)
                and math.prod(better.patch) < 1.5 * math.prod(candidate.patch)
            ):
                break
            if len(trials) < ROUNDS:
                candidate = better
        self._progress("trying the network", ROUNDS, ROUNDS)
        return self._finish(candidate, trials)

    def _choose_space(self) -> tuple[Choice[tuple[float, float, float]], Problem]:
        spacing = choose_spacing(self._fingerprint)
        problem = self._pose(spacing)
        patch = choose_candidate(problem, self._budget).patch
        coarser = coarsen_spacing(spacing, self._fingerprint, problem.shape, patch)
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
        choices, _ = assemble(self._draft(candidate, self._predict_pace(candidate)))
        experiment = parse_experiment(nest(choices), "the planned experiment")
        steps = choose_trial_steps(candidate.cost.step_seconds, self._request.time_seconds)
        case = _largest_case(self._dataset, self._fingerprint)
        validate = predict_validation(candidate, self._problem, self._fingerprint) <= VALIDATION_SECONDS
        return run_trial(TrialOrder(experiment, self._dataset, case, steps, validate))

    def _learn(self, candidate: Candidate, trial: Trial) -> None:
        """Correct the model by what was measured."""
        base = BASE_BYTES[self._machine.device]
        if trial.killed:
            self._budget = replace(self._budget, memory_factor=2 * self._budget.memory_factor)
            return
        modelled = max(candidate.cost.memory_bytes - base, 1.0) / self._budget.memory_factor
        used = max(trial.training_memory_mb * 2**20 - base, 0.05 * modelled)
        self._budget = replace(
            self._budget,
            unit_seconds=self._budget.unit_seconds * trial.step_seconds / candidate.cost.step_seconds,
            memory_factor=used / modelled,
        )

    def _is_within(self, trial: Trial) -> bool:
        return (
            trial.step_seconds <= TOLERANCE * self._budget.step_seconds
            and trial.peak_memory_mb * 2**20 <= self._budget.memory_bytes
        )

    def _finish(self, candidate: Candidate, trials: Sequence[Trial]) -> Plan:
        trial = trials[-1] if trials and not trials[-1].killed else None
        pace = self._predict_pace(candidate, trial)
        choices, warnings = assemble(self._draft(candidate, pace))
        experiment = parse_experiment(nest(choices), "the planned experiment")
        memory_mb = trial.peak_memory_mb if trial else candidate.cost.memory_bytes / 2**20
        training_seconds = experiment.training.steps * pace.step_seconds
        validations = 1
        if experiment.training.validate_every:
            validations += experiment.training.steps // experiment.training.validate_every
        validation_seconds = validations * pace.validation_seconds
        prediction = Prediction(
            step_seconds=pace.step_seconds,
            peak_memory_mb=memory_mb,
            training_seconds=training_seconds,
            validation_seconds=validation_seconds,
            setup_seconds=pace.setup_seconds,
            total_seconds=training_seconds + validation_seconds + pace.setup_seconds,
            measured=trial is not None,
            machine=self._machine.name,
        )
        return Plan(
            request=self._request,
            dataset=self._dataset,
            fingerprint=self._fingerprint,
            machine=self._machine,
            memory_bytes=self._budget.memory_bytes,
            experiment=experiment,
            choices=choices,
            prediction=prediction,
            trials=tuple(trials),
            warnings=(*warnings, *self._warn(memory_mb, trials)),
        )

    def _warn(self, memory_mb: float, trials: Sequence[Trial]) -> list[str]:
        warnings = []
        needed, allowed = memory_mb * 2**20, self._budget.memory_bytes
        if needed > allowed:
            warnings.append(
                f"{needed / 1e9:.1f} GB are needed, more than the {allowed / 1e9:.1f} GB allowed: no smaller "
                "network is worth training, or validating the largest case takes them"
            )
        if not self._machine.measured:
            warnings.append(
                f"not measured: there is no {self._machine.device} here, so time and memory follow from a "
                "rough model; plan again on the machine that will train"
            )
        elif not trials or trials[-1].killed:
            warnings.append("not measured: memory ran out in every trial; give the run a machine with more")
        with suppress(OSError, AttributeError):
            load = os.getloadavg()[0]
            if load > self._machine.cores + 0.5:
                warnings.append(
                    f"this machine was busy (load {load:.1f} on {self._machine.cores} cores): alone, the run "
                    "will be faster, and a plan made then may be larger"
                )
        return warnings

    def _predict_pace(self, candidate: Candidate, trial: Trial | None = None) -> Pace:
        return predict_pace(
            candidate,
            self._problem,
            self._fingerprint,
            self._machine,
            self._request.time_seconds,
            self._read_seconds,
            trial,
        )


def _largest_case(dataset: Dataset, fingerprint: Fingerprint) -> Case:
    name = find_largest(fingerprint).name
    return next(case for case in dataset.labelled_cases if case.name == name)


def _name(name: str) -> str:
    """A model's name: small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "experiment"
