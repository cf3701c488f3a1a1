"""`medseg-brn check`: every case of a dataset read and verified, all problems listed with their remedies."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from medseg_brn.cases.case import Problem
    from medseg_brn.cases.checking import Inspection
    from medseg_brn.cases.dataset import Dataset


def check(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder, or CSV manifest.")],
    layout: Annotated[
        Literal["auto", "decathlon", "nnunet", "csv"], typer.Option(help="How the files are laid out.")
    ] = "auto",
    modalities: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="mri or ct for each channel, as in ct or mri,ct; else as the dataset says."
        ),
    ] = None,
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Label maps without foreground are fine (healthy controls).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Read every case of a dataset and list all that is wrong with it, with remedies. Nothing is changed.

    `medseg-brn check Task04_Hippocampus`

    A CSV manifest has one row a case: the columns `case`, `image` (or `image_0`, `image_1`, … one per
    channel), `label`, and optionally `site` and `patient`. Exit code 1 means errors; warnings leave it 0.
    """
    import json

    from medseg_brn.cases.checking import inspect_dataset
    from medseg_brn.cases.dataset import read_dataset
    from medseg_brn.cli.progress import StageDisplay
    from medseg_brn.errors import DataError

    with StageDisplay() as display:
        given = [name.strip() for name in modalities.split(",")] if modalities is not None else None
        described = read_dataset(dataset, layout, given)
        total = len(described.cases)
        done = iter(range(1, total + 1))
        inspection = inspect_dataset(
            described, lambda case: display.update("checking cases", next(done), total), allow_empty
        )
    if as_json:
        typer.echo(json.dumps(_as_dict(described, inspection), indent=2, ensure_ascii=False))
    else:
        _print(described, inspection)
    if inspection.num_errors:
        bad = len({problem.case for problem in inspection.problems if problem.severity == "error"})
        raise DataError(
            f"{_count(inspection.num_errors, 'error')} in {bad} of the {total} cases of {described.name}; "
            "correct them as told, then check again"
        )


def _as_dict(dataset: "Dataset", inspection: "Inspection") -> dict[str, Any]:
    """The facts and the problems in plain JSON types."""
    from dataclasses import asdict

    return {
        "dataset": dataset.name,
        "cases": len(dataset.cases),
        "labelled_cases": len(dataset.labelled_cases),
        "classes": dict(zip(dataset.class_names, dataset.label_values, strict=True)),
        "regions": [asdict(region) for region in dataset.labels.region_values],
        "ignore_value": dataset.ignore_value,
        "modalities": list(dataset.modalities),
        "spacing_mm": _range([one.spacing_mm for one in inspection.cases if one.spacing_mm]),
        "shape": _range([one.shape for one in inspection.cases if one.shape]),
        "errors": inspection.num_errors,
        "warnings": len(inspection.problems) - inspection.num_errors,
        "problems": [asdict(problem) for problem in inspection.problems],
    }


def _range(rows: "Sequence[tuple[float, ...]]") -> dict[str, list[float]] | None:
    """Least, median and largest per canonical axis of what could be read."""
    import numpy as np

    if not rows:
        return None
    summaries = {"min": np.min(rows, axis=0), "median": np.median(rows, axis=0), "max": np.max(rows, axis=0)}
    return {name: [round(float(value), 6) for value in values] for name, values in summaries.items()}


def _print(dataset: "Dataset", inspection: "Inspection") -> None:
    from rich.console import Console

    terminal = Console(highlight=False)
    # A file or a pipe has no width of its own; paths are not to be broken there.
    console = terminal if terminal.is_terminal else Console(highlight=False, width=200)
    if inspection.problems:
        console.print(_problem_table(inspection.problems, str(dataset.root)))
    facts = _as_dict(dataset, inspection)
    console.print("\n".join(_tell_facts(facts)), markup=False)


def _tell_facts(facts: dict[str, Any]) -> list[str]:
    classes = ", ".join(f"{name} = {value}" for name, value in facts["classes"].items())
    lines = [
        f"{facts['dataset']}: {_count(facts['cases'], 'case')}, {facts['labelled_cases']} with a label map",
        f"  channels  {', '.join(facts['modalities'])}",
        f"  classes   {classes}",
    ]
    if facts["regions"]:
        lines.append(f"  regions   {', '.join(map(_tell_region, facts['regions']))}")
    if facts["ignore_value"] is not None:
        lines.append(f"  ignored   {facts['ignore_value']}")
    for key, title, unit in (("spacing_mm", "spacing", "mm"), ("shape", "shape", "voxels")):
        if facts[key]:
            told = {name: " × ".join(f"{v:.4g}" for v in values) for name, values in facts[key].items()}
            spread = f"{told['min']} to {told['max']}, median " if told["min"] != told["max"] else ""
            lines.append(f"  {title:<8}  {spread}{told['median']} {unit} (along R, A, S)")
    lines.append(f"  {_count(facts['errors'], 'error')}, {_count(facts['warnings'], 'warning')}")
    return lines


def _tell_region(region: dict[str, Any]) -> str:
    values = " + ".join(map(str, region["label_values"]))
    return f"{region['name']} = {values} (written as {region['written_value']})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _problem_table(problems: "Sequence[Problem]", root: str) -> "Table":
    """One section a case; paths are told from the dataset's folder on."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table("Case", "Problem", "Remedy", box=box.SIMPLE_HEAD)
    for name, group in itertools.groupby(problems, key=lambda problem: problem.case):
        title = name or "(dataset)"
        for problem in group:
            colour = "red" if problem.severity == "error" else "yellow"
            message = Text.assemble(
                (f"{problem.severity}: ", colour), problem.message.replace(f"{root}/", "")
            )
            table.add_row(Text(title), message, Text(problem.remedy))
            title = ""
        table.add_section()
    return table
