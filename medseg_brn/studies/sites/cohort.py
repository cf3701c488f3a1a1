"""The scans of one repetition: sites that are trained on, and sites that are not, each with its scanner."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medseg_brn.studies.sites.anatomies import Anatomies
from medseg_brn.studies.sites.scanner_effects import Scanner, draw_scanners, harmonize

SEEN = ("seen 1", "seen 2", "seen 3", "seen 4")
UNSEEN = ("unseen 1", "unseen 2", "unseen 3", "unseen 4")
TRAINING, HELD_OUT, UNLABELLED, TRIED = 6, 4, 4, 4
"""Scans of a site: of a seen one to train on and held out; of an unseen one without label maps, and tried."""
NEEDED = len(SEEN) * (TRAINING + HELD_OUT) + len(UNSEEN) * (UNLABELLED + TRIED)
"""Anatomies of one repetition, each scanned once."""


@dataclass(frozen=True, eq=False)
class Scans:
    """n scans of each of S sites."""

    sites: tuple[str, ...]
    images: Tensor
    """(S, n, 1, X, Y, Z) float32, as stored."""
    masks: Tensor
    """(S, n, 1, X, Y, Z) int64: 1 in the structure, else 0."""

    def harmonize(self) -> "Scans":
        """The same with z-scores: what harmonization needs of a site is the scan itself."""
        images = [harmonize(image) for image in self.images.flatten(0, 2).numpy()]
        scored = torch.from_numpy(np.stack(images)).reshape(self.images.shape)
        return Scans(self.sites, scored, self.masks)


@dataclass(frozen=True, eq=False)
class Cohort:
    """One repetition."""

    number: int
    """Of the seed, from 0."""
    seed: int
    """Of the study."""
    scanners: tuple[Scanner, ...]
    """Of the seen sites, then of the unseen ones."""
    training: Scans
    held_out: Scans
    unlabelled: Scans
    tried: Scans
    example: Tensor
    """(S, X, Y) middle slice of one anatomy as every scanner stores it, to be shown."""


def draw_cohort(anatomies: Anatomies, number: int, seed: int) -> Cohort:
    """Other scanners and other people for every repetition, a pure function of its arguments."""
    random = np.random.default_rng((seed, number, 2, 1))
    scanners = draw_scanners((*SEEN, *UNSEEN), random)
    images, masks = anatomies.draw(NEEDED, random)
    first = 0

    def take(sites: tuple[str, ...], count: int) -> Scans:
        nonlocal first
        last = first + len(sites) * count
        own = [scanner for scanner in scanners if scanner.name in sites for _ in range(count)]
        stored = [scanner.scan(image, random) for scanner, image in zip(own, images[first:last], strict=True)]
        shape = (len(sites), count, 1, *images.shape[1:])
        labels = torch.from_numpy(masks[first:last]).long().reshape(shape)
        first = last
        return Scans(sites, torch.from_numpy(np.stack(stored)).reshape(shape), labels)

    training, held_out = take(SEEN, TRAINING), take(SEEN, HELD_OUT)
    unlabelled, tried = take(UNSEEN, UNLABELLED), take(UNSEEN, TRIED)
    example = np.stack([scanner.scan(images[0], random) for scanner in scanners])
    shown = torch.from_numpy(example[..., images.shape[3] // 2])
    return Cohort(number, seed, scanners, training, held_out, unlabelled, tried, shown)
