"""`medseg-brn train`: one fold or all of them, as real processes."""

import subprocess
import sys

import pytest
import yaml

from medseg_brn.cases.phantom import make_phantom


def run(*arguments: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "medseg_brn", "train", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--all-folds", "--fold", 1), "give one of them"),
        (("--processes", 2), "go with --all-folds"),
        (("--final", "single"), "go with --all-folds"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(options, message, tmp_path):
    shown = run("hippocampus_mri", "-o", tmp_path / "run", *options, env={"COLUMNS": "200", "PATH": ""})
    assert shown.returncode == 2
    assert message in " ".join(shown.stderr.split())
    assert not (tmp_path / "run").exists()


def test_a_fold_that_does_not_exist_is_one_message(tmp_path):
    failed = run("hippocampus_mri", "-o", tmp_path / "run", "--fold", 5)
    assert failed.returncode == 1
    assert "fold 5 does not exist" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_train_explains_all_folds():
    shown = run("--help", env={"TERM": "dumb", "COLUMNS": "120", "PATH": ""})
    assert shown.returncode == 0
    for wanted in ("--all-folds", "--fold", "--final", "medseg-brn infer RUN"):
        assert wanted in shown.stdout


@pytest.mark.slow
def test_fold_is_short_for_the_option(tmp_path):
    heads = make_phantom(tmp_path / "heads", cases=3, voxel_mm=7.0)
    options = ["-s", f"dataset.path={heads}", "-s", "dataset.folds=3", "-s", "patches.size=[16,16,16]"]
    options += ["-s", "network.channels=[4,8]", "-s", "training.steps=1"]
    config = tmp_path / "empty.yaml"
    config.write_text("name: tiny\n")
    done = run(config, "-o", tmp_path / "run", "--fold", 2, *options)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["dataset"]["fold"] == 2
