"""What each patch was that a network was trained on: its case, its classes, and how well it was predicted."""

import torch
import torch.nn.functional as F
from torch import Tensor

from medseg_brn.cases.targets import Targets
from medseg_brn.patches.stream import PatchBatch
from medseg_brn.reports.step_records import PatchRecord

STRIDE = 2
"""The loss of a patch is computed from every second voxel along each axis: an eighth of the work."""


class PatchLog:
    """Collects the patches of a step, forward pass by forward pass."""

    def __init__(self, targets: Targets) -> None:
        self._targets = targets
        self._seen: list[tuple[list[str], Tensor, Tensor]] = []

    def take_in(self, batch: PatchBatch, logits: Tensor, classes: Tensor) -> None:
        """Note a batch.

        Args:
            batch: as it was loaded.
            logits: (N, K, X, Y, Z), the network's answer.
            classes: (N, 1, X, Y, Z), the batch's label maps on the network's device.
        """
        # Nothing is read from the device here, which may still be busy with the backward pass.
        losses = compute_patch_losses(logits, classes, self._targets)
        self._seen.append((batch["cases"], count_classes(batch["label"]), losses))

    def read(self, step: int) -> list[PatchRecord]:
        """The patches since the last call, as those of `step`."""
        records = []
        for cases, counts, losses in self._seen:
            for case, row, loss in zip(cases, counts.tolist(), losses.tolist(), strict=True):
                voxels = {index: count for index, count in enumerate(row) if count}
                records.append(PatchRecord(step, case, loss, voxels))
        self._seen.clear()
        return records


def count_classes(label: Tensor) -> Tensor:
    """Voxels of each class in each patch: (N, 1, X, Y, Z) classes -> (N, largest class + 1)."""
    rows = [torch.bincount(patch.flatten()) for patch in label]
    width = max(len(row) for row in rows)
    return torch.stack([F.pad(row, (0, width - len(row))) for row in rows])


@torch.no_grad()
def compute_patch_losses(logits: Tensor, classes: Tensor, targets: Targets) -> Tensor:
    """Mean cross-entropy of each patch, (N,) float32 in nats; NaN where all its voxels are to be ignored.

    For regions, the mean over the regions of the binary cross-entropy. Class weights and the Dice term, which
    pools the patches of a batch, are left out.

    Args:
        logits: (N, K, X, Y, Z).
        classes: (N, 1, X, Y, Z).
        targets: what the K channels are.
    """
    thinned = (..., slice(None, None, STRIDE), slice(None, None, STRIDE), slice(None, None, STRIDE))
    scores, labels = logits.detach()[thinned].float(), classes[thinned][:, 0]
    if targets.ignore_class is None:
        known = torch.ones_like(labels, dtype=torch.bool)
    else:
        known = labels != targets.ignore_class
        labels = labels.where(known, 0)
    if targets.regions:
        masks = torch.from_numpy(targets.members()).to(labels.device)[:, labels].movedim(0, 1)
        losses = F.binary_cross_entropy_with_logits(scores, masks.float(), reduction="none").mean(1)
    else:
        losses = F.cross_entropy(scores, labels, reduction="none")
    return (losses * known).flatten(1).sum(1) / known.flatten(1).sum(1)
