"""The deterministic way of a scan to the network: canonical axes, crop, intensity, voxel size.

Intensities are normalized before voxels are resampled: the crop and the non-zero region are found on
values as they were measured, clipping takes metal and padding away before a spline could ring on
them, and the volume's mean does not depend on the target voxel size (nnU-Net's order; Isensee et
al. 2021).
"""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from medseg_brn.cases.dataset import Dataset
from medseg_brn.cases.fingerprint import Fingerprint
from medseg_brn.cases.intensity import (
    IntensityScheme,
    Normalization,
    SchemeName,
    find_not_finite,
    measure_intensity,
)
from medseg_brn.cases.spatial import CropName, SpatialRecord, plan_space, resample_image, resample_label_map
from medseg_brn.config import Orientation, PreprocessingConfig
from medseg_brn.errors import ConfigError, DataError, ModelError
from medseg_brn.volumes.geometry import reorient
from medseg_brn.volumes.scratch import Scratch
from medseg_brn.volumes.volume import Volume

SpacingMm = Annotated[FiniteFloat, Field(gt=0)]


class Preprocessing(BaseModel):
    """Everything that preprocessing depends on, as plain numbers that a model carries with it.

    Attributes:
        spacing_mm: Voxel size of the network's grid along its axes.
        crop: Region kept.
        intensity: One scheme per channel.
        orientation: Where the axes of the network's grid run. RAS are the canonical ones, and then there is
            no such field in a file. Networks of other toolkits may have learnt in others, or, where it is
            "stored", in those of each file, whichever they are.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    spacing_mm: tuple[SpacingMm, SpacingMm, SpacingMm]
    crop: CropName = "none"
    intensity: Annotated[tuple[IntensityScheme, ...], Field(min_length=1)]
    orientation: Orientation = "RAS"

    @model_serializer(mode="wrap")
    def _leave_out_canonical_axes(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        plain: dict[str, Any] = serialize(self)
        if self.orientation == "RAS":
            del plain["orientation"]
        return plain

    def as_dict(self) -> dict[str, Any]:
        """Returns plain JSON types, from which `from_dict` makes an equal object."""
        return self.model_dump(mode="json", exclude_none=True)

    @classmethod
    def from_dict(cls, plain: object) -> "Preprocessing":
        """Returns the preprocessing that `as_dict` wrote.

        Raises:
            ModelError: A key is unknown or missing, or a value breaks its rule.
        """
        try:
            return cls.model_validate(plain)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(("preprocessing", *map(str, first["loc"])))
            raise ModelError(
                f"{place}: {first['msg']}, but it is {reprlib.repr(first['input'])}. The model's description "
                "is damaged or from another version; take the model folder again from where it was made."
            ) from None


@dataclass(frozen=True, eq=False)
class PreparedImages:
    """What the network sees of one scan.

    Attributes:
        array: (C, X, Y, Z) float32 on the network's grid.
        record: The way back to the scan's own grid.
    """

    array: np.ndarray
    record: SpatialRecord

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size of `array`."""
        return self.record.network_grid.spacing_mm


def resolve_preprocessing(
    config: PreprocessingConfig, dataset: Dataset, fingerprint: Fingerprint
) -> Preprocessing:
    """Returns the preprocessing that the options mean for this dataset.

    Args:
        config: The options; `auto` and null are resolved here.
        dataset: Gives the modality of each channel.
        fingerprint: Measured on the training cases only: median voxel size and foreground intensities.

    Raises:
        ConfigError: The body is to be found in a channel that is not CT, or the voxel size is to be measured
            along axes that differ from file to file.
        DataError: A CT channel has the same value in all of the training foreground.
    """
    if config.crop == "body" and dataset.modalities[0] != "ct":
        raise ConfigError(
            "preprocessing.crop is 'body', which looks for voxels above -500 HU in the first channel, but "
            f"that is '{dataset.modalities[0]}' in dataset '{dataset.name}'; set it to 'nonzero' or 'none'."
        )
    if config.orientation == "stored" and config.spacing_mm is None:
        raise ConfigError(
            "preprocessing.orientation is 'stored', each file's own axes, and the voxel size that would be "
            "measured is along the patient's; give preprocessing.spacing_mm along the files' axes"
        )
    spacing_mm = config.spacing_mm or fingerprint.spacing_mm
    schemes = [_choose_scheme(config, modality) for modality in dataset.modalities]
    intensity = tuple(_resolve_scheme(name, index, fingerprint) for index, name in enumerate(schemes))
    return Preprocessing(
        spacing_mm=spacing_mm, crop=config.crop, intensity=intensity, orientation=config.orientation
    )


