"""A run in miniature, measured: `train_run` with a few steps on one case, in a process of its own.

Everything is the real thing: reading and preparing, the loader with its augmentation, network, loss,
optimizer, weight averaging, validation on the scan's own grid, the report. The largest case of the dataset
stands in a manifest twice, once to train on and once held out, so what is measured is what `train` will
record, and the memory is that of the worst case.
"""

import csv
import json
import math
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medseg_brn.cases.case import Case
from medseg_brn.cases.dataset import Dataset
from medseg_brn.config import Experiment
from medseg_brn.errors import MedsegError, TrainingError
from medseg_brn.experiment import dump_experiment, load_experiment, parse_experiment

WARM_UP_STEPS = 5
"""Also as many as a loader has made ahead, which makes the first steps shorter than those to come."""
MOST_STEPS = 30
LEAST_STEPS = 8
SHARE, LEAST_SECONDS, MOST_SECONDS = 0.03, 5.0, 25.0
"""What the steps of a trial may take of the run's time, unless the fewest that tell anything take longer."""


@dataclass(frozen=True)
class TrialOrder:
    """What is tried.

    Attributes:
        case: the case that is trained on and validated.
        steps: training steps.
        validate: whether the case is also validated.
    """

    experiment: Experiment
    dataset: Dataset
    case: Case
    steps: int
    validate: bool


@dataclass(frozen=True)
class Trial:
    """What was measured; memory is that of the training process or, on a GPU, of the GPU.

    Attributes:
        step_seconds: median over the steps after warming up.
        loader_share: median share of a step spent waiting for patches.
        training_memory_mb: peak until the last step.
        peak_memory_mb: peak with validation.
        setup_seconds: from the start to the first step: reading and preparing the two cases.
        validation_seconds: of the case, or None where it was not tried.
        finish_seconds: of what follows validation.
        killed: whether memory ran out, or the system ended the process for it; all else is 0 then.
    """

    step_seconds: float
    loader_share: float
    training_memory_mb: float
    peak_memory_mb: float
    setup_seconds: float
    validation_seconds: float | None
    finish_seconds: float
    steps: int
    killed: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


KILLED = Trial(0.0, 0.0, 0.0, 0.0, 0.0, None, 0.0, 0, killed=True)


def choose_trial_steps(step_seconds: float, time_seconds: float) -> int:
    """How many steps are tried.

    Args:
        step_seconds: predicted.
        time_seconds: of the whole run.
    """
    seconds = min(MOST_SECONDS, max(LEAST_SECONDS, SHARE * time_seconds))
    return max(LEAST_STEPS, min(MOST_STEPS, WARM_UP_STEPS + math.ceil(seconds / step_seconds)))


