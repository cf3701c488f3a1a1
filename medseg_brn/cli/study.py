"""`medseg-brn study`: the method's other systems, each with claims stated beforehand."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from medseg_brn.studies.outcome import Outcome, Progress

study = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")

Output = Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to write.")]
Scale = Annotated[
    float, typer.Option(min=0.01, help="Times as much work (seeds, steps, repetitions) as the default.")
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Draws everything that is random.")]


@study.callback()
def about() -> None:
    """Where a small sample stands in for a population: other systems than the U-Net, each measured.

    Each study trains for real, over several seeds, and says which of the claims stated beforehand hold:
    DIR/report.html shows it, DIR/summary.json and measurements.csv hold the numbers. One is meant to take at
    most ten minutes on two cores; the same seed and scale give the same numbers on the same machine.
    """


def _run(name: str, output: Path, make: "Callable[[Progress], Outcome]") -> None:
    """Do a study, write what it found, and say which claims hold."""
    from medseg_brn.cli.progress import StudyDisplay
    from medseg_brn.studies.outcome import check_folder, write_outcome

    check_folder(output, name)
    with StudyDisplay() as display:
        outcome = make(display.update)
        write_outcome(outcome, output)
    display.summarize(outcome.claims, output)


@study.command()
def confounding(output: Output, scale: Scale = 1.0, seed: Seed = 0) -> None:
    """Batches of one group each: how much of the groups' difference does a norm's training let through?"""
    from medseg_brn.studies.confounding.study import study_confounding

    _run("confounding", output, lambda progress: study_confounding(seed, scale, progress))


@study.command()
def adversarial(output: Output, scale: Scale = 1.0, seed: Seed = 0) -> None:
    """A discriminator's batches of real and fake: how much does its norm tell that no single item shows?"""
    from medseg_brn.studies.adversarial.study import study_adversarial

    _run("adversarial", output, lambda progress: study_adversarial(seed, scale, progress))


@study.command()
def distributed(output: Output, scale: Scale = 1.0, seed: Seed = 0) -> None:
    """Several workers on one network: is a merged memory as good as a synchronized batch?"""
    from medseg_brn.studies.distributed.study import study_distributed

    _run("distributed", output, lambda progress: study_distributed(seed, scale, progress))


@study.command()
def sites(
    output: Output,
    scale: Scale = 1.0,
    seed: Seed = 0,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DATASET", help="Your own scans instead of the phantom's: a folder or a CSV manifest."
        ),
    ] = None,
) -> None:
    """Scanners that differ: does a norm mend the gap between training and inference, or the sites' effect?"""
    from medseg_brn.studies.sites.study import study_sites

    _run("sites", output, lambda progress: study_sites(seed, scale, progress, data))


@study.command("batch-effects")
def batch_effects(
    output: Output,
    scale: Scale = 1.0,
    seed: Seed = 0,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Your own expression data: .csv (a row a sample) or .h5ad."),
    ] = None,
    group: Annotated[
        str, typer.Option(metavar="COLUMN", help="Column of the data that shall be told apart.")
    ] = "group",
    batch: Annotated[str, typer.Option(metavar="COLUMN", help="Column of the data's batches.")] = "batch",
) -> None:
    """Gene expression from several laboratories: what do norms and corrections keep of group and batch?"""
    from medseg_brn.studies.batch_effects.own_study import study_own_data
    from medseg_brn.studies.batch_effects.study import study_batch_effects

    def make(progress: "Progress") -> "Outcome":
        if data is None:
            return study_batch_effects(seed, scale, progress)
        return study_own_data(data, group, batch, seed, scale, progress)

    _run("batch-effects", output, make)
