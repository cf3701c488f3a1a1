"""A checkpointed network equals the same network without checkpoints, to the last bit of its statistics."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medseg_brn.networks.batch_renorm import BatchRenorm3d


def make_network() -> nn.Sequential:
    """Two renorm layers past their first batch, with clips that the batches below meet."""
    torch.manual_seed(0)
    layers = [BatchRenorm3d(4, schedule=(0, 0, 0), momentum=0.3, r_max=1.5, d_max=0.5) for _ in range(2)]
    network = nn.Sequential(layers[0], nn.Tanh(), layers[1]).double()
    network(torch.randn(2, 4, 3, 3, 3, dtype=torch.float64))
    return network


def make_batches() -> list[Tensor]:
    return [torch.randn(2, 4, 3, 3, 3, dtype=torch.float64) * (1 + i) + i for i in range(3)]


def one_backward(outputs: list[Tensor]) -> None:
    sum((i + 1) * y.pow(3).sum() for i, y in enumerate(outputs)).backward()


def backward_in_order(outputs: list[Tensor]) -> None:
    for y in outputs:
        y.pow(3).sum().backward()


def train(
    network: nn.Module, batches: list[Tensor], backward: Callable[[list[Tensor]], None], run: Callable
) -> tuple[list[Tensor], list[Tensor | None]]:
    inputs = [batch.clone().requires_grad_() for batch in batches]
    outputs = [run(network, x) for x in inputs]
    backward(outputs)
    return outputs, [leaf.grad for leaf in (*inputs, *network.parameters())]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("backward", [one_backward, backward_in_order])
@pytest.mark.parametrize("same_batch", [False, True])
@pytest.mark.parametrize("twice_in_region", [False, True])
def test_checkpointing_changes_nothing(
    reentrant: bool, backward: Callable[[list[Tensor]], None], same_batch: bool, twice_in_region: bool
) -> None:
    network = make_network()
    twin = copy.deepcopy(network)
    batches = make_batches()
    if same_batch:
        batches = [batches[0]] * 3

    def region(net: nn.Module, x: Tensor) -> Tensor:
        return net(2 * net(x) + 1) if twice_in_region else net(x)

    expected = train(twin, batches, backward, region)
    actual = train(
        network, batches, backward, lambda net, x: checkpoint(region, net, x, use_reentrant=reentrant)
    )
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    for name, statistic in network.state_dict().items():
        assert torch.equal(statistic, twin.state_dict()[name]), name


def test_each_block_of_a_network_checkpointed_over_many_steps() -> None:
    network = make_network()
    twin = copy.deepcopy(network)
    for x in make_batches() * 2:
        features = x.clone().requires_grad_()
        for layer in network:
            features = checkpoint(layer, features, use_reentrant=False)
        features.pow(2).sum().backward()
        twin(x).pow(2).sum().backward()
    torch.testing.assert_close(network.state_dict(), twin.state_dict(), rtol=0, atol=0)
    for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_records_live_no_longer_than_their_graph() -> None:
    layer = make_network()[0]
    outputs = [checkpoint(layer, x.requires_grad_(), use_reentrant=False) for x in make_batches()]
    assert len([reference for reference in layer._first_passes._in_graphs if reference() is not None]) == 3
    del outputs
    assert not [reference for reference in layer._first_passes._in_graphs if reference() is not None]
