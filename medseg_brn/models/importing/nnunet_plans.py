"""What nnU-Net's `plans.json` says of one configuration, in our terms.

nnU-Net reads a scan as an array (z, y, x) in the axes of its file and permutes it by `transpose_forward`; we
have (X, Y, Z). Sizes, voxel sizes, strides, kernels and mirrored axes are permuted accordingly.
"""

from collections.abc import Mapping
from itertools import permutations
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from medseg_brn.cases.intensity import IntensityScheme
from medseg_brn.cases.preprocessing import Preprocessing
from medseg_brn.config import NetworkConfig, Orientation, PositiveFloat, PositiveInt, Size3
from medseg_brn.errors import ModelError

T = TypeVar("T")
Counts = PositiveInt | tuple[PositiveInt, ...]
Schemes = tuple[IntensityScheme, ...]

# How the readers lay out axes: "stored" is as they are in the file.
READERS: dict[str, Orientation] = {
    "SimpleITKIO": "stored",
    "NibabelIO": "stored",
    "NibabelIOWithReorient": "RAS",
}
LEAKY_RELUS = ("torch.nn.LeakyReLU", "torch.nn.modules.activation.LeakyReLU")
SLOPE, EPSILON = 0.01, 1e-5
MOST_STAGES = 20


class Architecture(BaseModel):
    """The arguments of a network. What is not listed here changes it in a way that ours does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_stages: Annotated[int, Field(ge=2, le=MOST_STAGES)]
    features_per_stage: Counts
    conv_op: Literal["torch.nn.modules.conv.Conv3d", "torch.nn.Conv3d"]
    kernel_sizes: tuple[Size3, ...]
    strides: tuple[Size3, ...]
    n_conv_per_stage: Counts | None = None
    n_blocks_per_stage: Counts | None = None
    n_conv_per_stage_decoder: Counts
    conv_bias: bool = False
    norm_op: Literal["torch.nn.modules.instancenorm.InstanceNorm3d", "torch.nn.InstanceNorm3d"]
    norm_op_kwargs: dict[str, Any]
    dropout_op: None = None
    dropout_op_kwargs: dict[str, Any] | None = None
    nonlin: str
    nonlin_kwargs: dict[str, Any] | None = None
    nonlin_first: Literal[False] = False

    @model_validator(mode="after")
    def _is_known(self) -> Self:
        if self.norm_op_kwargs != {"eps": EPSILON, "affine": True}:
            raise ValueError(f"norm_op_kwargs are {self.norm_op_kwargs}, not eps {EPSILON:g} and affine")
        slope = (self.nonlin_kwargs or {}).get("negative_slope", SLOPE)
        if self.nonlin not in LEAKY_RELUS or slope != SLOPE:
            raise ValueError(f"nonlin is {self.nonlin} of slope {slope}, not LeakyReLU of {SLOPE:g}")
        return self


class Configuration(BaseModel):
    """What a configuration says that inference depends on."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    patch_size: Size3
    spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    normalization_schemes: tuple[str, ...]
    use_mask_for_norm: tuple[bool, ...]


class ForegroundIntensities(BaseModel):
    """Measured by nnU-Net in the training set's foreground."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    mean: FiniteFloat
    std: PositiveFloat
    percentile_00_5: FiniteFloat
    percentile_99_5: FiniteFloat


def choose_configuration(plans: Mapping[str, Any], name: object) -> dict[str, Any]:
    """Return a configuration with all that it inherits.

    Raises:
        ModelError: it does not exist, inherits from itself, is 2D, or a later stage of a cascade.
    """
    configurations = plans.get("configurations")
    known = configurations if isinstance(configurations, dict) else {}
    chain: list[object] = []
    merged: dict[str, Any] = {}
    while name is not None:
        own = known.get(name) if isinstance(name, str) else None
        if not isinstance(own, dict) or name in chain:
            raise ModelError(
                f"plans.json has no configuration {name!r} that ends somewhere; it has {', '.join(known)}"
            )
        chain.append(name)
        merged, name = own | merged, own.get("inherits_from")
    if merged.get("previous_stage"):
        raise ModelError(
            f"The configuration {chain[0]} is the later stage of a cascade: it also takes the label map of "
            f"{merged['previous_stage']}, which networks here do not; import 3d_fullres or 3d_lowres"
        )
    if not isinstance(merged.get("patch_size"), list) or len(merged["patch_size"]) != 3:
        raise ModelError(
            f"The configuration {chain[0]} has the patch size {merged.get('patch_size')}, and networks here "
            "are 3D; import a 3D configuration"
        )
    return merged


def find_axes(plans: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return for each of X, Y, Z the axis of nnU-Net's network.

    Raises:
        ModelError: `transpose_forward` is no permutation.
    """
    forward = plans.get("transpose_forward", [0, 1, 2])
    if forward not in [list(axes) for axes in permutations(range(3))]:
        raise ModelError(f"plans.json: transpose_forward is {forward!r}, and not a permutation of 0, 1, 2")
    x, y, z = (forward.index(axis) for axis in (2, 1, 0))
    return x, y, z


def find_orientation(plans: Mapping[str, Any]) -> Orientation:
    """Return in which axes the network sees a scan.

    Raises:
        ModelError: its reader's are not known.
    """
    reader = plans.get("image_reader_writer", "SimpleITKIO")
    if reader not in READERS:
        raise ModelError(
            f"plans.json: image_reader_writer is {reader!r}, and scans can be laid out as by "
            f"{', '.join(READERS)} only"
        )
    return READERS[reader]


