"""What is compared: discriminators that differ in their norm, and in what their batches hold."""

from dataclasses import dataclass, field
from typing import Any

from medseg_brn.config import AdversarialConfig


@dataclass(frozen=True)
class Arm:
    """A discriminator."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    """Of `AdversarialConfig`."""

    def configure(self, **shared: Any) -> AdversarialConfig:
        """Its options, and those that all arms share."""
        return AdversarialConfig(**shared, **self.options)


BATCH, TIGHT, WIDE = "BatchNorm, mixed", "renorm (1.5, 0.5)", "renorm (3, 5)"
SEPARATE, GROUP, SPECTRAL = "BatchNorm, separate", "GroupNorm", "spectral norm"
WITHOUT = "no discriminator"

ARMS = (
    Arm(BATCH, {"norm": "batch"}),
    Arm(SEPARATE, {"norm": "batch", "batches": "separate"}),
    Arm(TIGHT, {"r_max": 1.5, "d_max": 0.5}),
    Arm("renorm (3, 1)", {"r_max": 3.0, "d_max": 1.0}),
    Arm(WIDE, {"r_max": 3.0, "d_max": 5.0}),
    Arm(GROUP, {"norm": "group"}),
    Arm(SPECTRAL, {"norm": "spectral"}),
)
