"""`medseg-brn evaluate` as a person runs it: a process, its output and its exit code."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medseg_brn.volumes.volume import Grid, Volume
from medseg_brn.volumes.writing import write_volume


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "medseg_brn", "evaluate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def write(path: Path, voxels: int) -> None:
    array = np.zeros((5, 5, 5), dtype=np.uint8)
    array.reshape(-1)[:voxels] = 1
    write_volume(Volume(array, Grid(array.shape, np.eye(4))), path)


@pytest.fixture
def cohort(tmp_path):
    for name in "abcde":
        write(tmp_path / "predictions" / f"{name}.nii.gz", 2)
        write(tmp_path / "labelsTr" / f"{name}.nii.gz", 3 if name == "a" else 2)
    write(tmp_path / "labelsTr" / "held_back.nii.gz", 1)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "[red]kidney"}}))
    return tmp_path


def test_table_json_and_exit_code(cohort):
    result = run(cohort / "predictions", cohort / "labelsTr", "-o", cohort / "metrics.json")
    assert result.returncode == 0, result.stderr
    assert "[red]kidney" in result.stdout
    assert "0.9600" in result.stdout  # (4 * 1 + 2*2/5) / 5
    assert "Lowest Dice: a 0.800" in result.stdout
    assert "References without a prediction, passed over: 1" in result.stdout
    content = json.loads((cohort / "metrics.json").read_text())
    assert content["summary"]["dice_mean"] == pytest.approx(0.96)
    assert content["summary"]["classes"]["[red]kidney"]["dice_mean"] == pytest.approx(0.96)
    assert [case["case"] for case in content["cases"]] == list("abcde")
    assert content["references_without_prediction"] == ["held_back"]


def test_regions_and_ignored_voxels(cohort):
    """The third voxel of a's reference, which the prediction lacks, is not annotated; 2 occurs nowhere."""
    array = np.zeros((5, 5, 5), dtype=np.uint8)
    array.reshape(-1)[:3] = (1, 1, 9)
    write_volume(Volume(array, Grid(array.shape, np.eye(4))), cohort / "labelsTr" / "a.nii.gz")
    content = {"labels": {"all": [1, 2], "part": 2, "ignore": 9}, "regions_class_order": [1, 2]}
    (cohort / "other.json").write_text(json.dumps(content))
    told = ("--dataset", cohort / "other.json", "-o", cohort / "metrics.json")
    result = run(cohort / "predictions", cohort / "labelsTr", *told)
    assert result.returncode == 0, result.stderr
    classes = json.loads((cohort / "metrics.json").read_text())["summary"]["classes"]
    assert classes["all"]["dice_mean"] == 1
    assert classes["part"]["absent"] == 5


def test_a_bad_case_is_named_and_the_rest_written(cohort):
    (cohort / "predictions" / "b.nii.gz").write_bytes(b"")
    result = run(cohort / "predictions", cohort / "labelsTr", "-o", cohort / "metrics.json")
    assert result.returncode == 1
    assert "1 of 5 cases could not be evaluated" in result.stderr
    assert "b.nii.gz" in result.stderr
    assert "Traceback" not in result.stderr
    content = json.loads((cohort / "metrics.json").read_text())
    assert [failure["case"] for failure in content["failed"]] == ["b"]
    assert len(content["cases"]) == 4


def test_wrong_folder_is_one_message(cohort):
    result = run(cohort / "predictions", cohort / "nowhere", "-o", cohort / "metrics.json")
    assert result.returncode == 1
    assert result.stderr.strip().endswith(
        "nowhere does not exist; give a folder of label maps, or one label map."
    )
    assert not (cohort / "metrics.json").exists()


def test_help_shows_an_example():
    result = run("--help")
    assert result.returncode == 0
    assert "labelsTr -o metrics.json" in " ".join(result.stdout.split())
