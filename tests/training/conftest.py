"""A tiny experiment on a tiny phantom cohort, for tests that really train."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from medseg_brn.cases.phantom import make_phantom

TINY = {
    "name": "tiny",
    "dataset": {"folds": 3, "fold": 0},
    "patches": {"size": [16, 16, 16], "workers": 0},
    "network": {"channels": [4, 8]},
    "training": {
        "steps": 30,
        "batch_size": 2,
        "accumulation": 2,
        "optimizer": "adamw",
        "checkpoint_every": 4,
        "probe_every": 3,
        "validate_every": 15,
        "validation_cases": 1,
    },
    "inference": {"overlap": 0.0},
}


@pytest.fixture(scope="session")
def phantom(tmp_path_factory) -> Path:
    """Three small heads."""
    return make_phantom(tmp_path_factory.mktemp("phantom") / "heads", cases=3, voxel_mm=6.0)


@pytest.fixture
def tiny_config(phantom, tmp_path) -> Path:
    """The tiny experiment's file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "dataset": {**TINY["dataset"], "path": str(phantom)}}))
    return path


@pytest.fixture(scope="session")
def command_line():
    """Makes the arguments of a `medseg-brn` process."""
    return lambda *arguments: [sys.executable, "-m", "medseg_brn", *map(str, arguments)]


@pytest.fixture(scope="session")
def one_thread() -> dict[str, str]:
    """Environment of a process that computes on one thread."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def run_command(command_line, one_thread):
    """Runs `medseg-brn` with arguments as a process of its own, on one thread."""

    def run(*arguments: object) -> subprocess.CompletedProcess:
        return subprocess.run(
            command_line(*arguments), capture_output=True, text=True, env=one_thread, check=False
        )

    return run
