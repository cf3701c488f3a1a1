"""Activation checkpointing: a part of a network computes its activations again in the backward pass."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def compute_twice(part: Callable[..., Tensor], *inputs: Tensor, network: nn.Module) -> Tensor:
    """`part(*inputs)`, of which nothing but the inputs and the result is kept for the backward pass.

    The backward pass computes the part again; that changes no statistics. Renorm and MABN layers recognize
    the second pass themselves (`medseg_brn.networks.recomputation`); BatchNorm's are kept from it here.

    Args:
        part: some layers of `network`, without any that draw random numbers.
        inputs: what it takes.
        network: whose BatchNorm layers `part` may call.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _kept_statistics(network)

    return checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


@contextmanager
def _kept_statistics(network: nn.Module) -> Iterator[None]:
    """Within it BatchNorm layers take batches into copies of their statistics, which are thrown away."""
    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
    kept = [(layer, name, buffer) for layer in layers for name, buffer in layer.named_buffers(recurse=False)]
    for layer, name, buffer in kept:
        setattr(layer, name, buffer.clone())
    try:
        yield
    finally:
        for layer, name, buffer in kept:
            setattr(layer, name, buffer)
