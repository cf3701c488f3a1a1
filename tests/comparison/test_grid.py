"""The grid: which runs there are, and that nothing but what is compared differs between them."""

import pytest
import torch

from medseg_brn.comparison.config import NORMS, load_comparison
from medseg_brn.comparison.grid import plan_runs
from medseg_brn.training.folder import list_differences
from medseg_brn.training.state import make_state


def test_cells_of_one_seed_come_before_the_next_seed(write_comparison):
    runs = plan_runs(load_comparison(write_comparison(seeds=2)))
    assert [run.name for run in runs] == [
        f"zscored-{norm}-b{batch_size}-s{seed}"
        for seed in (0, 1)
        for batch_size in (1, 2)
        for norm in ("batch_renorm", "instance")
    ]


def test_inputs_may_have_batch_sizes_of_their_own(write_comparison):
    runs = plan_runs(load_comparison(write_comparison(inputs={"zscored": None, "raw": [1]})))
    assert sorted({(run.input, run.batch_size) for run in runs}) == [
        ("raw", 1),
        ("zscored", 1),
        ("zscored", 2),
    ]
    assert {(run.input, run.experiment.preprocessing.intensity) for run in runs} == {
        ("raw", "none"),
        ("zscored", "zscore"),
    }


@pytest.mark.parametrize(
    ("rule", "rates"),
    [
        ("constant", [0.004, 0.004, 0.004]),
        ("sqrt", [0.002828, 0.004, 0.005657]),
        ("linear", [0.002, 0.004, 0.008]),
    ],
)
def test_the_learning_rate_follows_the_batch_size_by_the_rule(write_comparison, rule, rates):
    comparison = load_comparison(
        write_comparison(
            learning_rate_rule=rule, batch_sizes=[1, 2, 4], norms=["instance"], probes={"patches": 16}
        )
    )
    assert [run.experiment.training.learning_rate for run in plan_runs(comparison)] == rates


def test_runs_of_one_batch_size_and_seed_differ_in_the_norm_alone(write_comparison):
    runs = plan_runs(load_comparison(write_comparison(norms=["batch_renorm", "group"], batch_sizes=[1])))
    changed = list_differences(runs[0].experiment, runs[1].experiment)
    assert set(changed) == {"name", "network.norm"}


def test_seeds_share_the_folds(write_comparison):
    runs = plan_runs(load_comparison(write_comparison(seeds=3)))
    assert {run.experiment.seed for run in runs} == {0, 1, 2}
    assert {run.experiment.split_seed for run in runs} == {0}


def test_all_norms_begin_with_the_same_weights_for_a_seed(write_comparison):
    runs = plan_runs(load_comparison(write_comparison(norms=list(NORMS), batch_sizes=[1])))
    states = [make_state(run.experiment, 1, 3, torch.device("cpu")).network for run in runs]
    first = {name: value for name, value in states[0].named_parameters() if value.dim() > 1}
    for network in states[1:]:
        weights = {name: value for name, value in network.named_parameters() if value.dim() > 1}
        assert weights.keys() == first.keys()
        assert all(torch.equal(weights[name], first[name]) for name in first)


def test_precision_is_the_same_for_all_runs(write_comparison):
    comparison = load_comparison(write_comparison(), ["experiment.training.precision=auto"])
    (precision,) = {run.experiment.training.precision for run in plan_runs(comparison)}
    assert precision in ("bf16", "fp32")
