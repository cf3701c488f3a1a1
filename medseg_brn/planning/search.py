"""The search: a candidate from the rough model, a trial of it, and again with what was learnt."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from medseg_brn.planning.candidates import Budget, Candidate, Problem, choose_candidate
from medseg_brn.planning.costs import BASE_BYTES
from medseg_brn.planning.trial import Trial

ROUNDS = 3
"""Candidates that are measured at most."""
# A measured step may exceed its share of the time by so much before a smaller candidate is sought.
TOLERANCE = 1.15
# A larger candidate is tried only if its patch has so many times as many voxels.
WORTH_TRYING = 1.5


@dataclass(frozen=True)
class Found:
    """Where a search ended.

    Attributes:
        trials: of all that was tried, in order.
        trial: of the candidate itself; None where it was not measured.
        budget: with what the trials taught.
    """

    candidate: Candidate
    trials: tuple[Trial, ...]
    trial: Trial | None
    budget: Budget


def search(problem: Problem, budget: Budget, measure: Callable[[Candidate], Trial]) -> Found:
    """The candidate to train: the last one measured within the budgets, or else the next one, unmeasured.

    At most `ROUNDS` candidates are measured. After one was killed for its memory none is made larger again,
    nor where validation takes all the memory, which a smaller network would hardly change.

    Args:
        problem: what is sought for.
        budget: with the model's first guess of this machine.
        measure: tries a candidate.
    """
    candidate = choose_candidate(problem, budget)
    trials: list[Trial] = []
    within: tuple[Candidate, Trial] | None = None
    while len(trials) < ROUNDS:
        trial = measure(candidate)
        trials.append(trial)
        budget = learn(budget, candidate, trial, problem.device)
        better = choose_candidate(problem, budget)
        if is_within(trial, budget):
            within = candidate, trial
            grown = math.prod(better.patch) >= WORTH_TRYING * math.prod(candidate.patch)
            full = trial.peak_memory_mb * 1e6 > budget.memory_bytes
            if not grown or full or any(each.killed for each in trials):
                break
        if better.is_same(candidate):
            return Found(candidate, tuple(trials), None if trial.killed else trial, budget)
        candidate = better
    candidate, measured = within or (candidate, None)
    return Found(candidate, tuple(trials), measured, budget)


def learn(budget: Budget, candidate: Candidate, trial: Trial, device: str) -> Budget:
    """The budget with its model corrected by what was measured.

    A candidate that was killed does not fit any more, nor does any that needs more than half of its memory
    beside the idle process.
    """
    base = BASE_BYTES[device]
    modelled = max(candidate.cost.memory_bytes - base, 1.0) / budget.memory_factor
    if trial.killed:
        room = max(budget.memory_bytes - base, 0.0) / modelled
        return replace(budget, memory_factor=2 * max(budget.memory_factor, room))
    used = max(trial.training_memory_mb * 1e6 - base, 0.05 * modelled)
    return replace(
        budget,
        unit_seconds=budget.unit_seconds * trial.step_seconds / candidate.cost.step_seconds,
        memory_factor=used / modelled,
    )


def is_within(trial: Trial, budget: Budget) -> bool:
    """Whether a trial's steps were within both budgets; its validation is not looked at."""
    return (
        not trial.killed
        and trial.step_seconds <= TOLERANCE * budget.step_seconds
        and trial.training_memory_mb * 1e6 <= budget.memory_bytes
    )
