"""A whole plan of a small phantom, with trials that are given instead of made."""

import math
from dataclasses import replace

import pytest

from medseg_brn.cases.phantom import make_phantom
from medseg_brn.planning.planner import make_plan
from medseg_brn.planning.requests import Request
from medseg_brn.planning.search import ROUNDS
from medseg_brn.planning.trial import KILLED, Trial, TrialOrder

pytestmark = pytest.mark.slow
TRIAL = Trial(
    0.25, 0.0, 700.0, 800.0, setup_seconds=4.0, validation_seconds=2.0, finish_seconds=1.0, steps=30
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_phantom(tmp_path_factory.mktemp("data") / "heads", cases=4, voxel_mm=10)


def plan_with(dataset, tmp_path, answer, memory_bytes=8e9):
    orders: list[TrialOrder] = []
    stages: list[tuple[str, int, int]] = []

    def run_trial(order: TrialOrder) -> Trial:
        orders.append(order)
        return answer(len(orders))

    request = Request(str(dataset), memory_bytes=memory_bytes, time_seconds=600, device="cpu")
    plan = make_plan(request, lambda *stage: stages.append(stage), tmp_path, run_trial)
    assert [done for name, done, _ in stages if name == "trying the network"] == [*range(len(orders)), ROUNDS]
    return plan, orders


def test_what_was_measured_is_predicted(dataset, tmp_path):
    """Small heads: the whole scan is the patch, and one trial is enough; of four one is held out."""
    plan, orders = plan_with(dataset, tmp_path, lambda _: TRIAL)
    training, cost = plan.experiment.training, plan.prediction
    assert (plan.trials, len(orders)) == ((TRIAL,), 1)
    assert orders[0].experiment.patches == plan.experiment.patches
    assert orders[0].experiment.network == plan.experiment.network
    assert (cost.measured, cost.step_seconds, cost.peak_memory_mb) == (True, 0.25, 800)
    assert training.validate_every is not None, "4 × 2 s are less than a twentieth of 600 s"
    voxels = [math.prod(case.shape) for case in plan.fingerprint.cases]
    relative = sum(voxels) / len(voxels) / max(voxels)  # the largest case takes 2 s
    assert cost.validation_seconds == pytest.approx(5 * 2 * relative)
    assert cost.total_seconds <= 600
    assert [warning for warning in plan.warnings if "busy" not in warning] == []


def test_where_memory_ran_out_the_plan_says_so(dataset, tmp_path):
    plan, orders = plan_with(dataset, tmp_path, lambda _: KILLED)
    assert not plan.prediction.measured
    assert len(orders) == len(plan.trials) == ROUNDS
    assert plan.experiment.patches != orders[-1].experiment.patches
    assert any("memory ran out in every trial" in warning for warning in plan.warnings)


def test_memory_that_even_the_smallest_network_exceeds_is_told(dataset, tmp_path):
    plan, _ = plan_with(dataset, tmp_path, lambda _: replace(TRIAL, step_seconds=0.01), memory_bytes=1e8)
    told = [warning for warning in plan.warnings if "allowed" in warning]
    assert told == [
        "0.8 GB of the training process are needed, more than the 0.1 GB allowed: no smaller network is "
        "worth training"
    ]
