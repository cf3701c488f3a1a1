"""What loss curves, batch sizes and seeds say about the steadiness of training."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike

MIN_EARLIER_STEPS = 10
"""Steps before the one judged without which there is no median to judge it by."""


def find_spikes(losses: np.ndarray, window: int = 51) -> np.ndarray:
    """Which losses stand out above the steps before them, (T,) bool for (T,) losses.

        L_t > median + 6 · 1.4826 · MAD    of the finite losses among the `window` steps before t

    MAD is the median absolute deviation from that median; times 1.4826 it estimates the standard deviation
    of a normal distribution. Where it is smaller than the rounding of the median in float32, in which losses
    are computed (a loss that stands still has MAD 0), the rounding takes its place. With fewer than
    10 finite losses before it no finite loss is a spike. A loss that is NaN or infinite always is.

    Raises:
        ValueError: losses not one-dimensional, or a window below 10.
    """
    losses = np.asarray(losses, dtype=np.float64)
    if losses.ndim != 1:
        raise ValueError(f"losses of shape {losses.shape} must be one-dimensional: one loss per step")
    if window < MIN_EARLIER_STEPS:
        raise ValueError(f"window {window} must be at least {MIN_EARLIER_STEPS} steps")
    spikes = ~np.isfinite(losses)
    known = np.where(spikes, np.nan, losses)
    # Row t holds the steps t - window to t - 1; those before the first step are unknown.
    earlier = sliding_window_view(np.concatenate([np.full(window, np.nan), known]), window)[: len(losses)]
    judged = np.isfinite(earlier).sum(axis=1) >= MIN_EARLIER_STEPS
    earlier = earlier[judged]
    median = np.nanmedian(earlier, axis=1)
    deviation = np.nanmedian(np.abs(earlier - median[:, None]), axis=1)
    scale = np.maximum(1.4826 * deviation, np.finfo(np.float32).eps * np.abs(median))
    spikes[judged] |= known[judged] > median + 6 * scale
    return spikes


def spike_fraction(losses: np.ndarray, window: int = 51) -> float:
    """Share of all steps whose loss is a spike, in [0, 1]; NaN for no steps. See `find_spikes`."""
    spikes = find_spikes(losses, window)
    return float(spikes.mean()) if len(spikes) else float("nan")


def batch_size_slope(batch_sizes: ArrayLike, dice: ArrayLike) -> np.ndarray:
    """Dice gained per doubling of the batch size: the least-squares slope of Dice against log₂ B.

    Args:
        batch_sizes: (n,), of n runs, at least 1.
        dice: (n,) or (n, C) of C cases, in [0, 1].

    Returns:
        The slope, () or (C,), one for each column; 0 means the batch size does not matter. NaN with fewer
        than two distinct sizes, and where a Dice of the column is NaN: leave runs that diverged out, or count
        them as 0.

    Raises:
        ValueError: different lengths, or a batch size below 1.
    """
    sizes, scores = _check_runs(batch_sizes, dice, dimensions=(1, 2))
    if len(np.unique(sizes)) < 2:
        return np.full(scores.shape[1:], np.nan)
    doublings = np.log2(sizes) - np.log2(sizes).mean()
    return np.asarray(doublings @ (scores - scores.mean(axis=0)) / np.square(doublings).sum())


def batch_size_ratio(batch_sizes: ArrayLike, dice: ArrayLike) -> float:
    """Mean Dice at the smallest batch size over mean Dice at the largest.

    Returns:
        The ratio; 1 means the smallest size costs nothing. NaN with fewer than two distinct sizes, where the
        Dice at the largest is 0, or where a Dice at either is NaN.

    Raises:
        ValueError: different lengths, or a batch size below 1.
    """
    sizes, scores = _check_runs(batch_sizes, dice)
    if len(np.unique(sizes)) < 2:
        return float("nan")
    smallest, largest = scores[sizes == sizes.min()].mean(), scores[sizes == sizes.max()].mean()
    return float("nan") if largest == 0 else float(smallest / largest)


def find_collapses(dice: np.ndarray) -> np.ndarray:
    """Which runs failed, bool of the shape of `dice`: Dice below half the median, or NaN (diverged).

    The median is that of the runs that did not diverge.
    """
    dice = np.asarray(dice, dtype=np.float64)
    diverged = np.isnan(dice)
    if diverged.all():
        return diverged
    return diverged | (dice < np.median(dice[~diverged]) / 2)


def _check_runs(
    batch_sizes: ArrayLike, dice: ArrayLike, dimensions: tuple[int, ...] = (1,)
) -> tuple[np.ndarray, np.ndarray]:
    sizes, scores = np.asarray(batch_sizes, dtype=np.float64), np.asarray(dice, dtype=np.float64)
    if sizes.ndim != 1 or scores.ndim not in dimensions or len(sizes) != len(scores):
        raise ValueError(
            f"batch sizes of shape {sizes.shape} and Dice of shape {scores.shape} must be two equally long "
            "lists: give both for every run"
        )
    if (sizes < 1).any():
        raise ValueError(f"batch size {sizes.min():g} must be at least 1")
    return sizes, scores
