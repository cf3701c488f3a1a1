"""Phantom cohorts: scans of people who do not exist, written as a Decathlon dataset.

phantom_mri/
  dataset.json     the Medical Segmentation Decathlon's description
  manifest.csv     the same cases with their scanner sites: case, image, label, site, patient
  manifest.json    the same description, for readers of the manifest
  imagesTr/        head_000.nii.gz …
  labelsTr/        head_000.nii.gz …
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from medseg_brn.cases import phantom_abdomen, phantom_head, phantom_scanner
from medseg_brn.cases.phantom_scanner import Site
from medseg_brn.cases.phantom_shapes import Canvas, FloatArray
from medseg_brn.errors import ConfigError, DataError
from medseg_brn.volumes.atomic import atomic_path
from medseg_brn.volumes.volume import Grid, Volume
from medseg_brn.volumes.writing import write_volume

Modality = Literal["mri", "ct"]


@dataclass(frozen=True)
class PhantomCase:
    """One scan: the image as the scanner stored it and the exact label map, on one grid."""

    name: str
    site: str
    image: Volume
    label_map: Volume


@dataclass(frozen=True)
class _Kind:
    """What differs between the two cohorts."""

    stem: str
    class_names: tuple[str, ...]
    extent_mm: tuple[float, float, float]
    voxel_mm: float
    sites: tuple[Site, ...]
    description: str


_KINDS: dict[str, _Kind] = {
    "mri": _Kind(
        "head",
        phantom_head.CLASS_NAMES,
        phantom_head.EXTENT_MM,
        3.0,
        phantom_scanner.MRI_SITES,
        "Synthetic contrast-enhanced T1-weighted heads: brain, ventricles and lesions",
    ),
    "ct": _Kind(
        "abdomen",
        phantom_abdomen.CLASS_NAMES,
        phantom_abdomen.EXTENT_MM,
        5.0,
        phantom_scanner.CT_SITES,
        "Synthetic abdominal CT: liver, spleen and kidneys, with and without contrast agent",
    ),
}


def make_phantom(
    folder: Path | str,
    *,
    modality: Modality = "mri",
    cases: int = 24,
    seed: int = 0,
    voxel_mm: float | None = None,
    on_case: Callable[[str], None] | None = None,
) -> Path:
    """Writes a phantom cohort and returns its folder.

    Case 7 of a seed is the same scan in a cohort of 10 and of 100. Sites take turns, so four cases show
    all of them.

    Args:
        folder: where the dataset appears, whole or not at all; it must not exist, or be empty.
        modality: "mri" makes heads (brain, ventricles, lesion), "ct" makes abdomens (liver, spleen, kidneys).
        cases: number of scans, at least 1.
        seed: whole number >= 0.
        voxel_mm: voxel size that sites vary around; None takes 3 mm for heads (about 59×74×59 voxels) and
            5 mm for abdomens (about 74×58×48). 1 mm makes volumes of a clinical size.
        on_case: called with a case's name once it is written.

    Raises:
        ConfigError: an option is out of its range.
        DataError: the folder holds something already.
    """
    kind = _kind_of(modality, cases, seed, voxel_mm)
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            f"Cannot write the phantom to {folder}: it exists and is no empty folder; "
            "choose another place, or remove it."
        )
    with atomic_path(folder) as unfinished:
        (unfinished / "imagesTr").mkdir(parents=True)
        (unfinished / "labelsTr").mkdir()
        written = []
        for index in range(cases):
            case = draw_case(modality, index, seed=seed, voxel_mm=voxel_mm)
            write_volume(case.image, unfinished / "imagesTr" / f"{case.name}.nii.gz")
            write_volume(case.label_map, unfinished / "labelsTr" / f"{case.name}.nii.gz")
            written.append((case.name, case.site))
            if on_case:
                on_case(case.name)
        description = _describe(kind, modality, [name for name, _ in written])
        for name in ("dataset.json", "manifest.json"):
            (unfinished / name).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        _write_manifest(unfinished / "manifest.csv", written)
    return folder


def draw_case(modality: Modality, index: int, *, seed: int = 0, voxel_mm: float | None = None) -> PhantomCase:
    """Returns scan number `index` of a cohort, without writing it; a pure function of its arguments.

    Raises:
        ConfigError: an option is out of its range.
    """
    kind = _kind_of(modality, index + 1, seed, voxel_mm)
    site = kind.sites[index % len(kind.sites)]
    # Three streams: a person's anatomy stays the same when the grid or the noise is drawn differently.
    root = np.random.SeedSequence((seed, list(_KINDS).index(modality), index))
    anatomy_rng, grid_rng, scan_rng = (np.random.default_rng(child) for child in root.spawn(3))
    grid = phantom_scanner.make_grid(site, kind.extent_mm, voxel_mm or kind.voxel_mm, grid_rng)
    positions = phantom_scanner.voxel_positions(grid)
    canvas = _draw_anatomy(modality, positions, grid, anatomy_rng)
    scan = phantom_scanner.scan_mri if modality == "mri" else phantom_scanner.scan_ct
    image = scan(canvas.image, positions, site, scan_rng)
    return PhantomCase(
        f"{kind.stem}_{index:03d}", site.name, Volume(image, grid), Volume(canvas.label_map, grid)
    )


def _draw_anatomy(modality: Modality, positions: FloatArray, grid: Grid, rng: np.random.Generator) -> Canvas:
    edge_mm = float(np.prod(grid.spacing_mm) ** (1 / 3))
    if modality == "mri":
        return phantom_head.sample_head(rng).draw(positions, edge_mm)
    return phantom_abdomen.sample_abdomen(rng).draw(positions, edge_mm)


def _kind_of(modality: str, cases: int, seed: int, voxel_mm: float | None) -> _Kind:
    if modality not in _KINDS:
        raise ConfigError(f"Phantom modality '{modality}' is not known; choose one of {', '.join(_KINDS)}.")
    if cases < 1:
        raise ConfigError(f"A phantom cohort of {cases} cases is empty; ask for at least 1.")
    if seed < 0:
        raise ConfigError(f"Phantom seed {seed} is negative; choose a whole number from 0.")
    if voxel_mm is not None and not 0.5 <= voxel_mm <= 10:
        raise ConfigError(f"Phantom voxel size {voxel_mm} mm is outside 0.5 to 10 mm; choose one between.")
    return _KINDS[modality]


def _describe(kind: _Kind, modality: Modality, names: list[str]) -> dict[str, object]:
    training = [
        {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names
    ]
    return {
        "name": f"Phantom {kind.stem}",
        "description": kind.description,
        "licence": "CC0-1.0",
        "release": "1.0",
        "tensorImageSize": "3D",
        "modality": {"0": modality.upper()},
        "labels": {str(value): name for value, name in enumerate(kind.class_names)},
        "numTraining": len(training),
        "numTest": 0,
        "training": training,
        "test": [],
    }


def _write_manifest(path: Path, cases: list[tuple[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("case", "image", "label", "site", "patient"))
        for name, site in cases:
            rows.writerow((name, f"imagesTr/{name}.nii.gz", f"labelsTr/{name}.nii.gz", site, name))
