"""Small models with random weights, saved as model folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medseg_brn.models.architecture import build_network
from medseg_brn.models.description import ModelDescription
from medseg_brn.models.package import save_model
from medseg_brn.networks.domain_norm import set_sites

DESCRIPTION: dict[str, Any] = {
    "name": "tiny",
    "network": {"channels": (4, 6)},
    "class_names": ("background", "tumour", "cyst"),
    "label_values": (0, 2, 500),
    "modalities": ("mri",),
    "preprocessing": {"spacing_mm": (1, 1, 2), "intensity": [{"scheme": "zscore"}]},
    "patch_size": (8, 8, 8),
    "licence": "CC-BY-4.0",
}
REGIONS = {
    "class_names": ("background", "oedema", "core"),
    "label_values": (0, 10, 40),
    "regions": [
        {"name": "tumour", "label_values": (10, 40), "written_value": 10},
        {"name": "core", "label_values": (40,), "written_value": 40},
    ],
}

ARCHITECTURES = {
    "plain": {},
    "anisotropic": {
        "channels": (4, 6, 8),
        "strides": ((1, 1, 1), (2, 2, 1), (1, 2, 2)),
        "kernels": ((3, 3, 1), (3, 3, 3), (1, 3, 5)),
    },
    "residual": {"encoder": "residual", "encoder_blocks": (1, 2), "channels": (4, 6)},
    "residual, pooled only": {"encoder": "residual", "channels": (4, 4), "norm": "mabn"},
    "deep supervision": {"channels": (4, 6, 8), "deep_supervision": True, "decoder_blocks": (1, 2)},
    "weight standardization": {"weight_standardization": True, "norm": "group", "channels": (4, 12)},
    "weight standardization, no norm": {"weight_standardization": True, "norm": "none"},
    "instance": {"norm": "instance", "encoder": "residual"},
    "layer": {"norm": "layer"},
    "batch": {"norm": "batch"},
    "one level": {"channels": (4,)},
}

SaveTiny = Callable[..., Path]


@pytest.fixture(params=ARCHITECTURES.values(), ids=ARCHITECTURES)
def architecture(request) -> dict[str, Any]:
    """A network section; every kind of layer that a network has occurs in one."""
    return {"channels": (4, 6)} | request.param


@pytest.fixture
def save_tiny(tmp_path) -> SaveTiny:
    """A function that saves a model, described as above but for the changes, and returns its folder."""

    def save(folder: str = "model", seed: int = 0, /, **changes) -> Path:
        description = ModelDescription.model_validate(DESCRIPTION | changes)
        torch.manual_seed(seed)
        network = build_network(
            description.network, description.in_channels, description.num_outputs, description.sites
        )
        _learn_statistics(network, description)
        with torch.no_grad():
            network.head.weight *= 4  # so that no class or region wins everywhere
        save_model(tmp_path / folder, network, description)
        return tmp_path / folder

    return save


def _learn_statistics(network, description) -> None:
    """Let norms see some noise, of every site where they tell sites apart, so that they do something."""
    for number, site in enumerate(description.sites or (None,)):
        for _ in range(3):
            set_sites(network, (site, site))
            network(number + (1 + number) * torch.randn(2, description.in_channels, 16, 16, 16))
