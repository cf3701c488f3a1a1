"""The whole way on phantom heads: cohort, training, inference on unseen scans, evaluation, report."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medseg_brn.cases.phantom import make_phantom
from medseg_brn.errors import ConfigError, MedsegError
from medseg_brn.evaluation.evaluate import evaluate_folders
from medseg_brn.experiment import load_experiment
from medseg_brn.inference.cohort import Outcome, infer_cohort
from medseg_brn.inference.inputs import find_inputs, plan_jobs
from medseg_brn.inference.manifest import MANIFEST_NAME, Manifest
from medseg_brn.models.segmenter import ModelSegmenter
from medseg_brn.reports.step_records import StepRecord
from medseg_brn.training.data import Progress
from medseg_brn.training.run import train_run
from medseg_brn.volumes.atomic import write_text_atomic

TRAINING_CASES = 20
UNSEEN_CASES = 6


@dataclass(frozen=True)
class DemoResult:
    """What the demo made, and how good its model is on scans it never saw."""

    folder: Path
    dice_mean: float
    class_dice: dict[str, float]

    def describe(self) -> str:
        """What was made and where, and the commands that make it again."""
        folder = self.folder
        made = {
            "scans": f"{TRAINING_CASES} phantom heads to train on, as NIfTI",
            "unseen": f"{UNSEEN_CASES} more, never trained on",
            "run/report.html": "curves, Dice per case, overlays: open it in a browser",
            "run/model": "the model, all that inference needs",
            "predictions": "label maps of the unseen scans",
            "metrics.json": "their evaluation",
        }
        width = max(len(str(folder / name)) for name in made)
        listing = "\n".join(f"  {folder / name!s:<{width}}  {what}" for name, what in made.items())
        classes = ", ".join(f"{name} {dice:.3f}" for name, dice in self.class_dice.items())
        return f"""\
Mean foreground Dice on {UNSEEN_CASES} unseen scans: {self.dice_mean:.3f} ({classes})

{listing}

The same by hand, which works with your own scans too:

  medseg-brn check {folder / "scans"}
  medseg-brn train demo -o {folder / "my_run"} -s dataset.path={folder / "scans"}
  medseg-brn infer {folder / "my_run"} {folder / "unseen" / "imagesTr"} -o {folder / "my_predictions"}
  medseg-brn evaluate {folder / "my_predictions"} {folder / "unseen" / "labelsTr"}"""


def run_demo(
    folder: Path, *, progress: Progress, after_step: Callable[[StepRecord, int], None] | None = None
) -> DemoResult:
    """Run the demo in `folder`, which must be new or empty.

    Raises:
        ConfigError: the folder holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is not an empty folder; give the demo a new one with -o")
    scans = _make_scans(folder / "scans", TRAINING_CASES, 0, "making scans to train on", progress)
    unseen = _make_scans(folder / "unseen", UNSEEN_CASES, 1, "making unseen scans", progress)
    experiment = load_experiment("demo", [f"dataset.path={json.dumps(str(scans))}"])
    train_run(experiment, folder / "run", progress=progress, after_step=after_step)

    outcomes = _segment(folder / "run", unseen / "imagesTr", folder / "predictions")
    found = evaluate_folders(folder / "predictions", unseen / "labelsTr")
    failed = [outcome.error for outcome in outcomes if outcome.error is not None]
    failed += [failure.message for failure in found.failures]
    if failed:
        raise MedsegError(f"The demo failed on {len(failed)} of its scans: {'; '.join(failed)}")
    evaluation = found.as_dict()
    write_text_atomic(folder / "metrics.json", json.dumps(evaluation, indent=2) + "\n")
    summary = evaluation["summary"]
    class_dice = {name: metrics["dice_mean"] for name, metrics in summary["classes"].items()}
    return DemoResult(folder, summary["dice_mean"], class_dice)


def _segment(run: Path, scans: Path, predictions: Path) -> list[Outcome]:
    segmenter = ModelSegmenter(run, read_ahead=True)
    cases = find_inputs([scans], segmenter.load().description.in_channels).cases
    manifest = Manifest(
        predictions / MANIFEST_NAME, segmenter.describe_model(), segmenter.describe_settings()
    )
    outcomes = infer_cohort(segmenter, plan_jobs(cases, predictions), manifest)
    manifest.write()
    return outcomes


def _make_scans(folder: Path, cases: int, seed: int, stage: str, progress: Progress) -> Path:
    done = iter(range(1, cases + 1))
    progress(stage, 0, cases)
    return make_phantom(
        folder, modality="mri", cases=cases, seed=seed, on_case=lambda _: progress(stage, next(done), cases)
    )
