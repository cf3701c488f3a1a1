"""What a person asks a plan for."""

import re
from dataclasses import dataclass

from medseg_brn.errors import ConfigError

SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Request:
    """Dataset and budgets.

    Attributes:
        path: of the dataset, or the name of a phantom cohort.
        memory_bytes: that the training process may take (on a GPU: of the GPU); None for what the machine
            has to spare.
        time_seconds: that the run may take.
        device: "auto", "cpu" or "cuda".
    """

    path: str
    layout: str = "auto"
    modalities: tuple[str, ...] | None = None
    memory_bytes: float | None = None
    time_seconds: float = 1800.0
    device: str = "auto"


def parse_duration(text: str) -> float:
    """Seconds in a text such as "30m", "2h", "1h30m", "90 min" or "45s".

    Raises:
        ConfigError: it is no positive duration in these units.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(min|[smhd])", text.lower())
    rest = re.sub(r"(\d+(?:\.\d+)?)\s*(min|[smhd])|\s", "", text.lower())
    seconds = sum(float(number) * SECONDS[unit] for number, unit in parts)
    if rest or not 1 <= seconds < 1e8:
        raise ConfigError(f"Time {text!r} is no duration; write it as 30m, 2h, 1h30m or 2d")
    return seconds
