"""Small networks on the linear model: trained on items of some laboratories, tried on those and on others."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg_brn.networks.domain_norm import set_sites, take_site
from medseg_brn.networks.normalization import make_normalization
from medseg_brn.networks.surgery import recalibrate
from medseg_brn.patches.turns import SiteTurns
from medseg_brn.probes.layers import eval_mode, training_norms
from medseg_brn.studies.outcome import Row
from medseg_brn.studies.sites.arms import Arm, Batches, Norm
from medseg_brn.studies.sites.laboratories import (
    FEATURES,
    Items,
    Laboratories,
    compute_best_accuracy,
    draw_laboratories,
    measure_harmonization,
)

SEEN, UNSEEN = 6, 12
SITES = tuple(map(str, range(SEEN)))
WIDTH, BATCH_SIZE, LEARNING_RATE = 32, 8, 0.02
MOMENTUM = 0.02
"""Of all running statistics: those of one laboratory take in a sixth of the batches."""
HELD_OUT, UNLABELLED = 256, 256
"""Items of each laboratory that are predicted, and that z-scores and adapted statistics come from."""


@dataclass(frozen=True)
class LinearTrial:
    """One network to train."""

    arm: Arm
    number: int
    """Of the seed, from 0."""
    seed: int
    """Of the study."""
    steps: int

    def rng(self, purpose: int) -> torch.Generator:
        """A generator for one purpose, the same in all arms."""
        return make_rng(self.seed, self.number, purpose)


def make_rng(*numbers: int) -> torch.Generator:
    """A generator from several numbers."""
    state = np.random.SeedSequence((*numbers, 1)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def train_linear(trial: LinearTrial) -> Row:
    """Train one network, and measure its accuracy where it was trained and where it was not.

    seen_training, seen_evaluation: on the same held-out items of the seen laboratories, normalized as in
    training or in evaluation mode. seen_recalibrated: in evaluation mode, with statistics set anew from
    training items. unseen_evaluation: on other laboratories. unseen_adapted: there, with statistics set
    anew from the laboratory's own unlabelled items. Norms without running statistics have no numbers for
    what is set anew, nor has harmonized input for what is adapted: it is adapted already. seen_best,
    unseen_best: of the best rule that knows each laboratory's gain and offset.
    """
    arm, steps = trial.arm, trial.steps
    laboratories = draw_laboratories(SEEN + UNSEEN, trial.rng(0))
    unlabelled = laboratories.draw_each(UNLABELLED, trial.rng(1))
    harmonization = measure_harmonization(unlabelled, SEEN + UNSEEN)

    def prepare(items: Items) -> Items:
        return harmonization.apply(items) if arm.harmonized else items

    best = compute_best_accuracy(laboratories)
    training = prepare(_draw_in_turns(laboratories, arm.batches, steps, trial))
    held_out = prepare(_draw_in_turns(laboratories, arm.batches, SEEN * HELD_OUT // BATCH_SIZE, trial, 3))
    unseen = prepare(laboratories.draw_each(HELD_OUT, trial.rng(4)))
    network = make_network(arm.norm, steps, trial.rng(5))
    _train(network, training, steps)
    with training_norms(network):
        in_training = _predict(network, _split(held_out))
    row: dict[str, str | int | float] = {
        "part": "linear",
        "seed": trial.number,
        "arm": arm.name,
        "seen_training": _accuracy(in_training, held_out.classes),
        "seen_evaluation": _evaluate(network, held_out),
        "unseen_evaluation": _try_unseen(network, unseen),
        "seen_best": float(best[:SEEN].mean()),
        "unseen_best": float(best[SEEN:].mean()),
    }
    if arm.norm.has_statistics:
        row["seen_recalibrated"] = _evaluate(_recalibrate(network, training), held_out)
        if not arm.harmonized:
            row["unseen_adapted"] = _try_unseen(network, unseen, unlabelled)
    return row


def make_network(norm: Norm, steps: int, rng: torch.Generator) -> nn.Sequential:
    """Two hidden layers, each normalized; renorm's clips rise from 2 % of the steps to 16 %."""

    def make_norm() -> nn.Module:
        options = dict(norm.clips)
        if norm.has_statistics:
            options["momentum"] = MOMENTUM
        if norm.kind == "batch_renorm":
            options["schedule"] = (steps // 50, steps // 10, steps * 4 // 25)
        if norm.kind == "domain_batch":
            options["sites"] = SITES
        return make_normalization(norm.kind, WIDTH, dimensions=1, **options)

    network = nn.Sequential(
        nn.Linear(FEATURES, WIDTH, bias=False),
        make_norm(),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH, bias=False),
        make_norm(),
        nn.ReLU(),
        nn.Linear(WIDTH, 1),
    )
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=rng)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network


