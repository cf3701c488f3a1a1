"""Plain state dicts, and a description of the network that they are of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from medseg_brn.config import ZooNetworkConfig
from medseg_brn.errors import ModelError
from medseg_brn.models.description import ModelDescription, read_description
from medseg_brn.models.importing.checkpoint import check_tensors, read_checkpoint
from medseg_brn.models.package import build_without_memory, check_replaceable, save_model


def import_state_dict(source: Path, description_path: Path, folder: Path) -> list[str]:
    """Write the model folder of a file with a state dict, whole or not at all.

    Args:
        source: what `torch.save(network.state_dict(), …)` wrote.
        description_path: a `model.json` of the network; its checksum is not looked at.
        folder: where to.

    Returns:
        No notes.

    Raises:
        ModelError: a file is damaged or refused, or the weights are not the described network's.
    """
    check_replaceable(folder)
    description = read_description(description_path)
    if not isinstance(description, ModelDescription):
        raise ModelError(f"{description_path} describes an ensemble, and weights are of one network")
    write_with_weights(description, source, folder)
    return []


def write_with_weights(description: ModelDescription, weights_path: Path, folder: Path) -> None:
    """Write a model folder of a description and a file with the state dict of its network.

    Raises:
        ModelError: the file is refused, or its weights are not the network's.
    """
    network: Any = build_without_memory(description, weights_path)
    weights = _find_state_dict(read_checkpoint(weights_path), weights_path)
    expected = network.state_dict()
    prefix = "network." if isinstance(description.network, ZooNetworkConfig) else ""
    named = {f"{prefix}{name.removeprefix('module.')}": tensor for name, tensor in weights.items()}
    wrong = sorted(expected.keys() ^ named.keys())
    wrong += [name for name in expected.keys() & named.keys() if expected[name].shape != named[name].shape]
    if wrong:
        name = wrong[0].removeprefix(prefix)
        raise ModelError(
            f"{weights_path} does not fit the network that is described: {len(wrong)} tensors are missing, "
            f"too many or of another shape, such as {name}"
        )
    network.load_state_dict({name: named[name] for name in expected}, assign=True)
    save_model(folder, network, description)


def _find_state_dict(found: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """Return the state dict, which may be an entry of a training checkpoint."""
    for name in ("model", "state_dict", "network"):
        if isinstance(found.get(name), Mapping):
            found = found[name]
    return check_tensors(found, f"The weights of {path}")
