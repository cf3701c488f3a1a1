"""The whole study, as small as it gets, as a person runs it."""

import csv
import json
import subprocess
import sys

import pytest

from medseg_brn.studies.distributed.study import choose_steps, list_trials


def test_less_work_than_two_seeds_are_shorter_runs():
    assert choose_steps(1) == choose_steps(10) == choose_steps(0.4) == 120
    assert choose_steps(0.2) == 60
    assert choose_steps(0.01) == 20


def test_every_arm_is_trained_on_every_kind_of_shard():
    trials = list_trials(7, 3, 100)
    assert len(trials) == 5 + 3 * 2 * 5
    assert len(set(trials)) == len(trials)
    assert {trial.seed for trial in trials} == {7}


@pytest.mark.slow
def test_the_command_leaves_claims_measurements_and_a_page(tmp_path):
    folder = tmp_path / "outcome"
    command = [sys.executable, "-m", "medseg_brn", "study", "distributed", "-o", str(folder)]
    done = subprocess.run([*command, "--scale", "0.01"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "summary.json").read_text())
    claims = {claim["name"]: claim for claim in summary["claims"]}
    assert len(claims) == 5 + 1 + 2 * (2 + 2 + 4)
    assert claims["collectives, SyncBatchNorm"]["measured"] == 16
    assert claims["collectives, renorm, merged every step"]["measured"] == 1
    assert claims["collectives, renorm, merged every 10 steps"]["measured"] == 0.1
    assert claims["workers' statistics after a merge"]["measured"] == 0
    assert "iid, renorm, merged every step against SyncBatchNorm, 4 workers" in claims
    with (folder / "measurements.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    networks = [row for row in rows if row["part"] == "network"]
    assert len(networks) == 2 * 2 * 2 * 5
    assert all(0 <= float(row["dice"]) <= 1 for row in networks)
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 8
    assert "SyncBatchNorm" in page
