"""Rules of optimization: how long, how fast, how often something is looked at; and what is held out."""

import math
from dataclasses import dataclass

from medseg_brn.planning import recipe
from medseg_brn.planning.choice import Choice
from medseg_brn.reports.wording import tell_duration


@dataclass(frozen=True)
class Pace:
    """What a run's length follows from.

    Attributes:
        step_seconds: of one optimizer step.
        validation_seconds: of validating all held-out cases once.
        setup_seconds: of reading and preparing the cases, and starting.
        time_seconds: the run's budget.
    """

    step_seconds: float
    validation_seconds: float
    setup_seconds: float
    time_seconds: float


def choose_steps(pace: Pace, patches_per_epoch: float, batch_size: int) -> tuple[Choice[int], str | None]:
    """Optimizer steps, and a warning where the budget is too small for any training.

    Args:
        pace: times, measured or predicted.
        patches_per_epoch: patches that hold as many voxels as the training cases.
        batch_size: patches of a step.
    """
    validations = 1 + (recipe.VALIDATIONS if _validates_on_the_way(pace) else 0)
    left = pace.time_seconds - validations * pace.validation_seconds - pace.setup_seconds
    steps = math.floor(left / pace.step_seconds)
    epochs = recipe.MOST_EPOCHS * patches_per_epoch / batch_size
    told = f"{tell_duration(max(left, 0))} for steps of {pace.step_seconds:.3g} s"
    if steps < recipe.LEAST_STEPS:
        needed = pace.time_seconds - left + recipe.LEAST_STEPS * pace.step_seconds
        warning = (
            f"{tell_duration(pace.time_seconds)} are too short: the least that teaches anything, "
            f"{recipe.LEAST_STEPS} steps, takes {tell_duration(needed)}; give more --time"
        )
        return Choice(
            recipe.LEAST_STEPS, f"{told} are too few; this is the least that teaches anything"
        ), warning
    if steps > epochs:
        return Choice(
            _round(epochs),
            f"{told} would be more than {recipe.MOST_EPOCHS} passes over the data; these are so many",
        ), None
    return Choice(_round(steps), told), None


def _round(steps: float) -> int:
    """Two significant digits, down: a prediction knows no more."""
    digit = 10 ** max(0, math.floor(math.log10(steps)) - 1)
    return int(steps // digit * digit)


def choose_learning_rate(batch_size: int) -> Choice[float]:
    """Peak learning rate of AdamW."""
    rate = float(f"{recipe.LEARNING_RATE * math.sqrt(batch_size / recipe.BATCH_SIZE):.2g}")
    if batch_size == recipe.BATCH_SIZE:
        return Choice(rate, f"the recipe's, for batches of {batch_size}")
    return Choice(
        rate, f"the recipe's {recipe.LEARNING_RATE:g} for batches of {recipe.BATCH_SIZE}, by the square root"
    )


def choose_ema_decay(steps: int) -> Choice[float]:
    """Share of the averaged weights that is kept per step."""
    window = min(recipe.EMA_MOST_STEPS, max(10, round(recipe.EMA_SHARE * steps)))
    return Choice(round(1 - 1 / window, 4), f"averages over about {window} of {steps} steps")


def choose_folds(num_patients: int) -> tuple[Choice[int], Choice[int | None]]:
    """Number of folds, and the one held out."""
    if num_patients < 2:
        told = "one patient cannot be split: trained on all there is, and validated on nothing"
        return Choice(2, told), Choice(None, told)
    folds = min(recipe.FOLDS, num_patients)
    return Choice(folds, f"{num_patients} patients"), Choice(0, f"1/{folds} of the patients are held out")


def count_held_out(num_cases: int, num_patients: int) -> float:
    """Cases of the fold that `choose_folds` holds out, where patients have equally many; 0 where none is."""
    folds, fold = choose_folds(num_patients)
    if fold.value is None:
        return 0.0
    return math.ceil(num_patients / folds.value) * num_cases / num_patients


def choose_workers(device: str, cores: int) -> Choice[int]:
    """Loader processes."""
    if cores == 1:
        return Choice(0, "one core: a second process would only take turns with it")
    wanted = min(cores - 1, 8 if device == "cuda" else 2 if cores >= 6 else 1)
    return Choice(wanted, f"{cores} cores: patches are made while the network trains")


def choose_validation_every(steps: int, pace: Pace) -> Choice[int | None]:
    """Steps between validations during the run."""
    if not pace.validation_seconds:
        return Choice(None, "nothing is held out")
    if not _validates_on_the_way(pace):
        told = f"one takes {tell_duration(pace.validation_seconds)}: at the end only"
        return Choice(None, told)
    told = f"one takes about {tell_duration(pace.validation_seconds)}: {recipe.VALIDATIONS} on the way"
    return Choice(max(1, math.ceil(steps / recipe.VALIDATIONS)), told)


def _validates_on_the_way(pace: Pace) -> bool:
    return recipe.VALIDATIONS * pace.validation_seconds <= recipe.VALIDATION_SHARE * pace.time_seconds


def choose_checkpoint_every(steps: int, step_seconds: float) -> Choice[int]:
    """Steps between checkpoints."""
    every = max(1, min(steps, round(recipe.CHECKPOINT_SECONDS / step_seconds)))
    return Choice(
        every, f"about every {tell_duration(every * step_seconds)}: what a killed run loses at most"
    )


def wanted_step_seconds(time_seconds: float) -> float:
    """Longest step that a candidate may take: half of what is gained by more time goes to larger steps."""
    wanted = recipe.WANTED_STEPS * math.sqrt(time_seconds / (60 * recipe.WANTED_MINUTES))
    return time_seconds / max(wanted, recipe.LEAST_STEPS)
