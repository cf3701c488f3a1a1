"""What a model folder says about its model or ensemble: `model.json`, checked field by field."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from medseg_brn.cases.dataset import Dataset
from medseg_brn.cases.label_description import Labels, RegionValues, find_unreadable
from medseg_brn.cases.mirroring import find_mirrored_channels
from medseg_brn.cases.preprocessing import Preprocessing
from medseg_brn.cases.targets import Region
from medseg_brn.config import InferenceConfig, Modality, NetworkConfig, Size3, ZooNetworkConfig
from medseg_brn.errors import ConfigError, ModelError
from medseg_brn.inference.postprocessing import check_rules
from medseg_brn.models.card import Card, Colour

FORMAT_NAME: Final = "medseg_brn model"
ENSEMBLE_FORMAT_NAME: Final = "medseg_brn ensemble"
FORMAT_VERSION: Final = 1
"""It does not rise for fields that may be absent, so that older files are read as before."""
MOST_BYTES: Final = 1 << 24
"""Of a description: one of a hundred classes in ten members has a megabyte or two."""


class RegionEntry(BaseModel):
    """A structure that covers several classes and may overlap with other regions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    label_values: Annotated[tuple[int, ...], Field(min_length=1)]
    """Of the classes that it covers."""
    written_value: int
    """What its voxels get in a label map, unless a later region of the list covers them too."""


class Description(BaseModel):
    """What is said of a model and of an ensemble alike.

    Class `k` is called `class_names[k]` and stands in label maps as `label_values[k]`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str
    format_version: Literal[1] = FORMAT_VERSION
    name: str
    class_names: Annotated[tuple[str, ...], Field(min_length=1)]
    """Background first."""
    label_values: Annotated[tuple[int, ...], Field(min_length=1)]
    """The value of each class in label maps."""
    regions: tuple[RegionEntry, ...] = ()
    """One per channel of the logits, each with a sigmoid, in the order in which they are written; none, and
    then no such field in the file, where the channels are the classes."""
    colours: tuple[Colour, ...] = ()
    """In which label maps are shown, of each class besides the background; none, and then no such field in
    the file, where nobody chose them."""
    modalities: Annotated[tuple[Modality, ...], Field(min_length=1)]
    """One per input channel."""
    inference: InferenceConfig = InferenceConfig()
    licence: str | None = None
    """Licence of the weights, which may follow from that of the training data."""
    card: Card | None = None
    """What its user should know; none, and then no such field in the file, where nobody wrote one."""

    @property
    def in_channels(self) -> int:
        """Number of input channels."""
        return len(self.modalities)

    @property
    def num_classes(self) -> int:
        """Number of classes, the background counted."""
        return len(self.class_names)

    @property
    def num_outputs(self) -> int:
        """Channels of the logits: one per region, else one per class."""
        return len(self.regions) or self.num_classes

    @property
    def labels(self) -> Labels:
        """What the values in label maps mean."""
        index = {value: number for number, value in enumerate(self.label_values)}
        regions = (
            Region(one.name, tuple(index[value] for value in one.label_values), index[one.written_value])
            for one in self.regions
        )
        return Labels(self.class_names, self.label_values, tuple(regions))

    @model_serializer(mode="wrap")
    def _leave_out_what_is_empty(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """So that models without regions, sites, card and so on are described as they always were."""
        plain: dict[str, Any] = serialize(self)
        for name in ("regions", "colours", "card", "mirrored_classes", "sites"):
            if not getattr(self, name, ()):
                plain.pop(name, None)
        return plain

    @model_validator(mode="after")
    def _regions_are_of_classes(self) -> Self:
        for region in self.regions:
            unknown = {*region.label_values, region.written_value} - set(self.label_values[1:])
            if unknown:
                raise ValueError(
                    f"region {region.name!r} has the values {sorted(unknown)}, which no class has beside the "
                    "background"
                )
            if region.written_value not in region.label_values:
                raise ValueError(
                    f"region {region.name!r} is written as {region.written_value}, which is none of its "
                    f"values {list(region.label_values)}"
                )
        names = [region.name for region in self.regions]
        if len(set(names)) < len(names):
            raise ValueError(f"regions are called {', '.join(names)}, which repeats a name")
        written = [region.written_value for region in self.regions]
        if len(set(written)) < len(written):
            raise ValueError(f"regions are written with {written}, which repeats a value")
        problem = find_unreadable(
            [RegionValues(one.name, one.label_values, one.written_value) for one in self.regions]
        )
        if problem is not None:
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _classes_agree(self) -> Self:
        if len(self.class_names) != len(self.label_values):
            raise ValueError(f"{len(self.class_names)} class_names but {len(self.label_values)} label_values")
        if len(set(self.label_values)) < len(self.label_values):
            raise ValueError(f"label_values {self.label_values} repeat a value")
        if self.colours and len(self.colours) != self.num_classes - 1:
            raise ValueError(
                f"{len(self.colours)} colours but {self.num_classes - 1} classes besides the background"
            )
        try:
            check_rules(self.inference.postprocessing, self.labels.targets)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self


def _read_network(value: object) -> object:
    """Return the network's options, which are those of a U-Net unless their `kind` says otherwise."""
    if not isinstance(value, dict):
        return value
    return (ZooNetworkConfig if "kind" in value else NetworkConfig).model_validate(value)


