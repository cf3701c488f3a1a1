"""Model folders: `model.safetensors` (weights) and `model.json` (all the rest).

An ensemble's folder has a `model.json` of its own and, in `members`, a model folder for each member.
Loading reads numbers and text, checks both and executes nothing.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medseg_brn.errors import ConfigError, ModelError
from medseg_brn.inference.machine import return_freed_memory
from medseg_brn.inference.precision import DeviceName, PrecisionName, choose_device, choose_precision
from medseg_brn.models.architecture import build_network
from medseg_brn.models.description import (
    EnsembleDescription,
    MemberEntry,
    ModelDescription,
    find_disagreement,
    read_description,
)
from medseg_brn.models.model import Model
from medseg_brn.networks.unet3d import UNet3d
from medseg_brn.volumes.atomic import atomic_path

__all__ = [
    "Model", "ModelDescription", "find_model_folder", "load_model", "load_models_by_site", "load_network",
    "save_model",
]  # fmt: skip

WEIGHTS_NAME = "model.safetensors"
DESCRIPTION_NAME = "model.json"
MEMBERS_NAME = "members"
COPY_AGAIN = "copy the model folder again from its source"


def save_model(folder: Path | str, network: nn.Module, description: ModelDescription) -> None:
    """Write a model folder, whole or not at all; a model that was there is replaced.

    Args:
        folder: where to.
        network: as `build_network` made it and training changed it: not folded, so that training can go
            on from the saved weights.
        description: what it is; the checksum is filled in here.

    Raises:
        ModelError: the weights do not fit the described architecture, or the folder holds something else.
    """
    folder = Path(folder)
    check_replaceable(folder)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    _fit_weights(_build_without_memory(description, folder), weights, folder)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        save_file(weights, temporary / WEIGHTS_NAME)
        checksum = _compute_sha256(temporary / WEIGHTS_NAME)
        complete = description.model_copy(update={"weights_sha256": checksum})
        (temporary / DESCRIPTION_NAME).write_text(complete.model_dump_json(indent=2) + "\n", encoding="utf-8")


def load_model(
    path: Path | str,
    device: DeviceName = "auto",
    precision: PrecisionName = "auto",
    site: str | None = None,
) -> Model:
    """Load a model or an ensemble, ready to predict.

    Args:
        path: a model folder, or a run folder with one inside.
        device: where it computes.
        precision: what it computes in.
        site: where the scans come from, for a model with statistics of each training site (norm
            `domain_batch`); None normalizes by the mixture of all.

    Raises:
        ModelError: there is none, or it is damaged, of a newer format or not what it says.
        ConfigError: the device or the precision is not to be had, int8 not with this model, or it has no
            statistics of the site.
    """
    chosen_device = choose_device(device)
    dtype = choose_precision(precision, chosen_device)
    folder = find_model_folder(path)
    description = read_description(folder / DESCRIPTION_NAME)
    if isinstance(description, EnsembleDescription):
        members = _load_members(folder, description)
    else:
        members = [load_network(folder)]
    _check_site(site, members, folder)
    model = Model.from_networks(members, description, chosen_device, dtype, site)
    del members
    return_freed_memory()  # of the weights as they were before folding, some 200 MB with 30 million of them
    return model


def load_models_by_site(path: Path | str, device: DeviceName = "auto") -> dict[str | None, Model]:
    """Load a model for scans of each of its sites, and under None that for all other scans.

    Raises:
        ModelError, ConfigError: as `load_model`.
    """
    model = load_model(path, device)
    return {None: model} | {site: load_model(path, device, site=site) for site in model.sites}


def load_network(path: Path | str) -> tuple[UNet3d, ModelDescription]:
    """Load the network with its weights as they were saved, and the description.

    Raises:
        ModelError: as `load_model`, and for an ensemble.
    """
    folder = find_model_folder(path)
    description = read_description(folder / DESCRIPTION_NAME)
    if isinstance(description, EnsembleDescription):
        raise ModelError(
            f"{folder} is an ensemble of {len(description.members)} models, and one network is asked for; "
            f"give one of its members, as in {folder / MEMBERS_NAME / description.members[0].folder}, "
            "or load them all with load_model"
        )
    weights = _read_weights(folder / WEIGHTS_NAME, description.weights_sha256)
    network = _build_without_memory(description, folder)
    return _fit_weights(network, weights, folder), description


def find_model_folder(path: Path | str) -> Path:
    """Return the folder with the model: `path` itself, or `model` inside the run folder `path`.

    Raises:
        ModelError: neither holds a model.
    """
    path = Path(path)
    for folder in (path, path / "model"):
        if (folder / DESCRIPTION_NAME).is_file():
            return folder
    if not path.exists():
        raise ModelError(f"No model at {path}: it does not exist; give a run folder or a model folder")
    if (path / "checkpoint").is_dir():
        raise ModelError(
            f"No model in the run {path} yet; finish it with medseg-brn train … -o {path} --resume"
        )
    raise ModelError(f"No model at {path}: neither {DESCRIPTION_NAME} nor model/{DESCRIPTION_NAME} is in it")


def check_replaceable(folder: Path) -> None:
    """Make sure that a model may be saved here.

    Raises:
        ModelError: the folder holds something else.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / DESCRIPTION_NAME).is_file():
        raise ModelError(
            f"{folder} holds files that are no model, and saving would replace them; choose another"
        )


