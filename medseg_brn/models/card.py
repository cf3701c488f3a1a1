"""A model's card: what its user should know and no program needs."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

Colour = Annotated[str, Field(pattern="^#[0-9a-f]{6}$")]
"""As "#ff9a3d"."""

NORMALIZATION_REASONS = {
    "batch_renorm": (
        "Batch Renormalization: normalizes by long-run statistics while it trains, so that the network is "
        "used as it was trained, folds into convolutions and gives one answer whatever the tile size."
    ),
    "mabn": (
        "Moving Average Batch Normalization: statistics of many small batches, also in the gradient; folds "
        "into convolutions and gives one answer whatever the tile size."
    ),
    "batch": (
        "BatchNorm: normalizes each training batch by its own statistics, which small batches make noisy, "
        "and scans by those of training; folds into convolutions and gives one answer whatever the tile size."
    ),
    "sync_batch": (
        "BatchNorm over the batches of all processes, and scans by the statistics of training; folds into "
        "convolutions and gives one answer whatever the tile size."
    ),
    "domain_batch": (
        "A BatchNorm for each site of the training scans, so that scanners that differ are normalized apart; "
        "scans of other sites get the mixture."
    ),
    "group": "GroupNorm: knows no batch, so that its size is free; answers depend on the tile.",
    "instance": "InstanceNorm: knows no batch and no contrast of the whole scan; answers depend on the tile.",
    "layer": "LayerNorm over channels and voxels: knows no batch; answers depend on the tile.",
    "none": "None: convolutions have a bias instead.",
}
"""What each `network.norm` does, for a card that gives no reason of its own."""


class TrainingData(BaseModel):
    """A dataset that a model was trained on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    cases: PositiveInt | None = None
    """Scans trained on."""
    source: str | None = None
    """Where it is to be had: an address, or who made it."""
    licence: str | None = None
    attribution: str | None = None
    """What the licence asks to be said of its makers."""


class ExpectedScans(BaseModel):
    """The scans that a model is made for; channels and modalities stand in the description itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    body_part: str | None = None
    acquisition: str | None = None
    """Sequence, contrast agent, field of view, orientation: whatever matters."""
    spacing_mm: tuple[PositiveFloat, PositiveFloat] | None = None
    """The least and the greatest voxel edge among the scans that it was tried on."""

    @model_validator(mode="after")
    def _spacing_is_ordered(self) -> Self:
        if self.spacing_mm is not None and self.spacing_mm[0] > self.spacing_mm[1]:
            raise ValueError(f"spacing_mm {self.spacing_mm} goes from a greater to a lesser edge")
        return self


class Card(BaseModel):
    """What is told of a model besides what inference needs.

    Figures of its quality are not here: they stand once, in the description's `training`, and
    `models.quality` reads them. The licence of the weights is the description's `licence`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    summary: str
    """What it does, in a sentence or two."""
    training_data: tuple[TrainingData, ...] = ()
    expected_scans: ExpectedScans | None = None
    limits: tuple[str, ...] = ()
    """What it does not do, where it was not tried, how it fails: a sentence each."""
    normalization: str | None = None
    """Which normalization and why; without it, what is known of `network.norm` is told."""
    citation: str | None = None
    """What to cite."""
