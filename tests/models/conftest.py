"""A tiny model with random weights."""

import pytest
import torch

from medseg_brn.cases.preprocessing import Preprocessing
from medseg_brn.config import NetworkConfig
from medseg_brn.models.architecture import build_network
from medseg_brn.models.description import ModelDescription
from medseg_brn.networks.unet3d import UNet3d


@pytest.fixture(scope="session")
def description() -> ModelDescription:
    """Two classes besides the background, whose label values are not consecutive."""
    return ModelDescription(
        name="tiny",
        network=NetworkConfig(channels=(4, 6)),
        class_names=("background", "tumour", "cyst"),
        label_values=(0, 2, 500),
        modalities=("mri",),
        preprocessing=Preprocessing.model_validate(
            {"spacing_mm": (1, 1, 2), "intensity": [{"scheme": "zscore"}]}
        ),
        patch_size=(8, 8, 8),
        training={"steps": 3},
        licence="CC-BY-4.0",
    )


@pytest.fixture
def network(description) -> UNet3d:
    """Random weights and statistics, so that no layer is a plain copy of its input."""
    torch.manual_seed(0)
    network = build_network(description.network, description.in_channels, description.num_classes)
    for _ in range(3):
        network(torch.randn(2, 1, 8, 8, 8))
    return network.eval()
