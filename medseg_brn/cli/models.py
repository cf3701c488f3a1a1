"""`medseg-brn models`: what is done with trained models besides segmenting scans."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from medseg_brn.cli.model_sources import list_models, pull, show
from medseg_brn.cli.models_import import import_model

models = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
models.command("list")(list_models)
models.command()(show)
models.command()(pull)
models.command("import")(import_model)


@models.callback()
def about() -> None:
    """Work with trained models."""


@models.command()
def combine(
    members: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL...", help="Run folders, the model folders inside them, or names."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Model folder to write.")],
    name: Annotated[
        str | None, typer.Option(help="What the ensemble calls itself; by default as its members do.")
    ] = None,
    inference_of: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL", help="Take inference settings from this model, where the members' differ."
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


@models.command()
def quantize(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Run folder, the model folder inside it, or a name.")
    ],
    scans: Annotated[
        list[Path],
        typer.Argument(
            metavar="SCANS...",
            help="Training scans: image files, folders of them or with a DICOM series, or CSV manifests.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Model folder to write.")],
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="What may be taken in all: 4GB; by default half of what is free."),
    ] = None,
) -> None:
    """Make a copy of a model that can also compute in 8-bit integers, in less time and memory.

    Calibrate it on scans that it was trained on; 10 to 20 are enough:

    `medseg-brn models quantize runs/mine some_training_scans/ -o mine_int8`

    `medseg-brn infer mine_int8 new_scans/ -o label_maps/ --precision int8`

    The scans are segmented once, in the usual precision, to see how large the features become; no label maps
    are needed and nothing is trained. The weights stay as they are, so without `--precision int8` the copy
    does what the model does. Scans unlike those that it was calibrated on may exceed the range of 8 bits:
    compare both precisions with `medseg-brn evaluate` on held-out scans before you trust it.

    It takes a U-Net with a plain encoder and a norm that folds (batch_renorm, batch), and a CPU. For an
    ensemble, quantize each member and combine the copies.
    """
    from medseg_brn.cli.progress import StageDisplay
    from medseg_brn.inference.machine import parse_memory
    from medseg_brn.models.calibration import save_calibrated

    with StageDisplay() as display:
        count = save_calibrated(
            output,
            model,
            scans,
            memory_bytes=None if memory is None else parse_memory(memory),
            progress=lambda done, total, name: display.update("scans", done, total, name),
        )
    typer.echo(
        f"{output}: calibrated on {count} scan{'s' * (count != 1)}; use it with infer --precision int8"
    )


@models.command()
def choose(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders that train --all-folds wrote, two or more."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder to write.")],
    ensembles: Annotated[
        bool, typer.Option("--ensembles", help="Also try each pair's ensemble, predicting every case again.")
    ] = False,
) -> None:
    """Choose among cross-validated configurations, and write the model of the one chosen.

    `medseg-brn train small.yaml -o runs/small --all-folds` … and so on

    `medseg-brn models choose runs/small runs/large -o chosen --ensembles`

    `medseg-brn infer chosen scans/ -o label_maps/`

    Every case is segmented by models that have not seen it, and configurations are compared case by case. The
    simplest is taken of those that are shown to be as good as the best, mean Dice being lower by 0.01 at
    most: fewer networks, then smaller ones. FOLDER/choice.html and choice.json say how they compare; the
    post-processing is decided anew for the one chosen. The runs must have the same cases in the same folds,
    and FOLDER must lie outside them.
    """
    from medseg_brn.cli.progress import StageDisplay
    from medseg_brn.cross_validation.choice import choose_model

    with StageDisplay() as display:
        found = choose_model(runs, output, ensembles=ensembles, progress=display.update)
    typer.echo(f"Chosen: {found['chosen']}. {found['reason']}")
    typer.echo(f"Model:  {output / 'model'}\nReport: {output / 'choice.html'}")


@models.command()
def export(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Run folder, the model folder inside it, or a name.")
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="OUT", help="FILE.onnx, FILE.pt2, or the bundle's folder."),
    ],
    format_name: Annotated[
        Literal["onnx", "monai", "torch"],
        typer.Option("--format", help="An ONNX file, a MONAI bundle, or a program of torch.export."),
    ],
    site: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of a model with statistics of each site, take this one's; by default the mixture of all.",
        ),
    ] = None,
) -> None:
    """Write a model for programs that do not know this toolkit.

    `medseg-brn models export runs/mine -o my_bundle --format monai`

    writes a MONAI bundle, which `python -m monai.bundle run` runs from scan to label map, where this toolkit
    is not installed.

    `medseg-brn models export runs/mine -o mine.onnx --format onnx`

    `medseg-brn models export runs/mine -o mine.pt2 --format torch`

    write the network alone, from a prepared image to logits: for onnxruntime and others that read ONNX (it
    takes the packages of `medseg-brn[onnx]`), and for `torch.export.load` of the same version of torch. What
    image it takes and what its logits mean stands in the file: channels, voxel size, intensities, labels, and
    of what its sizes are multiples.

    Norms are folded where they fold. What is written was run and compared with the trained network on images
    of two sizes; where they disagree, nothing is written. Of an ensemble, export each member; of a quantized
    model, the model that it was made from.
    """
    from medseg_brn.models.exporting.export import export_model

    agreement = export_model(model, output, format_name, site)
    typer.echo(f"{output}: agrees with the trained network: {agreement.describe()}")
