"""The study `confounding`: what is done, and the page that shows it."""

from functools import partial
from typing import Any

from medseg_brn.studies.confounding.association import ASSOCIATIONS, sweep_association
from medseg_brn.studies.confounding.layer_section import FOLLOWED_BATCHES, ITEM_NORMS, Extras
from medseg_brn.studies.confounding.layers import DIFFERENCES, follow_layer, measure_item_norm, sweep_layers
from medseg_brn.studies.confounding.norms import BATCH, LAYER, LOOSE, MIDDLE, TIGHT, Norm
from medseg_brn.studies.confounding.null_arm import BATCHES, EXPERIMENTS, ITEMS, count_findings
from medseg_brn.studies.confounding.sections import make_sections
from medseg_brn.studies.confounding.statements import Measurements, make_claims
from medseg_brn.studies.confounding.training import (
    BATCH_SIZE,
    HELD_OUT_BATCHES,
    LEARNING_RATE,
    NORMS,
    STEPS,
    DiagnosisResult,
    MarkerResult,
    train_on_diagnosis,
    train_on_marker,
)
from medseg_brn.studies.outcome import Outcome, Progress, Row, do_all

LAYER_SEEDS, TRAINING_SEEDS, NULL_PIECES = 5, 10, 20
FEWEST = 2
DIAGNOSIS_NORMS = (BATCH, LOOSE, LAYER)
DESIGNS = ("balanced", "confounded")

QUESTION = (
    "Where every minibatch holds one group, BatchNorm takes the groups' difference away before a network "
    "sees it. Batch renorm lets through what its clip d_max allows. How much is that in real layers and in "
    "trained networks, and what else comes through with it: can any norm keep biology and drop a batch "
    "effect that has the same groups?"
)


def study_confounding(seed: int, scale: float, progress: Progress) -> Outcome:
    """Measures layers, trained networks, confounded designs and a null arm.

    Args:
        seed: of everything that is drawn.
        scale: times as many seeds and experiments as the default; at least 2 of each.
        progress: told of each stage.
    """
    layer_seeds, training_seeds, pieces = (
        [1000 * seed + index for index in range(max(FEWEST, round(count * scale)))]
        for count in (LAYER_SEEDS, TRAINING_SEEDS, NULL_PIECES)
    )
    found = Measurements(
        layers=do_all(sweep_layers, layer_seeds, "layers", progress),
        associations=do_all(sweep_association, layer_seeds, "groups and sites", progress),
        markers=_by_seed(_train_marker, training_seeds, [(norm,) for norm in NORMS], "networks", progress),
        diagnoses=_by_seed(
            _train_diagnosis,
            training_seeds,
            [(norm, design) for norm in DIAGNOSIS_NORMS for design in DESIGNS],
            "networks of two sites",
            progress,
        ),
        findings=do_all(count_findings, pieces, "null arm", progress),
    )
    extras = _measure_extras(layer_seeds, progress)
    return Outcome(
        "confounding",
        "Confounded minibatches: what a norm retains",
        QUESTION,
        {"seed": seed, "scale": scale, **_describe(len(layer_seeds), len(training_seeds), len(pieces))},
        make_claims(found),
        _list_rows(found),
        make_sections(found, extras),
    )


def _by_seed(
    work: Any, seeds: list[int], kinds: list[Any], stage: str, progress: Progress
) -> list[list[Any]]:
    """The results of every kind for every seed, one list a seed."""
    done = do_all(work, [(*kind, seed) for seed in seeds for kind in kinds], stage, progress)
    return [done[start : start + len(kinds)] for start in range(0, len(done), len(kinds))]


def _train_marker(item: tuple[Norm, int]) -> MarkerResult:
    return train_on_marker(*item)


def _train_diagnosis(item: tuple[Norm, Any, int]) -> DiagnosisResult:
    return train_on_diagnosis(*item)


def _measure_extras(seeds: list[int], progress: Progress) -> Extras:
    """What is shown beside the claims: statistics that forget the groups, and norms without statistics."""
    follow = partial(_follow, FOLLOWED_BATCHES)
    items = [(norm, seed) for norm in (TIGHT, MIDDLE, LOOSE, BATCH) for seed in seeds]
    courses = do_all(follow, items, "statistics that forget", progress)
    by_norm = {
        norm.name: [course for (one, _), course in zip(items, courses, strict=True) if one == norm]
        for norm in (TIGHT, MIDDLE, LOOSE, BATCH)
    }
    item_norms = {
        kind: [measure_item_norm(*kind, difference=2.0, seed=seed) for seed in seeds] for kind in ITEM_NORMS
    }
    return Extras(by_norm, item_norms)


def _follow(batches: int, item: tuple[Norm, int]) -> list[float]:
    norm, seed = item
    return follow_layer(norm, 2.0, batches, seed)


def _describe(layer_seeds: int, training_seeds: int, pieces: int) -> dict[str, Any]:
    return {
        "seeds of layers": layer_seeds,
        "differences": list(DIFFERENCES),
        "associations": list(ASSOCIATIONS),
        "seeds of networks": training_seeds,
        "steps": STEPS,
        "batch size": BATCH_SIZE,
        "learning rate": LEARNING_RATE,
        "held-out items": HELD_OUT_BATCHES * BATCH_SIZE,
        "experiments of the null arm": f"{pieces * EXPERIMENTS}, each of {BATCHES} minibatches of {ITEMS}",
    }


def _list_rows(found: Measurements) -> list[Row]:
    """One row a layer, network or cohort of the null arm; `seed` counts from 0."""
    rows: list[Row] = []
    parts: tuple[tuple[str, Any], ...] = (
        ("layer", found.layers),
        ("association", found.associations),
        ("marker", found.markers),
        ("diagnosis", found.diagnoses),
    )
    for part, seeds in parts:
        for index, results in enumerate(seeds):
            for one in results:
                about: Row = {"part": part, "seed": index, "norm": one.norm.name}
                rows.append({**about, **_take_numbers(one)})
    for index, counts in enumerate(found.findings):
        for (cohort, norm), count in counts.items():
            about = {"part": "null arm", "seed": index, "norm": norm, "cohort": cohort}
            rows.append({**about, "findings": count, "experiments": EXPERIMENTS})
    return rows


def _take_numbers(result: Any) -> dict[str, Any]:
    """All that a result holds, but the norm."""
    return {name: value for name, value in vars(result).items() if name != "norm"}
