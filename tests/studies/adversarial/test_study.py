"""The study's pieces, and the whole of it through the command line."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from medseg_brn.studies.adversarial.arms import ARMS, BATCH, GROUP, SPECTRAL, TIGHT, WIDE, WITHOUT
from medseg_brn.studies.adversarial.segmenter import Recipe
from medseg_brn.studies.adversarial.statements import KNOWN, Measurements, judge
from medseg_brn.studies.adversarial.trials import Start, do_arm, do_start

TINY = Recipe(
    training_volumes=4,
    discriminator_volumes=4,
    held_out_volumes=5,
    segmenter_steps=3,
    discriminator_steps=2,
    refinement_steps=2,
    channels=(4, 8),
    discriminator_channels=4,
)


def make_rows(leak_wide: float, dice_wide: float) -> list[dict]:
    """Two seeds; every other number is such that its claim holds."""
    rows = [
        {
            "stage": "closed form",
            "seed": seed,
            "arm": name,
            "separation": 1.0,
            "accuracy_training": known + 0.0001 * seed,
            "accuracy_formula": known,
            "accuracy_single": 0.691,
        }
        for name, known in KNOWN.items()
        for seed in range(2)
    ]
    leaks = {BATCH: 0.2, TIGHT: 0.2, WIDE: leak_wide, GROUP: 0.0, SPECTRAL: 0.0}
    for arm in ARMS:
        for seed in range(2):
            leak = leaks.get(arm.name, 0.1)
            row = {"stage": "discrimination", "seed": seed, "arm": arm.name, "spikes": 0.0, "influence": leak}
            rows.append(row | {"accuracy_training": 0.7 + leak, "accuracy_single": 0.7, "leak": leak})
    for name in (WITHOUT, *(arm.name for arm in ARMS)):
        for seed in range(2):
            dice = dice_wide if name == WIDE else 0.8
            row = {"stage": "refinement", "seed": seed, "arm": name, "dice": dice, "surface_distance": 0.5}
            rows.append(row | {"volume_ratio": 1.0, "likeness": 0.0, "spikes": 0.0})
    return rows


def test_claims_follow_the_falsifier():
    """System 3 is falsified where the leak under (3, 5) is not below BatchNorm's, or quality drops."""
    holding = {claim.name: claim.holds for claim in judge(Measurements(make_rows(0.05, 0.8)))}
    assert set(holding.values()) == {True}
    leaking = {claim.name: claim.holds for claim in judge(Measurements(make_rows(0.25, 0.8)))}
    assert leaking["a trained discriminator leaks less under (3, 5)"] is False
    poor = {claim.name: claim.holds for claim in judge(Measurements(make_rows(0.05, 0.7)))}
    assert poor["quality is not below BatchNorm's"] is False
    assert poor["quality is not below that without"] is False


def test_a_short_recipe_has_fewer_steps_and_nothing_else():
    assert Recipe().shorten(1.0) == Recipe()
    short = Recipe(segmenter_steps=400, discriminator_steps=500, refinement_steps=250).shorten(0.03)
    assert (short.segmenter_steps, short.discriminator_steps, short.refinement_steps) == (12, 15, 8)
    assert Recipe().shorten(0.001).segmenter_steps == 4
    assert short.held_out_volumes == Recipe().held_out_volumes


def test_the_best_for_one_sample_is_taken_seed_by_seed():
    rows = make_rows(0.05, 0.8)
    for row in rows:
        if row["stage"] == "discrimination" and row["arm"] == GROUP and row["seed"] == 1:
            row["accuracy_single"] = 0.9
    assert Measurements(rows).best_single().tolist() == [0.7, 0.9]


def test_a_piece_is_deterministic_and_all_arms_begin_alike():
    start = do_start(Start(0, 0, TINY))
    again = do_start(Start(0, 0, TINY))
    assert all(torch.equal(value, again.weights[name]) for name, value in start.weights.items())
    found = [do_arm((start, arm)) for arm in (None, ARMS[0], ARMS[0])]
    assert [row["stage"] for row in found[1].rows] == ["discrimination", "refinement"]
    assert found[1].rows == found[2].rows
    assert [row["arm"] for row in found[0].rows] == [WITHOUT]
    row = found[1].rows[0]
    assert row["leak"] == pytest.approx(row["accuracy_training"] - row["accuracy_single"])
    assert np.isfinite(found[1].losses["refinement"]).all() and len(found[1].losses["refinement"]) == 2


@pytest.mark.slow
def test_the_command_writes_the_three_files(tmp_path):
    arguments = ("study", "adversarial", "-o", tmp_path / "out", "--scale", "0.01")
    done = subprocess.run(
        [sys.executable, "-m", "medseg_brn", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    names = [claim["name"] for claim in summary["claims"]]
    assert names == [claim.name for claim in judge(Measurements(make_rows(0.05, 0.8)))]
    assert summary["settings"]["seeds"] == 2
    with (tmp_path / "out" / "measurements.csv").open() as file:
        rows = list(csv.DictReader(file))
    refined = [row["arm"] for row in rows if row["stage"] == "refinement"]
    assert refined == [WITHOUT, *(arm.name for arm in ARMS)] * 2
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Segmentations refined against a discriminator" in page and "<svg" in page
