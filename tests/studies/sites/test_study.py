"""The whole study, as small as it gets, as a person runs it."""

import csv
import json
import subprocess
import sys

import pytest

from medseg_brn.studies.sites.arms import LINEAR_ARMS, SCAN_ARMS
from medseg_brn.studies.sites.study import choose_size


def run(folder, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "medseg_brn", "study", "sites", "-o", str(folder), "--scale", "0.01"]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True)


def test_less_work_than_two_seeds_are_shorter_runs():
    assert choose_size(10, 1500, 100, 1) == (10, 1500)
    assert choose_size(10, 1500, 100, 3) == (30, 1500)
    assert choose_size(10, 1500, 100, 0.1) == (2, 750)
    assert choose_size(10, 1500, 100, 0.01) == (2, 100)


def test_a_dataset_that_is_not_there_is_told_before_anything_is_trained(tmp_path):
    done = run(tmp_path / "out", "--data", tmp_path / "nowhere")
    assert done.returncode == 1
    assert "nowhere" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_leaves_claims_measurements_and_a_page(tmp_path):
    done = run(tmp_path / "out")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert len(summary["claims"]) == 15 + 16
    assert summary["settings"]["anatomies"] == "heads of the phantom"
    with (tmp_path / "out" / "measurements.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["arm"] for row in rows if row["part"] == "linear"] == [arm.name for arm in LINEAR_ARMS] * 2
    assert [row["arm"] for row in rows if row["part"] == "scans"] == [arm.name for arm in SCAN_ARMS] * 2
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<svg") == 6 and page.count("<img") == 2
    assert "What this does not tell" in page


@pytest.mark.slow
def test_scans_of_a_dataset_take_the_phantoms_place(tmp_path, data_folder):
    done = run(tmp_path / "out", "--data", data_folder / "Task04_Hippocampus")
    assert done.returncode == 0, done.stderr
    settings = json.loads((tmp_path / "out" / "summary.json").read_text())["settings"]
    assert settings["anatomies"].startswith("208 scans of")
