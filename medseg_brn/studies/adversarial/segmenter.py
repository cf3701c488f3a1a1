"""The network that segments, trained by the toolkit's loop: first alone, then against a discriminator."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medseg_brn.cases.targets import Targets
from medseg_brn.config import AdversarialConfig, Experiment, NetworkConfig, PatchesConfig, TrainingConfig
from medseg_brn.patches.stream import PatchBatch
from medseg_brn.reports.step_records import StepRecord
from medseg_brn.studies.adversarial.shapes import SIZE, Volumes
from medseg_brn.training.adversarial import make_adversary
from medseg_brn.training.distributed import Processes
from medseg_brn.training.loop import run_steps
from medseg_brn.training.losses import make_loss_of
from medseg_brn.training.state import TrainingState, make_state

CPU = torch.device("cpu")
TARGETS = Targets(("background", "body"))
PREDICTED_AT_ONCE = 16


@dataclass(frozen=True)
class Recipe:
    """Sizes of the study; a volume is a patch."""

    training_volumes: int = 40
    """Of the segmenter."""
    discriminator_volumes: int = 400
    """That discriminators learn from while the segmenter is fixed; it has seen none of them."""
    held_out_volumes: int = 100
    segmenter_steps: int = 400
    discriminator_steps: int = 500
    refinement_steps: int = 250
    channels: tuple[int, ...] = (6, 12)
    """Of the segmenter."""
    discriminator_channels: int = 8
    discriminator_layers: int = 2
    discriminator_learning_rate: float = 5e-4
    adversarial_weight: float = 0.1

    def shorten(self, factor: float) -> "Recipe":
        """The same with this share of the steps, at least 4 of each kind."""
        names = ("segmenter_steps", "discriminator_steps", "refinement_steps")
        return replace(self, **{name: max(4, round(getattr(self, name) * factor)) for name in names})


def make_experiment(
    recipe: Recipe, seed: int, steps: int, *, adversarial: AdversarialConfig | None = None, **options: Any
) -> Experiment:
    """The toolkit's options of one training.

    Args:
        recipe: sizes.
        seed: of the initial weights.
        steps: how many.
        adversarial: the discriminator's options, or None.
        options: others of the `training` section.
    """
    return Experiment(
        seed=seed,
        patches=PatchesConfig(size=(SIZE, SIZE, SIZE), augmentation=None),
        network=NetworkConfig(channels=recipe.channels),
        training=TrainingConfig(
            steps=steps, ema_decay=None, precision="fp32", adversarial=adversarial, **options
        ),
    )


def train_segmenter(recipe: Recipe, volumes: Volumes, seed: int, random: np.random.Generator) -> nn.Module:
    """A network trained with Dice and cross-entropy alone, at batch size 2."""
    experiment = make_experiment(recipe, seed, recipe.segmenter_steps, batch_size=2)
    state = make_state(experiment, 1, TARGETS.num_outputs, CPU)
    _run(state, volumes, experiment, random)
    return state.network


def refine_segmenter(
    recipe: Recipe,
    weights: dict[str, Tensor],
    volumes: Volumes,
    adversarial: AdversarialConfig | None,
    seed: int,
    random: np.random.Generator,
) -> tuple[nn.Module, list[StepRecord]]:
    """Train on from given weights at batch size 1, so that a discriminator sees one real and one fake.

    Args:
        recipe: sizes.
        weights: the network's state.
        volumes: those that it was trained on.
        adversarial: the discriminator's options; None goes on without one.
        seed: of the discriminator's initial weights.
        random: draws the volumes of each step.
    """
    experiment = make_experiment(
        recipe,
        seed,
        recipe.refinement_steps,
        adversarial=adversarial,
        batch_size=1,
        learning_rate=0.005,
        warmup_fraction=0.0,
    )
    # The limits, which rise in the course of a run, are where they ended.
    network = experiment.network.model_copy(update={"renorm_schedule": (0.0, 0.0, 0.0)})
    continued = experiment.model_copy(update={"network": network})
    state = make_state(continued, 1, TARGETS.num_outputs, CPU)
    state.network.load_state_dict(weights)
    state.adversary = make_adversary(experiment, 1, TARGETS, CPU)
    records = _run(state, volumes, continued, random)
    return state.network, records


@torch.no_grad()
def predict(network: nn.Module, images: Tensor) -> Tensor:
    """Logits (n, 2, X, Y, Z) of images (n, 1, X, Y, Z) in evaluation mode."""
    network.eval()
    parts = [network(part) for part in images.split(PREDICTED_AT_ONCE)]
    return torch.cat([part if isinstance(part, Tensor) else part[0] for part in parts])


def _run(
    state: TrainingState, volumes: Volumes, experiment: Experiment, random: np.random.Generator
) -> list[StepRecord]:
    records: list[StepRecord] = []
    run_steps(
        state,
        _draw_batches(volumes, experiment.training.batch_size, random),
        experiment,
        0,
        loss_function=make_loss_of(experiment, TARGETS),
        dtype=torch.float32,
        processes=Processes(),
        after_step=records.append,
    )
    return records


def _draw_batches(volumes: Volumes, size: int, random: np.random.Generator) -> Iterator[PatchBatch]:
    """Batches without end, each of different volumes."""
    while True:
        chosen = torch.from_numpy(random.choice(len(volumes), size, replace=False))
        yield PatchBatch(
            image=volumes.images[chosen],
            label=volumes.classes[chosen],
            cases=[f"volume {number}" for number in chosen.tolist()],
        )
