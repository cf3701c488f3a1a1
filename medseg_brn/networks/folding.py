"""Folds normalization into the convolutions before it, for inference."""

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from medseg_brn.errors import ModelError
from medseg_brn.networks.batch_renorm import BatchRenorm

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PROBE_SIZE = 128  # voxels per axis: divisible by the strides of any common network


def fold(module: nn.Module, input_shape: tuple[int, ...] | None = None) -> nn.Module:
    """A copy for inference with normalization folded into the convolutions before it.

    With σ = sqrt(running_var + eps), the convolution's weights become W·γ/σ and its bias β + (b - μ)·γ/σ.
    A renorm or BatchNorm layer is folded where it takes the output of a convolution, directly and as the
    only one that does; this is found out by running the network on a tensor without data. Other layers
    (a norm before its convolution, or an instance norm) stay as they are. Weight-standardized
    convolutions become plain ones.

    Args:
        module: a network; not changed.
        input_shape: (1, C, ...) of an input that it accepts; None takes 128 voxels per axis and the
            channels of the network's `in_channels` or first convolution.

    Returns:
        The copy, in evaluation mode; same output within rounding.

    Raises:
        ModelError: no convolution, or the network cannot be run to find what follows what.
    """
    folded = _copy(module).eval()
    norm_after = _find_foldable(folded, input_shape)
    for name, convolution in list(folded.named_modules()):
        norm = folded.get_submodule(norm_after[name]) if name in norm_after else None
        if norm is None and not hasattr(convolution, "standardized_weight"):
            continue
        plain = _fold_layers(convolution, norm)
        if convolution is folded:
            return plain
        replace_layer(folded, convolution, plain)
        if norm is not None:
            replace_layer(folded, norm, nn.Identity())
    return folded


def replace_layer(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts `new` wherever `root` holds `old`, which may be in several places."""
    for parent in list(root.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, name, new)


def _copy(module: nn.Module) -> nn.Module:
    """A deep copy, also of a module that holds results of a training pass (DynUNet does), which refuse it."""
    held = tree_leaves([dict(vars(part)) for part in module.modules()])
    results = [leaf for leaf in held if isinstance(leaf, Tensor) and not leaf.is_leaf]
    return copy.deepcopy(module, {id(result): result.detach() for result in results})


def _is_convolution(layer: nn.Module) -> bool:
    """Whether its weights are known: a subclass may compute others from its own."""
    return type(layer) in (*_CONVOLUTIONS, *_TRANSPOSED) or hasattr(layer, "standardized_weight")


def _can_fold(layer: nn.Module) -> bool:
    return isinstance(layer, (BatchRenorm, _BatchNorm)) and layer.running_var is not None


class _Uses(TorchFunctionMode):
    """Counts how often each tensor is an argument of a function that makes tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()
        self.kept: list[Any] = []  # while it exists, nothing else gets its id

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            self.count((args, kwargs))
            self.kept.append(result)
        return result

    def count(self, tree: Any) -> None:
        """Counts one use of every tensor in nested arguments or results."""
        self.counts.update(id(leaf) for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _find_foldable(module: nn.Module, input_shape: tuple[int, ...] | None) -> dict[str, str]:
    """Runs the network on a tensor without data to find what follows what.

    Returns:
        From a convolution's name to that of the norm that alone takes its output. Layers that run more
        than once are left out: what follows them once may not follow them always.
    """
    probe = _copy(module).to("meta")
    shape = input_shape or _guess_input_shape(module)
    calls: Counter[str] = Counter()
    made_by: dict[int, str] = {}
    taken: list[tuple[int, str]] = []

    def note_made(name: str, output: Tensor) -> None:
        calls[name] += 1
        made_by[id(output)] = name

    def note_taken(name: str, x: Tensor) -> None:
        calls[name] += 1
        taken.append((id(x), name))

    for name, layer in probe.named_modules():
        if _is_convolution(layer):
            layer.register_forward_hook(lambda _, inputs, output, name=name: note_made(name, output))
        elif _can_fold(layer):
            layer.register_forward_pre_hook(lambda _, inputs, name=name: note_taken(name, inputs[0]))
    try:
        with torch.no_grad(), _Uses() as uses:
            uses.count(probe(torch.empty(shape, device="meta")))
    except Exception as error:  # whatever a network of any origin may raise
        raise ModelError(
            f"{type(module).__name__} cannot be folded: it does not run on an empty input of shape {shape} "
            f"({error}); pass fold an input_shape that it accepts"
        ) from error
    return {
        made_by[tensor]: norm
        for tensor, norm in taken
        if tensor in made_by and uses.counts[tensor] == calls[norm] == calls[made_by[tensor]] == 1
    }


def _guess_input_shape(module: nn.Module) -> tuple[int, ...]:
    """(1, C, 128, ...) with the network's own `in_channels`, or its first convolution's."""
    convolution: Any = next((layer for layer in module.modules() if _is_convolution(layer)), None)
    if convolution is None:
        raise ModelError(f"{type(module).__name__} cannot be folded: it has no convolution to fold into")
    channels = getattr(module, "in_channels", convolution.in_channels)
    return (1, channels, *[_PROBE_SIZE] * len(convolution.kernel_size))


@torch.no_grad()
def _fold_layers(convolution: Any, norm: Any | None) -> nn.Module:
    """A plain convolution that does what `convolution`, then `norm`, do in evaluation mode."""
    standardized = hasattr(convolution, "standardized_weight")
    weight = convolution.standardized_weight() if standardized else convolution.weight
    scale = weight.new_ones(convolution.out_channels, dtype=torch.float64)
    shift = torch.zeros_like(scale) if convolution.bias is None else convolution.bias.double()
    if norm is not None:
        scale = torch.rsqrt(norm.running_var.double() + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight.double()
        shift = (shift - norm.running_mean.double()) * scale
        shift = shift if norm.bias is None else shift + norm.bias.double()
    if isinstance(convolution, _TRANSPOSED):  # weights (in, out / groups, ...)
        grouped = scale.view(convolution.groups, 1, -1).expand(-1, weight.size(0) // convolution.groups, -1)
        factors = grouped.reshape(weight.shape[:2])
    else:  # weights (out, in / groups, ...)
        factors = scale.view(-1, 1)
    factors = factors.view(*factors.shape, *[1] * (weight.dim() - 2))
    plain = _make_plain(convolution)
    plain.weight = nn.Parameter((weight * factors).to(weight.dtype))
    has_bias = norm is not None or convolution.bias is not None
    plain.bias = nn.Parameter(shift.to(weight.dtype)) if has_bias else None
    return plain.train(convolution.training)


def _make_plain(convolution: Any) -> Any:
    """A convolution of torch's own with the same geometry, its weights yet to be set."""
    transposed = isinstance(convolution, _TRANSPOSED)
    dimensions = len(convolution.kernel_size)
    return (_TRANSPOSED if transposed else _CONVOLUTIONS)[dimensions - 1](
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size,
        stride=convolution.stride,
        padding=convolution.padding,
        dilation=convolution.dilation,
        groups=convolution.groups,
        padding_mode=convolution.padding_mode,
        device="meta",  # draws no random weights
        **({"output_padding": convolution.output_padding} if transposed else {}),
    )
