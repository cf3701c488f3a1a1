"""What changes while training goes on: network, averaged network, optimizer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel

from medseg_brn.config import Experiment, TrainingConfig
from medseg_brn.errors import ConfigError
from medseg_brn.models.architecture import build_network
from medseg_brn.training.adversarial import Adversary, check_discriminator
from medseg_brn.training.parts import check_parts, find_factor, freeze_parts


@dataclass
class TrainingState:
    """Network, its moving average (or None), optimizer and adversary (or None), as between two steps."""

    network: nn.Module
    averaged: AveragedModel | None
    optimizer: Optimizer
    adversary: Adversary | None = None

    @property
    def best_network(self) -> nn.Module:
        """The network to use: the averaged one where averaging is on."""
        return self.network if self.averaged is None else self.averaged.module


def make_state(
    experiment: Experiment,
    in_channels: int,
    num_outputs: int,
    device: torch.device,
    sites: Sequence[str] = (),
) -> TrainingState:
    """State before the first step; initial weights come from the experiment's seed."""
    torch.manual_seed(experiment.seed)
    network = build_network(experiment.network, in_channels, num_outputs, sites)
    network.activation_checkpointing = experiment.training.activation_checkpointing
    freeze_parts(network, experiment.training.learning_rate_factors)
    network.to(device)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # torch's stubs lack it
    return TrainingState(
        network=network,
        averaged=_make_average(network, experiment.training.ema_decay),
        optimizer=make_optimizer(network, experiment.training),
    )


def check_network(experiment: Experiment, device: torch.device) -> None:
    """Find out before any data is read whether the network can train on the patches.

    Raises:
        ConfigError: the levels make no network, the patch size does not fit them or the discriminator, the
            network has not the parts that are to learn at a rate of their own, or the device not the norm.
    """
    if experiment.network.norm == "sync_batch" and device.type == "cpu":
        raise ConfigError("network.norm sync_batch works on GPUs only; choose batch_renorm or batch here")
    with torch.device("meta"):
        network = build_network(experiment.network, in_channels=1, num_outputs=2, sites=("any",))
    size = experiment.patches.size
    network.check_patch_size(size)
    coarsest = [length // stride for length, stride in zip(size, network.strides_total, strict=True)]
    if math.prod(coarsest) < 2:
        raise ConfigError(
            f"Patch size {size} is a single voxel at the coarsest level, where a norm has nothing to"
            " normalize; enlarge patches.size or shorten network.channels"
        )
    check_parts(network, experiment.training.learning_rate_factors)
    check_discriminator(experiment)


def make_optimizer(network: nn.Module, config: TrainingConfig) -> Optimizer:
    """SGD with Nesterov momentum or AdamW; vectors (biases, norm parameters) get no weight decay.

    Each group has, as `factor`, by how much its learning rate differs from the run's.
    """
    parameters = [
        (find_factor(name, config.learning_rate_factors), p) for name, p in network.named_parameters()
    ]
    groups: list[dict[str, Any]] = [
        {
            "params": [p for factor, p in parameters if factor == shared and (p.ndim > 1) == is_decayed],
            "weight_decay": config.weight_decay if is_decayed else 0.0,
            "factor": shared,
        }
        for shared in sorted({factor for factor, _ in parameters} - {0}, reverse=True)
        for is_decayed in (True, False)
    ]
    if config.optimizer == "sgd":
        return SGD(groups, lr=config.learning_rate, momentum=0.9, nesterov=True)
    # Runs are short for AdamW: a memory of about 100 steps for the second moment, not its usual 1000.
    return AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99))


def _make_average(network: nn.Module, decay: float | None) -> AveragedModel | None:
    if decay is None:
        return None

    def average(
        averaged: Sequence[torch.Tensor], current: Sequence[torch.Tensor], count: torch.Tensor | int
    ) -> None:
        """Moving average whose window grows with the run, so that early weights do not linger."""
        if not averaged[0].is_floating_point():
            for mean, value in zip(averaged, current, strict=True):
                mean.copy_(value)
            return
        steps = int(count)
        kept = min(decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(list(averaged), list(current), 1 - kept)

    # The statistics are averaged with the weights they belong to.
    return AveragedModel(network, multi_avg_fn=average, use_buffers=True)
