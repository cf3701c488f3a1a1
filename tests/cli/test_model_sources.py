"""`medseg-brn models list`, `show` and `pull`, and names where a MODEL is taken, as real processes."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import medseg_brn
from medseg_brn.cases.preprocessing import Preprocessing
from medseg_brn.config import NetworkConfig
from medseg_brn.models.architecture import build_network
from medseg_brn.models.card import Card, ExpectedScans, TrainingData
from medseg_brn.models.describing import save_with_card
from medseg_brn.models.description import ModelDescription
from medseg_brn.models.package import load_model, save_model
from medseg_brn.volumes.reading import read_volume
from medseg_brn.volumes.volume import Grid, Volume
from medseg_brn.volumes.writing import write_volume

CARD = Card(
    summary="Anterior and posterior hippocampus of phantoms.",
    training_data=(
        TrainingData(
            name="Phantoms", cases=8, licence="CC-BY-SA 4.0", source="here", attribution="A. Author"
        ),
    ),
    expected_scans=ExpectedScans(body_part="hippocampus", acquisition="T1", spacing_mm=(0.8, 1.25)),
    limits=("Knows no real head.", "\x1b[2JCommands no terminal."),
    citation="Author 2020",
)
SUMMARY = {
    "dice_mean": 0.8764,
    "dice_interval_95": [0.87, 0.89],
    "cases": 20,
    "classes": {
        "anterior": {"dice_mean": 0.8912, "dice_sd": 0.0345, "dice_interval_95": [0.88, 0.9], "absent": 0},
        "posterior": {"dice_mean": 0.8618, "dice_sd": 0.04, "absent": 3},
    },
}


def run(*arguments: object, cwd: Path | None = None, **variables: object) -> subprocess.CompletedProcess[str]:
    """Run the command line; `variables` are added to the environment."""
    environment = {"COLUMNS": "110", "TERM": "dumb", "NO_PROXY": "127.0.0.1"} | dict(variables)
    return subprocess.run(
        [sys.executable, "-m", "medseg_brn", *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=300, cwd=cwd,
        env=os.environ | {name: str(value) for name, value in environment.items()},
    )  # fmt: skip


@pytest.fixture
def model(tmp_path) -> Path:
    """A model with a card and the figures of a cross-validation."""
    description = ModelDescription(
        name="hippocampus of phantoms",
        network=NetworkConfig(channels=(4, 6)),
        class_names=("background", "anterior", "posterior"),
        label_values=(0, 1, 7),
        modalities=("mri",),
        preprocessing=Preprocessing.model_validate(
            {"spacing_mm": (1, 1, 2), "intensity": [{"scheme": "zscore"}]}
        ),
        patch_size=(8, 8, 8),
        training={"cross_validation": {"folds": 5, "out_of_fold": SUMMARY, "meaning": "Of single models."}},
    )
    torch.manual_seed(0)
    save_model(tmp_path / "made" / "bare", build_network(description.network, 1, 3), description)
    folder = tmp_path / "made" / "model"
    save_with_card(
        folder, tmp_path / "made" / "bare", CARD, licence="CC-BY-SA 4.0", colours=("#ff9a3d", "#56b4e9")
    )
    return folder


@pytest.fixture
def scan(tmp_path) -> Path:
    array = np.random.default_rng(0).normal(size=(16, 12, 10)).astype(np.float32)
    write_volume(Volume(array, Grid(array.shape, np.diag([1.0, 1.0, 2.0, 1.0]))), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def _zip(folder: Path, **others: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for path in folder.iterdir():
            packed.write(path, f"model/{path.name}")
        for name, content in others.items():
            packed.writestr(name, content)
    return buffer.getvalue()


def test_a_shipped_model_works_by_name_right_after_installation(tmp_path, model, scan):
    """A copy of the package with a model in `pretrained`, as a wheel has it; no address can be reached."""
    site = tmp_path / "site"
    shutil.copytree(Path(medseg_brn.__file__).parent, site / "medseg_brn", ignore=lambda *_: ["__pycache__"])
    shutil.copytree(model, site / "medseg_brn" / "pretrained" / "hippocampus-phantom")
    variables = {
        "PYTHONPATH": site, "MEDSEG_BRN_MODELS": tmp_path / "none", "https_proxy": "http://127.0.0.1:9",
    }  # fmt: skip
    output = tmp_path / "out.nii.gz"
    done = run(
        "infer", "hippocampus-phantom", scan, "-o", output, "--precision", "fp32", cwd=tmp_path, **variables
    )
    assert (done.returncode, done.stdout) == (0, f"{output}\n"), done.stderr
    np.testing.assert_array_equal(
        read_volume(output).array, load_model(model, "cpu", "fp32").predict(scan).array
    )
    listed = " ".join(run("models", "list", cwd=tmp_path, **variables).stdout.split())
    assert "hippocampus-phantom anterior, posterior MRI 0.876 CC-BY-SA 4.0" in listed
    assert "shipped" in listed
    assert not (tmp_path / "none").exists()


def test_a_model_is_pulled_listed_shown_and_refused_a_second_time(tmp_path, model, server):
    content = _zip(model)
    checksum = hashlib.sha256(content).hexdigest()
    server.put("phantom.zip", content)
    own = {"MEDSEG_BRN_MODELS": tmp_path / "own"}
    pulled = run("models", "pull", f"{server.url}/phantom.zip", "--sha256", checksum, **own)
    assert (pulled.returncode, pulled.stderr.strip()) == (0, "")
    assert pulled.stdout.splitlines() == [
        "phantom: anterior, posterior; licence: CC-BY-SA 4.0",
        str(tmp_path / "own" / "phantom"),
        f"SHA-256 of the archive: {checksum}",
    ]
    (tmp_path / "own" / "broken").mkdir()
    (tmp_path / "own" / "broken" / "model.json").write_text("{")
    listed = run("models", "list", **own)
    assert listed.returncode == 0
    flowing = " ".join(listed.stdout.split())
    assert "broken damaged: models show tells more" in flowing
    assert "phantom anterior, posterior MRI 0.876 CC-BY-SA 4.0 0.0 own" in flowing
    again = run("models", "pull", f"{server.url}/phantom.zip", **own)
    assert again.returncode == 1
    (message,) = again.stderr.strip().splitlines()
    assert message.startswith("medseg-brn: A model 'phantom' is there already: remove ")


def test_show_tells_all_of_the_card_and_lets_no_file_command_the_terminal(model):
    shown = run("models", "show", model)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "\x1b" not in shown.stdout
    flowing = " ".join(shown.stdout.split())
    for part in (
        "hippocampus of phantoms Anterior and posterior hippocampus of phantoms.",
        "anterior (1), ■ posterior (7)",
        "1 channel: MRI; hippocampus; T1; voxel edges of 0.8 to 1.25 mm",
        "U-Net of 2 levels with 4, 6 channels, plain encoder, norm batch_renorm",
        "Batch Renormalization: normalizes by long-run statistics",
        "voxels of 1 × 1 × 2 mm",
        "Phantoms, 8 cases, CC-BY-SA 4.0, here A. Author",
        "Licence CC-BY-SA 4.0",
        "Cite Author 2020",
        "Dice of 20 cases, each by a model that did not see it (5 folds)",
        "anterior 0.891 0.035 0.880 to 0.900 20",
        "posterior 0.862 0.040 – 17",
        "mean 0.876 0.870 to 0.890 20",
        "Of single models.",
        "- Knows no real head.",
        "[2JCommands no terminal.",
        hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest(),
    ):
        assert part in flowing, part


def test_show_json_is_the_models_own_description(model):
    shown = run("models", "show", model, "--json")
    assert json.loads(shown.stdout) == json.loads((model / "model.json").read_text())


def test_a_hostile_archive_is_one_message_and_leaves_nothing(tmp_path, model):
    archive = tmp_path / "hostile.zip"
    archive.write_bytes(_zip(model, **{"../up.py": b"1/0"}))
    failed = run("models", "pull", archive, MEDSEG_BRN_MODELS=tmp_path / "own")
    assert (failed.returncode, failed.stdout) == (1, "")
    (message,) = failed.stderr.strip().splitlines()
    assert message == (
        f"medseg-brn: {archive} was refused, and nothing of it is kept: it holds '../up.py', which reaches "
        "outside"
    )
    assert list((tmp_path / "own").iterdir()) == []
    assert not list(tmp_path.rglob("up.py"))


def test_an_unknown_name_is_one_message_that_says_how_models_come(tmp_path, scan):
    failed = run("infer", "nobody", scan, "-o", tmp_path / "out", MEDSEG_BRN_MODELS=tmp_path / "own")
    assert failed.returncode == 1
    (message,) = failed.stderr.strip().splitlines()
    assert message.startswith("medseg-brn: No model 'nobody': it is neither a path nor a known name (")
    assert message.endswith("or bring a model with medseg-brn models pull SOURCE")


def test_the_commands_explain_themselves():
    shown = run("models", "pull", "--help").stdout
    assert "medseg-brn models pull runs/mine --name liver-mine" in shown
    assert "medseg-brn models show hippocampus-mri" in run("models", "show", "--help").stdout
    shown = run("models", "--help").stdout
    assert all(name in shown for name in ("list", "show", "pull"))
