"""All rules applied: from fingerprint, candidate and pace to every option that the plan chooses."""

import math
from dataclasses import dataclass

import numpy as np

from medseg_brn.cases.dataset import Dataset
from medseg_brn.cases.fingerprint import Fingerprint
from medseg_brn.cases.folds import group_by_patient
from medseg_brn.planning import recipe
from medseg_brn.planning.candidates import Candidate, Problem, is_capped, is_largest
from medseg_brn.planning.choice import Choice, Choices
from medseg_brn.planning.machine import Machine
from medseg_brn.planning.rules_patches import (
    choose_augmentation,
    choose_class_weights,
    choose_foreground_by,
    choose_foreground_fraction,
    choose_mirroring,
    find_rare,
    structure_volumes_ml,
)
from medseg_brn.planning.rules_space import choose_intensity
from medseg_brn.planning.rules_training import (
    Pace,
    choose_checkpoint_every,
    choose_ema_decay,
    choose_folds,
    choose_learning_rate,
    choose_steps,
    choose_validation_every,
    choose_workers,
)
from medseg_brn.reports.wording import times


@dataclass(frozen=True)
class Draft:
    """All that the rules are given."""

    path: str
    layout: str
    modalities: tuple[str, ...] | None
    dataset: Dataset
    fingerprint: Fingerprint
    machine: Machine
    problem: Problem
    candidate: Candidate
    spacing: Choice[tuple[float, float, float]]
    crop: Choice[str]
    pace: Pace
    name: str
    device: str


def assemble(draft: Draft) -> tuple[Choices, list[str]]:
    """Every choice by its dotted option, in the order of the file, and warnings."""
    training, warnings = _choose_training(draft)
    choices: Choices = {"name": Choice(draft.name, "the dataset's")}
    choices |= _choose_dataset(draft)
    choices |= {
        "preprocessing.spacing_mm": draft.spacing,
        "preprocessing.crop": draft.crop,
        "preprocessing.intensity": choose_intensity(draft.fingerprint, draft.dataset.modalities),
    }
    network = {f"network.{name}": choice for name, choice in draft.candidate.choices.items()}
    return choices | _choose_patches(draft) | network | training, warnings


def _choose_dataset(draft: Draft) -> Choices:
    cases = draft.dataset.labelled_cases
    folds, fold = choose_folds(len(group_by_patient(cases)))
    choices: Choices = {"dataset.path": Choice(draft.path, f"{len(cases)} cases with a label map")}
    if draft.layout != "auto":
        choices["dataset.layout"] = Choice(draft.layout, "as told")
    if draft.modalities is not None:
        choices["dataset.modalities"] = Choice(draft.modalities, "as told")
    return choices | {"dataset.folds": folds, "dataset.fold": fold}


def _choose_patches(draft: Draft) -> Choices:
    candidate, problem, fingerprint = draft.candidate, draft.problem, draft.fingerprint
    volumes = structure_volumes_ml(fingerprint, draft.dataset.targets)
    scan_ml = float(np.median([math.prod(case.extent_mm) for case in fingerprint.cases])) / 1000
    shares = {name: volume / scan_ml for name, volume in volumes.items()}
    rare = find_rare(fingerprint)
    flips, pairs = choose_mirroring(draft.dataset.targets)
    augmentation = choose_augmentation(fingerprint, draft.dataset.modalities, draft.spacing.value)
    return {
        "patches.size": Choice(candidate.patch, _tell_patch(candidate, problem)),
        "patches.foreground_fraction": choose_foreground_fraction(
            candidate.patch, problem.shape, shares, rare
        ),
        "patches.foreground_by": choose_foreground_by(rare, fingerprint.num_cases),
        **{f"patches.augmentation.{name}": choice for name, choice in augmentation.items()},
        "patches.augmentation.flip_axes": flips,
        "patches.augmentation.mirrored_classes": pairs,
        "patches.workers": choose_workers(draft.machine.device, draft.machine.cores),
    }


def _tell_patch(candidate: Candidate, problem: Problem) -> str:
    """What keeps a patch from being larger."""
    share = min(math.prod(candidate.patch) / math.prod(problem.shape), 1)
    scan = f"a scan of {times(problem.shape)} voxels"
    if is_capped(candidate.patch, problem):
        told = f"{share:.0%} of {scan}: no patch has many more than {recipe.MOST_PATCH_VOXELS:,} voxels"
    elif is_largest(candidate.patch, problem):
        told = f"all of {scan} ({share:.0%})"
    else:
        told = f"as much of {scan} as the budgets allow ({share:.0%})"
    return f"{told}, in multiples of the strides"


def _choose_training(draft: Draft) -> tuple[Choices, list[str]]:
    candidate, pace, fingerprint = draft.candidate, draft.pace, draft.fingerprint
    scans = fingerprint.num_cases * max(1.0, math.prod(draft.problem.shape) / math.prod(candidate.patch))
    steps, warning = choose_steps(pace, scans, candidate.batch_size)
    checkpointing = (
        "without it, memory would allow only smaller patches"
        if candidate.checkpointing
        else "memory suffices to keep activations"
    )
    precision = f"{draft.machine.precision} on {draft.machine.name}"
    choices: Choices = {
        "training.steps": steps,
        "training.batch_size": Choice(
            candidate.batch_size,
            "the recipe's"
            if candidate.batch_size == recipe.BATCH_SIZE
            else "the budgets allow no more; batch renorm trains on single patches too",
        ),
        "training.optimizer": Choice(recipe.OPTIMIZER, "the recipe's"),
        "training.learning_rate": choose_learning_rate(candidate.batch_size),
        "training.weight_decay": Choice(recipe.WEIGHT_DECAY, "the recipe's"),
        "training.warmup_fraction": Choice(recipe.WARMUP_FRACTION, "the recipe's"),
        "training.decay": Choice(recipe.DECAY, "the recipe's"),
        "training.class_weights": choose_class_weights(
            structure_volumes_ml(fingerprint, draft.dataset.targets)
        ),
        "training.activation_checkpointing": Choice(candidate.checkpointing, checkpointing),
        "training.ema_decay": choose_ema_decay(steps.value),
        "training.precision": Choice("auto", precision),
        "training.device": Choice(draft.device, draft.machine.device),
        "training.validate_every": choose_validation_every(steps.value, pace),
        "training.checkpoint_every": choose_checkpoint_every(steps.value, pace.step_seconds),
    }
    return choices, [] if warning is None else [warning]
