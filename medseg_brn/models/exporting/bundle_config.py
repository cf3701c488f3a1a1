"""The two JSON files of a bundle: how it is run with MONAI's engine, and what it is."""

from importlib.metadata import version
from typing import Any

import numpy as np

from medseg_brn.models.exporting.contents import describe_contents, describe_evaluation
from medseg_brn.models.exporting.exportable import Exportable, network_arguments
from medseg_brn.volumes.geometry import AS_STORED

MODALITIES = {"ct": ("hounsfield", "CT"), "mri": ("magnitude", "MR")}
# Besides MONAI and torch. fire is what MONAI's command line is made with, ignite what its engines are.
PACKAGES = ("nibabel", "pytorch-ignite", "fire")
LATER_VERSIONS = {"nibabel": "5.2", "pytorch-ignite": "0.4.11", "fire": "0.5", "scipy": "1.11"}

Config = dict[str, Any]


def make_inference_config(exportable: Exportable) -> Config:
    """Return `configs/inference.json`: files of a folder, prepared, segmented and written as NIfTI."""
    return {
        "bundle_root": ".",
        "dataset_dir": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "datalist": {
            "_target_": "scripts.scans.list_scans",
            "folder": "@dataset_dir",
            "channels": exportable.description.in_channels,
        },
        "network_def": {
            "_target_": "scripts.network.FoldedUNet",
            **network_arguments(exportable.description),
        },
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": _list_preparations(exportable)},
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": "@dataset",
            "batch_size": 1,
            "shuffle": False,
            "num_workers": 0,
        },
        "inferer": _make_inferer(exportable),
        "postprocessing": {"_target_": "Compose", "transforms": _list_restorations(exportable)},
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
                "map_location": "@device",
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }


def _list_preparations(exportable: Exportable) -> list[Config]:
    description = exportable.description
    preprocessing = description.preprocessing
    turning = {
        "_target_": "Orientationd",
        "keys": "image",
        "axcodes": preprocessing.orientation,
        "labels": [["L", "R"], ["P", "A"], ["I", "S"]],  # MONAI's own, whose default is changing
    }
    return [
        {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        *([turning] if _turns_axes(exportable) else []),
        {
            "_target_": "scripts.preparing.PrepareScand",
            "spacing_mm": list(preprocessing.spacing_mm),
            "crop": preprocessing.crop,
            "intensity": preprocessing.as_dict()["intensity"],
            "skip_air": description.inference.skip_air,
        },
    ]


def _turns_axes(exportable: Exportable) -> bool:
    return exportable.description.preprocessing.orientation != AS_STORED


def _make_inferer(exportable: Exportable) -> Config:
    description = exportable.description
    settings = description.inference
    common = {
        "exclusive": not description.regions,
        "mirror_axes": list(settings.mirror_axes),
        "mirrored_channels": list(description.mirrored_channels) if description.mirrored_classes else None,
    }
    if exportable.folds:
        multiples = list(exportable.strides_total)
        return {"_target_": "scripts.inference.WholeVolumeInferer", "multiples": multiples, **common}
    return {
        "_target_": "scripts.inference.WindowInferer",
        "roi_size": list(description.patch_size),
        "overlap": settings.overlap,
        **common,
    }


def _list_restorations(exportable: Exportable) -> list[Config]:
    description = exportable.description
    regions = description.labels.targets.regions
    written = [region.written_class for region in regions]
    turning_back = {
        "_target_": "Invertd",
        "keys": "pred",
        "transform": "@preprocessing",
        "orig_keys": "image",
    }
    steps: list[Config] = [
        {"_target_": "scripts.restoring.RestoreLabelMapd", "written_classes": written},
        *([turning_back] if _turns_axes(exportable) else []),
    ]
    if description.inference.postprocessing:
        names = [region.name for region in regions] or description.class_names
        rules = [
            {"structure": names.index(name), **rule.model_dump(mode="json")}
            for name, rule in description.inference.postprocessing.items()
        ]
        steps.append(
            {
                "_target_": "scripts.postprocessing.PostprocessLabelMapd",
                "rules": rules,
                "num_classes": description.num_classes,
                "regions": [
                    {"classes": list(one.classes), "written_class": one.written_class} for one in regions
                ],
            }
        )
    values = list(description.label_values)
    if values != list(range(len(values))):
        classes = list(range(len(values)))
        mapping = {"orig_labels": classes, "target_labels": values}
        steps.append({"_target_": "MapLabelValued", "keys": "pred", **mapping})
    smallest = np.result_type(*(np.min_scalar_type(value) for value in values))
    steps.append(
        {
            "_target_": "SaveImaged",
            "keys": "pred",
            "output_dir": "@output_dir",
            "output_postfix": "",
            "output_ext": ".nii.gz",
            "output_dtype": str(smallest),
            "resample": False,
            "separate_folder": False,
        }
    )
    return steps


def make_metadata(exportable: Exportable) -> Config:
    """Return `configs/metadata.json`, with the fields of MONAI's bundle specification."""
    description = exportable.description
    packages = {name: LATER_VERSIONS[name] for name in list_packages(exportable)}
    structures = ", ".join(description.labels.targets.structure_names)
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
        "meta_schema_20240725.json",
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported by medseg_brn {version('medseg-brn')}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").split("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": packages,
        "name": description.name,
        "task": f"Segmentation of {structures}",
        "description": f"A 3D U-Net that segments {structures}. Input: {', '.join(description.modalities)}. "
        f"It is given {describe_evaluation(exportable)}.",
        "authors": "those who trained the model; medseg_brn wrote this bundle",
        "copyright": "of the weights: " + (description.licence or "their licence is not told"),
        "network_data_format": {
            "inputs": {"image": _describe_image(exportable)},
            "outputs": {"pred": _describe_prediction(exportable)},
        },
        "medseg_brn": describe_contents(exportable),
    }


def list_packages(exportable: Exportable) -> list[str]:
    """Return the packages that running the bundle takes, besides MONAI and torch."""
    description = exportable.description
    needs_scipy = description.preprocessing.crop == "body" or bool(description.inference.postprocessing)
    return [*PACKAGES, *(["scipy"] if needs_scipy else [])]


def _describe_image(exportable: Exportable) -> Config:
    modalities = exportable.description.modalities
    kind, modality = MODALITIES.get(modalities[0], ("magnitude", "n/a"))
    return {
        "type": "image",
        "format": kind,
        "modality": modality,
        "num_channels": len(modalities),
        "spatial_shape": _describe_shape(exportable),
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": not exportable.folds,
        "channel_def": {str(number): name for number, name in enumerate(modalities)},
    }


def _describe_prediction(exportable: Exportable) -> Config:
    description = exportable.description
    names = [region.name for region in description.regions] or description.class_names
    return {
        "type": "image",
        "format": "classes" if description.regions else "labels",
        "modality": "n/a",
        "num_channels": description.num_outputs,
        "spatial_shape": _describe_shape(exportable),
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": not exportable.folds,
        "channel_def": {str(number): name for number, name in enumerate(names)},
    }


def _describe_shape(exportable: Exportable) -> list[int | str]:
    if not exportable.folds:
        return list(exportable.description.patch_size)
    return [f"{step}*n" for step in exportable.strides_total]
