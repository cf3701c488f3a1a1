"""What is measured: a CT as large as a patient's, and models with random weights and real statistics."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from medseg_brn.cases.intensity import IntensityScheme
from medseg_brn.cases.phantom_abdomen import sample_abdomen
from medseg_brn.cases.preprocessing import Preprocessing
from medseg_brn.config import InferenceConfig, NetworkConfig
from medseg_brn.models.architecture import build_network
from medseg_brn.models.package import ModelDescription, save_model
from medseg_brn.networks.unet3d import UNet3d

# Of the CT's soft tissue; both sides clip and scale by these.
CT_SCHEME = IntensityScheme(scheme="ct", low=-160, high=240, mean=60, std=60)
NOISE_HU = 12.0
SLAB = 32  # planes painted at once
PATCH = 64
STATISTICS_PASSES = 3


def make_ct(path: Path, shape: Sequence[int], spacing_mm: Sequence[float], seed: int = 0) -> None:
    """Write a phantom abdomen as int16, RAS+, in HU, with noise in tissue and in the air around it."""
    rng = np.random.default_rng(seed)
    abdomen = sample_abdomen(rng)
    spacing = np.asarray(spacing_mm, np.float32)
    origin = -spacing * (np.asarray(shape, np.float32) - 1) / 2
    volume = np.empty(tuple(shape), np.int16)
    edge_mm = float(np.prod(spacing) ** (1 / 3))
    for start in range(0, shape[0], SLAB):
        indices = np.indices((min(SLAB, shape[0] - start), *shape[1:]), dtype=np.float32)
        indices[0] += start
        points = (indices * spacing.reshape(3, 1, 1, 1) + origin.reshape(3, 1, 1, 1)).astype(np.float32)
        hounsfield = abdomen.draw(points, edge_mm).image
        noise = np.float32(NOISE_HU) * rng.standard_normal(hounsfield.shape, dtype=np.float32)
        volume[start : start + SLAB] = np.rint(np.maximum(hounsfield + noise, -1024))
    affine = np.diag([*map(float, spacing_mm), 1.0])
    affine[:3, 3] = origin
    image = nib.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


def make_network(config: NetworkConfig, num_classes: int, image: np.ndarray | None = None) -> UNet3d:
    """Return a network with random weights of seed 0, its statistics those of a few patches.

    Args:
        config: the architecture.
        num_classes: the background counted.
        image: (X, Y, Z) float32 that patches are taken of, at least 64 voxels along each axis; noise if None.
    """
    torch.manual_seed(0)
    network = build_network(config, 1, num_classes)
    with torch.no_grad():
        for _ in range(STATISTICS_PASSES):
            network(torch.stack([_draw_patch(image), _draw_patch(image)]))
    return network.eval()


def normalize(hounsfield: np.ndarray) -> np.ndarray:
    """Return HU as the network takes them, float32."""
    low, high, mean, std = CT_SCHEME.ct_constants
    return ((np.clip(hounsfield, low, high) - mean) / std).astype(np.float32)


def _draw_patch(image: np.ndarray | None) -> torch.Tensor:
    """Return a random patch (1, 64, 64, 64)."""
    if image is None:
        return torch.randn(1, PATCH, PATCH, PATCH)
    x, y, z = (int(torch.randint(size - PATCH + 1, ())) for size in image.shape)
    return torch.from_numpy(image[None, x : x + PATCH, y : y + PATCH, z : z + PATCH].copy())


def make_model(
    folder: Path, config: NetworkConfig, num_classes: int, patch_size: Sequence[int], **inference: Any
) -> UNet3d:
    """Write a model folder for CT at 1.5 mm and return its network."""
    network = make_network(config, num_classes)
    description = ModelDescription(
        name=folder.name,
        network=config,
        class_names=("background", *(f"structure {index}" for index in range(1, num_classes))),
        label_values=tuple(range(num_classes)),
        modalities=("ct",),
        preprocessing=Preprocessing(spacing_mm=(1.5, 1.5, 1.5), crop="none", intensity=(CT_SCHEME,)),
        patch_size=(patch_size[0], patch_size[1], patch_size[2]),
        inference=InferenceConfig(**inference),
    )
    save_model(folder, network, description)
    return network
