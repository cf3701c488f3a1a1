"""`medseg-brn models`: what is done with trained models besides segmenting scans."""

from pathlib import Path
from typing import Annotated

import typer

models = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")


@models.callback()
def about() -> None:
    """Work with trained models."""


@models.command()
def combine(
    members: Annotated[
        list[Path],
        typer.Argument(metavar="RUN_OR_MODEL...", help="Run folders, or the model folders inside them."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Model folder to write.")],
    name: Annotated[
        str | None, typer.Option(help="What the ensemble calls itself; by default as its members do.")
    ] = None,
    inference_of: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN_OR_MODEL", help="Take inference settings from this model, where the members' differ."
        ),
    ] = None,
) -> None:
    """Make one model of several: an ensemble, which averages its members' probabilities.

    Train one run per fold, and combine them:

    `medseg-brn train mine.yaml -o runs/fold0 -s dataset.fold=0` … and so on

    `medseg-brn models combine runs/fold0 runs/fold1 runs/fold2 -o my_ensemble`

    `medseg-brn infer my_ensemble scans/ -o label_maps/`

    The members are copied, so the folder is all that inference needs, and inference takes as long as all
    of them together. They must agree on classes, channels, voxel size and crop: give
    `preprocessing.spacing_mm` in the experiment, or each fold measures its own. Architectures and
    intensity constants may differ.
    """
    from medseg_brn.models.description import read_description
    from medseg_brn.models.ensemble import save_ensemble
    from medseg_brn.models.package import DESCRIPTION_NAME, find_model_folder

    inference = None
    if inference_of is not None:
        inference = read_description(find_model_folder(inference_of) / DESCRIPTION_NAME).inference
    save_ensemble(output, members, name=name, inference=inference)
    typer.echo(f"{output}: an ensemble of {len(members)} models")
