"""What `dataset.json` says of a dataset: its name, labels, channels and licence."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg_brn.cases.label_description import parse_labels
from medseg_brn.config import Modality
from medseg_brn.errors import DataError


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object that a JSON file holds.

    Raises:
        DataError: it cannot be read, with the line and column, or holds something other than an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}, column {error.colno} is not valid JSON: {error.msg}; correct it."
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} cannot be read as text: {error}; save it in UTF-8.") from None
    except OSError as error:
        raise DataError(
            f"Cannot read {path}: {error.strerror}; check the name, and that you may read it."
        ) from None
    if not isinstance(content, dict):
        raise DataError(
            f'{path} holds {type(content).__name__}; a description is an object: {{"labels": {{…}}}}.'
        )
    return content


def parse_description(content: Mapping[str, Any], place: Path, default_name: str) -> dict[str, Any]:
    """Returns the fields `name`, `labels`, `channel_names` and `licence` of a `Listing`.

    Channels stand under `channel_names` (nnU-Net) or `modality` (Decathlon), as {"0": name, …} or as a list.

    Raises:
        DataError: labels, the order of their regions or channels are missing or not what they must be.
    """
    if "labels" not in content:
        raise DataError(f'{place} has no "labels"; write {{"background": 0, "name": 1, …}}.')
    licence = content.get("licence", content.get("license"))
    return {
        "name": str(content.get("name") or default_name),
        "labels": parse_labels(content["labels"], str(place), content.get("regions_class_order")),
        "channel_names": _parse_channels(content.get("channel_names", content.get("modality")), place),
        "licence": None if licence is None else str(licence),
    }


def _parse_channels(channels: object, place: Path) -> tuple[str, ...] | None:
    if channels is None:
        return None
    if isinstance(channels, list):
        channels = dict(enumerate(channels))
    if isinstance(channels, Mapping) and sorted(map(str, channels)) == sorted(map(str, range(len(channels)))):
        return tuple(str(name) for _, name in sorted(channels.items(), key=lambda item: int(item[0]))) or None
    raise DataError(
        f'{place}: the channels are {channels!r}; number them from "0": {{"0": "T1", "1": "FLAIR"}}.'
    )


def modality_of(channel_name: str) -> Modality:
    """Returns "ct" for a channel called CT (as a word of its name, in any case), else "mri"."""
    return "ct" if "ct" in re.split(r"[^a-z]+", channel_name.lower()) else "mri"
