"""Ensembles: several models as one model folder, whose probabilities are averaged.

    ensemble/
      model.json         classes, inference settings, licence, and the members with their checksums
      members/0/         the first member, a model folder as it was
      members/1/         …

It is made of trained models, which stay as they are, and loaded like any model.
"""

import shutil
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from medseg_brn.config import InferenceConfig
from medseg_brn.errors import ModelError
from medseg_brn.models.agreement import find_disagreement
from medseg_brn.models.description import (
    EnsembleDescription,
    MemberEntry,
    ModelDescription,
    explain,
)
from medseg_brn.models.package import (
    DESCRIPTION_NAME,
    MEMBERS_NAME,
    WEIGHTS_NAME,
    check_replaceable,
    find_model_folder,
    load_network,
)
from medseg_brn.volumes.atomic import atomic_path


def save_ensemble(
    folder: Path | str,
    model_paths: Sequence[Path | str],
    *,
    name: str | None = None,
    inference: InferenceConfig | None = None,
    training: dict[str, Any] | None = None,
) -> None:
    """Write several models as one model folder, whole or not at all; a model that was there is replaced.

    Members share classes, channels, voxel size and crop; each keeps its own architecture and intensity
    constants.

    Args:
        folder: where to.
        model_paths: model folders, or run folders with one inside; at least two.
        name: what the ensemble calls itself; by default as its members do.
        inference: mirroring, post-processing and so on; by default the members' own, if they are the same.
        training: what is known of the ensemble as such, in plain JSON types.

    Raises:
        ModelError: a member is damaged, an ensemble or the same as another, the members do not belong
            together, or the folder holds something else.
    """
    folder = Path(folder)
    check_replaceable(folder)
    sources = [find_model_folder(path) for path in model_paths]
    _check_sources(sources, folder)
    members = [(source, load_network(source)[1]) for source in sources]
    _check_members(members)
    description = _describe([member for _, member in members], name, inference or _common_inference(members))
    description = description.model_copy(update={"training": training or {}})
    with atomic_path(folder) as temporary:
        for source, entry in zip(sources, description.members, strict=True):
            target = temporary / MEMBERS_NAME / entry.folder
            target.mkdir(parents=True)
            for file in (WEIGHTS_NAME, DESCRIPTION_NAME):
                shutil.copyfile(source / file, target / file)
        text = description.model_dump_json(indent=2) + "\n"
        (temporary / DESCRIPTION_NAME).write_text(text, encoding="utf-8")


def _check_sources(sources: Sequence[Path], folder: Path) -> None:
    if len(sources) < 2:
        given = ", ".join(map(str, sources)) or "none"
        raise ModelError(
            f"An ensemble has two members or more, and {given} was given; name each run or model folder"
        )
    for source in sources:
        if source.resolve().is_relative_to(folder.resolve()):
            raise ModelError(
                f"{folder} holds the member {source}, and saving would replace it; choose another folder"
            )


def _check_members(members: Sequence[tuple[Path, ModelDescription]]) -> None:
    for (one, first), (other, second) in combinations(members, 2):
        if first.weights_sha256 == second.weights_sha256:
            raise ModelError(
                f"{one} and {other} hold the same weights (SHA-256 {first.weights_sha256}), and the members "
                "of an ensemble must differ; name each model once"
            )
    disagreement = find_disagreement(members)
    if disagreement is not None:
        raise ModelError(
            f"These models cannot be averaged: {disagreement}; combine models trained on one dataset, with "
            "preprocessing.spacing_mm and crop given in the experiment and not measured on each fold"
        )


def _common_inference(members: Sequence[tuple[Path, ModelDescription]]) -> InferenceConfig:
    (first_folder, first), *others = members
    for folder, other in others:
        for option in InferenceConfig.model_fields:
            values = [getattr(one.inference, option) for one in (other, first)]
            if values[0] != values[1]:
                raise ModelError(
                    f"inference.{option} is {values[0]} in {folder} and {values[1]} in {first_folder}, and "
                    "an ensemble has one; say which holds: --inference-of MODEL on the command line, "
                    "inference=… in Python"
                )
    return first.inference


def _describe(
    members: Sequence[ModelDescription], name: str | None, inference: InferenceConfig
) -> EnsembleDescription:
    first = members[0]
    try:
        return EnsembleDescription(
            name=name or " + ".join(dict.fromkeys(member.name for member in members)),
            class_names=first.class_names,
            label_values=first.label_values,
            regions=first.regions,
            colours=first.colours,
            modalities=first.modalities,
            inference=inference,
            licence=_join_licences([member.licence for member in members]),
            members=tuple(
                MemberEntry(
                    folder=str(number),
                    name=member.name,
                    weights_sha256=member.weights_sha256,
                    training=member.training,
                )
                for number, member in enumerate(members)
            ),
        )
    except ValidationError as error:
        raise ModelError(f"These models make no ensemble: {explain(error)}") from None


def _join_licences(licences: Sequence[str | None]) -> str | None:
    """Return the members' licence, or every one that some member has: all of them hold for the ensemble."""
    if not any(licences):
        return None
    return "; ".join(dict.fromkeys(licence or "unknown" for licence in licences))
