"""`medseg-brn infer`: scans → label maps on the scans' own grids."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from medseg_brn.inference.cohort import Outcome
    from medseg_brn.inference.inputs import InputCase, Inputs, Job
    from medseg_brn.inference.manifest import Manifest
    from medseg_brn.models.segmenter import ModelSegmenter


def infer(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Run folder, the model folder inside it, or a name.")
    ],
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...",
            help="Image files, folders of them, folders with a DICOM series, or CSV manifests.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for the label maps; for a single scan also a file.")
    ],
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write each class's probability, as a 4D NIfTI file.")
    ] = False,
    measurements: Annotated[
        bool,
        typer.Option("--measurements", help="Also write volume (ml) and mean intensity per structure: CSV."),
    ] = False,
    view: Annotated[
        bool,
        typer.Option("--view", help="Also write an HTML page to look through scan and label map: NAME.html."),
    ] = False,
    dicom_seg: Annotated[
        bool,
        typer.Option("--dicom-seg", help="Also write a DICOM-SEG object of a DICOM series: NAME_seg.dcm."),
    ] = False,
    mirror: Annotated[
        str | None,
        typer.Option(
            metavar="AXES", help="Average over mirrorings along these axes: 0, or 0,1,2, or '' for none."
        ),
    ] = None,
    overlap: Annotated[
        float | None,
        typer.Option(min=0, max=0.95, help="Blend windows with this overlap instead of computing exactly."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "-s", "--set", metavar="KEY=VALUE",
            help="Override one of the model's inference settings: skip_air=false.",
        ),
    ] = None,
    site: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Where the scans come from: of a model with statistics of each training site, take this "
            "one's; by default those of a manifest's column 'site', or else the mixture of all.",
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="What may be taken in all: 4GB; by default half of what is free."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Scans segmented side by side.")] = 1,
    backend: Annotated[
        Literal["processes", "ray"],
        typer.Option(help="Where jobs run: processes of this machine, or a Ray cluster."),
    ] = "processes",
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        typer.Option(help="Where to compute; auto is cuda where there is one."),
    ] = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "int8"],
        typer.Option(
            help="auto is bf16 where the device has it natively and is faster so; int8 takes a model that "
            "models quantize made, and a CPU."
        ),
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Processor threads of all jobs; one per core by default.")
    ] = None,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Tell each scan's plan, memory and seconds.")
    ] = False,
) -> None:  # fmt: skip
    """Segment scans; each label map lies on exactly its scan's grid and has its scan's file name.

    One scan into a file, or a folder of scans into a folder:

    `medseg-brn infer runs/hippocampus scan.nii.gz -o label_map.nii.gz`

    `medseg-brn infer runs/hippocampus imagesTs/ -o label_maps/ --memory 4GB --measurements`

    A DICOM series is given as its folder and gives a NIfTI file, with `--dicom-seg` also a DICOM-SEG object
    that refers to its slices (`pip install "medseg-brn[dicom]"`); so do the cases of a CSV manifest (as
    `check` reads it), under the names they have there. The channels of a model with several are files named
    `case_0000`, `case_0001` …, a manifest's columns, or one 4D file.

    One bad scan does not stop the others; the exit code then is 1. A folder also gets `manifest.json`: model,
    settings, versions, and each scan's checksums, seconds, memory and outcome. Called again, the command
    passes over scans that stand there as done with the same model, settings and images.

    Settings that `-s` overrides: `mirror_axes`, `skip_air`, `overlap`, and per structure
    `postprocessing.NAME.keep_largest`, `.remove_below_mm3`, `.fill_holes`.
    """
    settings = list(overrides or [])
    if mirror is not None:
        settings.append(f"mirror_axes={list(_parse_axes(mirror))}")

    from medseg_brn.inference.inputs import find_inputs, plan_jobs
    from medseg_brn.inference.machine import parse_memory
    from medseg_brn.models.segmenter import ModelSegmenter
    from medseg_brn.reports.viewer.page import render_prediction

    segmenter = ModelSegmenter(
        Path(model),
        device,
        precision,
        overrides=tuple(settings),
        overlap=overlap,
        probabilities=probabilities,
        measurements=measurements,
        dicom_segmentation=dicom_seg,
        render_page=render_prediction if view else None,
        memory_bytes=None if memory is None else parse_memory(memory),
        processes=jobs,
        threads=threads,
    )
    if backend == "processes":  # a cluster's machines choose for themselves
        segmenter = segmenter.with_chosen_precision()
    found = find_inputs(inputs, segmenter.load().description.in_channels)
    if dicom_seg:
        _check_series(found.cases)
    planned = plan_jobs(segmenter.choose_sites(found.cases, site), output)
    is_file = [job.target for job in planned] == [output]
    manifest = _open_manifest(segmenter, None if is_file else output)
    try:
        outcomes = _run(segmenter, planned, manifest, backend, verbose=verbose)
    finally:  # also what an interrupted call has done is not done again
        manifest.write()
    written = _write_measurements(manifest, outcomes, output, is_file=is_file) if measurements else None
    _summarize(found, outcomes, output, written)


def _check_series(cases: "Iterable[InputCase]") -> None:
    """Make sure that scans are DICOM series, and that there is what writes DICOM-SEG.

    Raises:
        DataError: a scan is something else.
        ConfigError: highdicom is missing.
    """
    from medseg_brn.errors import DataError
    from medseg_brn.volumes.dicom_segmentation import import_highdicom

    import_highdicom()
    others = [case.image_paths[0] for case in cases if not case.image_paths[0].is_dir()]
    if others:
        raise DataError(
            f"--dicom-seg refers to the slices of a DICOM series, and {others[0]} is a file; give the folder"
            " that holds the slices, or leave --dicom-seg out"
        )


def _open_manifest(segmenter: "ModelSegmenter", folder: Path | None) -> "Manifest":
    from medseg_brn.inference.manifest import MANIFEST_NAME, Manifest

    path = folder and folder / MANIFEST_NAME
    return Manifest(path, segmenter.describe_model(), segmenter.describe_settings())


def _run(
    segmenter: "ModelSegmenter",
    jobs: "Sequence[Job]",
    manifest: "Manifest",
    backend: Literal["processes", "ray"],
    *,
    verbose: bool,
) -> "list[Outcome]":
    """Segment every case, with one bar for the cohort and one for the scan in work."""
    import dataclasses

    from medseg_brn.cli.progress import StageDisplay
    from medseg_brn.inference.cohort import infer_cohort

    processes = min(segmenter.processes, len(jobs))
    one_by_one = processes == 1 and backend == "processes"
    segmenter = dataclasses.replace(segmenter, processes=processes, read_ahead=one_by_one and len(jobs) > 1)
    done = 0
    with StageDisplay() as display:

        def tell(text: str, style: str | None = None) -> None:
            display.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

        def tell_outcome(outcome: "Outcome") -> None:
            nonlocal done
            done += 1
            if len(jobs) > 1:  # of a single scan, the message at the end says all
                display.update("scans", done, len(jobs))
                if outcome.error is not None:
                    tell(f"{outcome.case.name} failed", "red")
            if verbose and outcome.error is None:
                tell(_explain(outcome))

        model = segmenter.load()
        siteless = any(job.case.site is None for job in jobs)
        for note in (model.method_note, model.site_note if siteless else None):
            if note is not None:
                tell(note)
        return infer_cohort(
            segmenter,
            jobs,
            manifest,
            processes=processes,
            backend=backend,
            on_outcome=tell_outcome,
            on_progress=lambda case, part, parts: display.update("tiles", part, parts, case.name),
        )


def _explain(outcome: "Outcome") -> str:
    """Say how a scan was computed."""
    name, details = outcome.case.name, outcome.details
    if outcome.skipped:
        return f"{name}: done before"
    predicted, peak = details["predicted_peak_bytes"], details["peak_memory_bytes"]
    planned = "" if predicted is None else f", {predicted / 1e9:.2f} GB predicted"
    seconds = ", ".join(f"{step} {taken:.1f} s" for step, taken in details["seconds"].items())
    return f"{name}: {details['plan']}\n  memory: {peak / 1e9:.2f} GB at the peak{planned}; {seconds}"


def _write_measurements(
    manifest: "Manifest", outcomes: "Sequence[Outcome]", output: Path, *, is_file: bool
) -> Path:
    """Write the table of all scans of this call that are done."""
    from medseg_brn.inference.measurements import MEASUREMENTS_NAME, write_measurements
    from medseg_brn.volumes.reading import volume_stem

    name = f"{volume_stem(output)}_{MEASUREMENTS_NAME}" if is_file else MEASUREMENTS_NAME
    path = output.with_name(name) if is_file else output / name
    done = [outcome.case.name for outcome in outcomes if outcome.error is None]
    write_measurements(path, {case: manifest.cases[case]["measurements"] for case in done})
    return path


def _summarize(found: "Inputs", outcomes: "Sequence[Outcome]", output: Path, table: Path | None) -> None:
    """Say what was written and what was not.

    Raises:
        DataError: a case failed.
    """
    from medseg_brn.errors import DataError

    if found.passed_over:
        typer.echo(f"Passed over, being no images: {_list_some(path.name for path in found.passed_over)}")
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    skipped = sum(outcome.skipped for outcome in outcomes)
    if len(outcomes) == 1 and failed:
        raise DataError(failed[0].error)
    if len(outcomes) == 1:
        typer.echo("\n".join(map(str, outcomes[0].paths)))
    else:
        before = f", {skipped} of them before" if skipped else ""
        typer.echo(f"{len(outcomes) - len(failed)} of {len(outcomes)} scans segmented{before}: {output}")
    if table is not None:
        typer.echo(str(table))
    if failed:
        told = "\n".join(f"  {outcome.case.name}: {outcome.error}" for outcome in failed)
        raise DataError(f"{len(failed)} of {len(outcomes)} scans could not be segmented:\n{told}")


def _list_some(names: "Iterable[str]", most: int = 5) -> str:
    """Return the first names, and how many there are besides."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def _parse_axes(text: str) -> tuple[int, ...]:
    """Return the axes in a text such as "0,2"."""
    axes = tuple(part.strip() for part in text.split(",") if part.strip())
    if not set(axes) <= {"0", "1", "2"} or len(set(axes)) < len(axes):
        raise typer.BadParameter(
            f"{text!r} must be axes out of 0 (left-right), 1 (front-back) and 2 (up-down), as in 0,2",
            param_hint="--mirror",
        )
    return tuple(map(int, axes))
