"""What a plan says a run will cost, and how near it came."""

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medseg_brn.errors import DataError


@dataclass(frozen=True)
class Prediction:
    """Cost of the planned run.

    Attributes:
        step_seconds: of an optimizer step, the median.
        peak_memory_mb: of the training process (validation included), or of the GPU.
        training_seconds: of all steps.
        validation_seconds: of all held-out cases, on the way and at the end.
        setup_seconds: of reading and preparing the cases.
        total_seconds: of all that, with the report.
        measured: whether seconds per step and memory were measured on this very network; if not, they follow
            from a rough model.
        machine: on which.
    """

    step_seconds: float
    peak_memory_mb: float
    training_seconds: float
    validation_seconds: float
    setup_seconds: float
    total_seconds: float
    measured: bool
    machine: str

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def tell_owner(device: str) -> str:
    """Whose memory is meant where a run's is told: loader processes and the system have theirs besides."""
    return "of the GPU" if device == "cuda" else "of the training process"


def check_prediction(plan_path: Path, run_folder: Path) -> dict[str, float]:
    """Predicted over measured, of what a finished run records: `step_seconds` and `peak_memory_mb`.

    1 is right, 2 twice as much as it took.

    Args:
        plan_path: the JSON file that `medseg-brn plan` wrote.
        run_folder: of a run of that plan, of however many steps.

    Raises:
        DataError: a file is missing or is not what it must be.
    """
    from medseg_brn.reports.step_records import read_metrics

    model = run_folder / "model" / "model.json"
    try:
        predicted = json.loads(plan_path.read_text(encoding="utf-8"))["prediction"]
        recorded = json.loads(model.read_text(encoding="utf-8"))["training"]
        told = {name: float(predicted[name]) for name in ("step_seconds", "peak_memory_mb")}
        measured = {"peak_memory_mb": recorded["peak_memory_mb"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{plan_path} and {run_folder} cannot be compared ({error!r}); give the JSON file of a plan and "
            "the folder of a finished run of it"
        ) from None
    seconds = [record.seconds for record in read_metrics(run_folder / "metrics.csv")]
    if not seconds:
        raise DataError(
            f"{run_folder} has no metrics.csv with steps in it; give the folder of a finished run"
        )
    measured["step_seconds"] = statistics.median(seconds)
    return {name: told[name] / measured[name] for name in told if measured[name]}
