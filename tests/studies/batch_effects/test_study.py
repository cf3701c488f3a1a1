"""The study through the command line, on little data."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from medseg_brn.studies.batch_effects.simulation import Setting, simulate_dataset

pytest.importorskip("scanpy")


def run(*arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "medseg_brn", "study", "batch-effects", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def write_own_data(path, association):
    part = simulate_dataset(association, True, (5,), Setting(genes=12, differing=6, batches=2)).training
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["sample", "disease", "batch", *(f"gene {i}" for i in range(12))])
        for index, (group, batch) in enumerate(zip(part.groups, part.batches, strict=True)):
            table.writerow([f"s{index}", "yes" if group else "no", f"lab {batch}", *part.values[index]])
    return path


@pytest.mark.slow
def test_the_simulation_leaves_its_claims_measurements_and_page(tmp_path):
    done = run("-o", tmp_path / "out", "--scale", "0.01", "--seed", "3")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    claims = {claim["name"]: claim for claim in summary["claims"]}
    assert len(claims) == 15
    assert claims["Balanced: ComBat removes the batch effect"]["measured"] < 0
    assert claims["Balanced: BatchNorm takes γ out of training"]["measured"] == pytest.approx(0, abs=1e-6)
    assert claims["Confounded: renorm keeps γ"]["measured"] == pytest.approx(1, abs=0.2)
    with (tmp_path / "out" / "measurements.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    arms = [row for row in rows if row["method"]]
    # Two datasets, with δ and without, of five associations and 14 arms, two of which V = 1 does not allow.
    assert len(arms) == 2 * 2 * (5 * 14 - 2)
    assert all(0 <= float(row["auc"]) <= 1 for row in arms)
    page = (tmp_path / "out" / "report.html").read_text()
    for text in ("AUC, samples of an unseen batch", "Found where there is nothing", "batch in the model"):
        assert text in page


@pytest.mark.slow
def test_own_data_that_nothing_tells_apart_are_called_so(tmp_path):
    path = write_own_data(tmp_path / "own.csv", 1.0)
    done = run("-o", tmp_path / "out", "--scale", "0.01", "--data", path, "--group", "disease")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    claims = {claim["name"]: claim for claim in summary["claims"]}
    assert (
        claims["Group and batch can be told apart"]["measured"],
        claims["Group and batch can be told apart"]["holds"],
    ) == (1, False)
    assert summary["settings"]["samples"] == 48 and summary["settings"]["genes"] == 12
    assert (
        "Nothing in these data separates group from batch" in (tmp_path / "out" / "report.html").read_text()
    )


@pytest.mark.slow
def test_own_data_are_cross_validated_with_every_arm(tmp_path):
    path = write_own_data(tmp_path / "own.csv", 0.5)
    done = run("-o", tmp_path / "out", "--scale", "0.01", "--data", path, "--group", "disease")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out" / "measurements.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    true = [row for row in rows if row["method"] and row["labelling"] == "0"]
    assert len(true) == 14 * 2 and all(np.isfinite(float(row["auc_within"])) for row in true)
    permuted = [row for row in rows if row["method"] and row["labelling"] != "0"]
    assert len(permuted) == 7 * 2
    assert {row["test"] for row in rows if row["test"]} >= {"ComBat with group", "batch in the model"}


def test_a_missing_column_is_told_in_one_message(tmp_path):
    path = write_own_data(tmp_path / "own.csv", 0.5)
    done = run("-o", tmp_path / "out", "--data", path)
    assert done.returncode == 1 and "no column 'group'" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
