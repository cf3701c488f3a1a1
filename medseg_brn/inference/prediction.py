"""Scores of a whole volume, slab by slab: exact where the network allows it, else from windows."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from medseg_brn.errors import ConfigError
from medseg_brn.inference.exact import ExactEvaluation
from medseg_brn.inference.needed import Needed
from medseg_brn.inference.plan import Plan
from medseg_brn.inference.predictor import Predictor
from medseg_brn.inference.windows import (
    Progress,
    compute_probabilities,
    count_row_bytes,
    count_windows,
    iterate_mirrorings,
    iterate_window_slabs,
    mirror_back,
)
from medseg_brn.networks.unet3d import Size3
from medseg_brn.volumes.scratch import Scratch


@dataclass(frozen=True)
class Options:
    """How scores are computed.

    Attributes:
        windows: blend overlapping windows also where the network could be evaluated exactly.
        overlap: of overlapping windows, in [0, 1).
        mirror_axes: axes 0, 1, 2 along which it is also predicted mirrored, all combinations averaged.
        budget_bytes: what features and scores of an exact evaluation may take at their peak.
        occupied: (x, y, z) of blocks that hold something, the others being background; None where all do.
        block: size of the blocks.
        exclusive: the channels are classes of which a voxel has one, the background first; else they are
            regions, of which a voxel may lie in several or in none.
        probabilities: give probabilities; else, where nothing is averaged and classes are exclusive, whatever
            has the same order.
    """

    windows: bool = False
    overlap: float = 0.5
    mirror_axes: tuple[int, ...] = ()
    budget_bytes: float = math.inf
    occupied: np.ndarray | None = None
    block: Size3 = (1, 1, 1)
    exclusive: bool = True
    probabilities: bool = True


@dataclass(frozen=True)
class Scores:
    """Scores on their way.

    Attributes:
        slabs: (K, t, Y, Z) float32 in main memory, consecutive along X; to be taken once.
        plan: how they are computed, in a line.
        predicted_bytes: of features and scores at their peak; None for windows.
    """

    slabs: Iterator[np.ndarray] = field(repr=False)
    plan: str
    predicted_bytes: int | None


def compute_scores(
    predictors: Sequence[Predictor],
    images: Sequence[np.ndarray],
    options: Options,
    scratch: Scratch,
    progress: Progress | None = None,
) -> Scores:
    """Start computing the scores of a volume; most is done when the slabs are taken.

    Args:
        predictors: one, or the members of an ensemble, whose probabilities are averaged.
        images: (C, X, Y, Z) float32, one per predictor, all of one shape.
        options: how.
        scratch: where features wait that the budget keeps out of memory.
        progress: called with (parts done, parts in all).

    Raises:
        ConfigError: the budget does not suffice.
    """
    if options.windows or any(predictor.levels is None for predictor in predictors):
        return _from_windows(predictors, images, options, progress)
    return _exact(predictors, images, options, scratch, progress)


def _from_windows(
    predictors: Sequence[Predictor], images: Sequence[np.ndarray], options: Options, progress: Progress | None
) -> Scores:
    shape, overlap = images[0].shape[1:], options.overlap
    windows = [count_windows(shape, predictor.patch_size, overlap) for predictor in predictors]
    sizes = ["×".join(map(str, predictor.patch_size)) for predictor in predictors]
    texts = [f"{count} windows of {size} voxels" for count, size in zip(windows, sizes, strict=True)]
    plan = f"{' and '.join(dict.fromkeys(texts))}, overlapping by {overlap:.0%}, blended"
    _check_row_bytes(predictors, shape, options)
    done = [0] * len(predictors)
    streams = [
        iterate_window_slabs(
            predictor.run_windows,
            image,
            patch_size=predictor.patch_size,
            overlap=overlap,
            mirror_axes=options.mirror_axes,
            mirrored_channels=predictor.mirrored_channels,
            exclusive=options.exclusive,
            device=predictor.device,
            # A network that could be exact holds the number format itself.
            dtype=predictor.dtype if predictor.levels is None else torch.float32,
            progress=progress and partial(_tell_of_member, progress, sum(windows), done, number),
        )
        for number, (predictor, image) in enumerate(zip(predictors, images, strict=True))
    ]
    needed = Needed([], options.occupied, options.block, shape)
    return Scores(_average(streams, needed, options.exclusive), plan, None)


@torch.inference_mode()
def _average(streams: Sequence[Iterator[Tensor]], needed: Needed, exclusive: bool) -> Iterator[np.ndarray]:
    """Yield the mean slabs of streams that cover the same planes, air being background."""
    start = 0
    for slabs in _align(streams):
        mean = needed.leave_out(_mean(slabs), start, exclusive)
        start += mean.shape[1]
        yield mean.cpu().numpy()


def _check_row_bytes(predictors: Sequence[Predictor], shape: Sequence[int], options: Options) -> None:
    """Raise ConfigError where the sums of a row of windows do not fit into main memory."""
    wanted = sum(
        count_row_bytes(shape, predictor.patch_size, predictor.num_classes)
        for predictor in predictors
        if predictor.device.type == "cpu"
    )
    if wanted > options.budget_bytes:
        size, left = "×".join(map(str, shape)), max(0.0, options.budget_bytes)
        raise ConfigError(
            f"Overlapping windows over {size} voxels need {wanted / 1e9:.3g} GB for a row of windows, and "
            f"{left / 1e9:.3g} GB are left of the memory allowed; raise --memory, or close other programs"
        )


def _tell_of_member(
    progress: Progress, total: int, done_by: list[int], number: int, done: int, _own_total: int
) -> None:
    """Tell what is done in all, the members taking turns row by row."""
    done_by[number] = done
    progress(sum(done_by), total)


def _align(streams: Sequence[Iterator[Tensor]]) -> Iterator[list[Tensor]]:
    """Yield slabs (K, t, Y, Z) of the same planes from streams whose own slabs may differ in thickness.

    Two streams of 6 planes, of members whose windows are of different sizes:

        own slabs      [0 1 2 3][4 5]    [0 1 2][3 4 5]
        aligned slabs  [0 1 2][3][4 5]   [0 1 2][3][4 5]
    """
    held: list[Tensor | None] = [next(stream, None) for stream in streams]
    while slabs := [slab for slab in held if slab is not None]:
        planes = min(slab.shape[1] for slab in slabs)
        yield [slab[:, :planes] for slab in slabs]
        held = [
            slab[:, planes:] if planes < slab.shape[1] else next(stream, None)
            for slab, stream in zip(slabs, streams, strict=True)
        ]


def _exact(
    predictors: Sequence[Predictor],
    images: Sequence[np.ndarray],
    options: Options,
    scratch: Scratch,
    progress: Progress | None,
) -> Scores:
    mirrorings = len(list(iterate_mirrorings(options.mirror_axes)))
    passes = len(predictors) * mirrorings
    device = predictors[0].device
    # On a GPU the features are in its memory, and main memory holds no more than the scores of a slab.
    budget = _free_bytes(device) if device.type == "cuda" else options.budget_bytes
    plans = [predictor.plan(images[0].shape[1:], budget / passes) for predictor in predictors]
    slabs = _exact_slabs(predictors, images, options, plans, scratch, progress)
    text = " and ".join(dict.fromkeys(plan.describe() for plan in plans))
    text += f"; {passes} passes averaged" if passes > 1 else ""
    return Scores(slabs, text, mirrorings * sum(plan.predicted_bytes for plan in plans))


@torch.inference_mode()
def _exact_slabs(
    predictors: Sequence[Predictor],
    images: Sequence[np.ndarray],
    options: Options,
    plans: Sequence[Plan],
    scratch: Scratch,
    progress: Progress | None,
) -> Iterator[np.ndarray]:
    """Yield the mean scores of all predictors and mirrorings."""
    shape = images[0].shape[1:]
    # Scores can be had of any planes, so the thinnest slabs do for all members.
    thickness = min(plan.score_tile[0] for plan in plans)
    needs = [
        Needed(predictor.levels or [], options.occupied, options.block, plan.shape)
        for predictor, plan in zip(predictors, plans, strict=True)
    ]
    mirrorings = list(iterate_mirrorings(options.mirror_axes))
    starts = range(0, shape[0], thickness)
    passes = len(predictors) * len(mirrorings)
    tick = _count(progress, len(mirrorings) * sum(plan.tiles for plan in plans) + len(starts))
    evaluations = [
        (
            _evaluate(predictor, image, axes, needed.mirrored(axes, shape), plan, scratch, tick),
            axes,
            predictor.mirrored_channels,
        )
        for predictor, image, needed, plan in zip(predictors, images, needs, plans, strict=True)
        for axes in mirrorings
    ]
    for start in starts:
        stop = min(start + thickness, shape[0])
        scores = (_mirrored_scores(*evaluation, start, stop, shape[0]) for evaluation in evaluations)
        if options.probabilities or passes > 1 or not options.exclusive:
            scores = (compute_probabilities(logits, 0, options.exclusive) for logits in scores)
        yield needs[0].leave_out(_mean(scores), start, options.exclusive).cpu().numpy()
        tick()


def _evaluate(
    predictor: Predictor,
    image: np.ndarray,
    axes: Sequence[int],
    needed: Needed,
    plan: Plan,
    scratch: Scratch,
    on_tile: Callable[[], None],
) -> ExactEvaluation:
    """Compute all but the scores; where a GPU's memory falls short of what was planned, in smaller tiles."""
    assert predictor.levels is not None
    mirrored = np.flip(image, tuple(axis + 1 for axis in axes))
    while True:
        try:
            return ExactEvaluation(
                predictor.network,
                predictor.levels,
                mirrored,
                plan,
                scratch,
                device=predictor.device,
                dtype=predictor.image_dtype,
                needed=needed,
                on_tile=on_tile,
            )
        except torch.cuda.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            try:
                plan = predictor.plan(image.shape[1:], plan.predicted_bytes / 2)
            except ConfigError:
                raise ConfigError(
                    f"The GPU's memory does not suffice even for the smallest tiles ({error}); free some of "
                    "it, or compute with --device cpu"
                ) from None


