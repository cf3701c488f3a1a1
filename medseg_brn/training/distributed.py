"""Several processes under `torchrun`: who am I, gradients averaged, renorm statistics merged."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Processes:
    """This process's place among those that train together."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and talks to the user."""
        return self.rank == 0

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def join_processes(device: torch.device) -> Iterator[Processes]:
    """This process's place; under `torchrun` the process group is open inside the block."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Processes()
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda":
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), world_size, local_rank)
    finally:
        dist.destroy_process_group()


def share_gradients(network: nn.Module, processes: Processes) -> nn.Module:
    """The network itself, or wrapped so that backward averages the gradients of all processes.

    Buffers are not broadcast: the first process's statistics would win. `merge_statistics` pools them.
    """
    if processes.world_size == 1:
        return network
    return DistributedDataParallel(network, broadcast_buffers=False)


def merge_statistics(network: nn.Module, processes: Processes) -> None:
    """Make the running statistics of all processes equal: those of the mixture of their batches.

    μ = mean μ_k and σ² = mean(σ_k² + μ_k²) - μ², in one collective for all layers.
    """
    if processes.world_size == 1:
        return
    layers = [module for module in network.modules() if isinstance(getattr(module, "running_var", None), torch.Tensor)]
    if not layers:
        return
    means = torch.cat([layer.running_mean for layer in layers])
    squares = torch.cat([layer.running_var + layer.running_mean.square() for layer in layers])
    moments = torch.stack([means, squares]).double()
    dist.all_reduce(moments)
    mean, square = moments / processes.world_size
    variance = (square - mean.square()).clamp_min(0)
    sizes = [layer.running_mean.numel() for layer in layers]
    for layer, layer_mean, layer_variance in zip(layers, mean.split(sizes), variance.split(sizes), strict=True):
        layer.running_mean.copy_(layer_mean)
        layer.running_var.copy_(layer_variance)
