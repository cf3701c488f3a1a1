"""What a training step costs, by a rough model: seconds and bytes of one network on one patch size.

    seconds = unit_seconds x (multiplications + 250 x features + 230 x weights)
    bytes = base + weights x (values, gradients, optimizer, average) + features x bytes per feature

"Multiplications" are those of the forward pass, "features" the numbers that convolutions, norms,
concatenations and upsamplings write in it; the backward pass does about twice as much, which the unit
holds. How long a unit takes is measured on the machine (`trial.py`). The two weights come from six
networks of 8 to 320 channels timed on a CPU with bf16: the model met each of them within 20 %.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medseg_brn.config import NetworkConfig

FEATURE_UNITS = 250
WEIGHT_UNITS = 230
# fp32 values, gradients, two moments of AdamW and the moving average.
BYTES_PER_WEIGHT = 5 * 4
# What is held of a feature between forward and backward pass, and the largest temporary tensors' part of it.
BYTES_PER_FEATURE = {"bf16": 3.0, "fp32": 5.0}
# Of logits: fp32 copies, probabilities, one-hot classes and their gradients.
BYTES_PER_LOGIT = 36
# Activation checkpointing keeps the levels' inputs only, and computes the forward pass twice.
CHECKPOINTED_FEATURES = 0.4
CHECKPOINTED_UNITS = 4 / 3
# The training process beside what its network needs, as three runs measured it; the context's part of a GPU's
# memory, which is a guess.
BASE_BYTES = {"cpu": 560 * 2**20, "cuda": 600 * 2**20}

Size3 = tuple[int, int, int]


@dataclass(frozen=True)
class Work:
    """What one training step does, whatever the machine."""

    multiplications: float
    features: float
    weights: float
    logits: float

    @property
    def units(self) -> float:
        """Multiplications, with the other work in terms of them."""
        return self.multiplications + FEATURE_UNITS * self.features + WEIGHT_UNITS * self.weights


@dataclass(frozen=True)
class Cost:
    """Predicted cost of one step."""

    step_seconds: float
    memory_bytes: float


def count_work(
    network: NetworkConfig, patch: Sequence[int], batch_size: int, in_channels: int, num_outputs: int
) -> Work:
    """The work of a forward pass on a batch of patches, level by level."""
    channels, depth = network.channels, len(network.channels)
    strides = network.strides or ((1, 1, 1),) + ((2, 2, 2),) * (depth - 1)
    kernels = network.kernels or ((3, 3, 3),) * depth
    is_residual = network.encoder == "residual"
    encoder = _per_level(network.encoder_blocks, depth, 2 if is_residual else 1)
    encoder[0] += is_residual  # the stem, which is the first of plain blocks
    decoder = _per_level(network.decoder_blocks, depth - 1, 1)
    voxels = float(batch_size * math.prod(patch))
    finest = voxels
    multiplications, features, weights = 0.0, 0.0, 0.0
    for level, width in enumerate(channels):
        voxels /= math.prod(strides[level])
        taps = math.prod(kernels[level])
        entering = channels[level - 1] if level else in_channels
        convolutions = [entering * width] + [width * width] * (encoder[level] - 1)
        written = 2.0 * width * encoder[level]
        if level < depth - 1:
            convolutions += [2 * width * width] + [width * width] * (decoder[level] - 1)
            # the upsampled features, and they and the skip features side by side
            written += width * (2 * decoder[level] + 3)
            upsampling = channels[level + 1] * width
            multiplications += voxels * upsampling
            weights += upsampling * math.prod(strides[level + 1])
        multiplications += voxels * taps * sum(convolutions)
        weights += taps * sum(convolutions)
        features += voxels * written
    return Work(multiplications, features, weights, finest * num_outputs)


def predict_cost(
    work: Work, unit_seconds: float, *, device: str, precision: str, checkpointing: bool = False
) -> Cost:
    """Seconds and bytes of a step.

    Args:
        work: of one forward pass.
        unit_seconds: of one unit of work on this machine, forward, backward and update.
        device: "cpu" or "cuda": whose memory is meant.
        precision: "bf16" or "fp32".
        checkpointing: whether activations are computed again in the backward pass.
    """
    kept = CHECKPOINTED_FEATURES if checkpointing else 1.0
    repeated = CHECKPOINTED_UNITS if checkpointing else 1.0
    memory = (
        BASE_BYTES[device]
        + BYTES_PER_WEIGHT * work.weights
        + BYTES_PER_FEATURE[precision] * work.features * kept
        + BYTES_PER_LOGIT * work.logits
    )
    return Cost(unit_seconds * work.units * repeated, memory)


def _per_level(counts: int | Sequence[int], levels: int, each: int) -> list[int]:
    """Convolutions of each level."""
    given = [counts] * levels if isinstance(counts, int) else list(counts)
    return [each * count for count in given]