def run_trial(order: TrialOrder) -> Trial:
    """Measure in a fresh process, which has the threads and the environment that training will have.

    Raises:
        MedsegError: what training raises.
    """
    with tempfile.TemporaryDirectory(prefix="medseg-brn-plan-") as name:
        folder = Path(name)
        experiment = shorten(order, write_manifest(folder, order.dataset, order.case))
        (folder / "trial.yaml").write_text(dump_experiment(experiment), encoding="utf-8")
        # Not through joblib: in its processes a loader cannot start its own.
        command = [sys.executable, "-m", "medseg_brn.planning.trial", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        result = folder / "trial.json"
        if not result.is_file():
            if was_killed(done.returncode):
                return KILLED
            told = done.stderr.strip()[-2000:] or f"its process ended with code {done.returncode}"
            raise TrainingError(f"The planned network could not be tried: {told}")
        found = json.loads(result.read_text(encoding="utf-8"))
        if "error" in found:
            raise TrainingError(f"The planned network could not be tried: {found['error']}")
        return Trial(**found)


def _measure(folder: Path) -> dict[str, Any]:
    """What is written for the process that asked."""
    try:
        return _train(load_experiment(folder / "trial.yaml"), folder / "run").as_dict()
    except (MedsegError, MemoryError, RuntimeError) as error:
        if ran_out_of_memory(error):
            return KILLED.as_dict()
        if isinstance(error, MedsegError):
            return {"error": str(error)}
        raise


def was_killed(code: int) -> bool:
    """Whether a process ended as the system ends those for which memory does not suffice."""
    return sys.platform != "win32" and code == -signal.SIGKILL


def ran_out_of_memory(error: Exception) -> bool:
    """Whether an error of training says that memory did not suffice, in its process or in a loader's."""
    import torch

    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    # torch has no error of its own for a CPU's memory, nor for a loader process that the system ended.
    return "DefaultCPUAllocator" in str(error) or (
        isinstance(error, TrainingError) and "DataLoader worker" in str(error)
    )


def _train(experiment: Experiment, folder: Path) -> Trial:
    from medseg_brn.inference.precision import choose_device
    from medseg_brn.reports.step_records import StepRecord, read_metrics
    from medseg_brn.training.run import train_run

    device = choose_device(experiment.training.device)
    begun = time.perf_counter()
    ends: list[float] = []
    validated: list[float] = []
    memory_mb: list[float] = []

    def after_step(record: StepRecord, total: int) -> None:
        ends.append(time.perf_counter())
        memory_mb.append(_peak_mb(device))

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "validating whole volumes":
            validated.append(time.perf_counter())

    train_run(experiment, folder, progress=progress, after_step=after_step)
    finished = time.perf_counter()
    records = read_metrics(folder / "metrics.csv")
    after = records[min(WARM_UP_STEPS, len(records) // 2) :]
    told = json.loads((folder / "model" / "model.json").read_text(encoding="utf-8"))["training"]
    peak_mb = _peak_mb(device) if device.type == "cuda" else told["peak_memory_mb"] or 0.0
    return Trial(
        step_seconds=statistics.median(record.seconds for record in after),
        loader_share=statistics.median(record.loader_share for record in after),
        training_memory_mb=memory_mb[-1],
        peak_memory_mb=peak_mb,
        setup_seconds=ends[0] - records[0].seconds - begun,
        validation_seconds=validated[-1] - ends[-1] if validated else None,
        finish_seconds=finished - (validated or ends)[-1],
        steps=len(records),
    )


def write_manifest(folder: Path, dataset: Dataset, case: Case) -> Path:
    """A dataset of one case, twice, in the files' own places; described as nnU-Net does it."""
    names = [f"image_{number}" for number in range(len(case.image_paths))]
    with (folder / "cases.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["case", *names, "label"])
        for copy in ("first", "second"):
            paths = (path.absolute() for path in (*case.image_paths, case.label_path) if path is not None)
            rows.writerow([copy, *paths])
    values = dict(zip(dataset.class_names, dataset.label_values, strict=True))
    description: dict[str, Any] = {"labels": values, "name": dataset.name}
    if len(case.image_paths) == len(dataset.modalities):
        description["channel_names"] = dict(enumerate(dataset.modalities))
    regions = dataset.labels.region_values
    if regions:
        background = {dataset.class_names[0]: 0}
        description["labels"] = background | {one.name: list(one.label_values) for one in regions}
        description["regions_class_order"] = [one.written_value for one in regions]
    if dataset.ignore_value is not None:
        description["labels"]["ignore"] = dataset.ignore_value
    (folder / "cases.json").write_text(json.dumps(description), encoding="utf-8")
    return folder / "cases.csv"


def shorten(order: TrialOrder, manifest: Path) -> Experiment:
    """The experiment on the manifest, with few steps and nothing but steps in between."""
    options = json.loads(order.experiment.model_dump_json())
    options["dataset"] = {
        "path": str(manifest),
        "layout": "csv",
        "modalities": list(order.dataset.modalities),
        "folds": 2,
        "fold": 0 if order.validate else None,
    }
    options["training"] |= {"steps": order.steps, "validate_every": None, "probe_every": None}
    # What needs the names or the other cases of the dataset, and costs nothing.
    options["patches"]["foreground_by"] = "case"
    if options["patches"]["augmentation"] is not None:
        options["patches"]["augmentation"]["mirrored_classes"] = []
    options["inference"]["postprocessing"] = {}
    return parse_experiment(options, "the planned experiment")


def _peak_mb(device: Any) -> float:
    """Peak memory so far: of the GPU where there is one, else of this process."""
    import torch

    from medseg_brn.inference.machine import peak_resident_bytes

    peak = torch.cuda.max_memory_reserved() if device.type == "cuda" else peak_resident_bytes()
    return peak / 1e6


if __name__ == "__main__":
    place = Path(sys.argv[1])
    (place / "trial.json").write_text(json.dumps(_measure(place)), encoding="utf-8")
