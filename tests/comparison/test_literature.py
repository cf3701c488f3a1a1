"""What is known of small batches, found again by a small grid on the phantom."""

import pytest

from medseg_brn.comparison.config import load_comparison
from medseg_brn.comparison.execute import run_comparison

CHANGES = [
    "norms=[batch, group, instance, batch_renorm]",
    "batch_sizes=[1, 2]",
    "budget={patches: 300}",
    # n pairs tell a channel's noise of variances to about sqrt(2 / n): 240 pairs to 9 %
    "probes={samples: 10, patches: 960, volumes: 2}",
    "experiment.network.channels=[6, 12, 24]",
]


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> dict:
    """(norm, batch size) → what was measured in the smoke test's grid, trained somewhat longer."""
    folder = tmp_path_factory.mktemp("grid")
    results = run_comparison(load_comparison("compare_smoke", CHANGES), folder)
    assert {(result.status, result.error) for result in results} == {("finished", None)}
    return {(result.norm, result.batch_size): result.measurements for result in results}


@pytest.mark.slow
def test_batch_norm_computes_something_else_in_use_and_renorm_does_not(measured):
    """Buglakova et al. 2025, arXiv:2503.19545: train/eval disparity at batch size 1."""
    assert measured["batch", 1]["train_eval_disparity"] > 0.01
    assert measured["batch_renorm", 1]["train_eval_disparity"] < 0.001


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["instance", "group"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_norms_that_measure_their_tile_disagree_between_tiles_and_renorm_does_not(measured, norm, batch_size):
    """Buglakova et al. 2025: tile mismatch."""
    assert measured[norm, batch_size]["tile_mismatch"] > 0.005
    assert measured["batch_renorm", batch_size]["tile_mismatch"] < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "group", "instance", "batch_renorm"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_variance_is_as_noisy_as_theory_says(measured, norm, batch_size):
    found = measured[norm, batch_size]
    assert found["variance_noise_measured"] == pytest.approx(found["variance_noise_theory"], rel=0.15)


@pytest.mark.slow
def test_batch_norm_leaks_what_a_batchmate_tells(measured):
    """One real and one fake value, a standard deviation apart: .760 instead of .691."""
    assert measured["batch", 2]["leakage"] == pytest.approx(0.760 - 0.691, abs=0.01)
    assert measured["batch_renorm", 2]["leakage"] == pytest.approx(0.695 - 0.691, abs=0.01)
    assert measured["group", 2]["leakage"] == measured["instance", 2]["leakage"] == 0
