"""nnU-Net's networks are U-Nets of ours: which of its tensors is which.

    nnU-Net                                       here
    encoder.stages.0.0.convs.0   (plain)          stem
    encoder.stages.0.0.convs.2   (plain)          encoder.0.1
    encoder.stages.3.0.convs.0   (plain)          encoder.3.0
    encoder.stem.convs.0         (residual)       stem
    encoder.stages.3.blocks.1    (residual)       encoder.3.1
    decoder.transpconvs.0                         upsampling.0
    decoder.stages.0.convs.1                      decoder.0.1
    decoder.seg_layers.0 … the last one           coarser_heads.0 … head

Each block is a convolution, an InstanceNorm and a LeakyReLU of slope 0.01 on both sides; a residual block has
ResNet-D's shortcut on both. The bias of a convolution before an InstanceNorm, which subtracts the mean, has
no effect and is left out.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from medseg_brn.errors import ModelError
from medseg_brn.networks.unet3d import UNet3d


def translate_weights(
    theirs: Mapping[str, Tensor], network: UNet3d, axes: Sequence[int], place: str
) -> dict[str, Tensor]:
    """Return nnU-Net's weights under our names and in our axes.

    Args:
        theirs: nnU-Net's `network_weights`.
        network: ours, which may be without values.
        axes: for each of X, Y, Z the axis of nnU-Net's kernels.
        place: named in errors.

    Raises:
        ModelError: a tensor is missing, has another shape, or is none of such a network's.
    """
    theirs = {name.removeprefix("module."): tensor for name, tensor in theirs.items()}
    residual = "encoder.stem.convs.0.conv.weight" in theirs
    depth, weights, used = len(network.encoder), {}, set()
    for name, expected in network.state_dict().items():
        layer, _, kind = name.rpartition(".")
        is_norm = isinstance(network.get_submodule(layer), nn.InstanceNorm3d)
        source = f"{_name_theirs(layer.split('.'), residual, is_norm, depth)}.{kind}"
        found = theirs.get(source)
        if found is None and layer.startswith("upsampling") and kind == "bias":
            found = torch.zeros(expected.shape)  # of networks with conv_bias false
        if found is None:
            raise ModelError(f"{place}: {source} is missing; plans.json describes another network")
        if found.dim() == 5:
            found = found.permute(0, 1, *(axis + 2 for axis in axes))
        if found.shape != expected.shape:
            raise ModelError(
                f"{place}: {source} has shape {tuple(found.shape)} (along X, Y, Z), and plans.json and "
                f"dataset.json make it {tuple(expected.shape)}; take both from the folder of this checkpoint"
            )
        weights[name] = found.contiguous()
        used.add(source)
    _refuse_unknown(theirs, used, place)
    return weights


def _name_theirs(layer: Sequence[str], residual: bool, is_norm: bool, depth: int) -> str:
    """Return nnU-Net's name of a layer of ours, which is given by the parts of its own."""
    kind = "norm" if is_norm else "conv"
    match layer:
        case ["stem", _]:
            return f"encoder.{'stem' if residual else 'stages.0.0'}.convs.0.{kind}"
        case ["encoder", level, block, "body", number]:
            return f"encoder.stages.{level}.blocks.{block}.conv{1 if int(number) < 2 else 2}.{kind}"
        case ["encoder", level, block, "shortcut", number]:  # where it strides, a pooling stands first
            return f"encoder.stages.{level}.blocks.{block}.skip.{int(number) - is_norm}.{kind}"
        case ["encoder", level, block, _]:
            return f"encoder.stages.{level}.0.convs.{int(block) + (level == '0')}.{kind}"
        case ["upsampling", position]:
            return f"decoder.transpconvs.{position}"
        case ["decoder", position, block, _]:
            return f"decoder.stages.{position}.convs.{block}.{kind}"
        case ["coarser_heads", position]:
            return f"decoder.seg_layers.{position}"
    return f"decoder.seg_layers.{depth - 2}"


def _refuse_unknown(theirs: Mapping[str, Tensor], used: set[str], place: str) -> None:
    """Raise ModelError for tensors that change what the network computes and were not taken."""
    for name in theirs:
        repeats = name.startswith("decoder.encoder.") or ".all_modules." in name
        is_idle_bias = name.endswith(".conv.bias") and f"{name.removesuffix('bias')}weight" in used
        if not (name in used or repeats or is_idle_bias):
            raise ModelError(
                f"{place}: {name} is no tensor of the network that plans.json describes; networks that a "
                "trainer of its own changed cannot be imported"
            )
