"""A tiny comparison on a tiny phantom cohort, for tests that really train."""

from pathlib import Path

import pytest
import yaml

from medseg_brn.cases.phantom import make_phantom
from medseg_brn.comparison.config import load_comparison
from medseg_brn.comparison.execute import run_comparison

TINY = {
    "name": "tiny",
    "norms": ["batch_renorm", "instance"],
    "batch_sizes": [1, 2],
    "seeds": 1,
    "budget": {"patches": 12},
    "probes": {"samples": 3, "patches": 12, "volumes": 1},
    "experiment": {
        "dataset": {"folds": 2, "fold": 0},
        "patches": {"size": [16, 16, 16], "workers": 0, "augmentation": None},
        "network": {"channels": [4, 8]},
        "training": {
            "batch_size": 2,
            "optimizer": "adamw",
            "learning_rate": 0.004,
            "precision": "fp32",
            "ema_decay": None,
            "checkpoint_every": 4,
        },
        "inference": {"overlap": 0.0},
    },
}


@pytest.fixture(scope="session")
def phantom(tmp_path_factory) -> Path:
    """Four small heads, two of them held out."""
    return make_phantom(tmp_path_factory.mktemp("phantom") / "heads", cases=4, voxel_mm=6.0)


@pytest.fixture(scope="session")
def write_comparison_to(phantom):
    """Writes the tiny comparison's file to a path, with other values where given."""

    def write(path: Path, **changes) -> Path:
        dataset = {**TINY["experiment"]["dataset"], "path": str(phantom)}
        path.write_text(
            yaml.safe_dump({**TINY, "experiment": {**TINY["experiment"], "dataset": dataset}, **changes})
        )
        return path

    return write


@pytest.fixture
def write_comparison(write_comparison_to, tmp_path):
    """Writes the tiny comparison's file, with other values where given; returns its path."""
    return lambda **changes: write_comparison_to(tmp_path / "tiny.yaml", **changes)


@pytest.fixture(scope="session")
def grid(write_comparison_to, tmp_path_factory) -> Path:
    """The folder of a small grid, done: renorm, BatchNorm, InstanceNorm and MABN at batch sizes 1 and 2."""
    folder = tmp_path_factory.mktemp("grid")
    path = write_comparison_to(folder / "tiny.yaml", norms=["batch_renorm", "batch", "instance", "mabn"])
    results = run_comparison(load_comparison(path), folder / "done", jobs=2)
    assert [result.status for result in results] == ["finished"] * 8, [result.error for result in results]
    return folder / "done"
