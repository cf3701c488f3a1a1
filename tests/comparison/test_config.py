"""Comparison files: the shipped ones, and what a mistake is told."""

import pytest

from medseg_brn.comparison.config import NORMS, BudgetConfig, load_comparison
from medseg_brn.comparison.grid import plan_runs
from medseg_brn.errors import ConfigError
from medseg_brn.experiment import load_experiment, shipped_comparisons


@pytest.mark.parametrize("path", shipped_comparisons(), ids=lambda path: path.stem)
def test_each_shipped_comparison_makes_valid_runs(path):
    assert load_comparison(path.stem) == load_comparison(path)
    assert plan_runs(load_comparison(path))


def test_the_smoke_grid_has_four_norms_at_batch_sizes_1_to_4():
    runs = plan_runs(load_comparison("compare_smoke"))
    assert len(runs) == 16
    assert {run.batch_size for run in runs} == {1, 2, 3, 4}
    assert {run.norm for run in runs} == {"batch", "group", "instance", "batch_renorm"}


@pytest.mark.parametrize("name", NORMS)
def test_every_known_norm_makes_a_valid_run(write_comparison, name):
    (run,) = plan_runs(load_comparison(write_comparison(norms=[name], batch_sizes=[2])))
    assert run.experiment.network.norm == NORMS[name].network["norm"]
    assert NORMS[name].description


def test_a_norm_of_ones_own_is_one_entry(write_comparison):
    mine = {"name": "mine", "network": {"norm": "batch_renorm", "r_max": 2.0}, "training": {"ema_decay": 0.9}}
    (run,) = plan_runs(load_comparison(write_comparison(norms=[mine], batch_sizes=[1])))
    assert (run.norm, run.experiment.network.r_max, run.experiment.training.ema_decay) == ("mine", 2.0, 0.9)
    assert not run.experiment.network.weight_standardization  # as in the norms that are known
    assert load_comparison(write_comparison(norms=[mine])).arms["mine"].describe() == (
        "norm batch_renorm, r_max 2.0, training.ema_decay 0.9"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norms": ["batchnorm"]}, "norm 'batchnorm' is not known; choose from batch, batch_slow"),
        ({"norms": ["batch", "batch"]}, "norms repeat batch"),
        ({"norms": [{"name": "../up"}]}, "letters, digits and underscores"),
        ({"norms": []}, "norms: "),
        ({"reference": "group"}, "reference 'group' is none of the norms batch_renorm, instance"),
        ({"budget": {}}, "give either patches or steps"),
        ({"budget": {"patches": 1, "steps": 1}}, "give either patches or steps"),
        ({"batch_size": [1]}, "unknown key 'batch_size'; did you mean 'batch_sizes'?"),
        ({"inputs": {}}, "inputs is empty"),
        ({"batch_sizes": [1, 1]}, "batch sizes [1, 1] are to be at least one, each named once"),
        ({"inputs": {"raw": []}}, "batch sizes [] are to be at least one"),
        ({"batch_sizes": [1, 4]}, "probes.patches 12 do not fill four batches of 4; give at least 16"),
        ({"norms": [{"name": "big", "training": {"batch_size": 8}}]}, "sets training.batch_size"),
        ({"norms": [{"name": "own", "network": {"norm": "domain_batch"}}]}, "takes the site of every patch"),
        ({"experiment": {"network": {"r_max": 2}}}, "experiment.network.r_max is set by the comparison"),
        ({"experiment": {"training": {"accumulation": 2}}}, "experiment.training.accumulation is set by"),
        ({"inputs": {"zscore": None}}, "inputs.zscore"),
    ],
)
def test_a_mistake_is_told_with_its_place(write_comparison, changes, message):
    path = write_comparison(**changes)
    with pytest.raises(ConfigError) as caught:
        load_comparison(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_mistake_in_the_experiment_names_the_norm(write_comparison):
    wrong = {"name": "mine", "network": {"norm": "group", "groups": 4}}
    with pytest.raises(ConfigError, match=r"norm 'mine' of 'tiny': unknown key 'network\.groups'"):
        plan_runs(load_comparison(write_comparison(norms=[wrong])))


def test_an_experiment_is_no_comparison_and_the_other_way_round(write_comparison):
    with pytest.raises(ConfigError, match="names no norms, so it is no comparison"):
        load_comparison("demo")
    with pytest.raises(ConfigError, match=r"is a comparison of several runs; use medseg-brn compare"):
        load_experiment(write_comparison())


def test_overrides_reach_the_experiment(write_comparison):
    comparison = load_comparison(write_comparison(), ["seeds=2", "experiment.training.learning_rate=0.5"])
    assert comparison.seeds == 2
    assert plan_runs(comparison)[-1].experiment.training.learning_rate == 0.5


@pytest.mark.parametrize(
    ("budget", "steps"), [({"patches": 12}, [12, 6, 4, 3]), ({"steps": 12}, [12, 12, 12, 12])]
)
def test_a_budget_is_patches_or_steps(budget, steps):
    assert [BudgetConfig(**budget).count_steps(size) for size in (1, 2, 3, 4)] == steps
