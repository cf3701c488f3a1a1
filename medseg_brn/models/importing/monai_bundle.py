"""MONAI bundles as model folders.

    bundle/
      configs/metadata.json       channels and classes, licence
      configs/inference.json      or .yaml: network_def, preprocessing, inferer
      models/model.pt             a state dict

A bundle is a program: values that begin with `$` are Python expressions, and `_target_` names what is called.
Here it is read as data. Of the three entries of the configuration nothing but plain values, references to
them and the names of known networks and transforms is taken; anything else in them is refused by its name.
What the other entries say (imports, devices, handlers, writers) is not looked at.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from medseg_brn.config import InferenceConfig, Modality, Size3, ZooNetworkConfig
from medseg_brn.errors import ConfigError, ModelError
from medseg_brn.models.description import ModelDescription, explain
from medseg_brn.models.importing.bundle_preprocessing import describe_preprocessing
from medseg_brn.models.importing.bundle_values import BundleConfig
from medseg_brn.models.importing.files import read_plain
from medseg_brn.models.importing.state_dict import write_with_weights
from medseg_brn.models.package import check_replaceable
from medseg_brn.networks.zoo import check_zoo_arguments

METADATA_NAME = "configs/metadata.json"
CONFIG_NAMES = ("configs/inference.json", "configs/inference.yaml", "configs/inference.yml")
WEIGHTS_NAME = "models/model.pt"
ZOO_PREFIXES = ("", "monai.networks.nets")
BACKGROUND = "background"
MONAI_OVERLAP = 0.25


def is_bundle(source: Path) -> bool:
    """Whether this looks like a MONAI bundle."""
    return (source / METADATA_NAME).is_file()


def import_bundle(source: Path, folder: Path) -> list[str]:
    """Write the model folder of a MONAI bundle, whole or not at all.

    Returns:
        What its user should know, a sentence each.

    Raises:
        ModelError: a file is missing, damaged or refused, or says something that cannot be read as data or
            be done here.
    """
    check_replaceable(folder)
    metadata = read_plain(source / METADATA_NAME)
    path = next((source / name for name in CONFIG_NAMES if (source / name).is_file()), None)
    if path is None:
        raise ModelError(f"{source} has none of {', '.join(CONFIG_NAMES)}; a bundle for inference has one")
    try:
        description = _describe(metadata, BundleConfig(read_plain(path), path), source.resolve().name)
    except ValidationError as error:
        raise ModelError(f"{path} cannot be imported: {explain(error)}") from None
    except ConfigError as error:
        raise ModelError(f"{path} cannot be imported: {error}") from None
    write_with_weights(description, source / WEIGHTS_NAME, folder)
    return [
        "A bundle resamples images before it changes intensities, mostly linearly; here it is after, by "
        "cubic splines, so intensities differ a little at edges.",
        "What the bundle does to label maps afterwards was not taken over; infer -s postprocessing.NAME.… "
        "does such things.",
    ]


def _describe(metadata: Mapping[str, Any], config: BundleConfig, name: str) -> ModelDescription:
    network = _describe_network(config)
    in_channels, num_outputs = (network.arguments.get(key) for key in ("in_channels", "out_channels"))
    data = metadata.get("network_data_format")
    inputs, outputs = (_find_entry(data, key) for key in ("inputs", "outputs"))
    names = _read_channel_names(outputs, num_outputs)
    settings = _read_inferer(config)
    modality: Modality = "ct" if "CT" in str(inputs.get("modality")).upper().split() else "mri"
    channels = in_channels if isinstance(in_channels, int) else 1
    return ModelDescription(
        name=str(metadata.get("name") or name),
        network=network,
        class_names=names,
        label_values=tuple(range(len(names))),
        modalities=(modality,) * min(channels, 100),
        preprocessing=describe_preprocessing(config, min(channels, 100), is_ct=modality == "ct"),
        patch_size=settings[0],
        inference=InferenceConfig(overlap=settings[1], skip_air=False),
        licence=str(metadata["license"]) if metadata.get("license") else None,
        training={
            "toolkit": "MONAI bundle",
            "version": str(metadata.get("version")),
            "dataset": str(metadata.get("data_source")),
        },
    )


def _describe_network(config: BundleConfig) -> ZooNetworkConfig:
    target, arguments = config.read_component("network_def")
    prefix, _, name = target.rpartition(".")
    if prefix not in ZOO_PREFIXES:
        raise ModelError(
            f"{config.path}: network_def._target_ is {target!r}, which is no network of monai.networks.nets, "
            "and scripts of a bundle are not run"
        )
    check_zoo_arguments(name, arguments)
    return ZooNetworkConfig(kind="monai", name=name, arguments=arguments)


def _find_entry(data: object, key: str) -> Mapping[str, Any]:
    """Return what the metadata says of the image that goes in, or of the prediction that comes out."""
    entries = data.get(key) if isinstance(data, Mapping) else None
    found = entries.get({"inputs": "image", "outputs": "pred"}[key]) if isinstance(entries, Mapping) else None
    if not isinstance(found, Mapping):
        raise ModelError(f"{METADATA_NAME} lacks network_data_format.{key}, which says what the channels are")
    return found


def _read_channel_names(outputs: Mapping[str, Any], num_outputs: object) -> tuple[str, ...]:
    """Return the names of the classes, the background first."""
    named = outputs.get("channel_def")
    numbers = [str(number) for number in range(len(named))] if isinstance(named, Mapping) else []
    if not isinstance(named, Mapping) or sorted(map(str, named)) != sorted(numbers):
        raise ModelError(f"{METADATA_NAME}: outputs.pred.channel_def does not name the channels 0, 1, …")
    names = tuple(str({str(key): value for key, value in named.items()}[number]) for number in numbers)
    if len(names) != num_outputs:
        raise ModelError(f"{METADATA_NAME} names {len(names)} output channels, the network has {num_outputs}")
    if len(names) < 2 or names[0].lower() != BACKGROUND:
        raise ModelError(
            f"{METADATA_NAME}: channel 0 is {names[:1]} and not the background, so the channels are regions, "
            "of which a bundle does not tell as data how they are written; only classes are imported"
        )
    return names


def _read_inferer(config: BundleConfig) -> tuple[Size3, float]:
    """Return the windows' size and overlap; where and how many at a time MONAI computes is of no account."""
    target = str(config.read("inferer#_target_"))
    if target.rpartition(".")[2] != "SlidingWindowInferer":
        raise ModelError(f"{config.path}: inferer._target_ is {target!r}; SlidingWindowInferer is known here")
    size = config.read("inferer#roi_size")
    overlap = config.read("inferer#overlap") if "overlap" in config.content["inferer"] else MONAI_OVERLAP
    if isinstance(size, int):
        size = [size] * 3
    if not isinstance(size, list) or len(size) != 3 or not all(isinstance(n, int) and n > 0 for n in size):
        raise ModelError(f"{config.path}: inferer.roi_size is {size!r}, and three sizes above 0 are expected")
    if not isinstance(overlap, int | float) or not 0 <= overlap < 1:
        raise ModelError(f"{config.path}: inferer.overlap is {overlap!r}, and a share in [0, 1) is expected")
    return (size[0], size[1], size[2]), float(overlap)
