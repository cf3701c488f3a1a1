"""MABN against its equations, value by value, and as a layer among others."""

import copy
import math
from collections import deque

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from medseg_brn.networks.folding import fold
from medseg_brn.networks.mabn import MABN1d, MABN2d, MABN3d
from medseg_brn.networks.unet3d import UNet3d

EPS = 1e-5


class OneChannel:
    """The paper's equations for one channel, in Python's numbers."""

    def __init__(self, window, warmup, r_max, r_start, momentum):
        self.warm_from = max(window + 1, warmup)
        self.free_after = max(r_start, warmup, 1)  # nothing to compare the first batch with
        self.r_max, self.momentum = r_max, momentum
        self.squares, self.psis = deque(maxlen=window), deque(maxlen=window)
        self.running, self.batches = 1.0, 0

    def step(self, x, grad_y, weight, bias):
        """y, then the gradients to x, γ and β, for lists of values."""
        self.batches += 1
        warm = self.batches >= self.warm_from
        square = sum(value * value for value in x) / len(x)
        self.squares.append(square)
        used = sum(self.squares) / len(self.squares) if warm else square
        root = math.sqrt(used + EPS)
        r = root / math.sqrt(self.running + EPS)
        r = min(max(r, 1 / self.r_max), self.r_max) if self.batches > self.free_after else 1.0
        share = 1.0 if self.batches == 1 else self.momentum
        self.running = (1 - share) * self.running + share * square
        z = [value / root for value in x]
        grad_z = [weight * r * grad for grad in grad_y]
        psi = sum(a * b for a, b in zip(z, grad_z, strict=True)) / len(x)
        self.psis.append(psi)
        psi = sum(self.psis) / len(self.psis) if warm else psi
        grad_x = [(a - b * psi) / root for a, b in zip(grad_z, z, strict=True)]
        grad_weight = sum(grad * r * value for grad, value in zip(grad_y, z, strict=True))
        return [weight * r * value + bias for value in z], grad_x, grad_weight, sum(grad_y)


def by_channel(x: Tensor) -> list[list[float]]:
    return x.transpose(0, 1).flatten(1).tolist()


def assert_channels(actual: Tensor, expected: list[list[float]]) -> None:
    torch.testing.assert_close(actual.transpose(0, 1).flatten(1), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    "kind_and_size", [(MABN1d, ()), (MABN1d, (5,)), (MABN2d, (3, 2)), (MABN3d, (2, 1, 3))]
)
@pytest.mark.parametrize(
    "options",
    [
        {"window": 3, "warmup": 0, "r_max": 1.1, "r_start": 5},
        {"window": 2, "warmup": 6, "r_max": 5.0, "r_start": 0},
        {"window": 1, "warmup": 0, "r_max": 1.0, "r_start": 0},
    ],
)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_training_follows_the_equations(kind_and_size, options, batch_size):
    kind, size = kind_and_size
    torch.manual_seed(0)
    layer = kind(2, momentum=0.1, dtype=torch.float64, **options)
    nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    channels = [OneChannel(momentum=0.1, **options) for _ in range(2)]
    for step in range(12):
        x = (torch.randn(batch_size, 2, *size, dtype=torch.float64) * (1 + step % 4) + 0.5).requires_grad_()
        grad = torch.randn_like(x)
        layer.zero_grad()
        y = layer(x)
        y.backward(grad)
        numbers = (by_channel(x), by_channel(grad), layer.weight.tolist(), layer.bias.tolist())
        expected = [channel.step(*args) for channel, *args in zip(channels, *numbers, strict=True)]
        values, grad_x, grad_weight, grad_bias = zip(*expected, strict=True)
        assert_channels(y, values)
        assert_channels(x.grad, grad_x)
        torch.testing.assert_close(layer.weight.grad.tolist(), list(grad_weight))
        torch.testing.assert_close(layer.bias.grad.tolist(), list(grad_bias))
        torch.testing.assert_close(layer.running_var.tolist(), [channel.running for channel in channels])
        assert layer.running_mean.tolist() == [0, 0] and layer.num_batches_tracked == step + 1


