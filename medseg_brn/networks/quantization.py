"""Post-training quantization of a folded U-Net: ranges measured on images, then layers in 8-bit integers.

The plain float network is kept by who needs it; quantizing takes a moment and needs nothing but the ranges.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from medseg_brn.errors import ConfigError
from medseg_brn.networks.normalization import find_tile_dependence
from medseg_brn.networks.quantized_layers import QuantizedConv3d, QuantizedStem, QuantizedUpsampling, Scale
from medseg_brn.networks.unet3d import ResidualBlock, UNet3d

Ranges = Mapping[str, tuple[float, float]]


@torch.inference_mode()
def measure_ranges(folded: nn.Module, images: Iterable[Tensor]) -> dict[str, tuple[float, float]]:
    """Return the least and greatest number that each convolution takes and gives over all images.

    Args:
        folded: a folded network.
        images: (N, C, X, Y, Z) each, as the network takes them.

    Returns:
        Under `LAYER.input` and `LAYER.output`, LAYER being a convolution's name in the network.
    """
    with recorded_ranges(folded) as ranges:
        for image in images:
            folded(image)
    return ranges


@contextmanager
def recorded_ranges(folded: nn.Module) -> Iterator[dict[str, tuple[float, float]]]:
    """Yields ranges as `measure_ranges` returns them, which grow with all that the network computes."""
    ranges: dict[str, tuple[float, float]] = {}

    def note(key: str, values: Tensor) -> None:
        low, high = (float(value) for value in torch.aminmax(values))
        known = ranges.get(key, (low, high))
        ranges[key] = min(low, known[0]), max(high, known[1])

    def note_both(name: str, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        note(f"{name}.input", inputs[0])
        note(f"{name}.output", output)

    hooks = [
        layer.register_forward_hook(partial(note_both, name))
        for name, layer in folded.named_modules()
        if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d)
    ]
    try:
        yield ranges
    finally:
        for hook in hooks:
            hook.remove()


def check_quantizable(network: nn.Module) -> None:
    """Make sure that a network can be quantized.

    Raises:
        ConfigError: a norm of it does not fold, or its encoder is residual.
    """
    if not isinstance(network, UNet3d):
        raise ConfigError(
            "This network cannot compute in int8: it is none of this toolkit's own U-Nets; choose precision "
            "auto"
        )
    reason = find_tile_dependence(network)
    if reason is not None:
        raise ConfigError(
            f"This network cannot compute in int8: {reason}, which cannot be folded into the convolutions; "
            "choose precision auto, or train with norm batch_renorm"
        )
    if any(isinstance(layer, ResidualBlock) for layer in network.modules()):
        raise ConfigError(
            "This network cannot compute in int8: its encoder is residual, and only plain encoders can so "
            "far; choose precision auto, or train with encoder plain"
        )


def quantize(folded: UNet3d, ranges: Ranges) -> UNet3d:
    """Return a copy that computes in 8-bit integers, from a float32 image to float32 logits.

    All that is concatenated in the decoder has one scale: the skip features get it where they are made.

    Args:
        folded: a folded network on the CPU; not changed.
        ranges: from `measure_ranges`.

    Raises:
        ConfigError: the network cannot be quantized, or a range is missing.
    """
    check_quantizable(folded)
    scale = partial(_find_scale, ranges)
    source: Any = folded
    depth = len(source.encoder)
    network: Any = copy.deepcopy(folded).requires_grad_(False)
    network.coarser_heads = nn.ModuleList()
    joined = [scale(f"decoder.{depth - 2 - level}.0.0.input") for level in range(depth - 1)]
    after = [*(scale(f"upsampling.{position}.input") for position in range(depth - 1)), scale("head.input")]

    taken = scale("encoder.0.0.0.input") if len(source.encoder[0]) else [*joined, after[0]][0]
    network.stem = QuantizedStem(source.stem[0], source.stem[2].negative_slope, taken)
    for level, given in enumerate([*joined, after[0]]):
        network.encoder[level] = _quantize_blocks(
            f"encoder.{level}", source.encoder[level], taken, given, ranges
        )
        taken = given
    for position, (upsampling, blocks) in enumerate(zip(source.upsampling, source.decoder, strict=True)):
        common, given = joined[depth - 2 - position], after[position + 1]
        network.upsampling[position] = QuantizedUpsampling(upsampling, taken, common)
        network.decoder[position] = _quantize_blocks(f"decoder.{position}", blocks, common, given, ranges)
        taken = given
    network.head = QuantizedConv3d(source.head, taken)
    return network.eval()


def _quantize_blocks(name: str, blocks: Any, taken: Scale, given: Scale, ranges: Ranges) -> nn.Sequential:
    """Quantize consecutive blocks, each of which gives the bytes that the next one takes."""
    between = [_find_scale(ranges, f"{name}.{number}.0.input") for number in range(1, len(blocks))]
    scales = [taken, *between, given]
    return nn.Sequential(
        *(
            QuantizedConv3d(
                convolution,
                scales[number],
                scales[number + 1],
                before=_find_scale(ranges, f"{name}.{number}.0.output"),
                slope=activation.negative_slope,
            )
            for number, (convolution, _, activation) in enumerate(blocks)
        )
    )


def _find_scale(ranges: Ranges, key: str) -> Scale:
    if key not in ranges:
        raise ConfigError(
            f"This network cannot compute in int8: its activation ranges lack {key!r}; measure them with "
            "medseg-brn models quantize MODEL SCANS... -o FOLDER"
        )
    return Scale.spanning(*ranges[key])
