"""Folded networks compute what they did before, and only what may be folded is."""

import copy

import pytest
import torch
from monai.networks.nets import DynUNet, SegResNet, UNet
from torch import Tensor, nn

from medseg_brn.errors import ModelError
from medseg_brn.networks.batch_renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from medseg_brn.networks.convolution import WeightStandardizedConv3d
from medseg_brn.networks.folding import fold
from medseg_brn.networks.mabn import MABN, MABN1d, MABN2d, MABN3d
from medseg_brn.networks.unet3d import UNet3d


def randomize(network: nn.Module) -> nn.Module:
    """Weights and statistics that differ from their initial values, as after training."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            tensor.normal_(0, 0.3, generator=generator)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2, generator=generator)
    return network.eval()


def count_norms(network: nn.Module) -> int:
    kinds = (BatchRenorm1d, BatchRenorm2d, BatchRenorm3d, MABN, nn.BatchNorm3d)
    return sum(isinstance(layer, kinds) for layer in network.modules())


def assert_same_output(network: nn.Module, folded: nn.Module, *shape: int) -> None:
    x = torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), network(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("convolution", "norm", "size"),
    [
        (nn.Conv1d(4, 6, 3, groups=2), BatchRenorm1d(6), (8,)),
        (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", bias=False), BatchRenorm2d(6), (8, 7)),
        (nn.Conv3d(4, 6, 3, stride=2, dilation=2), BatchRenorm3d(6), (8, 7, 9)),
        (nn.Conv3d(4, 6, 1), nn.BatchNorm3d(6, affine=False, eps=0.1), (8, 7, 9)),
        (nn.ConvTranspose3d(4, 6, 2, stride=2, groups=2), BatchRenorm3d(6), (4, 3, 2)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, bias=False), BatchRenorm2d(6), (4, 3)),
        (WeightStandardizedConv3d(4, 6, 3, bias=False), BatchRenorm3d(6), (8, 7, 9)),
        (nn.Conv1d(4, 6, 3), MABN1d(6), (8,)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), MABN2d(6, affine=False), (4, 3)),
        (WeightStandardizedConv3d(4, 6, 3, bias=False), MABN3d(6), (8, 7, 9)),
    ],
)
def test_each_kind_of_convolution(convolution: nn.Module, norm: nn.Module, size: tuple[int, ...]) -> None:
    network = randomize(nn.Sequential(convolution, norm, nn.ReLU()))
    folded = fold(network)
    assert count_norms(folded) == 0
    assert isinstance(folded[0], (nn.modules.conv._ConvNd)) and not isinstance(
        folded[0], WeightStandardizedConv3d
    )
    assert_same_output(network, folded, 2, 4, *size)


@pytest.mark.parametrize(
    ("network", "left"),
    [
        (UNet(3, 1, 2, (4, 8, 16), (2, 2), num_res_units=2, norm="batchrenorm"), 0),
        (UNet(3, 1, 2, (4, 8, 16), (2, 2), num_res_units=0, norm="batch"), 0),
        (DynUNet(3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 16], norm_name="batchrenorm"), 0),
        (UNet3d(1, 2, (4, 8, 16), encoder="residual", weight_standardization=True), 0),
        (UNet3d(1, 2, (4, 8, 16), norm="batch"), 0),
        (UNet3d(1, 2, (4, 8), norm="mabn", weight_standardization=True), 0),
    ],
)
def test_whole_networks_with_convolution_before_norm(network: nn.Module, left: int) -> None:
    randomize(network)
    folded = fold(network)
    assert count_norms(folded) == left
    assert_same_output(network, folded, 1, 1, 16, 16, 16)


def test_norms_before_their_convolution_stay() -> None:
    network = randomize(SegResNet(3, 8, 1, 2, norm="batchrenorm"))
    folded = fold(network)
    assert 0 < count_norms(folded) < count_norms(network)
    assert_same_output(network, folded, 1, 1, 16, 16, 16)


class Branching(nn.Module):
    """The convolution's output goes to the norm and around it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 1)
        self.norm = BatchRenorm3d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.norm(x) + x


class Twice(Branching):
    """The norm runs after the convolution, and once more."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.relu(self.norm(self.conv(x))))


class Both(Branching):
    """The convolution's output is also a result."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(x)
        return x, self.norm(x)


class Reversed(Branching):
    """Declared convolution first, run norm first."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x.expand(-1, 2, -1, -1, -1))[:, :1])


class InPlaceBetween(Branching):
    """Something changes the convolution's output before the norm takes it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).relu_())


@pytest.mark.parametrize("kind", [Branching, Twice, Both, Reversed, InPlaceBetween])
def test_pairs_that_only_look_like_pairs_are_left_alone(kind: type[Branching]) -> None:
    network = randomize(kind())
    folded = fold(network)
    assert count_norms(folded) == 1
    assert_same_output(network, folded, 1, 1, 4, 4, 4)


def test_the_network_itself_is_not_changed_and_nothing_is_shared() -> None:
    network = nn.Sequential(nn.Conv3d(1, 4, 3), BatchRenorm3d(4)).train()
    before = copy.deepcopy(network.state_dict())
    folded = fold(network)
    assert network.training and not folded.training and not network[0]._forward_hooks
    nn.init.zeros_(folded[0].weight)
    torch.testing.assert_close(dict(network.state_dict()), dict(before), rtol=0, atol=0)


def test_a_network_after_a_training_pass_can_be_folded() -> None:
    network = DynUNet(
        3,
        1,
        2,
        [3] * 3,
        [1, 2, 2],
        [2, 2],
        filters=[4, 8, 16],
        norm_name="batchrenorm",
        deep_supervision=True,
        deep_supr_num=1,
    )
    network(torch.randn(2, 1, 16, 16, 16)).sum().backward()  # it keeps its heads' outputs
    assert count_norms(fold(network)) == 0


def test_channels_last_weights_stay_so() -> None:
    network = nn.Sequential(nn.Conv3d(4, 8, 3), BatchRenorm3d(8)).to(memory_format=torch.channels_last_3d)
    assert fold(network)[0].weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_networks_that_cannot_be_run_are_refused() -> None:
    with pytest.raises(ModelError, match="ReLU cannot be folded: it has no convolution"):
        fold(nn.ReLU())
    needs_nine = nn.Sequential(
        nn.Flatten(2), nn.Unflatten(2, (9, 9, 9)), nn.Conv3d(1, 2, 3), BatchRenorm3d(2)
    )
    with pytest.raises(ModelError, match=r"blank input of shape \(1, 1, 128, 128, 128\).*input_shape"):
        fold(needs_nine)
    assert count_norms(fold(needs_nine, input_shape=(1, 1, 9, 9, 9))) == 0
