"""What a network is trained to lower: Dice + cross-entropy, on one or several resolutions."""

import difflib
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F

from medseg_brn.cases.targets import Targets
from medseg_brn.config import Experiment
from medseg_brn.errors import ConfigError
from medseg_brn.training.dice_cross_entropy import Membership, dice_cross_entropy

Loss = Callable[[torch.Tensor | list[torch.Tensor], torch.Tensor], torch.Tensor]


def make_loss(
    targets: Targets, *, deep_supervision: bool = False, class_weights: Mapping[str, float] | None = None
) -> Loss:
    """Loss of logits (N, K, X, Y, Z) against classes (N, 1, X, Y, Z): Dice over the batch + cross-entropy.

    Exclusive classes have a softmax; the Dice term leaves out the background. Regions have a sigmoid and a
    binary cross-entropy each, and all have a Dice term. Dice pools the batch's voxels (a class that is
    absent from one patch is often present in its neighbour); cross-entropy is the mean over voxels (and
    regions). Voxels of the ignore class count in neither; a batch of nothing else has loss 0.

    With deep supervision the logits are a list, finest first, weighted 1, 1/2, 1/4 … and normalized to a
    sum of one; classes are resized to each by nearest neighbour. Without it a list's finest logits count.

    Args:
        targets: what the K channels are, and which class is ignored.
        deep_supervision: whether coarser logits count too.
        class_weights: by name of a structure, or of the background where classes are exclusive: how much it
            counts, above 0; 1 for those that are not named. Both means become weighted means: that of the
            cross-entropies by the weight of a voxel's class (or of the region), that of the Dice terms by
            the weight of the class or region.

    Raises:
        ConfigError: `class_weights` names something else.
    """
    membership = _make_membership(targets, _choose_weights(targets, class_weights or {}))

    def loss(logits: torch.Tensor | list[torch.Tensor], classes: torch.Tensor) -> torch.Tensor:
        # a network of two levels has no coarser logits, and evaluation mode gives none
        levels = [logits] if isinstance(logits, torch.Tensor) else logits
        used = levels if deep_supervision else levels[:1]
        shares = [0.5**level for level in range(len(used))]
        terms = [
            share * dice_cross_entropy(level, _resize(classes, level), membership)
            for share, level in zip(shares, used, strict=True)
        ]
        return torch.stack(terms).sum() / sum(shares)

    return loss


def make_loss_of(experiment: Experiment, targets: Targets) -> Loss:
    """The loss that the experiment is trained with; see `make_loss`."""
    return make_loss(
        targets,
        deep_supervision=experiment.network.deep_supervision,
        class_weights=experiment.training.class_weights,
    )


def _make_membership(targets: Targets, weights: Sequence[float]) -> Membership:
    """What the network's channels stand for, given one weight per channel."""
    dice_weights = torch.tensor(weights, dtype=torch.float64)
    if not targets.regions:
        dice_weights[0] = 0  # the background
    return Membership(
        torch.from_numpy(targets.members()).float(),
        dice_weights / dice_weights.sum(),
        torch.tensor(weights, dtype=torch.float64),
        exclusive=not targets.regions,
        ignore_class=targets.ignore_class,
    )


def _choose_weights(targets: Targets, given: Mapping[str, float]) -> list[float]:
    """One weight per channel of the logits."""
    names = targets.structure_names if targets.regions else targets.class_names
    for name in given:
        if name not in names:
            nearest = difflib.get_close_matches(name, names, n=1, cutoff=0)
            raise ConfigError(
                f"training.class_weights names {name!r}, which the network does not learn; it learns "
                f"{', '.join(names)}; the nearest: {', '.join(nearest)}"
            )
    return [given.get(name, 1.0) for name in names]


def _resize(classes: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """The classes on the grid of the logits, by nearest neighbour."""
    if classes.shape[2:] == logits.shape[2:]:
        return classes
    return F.interpolate(classes.float(), size=logits.shape[2:], mode="nearest-exact")
