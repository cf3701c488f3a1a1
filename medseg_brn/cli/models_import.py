"""`medseg-brn models import`: weights that another toolkit trained."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def import_model(
    source: Annotated[
        Path,
        typer.Argument(help="Results folder of nnU-Net v2, MONAI bundle, or file with a state dict (.pt)."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Model folder to write.")],
    orientation: Annotated[
        Literal["RAS", "LAS", "RPS", "LPS", "RAI", "LAI", "RPI", "LPI"] | None,
        typer.Option(
            help="Axes in which an nnU-Net's training scans were stored; by default each scan is taken "
            "as its file has it, as nnU-Net does."
        ),
    ] = None,
    description: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A model.json that describes the network of a state dict."),
    ] = None,
) -> None:
    """Make a model folder of a model that another toolkit trained.

    `medseg-brn models import nnUNetTrainer__nnUNetPlans__3d_fullres -o mine`

    takes nnU-Net's results folder, with `plans.json`, `dataset.json` and `fold_0`, `fold_1` …, trained as
    3d_fullres or 3d_lowres with a PlainConvUNet or a ResidualEncoderUNet; several folds become an ensemble.

    `medseg-brn models import spleen_ct_segmentation -o spleen`

    takes a MONAI bundle's `configs/inference.json` (or .yaml), `configs/metadata.json` and `models/model.pt`,
    if its network is of MONAI's zoo and its preprocessing can be expressed here.

    `medseg-brn models import weights.pt --description model.json -o mine`

    takes a plain state dict, and a description as model folders have it; a network of MONAI is described by
    `"network": {"kind": "monai", "name": "SegResNet", "arguments": {"init_filters": 16}}`.

    Then `infer`, `evaluate`, `models show` and so on take it as any other. Weights are read as numbers and
    descriptions as text: nothing that the files hold is executed, and what would need it is refused.
    """
    from medseg_brn.models.importing.importing import import_model as write_model_folder

    notes = write_model_folder(source, output, orientation=orientation, description=description)
    typer.echo("\n".join([f"{output}: imported from {source}", *(f"- {note}" for note in notes)]))
