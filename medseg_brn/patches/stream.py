"""An endless stream of training patches that is a pure function of (seed, index).

Patch number i is the same whichever worker, process or restarted run asks for it: this is what makes a
resumed run equal an uninterrupted one.
"""

from collections.abc import Iterator, Sequence
from typing import NotRequired, TypedDict

import numpy as np
import torch
from monai.utils import convert_to_tensor
from torch.utils.data import Dataset

from medseg_brn.cases.cache import PreparedCase
from medseg_brn.cases.sites import group_by_site
from medseg_brn.cases.targets import Targets
from medseg_brn.config import PatchesConfig
from medseg_brn.errors import DataError
from medseg_brn.patches.augmentation import make_augmentation
from medseg_brn.patches.deformation import Deformation, take_image, take_labels
from medseg_brn.patches.sampling import cut_box, draw_voxel, group_by_class, place_patch
from medseg_brn.patches.turns import SiteTurns


class Patch(TypedDict):
    """One training patch."""

    image: torch.Tensor
    """(C, X, Y, Z) float32."""
    label: torch.Tensor
    """(1, X, Y, Z) int64 classes."""
    case: str
    site: str | None


class PatchBatch(TypedDict):
    """Patches of one forward pass."""

    image: torch.Tensor
    """(N, C, X, Y, Z) float32."""
    label: torch.Tensor
    """(N, 1, X, Y, Z) int64 classes."""
    cases: list[str]
    sites: NotRequired[list[str | None]]
    """Of each case; left out where no network asks for them."""


class PatchStream(Dataset):
    """Patches by index: every case once per epoch in random order, at random places.

    With `config.foreground_by` "class", foreground patches go by the dataset's classes instead: one of them
    is drawn, then a case that has it.

    With `config.sites` "balanced" or "pure", sites take turns (see `SiteTurns`), and all of this holds within
    each site: its cases once per epoch of its own, and of the classes those that it has.

    Args:
        cases: prepared training cases, all with the same voxel size.
        config: size, foreground share and augmentation.
        seed: the experiment's seed.
        targets: the dataset's classes, by whose names left and right change places under mirroring, and
            whether there are voxels to be ignored, on which no patch is placed.
        batch_size: patches of one forward pass of one process; only turns of sites depend on it.

    Raises:
        DataError: there are no cases, one cannot be read, or sites take turns and a case names none.
        ConfigError: the augmentation names a class that there is not.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        config: PatchesConfig,
        seed: int,
        targets: Targets,
        batch_size: int = 1,
    ) -> None:
        if not cases:
            raise DataError("There are no training cases: the dataset is empty or all cases are held out")
        self.cases = list(cases)
        self.config = config
        self.seed = seed
        self._has_ignored = targets.ignore_class is not None
        self._groups, self._turns = [self.cases], None
        if config.sites != "any":
            self._groups = list(group_by_site(self.cases, f"patches.sites={config.sites}").values())
            self._turns = SiteTurns(config.sites, len(self._groups), batch_size, seed)
        by_class = config.foreground_by == "class"
        self._cases_with = [group_by_class(group) if by_class else {} for group in self._groups]
        augmentation = config.augmentation
        self._deformation = (
            Deformation(augmentation, config.size, self.cases[0].spacing_mm) if augmentation else None
        )
        self._augment = (
            make_augmentation(augmentation, self.cases[0].spacing_mm, targets) if augmentation else None
        )

    def __getitem__(self, index: int) -> Patch | DataError:
        # A worker's error travels as a value, so that it arrives as itself instead of as a traceback's text.
        rng = np.random.default_rng([self.seed, index])
        wants_foreground = rng.random() < self.config.foreground_fraction
        group, place = (0, index) if self._turns is None else self._turns.locate(index)
        case, wanted_class = self._case_of(group, place), None
        cases_with = self._cases_with[group]
        if wants_foreground and cases_with:
            wanted_class = list(cases_with)[rng.integers(len(cases_with))]
            having = cases_with[wanted_class]
            case = having[rng.integers(len(having))]
        try:
            wanted = draw_voxel(case, wants_foreground, wanted_class, rng, self._has_ignored)
            return self._make_patch(case, wanted, rng)
        except DataError as error:
            return error
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            return DataError(f"No patch could be made of case {case.name!r} ({reason}); please report this")

    def _case_of(self, group: int, index: int) -> PreparedCase:
        """The case of patch number `index` of a site, or of all cases where sites do not take turns."""
        cases = self._groups[group]
        epoch, place = divmod(index, len(cases))
        # a number after the others, and not 0, which would change nothing, gives each site draws of its own
        of_site = [] if self._turns is None else [group + 1]
        order = np.random.default_rng([self.seed, epoch, len(cases), *of_site]).permutation(len(cases))
        return cases[order[place]]

    def _make_patch(self, case: PreparedCase, wanted: np.ndarray, rng: np.random.Generator) -> Patch:
        image, label_map, size = case.image(), case.label_map()[None], self.config.size
        start = place_patch(wanted, label_map.shape[1:], size, rng)
        places = None if self._deformation is None else self._deformation.draw(rng)
        if places is None:
            stop = [first + length for first, length in zip(start, size, strict=True)]
            patch = torch.from_numpy(cut_box(image, start, stop))
            label = torch.from_numpy(cut_box(label_map, start, stop).astype(np.float32))
        else:
            places = places + torch.tensor(start) + (torch.tensor(size) - 1) / 2
            patch = take_image(image, places)
            label = take_labels(label_map, places)
        sample = {"image": patch, "label": label}
        if self._augment is not None:
            self._augment.set_random_state(seed=int(rng.integers(2**32)))
            sample = self._augment(sample)
        return {
            "image": convert_to_tensor(sample["image"], track_meta=False).contiguous(),
            "label": convert_to_tensor(sample["label"], dtype=torch.int64, track_meta=False).contiguous(),
            "case": case.name,
            "site": case.site,
        }


class MicroBatches:
    """Patch indices of each forward pass from one optimizer step to another, for one of several processes.

    Processes share the stream: with world size W and batch size N, forward pass m takes the patches
    m·W·N … (m + 1)·W·N - 1, and rank r the r-th N of them.
    """

    def __init__(self, first: int, last: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.first, self.last = first, last
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size

    def __len__(self) -> int:
        return max(self.last - self.first, 0)

    def __iter__(self) -> Iterator[list[int]]:
        for number in range(self.first, self.last):
            start = (number * self.world_size + self.rank) * self.batch_size
            yield list(range(start, start + self.batch_size))


def collate_patches(patches: list[Patch | DataError]) -> PatchBatch | DataError:
    """Batch of the patches, or the first error among them."""
    good: list[Patch] = []
    for patch in patches:
        if isinstance(patch, DataError):
            return patch
        good.append(patch)
    return {
        "image": torch.stack([patch["image"] for patch in good]),
        "label": torch.stack([patch["label"] for patch in good]),
        "cases": [patch["case"] for patch in good],
        "sites": [patch["site"] for patch in good],
    }


def load_batches(stream: PatchStream, first: int, last: int, batch_size: int) -> Iterator[PatchBatch]:
    """Batches number `first` to `last` - 1 of a single process, loaded in this one.

    Raises:
        DataError: a patch cannot be made.
    """
    for indices in MicroBatches(first, last, batch_size):
        batch = collate_patches([stream[index] for index in indices])
        if isinstance(batch, DataError):
            raise batch
        yield batch
