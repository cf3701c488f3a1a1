"""A model at work on a cohort: from the files of a case to the files of its result."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medseg_brn.errors import DataError
from medseg_brn.experiment import override_inference
from medseg_brn.inference.inputs import InputCase
from medseg_brn.inference.machine import core_count, default_budget_bytes
from medseg_brn.inference.manifest import digest
from medseg_brn.inference.measurements import as_rows, measure_structures
from medseg_brn.inference.postprocessing import check_rules
from medseg_brn.inference.precision import (
    DTYPES,
    DeviceName,
    PrecisionName,
    choose_device,
    choose_precision,
)
from medseg_brn.models.description import Description
from medseg_brn.models.model import Model, Prediction
from medseg_brn.models.package import DESCRIPTION_NAME, find_model_folder, load_model
from medseg_brn.models.scan import PreparedScan
from medseg_brn.volumes.atomic import atomic_path, write_text_atomic
from medseg_brn.volumes.dicom_segmentation import Segment, write_dicom_segmentation
from medseg_brn.volumes.nifti import write_nifti
from medseg_brn.volumes.reading import PROBABILITIES_ENDING, volume_stem
from medseg_brn.volumes.volume import Volume
from medseg_brn.volumes.writing import write_volume

PAGE_ENDING, DICOM_ENDING = ".html", "_seg.dcm"
"""How the files end that may lie beside a predicted label map: the page, the DICOM-SEG object."""


@dataclass(frozen=True, eq=False)
class Segmented:
    """What is to be written of a scan.

    Attributes:
        prediction: label map, and probabilities where asked for.
        page: to look through both, where asked for.
        series: folder of the DICOM series that it was read from, where a DICOM-SEG object is asked for.
        details: for the manifest.
    """

    prediction: Prediction
    page: str | None
    series: Path | None
    details: dict[str, Any]


@dataclass(frozen=True)
class ModelSegmenter:
    """Reads, segments and writes cases with one model. Plain settings: each process loads the model itself.

    Attributes:
        model: run folder or model folder.
        device: where to compute.
        precision: what to compute in.
        overrides: of the model's inference settings, `key=value`.
        overlap: blend windows with this overlap instead of evaluating exactly.
        probabilities: also write each class's probability.
        measurements: also measure each structure.
        dicom_segmentation: also write a DICOM-SEG object; scans then are folders with a DICOM series.
        render_page: makes an HTML page of a scan and its label map, which is written beside it; a function of
            a module, so that other processes have it too.
        memory_bytes: what all processes together may take; None is half of what is free.
        processes: how many share the machine's memory and processors.
        threads: of all processes together; None is one per core.
        read_ahead: the next case is read while one is segmented.
    """

    model: Path
    device: DeviceName = "auto"
    precision: PrecisionName = "auto"
    overrides: tuple[str, ...] = ()
    overlap: float | None = None
    probabilities: bool = False
    measurements: bool = False
    dicom_segmentation: bool = False
    render_page: Callable[[PreparedScan, Volume, Description], str] | None = None
    memory_bytes: int | None = None
    processes: int = 1
    threads: int | None = None
    read_ahead: bool = False

    def load(self, site: str | None = None) -> Model:
        """Return the model, loaded once in a process, and let torch use this process's share of threads.

        Args:
            site: where scans come from; of a site that the model has no statistics of, as of an unknown one.

        Raises:
            ModelError: there is none, or it is damaged.
            ConfigError: the device or precision is not to be had, or an override is wrong.
        """
        torch.set_num_threads(max(1, (self.threads or core_count()) // self.processes))
        model = _load(self.model, self.device, self.precision, self.overrides, None)
        if site not in model.sites:
            return model
        return _load(self.model, self.device, self.precision, self.overrides, site)

    def choose_sites(self, cases: Sequence[InputCase], site: str | None = None) -> tuple[InputCase, ...]:
        """Return the cases, each with the site whose statistics normalize it, or None for the mixture.

        Args:
            cases: from `find_inputs`.
            site: of all of them; None takes each case's own.

        Raises:
            ConfigError: the model has no statistics of the site.
        """
        if site is not None:
            _load(self.model, self.device, self.precision, self.overrides, site)
        known = self.load().sites
        chosen = (case.site if site is None else site for case in cases)
        return tuple(
            dataclasses.replace(case, site=own if own in known else None)
            for case, own in zip(cases, chosen, strict=True)
        )

    def read(self, case: InputCase) -> PreparedScan:
        """Return the scan as the network sees it."""
        prepared = self.load(case.site).prepare(
            list(case.image_paths),
            memory_bytes=self._memory_bytes(),
            scans_at_once=self._scans_at_once,
            keep_channels=self.measurements or self.render_page is not None,
        )
        series = case.image_paths[0] if self.dicom_segmentation else None
        return dataclasses.replace(prepared, site=case.site, series=series)

    def segment(self, prepared: PreparedScan, progress: Callable[[int, int], None] | None) -> Segmented:
        """Return the prediction, and what else is to be written of it."""
        model = self.load(prepared.site)
        prediction = model.segment(
            prepared,
            probabilities=self.probabilities,
            overlap=self.overlap,
            memory_bytes=self._memory_bytes(),
            scans_at_once=self._scans_at_once,
            progress=progress,
        )
        prepared.scratch.close()
        details: dict[str, Any] = {
            "plan": prediction.plan,
            "predicted_peak_bytes": prediction.predicted_peak_bytes,
        }
        if self.measurements:
            structures = model.description.labels.structures.label_values
            details["measurements"] = as_rows(
                measure_structures(prediction.label_map, prepared.channels, structures)
            )
        page = self.render_page and self.render_page(prepared, prediction.label_map, model.description)
        return Segmented(prediction, page, prepared.series, details)

    def write(self, segmented: Segmented, target: Path) -> tuple[tuple[Path, ...], dict[str, Any]]:
        """Write what was predicted, the label map last: where it is, the case is done."""
        prediction, written = segmented.prediction, [target]
        if prediction.probabilities is not None:
            path = target.with_name(volume_stem(target) + PROBABILITIES_ENDING)
            with atomic_path(path) as temporary:
                write_nifti(
                    np.moveaxis(prediction.probabilities, 0, -1), prediction.label_map.grid, temporary
                )
            written.append(path)
        if segmented.page is not None:
            path = target.with_name(volume_stem(target) + PAGE_ENDING)
            write_text_atomic(path, segmented.page)
            written.append(path)
        failure = None
        if segmented.series is not None:
            path = target.with_name(volume_stem(target) + DICOM_ENDING)
            try:
                self._write_dicom(prediction.label_map, segmented.series, path)
            except DataError as error:
                failure = DataError(f"{error}. The label map is in {target}")
            written.append(path)
        write_volume(prediction.label_map, target)
        if failure is not None:
            raise failure
        return tuple(written), segmented.details

    def _write_dicom(self, label_map: Volume, series: Path, path: Path) -> None:
        description = self.load().description
        named = zip(description.label_values[1:], description.class_names[1:], strict=True)
        write_dicom_segmentation(label_map, series, [Segment(*one) for one in named], path, description.name)

    def with_chosen_precision(self) -> "ModelSegmenter":
        """Return the same with what `auto` is here, so that all processes compute in one format."""
        dtype = choose_precision(self.precision, choose_device(self.device))
        chosen = next(name for name, own in DTYPES.items() if own == dtype)
        return dataclasses.replace(self, precision=chosen)

    def describe_model(self) -> dict[str, Any]:
        """Return what tells this model from any other; descriptions hold the weights' checksums."""
        folder = find_model_folder(self.model)
        described = sorted(folder.rglob(DESCRIPTION_NAME))  # an ensemble's members have their own
        return {
            "name": self.load().description.name,
            "descriptions_sha256": {str(path.relative_to(folder)): digest(path) for path in described},
        }

    def describe_settings(self) -> dict[str, Any]:
        """Return all that changes what is written, as plain JSON."""
        model = self.load()
        predictor = model.members[0].predictor
        quantized = predictor.dtype == torch.uint8
        return {
            "device": predictor.device.type,
            "precision": "int8" if quantized else str(predictor.dtype).removeprefix("torch."),
            "windows_overlap": self.overlap,
            "probabilities": self.probabilities,
            "measurements": self.measurements,
            # Left out where there is none: what was done before these were known stays done.
            **({"page": True} if self.render_page is not None else {}),
            **({"dicom_segmentation": True} if self.dicom_segmentation else {}),
            "inference": model.description.inference.model_dump(mode="json"),
        }

    @property
    def _scans_at_once(self) -> int:
        return 2 if self.read_ahead else 1

    def _memory_bytes(self) -> int:
        if self.memory_bytes is None:
            return default_budget_bytes(self.processes)
        return self.memory_bytes // self.processes


@cache
def _load(
    path: Path, device: DeviceName, precision: PrecisionName, overrides: tuple[str, ...], site: str | None
) -> Model:
    model = load_model(path, device, precision, site)
    if not overrides:
        return model
    settings = override_inference(model.description.inference, overrides)
    check_rules(settings.postprocessing, model.description.labels.targets)  # a wrong name is told at once
    described = model.description.model_copy(update={"inference": settings})
    return dataclasses.replace(model, description=described)
