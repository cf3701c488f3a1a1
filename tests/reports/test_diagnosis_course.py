"""What the course of a run says, on courses drawn for it."""

import numpy as np
import pytest

from medseg_brn.config import Experiment
from medseg_brn.reports.diagnosis.course import (
    check_fit,
    check_gradients,
    check_learning,
    check_loading,
    check_renorm,
    check_spikes,
    check_trend,
    describe_loading,
    describe_trend,
    share_waiting,
)
from medseg_brn.reports.diagnosis.finding import Finding, order_findings
from medseg_brn.reports.step_records import PatchRecord

STEPS = np.arange(1, 201.0)
NOISE = np.random.default_rng(0).normal(size=200)


def make_metrics(**columns) -> dict[str, np.ndarray]:
    """A quiet run of 200 steps whose loss falls to 0.2."""
    metrics = {
        "step": STEPS,
        "loss": 0.2 + np.exp(-STEPS / 10) + 0.01 * NOISE,
        "gradient_norm": np.ones(200),
        "seconds": np.full(200, 0.5),
        "loader_share": np.full(200, 0.02),
        "dice": np.full(200, np.nan),
    }
    return metrics | columns


def make_experiment(**sections) -> Experiment:
    return Experiment.model_validate({"training": {"steps": 200, "warmup_fraction": 0.1}, **sections})


def test_nothing_is_said_of_a_quiet_run():
    metrics = make_metrics()
    assert check_learning(metrics) == check_spikes(metrics) == check_trend(metrics, make_experiment()) == []
    assert check_loading(metrics, make_experiment()) == check_gradients(metrics, make_experiment()) == []


def test_a_loss_that_stands_still():
    (finding,) = check_learning(make_metrics(loss=2 + 0.01 * NOISE))
    assert finding.weight == 3
    assert finding.numbers == "median 2 over the first 20 steps, 2 over the last 20"


def test_a_loss_that_jumps():
    loss = make_metrics()["loss"].copy()
    loss[50:200:10] += 1.0  # 15 of 200 steps
    (finding,) = check_spikes(make_metrics(loss=loss))
    assert finding.weight == 2
    assert "at 15 of 200 steps (7.5%)" in finding.numbers
    # "odd" is trained on at 20 steps, 1.5 of which would be spikes by chance; "usual" at all of them
    patches = [PatchRecord(step, "usual", 1.0, {}) for step in range(1, 201)]
    patches += [PatchRecord(step, "odd", 1.0, {}) for step in range(11, 201, 10)]
    (finding,) = check_spikes(make_metrics(loss=loss), patches)
    assert finding.numbers.endswith("; of these steps, patches of odd at 15")


def test_waiting_is_weighed_by_the_steps_duration():
    metrics = {"seconds": np.array([3.0, 1.0] * 20), "loader_share": np.array([0.5, 0.1] * 20)}
    assert share_waiting(metrics) == pytest.approx((1.5 + 0.1) / 4)
    (finding,) = check_loading(metrics, make_experiment(patches={"workers": 0}))
    assert finding.numbers == "40% of the training time, 32 s in all"
    assert finding.remedy.startswith("Set patches.workers=1")
    (finding,) = check_loading(metrics, make_experiment(patches={"workers": 2}))
    assert "Raise patches.workers above 2" in finding.remedy


def test_the_pace_in_one_sentence():
    told = describe_loading(make_metrics(), make_experiment())
    assert told.startswith("Bound by computing: 2.0% of the time went by waiting for patches")
    assert "(median step 500 ms, 1 loader process)" in told
    assert "richer augmentation would cost no time" in told
    slow = make_metrics(loader_share=np.full(200, 0.3))
    assert describe_loading(slow, make_experiment()).startswith("Bound by loading: 30.0%")


@pytest.mark.parametrize(("workers", "share"), [(0, 0.14), (0, 0.01), (2, 0.14)])
def test_augmentation_is_not_free_where_it_is_waited_for(workers, share):
    metrics = make_metrics(loader_share=np.full(200, share))
    told = describe_loading(metrics, make_experiment(patches={"workers": workers}))
    assert told.startswith("Bound by computing")
    assert "no time" not in told


