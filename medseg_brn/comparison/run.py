"""One run of a comparison: trained, examined, evaluated, and its result kept in its folder.

runs/NAME/  what `train` writes, and
    probes.csv         samples taken while it trained
    examination.json   what the probes found in the finished network, layer by layer
    seams.npz          a slice in one piece and in tiles
    result.json        the run's RunResult; where this is, the run is done
"""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medseg_brn.comparison.config import ProbesConfig
from medseg_brn.comparison.grid import PlannedRun
from medseg_brn.comparison.results import RunResult, Status
from medseg_brn.config import Experiment, NetworkConfig, Size3
from medseg_brn.errors import DivergenceError, MedsegError
from medseg_brn.inference.precision import choose_device
from medseg_brn.models.architecture import norm_options
from medseg_brn.models.package import load_network
from medseg_brn.networks.normalization import make_normalization
from medseg_brn.patches.stream import PatchStream, load_batches
from medseg_brn.probes.curves import spike_fraction
from medseg_brn.probes.examination import Examination, probe
from medseg_brn.probes.leakage import measure_leakage
from medseg_brn.probes.tiles import TileMismatch, tile_mismatch
from medseg_brn.probes.watching import EVERY_LAYER
from medseg_brn.reports.evaluation_blocks import mean_dice
from medseg_brn.reports.run_record import tabulate_metrics
from medseg_brn.training.data import TrainingData, prepare_training_data
from medseg_brn.training.losses import make_loss
from medseg_brn.training.recording import read_samples
from medseg_brn.training.run import train_run
from medseg_brn.volumes.atomic import atomic_path, write_text_atomic

RESULT_NAME = "result.json"
EXAMINED_FROM = 1_000_000
"""Number of the first patch of the stream that networks are examined on: none that a run has seen."""


def read_result(run_folder: Path) -> RunResult | None:
    """The result of a run that is done, or None.

    Raises:
        DataError: the file is damaged.
    """
    path = run_folder / RESULT_NAME
    if not path.is_file():
        return None
    return RunResult.from_dict(json.loads(path.read_text(encoding="utf-8")), str(path))


def do_run(planned: PlannedRun, folder: Path, probes: ProbesConfig) -> RunResult:
    """Train, examine and evaluate a run below `folder`; go on with one that was begun, skip one that is done.

    A loss that is not finite is a result (`diverged`). Any other error is told as one (`failed`) and not
    kept: called again, the run is tried again.
    """
    run_folder = folder / "runs" / planned.name
    done = read_result(run_folder)
    if done is not None:
        return done
    try:
        result = _train_and_examine(planned, run_folder, folder / "data" / planned.input, probes)
    except DivergenceError as error:
        result = make_result(planned, "diverged", error=str(error), dice=0.0)
    except MedsegError as error:
        return make_result(planned, "failed", error=str(error))
    except Exception as error:  # whatever one run does wrong, the others are still done
        return make_result(planned, "failed", error=f"{type(error).__name__}: {error}")
    write_text_atomic(run_folder / RESULT_NAME, json.dumps(result.as_dict(), indent=1) + "\n")
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
    resume = (run_folder / "config.yaml").is_file()
    train_run(experiment, run_folder, resume=resume, data_folder=data_folder)
    data = prepare_training_data(experiment, run_folder, lambda *_: None, data_folder=data_folder)
    validation = json.loads((run_folder / "validation.json").read_text(encoding="utf-8"))
    examination = examine_run(run_folder, experiment, data, probes)
    measurements = {
        **examination.network,
        "tile_mismatch": compare_tiles(run_folder, experiment, data, probes),
        "leakage": _leakage(experiment.network),
        **describe_steps(run_folder),
    }
    return make_result(
        planned,
        "finished",
        dice=validation["summary"]["dice_mean"],
        case_dice={case["case"]: mean_dice(case) for case in validation["cases"]},
        class_dice={name: found["dice_mean"] for name, found in validation["summary"]["classes"].items()},
        measurements=measurements,
    )


