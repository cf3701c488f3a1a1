"""Grids that really train: complete, resumed after a kill, extended, with runs that diverge or fail."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from medseg_brn.comparison.config import ProbesConfig, load_comparison
from medseg_brn.comparison.execute import run_comparison
from medseg_brn.comparison.run import RESULT_NAME, cut_middle, read_result
from medseg_brn.errors import ConfigError

PROBES = ProbesConfig(samples=3, patches=12, volumes=1)
MEASURED = {
    "variance_noise_measured", "variance_noise_theory", "mean_noise_measured", "mean_noise_theory",
    "intraclass_correlation", "train_eval_disparity", "dice_disparity", "batchmate_dependence",
    "backward_cross_talk", "gradient_fidelity", "gradient_noise_scale", "tile_mismatch", "leakage",
    "spike_fraction", "seconds_per_step", "peak_memory_mb",
}  # fmt: skip
MEASURED_OF_BATCH = MEASURED | {
    "estimation_shift_mean", "estimation_shift_var", "statistics_drift", "worker_divergence",
}  # fmt: skip
MEASURED_OF_RENORM = MEASURED_OF_BATCH | {"clip_rate_r", "clip_rate_d", "clipped_mass_r", "clipped_mass_d"}


def read_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("norm", "measured"),
    [
        ("batch_renorm", MEASURED_OF_RENORM),
        ("batch", MEASURED_OF_BATCH),
        ("instance", MEASURED),
        ("mabn", MEASURED_OF_BATCH - {"estimation_shift_mean"}),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_every_metric_of_the_vocabulary_is_measured(grid, norm, measured, batch_size):
    result = read_result(grid / "runs" / f"zscored-{norm}-b{batch_size}-s0", PROBES)
    found = {name for name, value in result.measurements.items() if value is not None}
    assert measured <= found, measured - found
    assert 0 <= result.dice <= 1
    assert result.dice == pytest.approx(np.mean([d for d in result.class_dice.values() if d is not None]))


def test_what_must_be_nothing_is_nothing(grid):
    results = {path.name: read_result(path, PROBES) for path in (grid / "runs").iterdir()}
    instance = results["zscored-instance-b2-s0"].measurements
    for metric in ("train_eval_disparity", "batchmate_dependence", "backward_cross_talk", "leakage"):
        assert instance[metric] == 0
    assert instance["tile_mismatch"] > 0
    for norm in ("batch_renorm", "batch", "mabn"):
        measured = results[f"zscored-{norm}-b1-s0"].measurements
        assert measured["tile_mismatch"] <= 1e-6
        assert measured["batchmate_dependence"] == 0  # there are none at batch size 1


def test_the_tables_hold_every_run_and_sample(grid):
    assert len(read_rows(grid / "runs.csv")) == 8
    probes = read_rows(grid / "probes.csv")
    sampled = {(row["run"], row["step"]) for row in probes if row["metric"] == "statistics_drift"}
    assert {step for run, step in sampled if run == "zscored-batch_renorm-b1-s0"} == {"4", "8", "12"}
    assert {row["metric"] for row in probes if row["step"] == "" and row["norm"] == "instance"} >= {
        "variance_noise_measured",
        "variance_noise_theory",
    }


def test_the_summary_fills_every_cell(grid):
    summary = json.loads((grid / "summary.json").read_text())
    assert summary["norms"] == ["batch_renorm", "batch", "instance", "mabn"]
    assert summary["batch_sizes"] == [1, 2]
    assert len(summary["cells"]) == 8
    for cell in summary["cells"]:
        filled = ("dice_mean", "dice_worst", "dice_interval", "train_eval_disparity", "tile_mismatch")
        assert all(cell[name] is not None for name in filled)
        assert cell["variance_noise"].keys() == {"measured", "theory"}
    assert all(
        verdict.keys() >= {"claim", "effect", "interval", "p_adjusted", "conclusion"}
        for verdict in summary["verdicts"]
    )


def test_the_report_is_one_page_that_names_every_norm(grid):
    page = (grid / "report.html").read_text(encoding="utf-8")
    assert all(norm in page for norm in ("batch_renorm", "batch", "instance", "mabn"))
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_seams_are_kept_as_plain_arrays(grid):
    with np.load(grid / "runs" / "zscored-instance-b1-s0" / "seams.npz", allow_pickle=False) as seams:
        assert seams["full"].shape == seams["tiled"].shape == seams["image"].shape
        assert list(seams["cuts_x"]) == [16]
        assert np.abs(seams["full"] - seams["tiled"]).max() > 0


def test_a_run_that_diverges_is_a_result(write_comparison, tmp_path):
    wild = {"name": "wild", "network": {"norm": "none"}}
    wild["training"] = {
        "optimizer": "sgd",
        "learning_rate": 1e30,
        "gradient_clip": None,
        "warmup_fraction": 0,
    }
    path = write_comparison(norms=["instance", wild], batch_sizes=[2])
    results = run_comparison(load_comparison(path), tmp_path / "grid", jobs=1)
    assert [(result.norm, result.status, result.dice == 0) for result in results] == [
        ("instance", "finished", False),
        ("wild", "diverged", True),
    ]
    assert "are not both finite" in results[1].error
    summary = json.loads((tmp_path / "grid" / "summary.json").read_text())
    (cell,) = [cell for cell in summary["cells"] if cell["norm"] == "wild"]
    assert (cell["collapsed"], cell["dice_worst"]) == (1, 0)
    again = run_comparison(load_comparison(path), tmp_path / "grid", jobs=1)
    assert again == results


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_network_spoilt_by_its_last_step_has_diverged(write_comparison, tmp_path, norm):
    last = {"optimizer": "sgd", "learning_rate": 1e38, "gradient_clip": None, "warmup_fraction": 0}
    wild = {"name": "wild", "network": {"norm": norm}, "training": last}
    path = write_comparison(norms=[wild], batch_sizes=[2], budget={"steps": 1})
    (result,) = run_comparison(load_comparison(path), tmp_path / "grid", jobs=1)
    assert (result.status, result.dice) == ("diverged", 0)


@pytest.mark.slow
def test_a_run_that_cannot_be_probed_keeps_its_dice(write_comparison, tmp_path):
    path = write_comparison(norms=["instance"], batch_sizes=[2])
    folder = tmp_path / "grid"
    (first,) = run_comparison(load_comparison(path), folder, jobs=1)
    run_folder = folder / "runs" / first.name
    (run_folder / RESULT_NAME).unlink()
    (run_folder / "examination.json").unlink()
    (run_folder / "examination.json").mkdir()  # nothing can be written there
    (again,) = run_comparison(load_comparison(path), folder, jobs=1)
    assert (again.status, again.case_dice) == ("finished", first.case_dice)
    assert again.error.startswith("not probed: ")
    assert again.measurements["seconds_per_step"] == first.measurements["seconds_per_step"]


@pytest.mark.parametrize("damage", ["", "{", "5", "null", '{"result": {}, "probes": {}}'])
def test_a_damaged_result_is_none(grid, tmp_path, damage):
    whole = (grid / "runs" / "zscored-instance-b1-s0" / RESULT_NAME).read_text()
    (tmp_path / RESULT_NAME).write_text(whole)
    assert read_result(tmp_path, PROBES) is not None
    (tmp_path / RESULT_NAME).write_text(damage)
    assert read_result(tmp_path, PROBES) is None


def test_a_damaged_result_is_made_again_without_training(write_comparison, tmp_path):
    path = write_comparison(norms=["instance"], batch_sizes=[2])
    folder = tmp_path / "grid"
    (first,) = run_comparison(load_comparison(path), folder, jobs=1)
    run_folder = folder / "runs" / first.name
    trained = (run_folder / "metrics.csv").stat().st_mtime_ns
    (run_folder / RESULT_NAME).write_text((run_folder / RESULT_NAME).read_text()[:100])
    assert run_comparison(load_comparison(path), folder, jobs=1) == [first]
    assert (run_folder / "metrics.csv").stat().st_mtime_ns == trained


def test_other_probes_examine_again_without_training(write_comparison, tmp_path):
    path = write_comparison(norms=["instance"], batch_sizes=[2])
    folder = tmp_path / "grid"
    (first,) = run_comparison(load_comparison(path), folder, jobs=1)
    metrics = folder / "runs" / first.name / "metrics.csv"
    trained = metrics.stat().st_mtime_ns
    (second,) = run_comparison(load_comparison(path, ["probes.tile_size=[8,8,8]"]), folder, jobs=1)
    assert second.measurements["tile_mismatch"] != first.measurements["tile_mismatch"]
    assert metrics.stat().st_mtime_ns == trained


@pytest.mark.slow
def test_data_prepared_with_other_options_are_refused(write_comparison, tmp_path):
    path = write_comparison(norms=["instance"], batch_sizes=[2])
    run_comparison(load_comparison(path), tmp_path / "grid", jobs=1)
    other = load_comparison(path, ["norms=[group]", "experiment.preprocessing.spacing_mm=[12,12,12]"])
    with pytest.raises(ConfigError, match=r"made with other options: preprocessing\.spacing_mm"):
        run_comparison(other, tmp_path / "grid", jobs=1)


def test_what_cannot_train_is_told_before_any_data_is_read(write_comparison, tmp_path):
    path = write_comparison(experiment={"dataset": {"path": "nosuch"}, "patches": {"size": [15, 16, 16]}})
    with pytest.raises(ConfigError, match=r"Patch size \(15, 16, 16\) does not fit"):
        run_comparison(load_comparison(path), tmp_path / "grid")
    assert not (tmp_path / "grid").exists()


def test_the_middle_is_cut_of_what_is_longer():
    image = np.arange(10 * 3).reshape(1, 10, 3, 1)
    assert cut_middle(image, (4, 8, 8)).tolist() == image[:, 3:7].tolist()


@pytest.mark.slow
def test_a_run_that_fails_is_told_and_tried_again(write_comparison, tmp_path):
    comparison = load_comparison(write_comparison(norms=["instance", "batch"], batch_sizes=[2]))
    obstacle = tmp_path / "grid" / "runs" / "zscored-batch-b2-s0" / "notes.txt"
    obstacle.parent.mkdir(parents=True)
    obstacle.write_text("mine")
    results = run_comparison(comparison, tmp_path / "grid", jobs=1)
    assert [result.status for result in results] == ["finished", "failed"]
    assert "is not empty and holds no run" in results[1].error
    assert obstacle.read_text() == "mine"
    (row,) = [row for row in read_rows(tmp_path / "grid" / "runs.csv") if row["norm"] == "batch"]
    assert (row["status"], row["dice"]) == ("failed", "")
    obstacle.unlink()
    results = run_comparison(comparison, tmp_path / "grid", jobs=1)
    assert [result.status for result in results] == ["finished", "finished"]


@pytest.mark.slow
def test_more_seeds_add_runs_and_other_options_are_refused(write_comparison, tmp_path):
    path = write_comparison(norms=["instance"], batch_sizes=[2])
    run_comparison(load_comparison(path), tmp_path / "grid", jobs=1)
    result = tmp_path / "grid" / "runs" / "zscored-instance-b2-s0" / "result.json"
    before = result.stat().st_mtime_ns
    results = run_comparison(load_comparison(path, ["seeds=2"]), tmp_path / "grid", jobs=1)
    assert [result.seed for result in results] == [0, 1]
    assert result.stat().st_mtime_ns == before
    with pytest.raises(
        ConfigError, match=r"was made with other options: training\.learning_rate \(0\.004 → 0\.1\)"
    ):
        run_comparison(
            load_comparison(path, ["experiment.training.learning_rate=0.1"]), tmp_path / "grid", jobs=1
        )


@pytest.mark.slow
def test_a_killed_grid_goes_on_where_it_was(write_comparison, tmp_path):
    path = write_comparison(norms=["batch_renorm", "batch"], batch_sizes=[1], budget={"patches": 60})
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def command(folder):
        return [sys.executable, "-m", "medseg_brn", "compare", path, "-o", folder, "--jobs", "1"]

    process = subprocess.Popen(
        command(tmp_path / "killed"), env=environment, start_new_session=True, stderr=subprocess.DEVNULL
    )
    runs = tmp_path / "killed" / "runs"
    while process.poll() is None and not (
        list(runs.glob("*/result.json")) and list(runs.glob("*-batch-b1-*/checkpoint/*"))
    ):
        time.sleep(0.02)
    assert process.poll() is None, "the grid ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in runs.glob("*/result.json")}
    assert len(done) == 1

    for folder in ("killed", "whole"):
        subprocess.run(command(tmp_path / folder), env=environment, check=True, capture_output=True)
    assert all(path.stat().st_mtime_ns == moment for path, moment in done.items())
    unlike = ("seconds_per_step", "peak_memory_mb")  # what the machine was like
    tables = [
        [
            {key: value for key, value in row.items() if key not in unlike}
            for row in read_rows(tmp_path / folder / "runs.csv")
        ]
        for folder in ("killed", "whole")
    ]
    assert tables[0] == tables[1]
