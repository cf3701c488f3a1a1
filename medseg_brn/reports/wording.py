"""Numbers as people say them, the same on every page and in every message."""

from collections.abc import Iterable


def tell_duration(seconds: float) -> str:
    """A duration in two or three digits: 0.25 s, 42 s, 7 min, 3.2 h."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def times(values: Iterable[float]) -> str:
    """Numbers along axes, whole from 1000 on: 1 × 1 × 2.5."""
    return " × ".join(f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}" for value in values)
