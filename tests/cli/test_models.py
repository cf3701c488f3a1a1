"""`medseg-brn models`, as real processes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg_brn.cases.preprocessing import Preprocessing
from medseg_brn.config import InferenceConfig, NetworkConfig
from medseg_brn.models.architecture import build_network
from medseg_brn.models.description import ModelDescription
from medseg_brn.models.package import load_model, save_model
from medseg_brn.networks.quantized_layers import weight_limit
from medseg_brn.volumes.reading import read_volume
from medseg_brn.volumes.volume import Grid, Volume
from medseg_brn.volumes.writing import write_volume


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


@pytest.fixture
def scans(tmp_path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for seed in range(2):
        array = np.random.default_rng(seed).normal(size=(16, 12, 10)).astype(np.float32)
        write_volume(
            Volume(array, Grid(array.shape, np.diag([1.0, 1.0, 2.0, 1.0]))), folder / f"{seed}.nii.gz"
        )
    return folder


@pytest.mark.skipif(weight_limit() is None, reason="this processor has no 8-bit convolutions")
def test_a_quantized_copy_is_what_infer_takes_in_int8(tmp_path, folds, scans):
    output = tmp_path / "int8"
    done = run("quantize", folds[0], scans, "-o", output)
    assert (done.returncode, done.stdout) == (
        0, f"{output}: calibrated on 2 scans; use it with infer --precision int8\n",
    )  # fmt: skip
    command = [sys.executable, "-m", "medseg_brn", "infer", str(output), str(scans), "--precision", "int8"]
    inferred = subprocess.run([*command, "-o", str(tmp_path / "out")], capture_output=True, text=True)
    assert inferred.returncode == 0, inferred.stderr
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]["precision"] == "int8"
    expected = load_model(output, "cpu", "int8").predict(scans / "1.nii.gz").array
    np.testing.assert_array_equal(read_volume(tmp_path / "out" / "1.nii.gz").array, expected)


def test_int8_without_calibration_is_one_message_that_names_the_command(tmp_path, folds, scans):
    command = [sys.executable, "-m", "medseg_brn", "infer", str(folds[0]), str(scans), "--precision", "int8"]
    failed = subprocess.run([*command, "-o", str(tmp_path / "out")], capture_output=True, text=True)
    assert failed.returncode == 1
    (message,) = failed.stderr.strip().splitlines()
    assert message.startswith("medseg-brn: Precision int8 was asked for")
    assert "models quantize" in message or weight_limit() is None


def test_scans_that_are_none_are_one_message_and_leave_nothing(tmp_path, folds):
    failed = run("quantize", folds[0], tmp_path / "nowhere", "-o", tmp_path / "int8")
    assert failed.returncode == 1
    assert "nowhere does not exist" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert sorted(tmp_path.iterdir()) == folds


def test_quantize_explains_itself():
    shown = run("quantize", "--help", env={"TERM": "dumb", "COLUMNS": "120", "PATH": ""})
    assert shown.returncode == 0
    assert "medseg-brn infer mine_int8 new_scans/ -o label_maps/ --precision int8" in shown.stdout
    assert "with medseg-brn evaluate on held-out scans" in " ".join(shown.stdout.split())


def test_choose_explains_itself_and_refuses_what_is_no_cross_validation(tmp_path, folds):
    shown = run("choose", "--help", env={"TERM": "dumb", "COLUMNS": "120", "PATH": ""})
    assert shown.returncode == 0
    assert "medseg-brn models choose runs/small runs/large -o chosen --ensembles" in shown.stdout
    failed = run("choose", *folds, "-o", tmp_path / "chosen")
    assert failed.returncode == 1
    assert "fold0 holds no finished cross-validation" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert sorted(tmp_path.iterdir()) == folds


@pytest.mark.parametrize(
    ("format_name", "name"),
    [
        ("monai", "bundle"),
        ("onnx", "model.onnx"),
        pytest.param("torch", "model.pt2", marks=pytest.mark.slow),
    ],
)
def test_export_writes_what_was_asked_for_and_says_how_it_agrees(tmp_path, folds, format_name, name):
    if format_name == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    done = run("export", folds[0], "-o", tmp_path / name, "--format", format_name)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{tmp_path / name}: agrees with the trained network: logits up to ")
    assert done.stdout.endswith("; 448 of 448 voxels have the same label\n")
    assert (tmp_path / name).exists()


def test_what_cannot_be_exported_is_one_message_and_leaves_nothing(tmp_path, folds):
    (tmp_path / "mirrored").mkdir()
    ensemble = tmp_path / "mirrored" / "ensemble"
    run("combine", *folds, "-o", ensemble, "--inference-of", folds[1])
    failed = run("export", ensemble, "-o", tmp_path / "bundle", "--format", "monai")
    assert failed.returncode == 1
    (message,) = failed.stderr.strip().splitlines()
    assert message.startswith(f"medseg-brn: {ensemble} is an ensemble of 2 models")
    failed = run("export", folds[0], "-o", tmp_path / "model", "--format", "onnx")
    (message,) = failed.stderr.strip().splitlines()
    assert "ends in .onnx" in message
    assert run("export", folds[0], "-o", tmp_path / "model", "--format", "caffe").returncode == 2
    assert sorted(tmp_path.iterdir()) == [*folds, tmp_path / "mirrored"]


def test_export_explains_itself():
    shown = run("export", "--help", env={"TERM": "dumb", "COLUMNS": "120", "PATH": ""})
    assert shown.returncode == 0
    for format_name, output in (("monai", "my_bundle"), ("onnx", "mine.onnx"), ("torch", "mine.pt2")):
        command = f"medseg-brn models export runs/mine -o {output} --format {format_name}"
        assert command in shown.stdout
