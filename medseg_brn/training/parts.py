"""Parts of a network that learn at a rate of their own, or not at all."""

from collections.abc import Mapping

from torch import nn

from medseg_brn.errors import ConfigError
from medseg_brn.networks.normalization import freeze_statistics


def find_factor(name: str, factors: Mapping[str, float]) -> float:
    """By how much the learning rate of a weight or module differs, as its longest part in `factors` says.

    Args:
        name: its path in the network, such as `encoder.0.1.weight`.
        factors: path of a part -> factor; what is in none of them has the factor 1.
    """
    parts = [part for part in factors if name == part or name.startswith(f"{part}.")]
    return factors[max(parts, key=len)] if parts else 1.0


def check_parts(network: nn.Module, factors: Mapping[str, float]) -> None:
    """Refuse factors that change nothing, or leave nothing to learn.

    Raises:
        ConfigError: they do.
    """
    names = [name for name, _ in network.named_parameters()]
    for part in factors:
        if not any(name == part or name.startswith(f"{part}.") for name in names):
            parts = [name for name, _ in network.named_children()]
            raise ConfigError(
                f"training.learning_rate_factors names {part!r}, which is no part of the network; its parts"
                f" are {', '.join(parts)}, and theirs, such as {names[0].rpartition('.')[0]}"
            )
    if not any(find_factor(name, factors) for name in names):
        raise ConfigError(
            "training.learning_rate_factors is 0 for every part, so nothing would be learnt; raise one"
        )


def freeze_parts(network: nn.Module, factors: Mapping[str, float]) -> None:
    """Leave parts of factor 0 as they are: no gradient, and norms that keep their statistics.

    `network.train()` takes the norms' part of it back; then call this again.
    """
    if 0 not in factors.values():
        return
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(find_factor(name, factors) > 0)
    for name, module in network.named_modules():
        if next(module.children(), None) is None and find_factor(name, factors) == 0:
            freeze_statistics(module)
