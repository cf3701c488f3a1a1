"""Model folders: `model.safetensors` (weights) and `model.json` (all the rest).

An ensemble's folder has a `model.json` of its own and, in `members`, a model folder for each member.
Loading reads numbers and text, checks both and executes nothing.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medseg_brn.config import NetworkConfig
from medseg_brn.errors import ConfigError, ModelError
from medseg_brn.inference.machine import return_freed_memory
from medseg_brn.inference.precision import DeviceName, PrecisionName, choose_device, choose_precision
from medseg_brn.models.agreement import find_disagreement
from medseg_brn.models.architecture import Network, build_described, count_blocks
from medseg_brn.models.description import (
    Description,
    EnsembleDescription,
    MemberEntry,
    ModelDescription,
    read_description,
)
from medseg_brn.models.model import Model
from medseg_brn.models.names import DESCRIPTION_NAME, MEMBERS_NAME, WEIGHTS_NAME, find_model_folder
from medseg_brn.networks.unet3d import UNet3d
from medseg_brn.networks.zoo import ZooNetwork
from medseg_brn.volumes.atomic import atomic_path
from medseg_brn.volumes.download import compute_sha256

__all__ = [
    "DESCRIPTION_NAME", "MEMBERS_NAME", "WEIGHTS_NAME", "Model", "ModelDescription", "find_model_folder",
    "load_model", "load_models_by_site", "load_network", "save_model", "verify_model",
]  # fmt: skip

MOST_BLOCKS = 1000
"""Of a network; each is an object even where it has no weights. The largest that trains has some fifty."""
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
    weights = _list_weights(network)
    _fit_weights(build_without_memory(description, folder), weights, folder)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        save_file(weights, temporary / WEIGHTS_NAME)
        checksum = compute_sha256(temporary / WEIGHTS_NAME)
        complete = description.model_copy(update={"weights_sha256": checksum})
        (temporary / DESCRIPTION_NAME).write_text(complete.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _list_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights on the CPU; those that stand under several names (DynUNet's do) as several."""
    weights: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in network.state_dict().items():
        own = tensor.detach().cpu().contiguous()
        weights[name] = own.clone() if own.data_ptr() in seen else own
        seen.add(own.data_ptr())
    return weights


def load_model(
    path: Path | str,
    device: DeviceName = "auto",
    precision: PrecisionName = "auto",
    site: str | None = None,
) -> Model:
    """Load a model or an ensemble, ready to predict.

    Args:
        path: a model folder, a run folder with one inside, or a known model's name.
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
    description, members = _load_networks(folder)
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


def verify_model(folder: Path) -> Description:
    """Read all of a model as loading does, make nothing of it, and return its description.

    Args:
        folder: with its `model.json`.

    Raises:
        ModelError: as `load_model`.
    """
    return _load_networks(folder)[0]


def load_network(path: Path | str) -> tuple[Network, ModelDescription]:
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
    network = _fit_weights(build_without_memory(description, folder), weights, folder)
    if isinstance(network, ZooNetwork):  # MONAI's may hold tensors that are no weights, as yet without values
        network = _fit_weights(_build(description), network.state_dict(), folder)
    return network, description


def load_unet(path: Path | str) -> tuple[UNet3d, ModelDescription]:
    """Load the network as `load_network` does, where only a U-Net of ours will do.

    Raises:
        ModelError: as `load_network`, and for a network of another toolkit.
    """
    network, description = load_network(path)
    if not isinstance(network, UNet3d):
        raise ModelError(
            f"{path} is a {network.name} of MONAI, and only U-Nets of this toolkit can be trained further by "
            "experiments, compared, exported or quantized; infer takes it, and load_network for a script"
        )
    return network, description


def check_replaceable(folder: Path) -> None:
    """Make sure that a model may be saved here.

    Raises:
        ModelError: the folder holds something else.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / DESCRIPTION_NAME).is_file():
        raise ModelError(
            f"{folder} holds files that are no model, and saving would replace them; choose another"
        )


def _check_site(site: str | None, members: Sequence[tuple[Network, ModelDescription]], folder: Path) -> None:
    known = sorted({name for _, description in members for name in description.sites})
    if site is None or site in known:
        return
    has = f"statistics of the sites {', '.join(known)}" if known else "the same statistics for all sites"
    raise ConfigError(
        f"Site {site!r} was asked for, and the model {folder} has {has}; "
        + ("name one of them, or none for the mixture of all" if known else "name no site")
    )


def _load_networks(folder: Path) -> tuple[Description, list[tuple[Network, ModelDescription]]]:
    description = read_description(folder / DESCRIPTION_NAME)
    if isinstance(description, EnsembleDescription):
        return description, _load_members(folder, description)
    return description, [load_network(folder)]


def _load_members(folder: Path, ensemble: EnsembleDescription) -> list[tuple[Network, ModelDescription]]:
    """Return the networks of an ensemble, which still are what was combined."""
    places = [folder / MEMBERS_NAME / member.folder for member in ensemble.members]
    members = [_load_member(*pair) for pair in zip(places, ensemble.members, strict=True)]
    described = zip(places, (description for _, description in members), strict=True)
    disagreement = find_disagreement([*described, (folder, ensemble)])
    if disagreement is not None:
        raise ModelError(f"The members of {folder} do not belong together: {disagreement}; {COPY_AGAIN}")
    return members


def _load_member(place: Path, entry: MemberEntry) -> tuple[Network, ModelDescription]:
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
        found = compute_sha256(path)
        if found != sha256:
            raise ModelError(
                f"{path} is damaged or was exchanged: its SHA-256 is {found} ({path.stat().st_size} bytes), "
                f"and {DESCRIPTION_NAME} says {sha256 or 'none'}; {COPY_AGAIN}"
            )
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read: {error}; {COPY_AGAIN}") from None


def build_without_memory(description: ModelDescription, folder: Path) -> Network:
    """Return the described network with shapes only, so that no description can ask for memory."""
    blocks = count_blocks(description.network) if isinstance(description.network, NetworkConfig) else 0
    if blocks > MOST_BLOCKS:
        raise ModelError(
            f"{folder} describes a network of {blocks} blocks, and {MOST_BLOCKS} are the most; {COPY_AGAIN}"
        )
    try:
        with torch.device("meta"):
            network = _build(description)
            network.check_patch_size(description.patch_size)
    except (ConfigError, RuntimeError, TypeError, ValueError, OverflowError) as error:
        reason = str(error).partition("\n")[0]  # torch's own, of numbers it cannot take, go on for pages
        raise ModelError(f"{folder} describes no network: {reason}") from None
    return network


def _build(description: ModelDescription) -> Network:
    return build_described(
        description.network, description.in_channels, description.num_outputs, description.sites
    )


def _fit_weights(network: Network, weights: dict[str, Tensor], folder: Path) -> Network:
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
