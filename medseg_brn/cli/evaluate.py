"""`medseg-brn evaluate`: predictions against references, as a table and as JSON."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from medseg_brn.evaluation.results import Evaluation

LOWEST_SHOWN = 3


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of predicted label maps, or one label map.")],
    references: Annotated[
        Path,
        typer.Argument(help="Folder of reference label maps, one label map, or a CSV manifest."),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write every figure to this JSON file.")
    ] = None,
    tolerance_mm: Annotated[
        float, typer.Option(min=0, help="Surfaces at most this far apart agree, for the surface Dice.")
    ] = 1.0,
    dataset: Annotated[
        Path | None,
        typer.Option(
            help="dataset.json with classes, regions and the ignore label; by default the one that describes "
            "REFERENCES."
        ),
    ] = None,
    jobs: Annotated[int, typer.Option("-j", "--jobs", min=1, help="Cases evaluated at a time.")] = 1,
) -> None:
    """Tell how good predictions are: Dice, HD95, surface distance, surface Dice, volumes.

    Label maps pair by file name without suffix; those of a CSV manifest have the name of their
    case. `_probabilities.nii.gz` files are passed over. REFERENCES may hold more cases than were predicted:

    `medseg-brn evaluate out/ Task04_Hippocampus/labelsTr -o metrics.json`

    A class in neither map of a case has no Dice and is left out of the means; a class in one map only
    has Dice 0 and no distance, and is counted as missed or as a false alarm. Where dataset.json describes
    regions, these are evaluated and not the single values; where it has an ignore label, voxels with that
    label in the reference count in no figure. Where they are cut off, the cut counts as a surface in HD95
    and the other distances.
    """
    from functools import partial

    from rich.console import Console

    from medseg_brn.cli.progress import StageDisplay
    from medseg_brn.errors import DataError
    from medseg_brn.evaluation.evaluate import evaluate_folders
    from medseg_brn.evaluation.pairing import read_structures

    structures = read_structures(dataset) if dataset is not None else None
    with StageDisplay() as display:
        result = evaluate_folders(
            predictions,
            references,
            structures=structures,
            tolerance_mm=tolerance_mm,
            jobs=jobs,
            progress=partial(display.update, "evaluating"),
        )
    console = Console(highlight=False)
    if result.cases:
        console.print(_make_table(result))
    if len(result.cases) > LOWEST_SHOWN:
        console.print(f"Lowest Dice: {_tell_lowest(result)}", markup=False)
    if result.unpredicted:
        console.print(f"References without a prediction, passed over: {len(result.unpredicted)}")
    if output is not None:
        _write_json(result.as_dict(), output)
        console.print(f"Every figure: {output}", markup=False, soft_wrap=True)
    if result.failures:
        told = "\n".join(f"  {failure.case}: {failure.message}" for failure in result.failures)
        total = len(result.cases) + len(result.failures)
        raise DataError(f"{len(result.failures)} of {total} cases could not be evaluated:\n{told}")


def _make_table(result: "Evaluation") -> "Table":
    """One row per class, and the mean."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    summary = result.summary()
    table = Table(box=SIMPLE_HEAD, caption_justify="left", pad_edge=False)
    table.add_column(f"{summary['cases']} cases")
    for heading in (
        *("Dice", f"Surface\nDice\n{result.tolerance_mm:g} mm", "HD95\nmm", "Surface\ndistance\nmm"),
        *("Volume\nexcess\nml", "Missed /\nfalse\nalarms"),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, figures in summary["classes"].items():
        spread = f" ± {figures['dice_sd']:.3f}" if figures["dice_sd"] is not None else ""
        table.add_row(
            escape(name),
            _tell(figures["dice_mean"], ".3f") + spread,
            _tell(figures["surface_dice_mean"], ".3f"),
            _tell(figures["hd95_mm_mean"], ".2f"),
            _tell(figures["average_surface_distance_mm_mean"], ".2f"),
            _tell(figures["volume_difference_ml_mean"], "+.2f"),
            f"{figures['missed']} / {figures['false_alarms']}",
        )
    interval = summary["dice_interval_95"]
    table.caption = f"Mean foreground Dice {_tell(summary['dice_mean'], '.4f')}" + (
        f" (95 % interval over cases {interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
    )
    return table


def _tell_lowest(result: "Evaluation") -> str:
    """The cases with the lowest Dice, which are worth a look."""
    from math import isnan

    cases = sorted(
        (case for case in result.cases if not isnan(case.dice_mean)), key=lambda case: case.dice_mean
    )
    return ", ".join(f"{case.case} {case.dice_mean:.3f}" for case in cases[:LOWEST_SHOWN])


def _tell(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _write_json(content: dict[str, Any], path: Path) -> None:
    import json

    from medseg_brn.volumes.atomic import write_text_atomic

    write_text_atomic(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
