"""Learning-rate factors by part of the network."""

import pytest
import torch

from medseg_brn.config import Experiment, NetworkConfig, TrainingConfig
from medseg_brn.errors import ConfigError
from medseg_brn.networks.unet3d import UNet3d
from medseg_brn.training.parts import check_parts, find_factor, freeze_parts
from medseg_brn.training.state import make_optimizer, make_state


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("encoder.0.1.weight", 0.5),
        ("encoder.1.0.weight", 0.0),
        ("encoder", 0.5),
        ("encoder.10.0.weight", 0.5),
        ("stem.0.weight", 1.0),
    ],
)
def test_the_longest_part_counts(name, factor):
    assert find_factor(name, {"encoder": 0.5, "encoder.1": 0.0}) == factor


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"encode": 0.1}, "'encode', which is no part of the network; its parts are stem, encoder"),
        ({"stem.0.weigh": 0.1}, "no part"),
        (
            dict.fromkeys(("stem", "encoder", "upsampling", "decoder", "head"), 0),
            "nothing would be learnt",
        ),
    ],
)
def test_factors_that_mean_nothing_are_refused(factors, message):
    with pytest.raises(ConfigError, match=message):
        check_parts(UNet3d(1, 2, (4, 8)), factors)


def test_groups_learn_by_their_factors():
    factors = {"encoder": 0.1, "stem": 0}
    experiment = Experiment(
        network=NetworkConfig(channels=(4, 8)), training=TrainingConfig(learning_rate_factors=factors)
    )
    network = make_state(experiment, 1, 2, torch.device("cpu")).network
    optimizer = make_optimizer(network, experiment.training)
    found = {id(p): group["factor"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in network.named_parameters():
        if name.startswith("stem."):
            assert id(parameter) not in found
            assert not parameter.requires_grad
        else:
            assert found[id(parameter)] == (0.1 if name.startswith("encoder.") else 1)


def test_frozen_norms_keep_their_statistics():
    network = UNet3d(1, 2, (4, 8)).train()
    freeze_parts(network, {"stem": 0})
    before = {name: value.clone() for name, value in network.named_buffers()}
    network(torch.randn(2, 1, 8, 8, 8))
    changed = {name for name, value in network.named_buffers() if not value.equal(before[name])}
    assert changed == {name for name in before if not name.startswith("stem.")}
