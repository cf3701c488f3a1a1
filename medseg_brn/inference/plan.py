"""Plans: in which tiles each level of a network is computed, and where its features wait, within a budget.

A network is evaluated level by level: the encoder from fine to coarse, the decoder back. Each level's
features are computed tile by tile, every tile with the few voxels of halo that its own convolutions spoil,
and kept whole until the next level has used them. So no level ever needs the others' receptive field, and
nearly every multiplication is done once. What can be chosen:

- the tiles: smaller ones need less memory while they are computed, and more halo in all;
- where features wait: in memory, or in files for the finest levels, whose features are the largest;
- the finest skip features: kept, or computed a second time when the decoder needs them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

from medseg_brn.errors import ConfigError
from medseg_brn.inference.costs import Costs
from medseg_brn.inference.tiles import list_tiles, round_up
from medseg_brn.networks.levels import Level, total_stride
from medseg_brn.networks.unet3d import Size3

# Within this share of the fastest plan's time, the plan is chosen that writes least to files and then takes
# least memory, as far as there is memory worth saving.
SLOWER_BY = 0.1
WORTH_SAVING_BYTES = 5e8
# Writing and reading a byte of a file (in the system's cache) takes as long as this many multiplications.
MULTIPLICATIONS_PER_BYTE = 100
# Volumes are cut across X, where features lie contiguously in memory, into slabs down to this thickness.
SLAB_VOXELS = 16
# Tiles that take less are never worth it.
SMALLEST_TILE_BYTES = 2**18


@dataclass(frozen=True)
class Plan:
    """How one volume is computed.

    Attributes:
        shape: the image's size, rounded up to whole voxels of the coarsest level.
        level_shapes: size of each level, finest first.
        encoder_tiles: per level, the tile in voxels of the next coarser level (of its own at the coarsest).
        decoder_tiles: per level but the coarsest, the tile in its own voxels.
        levels_on_file: features of this many levels, the finest, wait in files.
        recompute: the finest skip features are computed twice and not kept.
        predicted_bytes: of features and scores at their peak.
        file_bytes: written to files in all.
        work: multiplications, halos included, against those of the volume in one piece; 1 is no extra work.
    """

    shape: Size3
    level_shapes: tuple[Size3, ...]
    encoder_tiles: tuple[Size3, ...]
    decoder_tiles: tuple[Size3, ...]
    levels_on_file: int
    recompute: bool
    predicted_bytes: int
    file_bytes: int
    work: float

    @property
    def score_tile(self) -> Size3:
        """The tile at full resolution in which scores come out."""
        return (self.decoder_tiles or self.encoder_tiles)[0]

    @property
    def tiles(self) -> int:
        """Tiles computed before the first scores come out."""
        shapes = [*self.level_shapes[1:], self.level_shapes[-1]] if self.decoder_tiles else []
        encoder = zip(shapes, self.encoder_tiles, strict=False)
        decoder = zip(self.level_shapes[1:-1], self.decoder_tiles[1:], strict=True)
        return sum(len(list_tiles(shape, tile)) for shape, tile in (*encoder, *decoder))

    def describe(self) -> str:
        """Say it in one line."""
        whole = self.score_tile == self.shape
        tiles = "in one piece" if whole else f"in tiles of {'×'.join(map(str, self.score_tile))}"
        parts = [f"exact, {'×'.join(map(str, self.shape))} voxels {tiles} at full resolution"]
        if not whole:
            parts.append(f"{self.work - 1:.0%} of the work done twice")
        if self.recompute:
            parts.append("finest skip features computed twice")
        if self.file_bytes:
            levels = "the finest level's" if self.levels_on_file == 1 else f"{self.levels_on_file} levels'"
            parts.append(f"{levels} features on file ({self.file_bytes / 1e9:.2g} GB)")
        return "; ".join(parts)


def make_plan(
    levels: Sequence[Level], num_classes: int, shape: Sequence[int], item_bytes: int, budget_bytes: float
) -> Plan:
    """Choose a plan within the budget that is nearly the fastest, with few files and a low peak.

    Args:
        levels: of the network.
        num_classes: channels of the scores: classes, or regions.
        shape: of the image, (X, Y, Z).
        item_bytes: of one number of the features.
        budget_bytes: what features and scores may take at their peak.

    Raises:
        ConfigError: not even the thriftiest plan fits; it says how much that needs.
    """
    costs = Costs(levels, num_classes, round_up(shape, total_stride(levels)), item_bytes)
    plans = list(_candidates(costs))
    fitting = [(cost, plan) for cost, plan in plans if plan.predicted_bytes <= budget_bytes]
    if not fitting:
        least = min(plan.predicted_bytes for _, plan in plans)
        raise ConfigError(
            f"A volume of {'×'.join(map(str, shape))} voxels needs at least {least / 1e9:.3g} GB for this "
            f"network's features, and {max(0.0, budget_bytes) / 1e9:.3g} GB are left of the memory allowed; "
            "raise --memory, or close other programs"
        )
    fastest = min(cost for cost, _ in fitting)
    nearly = [(cost, plan) for cost, plan in fitting if cost <= (1 + SLOWER_BY) * fastest]

    def rank(candidate: tuple[float, Plan]) -> tuple[float, ...]:
        cost, plan = candidate
        return plan.file_bytes, max(plan.predicted_bytes, WORTH_SAVING_BYTES), cost

    return min(nearly, key=rank)[1]


def _candidates(costs: Costs) -> Iterator[tuple[float, Plan]]:
    """Yield plans with their cost in multiplications."""
    single = len(costs.levels) == 1
    on_file = range(1 if single else len(costs.levels))
    for (encoder, decoder), files, recompute in product(
        _tilings(costs), on_file, (False,) if single else (False, True)
    ):
        peak, file_bytes, multiplications = costs.simulate(encoder, decoder, files, recompute)
        work = multiplications / costs.least_multiplications
        plan = Plan(
            costs.size, tuple(costs.shapes), encoder, decoder, files, recompute, peak, file_bytes, work
        )
        yield multiplications + MULTIPLICATIONS_PER_BYTE * file_bytes, plan


def _tilings(costs: Costs) -> list[tuple[tuple[Size3, ...], tuple[Size3, ...]]]:
    """Return tiles of the encoder's and the decoder's levels, from whole volumes to the smallest tiles."""
    found: dict[tuple[tuple[Size3, ...], tuple[Size3, ...]], None] = {}
    depth = len(costs.levels)
    limit = max(costs.encoder_bytes(level, costs.encoder_shape(level)) for level in range(depth))
    limit = max([limit, *(costs.decoder_bytes(level, costs.shapes[level]) for level in range(depth - 1))])
    while not found or limit > SMALLEST_TILE_BYTES:
        encoder = (
            _cut(costs.encoder_shape(level), (1, 1, 1), limit, partial(costs.encoder_bytes, level))
            for level in range(depth)
        )
        decoder = (
            _cut(
                costs.shapes[level],
                costs.levels[level].upsample_stride,
                limit,
                partial(costs.decoder_bytes, level),
            )
            for level in range(depth - 1)
        )
        found[tuple(encoder), tuple(decoder)] = None
        limit = int(limit / 1.5)
    return list(found)


def _cut(shape: Size3, lattice: Size3, limit: int, count_bytes: Callable[[Size3], int]) -> Size3:
    """Return the largest tile, a multiple of the lattice, that takes no more than `limit` bytes.

    The volume is cut into more and more parts, across X until these are slabs of `SLAB_VOXELS`, then across
    whichever axis is longest; the smallest tile is four lattice steps wide.
    """
    parts, smallest = [1, 1, 1], [4 * step for step in lattice]
    tile = shape
    while count_bytes(tile) > limit:
        long = [axis for axis in range(3) if tile[axis] > smallest[axis]]
        if not long:
            break
        axis = 0 if tile[0] > SLAB_VOXELS else max(long, key=lambda axis: tile[axis])
        sizes = list(tile)
        while sizes[axis] >= tile[axis]:
            parts[axis] += 1
            sizes[axis] = math.ceil(shape[axis] / parts[axis] / lattice[axis]) * lattice[axis]
        tile = (sizes[0], sizes[1], sizes[2])
    return tile
