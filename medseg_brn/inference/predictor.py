"""A trained network made ready for inference, and the way it may be run."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medseg_brn.errors import ConfigError
from medseg_brn.inference.lowering import lower
from medseg_brn.inference.plan import Plan, make_plan
from medseg_brn.networks.folding import fold
from medseg_brn.networks.levels import Level, list_levels
from medseg_brn.networks.normalization import find_tile_dependence
from medseg_brn.networks.quantization import Ranges, check_quantizable, quantize
from medseg_brn.networks.unet3d import Size3, UNet3d


class Predictor:
    """A trained network made ready for inference.

    Attributes:
        network: folded, in evaluation mode, on `device`, channels last; in `dtype` where `levels` are known.
        levels: of a network that is evaluated exactly; None where the answer depends on the tile.
        tile_dependence: why it does; None where it does not.
        patch_size: of windows, in voxels.
        device: where it computes.
        dtype: what its convolutions compute in; uint8 where they are quantized.
        image_dtype: what the network takes.
        mirrored_channels: for each channel of the logits the one that it is in an image mirrored along axis
            0; None where all stay what they are.
    """

    def __init__(
        self,
        network: nn.Module,
        patch_size: Size3,
        device: torch.device,
        dtype: torch.dtype,
        activation_ranges: Ranges | None = None,
        mirrored_channels: Sequence[int] | None = None,
    ) -> None:
        """Fold a copy of the network, which itself stays as it is.

        Args:
            network: a trained U-Net, or another network with `in_channels` and `num_classes`, which is
                evaluated in overlapping windows.
            patch_size: of windows, in voxels.
            device: where to compute.
            dtype: float32, bfloat16, or uint8 for a quantized network.
            activation_ranges: what `quantize` takes.
            mirrored_channels: of a network that tells left from right.

        Raises:
            ConfigError: uint8 is asked for, and the network cannot be quantized or has no ranges.
        """
        unet: Any = network
        if dtype == torch.uint8:
            check_quantizable(unet)
        self.patch_size, self.device, self.dtype = patch_size, device, dtype
        self.mirrored_channels = mirrored_channels
        self.image_dtype = torch.float32 if dtype == torch.uint8 else dtype
        self.tile_dependence = find_tile_dependence(network)
        self.num_classes = unet.num_classes
        self.levels: list[Level] | None = None
        if not isinstance(network, UNet3d):
            self.tile_dependence = "only this toolkit's own U-Nets are evaluated level by level"
            self.network: Any = copy.deepcopy(network).eval().requires_grad_(False)
            self.network.to(device)
            return
        # The smallest image that the network takes: an instance norm refuses a single voxel.
        voxels = 1 if self.tile_dependence is None else 2
        folded: Any = fold(network, (1, unet.in_channels, *(voxels * step for step in unet.strides_total)))
        if self.tile_dependence is None:
            self.network = (
                _quantize(folded, activation_ranges) if dtype == torch.uint8 else lower(folded, device, dtype)
            )
            self.levels = list_levels(self.network)
        else:
            self.network = folded.requires_grad_(False)
            self.network.to(device, memory_format=torch.channels_last_3d)

    def plan(self, shape: Sequence[int], budget_bytes: float) -> Plan:
        """Choose how a volume of `shape` is computed exactly; see `make_plan`."""
        assert self.levels is not None, "only exact evaluation is planned"
        return make_plan(self.levels, self.num_classes, shape, self.dtype.itemsize, budget_bytes)

    def run_windows(self, windows: Tensor) -> Tensor:
        """Return the logits of windows (N, C, X, Y, Z)."""
        return self.network(windows.to(self.image_dtype) if self.levels is not None else windows)


def _quantize(folded: Any, ranges: Ranges | None) -> Any:
    if ranges is None:
        raise ConfigError(
            "Precision int8 was asked for, but this model's description has no activation_ranges, which it "
            "takes; measure them on training scans with medseg-brn models quantize MODEL SCANS... -o FOLDER, "
            "and use FOLDER instead"
        )
    return quantize(folded, ranges)
