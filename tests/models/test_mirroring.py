"""Models that tell left from right: mirrored at inference, left and right channels change places."""

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from medseg_brn.models.architecture import build_network
from medseg_brn.models.description import ModelDescription
from medseg_brn.models.ensemble import save_ensemble
from medseg_brn.models.model import Model
from medseg_brn.models.package import load_model, save_model
from medseg_brn.volumes.volume import Grid, Volume

CPU = torch.device("cpu")
SHAPE = (12, 10, 8)
NAMES = ["background", "left edema", "left core", "right edema", "right core"]
PAIRS = [["left edema", "right edema"], ["left core", "right core"]]
REGIONS = [
    {"name": "left tumour", "label_values": [1, 2], "written_value": 1},
    {"name": "right tumour", "label_values": [3, 4], "written_value": 3},
    {"name": "left core", "label_values": [2], "written_value": 2},
    {"name": "right core", "label_values": [4], "written_value": 4},
]
SWAPPED = {"classes": [0, 3, 4, 1, 2], "regions": [1, 0, 3, 2]}


def describe(kind: str, norm: str = "batch_renorm", **changes) -> ModelDescription:
    """Axis 0 is not strided: with strides no network is the same from both ends."""
    options = {
        "name": "sided",
        "network": {"channels": [4, 6], "strides": [[1, 1, 1], [1, 2, 2]], "norm": norm},
        "class_names": NAMES,
        "label_values": list(range(5)),
        "regions": REGIONS if kind == "regions" else [],
        "modalities": ["mri"],
        "preprocessing": {"spacing_mm": [1, 1, 1], "intensity": [{"scheme": "none"}]},
        "patch_size": [6, 6, 6],
        "mirrored_classes": PAIRS,
    }
    return ModelDescription.model_validate(options | changes)


def make_equivariant(description: ModelDescription, swapped: list[int], seed: int = 0) -> nn.Module:
    """f(flip x) = swap(flip f(x)): feature channels 2k and 2k + 1 are mirror images, layer by layer."""
    torch.manual_seed(seed)
    network = build_network(description.network, 1, len(swapped))
    for layer in network.modules():
        if not isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
            continue
        pairs = {size: [k ^ 1 for k in range(size)] for size in layer.weight.shape[:2]}
        axis = 0 if isinstance(layer, nn.Conv3d) else 1  # of the outputs in the weights
        out = swapped if layer is network.head else pairs[layer.weight.shape[axis]]
        taken = [0] if layer.in_channels == 1 else pairs[layer.weight.shape[1 - axis]]
        with torch.no_grad():
            weight = layer.weight.transpose(0, axis)
            mirrored = weight[out][:, taken].flip(2)
            layer.weight.copy_(((weight + mirrored) / 2).transpose(0, axis))
            if layer.bias is not None:
                layer.bias.copy_((layer.bias + layer.bias[out]) / 2)
    with torch.no_grad():
        network.head.weight *= 8  # so that all structures occur
    return network.eval()


def make_scan() -> Volume:
    array = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    return Volume(array, Grid(SHAPE, np.eye(4)))


@pytest.mark.parametrize("kind", SWAPPED)
@pytest.mark.parametrize("norm", ["batch_renorm", "instance"], ids=["exact", "windows"])
def test_a_network_that_knows_mirrors_gives_the_same_with_mirroring(kind, norm):
    description = describe(kind, norm)
    network = make_equivariant(description, SWAPPED[kind])
    image = torch.from_numpy(make_scan().array)[None, None]
    with torch.no_grad():
        torch.testing.assert_close(
            network(image.flip(2)), network(image)[:, SWAPPED[kind]].flip(2), atol=1e-4, rtol=0
        )
    model = Model.from_network(network, description, CPU, torch.float32)
    plain, expected = model.predict(make_scan(), probabilities=True)
    label_map, found = model.predict(make_scan(), probabilities=True, mirror_axes=(0,))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(label_map.array, plain.array)
    assert len(np.unique(plain.array)) > 2
    unaware = Model.from_network(network, describe(kind, norm, mirrored_classes=[]), CPU, torch.float32)
    _, wrong = unaware.predict(make_scan(), probabilities=True, mirror_axes=(0,))
    assert np.abs(wrong - expected).max() > 0.1


def test_members_of_an_ensemble_swap_their_own_channels(tmp_path):
    for seed in (0, 1):
        description = describe("classes")
        save_model(tmp_path / str(seed), make_equivariant(description, SWAPPED["classes"], seed), description)
    save_ensemble(tmp_path / "both", [tmp_path / "0", tmp_path / "1"])
    model = load_model(tmp_path / "both", "cpu", "fp32")
    _, expected = model.predict(make_scan(), probabilities=True)
    _, found = model.predict(make_scan(), probabilities=True, mirror_axes=(0,))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_description_names_the_pairs_only_where_there_are_any(tmp_path):
    for name, pairs in (("sided", PAIRS), ("plain", [])):
        description = describe("classes", mirrored_classes=pairs)
        save_model(tmp_path / name, make_equivariant(description, SWAPPED["classes"]), description)
    told = [json.loads((tmp_path / name / "model.json").read_text()) for name in ("sided", "plain")]
    assert told[0]["mirrored_classes"] == PAIRS
    assert "mirrored_classes" not in told[1]


def test_pairs_that_cannot_be_are_refused():
    with pytest.raises(ValidationError, match="names 'left', which is no class"):
        describe("classes", mirrored_classes=[["left", "right core"]])
    with pytest.raises(ValidationError, match=r"the region 'left tumour' .* which is no region"):
        describe("regions", mirrored_classes=PAIRS[:1])
