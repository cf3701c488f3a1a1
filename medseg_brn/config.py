"""The typed experiment: every option, its default, and one line on what it does.

An experiment is one YAML file, read by `medseg_brn.experiment`. Values are checked here and nowhere else.
"""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Size3 = tuple[PositiveInt, PositiveInt, PositiveInt]
Modality = Literal["mri", "ct"]
Axis = Annotated[int, Field(ge=0, le=2)]
Orientation = Literal["RAS", "LAS", "RPS", "LPS", "RAI", "LAI", "RPI", "LPI", "stored"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


def _refuse_repeats(axes: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(axes)) < len(axes):
        raise ValueError(f"axes {axes} repeat one; name each once")
    return axes


class Section(BaseModel):
    """A block of options: immutable, and strict about keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class DatasetConfig(Section):
    path: str = "phantom_mri"
    """Dataset folder or CSV manifest, from the current folder; `phantom_mri` and `phantom_ct` are made."""
    layout: Literal["auto", "decathlon", "nnunet", "csv"] = "auto"
    """How the dataset is laid out; `auto` looks at what is there."""
    modalities: tuple[Modality, ...] | None = None
    """One per channel; null takes the dataset's own description."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Number of cross-validation folds, drawn from `seed`; of no account where `folds_by` is `site`."""
    folds_by: Literal["patient", "site"] = "patient"
    """What a fold holds out: patients drawn by chance, or all cases of one site (fold k the k-th site in
    alphabetical order), as many folds as there are sites."""
    fold: Annotated[int, Field(ge=0)] | None = 0
    """The fold held out for validation; null trains on every case and validates on none."""
    split_seed: Seed | None = None
    """Draws the folds (and a phantom cohort); null takes `seed`. Set it to vary `seed` on the same folds."""

    @model_validator(mode="after")
    def _fold_exists(self) -> Self:
        if self.folds_by == "patient" and self.fold is not None and self.fold >= self.folds:
            raise ValueError(
                f"fold {self.fold} does not exist: folds count from 0 to folds - 1 = {self.folds - 1}"
            )
        return self


class PreprocessingConfig(Section):
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """Voxel size of the network's grid; null takes the training cases' median per axis."""
    crop: Literal["none", "nonzero", "body"] = "none"
    """Region kept: everything, the bounding box of non-zero voxels, or of the body (CT, above -500 HU)."""
    intensity: Literal["auto", "zscore", "zscore_nonzero", "ct", "none"] = "auto"
    """Intensity normalization; `auto` is `ct` for CT channels and `zscore` for MRI channels."""
    orientation: Orientation = "RAS"
    """Where the axes of the network's grid run, whatever those of a file are; `stored` keeps each file's own
    axes. For going on with a network that learnt so elsewhere."""


class AugmentationConfig(Section):
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 15.0
    """Largest rotation about each axis."""
    scale: tuple[PositiveFloat, PositiveFloat] = (0.85, 1.2)
    """Range of the zoom factor, drawn for each axis."""
    spatial_probability: Fraction = 0.5
    """Share of patches that are rotated and scaled."""
    flip_axes: Annotated[tuple[Axis, ...], AfterValidator(_refuse_repeats)] = ()
    """Axes mirrored with probability one half; leave out an axis that tells left from right."""
    mirrored_classes: tuple[tuple[str, str], ...] = ()
    """Pairs of classes, a left and a right one, that change places where axis 0 is mirrored; 0 must be among
    `flip_axes`. In a dataset of regions a class is called as the region of its value alone, or else
    `label <value>`; `medseg-brn check` lists them."""
    elastic_mm: NonNegativeFloat = 0.0
    """Largest displacement of a smooth random deformation; 0 deforms nothing."""
    elastic_probability: Fraction = 0.2
    """Share of patches that are deformed."""
    contrast: tuple[PositiveFloat, PositiveFloat] = (0.75, 1.3)
    """Range of the contrast factor about the patch's mean."""
    brightness: NonNegativeFloat = 0.2
    """Largest additive offset, in units of the normalized intensity."""
    gamma: tuple[PositiveFloat, PositiveFloat] = (0.7, 1.5)
    """Range of the gamma exponent."""
    noise: NonNegativeFloat = 0.1
    """Largest standard deviation of additive Gaussian noise."""
    blur_sigma_voxels: tuple[NonNegativeFloat, NonNegativeFloat] = (0.5, 1.0)
    """Range of the Gaussian blur's width."""
    bias_field: NonNegativeFloat = 0.0
    """Largest coefficient of a smooth multiplicative field, as MRI coils make: 0.1 is much, 0 none."""
    low_resolution: Annotated[float, Field(ge=1)] = 1.0
    """Largest factor by which a patch is coarsened and brought back; 1 coarsens nothing."""
    intensity_probability: Fraction = 0.2
    """Share of patches that each intensity change is applied to."""

    @model_validator(mode="after")
    def _mirrored_classes_have_their_axis(self) -> Self:
        if self.mirrored_classes and 0 not in self.flip_axes:
            raise ValueError(
                f"mirrored_classes {self.mirrored_classes} change places where axis 0 is mirrored, and "
                f"flip_axes {self.flip_axes} does not have it; add 0 to flip_axes, or leave mirrored_classes "
                "out"
            )
        return self

    @model_validator(mode="after")
    def _ranges_rise(self) -> Self:
        for name in ("scale", "contrast", "gamma", "blur_sigma_voxels"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} is a range from low to high, not ({low}, {high})")
        return self


class PatchesConfig(Section):
    size: Size3 = (64, 64, 64)
    """Patch size in voxels of the network's grid; smaller cases are padded."""
    foreground_fraction: Fraction = 0.5
    """Share of patches centred on a foreground voxel (classes drawn evenly)."""
    foreground_by: Literal["case", "class"] = "case"
    """What a foreground patch draws first: the next case, then one of its classes; or a class of the dataset,
    then a case that has it, so that a class of few cases is met as often as any other."""
    sites: Literal["any", "balanced", "pure"] = "any"
    """`any` takes every case as often as any other, whatever its site. With `balanced` and `pure` every site
    is met as often as any other: a batch holds as many sites as it can, or patches of a single one."""
    augmentation: AugmentationConfig | None = AugmentationConfig()
    """Random changes of the training patches; null trains on the patches as they are."""
    workers: Annotated[int, Field(ge=0)] = 1
    """Loader processes; 0 loads in the training process."""


class NetworkConfig(Section):
    channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (32, 64, 128, 256)
    """Feature channels per level, finest first."""
    strides: tuple[Size3, ...] | None = None
    """Per level, how much it is coarser than the one before; null is (1,1,1) then (2,2,2)."""
    kernels: tuple[Size3, ...] | None = None
    """Kernel size per level; null is (3,3,3) everywhere. Odd sizes only."""
    encoder: Literal["plain", "residual"] = "plain"
    """Convolution blocks of the encoder: plain, or with identity shortcuts."""
    encoder_blocks: PositiveInt | tuple[PositiveInt, ...] = 2
    """Convolutions (plain) or residual blocks (residual) of each encoder level, finest first, or of all; a
    residual encoder begins with a convolution that is not counted."""
    decoder_blocks: PositiveInt | tuple[PositiveInt, ...] = 1
    """Convolutions of each decoder level, finest first, or of all."""
    norm: Literal[
        "batch_renorm", "mabn", "batch", "sync_batch", "domain_batch", "group", "instance", "layer", "none"
    ] = "batch_renorm"
    """Normalization by name; domain_batch is a BatchNorm for each site of the training cases."""
    momentum: Fraction = 0.01
    """Moving-average weight of the newest batch (batch_renorm, mabn, batch, sync_batch, domain_batch)."""
    r_max: Annotated[float, Field(ge=1)] = 3.0
    """Final limit of the renorm scale correction r."""
    d_max: NonNegativeFloat = 5.0
    """Final limit of the renorm shift correction d."""
    renorm_schedule: tuple[Fraction, Fraction, Fraction] = (0.1, 0.4, 0.4)
    """Fractions of the run at which the limits leave (1, 0), d_max is reached, r_max is reached; mabn begins
    to average at the first and to correct at the last."""
    weight_standardization: bool = True
    """Standardize each filter's weights (Qiao 2019); folds away at inference."""
    deep_supervision: bool = False
    """Also train on coarser decoder levels' logits."""

    @model_validator(mode="after")
    def _levels_agree(self) -> Self:
        for name in ("strides", "kernels"):
            given = getattr(self, name)
            if given is not None and len(given) != len(self.channels):
                raise ValueError(
                    f"{name} has {len(given)} entries but channels has {len(self.channels)};"
                    " give one per level"
                )
        if self.kernels and any(size % 2 == 0 for kernel in self.kernels for size in kernel):
            raise ValueError(
                f"kernels {self.kernels} has an even size; use odd sizes, which have a centre voxel"
            )
        if list(self.renorm_schedule) != sorted(self.renorm_schedule):
            raise ValueError(f"renorm_schedule {self.renorm_schedule} must not decrease")
        return self


class ZooNetworkConfig(Section):
    """A network of MONAI's zoo."""

    kind: Literal["monai"]
    """Tells it from a U-Net, which has no kind."""
    name: str
    """As in `monai.networks.nets`; `medseg_brn.networks.zoo.ZOO` lists those that are known."""
    arguments: dict[str, JsonValue] = {}
    """Plain values for its constructor."""


class AdversarialConfig(Section):
    """A discriminator that learns to tell predictions from references; the network learns to deceive it."""

    weight: PositiveFloat = 0.01
    """How much deceiving the discriminator counts beside the loss."""
    begin: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the run at which the discriminator begins to learn and to count."""
    channels: PositiveInt = 32
    """Features of the discriminator's first convolution, doubled by each further one."""
    layers: PositiveInt = 3
    """Convolutions between its first and its last; each patch axis needs 3 · 2^layers voxels."""
    learning_rate: PositiveFloat = 2e-4
    """Of its Adam; falls as the network's does."""
    norm: Literal["batch_renorm", "batch", "group", "instance", "spectral", "none"] = "batch_renorm"
    """Its normalization; `spectral` normalizes weights instead of features (Miyato 2018)."""
    momentum: Fraction = 0.01
    """Moving-average weight of the newest batch (batch_renorm, batch)."""
    r_max: Annotated[float, Field(ge=1)] = 3.0
    """Final limit of the renorm scale correction r; `network.renorm_schedule` over the rest of the run."""
    d_max: NonNegativeFloat = 5.0
    """Final limit of the renorm shift correction d."""
    batches: Literal["mixed", "separate"] = "mixed"
    """Whether references and predictions of a pass are one batch of the discriminator, or one each."""


class TrainingConfig(Section):
    steps: PositiveInt = 2000
    """Optimizer steps; may be raised later to extend a finished run."""
    batch_size: PositiveInt = 2
    """Patches per forward pass."""
    accumulation: PositiveInt = 1
    """Forward passes per optimizer step."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with Nesterov momentum 0.9, or AdamW."""
    learning_rate: PositiveFloat = 0.02
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 3e-5
    """Weight decay; norm parameters and biases are exempt."""
    warmup_fraction: Fraction = 0.02
    """Share of the run over which the learning rate rises from 0."""
    decay: Literal["polynomial", "cosine", "constant"] = "polynomial"
    """How the learning rate falls after warm-up (polynomial: power 0.9)."""
    gradient_clip: PositiveFloat | None = 12.0
    """Largest gradient norm; null does not clip."""
    class_weights: dict[str, PositiveFloat] = {}
    """How much a class counts in the loss, by name; 1 for those that are not named. In a dataset of regions
    the names are those of the regions."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = 0.995
    """Weight averaging: share kept per step, of weights and statistics alike; null switches it off."""
    freeze_statistics_at: Fraction | None = None
    """Share of the run after which norms with running statistics normalize by them and leave them as they
    are; null never freezes them."""
    merge_statistics_every: PositiveInt | None = 1
    """Where several processes train: steps from one merge of their running statistics to the next, between
    which each process's follow its own patches. Evaluations and checkpoints have them merged in any case;
    null merges them for these only."""
    recalibration_patches: PositiveInt | None = None
    """Training patches by which the final network's running statistics are set to the population's; null
    keeps the moving averages."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` is bf16 where the processor or GPU has it natively and is faster in it, else fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is cuda where there is one."""
    validate_every: PositiveInt | None = None
    """Steps between whole-volume validations; null validates at the end only."""
    validation_cases: PositiveInt | None = None
    """How many held-out cases the validations during the run take; the last takes all."""
    checkpoint_every: PositiveInt = 250
    """Steps between checkpoints."""
    probe_every: PositiveInt | None = None
    """Steps between samples of what the norms do (`probes.csv`); null takes none."""
    initial_weights: str | None = None
    """Run or model whose weights and statistics training begins with, as far as they fit; null draws weights
    from the seed. The statistics being known, the renorm limits may be open from the start:
    network.renorm_schedule=[0, 0, 0]."""
    learning_rate_factors: dict[str, NonNegativeFloat] = {}
    """By how much the learning rate of a part of the network (stem, encoder.0, decoder, head …) differs, the
    longest name counting; 0 leaves the part as it is, statistics too."""
    adversarial: AdversarialConfig | None = None
    """Adversarial refinement; null trains without a discriminator."""


class PostprocessingConfig(Section):
    keep_largest: bool = False
    """Keep only the largest connected piece of the structure."""
    remove_below_mm3: NonNegativeFloat = 0.0
    """Remove connected pieces smaller than this volume."""
    fill_holes: bool = False
    """Fill background that the structure encloses."""


class InferenceConfig(Section):
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Overlap of windows, as a share of the patch size, for norms that depend on the tile; other networks
    are evaluated exactly."""
    mirror_axes: Annotated[tuple[Axis, ...], AfterValidator(_refuse_repeats)] = ()
    """Axes mirrored for test-time augmentation; the predictions are averaged."""
    skip_air: bool = True
    """Blocks of air (CT) or of zeros more than a block from anything else are background; what only they
    need is not computed."""
    postprocessing: dict[str, PostprocessingConfig] = {}
    """What is done to structures of the label map, by the name of a class, or, where there are regions, of a
    region."""


class Experiment(Section):
    """One experiment, complete: data, network, training, inference."""

    name: str = "experiment"
    """What the model calls itself."""
    seed: Seed = 0
    """The one source of randomness: folds, initial weights, patches."""
    dataset: DatasetConfig = DatasetConfig()
    preprocessing: PreprocessingConfig = PreprocessingConfig()
    patches: PatchesConfig = PatchesConfig()
    network: NetworkConfig = NetworkConfig()
    training: TrainingConfig = TrainingConfig()
    inference: InferenceConfig = InferenceConfig()

    @property
    def split_seed(self) -> int:
        """What the folds are drawn from."""
        return self.seed if self.dataset.split_seed is None else self.dataset.split_seed
