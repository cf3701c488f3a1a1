"""What is compared: a correction of the data or none, a norm or none, mini-batches of one batch or mixed."""

from dataclasses import dataclass

from medseg_brn.studies.batch_effects.corrections import (
    Correction,
    apply_combat,
    apply_combat_with_group,
    leave,
    standardize_per_batch,
)


@dataclass(frozen=True)
class Arm:
    """One way to a classifier."""

    method: str
    """What the page calls it, without the mini-batches."""
    correction: Correction
    norm: str
    pure: bool
    """Whether a mini-batch holds samples of one batch only, as laboratories deliver them."""

    @property
    def mini_batches(self) -> str:
        return "pure" if self.pure else "mixed"


CORRECTIONS: dict[str, Correction] = {
    "no correction": leave,
    "z-score per batch": standardize_per_batch,
    "ComBat": apply_combat,
    "ComBat with group": apply_combat_with_group,
}
NORMED = {"renorm": "batch_renorm", "BatchNorm": "batch", "LayerNorm": "layer"}
METHODS = (*CORRECTIONS, *NORMED)

ARMS = tuple(
    Arm(method, CORRECTIONS.get(method, leave), NORMED.get(method, "none"), pure)
    for method in METHODS
    for pure in (True, False)
)
