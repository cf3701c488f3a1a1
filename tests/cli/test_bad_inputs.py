"""Every kind of bad input as a user meets it: one message, exit code 1, nothing half-written.

Each fault is planted in one case of a good dataset; `check`, `train` and `infer` then run as real processes.
"""

import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

CASES = 4
SHAPE = (16, 16, 16)


def write(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(array, np.eye(4) if affine is None else affine).to_filename(path)


def make_dataset(folder: Path) -> Path:
    """Four good cases in the Decathlon's layout."""
    names = [f"p{number}" for number in range(CASES)]
    for number, name in enumerate(names):
        image = np.random.default_rng(number).normal(100, 20, SHAPE).astype(np.float32)
        label_map = np.zeros(SHAPE, np.uint8)
        label_map[4:12, 4:12, 4:12] = 1
        image[label_map == 1] += 100
        write(folder / "imagesTr" / f"{name}.nii.gz", image)
        write(folder / "labelsTr" / f"{name}.nii.gz", label_map)
    training = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names]
    description = {"name": "Cubes", "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "cube"}}
    (folder / "dataset.json").write_text(json.dumps({**description, "training": training}))
    return folder


def image_of(folder: Path) -> Path:
    return folder / "imagesTr" / "p1.nii.gz"


def label_of(folder: Path) -> Path:
    return folder / "labelsTr" / "p1.nii.gz"


def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = nib.load(path)
    return np.asarray(image.dataobj).copy(), image.affine


def truncate(folder: Path) -> None:
    image_of(folder).write_bytes(image_of(folder).read_bytes()[:500])


def write_text(folder: Path) -> None:
    image_of(folder).write_bytes(gzip.compress(b"this is no image" * 100))


def crop_label(folder: Path) -> None:
    array, affine = load(label_of(folder))
    write(label_of(folder), array[:-1], affine)


def shift_label(folder: Path) -> None:
    array, affine = load(label_of(folder))
    affine[0, 3] += 5
    write(label_of(folder), array, affine)


def stretch_label(folder: Path) -> None:
    array, _ = load(label_of(folder))
    write(label_of(folder), array, np.diag([1, 1, 2, 1.0]))


def turn_label(folder: Path) -> None:
    array, _ = load(label_of(folder))
    write(label_of(folder), array, np.diag([-1, 1, 1, 1.0]))


def plant(value: float) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        array, affine = load(image_of(folder))
        array[3, 4, 5] = value
        write(image_of(folder), array, affine)

    return spoil


def flatten(folder: Path) -> None:
    write(image_of(folder), np.full(SHAPE, 7, np.float32))


def empty_label(folder: Path) -> None:
    write(label_of(folder), np.zeros(SHAPE, np.uint8))


def add_time(folder: Path) -> None:
    array, affine = load(label_of(folder))
    write(label_of(folder), np.stack([array, array], -1), affine)


def flatten_affine(folder: Path) -> None:
    header = nib.load(image_of(folder)).header
    array, _ = load(image_of(folder))
    header.set_sform(np.diag([1, 0, 1, 1.0]), code=1)
    header.set_qform(None, code=0)
    image = nib.Nifti1Image(array, None, header)
    image.header["srow_y"] = 0
    nib.save(image, image_of(folder))


def add_unknown_label(folder: Path) -> None:
    array, affine = load(label_of(folder))
    array[5, 5, 5] = 9
    write(label_of(folder), array, affine)


def add_fraction(folder: Path) -> None:
    array, affine = load(label_of(folder))
    write(label_of(folder), array.astype(np.float32) * 0.5, affine)


def duplicate(folder: Path) -> None:
    path = folder / "dataset.json"
    description = json.loads(path.read_text())
    description["training"].append(description["training"][1])
    path.write_text(json.dumps(description))


FAULTS = {
    "truncated file": (truncate, "p1"),
    "not an image": (write_text, "p1"),
    "other shape": (crop_label, "(15, 16, 16)"),
    "other affine": (shift_label, "p1"),
    "other spacing": (stretch_label, "p1"),
    "other orientation": (turn_label, "p1"),
    "NaN voxel": (plant(np.nan), "NaN"),
    "infinite voxel": (plant(np.inf), "infinite"),
    "constant image": (flatten, "7"),
    "empty label map": (empty_label, "empty"),
    "4D label map": (add_time, "(16, 16, 16, 2)"),
    "singular affine": (flatten_affine, "affine"),
    "unknown label": (add_unknown_label, "9"),
    "fractional label": (add_fraction, "0.5"),
    "duplicate case": (duplicate, "p1"),
}
# What only `check` judges: training can go on with it.
ONLY_CHECKED = {"constant image", "empty label map"}
# What `infer` reads too: the image alone.
IN_THE_IMAGE = ("truncated file", "not an image", "NaN voxel", "infinite voxel", "singular affine")


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "medseg_brn", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def assert_one_message(done: subprocess.CompletedProcess) -> None:
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.count("medseg-brn: ") == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("fault", FAULTS)
def test_check_names_the_fault_and_its_place(tmp_path, fault):
    spoil, fragment = FAULTS[fault]
    spoil(make_dataset(tmp_path / "cubes"))
    done = run("check", tmp_path / "cubes")
    assert_one_message(done)
    told = " ".join((done.stdout + done.stderr).split())
    assert fragment in told
    assert "p1" in told


@pytest.mark.slow
@pytest.mark.parametrize("fault", [name for name in FAULTS if name not in ONLY_CHECKED])
def test_training_refuses_it_before_the_first_step(tmp_path, fault):
    spoil, _ = FAULTS[fault]
    spoil(make_dataset(tmp_path / "cubes"))
    options = ("patches.size=[8,8,8]", "network.channels=[4,8,8]", "training.steps=2", "dataset.folds=4")
    overrides = [part for option in options for part in ("-s", option)]
    path = f"dataset.path={tmp_path / 'cubes'}"
    done = run("train", "demo", "-o", tmp_path / "run", "-s", path, *overrides)
    assert_one_message(done)
    assert "p1" in done.stderr
    made = {path.name for path in (tmp_path / "run").iterdir()}
    assert made.isdisjoint({"model", "checkpoint", "metrics.csv", "validation", "report.html"})


@pytest.mark.slow
def test_inference_refuses_it_and_writes_nothing(tmp_path):
    train = make_dataset(tmp_path / "good")
    options = ("patches.size=[8,8,8]", "network.channels=[4,8,8]", "training.steps=2", "dataset.fold=null")
    overrides = [part for option in options for part in ("-s", option)]
    trained = run("train", "demo", "-o", tmp_path / "run", "-s", f"dataset.path={train}", *overrides)
    assert trained.returncode == 0, trained.stderr
    for fault in IN_THE_IMAGE:
        folder = tmp_path / fault.replace(" ", "_")
        shutil.copytree(train, folder)
        FAULTS[fault][0](folder)
        output = tmp_path / "out" / f"{folder.name}.nii.gz"
        assert_one_message(run("infer", tmp_path / "run", image_of(folder), "-o", output))
        assert not output.parent.exists() or list(output.parent.iterdir()) == []
