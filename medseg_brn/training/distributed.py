"""Several processes under `torchrun`: who am I, what the first does for all, gradients averaged."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from medseg_brn.errors import MedsegError
from medseg_brn.networks.domain_norm import find_sites

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

    Buffers are not broadcast: the first process's statistics would win. `StatisticsMerge` pools them.
    """
    if processes.world_size == 1:
        return network
    # A batch leaves the norms of sites that it does not hold without a gradient.
    has_unused = bool(find_sites(network))
    with warnings.catch_warnings():
        # torch will rename the option, but what it names instead still broadcasts the first buffers.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
        return DistributedDataParallel(network, broadcast_buffers=False, find_unused_parameters=has_unused)


def average_gradients(network: nn.Module, processes: Processes) -> None:
    """Replace the gradients of a network that is not wrapped by their mean over all processes, blocking."""
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    if processes.world_size == 1 or not gradients:
        return
    sums = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(sums)
    means = (sums / processes.world_size).split([gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))


def average_windows(networks: Sequence[nn.Module], processes: Processes) -> None:
    """Replace the recent moments that layers such as MABN keep by their mean over all processes, blocking.

    Each process has its own while training goes on; what a checkpoint holds must be the same in all.
    """
    windows = [window for network in networks for window in _find_windows(network)]
    if processes.world_size == 1 or not windows:
        return
    sums = torch.cat([window.flatten() for window in windows]).double()
    dist.all_reduce(sums)
    means = (sums / processes.world_size).split([window.numel() for window in windows])
    for window, mean in zip(windows, means, strict=True):
        window.copy_(mean.view_as(window))


def _find_windows(network: nn.Module) -> list[torch.Tensor]:
    """Every floating-point buffer that is no running mean or variance."""
    return [
        buffer
        for name, buffer in network.named_buffers()
        if buffer.is_floating_point() and not name.endswith(("running_mean", "running_var"))
    ]
