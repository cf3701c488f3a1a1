"""Small datasets written as NIfTI, for tests of what reads them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

SHAPE = (8, 9, 10)
SPACING_MM = (1.0, 1.0, 2.0)


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Writes a file as other programs would: by nibabel directly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(array, np.diag([*SPACING_MM, 1.0]) if affine is None else affine).to_filename(path)
    return path


def sample_image(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1000, shape).astype(np.int16)


def make_label_map(values: tuple[int, ...] = (1, 2), dtype: Any = np.uint8) -> np.ndarray:
    """Returns 24 voxels of each value, one value per slab, on a background of zeros."""
    label_map = np.zeros(SHAPE, dtype)
    for slab, value in enumerate(values):
        label_map[1 + slab, 2:6, 2:8] = value
    return label_map


@pytest.fixture(name="write_nifti")
def _write_nifti() -> Callable[..., Path]:
    return write_nifti


@pytest.fixture(name="sample_image")
def _sample_image() -> Callable[..., np.ndarray]:
    return sample_image


@pytest.fixture(name="make_label_map")
def _make_label_map() -> Callable[..., np.ndarray]:
    return make_label_map


@pytest.fixture
def make_decathlon(tmp_path: Path) -> Callable[..., Path]:
    """Writes a Decathlon dataset of cases p0, p1 … and returns its folder; keywords change dataset.json."""

    def make(cases: int = 3, values: tuple[int, ...] = (1, 2), **changes: Any) -> Path:
        folder = tmp_path / "Task99_Blocks"
        for n in range(cases):
            write_nifti(folder / "imagesTr" / f"p{n}.nii.gz", sample_image(n))
            write_nifti(folder / "labelsTr" / f"p{n}.nii.gz", make_label_map(values))
        content = {
            "name": "Blocks",
            "licence": "CC0",
            "modality": {"0": "MRI"},
            "labels": {"0": "background", "1": "left", "2": "right"},
            "numTraining": cases,
            "training": [
                {"image": f"./imagesTr/p{n}.nii.gz", "label": f"./labelsTr/p{n}.nii.gz"} for n in range(cases)
            ],
        } | changes
        (folder / "dataset.json").write_text(json.dumps(content))
        return folder

    return make


@pytest.fixture
def make_nnunet(tmp_path: Path) -> Callable[..., Path]:
    """Writes an nnU-Net raw dataset with two channels and returns its folder."""

    def make(cases: int = 2, values: tuple[int, ...] = (1, 2, 4), **changes: Any) -> Path:
        folder = tmp_path / "Dataset099_Blocks"
        for n in range(cases):
            for channel in range(2):
                image = sample_image(10 * n + channel)
                write_nifti(folder / "imagesTr" / f"p_{n}_{channel:04d}.nii.gz", image)
            write_nifti(folder / "labelsTr" / f"p_{n}.nii.gz", make_label_map(values))
        content = {
            "channel_names": {"0": "T1", "1": "CT"},
            "labels": {"background": 0, "necrosis": 1, "edema": 2, "enhancing": 4},
            "numTraining": cases,
            "file_ending": ".nii.gz",
        } | changes
        (folder / "dataset.json").write_text(json.dumps(content))
        return folder

    return make
