"""A run killed at any moment and resumed ends with the same weights, bit for bit, as one left alone."""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from medseg_brn.reports.step_records import read_metrics
from medseg_brn.volumes.reading import read_volume, volume_stem
from medseg_brn.volumes.writing import write_volume

STATE = "checkpoint/step_{:08d}/state.safetensors"


def train_until_killed(arguments: list, env: dict, after_seconds: float) -> None:
    """Start a run in a session of its own and kill it, loader processes and all, without warning."""
    process = subprocess.Popen(
        arguments, env=env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(after_seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def train_until_step(arguments: list, env: dict, run: Path, step: int) -> None:
    """Kill the run once its records show the step."""
    process = subprocess.Popen(
        arguments, env=env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not any(row.step >= step for row in read_metrics(run / "metrics.csv")):
        time.sleep(0.02)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def assert_same_end(one: Path, other: Path, steps: int) -> None:
    for name in (STATE.format(steps), "model/model.safetensors"):
        first, second = load_file(one / name), load_file(other / name)
        assert first.keys() == second.keys()
        different = [key for key in first if not first[key].equal(second[key])]
        assert different == [], f"{name}: {len(different)} of {len(first)} tensors differ"
    losses = [
        [(row.step, row.loss, row.dice) for row in read_metrics(run / "metrics.csv")] for run in (one, other)
    ]
    assert losses[0] == losses[1]
    for name in ("probes.csv", "patches.csv", "fit.json", "suspects.json"):
        assert (one / name).read_text() == (other / name).read_text(), name


@pytest.fixture
def uninterrupted(run_command, tiny_config, tmp_path) -> Path:
    run = tmp_path / "uninterrupted"
    done = run_command("train", tiny_config, "-o", run)
    assert done.returncode == 0, done.stderr
    return run


def test_killed_between_checkpoints_and_resumed(
    uninterrupted, run_command, command_line, one_thread, tiny_config, tmp_path
):
    run = tmp_path / "killed"
    train_until_step(command_line("train", tiny_config, "-o", run), one_thread, run, step=5)
    assert not (run / "model").exists()
    resumed = run_command("train", tiny_config, "-o", run, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_end(uninterrupted, run, steps=30)


@pytest.mark.slow
def test_killed_at_ten_random_moments(
    uninterrupted, run_command, command_line, one_thread, tiny_config, tmp_path
):
    start = time.monotonic()
    assert run_command("train", tiny_config, "-o", tmp_path / "timed").returncode == 0
    duration = time.monotonic() - start
    moments = random.Random(0)
    for number in range(10):
        run = tmp_path / f"killed{number}"
        train_until_killed(
            command_line("train", tiny_config, "-o", run), one_thread, moments.uniform(0.0, duration)
        )
        resume = ["--resume"] if (run / "config.yaml").is_file() else []
        resumed = run_command("train", tiny_config, "-o", run, *resume)
        assert resumed.returncode == 0, resumed.stderr
        assert_same_end(uninterrupted, run, steps=30)


def test_a_finished_run_is_extended(run_command, tiny_config, tmp_path):
    run = tmp_path / "run"
    assert run_command("train", tiny_config, "-o", run, "-s", "training.steps=4").returncode == 0
    extended = run_command("train", tiny_config, "-o", run, "-s", "training.steps=6", "--resume")
    assert extended.returncode == 0, extended.stderr
    assert [row.step for row in read_metrics(run / "metrics.csv")] == [1, 2, 3, 4, 5, 6]
    assert (run / STATE.format(6)).is_file()


def test_loader_processes_do_not_change_the_result(run_command, tiny_config, uninterrupted, tmp_path):
    run = tmp_path / "workers"
    done = run_command("train", tiny_config, "-o", run, "-s", "patches.workers=2")
    assert done.returncode == 0, done.stderr
    assert_same_end(uninterrupted, run, steps=30)


def test_a_run_is_not_resumed_on_another_dataset(run_command, phantom, tiny_config, tmp_path):
    cohort = tmp_path / "cohort"
    shutil.copytree(phantom, cohort)
    arguments = ("train", tiny_config, "-o", tmp_path / "run", "-s", f"dataset.path={cohort}")
    assert run_command(*arguments, "-s", "training.steps=2").returncode == 0
    label_path = next((cohort / "labelsTr").glob("*.nii.gz"))
    label_map = read_volume(label_path)
    label_map.array[0, 0, 0] = 1
    write_volume(label_map, label_path)
    resumed = run_command(*arguments, "-s", "training.steps=4", "--resume")
    assert resumed.returncode == 1
    assert f"cases added, removed or changed: {volume_stem(label_path)}" in resumed.stderr