def _mirrored_scores(
    evaluation: ExactEvaluation,
    axes: Sequence[int],
    mirrored_channels: Sequence[int] | None,
    start: int,
    stop: int,
    planes: int,
) -> Tensor:
    """Return the scores of planes of the plain volume from an evaluation of the mirrored one."""
    if 0 in axes:
        start, stop = planes - stop, planes - start
    return mirror_back(_scores(evaluation, start, stop), axes, mirrored_channels)


def _scores(evaluation: ExactEvaluation, start: int, stop: int) -> Tensor:
    try:
        return evaluation.scores(start, stop)
    except torch.cuda.OutOfMemoryError:
        if stop - start == 1:
            raise
        torch.cuda.empty_cache()
    middle = (start + stop) // 2
    return torch.cat((_scores(evaluation, start, middle), _scores(evaluation, middle, stop)), 1)


def _mean(scores: Iterable[Tensor]) -> Tensor:
    """Return the mean, holding two of them at a time."""
    mean = torch.empty(0)
    for number, score in enumerate(scores, 1):
        mean = score if number == 1 else mean.add_((score - mean).div_(number))
    return mean


def _free_bytes(device: torch.device) -> float:
    """Return what a GPU has left, less a reserve for its libraries."""
    return 0.9 * torch.cuda.mem_get_info(device)[0]


def _count(progress: Progress | None, total: int) -> Callable[[], None]:
    """Return a function that counts its calls and tells them."""
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(min(done, total), total)

    return tick
