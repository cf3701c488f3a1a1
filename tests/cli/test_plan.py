"""`medseg-brn plan` as a person runs it: on a small phantom as a real process, and on bad datasets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medseg_brn.cases.phantom import make_phantom
from medseg_brn.experiment import load_experiment
from medseg_brn.planning.prediction import check_prediction


def medseg(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "medseg_brn", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.slow
def test_a_phantom_is_planned_and_the_plan_is_trained(tmp_path: Path):
    folder = make_phantom(tmp_path / "heads", cases=4, voxel_mm=6)
    config = tmp_path / "heads.yaml"
    done = medseg("plan", folder, "-o", config, "--time", "3m", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    for part in (
        "patches.size",
        "median of 4 cases",
        "s a step",
        "heads.yaml",
        "heads.plan.json",
        "heads.plan.html",
    ):
        assert part in done.stdout
    experiment = load_experiment(config)
    assert Path(experiment.dataset.path) == folder
    assert (experiment.dataset.folds, experiment.dataset.fold) == (4, 0)
    told = json.loads(config.with_suffix(".plan.json").read_text())
    assert told["prediction"]["measured"] is True
    assert told["fingerprint"]["class_cases"]["brain"] == 4
    assert told["choices"]["patches.size"]["value"] == list(experiment.patches.size)
    assert len(told["shapes_at_target_spacing"]) == 4
    page = config.with_suffix(".plan.html").read_text()
    assert page.count("<img") == 3, "three example cases"
    assert "Why" not in page and "z-scored by scan" in page

    refused = medseg("plan", folder, "-o", config)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "--force" in refused.stderr

    run = tmp_path / "run"
    trained = medseg(
        "train", config, "-o", run, "-s", "training.steps=12", "-s", "training.validate_every=null"
    )
    assert trained.returncode == 0, trained.stderr
    ratios = check_prediction(config.with_suffix(".plan.json"), run)
    assert set(ratios) == {"step_seconds", "peak_memory_mb"}
    # Memory does not depend on the machine's load; time is for tests/benchmarks/benchmark_plan.py.
    assert ratios["peak_memory_mb"] == pytest.approx(1, abs=0.25)


def test_a_bad_dataset_is_one_message_and_leaves_nothing(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text('{"labels": ')
    (tmp_path / "out").mkdir()
    done = medseg("plan", tmp_path / "data", "-o", tmp_path / "out" / "plan.yaml")
    assert (done.returncode, done.stdout) == (1, "")
    assert "dataset.json, line 1, column 12" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-o", "plan.txt"), "plan.txt is no YAML file's name; call it plan.txt.yaml"),
        (("-o", "new/plan.yaml"), "new, where plan.yaml is to be written, is no folder; make it first"),
        (("-o", "plan.yaml", "--time", "soon"), "Time 'soon' is no duration"),
        (("-o", "plan.yaml", "--memory", "lots"), "Memory 'lots' is no amount of memory"),
    ],
)
def test_wrong_options_are_told_before_any_work(tmp_path: Path, arguments, message):
    done = subprocess.run(
        [sys.executable, "-m", "medseg_brn", "plan", "phantom_mri", *arguments],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert message in " ".join(done.stderr.split())
    assert list(tmp_path.iterdir()) == []