def prepare_images(
    channels: Sequence[Volume],
    preprocessing: Preprocessing,
    case_name: str = "image",
    scratch: Scratch | None = None,
) -> PreparedImages:
    """Returns the scan as the network sees it.

    Args:
        channels: The scan's channels, in the order of `preprocessing.intensity`, on one grid.
        preprocessing: What to do.
        case_name: Named in errors.
        scratch: Where the result goes; in memory by default. Nothing else of a volume's size is made.

    Raises:
        DataError: Another number of channels, channels on different grids, or NaN or infinite voxels.
    """
    _check_channels(channels, preprocessing, case_name)
    record = plan_space(channels, preprocessing.crop, preprocessing.spacing_mm, preprocessing.orientation)
    scratch = scratch or Scratch()
    prepared = scratch.empty((len(channels), *record.network_shape), np.float32)
    for index, (channel, scheme) in enumerate(zip(channels, preprocessing.intensity, strict=True)):
        canonical = reorient(channel, record.orientation)
        inside = canonical.array[record.region]
        normalization = measure_intensity(inside, scheme)
        scratch.release(channel.array)
        read_planes = partial(_read_normalized, inside, normalization, scratch)
        resample_image(read_planes, inside.shape, canonical.spacing_mm, prepared[index])
        scratch.release(prepared)
    return PreparedImages(prepared, record)


def _read_normalized(
    inside: np.ndarray, normalization: Normalization, scratch: Scratch, first: int, last: int
) -> np.ndarray:
    """Returns the planes [first, last) normalized; of an array on file, nothing stays in memory."""
    values = normalization.apply(inside[first:last])
    scratch.release(inside)
    return values


def prepare_label_map(label_map: Volume, record: SpatialRecord, case_name: str = "label map") -> np.ndarray:
    """Returns the label map on the network's grid of its image: (X, Y, Z) of its own unsigned dtype.

    Args:
        label_map: Classes, on the grid of the image that gave `record`.
        record: From `prepare_images`.
        case_name: Named in errors.

    Raises:
        DataError: The label map is on another grid than the image.
    """
    difference = label_map.grid.describe_difference(record.input_grid)
    if difference:
        raise DataError(
            f"Case '{case_name}': label map and image are on different grids: {difference}; resample the "
            "label map onto the image's grid."
        )
    cropped = reorient(label_map, record.orientation).array[record.region]
    return np.ascontiguousarray(resample_label_map(cropped, record.network_shape))


def _choose_scheme(config: PreprocessingConfig, modality: str) -> SchemeName:
    if config.intensity == "auto":
        return "ct" if modality == "ct" else "zscore"
    return config.intensity


def _resolve_scheme(name: SchemeName, channel: int, fingerprint: Fingerprint) -> IntensityScheme:
    if name != "ct":
        return IntensityScheme(scheme=name)
    measured = fingerprint.channels[channel]
    if not measured.percentile_00_5 < measured.percentile_99_5:
        raise DataError(
            f"Channel {channel} has the value {measured.mean:g} in all of the training cases' foreground, "
            "so CT normalization cannot scale it; check the label maps, or set preprocessing.intensity to "
            "'zscore'."
        )
    return IntensityScheme(
        scheme="ct",
        low=measured.percentile_00_5,
        high=measured.percentile_99_5,
        mean=measured.mean,
        std=measured.std,
    )


def _check_channels(channels: Sequence[Volume], preprocessing: Preprocessing, case_name: str) -> None:
    if len(channels) != len(preprocessing.intensity):
        raise DataError(
            f"Case '{case_name}' has {len(channels)} channels, but the preprocessing is for "
            f"{len(preprocessing.intensity)}; give one image per channel, in the dataset's order."
        )
    for index, channel in enumerate(channels):
        difference = channels[0].grid.describe_difference(channel.grid)
        if difference:
            raise DataError(
                f"Case '{case_name}': channels 0 and {index} are on different grids: {difference}; resample "
                "one onto the other's grid."
            )
        not_finite = find_not_finite(channel.array)
        if not_finite is not None:
            wrong, first = not_finite
            raise DataError(
                f"Case '{case_name}', channel {index}: {wrong} voxels are NaN or infinite, "
                f"the first is {channel.array[first]} at {first}; repair the file or leave out the case."
            )
