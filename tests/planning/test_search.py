"""The search on machines that are functions of a candidate, and what is said of where it ended."""

import itertools
import math
from dataclasses import replace

import pytest

from medseg_brn.planning.candidates import Budget, Candidate, Problem, choose_candidate
from medseg_brn.planning.costs import BASE_BYTES, count_work, predict_cost
from medseg_brn.planning.machine import Machine
from medseg_brn.planning.search import ROUNDS, Found, learn, search
from medseg_brn.planning.trial import KILLED, Trial
from medseg_brn.planning.warnings import warn_of_classes, warn_of_load, warn_of_measuring, warn_of_memory

PROBLEM = Problem((200, 200, 200), (1.0, 1.0, 1.0), 1, 3, "cpu", "bf16")
BUDGET = Budget(step_seconds=1.8, memory_bytes=8e9, unit_seconds=2e-11)
MACHINE = Machine("cpu", "bf16", 2, 2, 2e-11, True, 8e9, "a machine")


def tried(step_seconds: float = 1.0, memory_bytes: float = 2e9, peak_bytes: float | None = None) -> Trial:
    memory_mb, peak_mb = memory_bytes / 1e6, (peak_bytes or memory_bytes) / 1e6
    return Trial(step_seconds, 0.0, memory_mb, peak_mb, 5.0, 1.0, 1.0, 30)


def activation_bytes(candidate: Candidate) -> float:
    """Memory beside the idle process's, before anything was learnt."""
    work = count_work(candidate.network, candidate.patch, candidate.batch_size, 1, 3)
    checkpointing = candidate.checkpointing
    cost = predict_cost(work, 1.0, device="cpu", precision="bf16", checkpointing=checkpointing)
    return cost.memory_bytes - BASE_BYTES["cpu"]


class Bench:
    """Answers by the number of the trial and the candidate; remembers what was tried."""

    def __init__(self, answer):
        self.answer, self.candidates = answer, []

    def __call__(self, candidate):
        self.candidates.append(candidate)
        return self.answer(len(self.candidates), candidate)


def voxels(candidate):
    return math.prod(candidate.patch)


def test_a_model_that_is_right_is_tried_once():
    bench = Bench(lambda _, one: tried(one.cost.step_seconds, one.cost.memory_bytes))
    found = search(PROBLEM, BUDGET, bench)
    assert found.candidate.is_same(choose_candidate(PROBLEM, BUDGET))
    assert (len(bench.candidates), found.trial) == (1, found.trials[0])


def test_a_machine_four_times_as_slow_gets_a_smaller_patch():
    """The second prediction holds what the first trial taught, and is right."""
    bench = Bench(
        lambda number, one: tried(one.cost.step_seconds * (4 if number == 1 else 1), one.cost.memory_bytes)
    )
    found = search(PROBLEM, BUDGET, bench)
    assert voxels(found.candidate) < voxels(bench.candidates[0]) / 2
    assert found.candidate is bench.candidates[1] and found.trial is found.trials[1]


def test_where_all_are_killed_the_next_one_is_planned_and_none_that_failed():
    bench = Bench(lambda _, one: KILLED)
    found = search(PROBLEM, BUDGET, bench)
    assert (len(bench.candidates), found.trial) == (ROUNDS, None)
    needed = [activation_bytes(one) for one in (*bench.candidates, found.candidate)]
    assert all(later <= earlier / 2 for earlier, later in itertools.pairwise(needed))
    (warning,) = warn_of_measuring(found, MACHINE)
    assert warning.startswith("not measured: memory ran out in every trial")


def test_where_the_last_was_killed_not_every_trial_is_said_to_have_been():
    """The first two are over the time, far enough that something smaller is sought."""
    bench = Bench(lambda number, one: KILLED if number == 3 else tried(3 * one.cost.step_seconds, 1e9))
    found = search(PROBLEM, BUDGET, bench)
    assert [trial.killed for trial in found.trials] == [False, False, True]
    assert found.trial is None and voxels(found.candidate) < voxels(bench.candidates[2])
    (warning,) = warn_of_measuring(found, MACHINE)
    assert "memory ran out in 1 of 3 trials" in warning


