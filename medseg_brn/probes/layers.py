"""A network's norm layers: found, put into training or evaluation without a trace, and listened to."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from medseg_brn.cases.targets import Targets
from medseg_brn.networks.normalization import has_batch_statistics
from medseg_brn.networks.recomputation import FirstPasses

NORM_CLASSES = (_NormBase, nn.GroupNorm, nn.LayerNorm)
"""_NormBase is the base of batch, batch renorm and instance norms."""


def find_norm_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Every norm layer of the network by name, in the order of `named_modules`; a shared layer once."""
    return {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, NORM_CLASSES) or hasattr(layer, "batch_dependent")
    }


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Within the block all of the network is in evaluation mode; afterwards each part is as it was."""
    modes = [(part, part.training) for part in network.modules()]
    try:
        for part, _ in modes:
            part.training = False  # a network may define its own way into evaluation mode
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def training_norms(network: nn.Module) -> Iterator[None]:
    """Within the block the norms are in training mode and all else in evaluation; the network stays as it is.

    Training mode goes to the layers with batch statistics, whatever mode they are in, and to instance norms
    that keep running statistics: the norms that compute something else in training. It does not go to layers
    that `freeze_statistics` marked: these are trained in evaluation mode. Every pass starts from the same
    buffers: a layer works on copies of them, thrown away after each call, so moving averages, counters and
    schedules do not move, bit for bit, whatever happens in the block. Observers of renorm layers are not
    called.

    Args:
        network: any module; used by one thread at a time.
    """
    layers = [layer for layer in find_norm_layers(network).values() if _computes_otherwise_in_training(layer)]
    originals = [(layer, dict(layer._buffers)) for layer in layers]
    # Passes of the block are not ones that a checkpointed training step may repeat later.
    replaced = [_replace(layer, "observer", None) for layer in layers if hasattr(layer, "observer")]
    replaced += [
        _replace(layer, "_first_passes", FirstPasses()) for layer in layers if hasattr(layer, "_first_passes")
    ]
    hooks = []
    with eval_mode(network):
        try:
            for layer, buffers in originals:
                hooks.append(layer.register_forward_pre_hook(_work_on_copies))
                hooks.append(layer.register_forward_hook(_put_back(buffers)))
                layer.training = True
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for layer, buffers in originals:  # after an error within a layer its copies are still there
                layer._buffers.update(buffers)
            for layer, name, value in replaced:
                setattr(layer, name, value)


@contextmanager
def collect_inputs(network: nn.Module, take: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within the block, `take(name, features)` is called with the input of every norm layer that runs.

    Args:
        network: any module.
        take: gets the layer's name and its input as (N, C, ...), without gradient. A `nn.LayerNorm` of one
            axis has its channels last; they are moved to where other norms have them. The features are
            the network's own memory: read them at once, a later layer may write over them.
    """

    def listen(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            features = arguments[0] if arguments else next(iter(named.values()))
            take(name, _channels_first(layer, features.detach()))

        return hook

    hooks = [
        layer.register_forward_pre_hook(listen(name), with_kwargs=True)
        for name, layer in find_norm_layers(network).items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def compute_logits(network: nn.Module, images: Tensor) -> Tensor:
    """The network's answer to images (N, C, ...), moved to its device and dtype: (N, K, ...).

    Of several outputs (deep supervision, auxiliary heads) the first.
    """
    parameter = next((p for p in network.parameters() if p.is_floating_point()), None)
    output = network(images if parameter is None else images.to(parameter.device, parameter.dtype))
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if isinstance(output, dict) else output))
    return output


def apply_activation(logits: Tensor, targets: Targets | None = None) -> Tensor:
    """Probabilities of logits (N, K, ...): softmax of classes; the sigmoid of regions, or of one channel."""
    has_regions = targets is not None and bool(targets.regions)
    return logits.sigmoid() if has_regions or logits.size(1) == 1 else logits.softmax(dim=1)


def _computes_otherwise_in_training(layer: nn.Module) -> bool:
    """False for frozen norms: their mark `batch_dependent` comes before their running statistics."""
    keeps_statistics = getattr(layer, "running_var", None) is not None
    return bool(getattr(layer, "batch_dependent", has_batch_statistics(layer) or keeps_statistics))


def _replace(layer: nn.Module, name: str, value: Any) -> tuple[nn.Module, str, Any]:
    """Sets an attribute; returns what `setattr` needs to undo it."""
    before = layer, name, getattr(layer, name)
    setattr(layer, name, value)
    return before


def _work_on_copies(layer: nn.Module, _: tuple[Any, ...]) -> None:
    """A forward pre-hook. Copies, as autograd forbids to write to what a later backward pass needs."""
    for name, buffer in layer._buffers.items():
        if buffer is not None:
            layer._buffers[name] = buffer.detach().clone()


def _put_back(buffers: dict[str, Tensor | None]) -> Callable[..., None]:
    def hook(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        layer._buffers.update(buffers)

    return hook


def _channels_first(layer: nn.Module, features: Tensor) -> Tensor:
    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
        return features.movedim(-1, 1)
    return features
