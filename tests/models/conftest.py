"""A tiny model with random weights."""

import io
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from medseg_brn.cases.preprocessing import Preprocessing
from medseg_brn.config import NetworkConfig
from medseg_brn.models.architecture import build_network
from medseg_brn.models.description import ModelDescription
from medseg_brn.models.package import save_model
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


@pytest.fixture
def model_folder(tmp_path, network, description) -> Path:
    """The tiny model, saved."""
    save_model(tmp_path / "source" / "tiny", network, description)
    return tmp_path / "source" / "tiny"


@pytest.fixture
def own_models(tmp_path, monkeypatch) -> Path:
    """The user's folder of models, which does not exist yet."""
    monkeypatch.setenv("MEDSEG_BRN_MODELS", str(tmp_path / "own"))
    return tmp_path / "own"


@pytest.fixture
def zip_of() -> Callable[..., bytes]:
    """A function that makes a zip archive of {name: content}."""

    def make(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as packed, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that come twice
            for name, content in files.items():
                packed.writestr(name, content)
        return buffer.getvalue()

    return make


@pytest.fixture
def tar_of() -> Callable[..., bytes]:
    """A function that makes a tar.gz archive of {name: content} and of bare members."""

    def make(files: dict[str, bytes], *members: tarfile.TarInfo) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as packed:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                packed.addfile(member, io.BytesIO(content))
            for member in members:
                packed.addfile(member)
        return buffer.getvalue()

    return make


@pytest.fixture
def files(model_folder) -> dict[str, bytes]:
    """The tiny model's files, by name."""
    return {name: (model_folder / name).read_bytes() for name in ("model.json", "model.safetensors")}
