"""`medseg-brn demo`: the whole way on a phantom cohort, offline, in minutes."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to write.")] = Path(
        "demo"
    ),
) -> None:
    """Make a phantom cohort, train on it, segment unseen cases, evaluate, and write a report.

    `medseg-brn demo -o my_demo`

    Needs no data and no network. The same steps by hand are printed at the end, so that you can repeat
    them with your own scans.
    """
    from rich.console import Console

    from medseg_brn.cli.progress import TrainingDisplay
    from medseg_brn.demo import run_demo

    with TrainingDisplay() as display:
        result = run_demo(output, progress=display.update, after_step=display.step)
    console = Console(highlight=False, soft_wrap=True)
    console.print(result.describe(), markup=False)