def test_the_larger_one_that_failed_gives_way_to_the_one_that_was_within():
    """Four times as fast as thought, so a larger one is tried, and killed; the next one too."""
    bench = Bench(lambda number, one: tried(one.cost.step_seconds / 4, 1e9) if number == 1 else KILLED)
    found = search(PROBLEM, BUDGET, bench)
    assert voxels(bench.candidates[1]) > 1.5 * voxels(bench.candidates[0])
    assert found.candidate is bench.candidates[0] and found.trial is found.trials[0]
    assert warn_of_measuring(found, MACHINE) == []


def test_after_one_was_killed_none_is_made_larger_again():
    bench = Bench(lambda number, one: KILLED if number == 1 else tried(one.cost.step_seconds / 9, 0.8e9))
    found = search(PROBLEM, BUDGET, bench)
    assert len(bench.candidates) == 2
    assert found.candidate is bench.candidates[1] and found.trial is found.trials[1]


def test_one_that_is_over_memory_is_tried_again_with_checkpointing():
    """The same patch and network, which are not the same training."""
    problem = Problem((64, 64, 64), (1.0, 1.0, 1.0), 1, 3, "cuda", "bf16")
    budget = Budget(step_seconds=100.0, memory_bytes=1.2e9, unit_seconds=1e-13)

    def measure(number, one):
        return tried(one.cost.step_seconds, (1.6e9, 1.0e9, 1.0e9)[number - 1])

    bench = Bench(measure)
    found = search(problem, budget, bench)
    first, second = bench.candidates[:2]
    assert not first.checkpointing and second.checkpointing
    assert found.candidate is second and found.trial is found.trials[1]


def test_validation_that_takes_the_memory_is_not_cured_by_another_network():
    bench = Bench(lambda _, one: tried(one.cost.step_seconds, 2e9, 9e9))
    found = search(PROBLEM, BUDGET, bench)
    assert (len(bench.candidates), found.trial) == (1, found.trials[0])
    (warning,) = warn_of_memory(found, "cpu")
    assert warning.startswith("9.0 GB of the training process are needed, more than the 8.0 GB allowed")
    assert "validating the largest case" in warning and "smaller" not in warning


def test_the_smallest_network_is_kept_though_it_takes_too_much():
    budget = replace(BUDGET, memory_bytes=0.3e9)
    bench = Bench(lambda _, one: tried(0.1, 0.9e9))
    found = search(PROBLEM, budget, bench)
    assert (len(bench.candidates), found.trial) == (1, found.trials[0])
    assert "no smaller network is worth training" in warn_of_memory(found, "cuda")[0]
    assert "0.9 GB of the GPU" in warn_of_memory(found, "cuda")[0]


def test_what_a_trial_teaches():
    """A step twice as long doubles the unit; memory is compared beside what an idle process has."""
    candidate = choose_candidate(PROBLEM, BUDGET)
    base = 560 * 2**20
    modelled = candidate.cost.memory_bytes - base
    learnt = learn(BUDGET, candidate, tried(2 * candidate.cost.step_seconds, base + 3 * modelled), "cpu")
    assert learnt.unit_seconds == pytest.approx(4e-11)
    assert learnt.memory_factor == pytest.approx(3)
    killed = learn(BUDGET, candidate, KILLED, "cpu")
    assert killed.unit_seconds == 2e-11
    assert killed.memory_factor == pytest.approx(2 * (8e9 - base) / modelled)


def test_a_machine_that_is_not_here_is_told():
    found = Found(choose_candidate(PROBLEM, BUDGET), (), None, BUDGET)
    (warning,) = warn_of_measuring(found, replace(MACHINE, device="cuda", measured=False))
    assert warning.startswith("not measured: there is no cuda here")
    assert warn_of_memory(found, "cuda") == []


def test_classes_that_no_case_has_are_told(make_fingerprint):
    found = make_fingerprint([(1, 1, 1)] * 2, classes={"organ": [9, 9], "cyst": [0, 0]})
    assert warn_of_classes(found) == ["no case has 'cyst': nothing can be learnt of what is never there"]
    assert warn_of_classes(make_fingerprint()) == []


def test_a_busy_machine_is_told():
    assert [len(warn_of_load(load, 2)) for load in (None, 0.1, 2.5, 2.6)] == [0, 0, 0, 1]
