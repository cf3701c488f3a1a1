"""Folds normalization into the convolutions before it, for inference."""

import copy
from collections import Counter
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from medseg_brn.errors import ModelError
from medseg_brn.networks.batch_renorm import BatchRenorm
from medseg_brn.networks.convolution import Conv3d
from medseg_brn.networks.mabn import MABN

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PROBE_SIZES = (16, 32, 64, 128)  # voxels per axis, tried in turn until the network's strides divide one


def fold(module: nn.Module, input_shape: tuple[int, ...] | None = None) -> nn.Module:
    """A copy for inference with normalization folded into the convolutions before it.

    With σ = sqrt(running_var + eps), the convolution's weights become W·γ/σ and its bias β + (b - μ)·γ/σ.
    A renorm, MABN or BatchNorm layer is folded where it takes the output of a convolution, directly and
    as the only one that does; this is found out by running the network on a small blank input. Other
    layers (a norm before its convolution, or an instance norm) stay as they are. Weight-standardized
    convolutions become plain ones.

    Args:
        module: a network; not changed.
        input_shape: (1, C, ...) of an input that it accepts; None tries 16 to 128 voxels per axis with
            the channels of the network's `in_channels` or first convolution.

    Returns:
        The copy, in evaluation mode; same output within rounding.

    Raises:
        ModelError: no convolution, or the network cannot be run to find what follows what.
    """
    folded = _copy(module).eval()
    norm_after = _find_pairs(folded, input_shape)
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
    return type(layer) in (*_CONVOLUTIONS, *_TRANSPOSED, Conv3d) or hasattr(layer, "standardized_weight")


def _can_fold(layer: nn.Module) -> bool:
    return isinstance(layer, (BatchRenorm, MABN, _BatchNorm)) and layer.running_var is not None


class _Recorder(TorchFunctionMode):
    """Records, while a network runs, which layer made each tensor and what took it."""

    def __init__(self) -> None:
        super().__init__()
        self.uses: Counter[int] = Counter()  # by tensor: functions it is an argument of
        self.calls: Counter[str] = Counter()  # by layer
        self.made_by: dict[int, str] = {}  # tensor to convolution
        self.taken_by: list[tuple[int, str]] = []  # tensor and norm
        self._kept: list[Any] = []  # while a tensor exists, no other gets its id

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):  # not a shape or the like
            self.count_uses((args, kwargs))
            self._kept.append(result)
        return result

    def count_uses(self, tree: Any) -> None:
        """Counts one use of every tensor in nested arguments or results."""
        self.uses.update(id(leaf) for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))

    def after_convolution(self, name: str, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        """A forward hook for the convolution of this name."""
        self.calls[name] += 1
        self.made_by[id(output)] = name

    def before_norm(self, name: str, layer: nn.Module, inputs: Any) -> None:
        """A forward pre-hook for the norm of this name."""
        self.calls[name] += 1
        self.taken_by.append((id(inputs[0]), name))

    def pairs(self) -> dict[str, str]:
        """From a convolution's name to that of the norm that alone takes its output.

        Layers that ran more than once are left out: what followed once need not follow always.
        """
        return {
            self.made_by[tensor]: norm
            for tensor, norm in self.taken_by
            if tensor in self.made_by
            and self.uses[tensor] == self.calls[norm] == self.calls[self.made_by[tensor]] == 1
        }


def _find_pairs(network: nn.Module, input_shape: tuple[int, ...] | None) -> dict[str, str]:
    """From convolution to norm by name, found by running the network on a small blank input."""
    convolution: Any = next((layer for layer in network.modules() if _is_convolution(layer)), None)
    if convolution is None:
        raise ModelError(f"{type(network).__name__} cannot be folded: it has no convolution to fold into")
    channels, dimensions = (
        getattr(network, "in_channels", convolution.in_channels),
        len(convolution.kernel_size),
    )
    shapes = [input_shape] if input_shape else [(1, channels, *[size] * dimensions) for size in _PROBE_SIZES]
    for shape in shapes:
        try:
            return _record(network, convolution.weight.new_zeros(shape)).pairs()
        except Exception as error:  # whatever a network of any origin may raise
            failure = error
    raise ModelError(
        f"{type(network).__name__} cannot be folded: it does not run on a blank input of shape {shapes[-1]} "
        f"({failure}); pass fold an input_shape that it accepts"
    ) from failure


@torch.no_grad()
def _record(network: nn.Module, blank: Tensor) -> _Recorder:
    recorder = _Recorder()
    hooks = []
    for name, layer in network.named_modules():
        if _is_convolution(layer):
            hooks.append(layer.register_forward_hook(partial(recorder.after_convolution, name)))
        elif _can_fold(layer):
            hooks.append(layer.register_forward_pre_hook(partial(recorder.before_norm, name)))
    try:
        with recorder:
            recorder.count_uses(network(blank))
    finally:
        for hook in hooks:
            hook.remove()
    return recorder


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
