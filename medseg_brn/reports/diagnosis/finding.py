"""One thing that a run's records say went wrong."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

Weight = Literal[1, 2, 3]
WORDS: dict[Weight, str] = {3: "serious", 2: "notable", 1: "hint"}


@dataclass(frozen=True)
class Finding:
    """What was found, the numbers that say so, and what to do."""

    kind: str
    """Which check found it."""
    weight: Weight
    """3: the result cannot be used as it is; 2: it probably costs accuracy or time; 1: worth knowing."""
    what: str
    """One short sentence, without a full stop."""
    numbers: str
    remedy: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    def tell(self) -> str:
        """All of it in one line."""
        return f"{self.what}: {self.numbers}. {self.remedy}."


def order_findings(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The weightiest first, those of one weight in the order given."""
    return tuple(sorted(findings, key=lambda finding: -finding.weight))


def robust_z(values: np.ndarray) -> np.ndarray:
    """How far each value lies from the median, in robust standard deviations: (n,) -> (n,).

        z = (x - median) / (1.4826 · MAD)

    MAD is the median absolute deviation; where it is 0, so is z (Iglewicz and Hoaglin 1993).
    """
    deviations = values - np.median(values)
    scale = 1.4826 * np.median(np.abs(deviations))
    return deviations / scale if scale > 0 else np.zeros_like(deviations)
