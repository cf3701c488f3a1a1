"""Results folders of nnU-Net v2 as model folders.

    nnUNetTrainer__nnUNetPlans__3d_fullres/
      plans.json, dataset.json
      fold_0/checkpoint_final.pth     (or checkpoint_best.pth, where training was stopped)
      fold_1/…                        several folds become an ensemble

The network, its weights and the preprocessing are nnU-Net's, so the logits of a patch are too. The two
differ a little where a scan is resampled, in where the windows of a row lie, and where several windows or
members are averaged (here probabilities, there logits).

nnU-Net sees each scan in the axes of its file, whichever they are, and does its best on those that were usual
in its training set. So does the model made here (preprocessing.orientation is "stored"), unless its user
knows which they were and says it. Mirroring the kernels instead would not do: a convolution that strides
looks at the voxels 0, 2, 4 … of its axis, and at other ones from the other end.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from medseg_brn.cases.description import modality_of, parse_description
from medseg_brn.cases.label_description import Labels
from medseg_brn.config import InferenceConfig, Orientation, Size3
from medseg_brn.errors import DataError, ModelError
from medseg_brn.models.description import ModelDescription, RegionEntry, explain
from medseg_brn.models.ensemble import save_ensemble
from medseg_brn.models.importing.checkpoint import check_tensors, read_checkpoint
from medseg_brn.models.importing.files import read_plain
from medseg_brn.models.importing.nnunet_plans import (
    Configuration,
    choose_configuration,
    describe_network,
    describe_preprocessing,
    find_axes,
    find_orientation,
    reorder,
)
from medseg_brn.models.importing.nnunet_weights import translate_weights
from medseg_brn.models.package import build_without_memory, check_replaceable, save_model

PLANS_NAME, DATASET_NAME = "plans.json", "dataset.json"
FOLD = re.compile(r"fold_(\d+|all)")
CHECKPOINT_NAMES = ("checkpoint_final.pth", "checkpoint_best.pth")
Axes = tuple[int, int, int]


@dataclass(frozen=True)
class _Fold:
    """One checkpoint, read."""

    name: str
    path: Path
    weights: dict[str, Tensor]
    configuration: object
    mirror_axes: tuple[int, ...]
    trainer: str
    epoch: int | None


def is_nnunet(source: Path) -> bool:
    """Whether this looks like a results folder of nnU-Net."""
    return (source / PLANS_NAME).is_file()


def import_nnunet(source: Path, folder: Path, orientation: Orientation | None = None) -> list[str]:
    """Write the model folder of a results folder of nnU-Net, whole or not at all.

    Args:
        source: the results folder.
        folder: where to.
        orientation: in which axes the network sees scans; by default as nnU-Net does.

    Returns:
        What its user should know, a sentence each.

    Raises:
        ModelError: a file is missing, damaged or refused, or the model is one that networks here cannot be.
    """
    check_replaceable(folder)
    plans, dataset = read_plain(source / PLANS_NAME), read_plain(source / DATASET_NAME)
    orientation = orientation or find_orientation(plans)
    paths = _find_checkpoints(source)
    beside = folder.parent if folder.parent.is_dir() else None  # folds may be large, and /tmp small
    with TemporaryDirectory(dir=beside, prefix=".") as temporary:
        places = []
        for number, path in enumerate(paths):
            fold = _read_fold(path)
            try:
                description = _describe(plans, dataset, fold, orientation)
            except ValidationError as error:
                raise ModelError(f"{source / PLANS_NAME} cannot be imported: {explain(error)}") from None
            except DataError as error:
                raise ModelError(str(error)) from None
            network: Any = build_without_memory(description, source)
            weights = translate_weights(fold.weights, network, find_axes(plans), str(path))
            network.load_state_dict(weights, assign=True)
            places.append(folder if len(paths) == 1 else Path(temporary) / str(number))
            save_model(places[-1], network, description)
        if len(paths) > 1:
            save_ensemble(folder, places, name=description.name)
    return _list_notes(description, len(paths))


def _find_checkpoints(source: Path) -> list[Path]:
    folds = sorted(path for path in source.iterdir() if path.is_dir() and FOLD.fullmatch(path.name))
    if not folds:
        raise ModelError(
            f"{source} has no folder fold_0, fold_1, … with a checkpoint; give the results folder of one "
            "training, as in nnUNet_results/Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres"
        )
    numbered = [fold for fold in folds if fold.name != "fold_all"]
    found = []
    for fold in numbered or folds:
        here = [fold / name for name in CHECKPOINT_NAMES if (fold / name).is_file()]
        if not here:
            raise ModelError(
                f"{fold} has neither {' nor '.join(CHECKPOINT_NAMES)}; finish its training, or move the "
                "folder away"
            )
        found.append(here[0])
    return found


def _read_fold(path: Path) -> _Fold:
    checkpoint = read_checkpoint(path)
    arguments = checkpoint.get("init_args")
    if not isinstance(arguments, Mapping) or "network_weights" not in checkpoint:
        raise ModelError(f"{path} has no network_weights and init_args, so it is no checkpoint of nnU-Net v2")
    axes, epoch = checkpoint.get("inference_allowed_mirroring_axes"), checkpoint.get("current_epoch")
    return _Fold(
        path.parent.name,
        path,
        check_tensors(checkpoint["network_weights"], f"The network_weights of {path}"),
        arguments.get("configuration"),
        tuple(axis for axis in axes if axis in (0, 1, 2)) if isinstance(axes, list | tuple) else (),
        str(checkpoint.get("trainer_name")),
        epoch if isinstance(epoch, int) else None,
    )


def _describe(
    plans: Mapping[str, Any], dataset: Mapping[str, Any], fold: _Fold, orientation: Orientation
) -> ModelDescription:
    configuration, axes = choose_configuration(plans, fold.configuration), find_axes(plans)
    settings = Configuration.model_validate(configuration)
    heads = sum(name.startswith("decoder.seg_layers.") for name in fold.weights) // 2
    network = describe_network(configuration, axes, deep_supervision=heads > 1)
    named = parse_description(dataset, Path(DATASET_NAME), str(plans.get("dataset_name", "nnU-Net")))
    labels: Labels = named["labels"]
    patch_size: Size3 = reorder(settings.patch_size, axes)
    return ModelDescription(
        name=str(plans.get("dataset_name") or named["name"]),
        network=network,
        class_names=labels.class_names,
        label_values=labels.label_values,
        regions=tuple(
            RegionEntry(name=one.name, label_values=one.label_values, written_value=one.written_value)
            for one in labels.region_values
        ),
        modalities=tuple(modality_of(name) for name in named["channel_names"] or ()),
        preprocessing=describe_preprocessing(plans, settings, axes, orientation),
        patch_size=patch_size,
        inference=InferenceConfig(skip_air=False),  # as nnU-Net, which looks at all of a scan
        licence=named["licence"],
        training={
            "toolkit": "nnU-Net v2",
            "dataset": str(plans.get("dataset_name")),
            "plans": str(plans.get("plans_name")),
            "configuration": str(fold.configuration),
            "trainer": fold.trainer,
            "fold": fold.name.removeprefix("fold_"),
            "checkpoint": fold.path.name,
            "epochs": fold.epoch,
            "mirrored_axes": sorted(axes.index(axis) for axis in fold.mirror_axes),
        },
    )


def _list_notes(description: ModelDescription, count: int) -> list[str]:
    mirrored = ",".join(map(str, description.training["mirrored_axes"]))
    notes = []
    if count > 1:
        notes.append(f"{count} folds, so it is an ensemble, which averages their probabilities.")
    if description.preprocessing.orientation == "stored":
        notes.append(
            "It sees each scan in the axes of its file, as nnU-Net does: give it scans stored as its "
            "training scans were. If you know how they were stored, say it by --orientation (LPS, RAS …), "
            "and it takes scans stored in any way."
        )
    if mirrored:
        notes.append(
            f"nnU-Net mirrors at inference unless told otherwise; infer --mirror {mirrored} does, in "
            f"{2 ** len(description.training['mirrored_axes'])} times the time."
        )
    if any(scheme.scheme == "zscore_nonzero" for scheme in description.preprocessing.intensity):
        notes.append(
            "nnU-Net measures intensities where any channel is not 0, and in holes there; here it is where "
            "the channel itself is not 0, so intensities may differ a little."
        )
    return notes
