"""What training starts from, and what it refuses to start from."""

import pytest
import torch

from medseg_brn.config import Experiment, NetworkConfig, PatchesConfig, TrainingConfig
from medseg_brn.errors import ConfigError
from medseg_brn.training.state import check_network, make_optimizer, make_state

CPU = torch.device("cpu")


def make_experiment(size=(16, 16, 16), seed=0, **network) -> Experiment:
    return Experiment(
        seed=seed,
        patches=PatchesConfig(size=size),
        network=NetworkConfig(**{"channels": (2, 4, 6), **network}),
    )


def test_a_patch_size_off_the_strides_is_told_with_those_that_fit():
    with pytest.raises(ConfigError, match=r"\(16, 18, 16\).*\(16, 16, 16\) and \(16, 20, 16\)"):
        check_network(make_experiment(size=(16, 18, 16)), CPU)


def test_a_patch_that_shrinks_to_one_voxel_is_refused():
    with pytest.raises(ConfigError, match=r"\(4, 4, 4\) is a single voxel at the coarsest level"):
        check_network(make_experiment(size=(4, 4, 4)), CPU)
    check_network(make_experiment(size=(4, 4, 8)), CPU)


def test_a_norm_that_the_device_lacks_is_refused():
    with pytest.raises(ConfigError, match="sync_batch works on GPUs only"):
        check_network(make_experiment(norm="sync_batch"), CPU)


def test_initial_weights_come_from_the_seed_alone():
    torch.manual_seed(99)
    first = make_state(make_experiment(), 1, 2, CPU).network.state_dict()
    torch.manual_seed(7)
    same = make_state(make_experiment(), 1, 2, CPU).network.state_dict()
    other = make_state(make_experiment(seed=1), 1, 2, CPU).network.state_dict()
    assert all(torch.equal(value, same[name]) for name, value in first.items())
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_vectors_are_exempt_from_weight_decay(name):
    network = make_state(make_experiment(), 1, 2, CPU).network
    optimizer = make_optimizer(network, TrainingConfig(optimizer=name, weight_decay=0.5))
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    for parameter in network.parameters():
        assert (id(parameter) in decayed) == (parameter.ndim > 1)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(network.parameters()))
