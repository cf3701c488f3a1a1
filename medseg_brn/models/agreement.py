"""Whether models can be one ensemble: what its members must have alike."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medseg_brn.models.description import Description, ModelDescription


def find_disagreement(descriptions: Sequence[tuple[Path, Description]]) -> str | None:
    """Return where descriptions say different things that members of one ensemble must agree on, or None.

    Args:
        descriptions: each with its folder; the first of a model, the others of models or of an ensemble.
    """
    (first_folder, first), *others = descriptions
    reference = _shared_values(first)
    for folder, other in others:
        for name, value in _shared_values(other).items():
            if value != reference[name]:
                return f"{name} is {value} in {folder} and {reference[name]} in {first_folder}"
    return None


def _shared_values(description: Description) -> dict[str, Any]:
    """Return what is the same in all members: the meaning of channels and classes, and the network's grid.

    Of intensities only the schemes, which say where air is; a fold has its own constants.
    """
    values: dict[str, Any] = {
        "class_names": description.class_names,
        "label_values": description.label_values,
        "regions": tuple(
            f"{one.name} {one.label_values}, as {one.written_value}" for one in description.regions
        ),
        "modalities": description.modalities,
    }
    if isinstance(description, ModelDescription):
        preprocessing = description.preprocessing
        values |= {
            "preprocessing.spacing_mm": preprocessing.spacing_mm,
            "preprocessing.crop": preprocessing.crop,
            "preprocessing.orientation": preprocessing.orientation,
            "preprocessing.intensity's scheme": tuple(one.scheme for one in preprocessing.intensity),
        }
    return values
