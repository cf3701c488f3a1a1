"""The study's pieces of work: a segmenter for each seed, then each arm against it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from medseg_brn.reports.step_records import StepRecord
from medseg_brn.studies.adversarial.arms import WITHOUT, Arm
from medseg_brn.studies.adversarial.discrimination import (
    Pairs,
    describe_losses,
    make_pairs,
    measure_influence,
    measure_single_accuracy,
    measure_training_accuracy,
    train_discriminator,
)
from medseg_brn.studies.adversarial.quality import measure_quality
from medseg_brn.studies.adversarial.segmenter import (
    CPU,
    TARGETS,
    Recipe,
    make_experiment,
    predict,
    refine_segmenter,
    train_segmenter,
)
from medseg_brn.studies.adversarial.shapes import Volumes, draw_volumes
from medseg_brn.training.state import make_state

Row = dict[str, str | int | float]
EXAMPLES = 4
"""Held-out volumes that are shown."""


@dataclass(frozen=True)
class Start:
    """Where all arms of a seed begin."""

    number: int
    """Of the seed, from 0."""
    seed: int
    """Of the study."""
    recipe: Recipe
    weights: dict[str, Tensor] = field(default_factory=dict)
    """The segmenter's state."""

    @property
    def initial_seed(self) -> int:
        """Of initial weights."""
        return int(np.random.SeedSequence((self.seed, 1, self.number)).generate_state(1)[0])

    def random(self, purpose: int) -> np.random.Generator:
        """A generator for one purpose, the same in all arms."""
        return np.random.default_rng((self.seed, 2, self.number, purpose))

    def draw(self, purpose: int, count: int) -> Volumes:
        """Volumes for one purpose: 0 trains segmenters, 1 discriminators, 2 is held out."""
        return draw_volumes(count, (self.seed, 3, self.number, purpose))


@dataclass(frozen=True)
class Found:
    """What a piece of work yields."""

    rows: list[Row]
    losses: dict[str, np.ndarray]
    """Hinge losses of the discriminator by stage, (steps,)."""
    shown: np.ndarray
    """(EXAMPLES, X, Y) bool: the middle slice of some predictions."""


def do_start(start: Start) -> Start:
    """Train the segmenter."""
    recipe = start.recipe
    volumes = start.draw(0, recipe.training_volumes)
    network = train_segmenter(recipe, volumes, start.initial_seed, start.random(0))
    weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
    return Start(start.number, start.seed, recipe, weights)


def do_arm(piece: tuple[Start, Arm | None]) -> Found:
    """Train an arm's discriminator on the fixed segmenter, then refine the segmenter against a new one.

    Without an arm, the segmenter is trained on alone.
    """
    start, arm = piece
    recipe = start.recipe
    held_out = start.draw(2, recipe.held_out_volumes)
    losses, rows = {}, []
    if arm is not None:
        row, losses["discrimination"] = _discriminate(start, arm, held_out)
        rows.append(row)
    config = None if arm is None else arm.configure(**_share(recipe), weight=recipe.adversarial_weight)
    network, records = refine_segmenter(
        recipe,
        start.weights,
        start.draw(0, recipe.training_volumes),
        config,
        start.initial_seed,
        start.random(1),
    )
    predicted = predict(network, held_out.images).argmax(1).numpy() > 0
    row = {"stage": "refinement", "seed": start.number, "arm": WITHOUT if arm is None else arm.name}
    row |= measure_quality(predicted, held_out.classes[:, 0].numpy() > 0)
    if arm is not None:
        losses["refinement"] = _list_losses(records)
        row |= describe_losses(losses["refinement"])
    return Found([*rows, row], losses, predicted[:EXAMPLES, :, :, predicted.shape[3] // 2])


def _discriminate(start: Start, arm: Arm, held_out: Volumes) -> tuple[Row, np.ndarray]:
    recipe = start.recipe
    experiment = make_experiment(recipe, start.initial_seed, 1)
    segmenter = make_state(experiment, 1, TARGETS.num_outputs, CPU).network
    segmenter.load_state_dict(start.weights)

    def pair(volumes: Volumes) -> Pairs:
        return make_pairs(volumes, predict(segmenter, volumes.images))

    config = arm.configure(**_share(recipe))
    discriminator, losses = train_discriminator(
        recipe,
        config,
        pair(start.draw(1, recipe.discriminator_volumes)),
        start.initial_seed,
        start.random(2),
    )
    pairs, mixed = pair(held_out), config.batches == "mixed"
    in_training = measure_training_accuracy(discriminator, pairs, mixed)
    single = measure_single_accuracy(discriminator, pairs)
    row: Row = {
        "stage": "discrimination",
        "seed": start.number,
        "arm": arm.name,
        "accuracy_training": in_training,
        "accuracy_single": single,
        "leak": in_training - single,
        "influence": measure_influence(discriminator, pairs, mixed),
    }
    return row | describe_losses(losses), losses


def _share(recipe: Recipe) -> dict[str, Any]:
    """The discriminator's options that all arms have."""
    return {
        "begin": 0.0,
        "channels": recipe.discriminator_channels,
        "layers": recipe.discriminator_layers,
        "learning_rate": recipe.discriminator_learning_rate,
    }


def _list_losses(records: list[StepRecord]) -> np.ndarray:
    return np.array([record.discriminator_loss for record in records], float)
