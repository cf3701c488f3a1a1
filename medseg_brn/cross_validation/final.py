"""The model that a cross-validation ends with: the folds' models averaged, or one trained on all cases."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from medseg_brn.config import Experiment, InferenceConfig, PostprocessingConfig
from medseg_brn.cross_validation.fold import Fold
from medseg_brn.models.ensemble import save_ensemble
from medseg_brn.models.package import load_network, save_model

Final = Literal["ensemble", "single"]

EXPECTED = {
    "ensemble": (
        "Out-of-fold metrics are those of single models, each trained without the fold that it is evaluated "
        "on. The ensemble of all of them is not evaluated itself, having seen every case; it is expected to "
        "be as good or better."
    ),
    "single": (
        "This model was trained on every case, so nothing is left to evaluate it on. Its expected quality is "
        "the out-of-fold metric of the folds, whose models were trained in the same way on fewer cases."
    ),
    "pair": (
        "Out-of-fold metrics are those of two configurations' models, their probabilities averaged, each "
        "trained without the fold that it is evaluated on. The ensemble of all of them is not evaluated "
        "itself, having seen every case; it is expected to be as good or better."
    ),
}
OPTIMISTIC = (
    "The post-processing was chosen on the same cases, so that the metrics with it "
    "(out_of_fold_postprocessed) are a little better than on new ones."
)


def write_final_model(
    folder: Path, experiment: Experiment, folds: Sequence[Fold], summary: Mapping[str, Any], final: Final
) -> None:
    """Write `folder/model`, whole or not at all.

    Args:
        folder: of the cross-validation.
        experiment: of all folds.
        folds: all finished.
        summary: the content of `summary.json`.
        final: an ensemble of the folds' models, or the single model of `folder/all`.
    """
    rules = {
        name: PostprocessingConfig.model_validate(rule)
        for name, rule in summary["postprocessing"]["rules"].items()
    }
    inference = experiment.inference.model_copy(update={"postprocessing": rules})
    training = {"cross_validation": describe_quality(summary, EXPECTED[final])}
    if final == "ensemble":
        save_ensemble(
            folder / "model",
            [fold.folder for fold in folds],
            name=experiment.name,
            inference=inference,
            training=training,
        )
    else:
        save_single(folder / "model", folder / "all", inference, training)


def save_single(folder: Path, source: Path, inference: InferenceConfig, training: Mapping[str, Any]) -> None:
    """Copy the model of one network, with other inference settings and more said of its training."""
    network, description = load_network(source)
    described = description.model_copy(
        update={"inference": inference, "training": {**description.training, **training}}
    )
    save_model(folder, network, described)


def describe_quality(summary: Mapping[str, Any], expected: str) -> dict[str, Any]:
    """What a model's description says of the cross-validation behind it."""
    after = summary["postprocessed"]
    return {
        "folds": summary["folds"],
        "cases": summary["summary"]["cases"],
        "out_of_fold": summary["summary"],
        "out_of_fold_postprocessed": after,
        "spread_over_folds": summary["spread_over_folds"],
        "meaning": expected if after is None else f"{expected} {OPTIMISTIC}",
    }
