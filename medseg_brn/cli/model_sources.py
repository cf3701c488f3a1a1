"""`medseg-brn models list`, `show` and `pull`: which models are here, what they are, and how others come."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from medseg_brn.models.description import Description
    from medseg_brn.models.names import NamedModel


def list_models() -> None:
    """List the models that have a name here: those of the package, and your own.

    `medseg-brn infer NAME scan.nii.gz -o label_map.nii.gz` and every other command takes such a name where it
    takes a model. `models show NAME` tells more, `models pull SOURCE` brings others.
    """
    from rich.console import Console

    from medseg_brn.models.names import list_named_models, user_folder

    console = Console(highlight=False)
    models = list_named_models()
    console.print(_table_models(models) if models else "No models here yet.")
    console.print(
        f"Your own are in {user_folder()}; medseg-brn models pull SOURCE brings others.",
        markup=False, soft_wrap=True,
    )  # fmt: skip


def show(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Run folder, the model folder inside it, or a name.")
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the model's own description, model.json, instead.")
    ] = False,
) -> None:
    """Tell what a model is: what it segments, how well, what it was trained on, its licence and limits.

    `medseg-brn models show hippocampus-mri`

    The weights are not read; `infer` checks them before it uses them.
    """
    from rich.console import Console

    from medseg_brn.cli.model_card import compose_card
    from medseg_brn.models.description import read_description
    from medseg_brn.models.names import DESCRIPTION_NAME, find_model_folder

    folder = find_model_folder(model)
    description = read_description(folder / DESCRIPTION_NAME)
    if as_json:
        typer.echo((folder / DESCRIPTION_NAME).read_text(encoding="utf-8").rstrip("\n"))
        return
    Console(highlight=False).print(*compose_card(description, folder), sep="\n")


def pull(
    source: Annotated[
        str,
        typer.Argument(
            help="Address (https) or path of a .zip or .tar.gz archive, path of a run or model folder, or "
            "hf:OWNER/REPOSITORY[@REVISION]."
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(help="What to call it here; by default as its file, folder or repository."),
    ] = None,
    sha256: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="SHA-256 that the archive must have; or SOURCE#sha256=HEX."),
    ] = None,
) -> None:
    """Bring a model here and give it a name, by which every command takes it.

    `medseg-brn models pull https://example.org/liver-ct.zip --sha256 2c26b46b68ffc68f…`

    `medseg-brn models pull runs/mine --name liver-mine`

    `medseg-brn models pull hf:someone/liver-ct@COMMIT`, for which `pip install "medseg-brn[hub]"`

    It is checked before it is put in its place: the checksum, names and sizes of the files, the description,
    the weights. Nothing of it is executed, and of what is refused nothing stays. An interrupted download goes
    on when the command is called again. Without a checksum, the one found is printed: give it the next time,
    and to others.

    An archive holds a model folder, its files at the top or in one folder: model.json and model.safetensors;
    of an ensemble also members/NAME/ with the same two; README and LICENSE, if any; nothing else.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from medseg_brn.cli.tables import printable
    from medseg_brn.models.pull import pull_model

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task("downloading", total=None, visible=False)
        pulled = pull_model(
            source,
            name=name,
            sha256=sha256,
            progress=lambda done, total: bars.update(bar, completed=done, total=total, visible=True),
        )
    licence = pulled.description.licence or "not told"
    typer.echo(
        f"{pulled.name}: {printable(_list_structures(pulled.description))}; licence: {printable(licence)}"
    )
    typer.echo(str(pulled.folder))
    if pulled.sha256 is not None:
        typer.echo(f"SHA-256 of the archive: {pulled.sha256}")


def _table_models(models: "tuple[NamedModel, ...]") -> "Table":
    """One row a model; one that cannot be read says so in its row."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from medseg_brn.cli.tables import printable

    table = Table("Name", "Segments", "Scans", "Dice", "Licence", "MB", "Where", box=SIMPLE_HEAD)
    table.columns[0].no_wrap = True
    for model in models:
        where = "shipped" if model.is_shipped else "own"
        table.add_row(*(Text(printable(cell)) for cell in (model.name, *_describe(model.folder), where)))
    return table


def _describe(folder: Path) -> tuple[str, str, str, str, str]:
    """What it segments, in which scans, Dice, licence, size."""
    from medseg_brn.errors import ModelError
    from medseg_brn.models.description import read_description
    from medseg_brn.models.names import DESCRIPTION_NAME
    from medseg_brn.models.quality import read_quality

    size = f"{sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e6:.1f}"
    try:
        description = read_description(folder / DESCRIPTION_NAME)
    except ModelError:
        return "damaged: models show tells more", "", "", "", size
    quality = read_quality(description.training)
    return (
        _list_structures(description),
        " + ".join(modality.upper() for modality in description.modalities),
        "" if quality is None or quality.dice_mean is None else f"{quality.dice_mean:.3f}",
        description.licence or "not told",
        size,
    )


def _list_structures(description: "Description", most: int = 4) -> str:
    """What it segments, the first ones by name."""
    names = [region.name for region in description.regions] or list(description.class_names[1:])
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
