"""Numbers that end are traced to where they end, and the network is left as it was."""

import json

import pytest
import torch
from torch import nn

from medseg_brn.cases.targets import Targets
from medseg_brn.config import NetworkConfig
from medseg_brn.models.architecture import build_network
from medseg_brn.patches.stream import PatchBatch
from medseg_brn.training.diagnosis.divergence import (
    Cause,
    Divergence,
    find_spoilt_statistics,
    trace_divergence,
)
from medseg_brn.training.losses import make_loss

LOSS = make_loss(Targets(("background", "structure")))


def make_batch(seed: int = 0) -> PatchBatch:
    image = torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(seed))
    return PatchBatch(image=image, label=(image > 1).long(), cases=["a", "b"])


def make_network(norm: str = "batch_renorm", **options) -> nn.Module:
    torch.manual_seed(0)
    return build_network(NetworkConfig(channels=(4, 8), norm=norm, **options), 1, 2).train()


def trace(network: nn.Module, *batches: PatchBatch, loss=LOSS, dtype=torch.float32) -> Cause:
    return trace_divergence(network, batches or (make_batch(),), loss, dtype)


@pytest.mark.parametrize("poison", [float("nan"), float("-inf")])
def test_a_voxel_of_a_patch(poison):
    batch = make_batch()
    batch["image"][1, 0, 3, 3, 3:5] = poison
    cause = trace(make_network(), make_batch(1), batch)
    assert (cause.kind, cause.layer, cause.cases) == ("input", None, ("b",))
    assert "2 voxels of b" in cause.found


@pytest.mark.parametrize("name", ["stem.0.weight", "encoder.1.0.1.bias", "head.bias"])
def test_a_weight(name):
    network = make_network()
    with torch.no_grad():
        network.get_parameter(name).view(-1)[0] = float("nan")
    cause = trace(network)
    layer, weight = name.rsplit(".", 1)
    assert (cause.kind, cause.layer) == ("weights", layer)
    assert f"the {weight} of {layer} (" in cause.found


def test_a_running_statistic():
    network = make_network()
    network.get_buffer("encoder.1.0.1.running_mean")[2] = float("nan")
    network.get_buffer("encoder.1.0.1.num_batches_tracked").fill_(7)
    cause = trace(network)
    assert (cause.kind, cause.layer) == ("statistics", "encoder.1.0.1")
    assert "running_mean is not finite" in cause.found


@pytest.mark.parametrize("norm", ["batch_renorm", "batch"])
def test_a_step_that_spoils_the_statistics(norm):
    """1e21 squared is more than float32 holds: the running variance ends, and the loss need not."""
    network, extreme = make_network(norm), make_batch(1)
    extreme["image"][1] *= 1e21
    network(make_batch()["image"])
    assert find_spoilt_statistics(network, [make_batch()]) is None
    network(extreme["image"])
    cause = find_spoilt_statistics(network, [make_batch(), extreme])
    assert (cause.kind, cause.layer) == ("statistics", "stem.1")
    assert "spoilt the running_var of stem.1 (" in cause.found
    assert f"the largest input value is {float(extreme['image'].abs().max()):.3g}, of b" in cause.found


def test_large_statistics_are_no_spoilt_ones():
    network = make_network()
    network.get_buffer("stem.1.running_var").fill_(1e38)  # their squares' sum overflows
    assert find_spoilt_statistics(network, [make_batch()]) is None
    assert find_spoilt_statistics(make_network("group"), [make_batch()]) is None


def test_features_that_overflow_in_any_format():
    network = make_network("none", weight_standardization=False)
    with torch.no_grad():
        network.get_parameter("encoder.1.0.0.weight").fill_(3e38)
    for dtype in (torch.float32, torch.bfloat16):
        cause = trace(network, dtype=dtype)
        assert (cause.kind, cause.layer) == ("overflow", "encoder.1.0.0")
        assert "(Conv3d): " in cause.found
        assert "its inputs being up to" in cause.found


