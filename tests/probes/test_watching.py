"""What the norms do while they train, sampled: against a naive computation, and without a trace."""

import math

import pytest
import torch
from torch import nn

from medseg_brn.networks.batch_renorm import BatchRenorm3d
from medseg_brn.probes.watching import EVERY_LAYER, Watcher


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    norms = nn.BatchNorm3d(3), BatchRenorm3d(3, schedule=(0, 0, 0), r_max=1.2, d_max=0.1)
    return nn.Sequential(
        nn.Conv3d(1, 3, 3), norms[0], nn.ReLU(), nn.Conv3d(3, 3, 3), norms[1], nn.InstanceNorm3d(3)
    )


def take_step(network: nn.Module, watcher: Watcher, step: int) -> list:
    watcher.before_step(step)
    network(torch.randn(2, 1, 8, 8, 8))
    return watcher.after_step(step)


def test_only_every_nth_step_is_sampled_and_no_observer_stays():
    network = make_network()
    watcher = Watcher(network, every=3)
    sampled = [step for step in range(1, 10) if take_step(network, watcher, step)]
    assert sampled == [3, 6, 9]
    assert network[4].observer is None
    assert not network[1]._forward_pre_hooks


def test_departure_and_drift_are_those_of_a_naive_computation():
    network = make_network()
    watcher = Watcher(network, every=1)
    take_step(network, watcher, 1)
    layer = network[1]
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    torch.manual_seed(5)
    image = torch.randn(2, 1, 8, 8, 8)
    features = network[0](image).transpose(0, 1).flatten(1)
    watcher.before_step(2)
    network(image)
    found = {sample.metric: sample.value for sample in watcher.after_step(2) if sample.layer == "1"}
    sigma = (var + layer.eps).sqrt()
    r = (features.var(1, correction=0) + layer.eps).sqrt() / sigma
    assert found["scale_departure"] == pytest.approx(float(r.log().abs().mean()), rel=1e-4)
    assert found["shift_departure"] == pytest.approx(
        float(((features.mean(1) - mean) / sigma).abs().mean()), rel=1e-4
    )
    moved = sum(
        ((now - old) / math.sqrt(v + layer.eps)) ** 2
        + math.log(math.sqrt((v0 + layer.eps) / (v + layer.eps))) ** 2
        for old, now, v0, v in zip(
            mean.tolist(), layer.running_mean.tolist(), var.tolist(), layer.running_var.tolist(), strict=True
        )
    )
    assert found["statistics_drift"] == pytest.approx(moved / 3, rel=1e-4)
    assert found.keys() == {"scale_departure", "shift_departure", "statistics_drift"}


def test_renorm_tells_what_its_limits_cut_off():
    network = make_network()
    watcher = Watcher(network, every=1)
    take_step(network, watcher, 1)
    network[4].running_mean += 100  # far outside d_max
    found = {sample.metric: sample.value for sample in take_step(network, watcher, 2) if sample.layer == "4"}
    assert found["clip_rate_d"] == 1
    assert found["clipped_mass_d"] == pytest.approx(found["shift_departure"] - 0.1, rel=1e-5)
    assert 0 <= found["clip_rate_r"] <= 1


def test_the_mean_over_layers_is_over_those_that_have_the_metric():
    network = make_network()
    watcher = Watcher(network, every=1)
    samples = take_step(network, watcher, 1)
    by_layer = {(sample.layer, sample.metric): sample.value for sample in samples}
    both = [by_layer[name, "shift_departure"] for name in ("1", "4")]
    assert by_layer[EVERY_LAYER, "shift_departure"] == pytest.approx(sum(both) / 2)
    assert by_layer[EVERY_LAYER, "clip_rate_d"] == by_layer["4", "clip_rate_d"]


def test_watching_changes_nothing():
    outputs = []
    for every in (1, 1000):
        network = make_network()
        watcher = Watcher(network, every)
        torch.manual_seed(1)
        for step in range(1, 5):
            take_step(network, watcher, step)
        outputs.append({name: value.clone() for name, value in network.state_dict().items()})
    assert all(torch.equal(outputs[0][name], outputs[1][name]) for name in outputs[0])
