"""Dice + cross-entropy, on one or several resolutions."""

from collections.abc import Callable, Mapping

import torch
from monai.losses import DeepSupervisionLoss, DiceCELoss

from medseg_brn.cases.targets import Targets

Loss = Callable[[torch.Tensor | list[torch.Tensor], torch.Tensor], torch.Tensor]


def make_loss(
    targets: Targets, *, deep_supervision: bool = False, class_weights: Mapping[str, float] | None = None
) -> Loss:
    """Loss of logits (N, K, X, Y, Z) against classes (N, 1, X, Y, Z): Dice over the batch + cross-entropy.

    The Dice term leaves out the background and pools the batch's voxels (a class that is absent from one
    patch is often present in its neighbour). With deep supervision the logits are a list, finest first,
    weighted 1, 1/2, 1/4 … and normalized to a sum of one; classes are resized to each by nearest neighbour.
    """
    dice_ce = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    if not deep_supervision:
        return lambda logits, classes: dice_ce(_single(logits).float(), classes)
    supervised = DeepSupervisionLoss(dice_ce, weight_mode="exp")

    def loss(logits: torch.Tensor | list[torch.Tensor], classes: torch.Tensor) -> torch.Tensor:
        # a network of two levels has no coarser logits, and evaluation mode gives none
        several = [logits] if isinstance(logits, torch.Tensor) else logits
        levels = [level.float() for level in several]
        total = sum(0.5**level for level in range(len(levels)))
        return supervised(levels, classes.float()) / total

    return loss


def _single(logits: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
    return logits if isinstance(logits, torch.Tensor) else logits[0]
