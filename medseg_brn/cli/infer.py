"""`medseg-brn infer`: scans → label maps on the scans' own grids."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np

    from medseg_brn.inference.cohort import InputCase, Inputs, Outcome
    from medseg_brn.models.package import Model
    from medseg_brn.volumes.volume import Volume


def infer(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Run folder, or the model folder inside it.")],
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
    mirror: Annotated[
        str | None,
        typer.Option(
            metavar="AXES", help="Average over mirrorings along these axes: 0, or 0,1,2, or '' for none."
        ),
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write each class's probability, as a 4D NIfTI file.")
    ] = False,
    overlap: Annotated[
        float | None,
        typer.Option(min=0, max=0.95, help="Overlap of neighbouring windows; the model's own by default."),
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        typer.Option(help="Where to compute; auto is cuda where there is one."),
    ] = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "bf16"], typer.Option(help="auto is bf16 where the device has it natively.")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Processor threads; one per core by default.")
    ] = None,
) -> None:
    """Segment scans; each label map lies on exactly its scan's grid and has its scan's file name.

    One scan into a file, or a folder of scans into a folder:

    `medseg-brn infer runs/hippocampus scan.nii.gz -o label_map.nii.gz`

    `medseg-brn infer runs/hippocampus imagesTs/ -o label_maps/`

    A DICOM series is given as its folder and gives a NIfTI file; so do the cases of a CSV manifest (as
    `check` reads it), under the names they have there. The channels of a model with several are files named
    `case_0000`, `case_0001` …, a manifest's columns, or one 4D file. One bad scan does not stop the others;
    the exit code then is 1.
    """
    settings = {
        "mirror_axes": _parse_axes(mirror) if mirror is not None else None,
        "overlap": overlap,
        "probabilities": probabilities,
    }

    import torch

    from medseg_brn.inference.cohort import find_inputs
    from medseg_brn.models.package import load_model

    if threads is not None:
        torch.set_num_threads(threads)
    loaded = load_model(model, device, precision)
    found = find_inputs(inputs, loaded.description.in_channels)
    outcomes = _run(loaded, found, output, settings)
    _summarize(found, outcomes, output)


def _run(model: "Model", found: "Inputs", output: Path, settings: dict[str, Any]) -> "list[Outcome]":
    """Segment every case, with one bar for the cohort and one for the scan in work."""
    from medseg_brn.cli.progress import StageDisplay
    from medseg_brn.inference.cohort import infer_cohort

    outcomes: list[Outcome] = []
    with StageDisplay() as display:

        def predict(case: "InputCase") -> "tuple[Volume, np.ndarray | None]":
            def tell_windows(done: int, total: int) -> None:
                display.update("windows", done, total, case.name)

            predicted = model.predict(list(case.image_paths), progress=tell_windows, **settings)
            return predicted if isinstance(predicted, tuple) else (predicted, None)

        def tell_case(outcome: "Outcome") -> None:
            outcomes.append(outcome)
            if len(found.cases) > 1:  # of a single scan, the message at the end says all
                display.update("scans", len(outcomes), len(found.cases))
                if outcome.error is not None:
                    display.console.print(f"{outcome.case.name} failed", style="red", markup=False)

        infer_cohort(predict, found.cases, output, tell_case)
    return outcomes


def _summarize(found: "Inputs", outcomes: "Sequence[Outcome]", output: Path) -> None:
    """Say what was written and what was not.

    Raises:
        DataError: a case failed.
    """
    from medseg_brn.errors import DataError

    if found.passed_over:
        typer.echo(f"Passed over, being no images: {_list_some(path.name for path in found.passed_over)}")
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if len(outcomes) == 1 and failed:
        raise DataError(failed[0].error)
    if len(outcomes) == 1:
        typer.echo("\n".join(map(str, outcomes[0].paths)))
    else:
        typer.echo(f"{len(outcomes) - len(failed)} of {len(outcomes)} scans segmented: {output}")
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
