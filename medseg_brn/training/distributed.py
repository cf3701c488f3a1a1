"""Several processes under `torchrun`: who am I, gradients averaged, renorm statistics merged."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from medseg_brn.errors import MedsegError

Result = TypeVar("Result")


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

    def after_first(self, work: Callable[[], Result]) -> Result:
        """What `work` returns, done by the first process before the others, which find its files ready.

        Raises:
            MedsegError: the first process's own error; in the others, that it failed.
        """
        if self.world_size == 1:
            return work()
        result, failure = None, None
        if self.is_first:
            try:
                result = work()
            except MedsegError as error:
                failure = error
        failed = [failure is not None]
        dist.broadcast_object_list(failed)
        if failure is not None:
            raise failure
        if failed[0]:
            raise MedsegError("the first process failed")
        return result if result is not None else work()


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
    # The others wait while the first process prepares the cases and validates whole volumes.
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=1))
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
    pairs = _find_statistics(network)
    if not pairs:
        return
    means = torch.cat([mean for mean, _ in pairs]).double()
    variances = torch.cat([variance for _, variance in pairs]).double()
    moments = torch.stack([means, variances + means.square()])
    dist.all_reduce(moments)
    mean, square = moments / processes.world_size
    variance = (square - mean.square()).clamp_min(0)
    sizes = [running_mean.numel() for running_mean, _ in pairs]
    merged = zip(mean.split(sizes), variance.split(sizes), strict=True)
    for running, pooled in zip(pairs, merged, strict=True):
        for buffer, value in zip(running, pooled, strict=True):
            buffer.copy_(value)


def _find_statistics(network: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Running mean and variance of every layer that has them, renorm and BatchNorm alike."""
    found = ((getattr(m, "running_mean", None), getattr(m, "running_var", None)) for m in network.modules())
    return [
        (mean, var) for mean, var in found if isinstance(mean, torch.Tensor) and isinstance(var, torch.Tensor)
    ]
