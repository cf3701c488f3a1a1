"""Scans of one repetition, crops of them to train on, and how the crops are dealt to the workers.

Scans are the phantom's heads, drawn on one coarse grid: (24, 28, 24) voxels of 8 mm, z-scored. To be found is
the brain with all that lies in it. Ventricles and lesions are too few voxels for a short training: whether
it finds them at all is chance, and would hide every other difference. A crop is (16, 16, 16) voxels of a
scan, at a random place.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg_brn.cases.phantom_head import sample_head
from medseg_brn.studies.distributed.arms import Shards

CLASS_NAMES = ("background", "brain")
SHAPE, VOXEL_MM, CROP = (24, 28, 24), 8.0, 16
TRAINING_SCANS, HELD_OUT_SCANS, CROPS_PER_SCAN = 24, 8, 8
NOISE = 0.04
MIXED_SHARE = 0.2
"""Share of a skewed shard that is dealt as in iid shards."""


@dataclass(frozen=True, eq=False)
class Cohort:
    """What one repetition trains on and is evaluated on."""

    crops: Tensor
    """(P, 1, 16, 16, 16) float32."""
    crop_labels: Tensor
    """(P, 1, 16, 16, 16) int64 classes."""
    scans: Tensor
    """(S, 1, 24, 28, 24) float32, held out."""
    scan_labels: Tensor
    """(S, 24, 28, 24) int64 classes."""

    def foreground_shares(self) -> NDArray[np.float64]:
        """(P,) share of each crop's voxels that are not background."""
        return (self.crop_labels > 0).double().mean((1, 2, 3, 4)).numpy()


def draw_cohort(seed: int, repetition: int) -> Cohort:
    """Other heads for every repetition, a pure function of its arguments."""
    rng = np.random.default_rng((seed, repetition, 0))
    drawn = [_draw_scan(rng) for _ in range(TRAINING_SCANS + HELD_OUT_SCANS)]
    crops, crop_labels = [], []
    for image, label_map in drawn[:TRAINING_SCANS]:
        for _ in range(CROPS_PER_SCAN):
            box = tuple(slice(start, start + CROP) for start in rng.integers(0, np.array(SHAPE) - CROP + 1))
            crops.append(image[box])
            crop_labels.append(label_map[box])
    images, label_maps = zip(*drawn[TRAINING_SCANS:], strict=True)
    return Cohort(
        torch.from_numpy(np.stack(crops))[:, None],
        torch.from_numpy(np.stack(crop_labels))[:, None].long(),
        torch.from_numpy(np.stack(images))[:, None],
        torch.from_numpy(np.stack(label_maps)).long(),
    )


def deal_crops(
    foreground_shares: NDArray[np.float64], workers: int, shards: Shards, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Indices of each worker's crops: disjoint, as many for each; a few may be left over.

    Iid shards are dealt by chance. Skewed ones are sorted by the share of foreground, so that the first
    worker sees mostly background and the last one mostly foreground: four fifths of each shard, that is; one
    fifth is dealt by chance.
    """
    order = rng.permutation(len(foreground_shares))
    each = len(order) // workers
    by_chance = each if shards == "iid" else round(MIXED_SHARE * each)
    mixed, rest = np.split(order[: each * workers], [by_chance * workers])
    sorted_rest = rest[np.argsort(foreground_shares[rest], kind="stable")]
    return [
        np.concatenate(parts)
        for parts in zip(np.split(mixed, workers), np.split(sorted_rest, workers), strict=True)
    ]


def _draw_scan(rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    centred = [(np.arange(size, dtype=np.float32) - (size - 1) / 2) * VOXEL_MM for size in SHAPE]
    points = np.stack(np.meshgrid(*centred, indexing="ij")).astype(np.float32)
    canvas = sample_head(rng).draw(points, VOXEL_MM)
    image = canvas.image + rng.normal(0, NOISE, SHAPE).astype(np.float32)
    brain = (canvas.label_map > 0).astype(np.uint8)
    return ((image - image.mean()) / image.std()).astype(np.float32), brain
