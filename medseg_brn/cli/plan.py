"""`medseg-brn plan`: a dataset → one complete, commented experiment."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from medseg_brn.planning.planner import Plan


def plan(
    dataset: Annotated[
        str, typer.Argument(help="Dataset folder or CSV manifest; or phantom_mri, phantom_ct.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="CONFIG.yaml", help="Experiment file to write.")
    ],
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory that the training process may take (on a GPU: of the GPU), as 8GB; else most of "
            "what is free.",
        ),
    ] = None,
    time: Annotated[
        str, typer.Option(metavar="DURATION", help="Time that the run may take, as 30m, 2h, 1h30m.")
    ] = "30m",
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where it will be trained.")
    ] = "auto",
    layout: Annotated[
        Literal["auto", "decathlon", "nnunet", "csv"], typer.Option(help="How the files are laid out.")
    ] = "auto",
    modalities: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="mri or ct for each channel, as in ct or mri,ct; else as the dataset says."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite CONFIG and the files beside it.")] = False,
) -> None:
    """Plan an experiment for a dataset: every option chosen by a rule, with the reason for it.

    `medseg-brn plan Task04_Hippocampus -o hippocampus.yaml --time 30m`

    Reads every case once, searches for a network and a patch size within the budgets, and tries them: a few
    real steps tell the time and the memory that training will take. Beside CONFIG.yaml stand CONFIG.plan.json
    (the numbers) and CONFIG.plan.html (pictures of the dataset, and the choices). Then:
    `medseg-brn train CONFIG.yaml -o RUN`
    """
    import tempfile

    from medseg_brn.cli.progress import StageDisplay
    from medseg_brn.inference.machine import parse_memory
    from medseg_brn.planning.planner import make_plan
    from medseg_brn.planning.requests import Request, parse_duration
    from medseg_brn.planning.writing import check_outputs, write_plan

    check_outputs(output, force)
    request = Request(
        path=dataset,
        layout=layout,
        modalities=None if modalities is None else tuple(name.strip() for name in modalities.split(",")),
        memory_bytes=None if memory is None else parse_memory(memory),
        time_seconds=parse_duration(time),
        device=device,
    )
    with tempfile.TemporaryDirectory(prefix="medseg-brn-plan-") as folder, StageDisplay() as display:
        made = make_plan(request, display.update, Path(folder))
        display.update("writing the plan", 0, 1)
        write_plan(made, output)
        display.update("writing the plan", 1, 1)
    _print(made, output)


def _print(made: "Plan", output: Path) -> None:
    from rich.console import Console

    from medseg_brn.planning.writing import name_outputs, tell_prediction

    console = Console(highlight=False)
    if not console.is_terminal:  # a file or another program has no width; the reasons need some
        console = Console(highlight=False, width=140)
    console.print(_choice_table(made))
    for warning in made.warnings:
        console.print(f"Warning: {warning}", style="yellow", markup=False)
    console.print(tell_prediction(made), markup=False)
    paths = zip(("Experiment:", "Numbers:", "Page:"), name_outputs(output), strict=True)
    for name, path in paths:
        console.print(f"{name:<12}{path}", markup=False, soft_wrap=True)


def _choice_table(made: "Plan") -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from medseg_brn.reports.plan_report import tell_value

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("Option", overflow="fold", max_width=38)
    table.add_column("Value", overflow="fold", max_width=32)
    table.add_column("Reason")
    section = ""
    for key, choice in made.choices.items():
        if section and key.split(".")[0] != section:
            table.add_section()
        section = key.split(".")[0]
        table.add_row(Text(key), Text(tell_value(choice.value)), Text(choice.reason))
    return table
