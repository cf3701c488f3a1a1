"""Datasets as people have them: planned and trained without a hand, to a Dice stated beforehand.

Each is the phantom of heads (brain, ventricles, lesion) with one difficulty added, and 600 steps of training
on what `plan` makes of it: the steps are given here, not by the time that the machine takes for them. Label
maps are judged against complete references of unseen scans.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medseg_brn.cases.phantom import make_phantom
from medseg_brn.volumes.geometry import canonicalize
from medseg_brn.volumes.reading import read_volume
from medseg_brn.volumes.volume import Grid, Volume
from medseg_brn.volumes.writing import write_volume

pytestmark = pytest.mark.slow
CLASSES = {"background": 0, "brain": 1, "ventricles": 2, "lesion": 3}
REGIONS = {"background": 0, "brain with all in it": [1, 2, 3], "inner structures": [2, 3], "lesion": [3]}
IGNORED = 4


def medseg(*arguments: object) -> None:
    """Run the command line as a person does; its output is shown where the test fails."""
    subprocess.run([sys.executable, "-m", "medseg_brn", *map(str, arguments)], check=True)


def make_cohort(folder: Path, voxel_mm: float | None = None) -> Path:
    """Twenty scans to train on and six unseen ones, in `training` and `unseen`."""
    make_phantom(folder / "training", cases=20, seed=0, voxel_mm=voxel_mm)
    make_phantom(folder / "unseen", cases=6, seed=1, voxel_mm=voxel_mm)
    return folder / "training"


def describe(dataset: Path, **entries: object) -> None:
    """Change entries of the dataset's description."""
    path = dataset / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def change_volumes(folder: Path, change: Callable[[Volume, str], Volume]) -> None:
    for path in sorted(folder.glob("*.nii.gz")):
        changed = change(read_volume(path), path.name)
        path.unlink()
        write_volume(changed, path)


def hide_slices(label_map: Volume, name: str) -> Volume:
    """Four of five slices are not annotated."""
    values = np.array(label_map.array, dtype=np.uint8)
    rng = np.random.default_rng(sum(map(ord, name)))
    hidden = rng.permutation(values.shape[2])[: round(0.8 * values.shape[2])]
    values[:, :, hidden] = IGNORED
    return Volume(values, label_map.grid)


def thicken(volume: Volume, name: str) -> Volume:
    """Slices six voxels thick: the mean of an image, the fourth of six slices of a label map."""
    volume = canonicalize(volume)
    slices = volume.shape[2] // 6
    slabs = volume.array[:, :, : 6 * slices].reshape(*volume.shape[:2], slices, 6)
    array = slabs[..., 3] if volume.array.dtype.kind in "ui" else slabs.mean(axis=3).astype(np.float32)
    affine = volume.affine.copy()
    affine[:3, 3] += 2.5 * affine[:3, 2]
    affine[:3, 2] *= 6
    return Volume(np.ascontiguousarray(array), Grid(array.shape, affine))


def train_and_evaluate(folder: Path, dataset: Path, description: Path | None = None) -> dict[str, float]:
    """Plan, train on all but the unseen scans, segment those; Dice by structure, and the mean."""
    medseg("plan", dataset, "-o", folder / "plan.yaml", "--time", "5m")
    given = ("-s", "dataset.fold=null", "-s", "training.steps=600", "-s", "training.validate_every=null")
    medseg("train", folder / "plan.yaml", "-o", folder / "run", *given)
    medseg("infer", folder / "run", folder / "unseen" / "imagesTr", "-o", folder / "predictions")
    named = ["--dataset", description] if description else []
    medseg(
        *("evaluate", folder / "predictions", folder / "unseen" / "labelsTr"),
        *("-o", folder / "metrics.json", *named),
    )
    summary = json.loads((folder / "metrics.json").read_text())["summary"]
    dice = {name: found["dice_mean"] for name, found in summary["classes"].items()}
    print(dice)
    return {**dice, "mean": summary["dice_mean"]}


def test_regions_that_overlap_reach_080(tmp_path):
    dataset = make_cohort(tmp_path)
    describe(dataset, labels=REGIONS, regions_class_order=[1, 2, 3])
    dice = train_and_evaluate(tmp_path, dataset, dataset / "dataset.json")
    assert set(dice) == {*list(REGIONS)[1:], "mean"}
    assert dice["mean"] > 0.80


def test_a_fifth_of_the_slices_annotated_reaches_075(tmp_path):
    dataset = make_cohort(tmp_path)
    change_volumes(dataset / "labelsTr", hide_slices)
    describe(dataset, labels={**CLASSES, "ignore": IGNORED})
    assert train_and_evaluate(tmp_path, dataset)["mean"] > 0.75


def test_several_sites_reach_080(tmp_path):
    dataset = make_cohort(tmp_path)
    (dataset / "dataset.json").unlink()
    assert train_and_evaluate(tmp_path, dataset / "manifest.csv")["mean"] > 0.80


def test_slices_six_times_as_thick_reach_070(tmp_path):
    dataset = make_cohort(tmp_path, voxel_mm=1.5)
    for folder in (dataset, tmp_path / "unseen"):
        change_volumes(folder / "imagesTr", thicken)
        change_volumes(folder / "labelsTr", thicken)
    assert train_and_evaluate(tmp_path, dataset)["mean"] > 0.70
    shutil.rmtree(tmp_path / "run")
