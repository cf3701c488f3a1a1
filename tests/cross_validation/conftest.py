"""A tiny cross-validation on a tiny phantom cohort, done by real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from medseg_brn.cases.phantom import make_phantom

TINY = {
    "name": "tiny",
    "dataset": {"folds": 3},
    "patches": {"size": [16, 16, 16], "workers": 0, "augmentation": None},
    "network": {"channels": [4, 8]},
    "training": {
        "steps": 12,
        "batch_size": 2,
        "optimizer": "adamw",
        "learning_rate": 0.01,
        "ema_decay": None,
        "precision": "fp32",
        "checkpoint_every": 4,
    },
    "inference": {"overlap": 0.0},
}


@pytest.fixture(scope="session")
def phantom(tmp_path_factory) -> Path:
    """Six small heads."""
    return make_phantom(tmp_path_factory.mktemp("phantom") / "heads", cases=6, voxel_mm=7.0)


@pytest.fixture(scope="session")
def tiny_config(phantom, tmp_path_factory) -> Path:
    """The tiny experiment's file."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "dataset": {**TINY["dataset"], "path": str(phantom)}}))
    return path


@pytest.fixture(scope="session")
def command_line():
    """Makes the arguments of a `medseg-brn` process."""
    return lambda *arguments: [sys.executable, "-m", "medseg_brn", *map(str, arguments)]


@pytest.fixture(scope="session")
def run_command(command_line):
    """Runs `medseg-brn` with arguments as a process of its own."""

    def run(*arguments: object) -> subprocess.CompletedProcess:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            command_line(*arguments), capture_output=True, text=True, env=environment, check=False
        )

    return run


@pytest.fixture(scope="session")
def finished(tiny_config, run_command, tmp_path_factory) -> Path:
    """The folder of a cross-validation that is done; read it, and change a copy only."""
    folder = tmp_path_factory.mktemp("finished") / "small"
    done = run_command("train", tiny_config, "-o", folder, "--all-folds", "--processes", 2)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def wider(tiny_config, run_command, tmp_path_factory) -> Path:
    """Another configuration on the same folds, whose final model is one network."""
    folder = tmp_path_factory.mktemp("finished") / "wide"
    options = ("-s", "network.channels=[6,8]", "-s", "training.steps=8", "--final", "single")
    done = run_command("train", tiny_config, "-o", folder, "--all-folds", "--processes", 2, *options)
    assert done.returncode == 0, done.stderr
    return folder
