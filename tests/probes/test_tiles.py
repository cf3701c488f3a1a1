"""Tile mismatch: 0 for running statistics; both definitions agree for norms that measure their input."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from medseg_brn.cases.targets import Region, Targets
from medseg_brn.errors import DataError
from medseg_brn.networks.batch_renorm import BatchRenorm3d
from medseg_brn.networks.unet3d import UNet3d
from medseg_brn.probes.tiles import _normalize, _scale, tile_mismatch, tile_mismatch_by_cropping


def make_image(*size: int) -> Tensor:
    """Noise on a slope, so that tiles differ in mean as organs make them differ."""
    generator = torch.Generator().manual_seed(1)
    slope = torch.linspace(-1, 1, size[0]).view(-1, *[1] * (len(size) - 1))
    return (torch.randn(size, generator=generator) * 0.5 + slope)[None, None]


def make_network(norm: str, dimensions: int = 3) -> nn.Sequential:
    """Receptive field 5: two voxels to each side."""
    torch.manual_seed(0)
    convolution = {2: nn.Conv2d, 3: nn.Conv3d}[dimensions]
    norms = {
        "renorm": lambda: BatchRenorm3d(6),
        "batch": lambda: nn.BatchNorm3d(6),
        "batch without statistics": lambda: nn.BatchNorm3d(6, track_running_stats=False),
        "instance": lambda: {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dimensions](6, affine=True),
        "group": lambda: nn.GroupNorm(3, 6),
        "layer": lambda: nn.GroupNorm(1, 6),
    }
    return nn.Sequential(
        convolution(1, 6, 3, padding=1), norms[norm](), nn.LeakyReLU(),
        convolution(6, 6, 3, padding=1), norms[norm](), nn.LeakyReLU(),
        convolution(6, 3, 1),
    )  # fmt: skip


@pytest.mark.parametrize("norm", ["renorm", "batch"])
def test_running_statistics_give_no_mismatch(norm: str) -> None:
    network, image = make_network(norm), make_image(16, 12, 8)
    network.train()(image)
    mismatch = tile_mismatch(network, image, (8, 8, 8))
    assert mismatch.mean == 0 and torch.equal(mismatch.tiled, mismatch.full)
    assert tile_mismatch_by_cropping(network, image, (8, 8, 8), margin=2) <= 1e-6


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("norm", ["instance", "group", "layer"])
def test_both_definitions_agree_where_norms_measure_the_tile(norm: str, dimensions: int) -> None:
    network, image = make_network(norm, dimensions), make_image(*(32, 24, 20)[:dimensions])
    tile = (16, 12, 10)[:dimensions]
    whole, cropped = (
        tile_mismatch(network, image, tile).mean,
        tile_mismatch_by_cropping(network, image, tile, margin=2),
    )
    assert min(whole, cropped) > 0.001
    assert 0.5 < whole / cropped < 2


def test_regions_have_a_sigmoid_each() -> None:
    network, image = make_network("instance"), make_image(16, 8, 8)
    regions = tuple(Region(name, (k,), k) for k, name in enumerate("abc", 1))
    targets = Targets(("background", "a", "b", "c"), regions)
    mismatch = tile_mismatch(network, image, (8, 8, 8), targets=targets)
    with torch.no_grad():
        expected = network.eval()(image)[0].sigmoid()
    torch.testing.assert_close(mismatch.full, expected, atol=1e-5, rtol=0)
    assert mismatch.mean == pytest.approx(float((mismatch.tiled - mismatch.full).abs().mean()))
    exclusive = tile_mismatch(network, image, (8, 8, 8)).full
    torch.testing.assert_close(exclusive.sum(0), torch.ones(16, 8, 8))
    cropped = [tile_mismatch_by_cropping(network, image, (8, 8, 8), 2, one) for one in (targets, None)]
    assert cropped[0] != cropped[1] and cropped[0] > 0


def test_batch_norm_without_running_statistics_is_an_instance_norm() -> None:
    image = make_image(16, 8, 8)
    batch, instance = make_network("batch without statistics"), make_network("instance")
    mismatches = [tile_mismatch(network, image, (8, 8, 8)).mean for network in (batch, instance)]
    assert mismatches[0] == pytest.approx(mismatches[1]) and mismatches[0] > 0.001


def test_p_full_is_the_networks_own_answer_and_one_tile_changes_nothing() -> None:
    network, image = make_network("group"), make_image(12, 10, 8)
    mismatch = tile_mismatch(network, image, (12, 10, 8))
    torch.testing.assert_close(mismatch.full, network.eval()(image).softmax(1)[0], rtol=0, atol=1e-6)
    assert mismatch.mean == 0
    larger = tile_mismatch(network, image, (96, 10, 9))
    assert larger.mean == 0 and torch.equal(larger.full, mismatch.full)


def test_each_tile_shows_the_volume_normalized_by_that_tile() -> None:
    # A lone instance norm: the tile of a step image is constant, hence 0, where the whole shows ±1.
    network = nn.Sequential(nn.InstanceNorm3d(1, eps=0), nn.Hardtanh(-9, 9))
    image = torch.ones(1, 1, 4, 2, 2)
    image[:, :, :2] = 3
    image[:, :, 0, 0, 0] = 7  # one brighter voxel, so that the tile has a spread
    image[:, :, 3, 0, 0] = 5
    tiled = tile_mismatch(network, image, (2, 2, 2)).tiled.logit()
    for tile in (slice(0, 2), slice(2, 4)):
        part = image[0, :, tile]
        torch.testing.assert_close(tiled[:, tile], (part - part.mean()) / part.std(correction=0))


def test_the_last_tile_lies_within_the_volume_and_padding_is_cut_off() -> None:
    network, image = UNet3d(1, 2, (4, 8), norm="instance"), make_image(11, 6, 6)
    mismatch = tile_mismatch(network, image, (8, 6, 6), multiple=(2, 2, 2))
    assert mismatch.full.shape == mismatch.tiled.shape == (2, 11, 6, 6)
    assert mismatch.mean == pytest.approx(float((mismatch.tiled - mismatch.full).abs().mean()))
    assert mismatch.mean > 0


def test_the_network_stays_as_it_is() -> None:
    network, image = make_network("group").train(), make_image(8, 8, 8)
    state = copy.deepcopy(network.state_dict())
    tile_mismatch(network, image, (4, 4, 4))
    tile_mismatch_by_cropping(network, image, (8, 8, 8), 2)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert all(part.training and not part._forward_hooks for part in network.modules())


@pytest.mark.parametrize(
    "layer",
    [
        nn.InstanceNorm2d(4),
        nn.InstanceNorm2d(4, affine=True),
        nn.GroupNorm(2, 4),
        nn.GroupNorm(1, 4, affine=False),
        nn.LayerNorm((4, 5, 3)),
    ],
)
def test_statistics_of_the_whole_give_the_layers_own_output(layer: nn.Module) -> None:
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    features = torch.randn(1, 4, 5, 3) * 2 + 3
    torch.testing.assert_close(_normalize(layer, features, features), layer(features))


def test_channels_last_layer_norm_is_left_as_it_is() -> None:
    class Pointwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(torch.cat((x, 2 * x), dim=1).movedim(1, -1)).movedim(-1, 1)

    assert tile_mismatch(Pointwise(), make_image(4, 4, 4), (2, 2, 2)).mean == 0


def test_regions_are_scaled_outward_and_keep_two_voxels() -> None:
    assert _scale((slice(4, 8), slice(3, 5)), (8, 8), (4, 4)) == (slice(2, 4), slice(1, 3))
    assert _scale((slice(6, 8), slice(0, 2)), (8, 8), (2, 1)) == (slice(0, 2), slice(0, 1))
    assert _scale((slice(0, 1),), (8,), (1,)) == (slice(0, 1),)
    lengths = [part.stop - part.start for part in _scale((slice(0, 2),) * 3, (8,) * 3, (2,) * 3)]
    assert math.prod(lengths) == 2


def test_sizes_that_do_not_fit_are_refused() -> None:
    network, image = make_network("group"), make_image(8, 8, 8)
    with pytest.raises(DataError, match=r"\(8, 0, 8\) must be at least 1 voxel"):
        tile_mismatch(network, image, (8, 0, 8))
    with pytest.raises(DataError, match=r"image \(1, 1, 8, 8, 8\) with tiles of \(8, 8\)"):
        tile_mismatch(network, image, (8, 8))
    with pytest.raises(DataError, match=r"image \(2, 1, 8, 8, 8\)"):
        tile_mismatch(network, image.expand(2, -1, -1, -1, -1), (8, 8, 8))
    with pytest.raises(DataError, match=r"margin 2 leaves no voxel of a tile of \(4, 8, 8\)"):
        tile_mismatch_by_cropping(network, image, (4, 8, 8), margin=2)
