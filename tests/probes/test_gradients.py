"""Gradient fidelity and noise scale on problems whose answers are known."""

import math

import pytest
import torch
from torch import Tensor, nn

from medseg_brn.errors import DataError, ModelError
from medseg_brn.networks.batch_renorm import BatchRenorm3d
from medseg_brn.networks.mabn import MABN3d
from medseg_brn.networks.normalization import freeze_statistics
from medseg_brn.probes.gradients import gradient_fidelity, gradient_noise_scale, noise_scale


def squared_error(logits: Tensor, classes: Tensor) -> Tensor:
    return (logits - classes).square().mean()


def make_network(norm: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 3), norm, nn.LeakyReLU(), nn.Conv3d(4, 1, 1))


def make_batches(count: int, batch_size: int = 2) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(batch_size, 1, 6, 6, 6, generator=generator) * 2 + 1 for _ in range(count)]
    return images, [image[:, :, 1:-1, 1:-1, 1:-1].round() for image in images]


def test_fidelity_is_the_cosine_of_the_two_gradients() -> None:
    network = make_network(nn.BatchNorm3d(4))
    images, classes = make_batches(2)
    cosines = []
    for image, label in zip(images, classes, strict=True):
        gradients = []
        for training in (True, False):
            fresh = make_network(nn.BatchNorm3d(4)).train(training)
            squared_error(fresh(image), label).backward()
            gradients.append(torch.cat([parameter.grad.flatten() for parameter in fresh.parameters()]))
        cosines.append(float(torch.cosine_similarity(*gradients, dim=0)))
    assert gradient_fidelity(network, images, classes, squared_error) == pytest.approx(
        sum(cosines) / 2, rel=1e-5
    )
    assert cosines[0] < 0.99


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.InstanceNorm3d(4), nn.Identity()])
def test_fidelity_is_one_without_batch_statistics(norm: nn.Module) -> None:
    assert gradient_fidelity(make_network(norm), *make_batches(2), squared_error) == pytest.approx(
        1, abs=1e-12
    )


@pytest.mark.parametrize("norm", [nn.BatchNorm3d, BatchRenorm3d, MABN3d])
def test_fidelity_of_frozen_norms_is_one(norm: type[nn.Module]) -> None:
    network = make_network(norm(4)).train()
    images, classes = make_batches(3)
    network(images[0])
    assert gradient_fidelity(network, images, classes, squared_error) < 0.999
    freeze_statistics(network)
    assert gradient_fidelity(network, images, classes, squared_error) == pytest.approx(1, abs=1e-12)


def test_renorm_within_its_limits_has_the_same_function_but_another_gradient() -> None:
    layer = BatchRenorm3d(4, r_max=1e9, d_max=1e9, schedule=(0, 0, 0))
    network = make_network(layer).train()
    images, classes = make_batches(3)
    network(images[0])
    fidelity = gradient_fidelity(network, images, classes, squared_error)
    assert 0 < fidelity < 1 - 1e-4


def test_nothing_is_left_in_the_network() -> None:
    network = make_network(nn.BatchNorm3d(4)).train()
    network[3].bias.grad = torch.full((1,), 7.0)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images, classes = make_batches(3)
    gradient_fidelity(network, images, classes, squared_error)
    gradient_noise_scale(network, zip(images, classes, strict=True), squared_error)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert network[3].bias.grad.tolist() == [7.0] and network[0].weight.grad is None
    assert all(part.training for part in network.modules())


def test_noise_scale_by_hand() -> None:
    # G = 2 and tr Σ = 12: |G_B|² is 4 + 12/B in the mean, 10 at batch size 2 and 5 at 12; 12/4 = 3.
    assert noise_scale(10.0, 5.0, 2, 12) == pytest.approx(3)
    assert noise_scale(4.0, 4.0, 2, 12) == 0  # no noise
    assert math.isnan(noise_scale(12.0, 1.0, 1, 12))  # |G|² = (12 - 12)/11
    assert math.isnan(noise_scale(13.0, 1.0, 1, 12))


@pytest.mark.parametrize("sizes", [(2, 2), (4, 2), (0, 2)])
def test_noise_scale_refuses_batch_sizes_out_of_order(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{sizes[0]} and {sizes[1]}"):
        noise_scale(2.0, 1.0, *sizes)


class Point(nn.Module):
    """Parameters θ that are the answer to every image."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(values))
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.theta.expand(len(x), -1)


def test_noise_scale_of_a_quadratic_is_trace_over_squared_gradient() -> None:
    # L = mean ½|θ - z|², z ~ N(0, diag(1, 4)): one item's gradient is θ - z, G = θ, tr Σ = 5.
    theta = [3.0, 4.0]  # |G|² = 25, so B_simple = 0.2
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(20_000, 2, generator=generator) * torch.tensor([1.0, 2.0])
    batches = [(torch.zeros(4, 1), target) for target in targets.split(4)]

    def half_square(logits: Tensor, classes: Tensor) -> Tensor:
        return (logits - classes).square().sum(dim=1).mean() / 2

    assert gradient_noise_scale(Point(theta), batches, half_square) == pytest.approx(5 / 25, rel=0.05)


def test_what_cannot_be_measured_is_refused() -> None:
    network = make_network(nn.BatchNorm3d(4))
    images, classes = make_batches(2)
    with pytest.raises(DataError, match="got no batches"):
        gradient_fidelity(network, [], [], squared_error)
    with pytest.raises(DataError, match=r"batch sizes \[2\]"):
        gradient_noise_scale(network, [(images[0], classes[0])], squared_error)
    with pytest.raises(DataError, match=r"batch sizes \[2, 1\]"):
        pairs = [(images[0], classes[0]), (images[1][:1], classes[1][:1])]
        gradient_noise_scale(network, pairs, squared_error)
    with pytest.raises(ModelError, match="no parameter of Sequential wants a gradient"):
        gradient_fidelity(network.requires_grad_(False), images, classes, squared_error)
