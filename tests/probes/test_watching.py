"""What the norms do while they train, sampled: against a naive computation, and without a trace."""

import copy
import math

import pytest
import torch
from torch import nn

from medseg_brn.networks.batch_renorm import BatchRenorm3d
from medseg_brn.networks.mabn import MABN3d
from medseg_brn.probes.statistics import statistics_drift
from medseg_brn.probes.watching import EVERY_LAYER, Watcher


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    norms = nn.BatchNorm3d(3), BatchRenorm3d(3, schedule=(0, 0, 0), r_max=1.2, d_max=0.1)
    return nn.Sequential(
        nn.Conv3d(1, 3, 3), norms[0], nn.ReLU(), nn.Conv3d(3, 3, 3), norms[1], nn.InstanceNorm3d(3)
    )


def take_step(network: nn.Module, watcher: Watcher, step: int, batch: torch.Tensor | None = None) -> list:
    watcher.before_step(step)
    network(torch.randn(2, 1, 8, 8, 8) if batch is None else batch)
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
    features = network[0](image).detach().transpose(0, 1).flatten(1)
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


@pytest.mark.parametrize("passes", [1, 2])
def test_clipping_is_that_of_the_steps_last_pass_and_of_its_limits(passes: int) -> None:
    """Pass t has r_max 1 + 0.2·t and d_max 0.1·t: limits, corrections and departures are of one pass."""
    torch.manual_seed(0)
    layer = BatchRenorm3d(50, schedule=(0, 10, 10), r_max=3, d_max=1, momentum=0.5)
    watcher, batches = Watcher(layer, every=1), torch.randn(4, 1, 50, 2, 2, 2) * 1.5
    for batch in batches[:2]:
        layer(batch)
    start = layer.running_mean.clone(), layer.running_var.clone()
    watcher.before_step(1)
    for batch in batches[2 : 2 + passes]:
        mean, var = layer.running_mean.double(), layer.running_var.double()
        layer(batch)
    found = {sample.metric: sample.value for sample in watcher.after_step(1)}
    features, sigma = batch.double().transpose(0, 1).flatten(1), (var + layer.eps).sqrt()
    log_r = ((features.var(1, correction=0) + layer.eps).sqrt() / sigma).log().abs()
    shift = ((features.mean(1) - mean) / sigma).abs()
    over_r, over_d = log_r - math.log(1 + 0.2 * (1 + passes)), shift - 0.1 * (1 + passes)
    assert 0 < found["clip_rate_r"] < 1 and 0 < found["clip_rate_d"] < 1
    assert found == pytest.approx(
        {
            "scale_departure": float(log_r.mean()),
            "shift_departure": float(shift.mean()),
            "clip_rate_r": float((over_r > 0).double().mean()),
            "clip_rate_d": float((over_d > 0).double().mean()),
            "clipped_mass_r": float(over_r.clamp(min=0).mean()),
            "clipped_mass_d": float(over_d.clamp(min=0).mean()),
            "statistics_drift": statistics_drift(*start, layer.running_mean, layer.running_var),
        },
        rel=1e-4,
    )


def test_accumulation_samples_a_batch_norms_last_pass_too() -> None:
    torch.manual_seed(0)
    layer, batches, found = nn.BatchNorm3d(3), torch.randn(2, 2, 3, 4, 4, 4) + 1, []
    twin = copy.deepcopy(layer)
    twin(batches[0])  # its step is only the last pass of the other's
    for one, seen in ((layer, batches), (twin, batches[1:])):
        watcher = Watcher(one, every=1)
        watcher.before_step(1)
        for batch in seen:
            one(batch)
        found.append({sample.metric: sample.value for sample in watcher.after_step(1)})
    for metric in ("scale_departure", "shift_departure"):
        assert found[0][metric] == found[1][metric]
    assert found[0]["statistics_drift"] > 2 * found[1]["statistics_drift"]  # of both passes


@pytest.mark.parametrize("norm", [nn.BatchNorm3d, BatchRenorm3d, MABN3d])
def test_a_batch_with_the_running_statistics_has_not_departed_from_them(norm: type[nn.Module]) -> None:
    """Values 1 and 5 have mean 3 and variance 4; their mean square is 13, which is what MABN keeps."""
    layer, uncentred = norm(2, momentum=0.0), norm is MABN3d
    layer.running_mean.fill_(0.0 if uncentred else 3.0)
    layer.running_var.fill_(13.0 if uncentred else 4.0)
    layer.num_batches_tracked.fill_(1)
    samples = take_step(layer, Watcher(layer, every=1), 1, torch.tensor([1.0, 5.0]).repeat(2, 2, 2, 2, 1))
    found = {sample.metric: sample.value for sample in samples}
    assert found["scale_departure"] == pytest.approx(0, abs=1e-6)
    assert found.get("shift_departure") == (None if uncentred else pytest.approx(0, abs=1e-6))
    assert found["statistics_drift"] == 0


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
