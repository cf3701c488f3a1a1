"""Norm layers are found, and measuring in training mode leaves no trace."""

import copy

import pytest
import torch
from torch import Tensor, nn

from medseg_brn.cases.targets import Region, Targets
from medseg_brn.networks.batch_renorm import BatchRenorm3d
from medseg_brn.networks.normalization import freeze_statistics
from medseg_brn.probes.layers import (
    apply_activation,
    collect_inputs,
    compute_logits,
    eval_mode,
    find_norm_layers,
    has_batch_statistics,
    training_norms,
)


class BatchDependent(nn.Module):
    """A norm of a kind of its own, which says that it looks at the whole batch."""

    batch_dependent = True

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x - x.mean() if self.training else x


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(1, 4, 1),
        BatchRenorm3d(4, momentum=0.5, schedule=(0, 0, 0)),
        nn.BatchNorm3d(4, momentum=None),
        nn.Dropout(0.5),
        nn.InstanceNorm3d(4, track_running_stats=True),
        nn.GroupNorm(2, 4),
        BatchDependent(),
    )


IMAGES = torch.randn(3, 1, 4, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 + 1


def assert_unchanged(network: nn.Module, state: dict[str, Tensor], modes: list[bool]) -> None:
    now = network.state_dict()
    assert list(now) == list(state)
    assert all(torch.equal(now[name], state[name]) for name in state)
    assert [part.training for part in network.modules()] == modes
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())


def test_norms_are_found_in_order_by_name() -> None:
    network = make_network()
    assert list(find_norm_layers(network)) == ["1", "2", "4", "5", "6"]
    assert [name for name, layer in find_norm_layers(network).items() if has_batch_statistics(layer)] == [
        "1",
        "2",
        "6",
    ]
    assert find_norm_layers(nn.Conv3d(1, 1, 1)) == {}
    assert list(find_norm_layers(nn.SyncBatchNorm(2))) == [""]


@pytest.mark.parametrize("batches_before", [0, 3])
def test_training_norms_change_nothing_and_repeat_themselves(batches_before: int) -> None:
    network = make_network().train()
    for _ in range(batches_before):
        network(IMAGES)
    network[5].eval()  # an unusual mix of modes must come back too
    modes = [part.training for part in network.modules()]
    buffers = {name: id(buffer) for name, buffer in network.named_buffers()}
    state = copy.deepcopy(network.state_dict())
    with training_norms(network):
        assert [part.training for part in network] == [False, True, True, False, True, False, True]
        assert not network.training
        first, second = network(IMAGES), network(IMAGES)
    assert torch.equal(first, second)
    assert_unchanged(network, state, modes)
    assert {name: id(buffer) for name, buffer in network.named_buffers()} == buffers


def test_training_norms_compute_what_the_next_training_pass_would() -> None:
    network = nn.Sequential(*(layer for layer in make_network() if not isinstance(layer, nn.Dropout)))
    network.train()(IMAGES + 1)
    with training_norms(network):
        measured = network(IMAGES)
    assert torch.equal(network.train()(IMAGES), measured)


def test_frozen_layers_stay_in_evaluation_and_are_found_as_before() -> None:
    network = make_network()
    names = list(find_norm_layers(network))
    freeze_statistics(network[:3])
    network.train()
    modes = [part.training for part in network.modules()]
    with training_norms(network):
        assert [part.training for part in network] == [False, False, False, False, True, False, True]
    assert [part.training for part in network.modules()] == modes
    freeze_statistics(network)
    assert list(find_norm_layers(network)) == names
    assert not any(has_batch_statistics(layer) for layer in network)


def test_backward_through_the_block_works_and_leaves_no_trace() -> None:
    network = make_network().train()
    state, modes = copy.deepcopy(network.state_dict()), [part.training for part in network.modules()]
    with training_norms(network):
        total = network(IMAGES).square().mean() + network(IMAGES + 1).square().mean()
    total.backward()
    assert network[0].weight.grad is not None
    assert_unchanged(network, state, modes)


@pytest.mark.parametrize(
    ("mode", "wrong"),
    [
        (eval_mode, torch.zeros(2, 3, 4, 4, 4)),  # channels that the convolution refuses
        (training_norms, torch.zeros(2, 3, 4, 4, 4)),
        (training_norms, torch.zeros(1, 1, 1, 1, 1)),  # one value per channel, refused within a norm
    ],
)
def test_after_an_error_everything_is_as_before(mode, wrong: Tensor) -> None:
    network = make_network().train()
    network(IMAGES)
    state, modes = copy.deepcopy(network.state_dict()), [part.training for part in network.modules()]
    with pytest.raises((RuntimeError, ValueError)), mode(network):
        network(wrong)
    assert_unchanged(network, state, modes)
    assert all(isinstance(network[1].get_buffer(name), Tensor) for name in ("running_mean", "running_var"))


def test_observers_are_not_called_by_a_measurement_and_stay() -> None:
    layer = BatchRenorm3d(1)
    seen: list[object] = []
    layer.observer = seen.append
    passes = layer._first_passes
    with training_norms(layer), torch.no_grad():
        layer(IMAGES)
    assert seen == [] and layer.observer == seen.append and layer._first_passes is passes
    layer(IMAGES)
    assert len(seen) == 1


def test_eval_mode_is_evaluation_and_comes_back() -> None:
    network = make_network().train()
    expected = copy.deepcopy(network).eval()(IMAGES)
    with eval_mode(network):
        assert torch.equal(network(IMAGES), expected)
    assert all(part.training for part in network.modules())


def test_inputs_are_collected_channels_first() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 3, 1), nn.InstanceNorm2d(3), nn.ReLU(inplace=True), nn.GroupNorm(1, 3)
    )
    image = torch.randn(2, 1, 4, 5)
    seen: dict[str, Tensor] = {}
    with collect_inputs(network, lambda name, features: seen.update({name: features.clone()})):
        network(image)
    assert torch.equal(seen["1"], network[0](image)) and not seen["1"].requires_grad
    assert seen["3"].shape == (2, 3, 4, 5)
    last = nn.LayerNorm(3)
    with collect_inputs(last, lambda name, features: seen.update(last=features)):
        last(input=torch.zeros(2, 4, 5, 3))
    assert seen["last"].shape == (2, 3, 4, 5)
    seen.clear()
    network(image)
    assert seen == {}


def test_logits_are_the_first_output_in_the_networks_dtype() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(1, 2, 1).double()

        def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
            return {"out": [self.head(x), x]}

    logits = compute_logits(TwoHeads(), torch.zeros(1, 1, 2, 2))
    assert logits.shape == (1, 2, 2, 2) and logits.dtype == torch.float64


def test_probabilities_are_softmax_or_sigmoid() -> None:
    assert apply_activation(torch.zeros(1, 4, 2)).unique().tolist() == [0.25]
    assert apply_activation(torch.zeros(1, 1, 2)).unique().tolist() == [0.5]
    regions = Targets(("background", "a", "b"), (Region("both", (1, 2), 1), Region("b", (2,), 2)))
    assert apply_activation(torch.zeros(1, 2, 2), regions).unique().tolist() == [0.5]
    assert apply_activation(torch.tensor([[[2.0], [2.0]]]), regions).unique().tolist() == [
        torch.tensor(2.0).sigmoid().item()
    ]
    assert apply_activation(torch.zeros(1, 3, 2), Targets(regions.class_names)).sum(1).tolist() == [[1.0] * 2]
