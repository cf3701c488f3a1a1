"""Making a model fit to be shared: a copy with a card, a name and a licence."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from medseg_brn.errors import ModelError
from medseg_brn.models.archive import copy_model
from medseg_brn.models.card import Card
from medseg_brn.models.description import explain
from medseg_brn.models.names import DESCRIPTION_NAME, find_model_folder
from medseg_brn.models.package import check_replaceable, verify_model
from medseg_brn.volumes.atomic import atomic_path


def save_with_card(
    folder: Path | str,
    source: Path | str,
    card: Card,
    *,
    name: str | None = None,
    licence: str | None = None,
    colours: Sequence[str] = (),
) -> None:
    """Write a copy of a model or an ensemble that also says what its user should know, whole or not at all.

    Args:
        folder: where to; a model that was there is replaced.
        source: a model folder, a run folder with one inside, or a known model's name.
        card: what is told.
        name: what the model calls itself; by default as before.
        licence: of the weights; by default as before.
        colours: of each class besides the background, as "#ff9a3d"; by default as before.

    Raises:
        ModelError: there is no model, it is damaged, a colour is none, or the folder holds something else.
    """
    folder, place = Path(folder), find_model_folder(source)
    check_replaceable(folder)
    description = verify_model(place)
    said: dict[str, Any] = {"card": card, "name": name, "licence": licence, "colours": tuple(colours)}
    changes = {field: value for field, value in said.items() if value}
    try:
        described = type(description).model_validate({**dict(description), **changes})
    except ValidationError as error:
        raise ModelError(f"{place} cannot be described so: {explain(error)}") from None
    with atomic_path(folder) as temporary:
        copy_model(place, temporary)
        text = described.model_dump_json(indent=2) + "\n"
        (temporary / DESCRIPTION_NAME).write_text(text, encoding="utf-8")
