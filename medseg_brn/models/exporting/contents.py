"""What an exported network says of itself: all that is needed to use it without this toolkit."""

import json
from importlib.metadata import version
from typing import Any

from medseg_brn.models.exporting.exportable import Exportable
from medseg_brn.volumes.geometry import AS_STORED

PREFIX = "medseg_brn."


def describe_contents(exportable: Exportable) -> dict[str, Any]:
    """Return what input the network takes and what its logits mean, in plain JSON types."""
    description = exportable.description
    contents: dict[str, Any] = {
        "version": version("medseg-brn"),
        "name": description.name,
        "licence": description.licence,
        "weights_sha256": description.weights_sha256,
        "channels": list(description.modalities),
        "axes": f"image (N, C, X, Y, Z) to logits (N, K, X, Y, Z); {_describe_axes(exportable)}",
        "spacing_mm": list(description.preprocessing.spacing_mm),
        "crop": description.preprocessing.crop,
        "intensity": description.preprocessing.as_dict()["intensity"],
        "size_multiples": list(exportable.strides_total),
        "activation": "sigmoid" if description.regions else "softmax",
        "class_names": list(description.class_names),
        "label_values": list(description.label_values),
        "evaluation": describe_evaluation(exportable),
        "inference": description.inference.model_dump(mode="json"),
    }
    if description.regions:
        contents["regions"] = [region.model_dump(mode="json") for region in description.regions]
    if description.mirrored_classes:
        contents["mirrored_classes"] = [list(pair) for pair in description.mirrored_classes]
    if description.sites:
        contents["site"] = exportable.site or "the mixture of all"
    return contents


def _describe_axes(exportable: Exportable) -> str:
    orientation = exportable.description.preprocessing.orientation
    if orientation == AS_STORED:
        return "X, Y, Z are the axes of the scan's file"
    meaning = ", which is to the right, to the front and up" if orientation == "RAS" else ""
    return f"X, Y, Z run towards {orientation}{meaning}"


def describe_evaluation(exportable: Exportable) -> str:
    """Return how a volume is to be given to the network."""
    if exportable.folds:
        return "the whole volume at once, padded with zeros at its upper ends to multiples of the sizes"
    size = " x ".join(map(str, exportable.description.patch_size))
    return (
        f"in windows of {size} voxels, whose probabilities are averaged, with a Gaussian weight, where they "
        f"overlap by {exportable.description.inference.overlap:.0%}"
    )


def as_properties(contents: dict[str, Any]) -> dict[str, str]:
    """Return the contents as the text properties of a file: texts as they are, all else as JSON."""
    return {
        PREFIX + key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in contents.items()
    }