def test_two_batches_by_hand():
    """E[x²] is 4, then 16: the second batch is divided by the root of their average, 10."""
    layer = MABN1d(1, eps=0.0, window=2, warmup=0, momentum=0.5, dtype=torch.float64)
    layer.num_batches_tracked.fill_(2)  # from the third batch on the window is in use
    layer.recent_squares[0] = 4.0
    layer.running_var.fill_(4.0)
    x = torch.tensor([[4.0], [-4.0]], dtype=torch.float64, requires_grad=True)
    y = layer(x)
    torch.testing.assert_close(y.flatten().tolist(), [4 / 10**0.5, -4 / 10**0.5])
    assert layer.running_var.item() == 10.0  # half of 4, half of 16
    y.sum().backward()
    torch.testing.assert_close(x.grad.flatten().tolist(), [10**-0.5] * 2)  # z·1 averages to 0


def test_gradient_is_the_true_one_during_warm_up():
    layer = MABN3d(2, warmup=10**9, dtype=torch.float64)
    x = torch.randn(2, 2, 2, 2, 1, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.randn(2, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def normalize(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(normalize, (x, weight, bias))


def test_gradients_to_weight_and_bias_are_true_with_averages_too():
    """The loss is linear in γ and β, so its differences are its derivatives."""
    torch.manual_seed(0)
    layer = MABN3d(3, window=2, warmup=0, r_start=0, dtype=torch.float64)
    for _ in range(6):
        layer(torch.randn(2, 3, 2, 2, 2, dtype=torch.float64)).sum().backward()
    x, factors = torch.randn(2, 2, 3, 2, 2, 2, dtype=torch.float64)
    losses = []
    for name in (None, "weight", "bias"):
        changed = copy.deepcopy(layer)
        if name is not None:
            getattr(changed, name).data[1] += 1
        losses.append((changed(x) * factors).sum())
    layer.zero_grad()
    (layer(x) * factors).sum().backward()
    torch.testing.assert_close(layer.weight.grad[1], losses[1] - losses[0])
    torch.testing.assert_close(layer.bias.grad[1], losses[2] - losses[0])


def trained(**options) -> MABN3d:
    torch.manual_seed(0)
    layer = MABN3d(4, window=3, warmup=0, r_start=0, **options)
    if layer.affine:
        nn.init.normal_(layer.weight, 1, 0.3), nn.init.normal_(layer.bias)
    for _ in range(8):
        x = torch.randn(2, 4, 3, 3, 3) * 2 + 1
        layer(x.requires_grad_()).square().sum().backward()
    return layer


def test_evaluation_is_affine_per_channel_and_changes_nothing():
    layer = trained().eval()
    state = copy.deepcopy(layer.state_dict())
    x = torch.randn(1, 4, 3, 3, 3)
    scale = layer.weight / (layer.running_var + layer.eps).sqrt()
    expected = x * scale.view(-1, 1, 1, 1) + layer.bias.view(-1, 1, 1, 1)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(dict(layer.state_dict()), dict(state), rtol=0, atol=0)


def test_the_mean_is_not_removed():
    layer = MABN3d(1)
    torch.testing.assert_close(layer(torch.full((1, 1, 2, 2, 2), 7.0)), torch.ones(1, 1, 2, 2, 2))


def test_without_weight_and_bias():
    plain, unit = trained(affine=False), trained()
    unit.weight.data.fill_(1), unit.bias.data.zero_()
    unit.load_state_dict(plain.state_dict() | {"weight": unit.weight, "bias": unit.bias})
    grads = []
    for layer in (plain, unit):
        x = torch.arange(32.0).view(1, 4, 2, 2, 2).requires_grad_()
        layer(x).square().sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)


def test_state_dict_round_trip_goes_on_where_it_was():
    source, target = trained(), MABN3d(4, window=3, warmup=0, r_start=0)
    target.load_state_dict(source.state_dict())
    results = []
    for layer in (source, target):
        x = torch.linspace(-1, 2, 64).view(2, 4, 2, 2, 2).requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        results.append((y.detach(), x.grad))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_copies_and_weight_averages():
    network = nn.Sequential(nn.Conv3d(1, 4, 3), MABN3d(4))
    averaged = AveragedModel(network, use_buffers=True)
    for _ in range(2):
        network(torch.randn(2, 1, 4, 4, 4)).sum().backward()
        averaged.update_parameters(network)
    assert averaged.module[1].num_batches_tracked.dtype == torch.int64
    assert torch.isfinite(averaged.eval()(torch.randn(1, 1, 4, 4, 4))).all()
    twin = copy.deepcopy(network)
    network(torch.randn(2, 1, 4, 4, 4))
    assert twin[1].num_batches_tracked == 2 and network[1].num_batches_tracked == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_keep_dtype_and_memory_format_and_statistics_are_float32(dtype):
    layer, exact = trained(), trained()
    x = torch.randn(2, 4, 3, 4, 5).to(dtype).to(memory_format=torch.channels_last_3d).requires_grad_()
    wide = x.detach().float().requires_grad_()
    for one, features in ((layer, x), (exact, wide)):
        y = one(features)
        y.square().sum().backward()
        assert y.dtype == features.grad.dtype == features.dtype
    assert layer(x).is_contiguous(memory_format=torch.channels_last_3d)
    assert x.grad.is_contiguous(memory_format=torch.channels_last_3d)
    assert layer.recent_squares.dtype == layer.running_var.dtype == torch.float32
    row = int(exact.num_batches_tracked) % 3
    torch.testing.assert_close(layer.recent_squares[row], exact.recent_squares[row])
    tolerance = torch.finfo(dtype).eps * 4
    assert (x.grad - wide.grad).norm() < tolerance * wide.grad.norm()


def test_half_precision_networks_keep_wide_statistics():
    layer = trained().bfloat16()
    assert {tensor.dtype for tensor in layer.state_dict().values()} == {torch.float32, torch.int64}
    assert layer.double().recent_psi.dtype == torch.float64


def run_layer(layer: MABN3d, x: Tensor, use_reentrant: bool | None) -> Tensor:
    """As it is where use_reentrant is None, else within a checkpoint."""
    return layer(x) if use_reentrant is None else checkpoint(layer, x, use_reentrant=use_reentrant)


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("use_reentrant", [None, True, False])
def test_several_passes_before_their_backward_passes(use_reentrant, in_order):
    """Each backward pass finds the row of its own batch: batches 4 and 5 have rows 1 and 2."""
    layer = MABN3d(1, eps=0.0, window=3, warmup=0)
    batches = [torch.full((1, 1, 2, 1, 1), value, requires_grad=True) for value in (1.0, 1.0, 1.0, 2.0, 3.0)]
    for batch in batches[:3]:
        layer(batch).sum().backward()
    outputs = [run_layer(layer, batch, use_reentrant) for batch in batches[3:]]
    for output in outputs if in_order else outputs[::-1]:
        output.sum().backward()
    # With ∂z = 1, Ψ_B is z: 2/χ̄ with χ̄² = (1 + 1 + 4)/3, and 3/χ̄ with χ̄² = (1 + 4 + 9)/3.
    expected = torch.tensor([1.0, 2 / 2**0.5, 3 / (14 / 3) ** 0.5])
    torch.testing.assert_close(layer.recent_psi.flatten(), expected)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_repeated_pass_of_warm_up_is_still_of_warm_up(use_reentrant):
    """With a window of 3, batch 3 is normalized by itself and batch 4 by averages."""
    torch.manual_seed(0)
    batches, gradients = torch.randn(4, 2, 1, 2, 2, 2) + 1, []
    for kind in (None, use_reentrant):
        layer = MABN3d(1, window=3, warmup=0)
        inputs = [batch.clone().requires_grad_() for batch in batches]
        for x in inputs[:2]:
            run_layer(layer, x, kind).pow(3).sum().backward()
        for output in [run_layer(layer, x, kind) for x in inputs[2:]]:
            output.pow(3).sum().backward()
        gradients.append([*(x.grad for x in inputs), layer.weight.grad, layer.recent_psi])
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_repeated_passes_of_checkpointing_take_nothing_in(use_reentrant):
    plain = trained()
    repeated = copy.deepcopy(plain)
    for _ in range(3):
        x = torch.randn(2, 4, 2, 3, 3)
        grads = []
        for layer in (plain, repeated):
            features = x.clone().requires_grad_()
            kept = layer is plain
            y = layer(features) if kept else checkpoint(layer, features, use_reentrant=use_reentrant)
            y.square().sum().backward()
            grads.append(features.grad)
        torch.testing.assert_close(*grads, rtol=0, atol=0)
    torch.testing.assert_close(dict(plain.state_dict()), dict(repeated.state_dict()), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")
def test_compiled_networks_train_alike():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv3d(1, 3, 3), MABN3d(3, window=2, warmup=0, r_start=0))
    network = copy.deepcopy(plain)
    compiled = torch.compile(network, backend="aot_eager")
    for _ in range(5):
        x = torch.randn(2, 1, 4, 4, 4)
        for one in (plain, compiled):
            one(x).pow(3).sum().backward()
    grads = ([parameter.grad for parameter in one.parameters()] for one in (plain, network))
    torch.testing.assert_close(*grads)
    torch.testing.assert_close(dict(plain.state_dict()), dict(network.state_dict()))


def test_frozen_features_get_no_gradient_but_weights_do():
    layer = trained()
    layer.zero_grad()
    layer(torch.randn(1, 4, 2, 2, 2)).sum().backward()
    torch.testing.assert_close(layer.bias.grad, torch.full((4,), 8.0))


def test_a_network_folds_and_one_sample_trains_it():
    torch.manual_seed(0)
    options = {"window": 2, "warmup": 0, "r_start": 0}
    network = UNet3d(1, 2, (4, 8), norm="mabn", norm_options=options, weight_standardization=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    image = torch.randn(1, 1, 8, 8, 8)
    label, losses = (image[:, 0] > 0.5).long(), []
    for _ in range(40):
        loss = nn.functional.cross_entropy(network(image), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    network.eval()
    folded = fold(network)
    assert not any(isinstance(layer, MABN3d) for layer in folded.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(image), network(image), rtol=1e-4, atol=1e-4)


def test_averages_make_training_less_dependent_on_the_batch_than_batch_norm_is():
    """One item's output beside other batch mates: fixed but for the window's newest of 16 batches."""
    torch.manual_seed(0)
    layer = MABN3d(1, warmup=0)
    for _ in range(20):
        layer(torch.randn(2, 1, 2, 2, 2))
    item, spreads = torch.randn(1, 1, 2, 2, 2), []
    for one in (layer, nn.BatchNorm3d(1)):
        batches = [torch.cat([item, mate]) for mate in torch.randn(30, 1, 1, 2, 2, 2)]
        spreads.append(torch.stack([copy.deepcopy(one)(batch)[0] for batch in batches]).std(0).mean())
    assert spreads[0] < spreads[1] / 4
    assert MABN3d.batch_dependent


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window 0 must be at least 1"),
        ({"warmup": -1}, "warmup -1"),
        ({"r_start": -1}, "r_start -1"),
        ({"r_max": 0.5}, "r_max 0.5 must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MABN3d(2, **options)


@pytest.mark.parametrize("kind_and_dimensions", [(MABN1d, 4), (MABN2d, 5), (MABN3d, 4)])
def test_wrong_dimensions_are_refused(kind_and_dimensions):
    kind, dimensions = kind_and_dimensions
    with pytest.raises(ValueError, match=f"got {dimensions}D input"):
        kind(2)(torch.randn(2, 2, *[3] * (dimensions - 2)))
