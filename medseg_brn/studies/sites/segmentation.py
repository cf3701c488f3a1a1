"""Small U-Nets trained by the toolkit's own loop on scans of some sites, tried there and at other sites."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from medseg_brn.cases.targets import Targets
from medseg_brn.config import Experiment, NetworkConfig, PatchesConfig, TrainingConfig
from medseg_brn.evaluation.overlap import compute_dice_from_confusion, count_confusion
from medseg_brn.networks.domain_norm import set_sites, take_site
from medseg_brn.networks.surgery import recalibrate
from medseg_brn.patches.stream import PatchBatch
from medseg_brn.patches.turns import SiteTurns
from medseg_brn.probes.layers import compute_logits, eval_mode, training_norms
from medseg_brn.studies.outcome import Row
from medseg_brn.studies.sites.arms import Arm
from medseg_brn.studies.sites.cohort import Cohort, Scans
from medseg_brn.training.distributed import Processes
from medseg_brn.training.loop import run_steps
from medseg_brn.training.losses import make_loss_of
from medseg_brn.training.state import make_state

CHANNELS, BATCH_SIZE, LEARNING_RATE = (8, 16, 32), 2, 0.01
MOMENTUM = 0.1
"""Of all running statistics alike: a run is short, those of one site take in a quarter of its batches, and at
a lower momentum they are not there yet when it ends."""
TARGETS = Targets(("background", "structure"))


@dataclass(frozen=True)
class ScanTrial:
    """One network to train."""

    arm: Arm
    steps: int

    def make_experiment(self, cohort: Cohort) -> Experiment:
        """As the toolkit's command line would have it from a file; an anatomy's whole scan is a patch.

        Weight standardization is off: filters of mean 0 take an offset away whatever the norm, and the
        question is what the norm does.
        """
        weights = np.random.SeedSequence((cohort.seed, cohort.number, 3, 1))
        x, y, z = cohort.training.images.shape[3:]
        return Experiment(
            seed=int(weights.generate_state(1)[0]),
            patches=PatchesConfig(size=(x, y, z), sites=self.arm.batches, augmentation=None),
            network=NetworkConfig(
                channels=CHANNELS,
                norm=self.arm.norm.kind,
                momentum=MOMENTUM,
                weight_standardization=False,
                **self.arm.norm.clips,
            ),
            training=TrainingConfig(
                steps=self.steps,
                batch_size=BATCH_SIZE,
                optimizer="adamw",
                learning_rate=LEARNING_RATE,
                ema_decay=None,
                precision="fp32",
                checkpoint_every=self.steps,
            ),
        )


@dataclass(frozen=True)
class ScanResult:
    """What came out of a trial."""

    row: Row
    shown: np.ndarray
    """(S, X, Y) bool: middle slice of the prediction for the first tried scan of each unseen site."""


def train_on_scans(piece: tuple[ScanTrial, Cohort]) -> ScanResult:
    """Train one network, and measure Dice where it was trained and where it was not.

    The columns are those of `train_linear`, with Dice in place of accuracy: the mean over sites and their
    scans. Batches of training mode are composed as in training.
    """
    trial, cohort = piece
    arm = trial.arm
    training, held_out, unlabelled, tried = (
        scans.harmonize() if arm.harmonized else scans
        for scans in (cohort.training, cohort.held_out, cohort.unlabelled, cohort.tried)
    )
    network = train(trial, cohort, training)
    with training_norms(network):
        in_training = _predict_in_turns(network, held_out, arm, cohort)
    predicted = _predict_unseen(network, tried)
    row: dict[str, str | int | float] = {
        "part": "scans",
        "seed": cohort.number,
        "arm": arm.name,
        "seen_training": measure_dice(in_training, held_out.masks),
        "seen_evaluation": measure_dice(_predict_seen(network, held_out), held_out.masks),
        "unseen_evaluation": measure_dice(predicted, tried.masks),
    }
    if arm.norm.has_statistics:
        settled = _recalibrate(network, training)
        row["seen_recalibrated"] = measure_dice(_predict_seen(settled, held_out), held_out.masks)
        if not arm.harmonized:
            row["unseen_adapted"] = measure_dice(_predict_unseen(network, tried, unlabelled), tried.masks)
    return ScanResult(row, predicted[:, 0, 0, :, :, predicted.shape[-1] // 2].numpy() > 0)


def train(trial: ScanTrial, cohort: Cohort, scans: Scans) -> nn.Module:
    """The network after its steps."""
    experiment = trial.make_experiment(cohort)
    torch.manual_seed(experiment.seed)
    sites = scans.sites if trial.arm.norm.kind == "domain_batch" else ()
    state = make_state(experiment, 1, TARGETS.num_outputs, torch.device("cpu"), sites)
    run_steps(
        state,
        draw_batches(scans, trial.arm, cohort),
        experiment,
        0,
        loss_function=make_loss_of(experiment, TARGETS),
        dtype=torch.float32,
        processes=Processes(),
    )
    return state.network


def draw_batches(scans: Scans, arm: Arm, cohort: Cohort) -> Iterator[PatchBatch]:
    """Batches without end: sites take turns as in the toolkit, and so do a site's scans."""
    turns, count, index = _make_turns(scans, arm, cohort), scans.images.shape[1], 0
    while True:
        places = []
        for site, place in map(turns.locate, range(index, index + BATCH_SIZE)):
            random = np.random.default_rng((cohort.seed, cohort.number, 4, site, place // count, 1))
            places.append((site, int(random.permutation(count)[place % count])))
        index += BATCH_SIZE
        yield _take(scans, places)


def measure_dice(predicted: Tensor, masks: Tensor) -> float:
    """Mean over sites and scans of the structure's Dice, in [0, 1]; both are (S, n, 1, X, Y, Z)."""
    dice: list[float] = []
    for one, other in zip(predicted.flatten(0, 2).numpy(), masks.flatten(0, 2).numpy(), strict=True):
        confusion = count_confusion(one, other, TARGETS.num_classes)
        dice.extend(compute_dice_from_confusion(confusion, TARGETS.structures.values()))
    return float(np.mean(dice))


# ---------------------------------------------------------------- predictions


def _predict_in_turns(network: nn.Module, scans: Scans, arm: Arm, cohort: Cohort) -> Tensor:
    """(S, n, 1, X, Y, Z) classes, of batches composed as in training."""
    sites, count = scans.images.shape[:2]
    turns = _make_turns(scans, arm, cohort)
    predicted = torch.zeros_like(scans.masks)
    for first in range(0, sites * count, BATCH_SIZE):
        places = [turns.locate(first + member) for member in range(BATCH_SIZE)]
        answers = _predict(network, _take(scans, places))
        for (site, place), answer in zip(places, answers, strict=True):
            predicted[site, place] = answer
    return predicted


def _predict_seen(network: nn.Module, scans: Scans) -> Tensor:
    """(S, n, 1, X, Y, Z) classes in evaluation mode, with the site's own statistics where there are such."""
    with eval_mode(network):
        return torch.stack([_predict(network, _take_site(scans, site)) for site in range(len(scans.sites))])


def _predict_unseen(network: nn.Module, scans: Scans, unlabelled: Scans | None = None) -> Tensor:
    """(S, n, 1, X, Y, Z) classes in evaluation mode, adapted to each site if there are scans for it."""
    network = take_site(network, None)
    predicted = []
    for site in range(len(scans.sites)):
        adapted = network
        if unlabelled is not None:
            adapted = recalibrate(copy.deepcopy(network), [unlabelled.images[site]])
        with eval_mode(adapted):
            predicted.append(_predict(adapted, _take_site(scans, site)))
    return torch.stack(predicted)


def _recalibrate(network: nn.Module, scans: Scans) -> nn.Module:
    """A copy with the statistics of these scans, in batches of one of each site."""

    def tell(place: int) -> Tensor:
        set_sites(twin, scans.sites)
        return scans.images[:, place]

    twin = copy.deepcopy(network)
    return recalibrate(twin, map(tell, range(scans.images.shape[1])))


@torch.no_grad()
def _predict(network: nn.Module, batch: PatchBatch) -> Tensor:
    """(N, 1, X, Y, Z) classes."""
    set_sites(network, batch["sites"])
    return compute_logits(network, batch["image"]).argmax(1, keepdim=True)


# ---------------------------------------------------------------- batches


def _make_turns(scans: Scans, arm: Arm, cohort: Cohort) -> SiteTurns:
    return SiteTurns(arm.batches, len(scans.sites), BATCH_SIZE, int(cohort.seed * 1000 + cohort.number))


def _take(scans: Scans, places: list[tuple[int, int]]) -> PatchBatch:
    """The scans at these numbers of site and scan."""
    sites, numbers = (list(part) for part in zip(*places, strict=True))
    return PatchBatch(
        image=scans.images[sites, numbers],
        label=scans.masks[sites, numbers],
        cases=[f"{scans.sites[site]}, scan {number}" for site, number in places],
        sites=[scans.sites[site] for site in sites],
    )


def _take_site(scans: Scans, site: int) -> PatchBatch:
    return _take(scans, [(site, number) for number in range(scans.images.shape[1])])
