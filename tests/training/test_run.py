"""Whole runs in this process: what a run folder holds at the end, for data as different as they come."""

import json

import numpy as np
import pytest
import torch

from medseg_brn.cases.phantom import make_phantom
from medseg_brn.errors import DivergenceError
from medseg_brn.experiment import parse_experiment
from medseg_brn.models.package import load_model, load_network
from medseg_brn.networks.surgery import recalibrate
from medseg_brn.patches.stream import PatchStream
from medseg_brn.reports.step_records import read_metrics, read_patches
from medseg_brn.training.data import prepare_training_data
from medseg_brn.training.run import train_run
from medseg_brn.volumes.reading import read_volume


@pytest.fixture(scope="module")
def abdomens(tmp_path_factory):
    """Four small CTs of four sites."""
    return make_phantom(
        tmp_path_factory.mktemp("phantom") / "abdomens", modality="ct", cases=4, voxel_mm=10.0
    )


def make_experiment(path, **sections):
    options = {
        "dataset": {"path": str(path), "folds": 2},
        "patches": {"size": [8, 8, 8], "workers": 0},
        "network": {"channels": [4, 8, 8]},
        "training": {"steps": 3, "validate_every": 2},
    }
    for name, section in sections.items():
        options.setdefault(name, {}).update(section)
    return parse_experiment(options, "test")


def test_ct_from_a_manifest_with_sites(abdomens, tmp_path):
    experiment = make_experiment(
        abdomens / "manifest.csv",
        dataset={"modalities": ["ct"]},
        preprocessing={"crop": "body", "spacing_mm": [10, 10, 10]},
        patches={"augmentation": {"flip_axes": [0], "mirrored_classes": [["liver", "spleen"]]}},
    )
    summary = train_run(experiment, tmp_path / "run")
    assert summary.validation_cases == 2
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {
        *("config.yaml", "split.json", "preprocessing.json", "cache", "metrics.csv", "tensorboard"),
        *("checkpoint", "model", "validation", "validation.json", "report.html", "patches.csv"),
        *("fit.json", "suspects.json", "diagnosis.json"),
    }
    description = load_model(run).description
    assert description.modalities == ("ct",)
    assert description.mirrored_classes == (("liver", "spleen"),)
    assert description.preprocessing.intensity[0].scheme == "ct"
    assert description.training["validation"]["dice_mean"] == summary.dice_mean
    assert [row.dice is None for row in read_metrics(run / "metrics.csv")] == [True, False, True]
    for case in json.loads((run / "validation.json").read_text())["cases"]:
        prediction, image = read_volume(run / case["prediction"]), read_volume(case["image"])
        assert prediction.shape == image.shape
        np.testing.assert_array_equal(prediction.affine, image.affine)


def test_without_a_fold_every_case_is_trained_on(abdomens, tmp_path):
    experiment = make_experiment(
        abdomens,
        dataset={"fold": None},
        network={"deep_supervision": True, "encoder": "residual", "norm": "group"},
        training={"ema_decay": None, "optimizer": "adamw", "accumulation": 2},
        patches={"augmentation": None},
    )
    summary = train_run(experiment, tmp_path / "run")
    assert summary.dice_mean is None
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert (len(split["training"]), split["validation"]) == (4, [])
    assert "No validation data" in (tmp_path / "run" / "report.html").read_text()
    label_map = load_model(tmp_path / "run").predict(abdomens / "imagesTr" / "abdomen_000.nii.gz")
    assert set(np.unique(label_map.array)) <= {0, 1, 2, 3}


def test_recalibration_sets_the_statistics_of_more_patches(abdomens, tmp_path):
    plain = {"network": {"norm": "batch"}, "training": {"ema_decay": None}}
    train_run(make_experiment(abdomens, **plain), tmp_path / "plain")
    plain["training"]["recalibration_patches"] = 5
    experiment = make_experiment(abdomens, **plain)
    train_run(experiment, tmp_path / "run")

    network, _ = load_network(tmp_path / "plain")
    data = prepare_training_data(experiment, tmp_path / "plain", lambda *_: None)
    stream = PatchStream(data.training, experiment.patches, experiment.seed, data.dataset.targets)
    seen = experiment.training.steps * experiment.training.batch_size
    patches = [
        torch.stack([stream[seen + 2 * n]["image"], stream[seen + 2 * n + 1]["image"]]) for n in range(3)
    ]
    expected = recalibrate(network, patches).state_dict()
    found = load_network(tmp_path / "run")[0].state_dict()
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_runs_may_share_their_prepared_cases(abdomens, tmp_path):
    shared = tmp_path / "shared"
    for seed in (0, 1):
        experiment = make_experiment(abdomens, dataset={"split_seed": 0}).model_copy(update={"seed": seed})
        train_run(experiment, tmp_path / f"run{seed}", data_folder=shared)
    assert not (tmp_path / "run0" / "cache").exists()
    splits = [(tmp_path / f"run{seed}" / "split.json").read_text() for seed in (0, 1)]
    assert splits[0] == splits[1] == (shared / "fold_0" / "split.json").read_text()


def test_a_network_spoilt_by_its_last_step_is_told(abdomens, tmp_path):
    wild = {"optimizer": "sgd", "learning_rate": 1e38, "weight_decay": 1e6, "steps": 1, "ema_decay": None}
    experiment = make_experiment(
        abdomens, training={**wild, "warmup_fraction": 0, "gradient_clip": None, "validate_every": None}
    )
    with pytest.raises(DivergenceError, match="tensors of the trained network are not finite, first "):
        train_run(experiment, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()
    assert "The run stopped at step 1" in (tmp_path / "run" / "report.html").read_text()


def test_a_run_that_diverges_leaves_its_diagnosis_until_it_goes_on(abdomens, tmp_path):
    wild = {"optimizer": "sgd", "learning_rate": 1e38, "weight_decay": 1e6, "steps": 3, "warmup_fraction": 0}
    wild |= {"gradient_clip": None, "validate_every": None, "checkpoint_every": 1}
    run = tmp_path / "run"
    with pytest.raises(DivergenceError, match=r"at step 2 .*Before the step, the weight of") as raised:
        train_run(make_experiment(abdomens, training=wild), run)
    told = json.loads((run / "divergence.json").read_text())
    assert (told["step"], told["kind"]) == (2, "weights")
    assert told["found"] in str(raised.value)
    findings = json.loads((run / "diagnosis.json").read_text())["findings"]
    assert (findings[0]["kind"], findings[0]["weight"]) == ("divergence", 3)
    report = (run / "report.html").read_text()
    assert "The run stopped at step 2 because its numbers were not finite" in report
    assert [row.step for row in read_metrics(run / "metrics.csv")] == [1]


def test_findings_are_told_at_the_end(abdomens, tmp_path):
    summary = train_run(make_experiment(abdomens), tmp_path / "run")
    findings = json.loads((tmp_path / "run" / "diagnosis.json").read_text())["findings"]
    assert summary.findings == tuple(f"{f['what']}: {f['numbers']}. {f['remedy']}." for f in findings)
    fit = json.loads((tmp_path / "run" / "fit.json").read_text())
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert list(fit["training"]) == split["training"]
    assert list(fit["held_out"]) == split["validation"]
    patches = read_patches(tmp_path / "run" / "patches.csv")
    assert [patch.step for patch in patches] == [1, 1, 2, 2, 3, 3]
    assert {patch.case for patch in patches} == set(split["training"])
    assert all(sum(patch.voxels.values()) == 8**3 for patch in patches)
