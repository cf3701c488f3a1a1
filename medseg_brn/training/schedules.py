"""What changes over a run, each a function of the optimizer step alone, so that a resumed run agrees."""

import math

from medseg_brn.config import NetworkConfig, TrainingConfig


def compute_learning_rate(step: int, config: TrainingConfig) -> float:
    """Learning rate of optimizer step `step` (from 0): linear warm-up, then the configured decay."""
    warmup = round(config.warmup_fraction * config.steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(config.steps - warmup, 1)
    factor = {
        "polynomial": (1 - progress) ** 0.9,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "constant": 1.0,
    }[config.decay]
    return config.learning_rate * factor


def compute_renorm_schedule(network: NetworkConfig, steps: int) -> tuple[int, int, int]:
    """The renorm limits' schedule in optimizer steps of a run of `steps`."""
    start, d_full, r_full = (round(fraction * steps) for fraction in network.renorm_schedule)
    return start, d_full, r_full


def statistics_are_frozen(step: int, config: TrainingConfig) -> bool:
    """Whether the norms leave their running statistics as they are from optimizer step `step` (from 0) on."""
    return config.freeze_statistics_at is not None and step >= config.freeze_statistics_at * config.steps


def validation_is_due(done: int, config: TrainingConfig) -> bool:
    """Whether whole volumes are validated after optimizer step number `done` (from 1)."""
    return config.validate_every is not None and done % config.validate_every == 0


def checkpoint_is_due(done: int, config: TrainingConfig) -> bool:
    """Whether a checkpoint is saved after optimizer step number `done` (from 1), as after the last one."""
    return done % config.checkpoint_every == 0 or done == config.steps


def merge_is_due(done: int, config: TrainingConfig) -> bool:
    """Whether several processes merge their running statistics in optimizer step number `done` (from 1).

    They do at every `merge_statistics_every`-th step, and where all must have the same: before a validation,
    before a checkpoint (so that a resumed run goes on from what all had), and before the statistics freeze.
    Frozen ones are the same already.
    """
    if statistics_are_frozen(done - 1, config):
        return False
    every = config.merge_statistics_every
    return (
        (every is not None and done % every == 0)
        or validation_is_due(done, config)
        or checkpoint_is_due(done, config)
        or statistics_are_frozen(done, config)
    )
