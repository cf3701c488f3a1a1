"""A network's levels: run one after the other they are the network, and halos are just large enough."""

import pytest
import torch

from medseg_brn.networks.levels import Level, list_levels, total_stride
from medseg_brn.networks.unet3d import UNet3d

NETWORKS = {
    "four levels": {"channels": (4, 6, 8, 10)},
    "one level": {"channels": (4,)},
    "anisotropic": {
        "channels": (4, 6, 8),
        "strides": [(1, 1, 1), (2, 2, 1), (2, 2, 2)],
        "kernels": [(3, 3, 1), (3, 3, 3), (5, 3, 3)],
    },
    "residual": {"channels": (4, 6, 8), "encoder": "residual", "encoder_blocks": (1, 2, 1)},
    "many blocks": {"channels": (4, 6), "encoder_blocks": 3, "decoder_blocks": 3},
}


def make(name: str, in_channels=2, num_classes=3) -> UNet3d:
    torch.manual_seed(0)
    return UNet3d(in_channels, num_classes, norm="none", **NETWORKS[name]).eval()


def _run(layers, features):
    for layer in layers:
        features = layer(features)
    return features


def _forward(levels: list[Level], features: torch.Tensor) -> torch.Tensor:
    """The U-Net's recursion, written down a second time: each level calls the next coarser one."""
    skip = _run(levels[0].encode.layers, features)
    if len(levels) == 1:
        return skip
    below = _forward(levels[1:], _run(levels[1].enter.layers, skip))
    return _run(levels[0].decode.layers, torch.cat((levels[0].upsample(below), skip), 1))


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_the_levels_are_the_network(name):
    network = make(name)
    image = torch.randn(1, 2, 16, 16, 16)
    torch.testing.assert_close(network.head(_forward(list_levels(network), image)), network(image))


def test_the_facts_of_a_level():
    fine, coarse = list_levels(make("anisotropic"))[1:]
    assert fine.enter.halo == (1, 1, 1)
    assert fine.enter.stride == (2, 2, 1)
    assert (fine.enter.in_channels, fine.enter.channels) == (4, 6)
    assert fine.enter.multiplications == 4 * 6 * 27
    assert fine.encode.halo == (1, 1, 1)  # two blocks, of which one strides
    assert fine.decode.in_channels == 12
    assert fine.decode.multiplications == 12 * 6 * 27
    assert fine.decode.live_channels == 18
    assert fine.upsample_stride == (2, 2, 2)
    assert coarse.decode is None
    assert coarse.encode.halo == (2, 1, 1)  # a kernel of 5 along X


@pytest.mark.parametrize(
    ("name", "expected"), [("four levels", (8, 8, 8)), ("one level", (1, 1, 1)), ("anisotropic", (4, 4, 2))]
)
def test_the_total_stride(name, expected):
    assert total_stride(list_levels(make(name))) == expected


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_no_voxel_beyond_the_halo_is_spoilt_by_a_cut(name):
    """A piece of each kind is run on a volume and on its upper part: they agree from the halo on."""
    for level in list_levels(make(name)):
        for piece in filter(None, (level.encode, level.enter, level.decode)):
            image = torch.randn(1, piece.in_channels, 24, 24, 24)
            whole = _run(piece.layers, image)
            for axis in range(3):
                cut = 4 * piece.stride[axis]
                part = _run(piece.layers, image.narrow(axis + 2, cut, 24 - cut))
                first = piece.halo[axis]
                size = part.shape[axis + 2] - first
                torch.testing.assert_close(
                    part.narrow(axis + 2, first, size), whole.narrow(axis + 2, 4 + first, size)
                )


@torch.no_grad()
def test_the_halo_is_no_larger_than_needed():
    piece = list_levels(make("four levels"))[0].encode  # two convolutions of 3 x 3 x 3
    image = torch.randn(1, 2, 16, 8, 8)
    whole, part = _run(piece.layers, image), _run(piece.layers, image[:, :, 4:])
    spoilt = (whole[:, :, 4:] - part).abs().amax((0, 1, 3, 4)) > 1e-6
    assert spoilt.tolist() == [True, True] + [False] * 10
    assert piece.halo == (2, 2, 2)
