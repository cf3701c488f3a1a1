"""Models of other toolkits, whichever, as model folders."""

from pathlib import Path

from medseg_brn.config import Orientation
from medseg_brn.errors import ModelError
from medseg_brn.models.importing.monai_bundle import import_bundle, is_bundle
from medseg_brn.models.importing.nnunet import import_nnunet, is_nnunet
from medseg_brn.models.importing.state_dict import import_state_dict


def import_model(
    source: Path | str,
    folder: Path | str,
    *,
    orientation: Orientation | None = None,
    description: Path | str | None = None,
) -> list[str]:
    """Write a model folder of a model that another toolkit trained, whole or not at all.

    Nothing that the source holds is executed.

    Args:
        source: a results folder of nnU-Net v2, a MONAI bundle, or a file with a state dict.
        folder: where to; a model that was there is replaced.
        orientation: of an nnU-Net, see `import_nnunet`.
        description: of a state dict, see `import_state_dict`.

    Returns:
        What the model's user should know, a sentence each.

    Raises:
        ModelError: there is no such model, it is damaged or refused, or cannot be one of ours.
    """
    source, folder = Path(source), Path(folder)
    if not source.exists():
        raise ModelError(f"There is no model at {source}; check the path")
    if orientation is not None and not is_nnunet(source):
        raise ModelError(
            f"An orientation was given, and {source} is no results folder of nnU-Net; leave it out"
        )
    if (description is not None) != source.is_file():
        raise ModelError(
            f"{source}: a description goes with a file of weights, and with nothing else; give both, or a "
            "folder"
        )
    if description is not None:
        return import_state_dict(source, Path(description), folder)
    if is_nnunet(source):
        return import_nnunet(source, folder, orientation)
    if is_bundle(source):
        return import_bundle(source, folder)
    raise ModelError(
        f"{source} is no model that can be imported: a results folder of nnU-Net has plans.json, and a MONAI "
        "bundle has configs/metadata.json"
    )
