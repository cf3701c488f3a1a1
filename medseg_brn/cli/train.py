"""`medseg-brn train`: an experiment → a run folder with a model in it."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[str, typer.Argument(help="YAML file, or the name of a shipped experiment.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="RUN", help="Run folder to write.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("-s", "--set", metavar="KEY=VALUE", help="Override an option: training.steps=500."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in RUN from its last checkpoint.")
    ] = False,
) -> None:
    """Train a model, validate it on the held-out fold's whole volumes, and write a report.

    `medseg-brn train hippocampus_mri -o runs/hippocampus -s dataset.path=Task04_Hippocampus`

    A run that was stopped or killed goes on with `--resume` and ends with the same weights as if it had
    never stopped. To extend a finished run, resume it with a higher `training.steps`: the learning rate
    and the renorm limits then go back to where they stand in a run of the new length.
    Several processes: `torchrun --nproc-per-node 2 -m medseg_brn train CONFIG -o RUN`
    """
    from medseg_brn.cli.progress import TrainingDisplay
    from medseg_brn.experiment import load_experiment
    from medseg_brn.training.run import train_run

    experiment = load_experiment(config, overrides or [])
    with TrainingDisplay() as display:
        summary = train_run(
            experiment, output, resume=resume, progress=display.update, after_step=display.step
        )
    if summary is not None:
        display.summarize(summary)