def test_gradients_that_are_mostly_clipped():
    norms = np.where(np.arange(200) % 10 < 7, 15.0, 5.0)
    norms[:20] = 100  # warm-up does not count
    (finding,) = check_gradients(make_metrics(gradient_norm=norms), make_experiment())
    assert finding.numbers == "70% of the steps after warm-up exceed 12; median norm 15"
    unclipped = make_experiment(training={"gradient_clip": None})
    assert check_gradients(make_metrics(gradient_norm=norms), unclipped) == []


def test_a_loss_that_still_falls():
    loss = 2 - STEPS / 200  # at steps 151 to 200: from 1.245 to 1.0
    what, gain = describe_trend(make_metrics(loss=loss))
    assert what == "training loss"
    assert gain == pytest.approx(0.245 / 1.245)
    assert [finding.kind for finding in check_trend(make_metrics(loss=loss), make_experiment())] == [
        "still improving"
    ]
    unfinished = make_experiment(training={"steps": 201})
    assert check_trend(make_metrics(loss=loss), unfinished) == []


def test_validations_come_before_the_loss():
    dice = np.full(200, np.nan)
    dice[9::10] = 0.8  # at steps 160, 170 … 200 of the last quarter
    falling = make_metrics(loss=2 - STEPS / 200, dice=dice)
    assert describe_trend(falling) == ("validation Dice", 0.0)
    assert check_trend(falling, make_experiment()) == []
    dice[9::10] = 0.4 + STEPS[9::10] / 500
    (finding,) = check_trend(make_metrics(dice=dice), make_experiment())
    assert finding.numbers == f"by {0.08 / 0.72:.0%} over the last quarter of the steps"


def test_training_cases_that_fit_far_better():
    training, held_out = {"a": 0.9, "b": 0.92, "c": 0.91, "d": None}, {"e": 0.7, "f": 0.72, "g": 0.71}
    (finding,) = check_fit({"training": training, "held_out": held_out})
    assert (finding.kind, finding.weight) == ("overfitting", 2)
    assert "0.910 on 3 training cases, 0.710 on 3 held-out ones, a gap of 0.200" in finding.numbers
    # A gap of 0.2; with standard deviations of 0.2 and 0, its standard error is 0.2 / sqrt(3) = 0.115.
    scattered = {"training": {"a": 0.7, "b": 0.9, "c": 1.1}, "held_out": {"d": 0.7, "e": 0.7, "f": 0.7}}
    assert check_fit(scattered) == []


def test_two_cases_show_no_overfitting():
    few = {"training": {"a": 0.9, "b": 0.9}, "held_out": {"c": 0.7, "d": 0.7, "e": 0.7}}
    assert check_fit(few) == []


def test_training_cases_that_do_not_fit():
    (finding,) = check_fit({"training": {"a": 0.2}, "held_out": {"b": 0.25}})
    assert finding.kind == "underfitting"
    assert check_fit({}) == check_fit({"training": {}, "held_out": {}}) == []


def test_renorm_that_is_clipped_to_the_end(tmp_path):
    path = tmp_path / "probes.csv"
    rows = [f"{step},,clip_rate_r,{0.9 if step > 160 else 1}" for step in range(10, 201, 10)]
    path.write_text("\n".join(["step,layer,metric,value", *rows, "200,stem.1,clip_rate_r,0", "210,"]))
    experiment = make_experiment(network={"renorm_schedule": [0.1, 0.8, 0.8]})
    (finding,) = check_renorm(path, experiment)
    assert finding.numbers.startswith("90% of the channels")
    assert check_renorm(tmp_path / "none.csv", experiment) == []
    # Until its limits open, renorm is batch normalization and cuts everything.
    assert check_renorm(path, make_experiment(training={"steps": 2000})) == []


def test_the_weightiest_come_first():
    findings = [Finding(str(n), weight, "w", "n", "r") for n, weight in enumerate((1, 3, 2, 3))]
    assert [finding.kind for finding in order_findings(findings)] == ["1", "3", "2", "0"]
