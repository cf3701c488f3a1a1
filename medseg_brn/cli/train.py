"""`medseg-brn train`: an experiment → a run folder with a model in it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from medseg_brn.config import Experiment


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
    fold: Annotated[
        int | None, typer.Option("--fold", min=0, help="Hold out this fold: the same as -s dataset.fold=K.")
    ] = None,
    all_folds: Annotated[
        bool,
        typer.Option("--all-folds", help="Cross-validate: one training per fold, and one model of them."),
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes",
            min=1,
            help="Folds at once; by default one per GPU, and one on a CPU.",
            rich_help_panel="With --all-folds",
        ),
    ] = None,
    backend: Annotated[
        Literal["processes", "ray"],
        typer.Option(
            "--backend",
            help="Processes of this machine, or of a Ray cluster.",
            rich_help_panel="With --all-folds",
        ),
    ] = "processes",
    final: Annotated[
        Literal["ensemble", "single"],
        typer.Option(
            "--final",
            help="The model at the end: the folds' models averaged, or one trained on all cases.",
            rich_help_panel="With --all-folds",
        ),
    ] = "ensemble",
) -> None:
    """Train a model, validate it on the held-out fold's whole volumes, and write a report.

    `medseg-brn train hippocampus_mri -o runs/hippocampus -s dataset.path=Task04_Hippocampus`

    A run that was stopped or killed goes on with `--resume` and ends with the same weights as if it had
    never stopped. To extend a finished run, resume it with a higher `training.steps`: the learning rate
    and the renorm limits then go back to where they stand in a run of the new length.
    Several processes: `torchrun --nproc-per-node 2 -m medseg_brn train CONFIG -o RUN`

    With `-s dataset.folds_by=site` a fold holds out all cases of one of the sites that the dataset's manifest
    names.

    With `--all-folds`, RUN/fold_0, RUN/fold_1 … are ordinary runs, RUN/summary.json and RUN/report.html say
    how good their models are on the cases that they had not seen, and RUN/model is the ensemble of them, with
    the post-processing that helped there; `medseg-brn infer RUN` takes it. A fold that fails leaves the
    others as they are; `--resume` goes on with what is not done.
    """
    from medseg_brn.experiment import load_experiment

    if all_folds and fold is not None:
        raise typer.BadParameter("--fold holds out one fold, and --all-folds each in turn; give one of them")
    if not all_folds and (processes is not None or backend != "processes" or final != "ensemble"):
        raise typer.BadParameter("--processes, --backend and --final go with --all-folds")
    chosen = [] if fold is None else [f"dataset.fold={fold}"]
    experiment = load_experiment(config, [*(overrides or []), *chosen])
    if all_folds:
        _cross_validate(experiment, output, resume, processes, backend, final)
    else:
        _train_one(experiment, output, resume)


def _train_one(experiment: "Experiment", output: Path, resume: bool) -> None:
    from medseg_brn.cli.progress import TrainingDisplay
    from medseg_brn.training.run import train_run

    with TrainingDisplay() as display:
        summary = train_run(
            experiment, output, resume=resume, progress=display.update, after_step=display.step
        )
    if summary is not None:
        display.summarize(summary)


def _cross_validate(
    experiment: "Experiment",
    output: Path,
    resume: bool,
    processes: int | None,
    backend: Literal["processes", "ray"],
    final: Literal["ensemble", "single"],
) -> None:
    from medseg_brn.cli.progress import FoldsDisplay
    from medseg_brn.cross_validation.execute import run_cross_validation

    with FoldsDisplay() as display:
        results = run_cross_validation(
            experiment,
            output,
            resume=resume,
            final=final,
            processes=processes,
            backend=backend,
            progress=display.update,
            on_fold=display.fold,
        )
    display.summarize(results, output)
    if any(result.error is not None for result in results):
        raise typer.Exit(1)
