"""Forty-one organs of one CT as one problem, overfitted on purpose: what the pipeline can represent."""

import pytest

from medseg_brn.evaluation.evaluate import evaluate_case
from medseg_brn.experiment import parse_experiment
from medseg_brn.models.package import load_model
from medseg_brn.training.run import train_run
from medseg_brn.volumes.reading import read_volume

pytestmark = pytest.mark.slow


def test_the_organs_of_one_ct_are_learnt_by_heart(tmp_path, data_folder):
    ct, label_map = (
        data_folder / "abdomen_ct" / name for name in ("example_ct_sm.nii.gz", "example_seg.nii.gz")
    )
    (tmp_path / "cohort.csv").write_text(f"case,image,label\nct,{ct},{label_map}\n")
    options = {
        "dataset": {"path": str(tmp_path / "cohort.csv"), "modalities": ["ct"], "fold": None},
        "patches": {
            "size": [64, 64, 32],
            "foreground_fraction": 0.9,
            "foreground_by": "class",
            "augmentation": None,
        },
        "network": {
            "channels": [16, 48, 96, 192],
            "encoder_blocks": [1, 2, 2, 2],
            "decoder_blocks": [1, 2, 2],
            "renorm_schedule": [0.2, 0.7, 0.7],
            "deep_supervision": True,
        },
        "training": {
            "steps": 800,
            "optimizer": "adamw",
            "learning_rate": 0.004,
            "weight_decay": 0.01,
            "warmup_fraction": 0.03,
            "decay": "cosine",
            "ema_decay": 0.99,
        },
    }
    train_run(parse_experiment(options, "test"), tmp_path / "run")
    predicted = load_model(tmp_path / "run").predict(ct)
    dice = {name: found.dice for name, found in evaluate_case(predicted, read_volume(label_map)).items()}
    print(dice)
    assert len(dice) == 41
    assert sum(dice.values()) / 41 > 0.9
    assert sum(value > 0.9 for value in dice.values()) >= 30
