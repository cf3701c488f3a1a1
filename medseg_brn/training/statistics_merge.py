"""Running statistics of several processes made equal: each remembers what all of them saw."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from medseg_brn.networks.batch_renorm import WideNorm
from medseg_brn.training.distributed import Processes


class StatisticsMerge:
    """Makes every process's running statistics those of one process that had seen the batches of all.

    Since the last merge, process k's memory has gone from the common mean μ_0 to μ_k = μ_0 + δ_k, and the
    share a_k of it is new, 1 - (1 - momentum)^n after n batches: its news have the mean μ_0 + δ_k / a_k.
    Pooled are the news, as a mixture:

        μ = μ_0 + mean δ_k        σ² = mean σ_k² + mean(δ_k² / a_k) - (mean δ_k)² / mean a_k

    over the processes that have news, which are all of them except where a norm has statistics for each site.
    With a merge at every step this is the memory of the pooled batch: where the processes' means differ with
    variance V, it takes in a·V and holds V in the long run. (A mixture of whole memories would take in a²·V
    and hold a·V.) With rarer merges it is so where processes differ in the same way from batch to batch, as
    different scanners do; differences that come and go cancel in each memory before they are seen.

    One collective takes the moments of all layers. It starts when the step's last forward pass is done, as
    nothing later in the step changes the statistics, and goes on during the backward pass. It is started
    before the first collective of the gradients, so all processes call the collectives in the same order and
    one process group serves both.
    """

    def __init__(self, network: nn.Module, processes: Processes, averaged: nn.Module | None = None) -> None:
        """Prepare merges; all processes have the same statistics now.

        Args:
            network: its running statistics are merged.
            processes: that train it.
            averaged: the moving average of the network's weights and statistics. Its own are mixed whole, as
                what they average has been merged.
        """
        self._world_size = processes.world_size
        self._layers = list(_find_layers(network))
        self._shares_of = len(self._layers)
        if averaged is not None:
            self._layers += _find_layers(averaged)
        self._passes = 0
        self._message: Tensor | None = None
        self._work: Any = None
        if self._is_needed:
            self._remember()

    @property
    def _is_needed(self) -> bool:
        return self._world_size > 1 and bool(self._layers)

    def note_pass(self, merges: bool = False) -> None:
        """Tell of a forward pass in training, with which memories have taken in a batch; then maybe start."""
        self._passes += 1
        if merges:
            self.start()

    def start(self) -> None:
        """Send this process's statistics as they are now, and return at once."""
        if not self._is_needed:
            return
        shares = torch.cat([self._shares(), self._means.new_ones(len(self._layers) - self._shares_of)])
        shift = torch.cat([layer.running_mean for layer in self._layers]) - self._means
        widening = torch.cat([layer.running_var for layer in self._layers]) - self._variances
        widening += self._square(shift, shares)
        self._message = torch.cat([shift, widening, shares, (shares > 0).to(shares.dtype)])
        self._work = dist.all_reduce(self._message, async_op=True)

    def finish(self) -> None:
        """Wait for the others' statistics and write the merged ones; nothing where none was started."""
        if self._message is None:
            return
        self._work.wait()
        channels, layers = len(self._means), len(self._layers)
        shift, widening, shares, news = self._message.split([channels, channels, layers, layers])
        self._message = self._work = None
        with_news = news.clamp_min(1)
        shift, widening = shift / self._expand(with_news), widening / self._expand(with_news)
        widening -= self._square(shift, shares / with_news)
        sizes = [layer.running_mean.numel() for layer in self._layers]
        means, variances = self._means + shift, (self._variances + widening).clamp_min(0)
        for layer, mean, variance in zip(
            self._layers, means.split(sizes), variances.split(sizes), strict=True
        ):
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(variance)
        self._remember()

    def renew(self) -> None:
        """Take in that the average has moved since the merge, by the same in all processes."""
        if self._is_needed and self._passes == 0:
            self._remember()

    def _remember(self) -> None:
        self._means = torch.cat([layer.running_mean for layer in self._layers])
        self._variances = torch.cat([layer.running_var for layer in self._layers])
        self._tracked, self._passes = self._read_tracked(), 0

    def _read_tracked(self) -> Tensor:
        return torch.stack([layer.num_batches_tracked for layer in self._layers[: self._shares_of]])

    def _shares(self) -> Tensor:
        """How much of the memory of each of the network's layers is new since the last merge, in [0, 1].

        A renorm's `num_batches_tracked` is its place in the schedule of the limits, which counts optimizer
        steps, so its batches are the passes. A BatchNorm counts batches; that of a site, those that hold it.
        """
        layers = self._layers[: self._shares_of]
        momenta = self._means.new_tensor([layer.momentum for layer in layers])
        is_wide = torch.tensor([isinstance(layer, WideNorm) for layer in layers], device=momenta.device)
        batches = torch.where(is_wide, self._passes, self._read_tracked() - self._tracked)
        shares = 1 - (1 - momenta) ** batches
        # The first batch is all that a renorm's memory holds.
        return torch.where(is_wide & (self._tracked == 0) & (batches > 0), 1.0, shares)

    def _square(self, shift: Tensor, shares: Tensor) -> Tensor:
        """δ²/a of each channel; 0 where a layer has seen no batch, and so has no news."""
        return shift.square() / self._expand(shares.clamp_min(torch.finfo(shares.dtype).tiny))

    def _expand(self, per_layer: Tensor) -> Tensor:
        """A number of each layer, repeated for each of its channels."""
        sizes = torch.tensor([layer.running_mean.numel() for layer in self._layers], device=per_layer.device)
        return per_layer.repeat_interleave(sizes)


def _find_layers(network: nn.Module) -> Iterator[Any]:
    """Every layer with running statistics, renorm and BatchNorm alike."""
    for layer in network.modules():
        if isinstance(layer, _NormBase) and layer.track_running_stats:
            yield layer
