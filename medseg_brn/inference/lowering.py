"""A folded network in the form that computes fastest on its device."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from medseg_brn.networks.convolution import Conv3d
from medseg_brn.networks.folding import replace_layer


class OneDnnConv3d(nn.Conv3d):
    """A convolution for inference on the CPU that always uses oneDNN.

    torch's own choice sends fp32 samples of few channels and voxels, one at a time, to an older kernel that
    was measured two to seven times slower; and tiles are always one at a time.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Convolve (1, in, X, Y, Z)."""
        assert not isinstance(self.padding, str), "only convolutions with numbers for padding are replaced"
        padding = self.padding
        return torch.mkldnn_convolution(
            features, self.weight, self.bias, padding, self.stride, self.dilation, self.groups
        )


class FloatAvgPool3d(nn.AvgPool3d):
    """Average pooling in float32, for torch has none in bfloat16 on the CPU."""

    def forward(self, features: Tensor) -> Tensor:
        """Pool (N, C, X, Y, Z)."""
        return super().forward(features.float()).to(features.dtype)


def lower(folded: nn.Module, device: torch.device, dtype: torch.dtype) -> Any:
    """Return a copy of a folded network for inference: on the device, in the number format, channels last."""
    network = copy.deepcopy(folded).requires_grad_(False)
    network.to(device, dtype, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        for layer in [layer for layer in network.modules() if _is_plain(layer)]:
            replace_layer(network, layer, _as_one_dnn(layer))
    for layer in [layer for layer in network.modules() if type(layer) is nn.AvgPool3d]:
        replace_layer(network, layer, FloatAvgPool3d(layer.kernel_size, layer.stride))
    return network


def _is_plain(layer: nn.Module) -> bool:
    return (
        type(layer) in (nn.Conv3d, Conv3d)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def _as_one_dnn(layer: nn.Module) -> OneDnnConv3d:
    direct = OneDnnConv3d.__new__(OneDnnConv3d)
    direct.__dict__.update(layer.__dict__)
    return direct