def test_features_that_overflow_in_float16_alone():
    """65 504 is the largest number of float16."""
    network = nn.Sequential(nn.Conv3d(1, 2, 1, bias=False), nn.Conv3d(2, 2, 1))
    nn.init.constant_(network[0].weight, 1e5)
    cause = trace(network, dtype=torch.float16)
    assert (cause.kind, cause.layer) == ("precision", "0")
    assert "in float32 every layer's output is finite, so float16 overflows" in cause.found


def test_a_loss_that_overflows():
    network = make_network()
    with torch.no_grad():
        network.head.bias.copy_(torch.tensor([1e25, -1e25]))
    cause = trace(network, loss=lambda logits, classes: logits.square().sum())
    assert (cause.kind, cause.layer) == ("loss", None)
    assert "logits up to 1e+25" in cause.found


class Brake(torch.autograd.Function):
    """The identity, with a gradient that is infinite."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


class BrakeLayer(nn.Module):
    def forward(self, x):
        return Brake.apply(x)


def test_a_gradient_is_followed_back_to_where_it_ends():
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.ReLU(inplace=True), BrakeLayer(), nn.Conv3d(2, 2, 1))
    cause = trace(network)
    # what comes back from the brake arrives at the activation before it
    assert (cause.kind, cause.layer) == ("gradient", "1")
    assert "that of the output of 1 (ReLU)" in cause.found


def test_a_weight_whose_gradient_alone_overflows():
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.Conv3d(2, 2, 1))
    nn.init.constant_(network[0].weight, 1e30)
    # The gradient at the output is 1e20, and 1e20 · 1e30 is more than float32 holds: at the head's weight,
    # whose input is large, while the head's own weights, and so what goes on back, are zero.
    nn.init.zeros_(network[1].weight)
    cause = trace(network, loss=lambda logits, classes: 1e20 * logits.sum())
    assert (cause.kind, cause.layer) == ("gradient", "1")
    assert "that of the weight of 1 (Conv3d)" in cause.found


def test_a_norm_of_finite_gradients_that_overflows():
    network = nn.Sequential(nn.Conv3d(1, 2, 1))
    cause = trace(network, loss=lambda logits, classes: 1e24 * logits.sum())
    assert (cause.kind, cause.layer) == ("norm", None)


def test_what_is_sound_is_not_accused():
    assert trace(make_network(), make_batch(), make_batch(1)).kind == "not repeated"


@pytest.mark.parametrize("norm", ["batch_renorm", "batch", "mabn", "group"])
def test_the_network_is_left_as_it_was(norm):
    network = make_network(norm)
    LOSS(network(make_batch()["image"]), make_batch()["label"]).backward()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    gradients = [parameter.grad for parameter in network.parameters()]
    values = [gradient.clone() for gradient in gradients]
    trace(network, make_batch(1), dtype=torch.bfloat16)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(p.grad is g for p, g in zip(network.parameters(), gradients, strict=True))
    assert all(torch.equal(g, value) for g, value in zip(gradients, values, strict=True))
    assert network.training
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in network.modules())
    assert not any(parameter._backward_hooks for parameter in network.parameters())


def test_the_message_and_the_file_tell_the_same():
    cause = Cause("overflow", "The first output that is not finite is that of head (Conv3d)", "head")
    divergence = Divergence(7, float("nan"), 2.5, ("a", "b"), cause)
    message, written = divergence.message(), json.loads(json.dumps(divergence.as_dict(), allow_nan=False))
    assert message.startswith(
        "Loss nan and gradient norm 2.5 at step 7 are not both finite; its patches came"
    )
    assert "from a, b. The first output" in message
    assert written["loss"] == "nan"
    assert (written["step"], written["gradient_norm"], written["kind"]) == (7, 2.5, "overflow")
    assert (written["layer"], written["cases"]) == ("head", ["a", "b"])
    assert message.endswith(written["remedy"])
    spoilt = Divergence(7, 0.5, 2.5, ("a",), Cause("statistics", "The passes", "stem.1"))
    assert spoilt.message().startswith("Loss 0.5 and gradient norm 2.5 at step 7 are finite, but running")
