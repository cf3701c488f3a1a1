"""One run of a comparison: trained, examined, evaluated, and its result kept in its folder.

runs/NAME/  what `train` writes, and
    probes.csv         samples taken while it trained
    examination.json   what the probes found in the finished network, layer by layer
    seams.npz          a slice in one piece and in tiles
    result.json        the run's RunResult; where this is, the run is done
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medseg_brn.cases.targets import Targets
from medseg_brn.comparison.config import ProbesConfig
from medseg_brn.comparison.grid import PlannedRun
from medseg_brn.comparison.results import RunResult, Status
from medseg_brn.config import Experiment, NetworkConfig, Size3
from medseg_brn.errors import DataError, DivergenceError, MedsegError, ScoresError
from medseg_brn.inference.precision import choose_device
from medseg_brn.models.architecture import norm_options
from medseg_brn.models.package import load_unet
from medseg_brn.networks.normalization import freeze_statistics, make_normalization
from medseg_brn.patches.stream import PatchStream, load_batches
from medseg_brn.probes.curves import spike_fraction
from medseg_brn.probes.examination import Examination, probe
from medseg_brn.probes.leakage import measure_leakage
from medseg_brn.probes.tiles import tile_mismatch
from medseg_brn.probes.watching import EVERY_LAYER
from medseg_brn.reports.evaluation_blocks import mean_dice
from medseg_brn.reports.run_record import tabulate_metrics
from medseg_brn.training.data import TrainingData, prepare_training_data
from medseg_brn.training.losses import make_loss_of
from medseg_brn.training.recording import read_samples
from medseg_brn.training.run import train_run
from medseg_brn.volumes.atomic import atomic_path, write_text_atomic

RESULT_NAME = "result.json"
SAMPLED = ("statistics_drift", "scale_departure", "shift_departure")
EXAMINED_FROM = 1_000_000
"""Number of the first patch of the stream that networks are examined on: none that a run has seen."""


def read_result(run_folder: Path, probes: ProbesConfig) -> RunResult | None:
    """The result of a run that is done and was probed in this way, or None.

    A file that cannot be read is one that a crash of the machine left unfinished: the run is not done.
    """
    path = run_folder / RESULT_NAME
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        same = kept["probes"] == json.loads(probes.model_dump_json())
        return RunResult.from_dict(kept["result"], str(path)) if same else None
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return None


def do_run(planned: PlannedRun, folder: Path, probes: ProbesConfig) -> RunResult:
    """Train, examine and evaluate a run below `folder`; go on with one that was begun, skip one that is done.

    Numbers that are not finite, in training or in the finished network's scores, are a result (`diverged`).
    Any other error is told as one (`failed`) and not kept: called again, the run is tried again.
    """
    run_folder = folder / "runs" / planned.name
    done = read_result(run_folder, probes)
    if done is not None:
        return done
    try:
        result = _train_and_examine(planned, run_folder, folder / "data" / planned.input, probes)
    except (DivergenceError, ScoresError) as error:
        result = make_result(planned, "diverged", error=str(error), dice=0.0)
    except MedsegError as error:
        return make_result(planned, "failed", error=str(error))
    except Exception as error:  # whatever one run does wrong, the others are still done
        return make_result(planned, "failed", error=f"{type(error).__name__}: {error}")
    kept = {"result": result.as_dict(), "probes": json.loads(probes.model_dump_json())}
    write_text_atomic(run_folder / RESULT_NAME, json.dumps(kept, indent=1) + "\n")
    return result


def make_result(planned: PlannedRun, status: Status, **values: Any) -> RunResult:
    """A result of the planned run."""
    return RunResult(
        planned.name, planned.input, planned.norm, planned.batch_size, planned.seed, status, **values
    )


def _train_and_examine(
    planned: PlannedRun, run_folder: Path, data_folder: Path, probes: ProbesConfig
) -> RunResult:
    experiment = planned.experiment
    # The last that training writes, also where it diverges.
    if not (run_folder / "report.html").is_file() or (run_folder / "divergence.json").is_file():
        resume = (run_folder / "config.yaml").is_file()
        train_run(experiment, run_folder, resume=resume, data_folder=data_folder)
    validation = json.loads((run_folder / "validation.json").read_text(encoding="utf-8"))
    dice = {case["case"]: mean_dice(case) for case in validation["cases"]}
    defined = [value for value in dice.values() if value is not None]
    measurements, error = describe_steps(run_folder, experiment), None
    try:
        measurements |= _probe_run(run_folder, data_folder, experiment, probes)
    except Exception as problem:  # a probe that cannot be taken is no reason to lose a trained network
        error = f"not probed: {type(problem).__name__}: {problem}"
    return make_result(
        planned,
        "finished",
        error=error,
        dice=math.fsum(defined) / len(defined) if defined else None,
        case_dice=dice,
        class_dice={name: found["dice_mean"] for name, found in validation["summary"]["classes"].items()},
        measurements=measurements,
    )


def _probe_run(
    run_folder: Path, data_folder: Path, experiment: Experiment, probes: ProbesConfig
) -> dict[str, float | None]:
    """What the probes find in the finished network; layer by layer it is kept in `examination.json`."""
    data = prepare_training_data(experiment, run_folder, lambda *_: None, data_folder=data_folder)
    examination = examine_run(run_folder, experiment, data, probes)
    text = json.dumps(asdict(examination), indent=1) + "\n"
    write_text_atomic(run_folder / "examination.json", text)
    return {
        **examination.network,
        "tile_mismatch": compare_tiles(run_folder, experiment, data, probes),
        "leakage": _leakage(experiment.network),
    }


def examine_run(
    run_folder: Path, experiment: Experiment, data: TrainingData, probes: ProbesConfig
) -> Examination:
    """What the probes find in the run's finished network, on training patches that it has not seen."""
    training = experiment.training
    network, _ = load_unet(run_folder)
    network.to(choose_device(training.device), memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    if training.freeze_statistics_at is not None:
        freeze_statistics(network)
    stream = PatchStream(
        data.training,
        experiment.patches,
        experiment.seed,
        data.dataset.targets,
        experiment.training.batch_size,
    )
    return probe(
        network,
        load_batches(stream, EXAMINED_FROM, EXAMINED_FROM + probes.patches, 1),
        batch_size=training.batch_size,
        loss=make_loss_of(experiment, data.dataset.targets),
        targets=data.dataset.targets,
        patches=probes.patches,
        seed=experiment.seed,
    )


def compare_tiles(
    run_folder: Path, experiment: Experiment, data: TrainingData, probes: ProbesConfig
) -> float | None:
    """Mean tile mismatch over held-out volumes; a slice of the first one is kept in `seams.npz`.

    Of a large volume the middle is taken, two tiles along each axis: each tile takes a pass over all of it.
    """
    network, _ = load_unet(run_folder)
    device = choose_device(experiment.training.device)
    network.to(device)
    tile_size, targets = probes.tile_size or experiment.patches.size, data.dataset.targets
    found = []
    for case in data.validation[: probes.volumes]:
        image = cut_middle(np.asarray(case.image()), [2 * size for size in tile_size])
        volume = torch.from_numpy(np.array(image))[None].to(device)
        mismatch = tile_mismatch(network, volume, tile_size, multiple=network.strides_total, targets=targets)
        found.append(mismatch.mean)
        if len(found) == 1:
            full, tiled = (find_foreground(one, targets) for one in (mismatch.full, mismatch.tiled))
            _keep_seams(run_folder / "seams.npz", volume[0, 0], full, tiled, tile_size)
    return math.fsum(found) / len(found) if found else None


def cut_middle(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """The middle of (C, X, Y, Z), of at most `size` (X, Y, Z) voxels."""
    starts = [max(0, (length - wanted) // 2) for length, wanted in zip(image.shape[1:], size, strict=True)]
    box = [slice(start, start + wanted) for start, wanted in zip(starts, size, strict=True)]
    return image[:, *box]


def find_foreground(probabilities: Tensor, targets: Targets) -> Tensor:
    """Probability (X, Y, Z) of any structure, of (K, X, Y, Z): all but background, or the likeliest region.

    Of regions that lie inside each other, as they mostly do, the likeliest is the outermost.
    """
    return probabilities.amax(0) if targets.regions else 1 - probabilities[0]


def _keep_seams(path: Path, image: Tensor, full: Tensor, tiled: Tensor, tile_size: Size3) -> None:
    """The axial slice with the most foreground; all volumes (X, Y, Z), arrays (X, Y)."""
    z = int(full.sum((0, 1)).argmax())
    slices = {"image": image[..., z], "full": full[..., z], "tiled": tiled[..., z]}
    arrays = {name: values.float().cpu().numpy() for name, values in slices.items()}
    cuts = {
        f"cuts_{axis}": np.arange(size, length, size)
        for axis, size, length in zip("xy", tile_size, image.shape, strict=False)
    }
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays, **cuts)  # type: ignore[arg-type]  # the stubs want its options' types


def describe_steps(run_folder: Path, experiment: Experiment) -> dict[str, float | None]:
    """What the run's steps were and cost, how its loss went, and where the running statistics ended.

    Time is the lower quartile of the steps' without their waits for patches: whatever else the machine does
    only adds to it. Drift and departures are means over the last quarter of the samples taken.
    """
    metrics = tabulate_metrics(run_folder / "metrics.csv")
    model = json.loads((run_folder / "model" / "model.json").read_text(encoding="utf-8"))
    training = experiment.training
    described: dict[str, float | None] = {
        "steps": training.steps,
        "learning_rate": training.learning_rate,
        "threads": model["training"]["threads"],
        "seconds_per_step": float(np.quantile(metrics["seconds"] * (1 - metrics["loader_share"]), 0.25)),
        "peak_memory_mb": model["training"]["peak_memory_mb"],
        "spike_fraction": spike_fraction(metrics["loss"]),
    }
    samples = [sample for sample in read_samples(run_folder / "probes.csv") if sample.layer == EVERY_LAYER]
    for metric in SAMPLED:
        values = [sample.value for sample in samples if sample.metric == metric]
        described[metric] = float(np.mean(values[-math.ceil(len(values) / 4) :])) if values else None
    return described


def _leakage(network: NetworkConfig) -> float:
    """What a single layer of this norm, as the network has it, leaks of a batch of one real and one fake."""
    return measure_leakage(
        lambda channels: make_normalization(network.norm, channels, **norm_options(network)),
        separation=1.0,
    )
