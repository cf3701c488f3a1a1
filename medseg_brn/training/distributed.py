"""Several processes under `torchrun`: who am I, gradients averaged, renorm statistics merged."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

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


class StatisticsMerge:
    """The running statistics of all processes made equal: those of the mixture of their batches.

        μ = mean μ_k        σ² = mean(σ_k² + μ_k²) - μ²        (over processes k)

    One collective takes the moments of all layers, in float64, where the difference loses nothing that
    float32 holds. It starts when the step's last forward pass is done, as nothing later in the step changes
    the statistics, and goes on during the backward pass. It is started before the first collective of the
    gradients, so all processes call the collectives in the same order and one process group serves both.

    With a merge at every step, each process has taken one batch into a memory that was the same for all.
    With one at every k-th, each process's moving average follows its own batches in between, and training
    normalizes by it; what is merged are these k steps' memories. The share that is new in them is
    a = 1 - (1 - momentum)^k. So where shards differ, the variance V between the processes' means enters a
    merge as a²·V, and in the long run the merged variance holds a·V of it: more, the rarer the merges.
    """

    def __init__(self, networks: Sequence[nn.Module], processes: Processes) -> None:
        """Prepare merges of all statistics in `networks`, which have the same layers in all processes."""
        self._world_size = processes.world_size
        self._pairs = [pair for network in networks for pair in _find_statistics(network)]
        self._moments: torch.Tensor | None = None
        self._work: Any = None

    def start(self) -> None:
        """Send this process's statistics as they are now, and return at once."""
        if self._world_size == 1 or not self._pairs:
            return
        means = torch.cat([mean for mean, _ in self._pairs]).double()
        variances = torch.cat([variance for _, variance in self._pairs]).double()
        self._moments = torch.stack([means, variances + means.square()])
        self._work = dist.all_reduce(self._moments, async_op=True)

    def finish(self) -> None:
        """Wait for the other processes' statistics and write the mixture; nothing where none was started."""
        if self._moments is None:
            return
        self._work.wait()
        mean, square = self._moments / self._world_size
        self._moments = self._work = None
        variance = (square - mean.square()).clamp_min(0)
        sizes = [running_mean.numel() for running_mean, _ in self._pairs]
        merged = zip(mean.split(sizes), variance.split(sizes), strict=True)
        for running, pooled in zip(self._pairs, merged, strict=True):
            for buffer, value in zip(running, pooled, strict=True):
                buffer.copy_(value)


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


def _find_statistics(network: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Running mean and variance of every layer that has them, renorm and BatchNorm alike."""
    found = ((getattr(m, "running_mean", None), getattr(m, "running_var", None)) for m in network.modules())
    return [
        (mean, var) for mean, var in found if isinstance(mean, torch.Tensor) and isinstance(var, torch.Tensor)
    ]


def _find_windows(network: nn.Module) -> list[torch.Tensor]:
    """Every floating-point buffer that is no running mean or variance."""
    merged = {id(buffer) for pair in _find_statistics(network) for buffer in pair}
    return [b for b in network.buffers() if b.is_floating_point() and id(b) not in merged]
