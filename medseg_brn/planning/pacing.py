"""How long the stages of a run take: from a trial where there was one, else from the model."""

import math

import numpy as np

from medseg_brn.cases.fingerprint import CaseFacts, Fingerprint
from medseg_brn.planning.candidates import Candidate, Problem
from medseg_brn.planning.machine import Machine
from medseg_brn.planning.rules_training import Pace
from medseg_brn.planning.trial import Trial

# Of a case in validation, beside the network: reading, resampling, metrics. Where nothing is measured.
CASE_SECONDS = 3.0
# Of a run that has nothing to do: loading packages, starting processes, the report.
START_SECONDS = 15.0
# Of reading a case, how many times as long it takes to measure it in one process, and to prepare it (read,
# resample, write) in all of them.
MEASURING, PREPARING = 1.0, 2.0


def find_largest(fingerprint: Fingerprint) -> CaseFacts:
    """The largest case that has foreground: the one that is tried."""
    labelled = [case for case in fingerprint.cases if sum(case.class_voxels[1:])]
    return max(labelled, key=lambda case: math.prod(case.shape))


def predict_validation(candidate: Candidate, problem: Problem, fingerprint: Fingerprint) -> float:
    """Seconds of the largest case: a forward pass is a third of a training step on as many voxels."""
    shape = find_largest(fingerprint).shape_at(problem.spacing_mm)
    batches = math.prod(shape) / (math.prod(candidate.patch) * candidate.batch_size)
    return batches * candidate.cost.step_seconds / 3 + CASE_SECONDS


def predict_pace(
    candidate: Candidate,
    problem: Problem,
    fingerprint: Fingerprint,
    machine: Machine,
    time_seconds: float,
    read_seconds: float,
    held_out: float,
    trial: Trial | None = None,
) -> Pace:
    """The pace of the whole run; other cases take as much less than the largest as they are smaller.

    Args:
        candidate: whose steps they are.
        problem: what it was sought for.
        fingerprint: of all cases.
        machine: where it is trained.
        time_seconds: of the run's budget.
        read_seconds: what one process takes to read and measure a case.
        held_out: number of cases that are validated.
        trial: of the candidate; None where it was not measured.
    """
    count = fingerprint.num_cases
    voxels = np.array([math.prod(case.shape) for case in fingerprint.cases], float)
    relative = float(voxels.mean()) / math.prod(find_largest(fingerprint).shape)
    validation = predict_validation(candidate, problem, fingerprint)
    setup = START_SECONDS if trial is None else trial.setup_seconds + trial.finish_seconds
    setup += count * read_seconds * (MEASURING + PREPARING / machine.threads)
    if trial is not None and trial.validation_seconds is not None:
        validation = trial.validation_seconds
    step_seconds = candidate.cost.step_seconds if trial is None else trial.step_seconds
    return Pace(step_seconds, validation * relative * held_out, setup, time_seconds)
