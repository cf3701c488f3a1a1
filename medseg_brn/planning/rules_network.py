"""Rules of the network: where it pools, how large its kernels are, how wide and deep it is.

Nothing here knows of budgets: `candidates.py` tries patch sizes and widths, and these rules say which network
goes with each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from medseg_brn.planning import recipe
from medseg_brn.planning.choice import Choice, Choices
from medseg_brn.reports.wording import times

Size3 = tuple[int, int, int]
KERNEL = 3


@dataclass(frozen=True)
class Levels:
    """Strides and kernels per level, finest first, and the patch size that fits them.

    Attributes:
        strides: how much coarser each level is than the one before, (1, 1, 1) at the finest.
        kernels: 1 along an axis that is still coarser than twice the finest axis, else 3.
        patch: a multiple of the product of the strides, along each axis.
    """

    strides: tuple[Size3, ...]
    kernels: tuple[Size3, ...]
    patch: Size3

    @property
    def coarsest(self) -> Size3:
        """Voxels of a patch at the coarsest level."""
        x, y, z = (
            size // prod(stride[axis] for stride in self.strides) for axis, size in enumerate(self.patch)
        )
        return x, y, z


def choose_levels(size: Sequence[int], spacing_mm: Sequence[float]) -> Levels:
    """The levels for patches of about `size` voxels of `spacing_mm`.

    An axis is halved as long as at least 4 voxels are left of it, and only while it is not more than twice
    as coarse as the finest axis that can still be halved (nnU-Net's rule): thick slices wait until the other
    axes have caught up, and until then kernels do not reach from one slice to the next.
    """
    now_mm, left, halved = list(spacing_mm), list(size), [0, 0, 0]
    strides: list[Size3] = [(1, 1, 1)]
    kernels = [_choose_kernel(now_mm, left)]
    while len(strides) < recipe.MOST_LEVELS:
        roomy = [axis for axis in range(3) if left[axis] // 2 >= recipe.SMALLEST_EDGE_VOXELS]
        if not roomy:
            break
        finest = min(now_mm[axis] for axis in roomy)
        pooled = [axis for axis in roomy if now_mm[axis] <= recipe.ANISOTROPIC_RATIO * finest]
        for axis in pooled:
            now_mm[axis] *= 2
            left[axis] //= 2
            halved[axis] += 1
        x, y, z = (2 if axis in pooled else 1 for axis in range(3))
        strides.append((x, y, z))
        kernel = _choose_kernel(now_mm, left)
        # Once a kernel reaches along an axis it does so at every coarser level.
        x, y, z = (max(new, old) for new, old in zip(kernel, kernels[-1], strict=True))
        kernels.append((x, y, z))
    x, y, z = (_nearest_multiple(length, 2**times) for length, times in zip(size, halved, strict=True))
    return Levels(tuple(strides), tuple(kernels), (x, y, z))


def _nearest_multiple(length: int, stride: int) -> int:
    """The multiple of `stride` that is nearest to `length`; of two the smaller, which needs no padding."""
    return -(-(2 * length - stride) // (2 * stride)) * stride


def _choose_kernel(spacing_mm: Sequence[float], size: Sequence[int]) -> Size3:
    finest = min(spacing_mm)
    x, y, z = (
        1 if step > recipe.ANISOTROPIC_RATIO * finest or voxels == 1 else KERNEL
        for step, voxels in zip(spacing_mm, size, strict=True)
    )
    return x, y, z


def tell_strides(levels: Levels) -> str:
    """Why the strides are as they are."""
    total = [prod(stride[axis] for stride in levels.strides) for axis in range(3)]
    return (
        f"an axis is halved while {recipe.SMALLEST_EDGE_VOXELS} voxels are left and it is at most twice as "
        f"coarse as the finest: {times(total)} in all, {times(levels.coarsest)} voxels at the coarsest level"
    )


def tell_kernels(levels: Levels) -> str:
    """Why the kernels are as they are."""
    if all(kernel == (KERNEL,) * 3 for kernel in levels.kernels):
        return "3 voxels along every axis: none is more than twice as coarse as another"
    slices = [axis for axis in range(3) if levels.patch[axis] == 1]
    told = [f"1 along axis {axis}, which has a single voxel" for axis in slices]
    if any(kernel[axis] == 1 for kernel in levels.kernels for axis in range(3) if axis not in slices):
        told.append(
            "1 along an axis that is more than twice as coarse as the finest one, until they are alike"
        )
    return "; ".join(told)


def choose_network(levels: Levels, width: float, device: str) -> Choices:
    """Option of the network's section -> choice.

    Args:
        levels: of the network.
        width: share of the recipe's channels, 1 or less.
        device: "cpu" or "cuda".
    """
    depth = len(levels.strides)
    encoder, decoder = choose_blocks(depth, device)
    return {
        "channels": choose_channels(depth, width, device),
        "strides": Choice(levels.strides, tell_strides(levels)),
        "kernels": Choice(levels.kernels, tell_kernels(levels)),
        "encoder": Choice(recipe.ENCODER, "the recipe's"),
        "encoder_blocks": encoder,
        "decoder_blocks": decoder,
        "norm": Choice("batch_renorm", "trains on small batches, and folds away at inference"),
        "renorm_schedule": Choice(recipe.RENORM_SCHEDULE, "the recipe's, as shares of the run"),
        "weight_standardization": Choice(
            recipe.WEIGHT_STANDARDIZATION, "the recipe's; folds away at inference"
        ),
        "deep_supervision": choose_deep_supervision(depth),
    }


def choose_channels(num_levels: int, width: float, device: str) -> Choice[tuple[int, ...]]:
    """Feature channels per level.

    Args:
        num_levels: number of levels, at least 1.
        width: share of the recipe's channels, 1 or less.
        device: "cpu" or "cuda".
    """
    first, second = recipe.CPU_CHANNELS if device == "cpu" else recipe.GPU_CHANNELS
    wide = [first, *(second * 2**level for level in range(num_levels - 1))]
    channels = tuple(max(4, round(min(count, recipe.MOST_CHANNELS) * width / 4) * 4) for count in wide)
    why = "few at full resolution, where a CPU's time goes, " if device == "cpu" else "from 32, "
    reason = f"{why}then doubled a level, at most {recipe.MOST_CHANNELS}"
    if width < 1:
        reason += f"; all times {width:g} to fit the budgets"
    return Choice(channels, reason)


def choose_blocks(
    num_levels: int, device: str
) -> tuple[Choice[tuple[int, ...]], Choice[tuple[int, ...] | int]]:
    """Convolutions of each encoder and of each decoder level, finest first; 1 where there is no decoder."""
    finest = recipe.CPU_BLOCKS_FULL_RESOLUTION if device == "cpu" else recipe.BLOCKS
    encoder = (finest, *[recipe.BLOCKS] * (num_levels - 1))
    decoder = (finest, *[recipe.BLOCKS] * (num_levels - 2))
    reason = "full resolution is where a CPU's time goes: one there" if device == "cpu" else "two a level"
    return Choice(encoder, reason), Choice(decoder if num_levels > 1 else 1, reason)


def choose_deep_supervision(num_levels: int) -> Choice[bool]:
    """Whether coarser decoder levels are trained too."""
    wanted = num_levels >= recipe.DEEP_SUPERVISION_LEVELS
    reason = (
        f"{num_levels} levels: the coarsest are far from the loss"
        if wanted
        else f"{num_levels} levels are near enough to the loss"
    )
    return Choice(wanted, reason)
