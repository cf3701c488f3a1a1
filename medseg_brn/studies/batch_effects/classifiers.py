"""Small classifiers of expression profiles with the norm as their layers, many independent ones at a time.

R networks for R datasets are one module: tensors are (N, R, features), and nothing crosses R. A norm per
channel sees R · features channels, so it is the package's own layer, unchanged.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg_brn.networks.normalization import make_normalization

NORMS = ("none", "batch_renorm", "batch", "layer")
HIDDEN = 32
MOMENTUM = 0.05
SCHEDULE = (0.1, 0.4, 0.4)
"""Shares of the steps at which renorm's limits leave (1, 0), d_max is reached, r_max is reached."""


class Norm(nn.Module):
    """The norm of (N, R, features), for each of the R networks its own."""

    def __init__(self, name: str, networks: int, features: int, steps: int, affine: bool) -> None:
        super().__init__()
        self.name = name
        if name in ("batch_renorm", "batch"):
            options: dict[str, Any] = {"momentum": MOMENTUM, "affine": affine}
            if name == "batch_renorm":
                options["schedule"] = tuple(round(share * steps) for share in SCHEDULE)
            self.layer = make_normalization(name, networks * features, dimensions=1, **options)
        elif name == "layer" and affine:
            self.weight = nn.Parameter(torch.ones(networks, features))
            self.bias = nn.Parameter(torch.zeros(networks, features))

    def forward(self, input: Tensor) -> Tensor:
        """Normalizes (N, R, features) over N per network and feature, or over features (`layer`)."""
        if self.name == "none":
            return input
        if self.name == "layer":
            output = F.layer_norm(input, input.shape[-1:])
            return output * self.weight + self.bias if hasattr(self, "weight") else output
        return self.layer(input.flatten(1)).view_as(input)


class Linear(nn.Module):
    """A linear map for each of R networks: (N, R, inputs) to (N, R, outputs)."""

    def __init__(self, inputs: int, outputs: int, randoms: Sequence[np.random.Generator]) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        drawn = np.stack([random.uniform(-bound, bound, (inputs, outputs)) for random in randoms])
        self.weight = nn.Parameter(torch.from_numpy(drawn).float())
        self.bias = nn.Parameter(torch.zeros(len(randoms), 1, outputs))

    def forward(self, input: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, input.transpose(0, 1), self.weight).transpose(0, 1)


class Classifiers(nn.Module):
    """R classifiers: norm, linear, norm, ReLU, linear; the first norm, of the genes, learns no scale.

    Args:
        norm: one of `NORMS`.
        genes: inputs of each.
        groups: outputs of each.
        steps: of the training, over which renorm's limits rise.
        randoms: one generator per network, for its initial weights.
    """

    def __init__(
        self, norm: str, genes: int, groups: int, steps: int, randoms: Sequence[np.random.Generator]
    ) -> None:
        super().__init__()
        self.norm = Norm(norm, len(randoms), genes, steps, affine=False)
        self.hidden = Linear(genes, HIDDEN, randoms)
        self.hidden_norm = Norm(norm, len(randoms), HIDDEN, steps, affine=True)
        self.output = Linear(HIDDEN, groups, randoms)

    def forward(self, input: Tensor) -> Tensor:
        """(N, R, genes) to (N, R, groups) logits."""
        return self.output(F.relu(self.hidden_norm(self.hidden(self.norm(input)))))
