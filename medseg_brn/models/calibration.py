"""Calibration: which numbers a model's features take on scans, so that they can be computed in 8 bits."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import nn

from medseg_brn.errors import ConfigError, ModelError
from medseg_brn.inference.inputs import InputCase, find_inputs
from medseg_brn.inference.machine import default_budget_bytes
from medseg_brn.inference.precision import choose_precision
from medseg_brn.models.description import ModelDescription, explain
from medseg_brn.models.model import Model
from medseg_brn.models.package import (
    DESCRIPTION_NAME,
    WEIGHTS_NAME,
    check_replaceable,
    find_model_folder,
    load_network,
)
from medseg_brn.networks.quantization import check_quantizable, recorded_ranges
from medseg_brn.volumes.atomic import atomic_path

Progress = Callable[[int, int, str], None]


def save_calibrated(
    folder: Path | str,
    source: Path | str,
    scans: Sequence[Path | str],
    *,
    memory_bytes: int | None = None,
    progress: Progress = lambda done, total, name: None,
) -> int:
    """Write a copy of a model that also infers in int8, whole or not at all; return how many scans it saw.

    The weights stay as they are: what is added are the ranges of the features, measured while the scans are
    segmented in the usual precision.

    Args:
        folder: where to; a model that was there is replaced.
        source: a model folder, or a run folder with one inside.
        scans: as for `find_inputs`; of the kind that the model was trained on, best the training scans.
        memory_bytes: as for `Model.predict`.
        progress: called with (scans done, scans in all, name of the next).

    Raises:
        ModelError: there is no model, it is an ensemble, or the folder holds something else.
        ConfigError: its network cannot compute in int8.
        DataError: a scan cannot be read or does not fit the model.
    """
    folder, place = Path(folder), find_model_folder(source)
    check_replaceable(folder)
    network, description = load_network(place)
    check_quantizable(network)
    if description.sites:
        raise ConfigError(
            f"{place} normalizes by the statistics of each scan's site (norm domain_batch), so that features "
            "have other ranges at each, and int8 takes one; choose precision auto, or another network.norm"
        )
    cases = find_inputs(scans, description.in_channels).cases
    ranges = _measure(network, description, cases, memory_bytes, progress)
    try:
        calibrated = ModelDescription.model_validate({**dict(description), "activation_ranges": ranges})
    except ValidationError as error:
        raise ModelError(f"{place} cannot be calibrated: {explain(error)}") from None
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        shutil.copyfile(place / WEIGHTS_NAME, temporary / WEIGHTS_NAME)
        text = calibrated.model_dump_json(indent=2) + "\n"
        (temporary / DESCRIPTION_NAME).write_text(text, encoding="utf-8")
    return len(cases)


def _measure(
    network: nn.Module,
    description: ModelDescription,
    cases: Sequence[InputCase],
    memory_bytes: int | None,
    progress: Progress,
) -> dict[str, tuple[float, float]]:
    """Segment the scans as inference does, tile by tile where memory asks for it, and watch the features."""
    device = torch.device("cpu")
    model = Model.from_network(network, description, device, choose_precision("auto", device))
    allowed = default_budget_bytes() if memory_bytes is None else memory_bytes
    with recorded_ranges(model.members[0].predictor.network) as ranges:
        for done, case in enumerate(cases):
            progress(done, len(cases), case.name)
            with ExitStack() as stack:
                scan = model.prepare(list(case.image_paths), memory_bytes=allowed)
                stack.callback(scan.scratch.close)
                model.segment(scan, memory_bytes=allowed)
        progress(len(cases), len(cases), "")
    return ranges
