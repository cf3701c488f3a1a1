"""Domain-specific batch normalization (Chang et al. 2019, arXiv:1906.03950): a BatchNorm for each site."""

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medseg_brn.errors import ConfigError

_BATCH_NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class DomainBatchNorm(nn.Module):
    """Batch normalization of (N, C, ...), each item by the statistics and the affine map of its own site.

    For the items of site s in a batch, with their mean μ_B,s and variance σ_B,s² per channel:

        training     y = γ_s · (x - μ_B,s) / sqrt(σ_B,s² + eps) + β_s
                     μ_s ← μ_s + momentum · (μ_B,s - μ_s)        running_var likewise
        evaluation   y = γ_s · (x - μ_s) / sqrt(running_var_s + eps) + β_s

    Statistics and affine map both are the site's own, as in the paper; convolutions are shared. `domains`
    holds a BatchNorm of torch's for each site, and what is done to BatchNorms elsewhere (frozen or
    recalibrated statistics, merging between processes, averages over steps) is done to each of them.

    A site's statistics take in only the batches that hold it, so that short runs with many sites leave them
    near where they begin, mean 0 and variance 1: recalibrate these.

    `set_sites` says of which sites the items of the next batch are. For inference `take_site` makes a plain
    BatchNorm of it, which folds.

    Source: Chang et al. 2019, "Domain-Specific Batch Normalization for Unsupervised Domain Adaptation".

    Attributes:
        sites: names, in the order of `domains`.
        domains: BatchNorm of each site.
        domain_of_item: index in `sites` of each item of the next batch.

    Args:
        num_features: channels C.
        sites: their names; at least one, each once.
        dimensions: spatial dimensions, 1 to 3.
        options: keyword arguments of the BatchNorms, such as `momentum`.

    Raises:
        ConfigError: no sites, or a name twice.
    """

    def __init__(
        self, num_features: int, sites: Sequence[str] = (), *, dimensions: int = 3, **options: Any
    ) -> None:
        super().__init__()
        if not sites or len(set(sites)) < len(sites):
            raise ConfigError(
                f"domain_batch was made for the sites ({', '.join(sites)}), and takes at least one, each "
                "once; name those of the training cases"
            )
        make = _BATCH_NORMS[dimensions - 1]
        self.sites = tuple(sites)
        self.domains = nn.ModuleList(make(num_features, **options) for _ in self.sites)
        self.domain_of_item: tuple[int, ...] = ()

    def forward(self, input: Tensor) -> Tensor:
        """Normalizes (N, C, ...) into the same shape and memory format.

        Raises:
            ConfigError: the sites of the batch's items are not known.
        """
        if len(self.domain_of_item) != len(input):
            raise ConfigError(
                f"domain_batch got {len(input)} items, and knows the sites of {len(self.domain_of_item)}; "
                "tell it by set_sites before each batch, or make the network one site's by take_site"
            )
        places: dict[int, list[int]] = defaultdict(list)
        for place, domain in enumerate(self.domain_of_item):
            places[domain].append(place)
        if len(places) == 1:
            return self.domains[self.domain_of_item[0]](input)
        items = input.split(1)
        normalized: list[Tensor] = [input] * len(items)
        for domain, own in places.items():
            output = self.domains[domain](torch.cat([items[place] for place in own]))
            for place, item in zip(own, output.split(1), strict=True):
                normalized[place] = item
        return torch.cat(normalized)

    def extra_repr(self) -> str:
        return f"sites={self.sites}"

    @torch.no_grad()
    def take(self, site: str | None) -> nn.Module:
        """A BatchNorm that is the given site's, or, for one that is none of `sites`, that of their mixture.

            μ = mean μ_s    running_var = mean(running_var_s + μ_s²) - μ²    γ = mean γ_s    β = mean β_s

        over all sites s, each with the same weight, as of an unknown site nothing favours one of them.
        """
        if site in self.sites:
            return copy.deepcopy(self.domains[self.sites.index(site)])
        mixture: Any = copy.deepcopy(self.domains[0])

        def average(read: Callable[[Any], Tensor]) -> Tensor:
            return torch.stack([read(domain).double() for domain in self.domains]).mean(0)

        mean = average(lambda domain: domain.running_mean)
        square = average(lambda domain: domain.running_var.double() + domain.running_mean.double().square())
        mixture.running_mean.copy_(mean)
        mixture.running_var.copy_((square - mean.square()).clamp_min(0))
        if mixture.affine:
            mixture.weight.copy_(average(lambda domain: domain.weight))
            mixture.bias.copy_(average(lambda domain: domain.bias))
        return mixture


def find_sites(network: nn.Module) -> tuple[str, ...]:
    """The sites whose own statistics a network has; none where it has no domain-specific layers."""
    layers = (layer for layer in network.modules() if isinstance(layer, DomainBatchNorm))
    return next((layer.sites for layer in layers), ())


def set_sites(network: nn.Module, sites: Sequence[str | None]) -> None:
    """Tells every domain-specific layer of which site each item of the next batch is.

    Args:
        network: changed in place; one without such layers stays as it is.
        sites: one per item.

    Raises:
        ConfigError: the network was not made for one of them.
    """
    for layer in network.modules():
        if isinstance(layer, DomainBatchNorm):
            layer.domain_of_item = tuple(_find(site, layer.sites) for site in sites)


def take_site(network: nn.Module, site: str | None) -> nn.Module:
    """A copy in which every domain-specific layer is a plain BatchNorm of one site, ready to be folded.

    Args:
        network: stays as it is, and is itself returned where it has no domain-specific layers.
        site: one of `find_sites`; any other one, or None, gives the mixture of all (`DomainBatchNorm.take`).
    """
    if not find_sites(network):
        return network
    taken = copy.deepcopy(network)
    if isinstance(taken, DomainBatchNorm):
        return taken.take(site)
    for parent in list(taken.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, DomainBatchNorm):
                setattr(parent, name, child.take(site).train(child.training))
    return taken


def _find(site: str | None, sites: Sequence[str]) -> int:
    if site not in sites:
        raise ConfigError(
            f"A batch holds an item of site {site!r}, and domain_batch was made for {', '.join(sites)}; make "
            "it for all sites of the training cases"
        )
    return sites.index(site)
