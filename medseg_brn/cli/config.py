"""`medseg-brn config`: the shipped experiments, a resolved experiment, or the JSON schema."""

from typing import Annotated

import typer


def config(
    source: Annotated[
        str | None, typer.Argument(metavar="[CONFIG]", help="YAML file, or the name of a shipped experiment.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("-s", "--set", metavar="KEY=VALUE", help="Override an option.")
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema, for editors that check YAML.")
    ] = False,
) -> None:
    """Print an experiment with every option, or list the shipped experiments and comparisons.

    Copy one to start your own: `medseg-brn config hippocampus_mri > mine.yaml`
    A comparison (for `medseg-brn compare`) is printed as it stands in its file.
    """
    from medseg_brn.experiment import (
        dump_experiment,
        experiment_schema,
        find_config,
        load_experiment,
        shipped_comparisons,
        shipped_configs,
    )

    if schema:
        typer.echo(experiment_schema())
    elif source is None:
        for path in (*shipped_configs(), *shipped_comparisons()):
            typer.echo(f"{path.stem:<24}{path}")
    elif find_config(source) in shipped_comparisons():
        typer.echo(find_config(source).read_text(encoding="utf-8"), nl=False)
    else:
        typer.echo(dump_experiment(load_experiment(source, overrides or [])), nl=False)
