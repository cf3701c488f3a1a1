"""An endless stream of training patches that is a pure function of (seed, index).

Patch number i is the same whichever worker, process or restarted run asks for it: this is what makes a
resumed run equal an uninterrupted one.
"""

from collections.abc import Iterator, Sequence
from typing import TypedDict

import numpy as np
import torch
from monai.utils import convert_to_tensor
from torch.utils.data import Dataset

from medseg_brn.cases.cache import PreparedCase
from medseg_brn.config import PatchesConfig
from medseg_brn.errors import DataError
from medseg_brn.patches.augmentation import make_augmentation, region_size


class Patch(TypedDict):
    """One training patch."""

    image: torch.Tensor
    """(C, X, Y, Z) float32."""
    label: torch.Tensor
    """(1, X, Y, Z) int64 classes."""
    case: str


class PatchBatch(TypedDict):
    """Patches of one forward pass."""

    image: torch.Tensor
    """(N, C, X, Y, Z) float32."""
    label: torch.Tensor
    """(N, 1, X, Y, Z) int64 classes."""
    cases: list[str]


class PatchStream(Dataset):
    """Patches by index: every case once per epoch in random order, at random places.

    Args:
        cases: prepared training cases.
        config: size, foreground share and augmentation.
        seed: the experiment's seed.

    Raises:
        DataError: there are no cases.
    """

    def __init__(self, cases: Sequence[PreparedCase], config: PatchesConfig, seed: int) -> None:
        if not cases:
            raise DataError("There are no training cases: the dataset is empty or all cases are held out")
        self.cases = list(cases)
        self.config = config
        self.seed = seed
        self._region_size = region_size(config.augmentation, config.size)
        self._augment = make_augmentation(config.augmentation, config.size) if config.augmentation else None

    def __getitem__(self, index: int) -> Patch | DataError:
        # A worker's error travels as a value, so that it arrives as itself instead of as a traceback's text.
        case = self._case_of(index)
        try:
            return self._make_patch(case, np.random.default_rng([self.seed, index]))
        except DataError as error:
            return error
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            return DataError(f"No patch could be made of case {case.name!r} ({reason}); please report this")

    def _case_of(self, index: int) -> PreparedCase:
        epoch, place = divmod(index, len(self.cases))
        order = np.random.default_rng([self.seed, epoch, len(self.cases)]).permutation(len(self.cases))
        return self.cases[order[place]]

    def _make_patch(self, case: PreparedCase, rng: np.random.Generator) -> Patch:
        image, label_map = case.image(), case.label_map()
        centre = sample_centre(
            label_map.shape, self.config.size, case.foreground(), self.config.foreground_fraction, rng
        )
        sample = {
            "image": torch.from_numpy(cut_region(image, centre, self._region_size)),
            "label": torch.from_numpy(
                cut_region(label_map[None], centre, self._region_size).astype(np.float32)
            ),
        }
        if self._augment is not None:
            self._augment.set_random_state(seed=int(rng.integers(2**32)))
            sample = self._augment(sample)
        return {
            "image": convert_to_tensor(sample["image"], track_meta=False).contiguous(),
            "label": convert_to_tensor(sample["label"], dtype=torch.int64, track_meta=False).contiguous(),
            "case": case.name,
        }


def sample_centre(
    shape: Sequence[int],
    size: Sequence[int],
    foreground: dict[int, np.ndarray],
    foreground_fraction: float,
    rng: np.random.Generator,
) -> tuple[int, int, int]:
    """Centre voxel of a random patch: on a foreground voxel with the given probability, else anywhere.

    Args:
        shape: the volume's (X, Y, Z).
        size: the patch's (X, Y, Z).
        foreground: class index → (n, 3) voxel coordinates; classes are drawn evenly, then a voxel.
        foreground_fraction: probability that the patch is centred on foreground.
        rng: source of randomness.

    Returns:
        A voxel whose patch lies inside the volume along every axis that is long enough; along the others
        the volume's middle.
    """
    wants_foreground = rng.random() < foreground_fraction
    present = [coordinates for _, coordinates in sorted(foreground.items()) if len(coordinates)]
    if wants_foreground and present:
        coordinates = present[rng.integers(len(present))]
        wanted = np.asarray(coordinates[rng.integers(len(coordinates))])
    else:
        wanted = rng.integers(np.asarray(shape))
    x, y, z = (_inside(int(w), n, s) for w, n, s in zip(wanted, shape, size, strict=True))
    return x, y, z


def _inside(wanted: int, length: int, size: int) -> int:
    if length <= size:
        return length // 2
    return min(max(wanted, size // 2), length - size + size // 2)


def cut_region(array: np.ndarray, centre: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """Copy of (C, *size) voxels around `centre`; voxels outside the (C, X, Y, Z) array are zero.

    size 4, centre 2:   0 1 [2] 3      the centre is voxel size // 2 of the region
    """
    lower = [c - s // 2 for c, s in zip(centre, size, strict=True)]
    source, target = [slice(None)], [slice(None)]
    for start, length, extent in zip(lower, size, array.shape[1:], strict=True):
        first, last = max(start, 0), min(start + length, extent)
        source.append(slice(first, last))
        target.append(slice(first - start, last - start))
    region = np.zeros((array.shape[0], *size), dtype=array.dtype)
    region[tuple(target)] = array[tuple(source)]
    return region


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
