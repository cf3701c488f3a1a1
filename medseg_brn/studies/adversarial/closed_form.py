"""What a norm lets a threshold see of one real and one fake value in a batch, by a formula and by drawing."""

from dataclasses import dataclass
from functools import partial
from math import exp, pi, sqrt

import numpy as np
from scipy.integrate import quad
from scipy.special import ndtr
from torch import nn

from medseg_brn.networks.normalization import make_normalization
from medseg_brn.probes.leakage import bayes_accuracy, measure_leakage


@dataclass(frozen=True)
class Limits:
    """A norm's limits, as BatchNorm is renorm with r = 1 and d = 0."""

    name: str
    r_max: float
    d_max: float

    def make_layer(self, channels: int) -> nn.Module:
        """The layer itself; BatchNorm is torch's."""
        if (self.r_max, self.d_max) == (1, 0):
            return make_normalization("batch", channels)
        return make_normalization("batch_renorm", channels, r_max=self.r_max, d_max=self.d_max)


LIMITS = (
    Limits("BatchNorm", 1, 0),
    Limits("renorm (1.5, 0.5)", 1.5, 0.5),
    Limits("renorm (3, 1)", 3, 1),
    Limits("renorm (3, 5)", 3, 5),
)


def compute_accuracy(separation: float, r_max: float, d_max: float) -> float:
    """Share of items on the right side of 0 after the norm of a batch of one real and one fake, in [0.5, 1].

    Real is x₁ ~ N(δ/2, 1), fake x₂ ~ N(-δ/2, 1), and the running statistics are the population's, mean 0 and
    σ² = 1 + δ²/4. With s = (x₁ + x₂)/2 ~ N(0, 1/2) and h = (x₁ - x₂)/2 ~ N(δ/2, 1/2), which are independent,
    the batch has mean s and standard deviation |h|, and x₁ comes out as

        sign(h)·r + d        r = clip(|h|/σ, 1/r_max, r_max)        d = clip(s/σ, -d_max, d_max)

    The chance that this is above 0, given h, follows from the distribution of s; one integral over h remains.
    By symmetry the fake has the same chance of being below 0. Without limits it is x₁/σ, and the chance
    Φ(δ/2); with r = 1 and d = 0 it is the sign of h, and the chance Φ(δ/√2).

    Args:
        separation: δ, at least 0.
        r_max: at least 1.
        d_max: at least 0.
    """
    sigma = sqrt(1 + separation**2 / 4)

    def weigh(h: float) -> float:
        r = min(max(abs(h) / sigma, 1 / r_max), r_max)
        # where r outweighs d, d cannot change the sign
        chance = float(h > 0 if r > d_max else ndtr(np.sign(h) * r * sigma * sqrt(2)))
        return chance * exp(-((h - separation / 2) ** 2)) / sqrt(pi)

    end = separation / 2 + 8.0
    corners = [0.0, *(sign * sigma * at for sign in (-1, 1) for at in (1 / r_max, r_max, d_max))]
    inside = sorted({corner for corner in corners if abs(corner) < end})
    return float(quad(weigh, -end, end, points=inside, limit=200, epsabs=1e-10)[0])


def measure_accuracy(limits: Limits, separation: float, pairs: int, seed: int) -> float:
    """The same share, of pairs drawn and passed through the layer itself."""
    leakage = measure_leakage(limits.make_layer, separation, pairs, seed)
    return leakage + bayes_accuracy(separation)


@dataclass(frozen=True)
class Draw:
    """A repetition of the measurement."""

    number: int
    seed: int
    separations: tuple[float, ...]
    pairs: int


def do_draw(draw: Draw) -> list[dict[str, str | int | float]]:
    """A row for each separation and norm; all of them see the same values."""
    state = np.random.SeedSequence((draw.seed, 0, draw.number)).generate_state(1)[0]
    measure = partial(measure_accuracy, pairs=draw.pairs, seed=int(state))
    return [
        {
            "stage": "closed form",
            "seed": draw.number,
            "arm": limits.name,
            "separation": separation,
            "accuracy_training": measure(limits, separation),
            "accuracy_formula": compute_accuracy(separation, limits.r_max, limits.d_max),
            "accuracy_single": bayes_accuracy(separation),
        }
        for separation in draw.separations
        for limits in LIMITS
    ]