def examine_run(
    run_folder: Path, experiment: Experiment, data: TrainingData, probes: ProbesConfig
) -> Examination:
    """What the probes find in the run's finished network, on training patches that it has not seen."""
    network, _ = load_network(run_folder)
    network.to(choose_device(experiment.training.device), memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    stream = PatchStream(data.training, experiment.patches, experiment.seed)
    patches = load_batches(stream, EXAMINED_FROM, EXAMINED_FROM + probes.patches, 1)
    examination = probe(
        network,
        patches,
        batch_size=experiment.training.batch_size,
        loss=make_loss(deep_supervision=False),
        patches=probes.patches,
        seed=experiment.seed,
    )
    text = json.dumps(asdict(examination), indent=1) + "\n"
    write_text_atomic(run_folder / "examination.json", text)
    return examination


def compare_tiles(
    run_folder: Path, experiment: Experiment, data: TrainingData, probes: ProbesConfig
) -> float | None:
    """Mean tile mismatch over held-out volumes; a slice of the first one is kept in `seams.npz`."""
    network, _ = load_network(run_folder)
    device = choose_device(experiment.training.device)
    network.to(device)
    found = []
    for case in data.validation[: probes.volumes]:
        image = torch.from_numpy(np.array(case.image()))[None].to(device)
        tile_size = probes.tile_size or experiment.patches.size
        mismatch = tile_mismatch(network, image, tile_size, multiple=network.strides_total)
        found.append(mismatch.mean)
        if len(found) == 1:
            _keep_seams(run_folder / "seams.npz", image[0, 0], mismatch, tile_size)
    return math.fsum(found) / len(found) if found else None


def _keep_seams(path: Path, image: Tensor, mismatch: TileMismatch, tile_size: Size3) -> None:
    """The axial slice with the most foreground; arrays (X, Y)."""
    full, tiled = 1 - mismatch.full[0], 1 - mismatch.tiled[0]
    z = int(full.sum((0, 1)).argmax())
    slices = {"image": image[..., z], "full": full[..., z], "tiled": tiled[..., z]}
    arrays = {name: values.float().cpu().numpy() for name, values in slices.items()}
    cuts = {
        f"cuts_{axis}": np.arange(size, length, size)
        for axis, size, length in zip("xy", tile_size, image.shape, strict=False)
    }
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays, **cuts)  # type: ignore[arg-type]  # the stubs want its options' types


def describe_steps(run_folder: Path) -> dict[str, float | None]:
    """What the run's steps cost, how its loss went, and what the samples taken meanwhile tell on average.

    Time is the lower quartile of the steps' without their waits for patches: whatever else the machine does
    only adds to it. The first tenth of the samples is left out.
    """
    metrics = tabulate_metrics(run_folder / "metrics.csv")
    model = json.loads((run_folder / "model" / "model.json").read_text(encoding="utf-8"))
    described: dict[str, float | None] = {
        "seconds_per_step": float(np.quantile(metrics["seconds"] * (1 - metrics["loader_share"]), 0.25)),
        "peak_memory_mb": model["training"]["peak_memory_mb"],
        "spike_fraction": spike_fraction(metrics["loss"]),
    }
    samples = [s for s in read_samples(run_folder / "probes.csv") if s.layer == EVERY_LAYER]
    for metric in dict.fromkeys(sample.metric for sample in samples):
        values = [sample.value for sample in samples if sample.metric == metric]
        described[metric] = float(np.mean(values[len(values) // 10 :]))
    return described


def _leakage(network: NetworkConfig) -> float:
    """What a single layer of this norm, as the network has it, leaks of a batch of one real and one fake."""
    return measure_leakage(
        lambda channels: make_normalization(network.norm, channels, **norm_options(network)),
        separation=1.0,
    )
