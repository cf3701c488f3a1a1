"""Mini-batches as laboratories deliver them or mixed, and the training of the classifiers."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medseg_brn.studies.batch_effects.classifiers import Classifiers

SIZE = 8
"""Samples in a mini-batch."""
OBSERVED = 48
"""Mini-batches whose normalization is observed after training."""


@dataclass(frozen=True)
class Recipe:
    """How every classifier is trained; AdamW, learning rate falling to 0 along a cosine."""

    steps: int = 300
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2


@dataclass(frozen=True)
class Trained:
    """R trained classifiers and what they make of other samples."""

    classifiers: Classifiers
    means: Tensor
    """(R, genes) of the training samples."""
    spreads: Tensor
    """(R, genes) standard deviations of the training samples; 1 for a gene that does not vary."""

    def normalize(self, values: np.ndarray) -> np.ndarray:
        """Return the first norm's output in evaluation; (R, n, genes) to the same."""
        with torch.no_grad():
            return self.classifiers.norm(self._standardize(values)).transpose(0, 1).numpy()

    def score(self, values: np.ndarray) -> np.ndarray:
        """Return log probabilities; (R, n, genes) to (R, n, groups)."""
        with torch.no_grad():
            return F.log_softmax(self.classifiers(self._standardize(values)), -1).transpose(0, 1).numpy()

    def observe_training(self, values: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """Return the first norm's output in training passes.

        Args:
            values: (R, n, genes) training samples.
            drawn: (R, steps, size) mini-batches; the last `OBSERVED` are passed.

        Returns:
            (R, mini-batches · size, genes), in the order of `drawn`.
        """
        norm = copy.deepcopy(self.classifiers.norm).train()
        for layer in norm.modules():
            if hasattr(layer, "momentum"):
                layer.momentum = 0.0  # type: ignore[assignment]  # it shows what it does, and learns no more
        drawn = drawn[:, -OBSERVED:]
        inputs = self._standardize(values)
        with torch.no_grad():
            outputs = [norm(_take(inputs, drawn[:, step])) for step in range(drawn.shape[1])]
        return torch.cat(outputs).transpose(0, 1).numpy()

    def _standardize(self, values: np.ndarray) -> Tensor:
        return _standardize(values, self.means, self.spreads)


def draw_mini_batches(
    batches: np.ndarray, pure: bool, steps: int, random: np.random.Generator, size: int = SIZE
) -> np.ndarray:
    """Draw the training samples of each step, without repetition inside a step where there are enough.

    Args:
        batches: (n,) the batch of each training sample.
        pure: whether a step's samples are of one batch, drawn in proportion to its samples, or of all.
        steps: how many.
        random: draws.
        size: samples per step.

    Returns:
        (steps, size) indices into the samples.
    """
    drawn = np.empty((steps, size), dtype=np.int64)
    source = random.choice(batches, steps) if pure else np.zeros(steps, dtype=np.int64)
    for batch in np.unique(source):
        of_batch = source == batch
        members = np.flatnonzero(batches == batch) if pure else np.arange(len(batches))
        keys = random.random((np.count_nonzero(of_batch), len(members)))
        order = np.resize(np.argsort(keys, axis=1).T, (size, len(keys))).T  # repeats where there are too few
        drawn[of_batch] = members[order]
    return drawn


def train(
    values: np.ndarray,
    groups: np.ndarray,
    drawn: np.ndarray,
    norm: str,
    randoms: Sequence[np.random.Generator],
    recipe: Recipe = Recipe(),
) -> Trained:
    """Train R classifiers, each on its own samples.

    Args:
        values: (R, n, genes) samples; only those in `drawn` are seen, also by the standardization.
        groups: (R, n) from 0.
        drawn: (R, steps, size) mini-batches.
        norm: one of `NORMS`.
        randoms: one generator per classifier.
        recipe: steps must be those of `drawn`.
    """
    means, spreads = _measure_genes(values, drawn)
    inputs, targets = _standardize(values, means, spreads), torch.from_numpy(groups).T
    classifiers = Classifiers(norm, values.shape[2], int(groups.max()) + 1, recipe.steps, randoms).train()
    optimizer = torch.optim.AdamW(
        classifiers.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay, foreach=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    for step in range(recipe.steps):
        chosen = drawn[:, step]
        logits = classifiers(_take(inputs, chosen))
        # The sum over networks keeps each one's gradient its own; the mean is over its mini-batch.
        loss = F.cross_entropy(logits.flatten(0, 1), _take(targets, chosen).flatten(), reduction="sum")
        optimizer.zero_grad()
        (loss / chosen.shape[1]).backward()
        optimizer.step()
        schedule.step()
    return Trained(classifiers.eval(), means, spreads)


def _measure_genes(values: np.ndarray, drawn: np.ndarray) -> tuple[Tensor, Tensor]:
    """(R, genes) means and standard deviations of each network's training samples."""
    seen = [sample[np.unique(indices)] for sample, indices in zip(values, drawn, strict=True)]
    means = np.stack([sample.mean(axis=0) for sample in seen])
    spreads = np.stack([sample.std(axis=0) for sample in seen])
    return torch.from_numpy(means), torch.from_numpy(np.where(spreads > 1e-9, spreads, 1))


def _standardize(values: np.ndarray, means: Tensor, spreads: Tensor) -> Tensor:
    """(R, n, genes) to (n, R, genes) float32."""
    return ((torch.from_numpy(values).transpose(0, 1) - means) / spreads).float()


def _take(samples: Tensor, chosen: np.ndarray) -> Tensor:
    """(n, R, ...) samples and (R, size) indices to (size, R, ...)."""
    return samples[torch.from_numpy(chosen).T, torch.arange(chosen.shape[0])]
