"""The search: what the budgets allow, and what is given up first."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg_brn.config import NetworkConfig
from medseg_brn.models.architecture import build_network
from medseg_brn.planning.candidates import Budget, Problem, choose_candidate, list_levels_to_try
from medseg_brn.planning.costs import count_work, predict_cost

ROOMY = Budget(step_seconds=10.0, memory_bytes=1e12, unit_seconds=2e-11)


def pose(shape, spacing_mm=(1, 1, 1), num_outputs=3, in_channels=1, device="cpu"):
    return Problem(shape, spacing_mm, in_channels, num_outputs, device, "bf16")


def test_the_hippocampus_gets_the_recipes_network():
    found = choose_candidate(pose((35, 50, 36)), Budget(1.8, 8e9, 2e-11))
    assert found.patch == (32, 48, 32)
    assert found.network.channels == (16, 48, 96, 192)
    assert (found.network.encoder_blocks, found.network.decoder_blocks) == ((1, 2, 2, 2), (1, 2, 2))
    assert (found.batch_size, found.checkpointing) == (2, False)


def test_patches_shrink_before_networks_do():
    """Twice as slow a machine: the same channels on about half the voxels."""
    slow = choose_candidate(pose((200, 200, 200)), Budget(1.8, 8e9, 4e-11))
    fast = choose_candidate(pose((200, 200, 200)), Budget(1.8, 8e9, 2e-11))
    assert fast.network.channels[:3] == slow.network.channels[:3] == (16, 48, 96)
    assert math.prod(slow.patch) < math.prod(fast.patch)


def test_width_is_given_up_before_patches_get_uncomfortable():
    found = choose_candidate(pose((200, 200, 200)), Budget(0.3, 8e9, 4e-11))
    assert found.network.channels[0] < 16
    assert math.prod(found.patch) >= 48**3 / 2


def test_memory_is_won_by_computing_activations_again():
    """Less memory: first smaller patches, then activations computed again, then narrower networks."""
    found = [
        choose_candidate(pose((64, 64, 64), device="cuda"), Budget(100.0, memory, 1e-13))
        for memory in (1.2e9, 0.9e9, 0.75e9)
    ]
    assert [candidate.checkpointing for candidate in found] == [False, True, True]
    assert [candidate.network.channels[0] for candidate in found] == [32, 32, 16]


def test_where_nothing_fits_the_smallest_is_taken():
    found = choose_candidate(pose((200, 200, 200)), Budget(1e-9, 1.0, 2e-11))
    assert (found.network.channels[0], found.batch_size) == (8, 1)
    assert math.prod(found.patch) <= 16**3


def test_patches_have_edges_alike_in_mm_until_the_scan_ends():
    edges = [levels.patch for levels in list_levels_to_try((320, 320, 20), (0.6, 0.6, 3.0))]
    assert all(x == y for x, y, _ in edges)
    assert edges == sorted(edges, key=lambda size: -math.prod(size))
    assert edges[0][2] == 20


SHAPES = st.tuples(*[st.integers(1, 400)] * 3)
SPACINGS = st.tuples(*[st.floats(0.3, 8)] * 3)


@given(SHAPES, SPACINGS, st.floats(0.01, 20), st.floats(1e9, 2e10), st.integers(1, 4), st.integers(1, 105))
@settings(deadline=None, max_examples=60)
def test_any_scan_gets_a_network_that_can_be_trained(shape, spacing, seconds, memory, channels, outputs):
    problem = Problem(shape, spacing, channels, outputs, "cpu", "bf16")
    found = choose_candidate(problem, Budget(seconds, memory, 2e-11))
    with torch.device("meta"):
        network = build_network(found.network, channels, outputs)
    network.check_patch_size(found.patch)
    coarsest = [size // total for size, total in zip(found.patch, network.strides_total, strict=True)]
    assert math.prod(coarsest) >= 2
    assert 1 <= found.batch_size <= 4


@pytest.mark.parametrize("encoder", ["plain", "residual"])
def test_work_is_what_the_layers_do(encoder):
    """Multiplications and weights, counted from a network's own convolutions."""
    config = NetworkConfig(
        channels=(4, 8, 12),
        strides=((1, 1, 1), (2, 2, 1), (2, 2, 2)),
        kernels=((3, 3, 1), (3, 3, 1), (3, 3, 3)),
        encoder=encoder,
        encoder_blocks=(1, 2, 2),
        decoder_blocks=(1, 2),
    )
    network = build_network(config, 2, 3)
    counted = {"multiplications": 0, "weights": 0}

    def count(layer, inputs, output):
        if (
            min(layer.kernel_size) > 1
            or 3 in layer.kernel_size
            or isinstance(layer, torch.nn.ConvTranspose3d)
        ):
            voxels = output[0, 0].numel()
            taps = layer.weight[0, 0].numel() if isinstance(layer, torch.nn.Conv3d) else 1
            counted["multiplications"] += voxels * layer.in_channels * layer.out_channels * taps
            counted["weights"] += layer.weight.numel()

    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv3d | torch.nn.ConvTranspose3d):
            layer.register_forward_hook(count)
    network(torch.zeros(1, 2, 16, 16, 8))
    work = count_work(config, (16, 16, 8), 1, 2, 3)
    if encoder == "plain":
        assert (work.multiplications, work.weights) == (counted["multiplications"], counted["weights"])
    else:  # the shortcuts' average poolings and 1 × 1 × 1 convolutions are left out
        assert work.multiplications == pytest.approx(counted["multiplications"], rel=0.02)


def test_cost_grows_with_the_patch():
    network = NetworkConfig()
    small, large = (
        predict_cost(count_work(network, (size,) * 3, 2, 1, 3), 2e-11, device="cpu", precision="bf16")
        for size in (32, 64)
    )
    assert large.step_seconds > 7 * small.step_seconds
    assert large.memory_bytes > small.memory_bytes
    work = count_work(network, (64, 64, 64), 2, 1, 3)
    saved = predict_cost(work, 2e-11, device="cpu", precision="bf16", checkpointing=True)
    assert saved.memory_bytes < large.memory_bytes
    assert saved.step_seconds > large.step_seconds
