"""Training with activation checkpointing is training without it, in less memory."""

import copy
import math

import pytest
import torch

from medseg_brn.cases.targets import Targets
from medseg_brn.config import Experiment
from medseg_brn.networks.normalization import set_renorm_step
from medseg_brn.networks.unet3d import UNet3d
from medseg_brn.probes.watching import Watcher
from medseg_brn.training.losses import make_loss
from medseg_brn.training.state import make_state

TARGETS = Targets(("background", "one", "two"))
CPU = torch.device("cpu")


def make_network(norm: str, encoder: str, deep_supervision: bool = False) -> UNet3d:
    torch.manual_seed(0)
    network = UNet3d(
        1,
        3,
        (4, 6, 8),
        norm=norm,
        encoder=encoder,
        norm_options={"window": 2, "warmup": 0, "r_start": 2} if norm == "mabn" else None,
        weight_standardization=True,
        deep_supervision=deep_supervision,
    )
    return network.to(memory_format=torch.channels_last_3d)


def train(network: UNet3d, steps: int, deep_supervision: bool = False) -> list[float]:
    """Losses of some steps, each a new batch on two passes, with renorm's limits opening."""
    loss_function = make_loss(TARGETS, deep_supervision=deep_supervision)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for step in range(steps):
        set_renorm_step(network, step, (1, 2, 2))
        for _ in range(2):
            image = torch.randn(2, 1, 8, 8, 8, generator=generator)
            classes = torch.randint(3, (2, 1, 8, 8, 8), generator=generator)
            loss = loss_function(network(image), classes)
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses


def saved_bytes(network: UNet3d) -> int:
    """Memory of the distinct tensors that a forward pass keeps for its backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    image = torch.randn(2, 1, 8, 8, 8)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(image)
    del output
    return sum(kept.values())


@pytest.mark.parametrize("encoder", ["plain", "residual"])
@pytest.mark.parametrize("norm", ["batch_renorm", "batch", "mabn", "group", "instance", "none"])
@pytest.mark.parametrize("deep_supervision", [False, True])
def test_losses_weights_and_statistics_are_those_of_plain_training(norm, encoder, deep_supervision):
    network = make_network(norm, encoder, deep_supervision)
    twin = copy.deepcopy(network)
    twin.activation_checkpointing = True
    expected = train(network, 4, deep_supervision)
    assert train(twin, 4, deep_supervision) == pytest.approx(expected, rel=1e-6)
    assert all(map(math.isfinite, expected))
    torch.testing.assert_close(twin.state_dict(), network.state_dict(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm", ["batch_renorm", "batch", "mabn"])
def test_gradients_are_the_same_and_each_batch_is_taken_in_once(norm):
    network = make_network(norm, "plain")
    twin = copy.deepcopy(network)
    twin.activation_checkpointing = True
    image, classes = torch.randn(2, 1, 8, 8, 8), torch.randint(3, (2, 1, 8, 8, 8))
    for each in (network, twin):
        make_loss(TARGETS)(each(image), classes).backward()
    for ours, theirs in zip(twin.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-7)
    counts = [buffer for name, buffer in twin.named_buffers() if name.endswith("num_batches_tracked")]
    assert {int(count) for count in counts} == {1}
    torch.testing.assert_close(dict(twin.named_buffers()), dict(network.named_buffers()), rtol=0, atol=0)


@pytest.mark.parametrize("norm", ["batch_renorm", "batch", "mabn"])
@pytest.mark.parametrize("encoder", ["plain", "residual"])
def test_less_than_half_is_kept_for_the_backward_pass(norm, encoder):
    network = make_network(norm, encoder)
    without = saved_bytes(network)
    network.activation_checkpointing = True
    assert saved_bytes(network) < without / 2


def test_nothing_is_computed_twice_in_evaluation():
    network = make_network("batch_renorm", "plain").eval()
    network.activation_checkpointing = True
    calls = []
    network.stem.register_forward_hook(lambda *_: calls.append(1))
    network(torch.randn(1, 1, 8, 8, 8)).sum().backward()
    assert len(calls) == 1


@pytest.mark.parametrize("norm", ["batch_renorm", "batch", "mabn"])
def test_probes_see_the_first_pass(norm):
    samples = []
    for checkpointing in (False, True):
        network = make_network(norm, "plain")
        network.activation_checkpointing = checkpointing
        watcher = Watcher(network, every=1)
        watcher.before_step(1)
        train(network, 1)
        samples.append(watcher.after_step(1))
    for ours, theirs in zip(*samples, strict=True):
        assert (ours.layer, ours.metric) == (theirs.layer, theirs.metric)
        assert ours.value == pytest.approx(theirs.value, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("wanted", [False, True])
def test_the_option_reaches_the_network_that_trains(wanted):
    experiment = Experiment.model_validate(
        {"network": {"channels": [4, 8]}, "training": {"activation_checkpointing": wanted}}
    )
    assert make_state(experiment, 1, 3, CPU).network.activation_checkpointing is wanted
