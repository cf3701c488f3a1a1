"""Candidates: patch sizes and widths from large to small, and the first that the budgets allow."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from medseg_brn.config import NetworkConfig
from medseg_brn.planning import recipe
from medseg_brn.planning.choice import Choices, nest
from medseg_brn.planning.costs import BASE_BYTES, Cost, count_work, predict_cost
from medseg_brn.planning.rules_network import Levels, Size3, choose_levels, choose_network

SHRINKING = 0.93  # from one patch edge that is tried to the next
SMALLEST_EDGE_VOXELS = 8  # shorter patches are not tried, unless the scan is shorter


@dataclass(frozen=True)
class Problem:
    """What candidates are sought for.

    Attributes:
        shape: the median scan in voxels of the network's grid.
        spacing_mm: of that grid.
        num_outputs: channels of the logits.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    in_channels: int
    num_outputs: int
    device: str
    precision: str


@dataclass(frozen=True)
class Budget:
    """The most that one step may take, and how this machine differs from the model.

    Attributes:
        memory_bytes: of the training process or, on a GPU, of the GPU.
        unit_seconds: of one unit of work, see `costs.py`.
        memory_factor: measured over predicted memory, without what an idle process has.
    """

    step_seconds: float
    memory_bytes: float
    unit_seconds: float
    memory_factor: float = 1.0


@dataclass(frozen=True)
class Candidate:
    """A network, the patches it is trained on, and what a step is predicted to cost.

    Attributes:
        choices: the network's options and their reasons.
    """

    levels: Levels
    batch_size: int
    checkpointing: bool
    network: NetworkConfig
    choices: Choices
    cost: Cost

    @property
    def patch(self) -> tuple[int, int, int]:
        """Patch size."""
        return self.levels.patch

    def is_same(self, other: "Candidate") -> bool:
        """Whether the other trains the same, whatever it is predicted to cost."""
        return (self.patch, self.network, self.batch_size, self.checkpointing) == (
            other.patch,
            other.network,
            other.batch_size,
            other.checkpointing,
        )


def list_levels_to_try(shape: Sequence[int], spacing_mm: Sequence[float]) -> list[Levels]:
    """Patches to try, largest first: boxes with edges alike in mm, cut where the scan ends."""
    found: dict[tuple[int, int, int], Levels] = {}
    edge_mm = max(size * step for size, step in zip(shape, spacing_mm, strict=True))
    smallest_mm = SMALLEST_EDGE_VOXELS * min(spacing_mm)
    while True:
        size = [
            min(length, max(1, round(edge_mm / step))) for length, step in zip(shape, spacing_mm, strict=True)
        ]
        if math.prod(size) >= 2 and math.prod(size) <= recipe.MOST_PATCH_VOXELS:
            levels = choose_levels(size, spacing_mm)
            if math.prod(levels.coarsest) >= 2:
                found.setdefault(levels.patch, levels)
        if edge_mm <= smallest_mm and found:
            return sorted(found.values(), key=lambda levels: -math.prod(levels.patch))
        if edge_mm < min(spacing_mm) / 2:
            return [_least_levels(shape)]
        edge_mm *= SHRINKING


def _least_levels(shape: Sequence[int]) -> Levels:
    """One level on a patch of at least two voxels along each axis: for scans of a few voxels."""
    x, y, z = (max(2, min(size, SMALLEST_EDGE_VOXELS)) for size in shape)
    return Levels(((1, 1, 1),), ((3, 3, 3),), (x, y, z))


def make_candidate(
    levels: Levels,
    width: float,
    batch_size: int,
    problem: Problem,
    budget: Budget,
    checkpointing: bool = False,
) -> Candidate:
    """The network that the rules give for these levels, and its predicted cost."""
    choices = choose_network(levels, width, problem.device)
    network = NetworkConfig(**nest(choices))
    work = count_work(network, levels.patch, batch_size, problem.in_channels, problem.num_outputs)
    cost = predict_cost(
        work,
        budget.unit_seconds,
        device=problem.device,
        precision=problem.precision,
        checkpointing=checkpointing,
    )
    idle = BASE_BYTES[problem.device]
    memory = idle + budget.memory_factor * (cost.memory_bytes - idle)
    return Candidate(levels, batch_size, checkpointing, network, choices, replace(cost, memory_bytes=memory))


def is_largest(patch: Size3, problem: Problem) -> bool:
    """Whether budgets keep nothing from a patch: it is the whole scan, or as large as any that is tried."""
    return patch == list_levels_to_try(problem.shape, problem.spacing_mm)[0].patch


def is_capped(patch: Size3, problem: Problem) -> bool:
    """Whether a patch would be larger if patches of more voxels were tried."""
    return math.prod(problem.shape) > recipe.MOST_PATCH_VOXELS and is_largest(patch, problem)


def fits(cost: Cost, budget: Budget) -> bool:
    """Whether a step is within both budgets."""
    return cost.step_seconds <= budget.step_seconds and cost.memory_bytes <= budget.memory_bytes


def choose_candidate(problem: Problem, budget: Budget) -> Candidate:
    """The widest network that gets a comfortable patch, on the largest patch that the budgets allow.

    A patch is comfortable from 48 x 48 x 48 voxels on, or where it is nearly the whole scan. Where memory is
    what keeps it from that, activations are computed again instead of kept. Where nothing is comfortable, the
    largest patch of the narrowest network is taken; where not even the smallest fits, that one.
    """
    tried = list_levels_to_try(problem.shape, problem.spacing_mm)
    comfortable = 0.5 * min(recipe.COMFORTABLE_PATCH_VOXELS, math.prod(tried[0].patch))
    fallback: Candidate | None = None
    for width, batch_size, checkpointing in _list_sizes():
        found = _first_fitting(tried, width, batch_size, checkpointing, problem, budget)
        if found is None:
            continue
        if math.prod(found.patch) >= comfortable:
            return found
        if fallback is None or math.prod(found.patch) > math.prod(fallback.patch):
            fallback = found
    return fallback or make_candidate(tried[-1], min(recipe.WIDTHS), 1, problem, budget)


def _list_sizes() -> Iterator[tuple[float, int, bool]]:
    """Widths, batch sizes and checkpointing, in the order in which they are given up."""
    for width in recipe.WIDTHS:
        for checkpointing in (False, True):
            yield width, recipe.BATCH_SIZE, checkpointing
    for checkpointing in (False, True):
        yield min(recipe.WIDTHS), 1, checkpointing


def _first_fitting(
    tried: Sequence[Levels],
    width: float,
    batch_size: int,
    checkpointing: bool,
    problem: Problem,
    budget: Budget,
) -> Candidate | None:
    candidates = (
        make_candidate(levels, width, batch_size, problem, budget, checkpointing) for levels in tried
    )
    return next((candidate for candidate in candidates if fits(candidate.cost, budget)), None)
