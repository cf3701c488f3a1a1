"""What a model folder says about its model: `model.json`, checked field by field."""

import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medseg_brn.cases.preprocessing import Preprocessing
from medseg_brn.config import InferenceConfig, Modality, NetworkConfig, Size3
from medseg_brn.errors import ConfigError, ModelError
from medseg_brn.inference.postprocessing import choose_rules

FORMAT_NAME: Final = "medseg_brn model"
FORMAT_VERSION: Final = 1


class ModelDescription(BaseModel):
    """All that inference needs besides the weights, and what a reader of the model should know.

    Class `k` is called `class_names[k]` and stands in label maps as `label_values[k]`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["medseg_brn model"] = FORMAT_NAME
    format_version: Literal[1] = FORMAT_VERSION
    name: str
    network: NetworkConfig
    """Architecture, normalization included."""
    class_names: Annotated[tuple[str, ...], Field(min_length=1)]
    """Background first."""
    label_values: Annotated[tuple[int, ...], Field(min_length=1)]
    """The value of each class in label maps."""
    modalities: Annotated[tuple[Modality, ...], Field(min_length=1)]
    """One per input channel."""
    preprocessing: Preprocessing
    patch_size: Size3
    """Size of the windows, in voxels of the network's grid."""
    inference: InferenceConfig = InferenceConfig()
    training: dict[str, Any] = {}
    """Summary of the training run: dataset, steps, results."""
    licence: str | None = None
    """Licence of the weights, which may follow from that of the training data."""
    weights_sha256: str = ""
    """Checksum of `model.safetensors`; filled in on saving."""

    @property
    def in_channels(self) -> int:
        """Number of input channels."""
        return len(self.modalities)

    @property
    def num_classes(self) -> int:
        """Number of classes, the background counted."""
        return len(self.class_names)

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if len(self.class_names) != len(self.label_values):
            raise ValueError(f"{len(self.class_names)} class_names but {len(self.label_values)} label_values")
        if len(set(self.label_values)) < len(self.label_values):
            raise ValueError(f"label_values {self.label_values} repeat a value")
        if len(self.preprocessing.intensity) != self.in_channels:
            raise ValueError(
                f"preprocessing.intensity is for {len(self.preprocessing.intensity)} channels "
                f"but modalities for {self.in_channels}"
            )
        try:
            choose_rules(self.inference.postprocessing, self.class_names)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self


def read_description(path: Path) -> ModelDescription:
    """Return the description in a `model.json`.

    Raises:
        ModelError: the file is no JSON, not of this format, of a newer version of it, or a field is wrong.
    """
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path} cannot be read as JSON: {error}; copy the model folder again from its source"
        ) from None
    if not isinstance(plain, dict) or plain.get("format") != FORMAT_NAME:
        raise ModelError(
            f'{path} is JSON, but describes no model of this toolkit: it lacks "format": "{FORMAT_NAME}"'
        )
    version = plain.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ModelError(
            f"{path} has format version {version}, and this medseg_brn reads up to version {FORMAT_VERSION}; "
            "upgrade medseg_brn"
        )
    try:
        return ModelDescription.model_validate(plain)
    except ValidationError as error:
        raise ModelError(f"{path} is damaged: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    """Every wrong field, its value and the rule, in one line."""
    problems = []
    for problem in error.errors(include_url=False):
        place = ".".join(map(str, problem["loc"])) or "the description"
        given = repr(problem["input"])
        shown = f" (got {given})" if len(given) <= 60 else ""
        problems.append(f"{place}: {problem['msg'].removeprefix('Value error, ')}{shown}")
    return "; ".join(problems)
