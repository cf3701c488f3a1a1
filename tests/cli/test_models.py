"""`medseg-brn models`, as real processes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medseg_brn.cases.preprocessing import Preprocessing
from medseg_brn.config import InferenceConfig, NetworkConfig
from medseg_brn.models.architecture import build_network
from medseg_brn.models.description import ModelDescription
from medseg_brn.models.package import load_model, save_model


def run(*arguments: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "medseg_brn", "models", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.fixture
def folds(tmp_path) -> list[Path]:
    """Two runs with a model each; only the second mirrors."""
    runs = []
    for seed, mirror_axes in enumerate(((), (1,))):
        description = ModelDescription(
            name="tiny",
            network=NetworkConfig(channels=(4, 6)),
            class_names=("background", "tumour"),
            label_values=(0, 7),
            modalities=("mri",),
            preprocessing=Preprocessing.model_validate(
                {"spacing_mm": (1, 1, 2), "intensity": [{"scheme": "zscore"}]}
            ),
            patch_size=(8, 8, 8),
            inference=InferenceConfig(mirror_axes=mirror_axes),
        )
        torch.manual_seed(seed)
        runs.append(tmp_path / f"fold{seed}")
        save_model(runs[-1] / "model", build_network(description.network, 1, 2), description)
    return runs


def test_runs_are_combined_into_a_model_that_infer_takes(tmp_path, folds):
    output = tmp_path / "ensemble"
    done = run("combine", *folds, "-o", output, "--name", "tiny of two", "--inference-of", folds[1])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{output}: an ensemble of 2 models\n"
    description = load_model(output).description
    assert (description.name, description.inference.mirror_axes) == ("tiny of two", (1,))
    assert [member.predictor.num_classes for member in load_model(output).members] == [2, 2]


def test_what_cannot_be_combined_is_one_message_and_leaves_nothing(tmp_path, folds):
    failed = run("combine", *folds, "-o", tmp_path / "ensemble")
    assert failed.returncode == 1
    assert failed.stderr.startswith("medseg-brn: inference.mirror_axes is (1,) in ")
    assert "--inference-of" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert sorted(tmp_path.iterdir()) == folds


def test_combine_explains_itself():
    environment = {"TERM": "dumb", "COLUMNS": "120", "PATH": ""}
    shown = run("combine", "--help", env=environment)
    assert shown.returncode == 0
    assert "medseg-brn models combine runs/fold0 runs/fold1" in shown.stdout
    assert "combine" in run("--help", env=environment).stdout


def test_wrong_usage_exits_with_2(tmp_path):
    assert run("combine", "runs/fold0").returncode == 2