class ModelDescription(Description):
    """All that inference needs besides the weights, and what a reader of the model should know."""

    format: Literal["medseg_brn model"] = FORMAT_NAME
    network: Annotated[NetworkConfig | ZooNetworkConfig, BeforeValidator(_read_network)]
    """Architecture, normalization included: a U-Net, or (`kind` is `monai`) a network of MONAI's zoo."""
    sites: tuple[str, ...] = ()
    """Those of the training cases, in the order of the weights, where `network.norm` has statistics for each
    (domain_batch). A scan of any other site, or of an unknown one, is normalized by the mixture of all of
    them. None, and then no such field in the file, with other norms."""
    preprocessing: Preprocessing
    patch_size: Size3
    """Size of the windows, in voxels of the network's grid."""
    mirrored_classes: tuple[tuple[str, str], ...] = ()
    """Pairs of classes, a left and a right one, that changed places where axis 0 was mirrored in training,
    and so do where it is mirrored at inference; none, and then no such field in the file, where none did."""
    training: dict[str, Any] = {}
    """Summary of the training run: dataset, steps, results."""
    activation_ranges: dict[str, tuple[FiniteFloat, FiniteFloat]] | None = None
    """Least and greatest number that each convolution took (`LAYER.input`) and gave (`LAYER.output`) on scans
    that it was calibrated on; inference in int8 needs them."""
    weights_sha256: str = ""
    """Checksum of `model.safetensors`; filled in on saving."""

    @model_validator(mode="after")
    def _channels_agree(self) -> Self:
        if len(self.preprocessing.intensity) != self.in_channels:
            raise ValueError(
                f"preprocessing.intensity is for {len(self.preprocessing.intensity)} channels "
                f"but modalities for {self.in_channels}"
            )
        return self

    @model_validator(mode="after")
    def _sites_are_the_norms(self) -> Self:
        norm = self.network.norm if isinstance(self.network, NetworkConfig) else "MONAI's"
        if bool(self.sites) != (norm == "domain_batch") or len(set(self.sites)) < len(self.sites):
            raise ValueError(
                f"sites are {list(self.sites)} and network.norm is {norm}; domain_batch has "
                "sites, each once, and other norms have none"
            )
        return self

    @property
    def unet(self) -> NetworkConfig:
        """The network's options, where it is a U-Net.

        Raises:
            ModelError: it is a network of MONAI's zoo.
        """
        if isinstance(self.network, ZooNetworkConfig):
            raise ModelError(f"{self.name} is a {self.network.name} of MONAI, and no U-Net of this toolkit")
        return self.network

    @property
    def mirrored_channels(self) -> tuple[int, ...]:
        """For each channel of the logits the one that it is in an image mirrored along axis 0."""
        return find_mirrored_channels(self.mirrored_classes, self.labels.targets)

    @model_validator(mode="after")
    def _mirrored_classes_exist(self) -> Self:
        try:
            _ = self.mirrored_channels
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> Self:
        for name, (low, high) in (self.activation_ranges or {}).items():
            if low > high:
                raise ValueError(
                    f"activation_ranges.{name} is ({low}, {high}), from a greater to a lesser number"
                )
        return self