def _check_site(site: str | None, members: Sequence[tuple[UNet3d, ModelDescription]], folder: Path) -> None:
    known = sorted({name for _, description in members for name in description.sites})
    if site is None or site in known:
        return
    has = f"statistics of the sites {', '.join(known)}" if known else "the same statistics for all sites"
    raise ConfigError(
        f"Site {site!r} was asked for, and the model {folder} has {has}; "
        + ("name one of them, or none for the mixture of all" if known else "name no site")
    )


def _load_members(folder: Path, ensemble: EnsembleDescription) -> list[tuple[UNet3d, ModelDescription]]:
    """Return the networks of an ensemble, which still are what was combined."""
    places = [folder / MEMBERS_NAME / member.folder for member in ensemble.members]
    members = [_load_member(*pair) for pair in zip(places, ensemble.members, strict=True)]
    described = zip(places, (description for _, description in members), strict=True)
    disagreement = find_disagreement([*described, (folder, ensemble)])
    if disagreement is not None:
        raise ModelError(f"The members of {folder} do not belong together: {disagreement}; {COPY_AGAIN}")
    return members


def _load_member(place: Path, entry: MemberEntry) -> tuple[UNet3d, ModelDescription]:
    if not (place / DESCRIPTION_NAME).is_file():
        raise ModelError(f"The ensemble lacks its member {place}: no {DESCRIPTION_NAME} there; {COPY_AGAIN}")
    network, description = load_network(place)
    if description.weights_sha256 != entry.weights_sha256:
        raise ModelError(
            f"{place} was exchanged: its weights have the SHA-256 {description.weights_sha256}, and the "
            f"ensemble's {DESCRIPTION_NAME} says {entry.weights_sha256}; {COPY_AGAIN}"
        )
    return network, description


def _read_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file whose checksum is as described."""
    try:
        found = _compute_sha256(path)
        if found != sha256:
            raise ModelError(
                f"{path} is damaged or was exchanged: its SHA-256 is {found} ({path.stat().st_size} bytes), "
                f"and {DESCRIPTION_NAME} says {sha256 or 'none'}; {COPY_AGAIN}"
            )
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read: {error}; {COPY_AGAIN}") from None


def _build_without_memory(description: ModelDescription, folder: Path) -> UNet3d:
    """Return the described network with shapes only, so that no description can ask for memory."""
    try:
        with torch.device("meta"):
            network = build_network(
                description.network, description.in_channels, description.num_outputs, description.sites
            )
            network.check_patch_size(description.patch_size)
    except ConfigError as error:
        raise ModelError(f"{folder} describes no network: {error}") from None
    return network


def _fit_weights(network: UNet3d, weights: dict[str, Tensor], folder: Path) -> UNet3d:
    """Return the network with these weights as its own."""
    expected = network.state_dict()
    problems = [
        f"{name} is missing"
        if name not in weights
        else f"{name} has shape {tuple(weights[name].shape)} and not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name not in weights or weights[name].shape != tensor.shape
    ]
    problems += [f"{name} has no place" for name in weights if name not in expected]
    problems += [
        f"{name} is {weights[name].dtype} and not {tensor.dtype}"
        for name, tensor in expected.items()
        if name in weights and weights[name].dtype != tensor.dtype
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelError(
            f"The weights of {folder} do not fit its described architecture: {'; '.join(problems[:3])}{more}"
        )
    network.load_state_dict(weights, assign=True)
    return network


def _compute_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
