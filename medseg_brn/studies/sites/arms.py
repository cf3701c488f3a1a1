"""What is compared: norms, whose batches hold one site or several, on stored or on harmonized values."""

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["batch", "batch_renorm", "layer", "group", "instance", "domain_batch"]
Batches = Literal["pure", "balanced"]
"""A batch has one site, or as many as it can; see `SiteTurns`."""


@dataclass(frozen=True)
class Norm:
    """A norm by the name it has on the page; the clips count for batch renorm only."""

    name: str
    kind: Kind
    """As `make_normalization` knows it."""
    r_max: float = 1.0
    d_max: float = 0.0

    @property
    def clips(self) -> dict[str, Any]:
        """Its options beyond the momentum."""
        return {"r_max": self.r_max, "d_max": self.d_max} if self.kind == "batch_renorm" else {}

    @property
    def has_statistics(self) -> bool:
        """Whether it keeps running statistics, and normalizes by the batch in training."""
        return self.kind in ("batch", "batch_renorm", "domain_batch")


BATCH = Norm("BatchNorm", "batch")
TIGHT = Norm("renorm (1.5, 0.5)", "batch_renorm", 1.5, 0.5)
WIDE = Norm("renorm (3, 5)", "batch_renorm", 3.0, 5.0)
LAYER = Norm("LayerNorm", "layer")
GROUP = Norm("GroupNorm", "group")
INSTANCE = Norm("InstanceNorm", "instance")
DOMAIN = Norm("domain-specific BatchNorm", "domain_batch")


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    norm: Norm
    batches: Batches
    harmonized: bool = False
    """Whether the network sees z-scores instead of the values as they were stored."""

    @property
    def name(self) -> str:
        """As it stands on the page and in the measurements."""
        return f"{self.norm.name}{', harmonized' if self.harmonized else ''}, {self.batches}"


LINEAR_ARMS = (
    *(Arm(norm, "pure") for norm in (BATCH, TIGHT, WIDE, LAYER, GROUP, DOMAIN)),
    *(Arm(norm, "pure", harmonized=True) for norm in (BATCH, WIDE)),
    *(Arm(norm, "balanced") for norm in (BATCH, TIGHT, WIDE, LAYER, GROUP)),
    *(Arm(norm, "balanced", harmonized=True) for norm in (BATCH, WIDE)),
)
"""Balanced batches are small: most sites have a single item there, of which BatchNorm takes no statistics."""

SCAN_ARMS = (
    *(Arm(norm, "pure") for norm in (BATCH, WIDE, DOMAIN)),
    Arm(BATCH, "pure", harmonized=True),
    *(Arm(norm, "balanced") for norm in (BATCH, WIDE, GROUP, INSTANCE)),
    Arm(WIDE, "balanced", harmonized=True),
)