# ---------------------------------------------------------------- items


@lru_cache(maxsize=8)
def list_turns(batches: Batches, count: int, seed: int) -> Tensor:
    """(count · BATCH_SIZE,) laboratory of each item, as the toolkit's batches have them."""
    turns = SiteTurns(batches, SEEN, BATCH_SIZE, seed)
    return torch.tensor([turns.locate(index)[0] for index in range(count * BATCH_SIZE)])


def _draw_in_turns(
    laboratories: Laboratories, batches: Batches, count: int, trial: LinearTrial, purpose: int = 2
) -> Items:
    turns = list_turns(batches, count, int(trial.rng(purpose).initial_seed() % 2**32))
    return laboratories.draw(turns, trial.rng(purpose))


def _split(items: Items, size: int = BATCH_SIZE) -> Iterator[Items]:
    parts = (part.split(size) for part in (items.features, items.classes, items.laboratories))
    return (Items(*part) for part in zip(*parts, strict=True))


# ---------------------------------------------------------------- training and measuring


def _train(network: nn.Module, items: Items, steps: int) -> None:
    """Plain stochastic gradient descent with momentum; its rate falls to 0 along a cosine."""
    optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    network.train()
    for batch in _split(items):
        _tell_sites(network, batch)
        loss = F.binary_cross_entropy_with_logits(network(batch.features)[:, 0], batch.classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _evaluate(network: nn.Module, items: Items) -> float:
    with eval_mode(network):
        return _accuracy(_predict(network, [items]), items.classes)


def _try_unseen(network: nn.Module, items: Items, unlabelled: Items | None = None) -> float:
    """Mean accuracy over the laboratories that were not trained on, adapted to each if there is data for it.

    Of a norm with statistics of each laboratory, the mixture of all serves an unseen one.
    """
    network = take_site(network, None)
    accuracies = []
    for number in range(SEEN, SEEN + UNSEEN):
        adapted = network
        if unlabelled is not None:
            adapted = _recalibrate(network, _of(unlabelled, number))
        accuracies.append(_evaluate(adapted, _of(items, number)))
    return float(np.mean(accuracies))


def _recalibrate(network: nn.Module, items: Items) -> nn.Module:
    """A copy with the statistics of these items, taken in batches as large as what adapts a laboratory."""

    def tell(batch: Items) -> Tensor:
        _tell_sites(twin, batch)
        return batch.features

    twin = copy.deepcopy(network)
    return recalibrate(twin, (tell(batch) for batch in _split(items, UNLABELLED)))


@torch.no_grad()
def _predict(network: nn.Module, batches: Iterator[Items] | list[Items]) -> Tensor:
    logits = []
    for batch in batches:
        _tell_sites(network, batch)
        logits.append(network(batch.features)[:, 0])
    return torch.cat(logits)


def _tell_sites(network: nn.Module, items: Items) -> None:
    """Norms with statistics of each laboratory are told of them; others need not know."""
    set_sites(network, [str(number) for number in items.laboratories.tolist()])


def _of(items: Items, laboratory: int) -> Items:
    own = items.laboratories == laboratory
    return Items(items.features[own], items.classes[own], items.laboratories[own])


def _accuracy(logits: Tensor, classes: Tensor) -> float:
    return float(((logits > 0) == (classes > 0.5)).double().mean())
