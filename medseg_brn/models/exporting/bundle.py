"""MONAI bundles: folders that `python -m monai.bundle run` runs where this toolkit is not installed.

    BUNDLE/
      configs/metadata.json    what the model is
      configs/inference.json   how MONAI's engine runs it
      models/model.pt          the weights
      scripts/                 the network, and the steps that MONAI has none of its own for
      docs/README.md           how to use it
      docs/license.txt         of the weights and of the scripts

The weights are a plain state dict written by torch.save, the form that MONAI's specification names and its
runner reads. It is a pickle of tensors and names alone, and loads with `weights_only=True`, which executes
nothing.
"""

import json
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch

from medseg_brn.errors import ModelError
from medseg_brn.models.exporting import bundle_scripts
from medseg_brn.models.exporting.bundle_config import list_packages, make_inference_config, make_metadata
from medseg_brn.models.exporting.contents import describe_evaluation
from medseg_brn.models.exporting.exportable import Agreement, Exportable, check_agreement
from medseg_brn.volumes.atomic import atomic_path

METADATA_NAME = "configs/metadata.json"


def write_bundle(exportable: Exportable, folder: Path) -> Agreement:
    """Write the model as a MONAI bundle, whole or not at all; a bundle that was there is replaced.

    Raises:
        ModelError: the folder holds something else, or the folded network gives other logits than the trained
            one.
        DataError: the place cannot be written to.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / METADATA_NAME).is_file():
        raise ModelError(
            f"{folder} holds files that are no bundle, and exporting would replace them; choose another"
        )
    network = exportable.network
    agreement = check_agreement(lambda image: network(torch.from_numpy(image)).numpy(), exportable, folder)
    with atomic_path(folder) as temporary:
        for name in ("configs", "models", "scripts", "docs"):
            (temporary / name).mkdir(parents=True)
        _write_json(make_inference_config(exportable), temporary / "configs" / "inference.json")
        _write_json(make_metadata(exportable), temporary / METADATA_NAME)
        for script in sorted(Path(bundle_scripts.__file__).parent.glob("*.py")):
            copyfile(script, temporary / "scripts" / script.name)
        (temporary / "docs" / "README.md").write_text(_describe(exportable, folder.name), encoding="utf-8")
        (temporary / "docs" / "license.txt").write_text(_tell_licence(exportable), encoding="utf-8")
        torch.save(network.state_dict(), temporary / "models" / "model.pt")
    return agreement


def _write_json(content: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(content, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")


def _tell_licence(exportable: Exportable) -> str:
    told = exportable.description.licence or "not told by who trained the model; ask before you pass it on"
    return f"""\
Weights (models/model.pt): {told}

Scripts (scripts/): Apache License, Version 2.0, http://www.apache.org/licenses/LICENSE-2.0
"""


def _describe(exportable: Exportable, name: str) -> str:
    """Return the bundle's README."""
    description = exportable.description
    scans = (
        "one NIfTI file per scan"
        if description.in_channels == 1
        else f"NIfTI files: one per scan with {description.in_channels} channels, or one per channel "
        "(CASE_0000.nii.gz, CASE_0001.nii.gz, …)"
    )
    classes = "\n".join(
        f"- {value}: {label}"
        for value, label in zip(description.label_values, description.class_names, strict=True)
    )
    channels = ", ".join(description.modalities)
    packages = " ".join(["monai", "torch", *list_packages(exportable)])
    return f"""\
# {description.name}

A 3D U-Net for segmentation, trained with medseg_brn and exported as a MONAI bundle.

    pip install {packages}
    cd {name}
    python -m monai.bundle run --config_file configs/inference.json \\
      --dataset_dir SCANS --output_dir LABEL_MAPS

SCANS is a folder with {scans} (channels: {channels}).
LABEL_MAPS gets one label map per scan, on the scan's own grid, under the name of its (first) file.

Values in label maps:

{classes}

The network is given {describe_evaluation(exportable)}. Norms that fold are part of its convolutions.
`scripts/` holds the network and what MONAI has no transform of its own for: crop, intensities and voxel size
as in training, and the way back, where probabilities are interpolated before it is decided. All is told in
`configs/metadata.json`, under `medseg_brn`. Not a medical device.
"""
