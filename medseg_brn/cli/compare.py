"""`medseg-brn compare`: which normalization is stable at small batch sizes, on your data."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def compare(
    config: Annotated[str, typer.Argument(help="YAML file, or the name of a shipped comparison.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to write.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("-s", "--set", metavar="KEY=VALUE", help="Override an option: seeds=5."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Runs at once; by default one per GPU, or else one per core."),
    ] = None,
    backend: Annotated[
        Literal["processes", "ray"],
        typer.Option("--backend", help="Processes of this machine, or of a Ray cluster."),
    ] = "processes",
) -> None:
    """Train one network with several normalizations at several batch sizes, and say which is stable.

    `medseg-brn compare compare_smoke -o smoke` takes a minute and shows what comes out.
    `medseg-brn compare compare_hippocampus -o grid -s experiment.dataset.path=Task04_Hippocampus`

    Every norm gets the same initial weights, patches and budget. DIR/report.html explains what was found;
    DIR/summary.json, runs.csv and probes.csv hold the numbers. The same command goes on where it was stopped;
    with more seeds, norms or batch sizes it adds the runs that are missing. A run whose loss is no longer
    finite is a result; a run that failed is tried again.
    """
    from medseg_brn.cli.progress import ComparisonDisplay
    from medseg_brn.comparison.config import load_comparison
    from medseg_brn.comparison.execute import run_comparison

    comparison = load_comparison(config, overrides or [])
    with ComparisonDisplay() as display:
        results = run_comparison(
            comparison,
            output,
            jobs=jobs,
            backend=backend,
            progress=display.update,
            on_result=display.result,
        )
    display.summarize(results, output)
    failed = [result for result in results if result.status == "failed"]
    if failed:
        raise typer.Exit(1)