def describe_network(
    configuration: Mapping[str, Any], axes: tuple[int, int, int], *, deep_supervision: bool
) -> NetworkConfig:
    """Return the configuration's network in our terms.

    Raises:
        ModelError: it is none of PlainConvUNet and ResidualEncoderUNet, or has arguments that ours lacks.
        ValidationError: an argument is not what it must be.
    """
    class_name, arguments = _find_architecture(configuration)
    network = Architecture.model_validate(arguments)
    residual = class_name == "ResidualEncoderUNet"
    blocks = network.n_blocks_per_stage if residual else network.n_conv_per_stage
    if blocks is None:
        raise ModelError(f"plans.json: {class_name} lacks its number of blocks or convolutions per stage")
    decoder = network.n_conv_per_stage_decoder
    features = network.features_per_stage
    if isinstance(features, int):
        features = (features,) * len(network.strides)
    if len(features) != network.n_stages:
        raise ModelError(
            f"plans.json: n_stages is {network.n_stages}, and there are features for {len(features)} stages"
        )
    return NetworkConfig(
        channels=features,
        strides=tuple(reorder(one, axes) for one in network.strides),
        kernels=tuple(reorder(one, axes) for one in network.kernel_sizes),
        encoder="residual" if residual else "plain",
        encoder_blocks=blocks,
        decoder_blocks=decoder if isinstance(decoder, int) else decoder[::-1],  # theirs: coarsest first
        norm="instance",
        weight_standardization=False,
        deep_supervision=deep_supervision,
    )


def describe_preprocessing(
    plans: Mapping[str, Any], settings: Configuration, axes: tuple[int, int, int], orientation: Orientation
) -> Preprocessing:
    """Return how nnU-Net prepares a scan: cropped to what is not 0, normalized, resampled.

    Where `use_mask_for_norm` is set, nnU-Net measures what is not 0 in any channel, and the holes in it; here
    it is what is not 0 in the channel itself.

    Raises:
        ModelError: a channel's normalization is none of those known here.
        ValidationError: an entry is not what it must be.
    """
    measured = plans.get(
        "foreground_intensity_properties_per_channel",
        plans.get("foreground_intensity_properties_by_modality"),
    )
    names = zip(settings.normalization_schemes, settings.use_mask_for_norm, strict=False)
    schemes = tuple(
        _choose_scheme(channel, name, masked, measured) for channel, (name, masked) in enumerate(names)
    )
    return Preprocessing(
        spacing_mm=reorder(settings.spacing, axes),
        crop="nonzero",
        intensity=schemes,
        orientation=orientation,
    )


def reorder(values: tuple[T, T, T], axes: tuple[int, int, int]) -> tuple[T, T, T]:
    """Return values along nnU-Net's axes as values along X, Y, Z."""
    x, y, z = (values[axis] for axis in axes)
    return x, y, z


def _find_architecture(configuration: Mapping[str, Any]) -> tuple[str, object]:
    """Return the network's class and its arguments; older plans have them in other words."""
    described = configuration.get("architecture")
    if isinstance(described, dict):
        class_name = str(described.get("network_class_name")).rpartition(".")[2]
        arguments = described.get("arch_kwargs")
    else:
        class_name = str(configuration.get("UNet_class_name"))
        arguments = _read_older_arguments(configuration, class_name)
    if class_name not in ("PlainConvUNet", "ResidualEncoderUNet"):
        raise ModelError(
            f"plans.json: the network is a {class_name}, and of nnU-Net's networks PlainConvUNet and "
            "ResidualEncoderUNet can be imported"
        )
    return class_name, arguments


def _read_older_arguments(configuration: Mapping[str, Any], class_name: str) -> dict[str, Any]:
    """Return what plans up to nnU-Net 2.3 say, as later ones say it."""
    get = configuration.get
    counts, least, most = (
        get(key) for key in ("n_conv_per_stage_encoder", "UNet_base_num_features", "unet_max_num_features")
    )
    stages = len(counts) if isinstance(counts, list) else 0
    numbers = isinstance(least, int) and isinstance(most, int) and stages <= MOST_STAGES
    return {
        "n_stages": stages,
        "features_per_stage": [min(least * 2**level, most) for level in range(stages)] if numbers else None,
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": get("conv_kernel_sizes"),
        "strides": get("pool_op_kernel_sizes"),
        ("n_blocks_per_stage" if class_name == "ResidualEncoderUNet" else "n_conv_per_stage"): counts,
        "n_conv_per_stage_decoder": get("n_conv_per_stage_decoder"),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": EPSILON, "affine": True},
        "nonlin": LEAKY_RELUS[0],
    }


def _choose_scheme(channel: int, name: str, masked: bool, measured: object) -> IntensityScheme:
    match name:
        case "ZScoreNormalization":
            return IntensityScheme(scheme="zscore_nonzero" if masked else "zscore")
        case "NoNormalization":
            return IntensityScheme(scheme="none")
        case "CTNormalization":
            properties = measured.get(str(channel)) if isinstance(measured, dict) else None
            found = ForegroundIntensities.model_validate(properties)
            return IntensityScheme(
                scheme="ct",
                low=found.percentile_00_5,
                high=found.percentile_99_5,
                mean=found.mean,
                std=found.std,
            )
    raise ModelError(
        f"plans.json: channel {channel} is normalized by {name}, and CTNormalization, ZScoreNormalization "
        "and NoNormalization are those known here"
    )
