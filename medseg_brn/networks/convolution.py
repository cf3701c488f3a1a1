"""The network's convolutions: plain, and with standardized weights."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class Conv3d(nn.Conv3d):
    """`nn.Conv3d`, with right gradients also where autocast to bf16 meets a short first axis on the CPU.

    oneDNN's bf16 kernel for the weights' gradient reads memory that it does not own, and gives values without
    meaning, often infinite, where the first axis has more than one voxel and fewer than the kernel: 2 voxels
    for a kernel of 3, as at the coarsest level of a small patch (found with torch 2.13 on processors with
    AVX-512 bf16). Such features are small, so there fp32 costs nothing worth saving.
    """

    def reset_parameters(self) -> None:
        """Draw the weights as `nn.Conv3d` does; the bias, if any, is zero.

        A drawn bias would shift all later draws: from one seed, networks with and without biases, that is
        without and with norms, would begin with different weights.
        """
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def _conv_forward(self, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        short = 1 < features.shape[2] < self.kernel_size[0]
        if not (short and features.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
            return super()._conv_forward(features, weight, bias)
        with torch.autocast("cpu", enabled=False):
            convolved = super()._conv_forward(features.float(), weight.float(), bias)
        return convolved.to(torch.get_autocast_dtype("cpu"))


class WeightStandardizedConv3d(Conv3d):
    """A 3D convolution whose filters always have mean 0 and variance 1 / fan_in.

        ŵ = (w − mean(w)) / sqrt(fan_in · var(w) + ε),   mean and variance over one output filter

    Source: Qiao et al. 2019, arXiv:1903.10520. Training and inference compute the same function.
    Where a normalization follows (no bias), its γ and β scale and shift the output and the filters
    have no gain of their own: it would be one more parameter for the same thing. Without one
    (`bias=True`), each filter has a learnable gain beside its bias, initially sqrt(2), which keeps
    the signal's variance through a (leaky) ReLU.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int, int],
        stride: int | tuple[int, int, int] = 1,
        padding: int | tuple[int, int, int] = 0,
        bias: bool = True,
        eps: float = 1e-5,
    ) -> None:
        """Make a convolution as `nn.Conv3d` does; `eps` is added to fan_in · variance."""
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=bias)
        self.eps = eps
        self.gain = nn.Parameter(torch.full((out_channels,), math.sqrt(2.0))) if bias else None

    def standardized_weight(self) -> Tensor:
        """Return the weights that the convolution applies, shape (out, in, kx, ky, kz).

        They keep the memory format of `weight`. One fused kernel does the work (layer norm over each
        filter), about eight times faster than the same thing written element by element.
        """
        # Strides tell the format apart also where there is one input channel, which is "contiguous" in both.
        channels_last = self.weight.stride(1) == 1 and math.prod(self.kernel_size) > 1
        filters = self.weight.permute(0, 2, 3, 4, 1) if channels_last else self.weight
        fan_in = filters[0].numel()
        standardized = functional.layer_norm(filters, filters.shape[1:], eps=self.eps / fan_in) * fan_in**-0.5
        if channels_last:
            standardized = standardized.permute(0, 4, 1, 2, 3)
        return standardized if self.gain is None else standardized * self.gain.view(-1, 1, 1, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Convolve (N, in, X, Y, Z) with the standardized weights."""
        return self._conv_forward(features, self.standardized_weight(), self.bias)
