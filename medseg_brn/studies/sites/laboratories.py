"""The linear model: x = a_l·z + b_l + ε, with a gain and an offset of its own for each laboratory l.

An item is a vector z ~ N(0, I) of features, the same in all laboratories; its class is the side of a plane
through 0 that z lies on. A laboratory stores x: each feature times its gain, plus its offset, plus noise.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

FEATURES = 8
LOG_GAIN, OFFSET, NOISE = 0.3, 1.0, 0.3
"""Standard deviations of ln a, of b and of ε, where z has 1."""


@dataclass(frozen=True, eq=False)
class Items:
    """N items as the laboratories store them."""

    features: Tensor
    """(N, FEATURES)."""
    classes: Tensor
    """(N,) float, 0 or 1."""
    laboratories: Tensor
    """(N,) int64."""


@dataclass(frozen=True, eq=False)
class Laboratories:
    """L laboratories, and the plane that tells the classes apart in all of them."""

    gain: Tensor
    """(L, FEATURES) a."""
    offset: Tensor
    """(L, FEATURES) b."""
    normal: Tensor
    """(FEATURES,) of the plane, of length 1."""

    def draw(self, laboratories: Tensor, rng: torch.Generator) -> Items:
        """One item for each entry of `laboratories`, (N,) int64."""
        z = torch.randn(len(laboratories), FEATURES, generator=rng)
        noise = NOISE * torch.randn(len(laboratories), FEATURES, generator=rng)
        features = self.gain[laboratories] * z + self.offset[laboratories] + noise
        return Items(features, (z @ self.normal > 0).float(), laboratories)

    def draw_each(self, count: int, rng: torch.Generator) -> Items:
        """`count` items of every laboratory, one laboratory after the other."""
        return self.draw(torch.arange(len(self.gain)).repeat_interleave(count), rng)


@dataclass(frozen=True, eq=False)
class Harmonization:
    """Mean and standard deviation of each feature in each laboratory, both (L, FEATURES)."""

    mean: Tensor
    std: Tensor

    def apply(self, items: Items) -> Items:
        """The same items, each feature as a z-score within the laboratory."""
        own = items.laboratories
        return Items((items.features - self.mean[own]) / self.std[own], items.classes, own)


def draw_laboratories(count: int, rng: torch.Generator) -> Laboratories:
    """Laboratories and a plane by chance."""
    gain = (LOG_GAIN * torch.randn(count, FEATURES, generator=rng)).exp()
    offset = OFFSET * torch.randn(count, FEATURES, generator=rng)
    normal = torch.randn(FEATURES, generator=rng)
    return Laboratories(gain, offset, normal / normal.norm())


def measure_harmonization(items: Items, count: int) -> Harmonization:
    """What z-scores need of each of `count` laboratories, from items whose classes nobody has to know."""
    groups = [items.features[items.laboratories == number] for number in range(count)]
    return Harmonization(
        torch.stack([group.mean(0) for group in groups]), torch.stack([group.std(0) for group in groups])
    )


def compute_best_accuracy(laboratories: Laboratories) -> Tensor:
    """(L,) accuracy of the best rule that knows the laboratory's gain and offset, in [.5, 1].

    Given x, the projection w·z has the mean Σ w_j·a_j·(x_j - b_j)/(a_j² + σ²); with z it has the correlation

        ρ² = Σ w_j²·a_j²/(a_j² + σ²)

    and two normal variables of correlation ρ have the same sign with probability 1 - arccos(ρ)/π.
    """
    squares = laboratories.gain.double().square()
    correlation = (laboratories.normal.double().square() * squares / (squares + NOISE**2)).sum(1).sqrt()
    return 1 - correlation.clamp(max=1).arccos() / math.pi
