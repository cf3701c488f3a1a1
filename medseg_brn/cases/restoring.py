"""From a network's scores on its own grid back to the scan's: slab by slab, never the whole at once.

Scores come as slabs (K, t, Y, Z), consecutive along X. Each class or region is interpolated linearly to the
scan's voxels before it is decided which one they have (`Targets.decide`), so that borders fall between the
network's voxels. Outside the crop is background.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from medseg_brn.cases.spatial import SpatialRecord
from medseg_brn.cases.targets import Targets
from medseg_brn.errors import ModelError, ScoresError
from medseg_brn.volumes.geometry import restore_orientation
from medseg_brn.volumes.scratch import Scratch

# Voxels whose scores are interpolated at once: few enough for the processor's cache.
CHUNK_VOXELS = 2**15


class LabelMapRestorer:
    """Makes a label map of slabs of scores.

    An interpolated score is a mean of the scores of up to 8 voxels around. Where the same class wins at all
    of them it wins their mean too: its scores are the largest everywhere, or its region is the last whose
    probabilities exceed the threshold, and no other region is written with it. So only where they differ, at
    the borders of structures, are scores interpolated at all.
    """

    def __init__(self, record: SpatialRecord, targets: Targets, scratch: Scratch | None = None) -> None:
        """Take nothing yet.

        Args:
            record: how the scan was prepared.
            targets: what the scores are of.
            scratch: where the label map goes; in memory by default.
        """
        self._record, self._targets = record, targets
        self._planes = _PlaneReader(record, targets.num_outputs)
        dtype = np.uint8 if targets.num_classes <= 256 else np.uint16
        self._whole = (scratch or Scratch()).empty(record.canonical_shape, dtype)
        self._whole[...] = 0
        self._scratch = scratch
        self._inside = self._whole[record.region]
        self._winners: dict[int, np.ndarray] = {}  # of the last two planes of scores
        self._y, self._z = (_neighbours(*sizes) for sizes in _axes(record)[1:])

    def take(self, slab: np.ndarray) -> None:
        """Take the next planes of scores.

        Args:
            slab: (K, t, Y, Z) float32, of the network's grid.

        Raises:
            ModelError: the slab does not fit the grid, or a score is NaN.
        """
        for between in self._planes.take(slab):
            self._inside[between.plane] = self._label(between)
        if self._scratch is not None:
            self._scratch.release(self._whole)

    def finish(self) -> np.ndarray:
        """Return the label map with the scan's own shape and axes: uint8, or uint16 with over 256 classes.

        Raises:
            ModelError: planes are missing.
        """
        self._planes.check_complete()
        return restore_orientation(self._whole, self._record.input_grid, self._record.orientation)

    def _label(self, between: "_Between") -> np.ndarray:
        """Return the winners (Y, Z) of a plane of the scan."""
        winners = self._win(between.below, between.lower)
        agree = np.ones(winners.shape, bool)
        if between.share > 0:
            agree &= self._win(between.above, between.upper) == winners
        for axis, (_, _, shares) in enumerate((self._y, self._z)):
            if shares.any():
                agree = _agree_with_next(winners, agree, axis)
        rows, columns = self._y[0], self._z[0]
        labels = np.ascontiguousarray(winners[np.ix_(rows, columns)])
        differing = np.flatnonzero(~agree[np.ix_(rows, columns)])
        for start in range(0, len(differing), CHUNK_VOXELS):
            chosen = differing[start : start + CHUNK_VOXELS]
            labels.reshape(-1)[chosen] = self._targets.decide(self._interpolate(between, chosen))
        return labels

    def _win(self, number: int, scores: np.ndarray) -> np.ndarray:
        """Return the winners of a plane of scores, which is asked for by each plane of the scan near it."""
        if number not in self._winners:
            if len(self._winners) > 1:
                del self._winners[min(self._winners)]
            self._winners[number] = self._targets.decide(scores).astype(self._whole.dtype)
        return self._winners[number]

    def _interpolate(self, between: "_Between", chosen: np.ndarray) -> np.ndarray:
        """Return the scores (K, n) of the voxels with these numbers in a plane of the scan."""
        rows, columns = np.divmod(chosen, len(self._z[0]))
        below_y, above_y, share_y = (part[rows] for part in self._y)
        below_z, above_z, share_z = (part[columns] for part in self._z)

        def at(y: np.ndarray, z: np.ndarray) -> np.ndarray:
            lower = between.lower[:, y, z]
            return _mix(lower, between.upper[:, y, z], between.share) if between.share > 0 else lower

        return _mix(
            _mix(at(below_y, below_z), at(below_y, above_z), share_z),
            _mix(at(above_y, below_z), at(above_y, above_z), share_z),
            share_y,
        )


class ProbabilityRestorer:
    """Makes probabilities on the scan's own grid of slabs of them.

    Outside the crop the background has 1, where it is one of the classes, and all else 0.
    """

    def __init__(self, record: SpatialRecord, targets: Targets, scratch: Scratch | None = None) -> None:
        """Take nothing yet; the arguments are those of `LabelMapRestorer`."""
        self._record = record
        self._planes = _PlaneReader(record, targets.num_outputs)
        self._scratch = scratch
        self._whole = (scratch or Scratch()).empty((targets.num_outputs, *record.canonical_shape), np.float32)
        self._whole[...] = 0
        if not targets.regions:
            self._whole[0] = 1
        self._inside = self._whole[:, *record.region]
        self._y, self._z = (_neighbours(*sizes) for sizes in _axes(record)[1:])

    def take(self, slab: np.ndarray) -> None:
        """Take the next planes, as `LabelMapRestorer.take` does."""
        for between in self._planes.take(slab):
            mixed = _mix(between.lower, between.upper, between.share)
            below, above, shares = self._y
            mixed = _mix(mixed[:, below], mixed[:, above], shares[:, None])
            below, above, shares = self._z
            self._inside[:, between.plane] = _mix(mixed[:, :, below], mixed[:, :, above], shares)
        if self._scratch is not None:
            self._scratch.release(self._whole)

    def finish(self) -> np.ndarray:
        """Return the probabilities (K, *the scan's shape), float32 in [0, 1], in the scan's own axes.

        Raises:
            ModelError: planes are missing.
        """
        self._planes.check_complete()
        last = restore_orientation(
            np.moveaxis(self._whole, 0, -1), self._record.input_grid, self._record.orientation
        )
        return np.moveaxis(last, -1, 0)


class _Between(NamedTuple):
    """A plane of the scan, and the planes of scores it lies between."""

    plane: int
    below: int
    above: int
    lower: np.ndarray  # (K, Y, Z), the scores of plane `below`
    upper: np.ndarray  # (K, Y, Z), the scores of plane `above`
    share: np.float32  # of `upper`


class _PlaneReader:
    """Tells, as slabs come in, between which two planes of scores each plane of the scan lies."""

    def __init__(self, record: SpatialRecord, num_outputs: int) -> None:
        self._expected = (num_outputs, *record.network_shape[1:])
        self._count, wanted = _axes(record)[0]
        self._below, self._above, self._shares = _neighbours(self._count, wanted)
        self._seen = 0  # planes of scores taken
        self._done = 0  # planes of the scan told
        self._last: np.ndarray | None = None

    def take(self, slab: np.ndarray) -> Iterator[_Between]:
        """Yield each plane of the scan that lies within what has been taken."""
        self._check(slab)
        first, self._seen = self._seen, self._seen + slab.shape[1]

        def plane(number: int) -> np.ndarray:
            if number >= first:
                return slab[:, number - first]
            assert self._last is not None
            return self._last

        while self._done < len(self._below) and self._above[self._done] < self._seen:
            below, above = int(self._below[self._done]), int(self._above[self._done])
            share = self._shares[self._done]
            yield _Between(self._done, below, above, plane(below), plane(above), share)
            self._done += 1
        self._last = slab[:, -1].copy()

    def check_complete(self) -> None:
        if self._seen < self._count:
            raise ModelError(
                f"Scores of {self._seen} planes were taken, but the network's grid has {self._count}"
            )

    def _check(self, slab: np.ndarray) -> None:
        if (slab.shape[0], *slab.shape[2:]) != self._expected or self._seen + slab.shape[1] > self._count:
            raise ModelError(
                f"Scores of shape {slab.shape} after {self._seen} planes do not fit a scan prepared as "
                f"{self._expected[0]} channels of {(self._count, *self._expected[1:])} voxels; restore "
                "scores with the record of their own scan"
            )
        if np.isnan(slab.min()):
            raise ScoresError(
                "The network's scores contain NaN, so no class wins; check its weights and input"
            )


def _axes(record: SpatialRecord) -> list[tuple[int, int]]:
    """The sizes of each axis on the network's grid and in the crop."""
    return list(zip(record.network_shape, record.cropped_shape, strict=True))


def _neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `new` voxels the `old` ones below and above its centre, and the share of the one above.

    Outer edges are aligned as in `volumes.geometry.resample_array`: voxel i lies at
    (i + 1/2) old / new - 1/2, and beyond the outermost centres their value continues.
    """
    position = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    below = np.floor(position).astype(np.intp)
    share = (position - below).astype(np.float32)
    return below, np.minimum(below + (share > 0), old - 1), share


def _mix(lower: np.ndarray, upper: np.ndarray, share: np.ndarray | np.float32) -> np.ndarray:
    return lower + (upper - lower) * share


def _agree_with_next(winners: np.ndarray, agree: np.ndarray, axis: int) -> np.ndarray:
    """Where a voxel agrees, and the next one along the axis agrees too and has the same winner.

    Args:
        winners: (Y, Z).
        agree: (Y, Z) of the voxels themselves.
        axis: 0 or 1.
    """
    size = winners.shape[axis]
    following = np.minimum(np.arange(1, size + 1), size - 1)
    same = winners.take(following, axis) == winners
    return agree & agree.take(following, axis) & same