class MemberEntry(BaseModel):
    """One member of an ensemble, itself a model folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Nothing that could lead out of the ensemble's folder.
    folder: Annotated[str, Field(pattern="^[A-Za-z0-9_-]+$")]
    """Its folder in the ensemble's folder `members`."""
    name: str
    weights_sha256: str
    """As in its own description."""
    training: dict[str, Any] = {}
    """Summary of its training run."""


class EnsembleDescription(Description):
    """What holds for all members of an ensemble, and who they are; architectures are told by their own."""

    format: Literal["medseg_brn ensemble"] = ENSEMBLE_FORMAT_NAME
    members: Annotated[tuple[MemberEntry, ...], Field(min_length=2)]
    training: dict[str, Any] = {}
    """What is known of the ensemble as such: how its members were chosen, how good it is expected to be."""

    @model_validator(mode="after")
    def _members_differ(self) -> Self:
        for field in ("folder", "weights_sha256"):
            values = [getattr(member, field) for member in self.members]
            if len(set(values)) < len(values):
                raise ValueError(f"members repeat a {field}: {', '.join(values)}")
        return self


def describe_regions(dataset: Dataset) -> tuple[RegionEntry, ...]:
    """Return the entry of each of the dataset's regions; none where it has none."""
    return tuple(RegionEntry(**asdict(region)) for region in dataset.labels.region_values)


def read_description(path: Path) -> ModelDescription | EnsembleDescription:
    """Return the description in a `model.json`.

    Raises:
        ModelError: the file is no JSON, not of this format, of a newer version of it, or a field is wrong.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ModelError(f"{path} has {path.stat().st_size:,} bytes, and {MOST_BYTES:,} are the most")
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path} cannot be read as JSON: {error}; copy the model folder again from its source"
        ) from None
    given = plain.get("format") if isinstance(plain, dict) else None
    if given not in (FORMAT_NAME, ENSEMBLE_FORMAT_NAME):
        raise ModelError(
            f'{path} is JSON, but describes no model of this toolkit: it lacks "format": "{FORMAT_NAME}"'
        )
    version = plain.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ModelError(
            f"{path} has format version {version}, and this medseg_brn reads up to version {FORMAT_VERSION}; "
            "upgrade medseg_brn"
        )
    kind = EnsembleDescription if given == ENSEMBLE_FORMAT_NAME else ModelDescription
    try:
        return kind.model_validate(plain)
    except ValidationError as error:
        unknown = any(problem["type"] == "extra_forbidden" for problem in error.errors())
        newer = "; if a newer medseg_brn wrote it, upgrade this one" if unknown else ""
        raise ModelError(f"{path} is damaged: {explain(error)}{newer}") from None


def explain(error: ValidationError) -> str:
    """Return every wrong field, its value and the rule, in one line."""
    problems = []
    for problem in error.errors(include_url=False):
        place = ".".join(map(str, problem["loc"])) or "the description"
        given = repr(problem["input"])
        shown = f" (got {given})" if len(given) <= 60 else ""
        problems.append(f"{place}: {problem['msg'].removeprefix('Value error, ')}{shown}")
    return "; ".join(problems)
