"""Two configurations as one ensemble, out of fold: each case by both models that have not seen it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg_brn.cases.dataset import Dataset
from medseg_brn.config import Experiment
from medseg_brn.cross_validation.out_of_fold import OutOfFoldCase, read_case
from medseg_brn.cross_validation.summary import evaluate_label_map
from medseg_brn.evaluation.results import CaseEvaluation
from medseg_brn.inference.manifest import digest
from medseg_brn.inference.precision import choose_device, choose_precision
from medseg_brn.models.architecture import Network
from medseg_brn.models.description import ModelDescription
from medseg_brn.models.package import Model, load_network
from medseg_brn.volumes.atomic import write_text_atomic
from medseg_brn.volumes.writing import write_volume


def predict_pair(
    runs: Sequence[Path],
    cases: Sequence[OutOfFoldCase],
    experiment: Experiment,
    dataset: Dataset,
    folder: Path,
    on_case: Callable[[int, int], object] = lambda *_: None,
) -> tuple[CaseEvaluation, ...]:
    """The cases' evaluations, segmented by the averaged probabilities of their folds' models.

    Args:
        runs: folders of cross-validations of the same folds.
        cases: of all folds.
        experiment: gives inference settings and device.
        dataset: of the cases.
        folder: label maps are written here, and `CASE.json` with the evaluation and the checksums of models,
            images and reference; a case with the same ones and the same settings is taken from there.
        on_case: called with (done, total).

    Raises:
        ModelError: a fold's model is damaged.
        DataError: a scan cannot be read.
    """
    evaluations: dict[str, CaseEvaluation] = {}
    for fold in sorted({case.fold for case in cases}):
        members = [load_network(run / f"fold_{fold}") for run in runs]
        stamp = {
            "weights_sha256": [description.weights_sha256 for _, description in members],
            "inference": experiment.inference.model_dump(mode="json"),
        }
        known = {site for _, description in members for site in description.sites}
        models: dict[str | None, Model] = {}
        for case in (case for case in cases if case.fold == fold):
            site = case.case.site if case.case.site in known else None
            made_with = stamp | {"contents_sha256": _digest_contents(case)}
            made_with |= {} if site is None else {"site": site}
            found = _read_kept(folder / f"{case.case.name}.json", made_with)
            if found is None:
                if site not in models:
                    models[site] = _average(members, experiment, site)
                found = _predict(models[site], case, dataset, folder)
                kept = {"made_with": made_with, "evaluation": found.as_dict()}
                write_text_atomic(folder / f"{case.case.name}.json", json.dumps(kept, indent=1) + "\n")
            evaluations[case.case.name] = found
            on_case(len(evaluations), len(cases))
    return tuple(evaluations[case.case.name] for case in cases)


def _digest_contents(case: OutOfFoldCase) -> list[str]:
    """Of the images and the reference."""
    assert case.case.label_path is not None
    return [digest(path) for path in (*case.case.image_paths, case.case.label_path)]


def _average(
    members: Sequence[tuple[Network, ModelDescription]], experiment: Experiment, site: str | None
) -> Model:
    """An ensemble in memory, for scans of the site."""
    device = choose_device(experiment.training.device)
    description = members[0][1].model_copy(update={"inference": experiment.inference})
    return Model.from_networks(members, description, device, choose_precision("auto", device), site)


def _predict(model: Model, case: OutOfFoldCase, dataset: Dataset, folder: Path) -> CaseEvaluation:
    label_map = model.predict(list(case.case.image_paths))
    path = folder.absolute() / f"{case.case.name}.nii.gz"
    folder.mkdir(parents=True, exist_ok=True)
    write_volume(label_map, path)
    found = evaluate_label_map(case, label_map, dataset)
    return replace(found, paths={**found.paths, "prediction": str(path)})


def _read_kept(path: Path, stamp: dict[str, Any]) -> CaseEvaluation | None:
    """A case that was predicted by the same models before; None where it was not, or the file is damaged."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        found = read_case(kept["evaluation"]) if kept["made_with"] == stamp else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found is not None and Path(found.paths["prediction"]).is_file() else None
