"""A comparison's options, and what each norm in it is."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from medseg_brn.config import PositiveInt, Section, Size3
from medseg_brn.errors import ConfigError
from medseg_brn.experiment import apply_override, explain_errors, find_config, read_yaml

Input = Literal["zscored", "raw"]
INTENSITIES: dict[str, str] = {"zscored": "zscore", "raw": "none"}
"""The preprocessing that each input stands for."""

_RENORM: dict[str, Any] = {"norm": "batch_renorm", "momentum": 0.01, "r_max": 3.0, "d_max": 5.0}


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_]+", name):
        raise ValueError("a norm's name is letters, digits and underscores: it names folders")
    return name


SET_BY_COMPARISON: dict[str, tuple[str, ...]] = {
    "preprocessing": ("intensity",),
    "network": ("norm", "momentum", "r_max", "d_max", "weight_standardization"),
    "training": ("steps", "accumulation", "probe_every"),
}
"""Options of the shared experiment that norms, inputs and budget set."""
_SET_FOR_ALL = ("steps", "batch_size", "accumulation", "probe_every")


class NormConfig(Section):
    """One norm of a comparison: the experiment's options that make it.

    Options that it does not name are those of the experiment; weights are not standardized unless it says so.
    """

    name: Annotated[str, AfterValidator(_check_name)]
    description: str = ""
    """One line on what it is."""
    network: dict[str, Any] = Field(default_factory=dict)
    """Options of the experiment's `network` section."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Options of the experiment's `training` section."""

    @model_validator(mode="after")
    def _is_fair(self) -> Self:
        unfair = [key for key in _SET_FOR_ALL if key in self.training]
        if unfair:
            raise ValueError(
                f"norm {self.name!r} sets training.{unfair[0]}, which the comparison sets for all norms alike"
            )
        return self

    @model_validator(mode="after")
    def _probes_know_what_it_takes(self) -> Self:
        if self.network.get("norm") == "domain_batch":
            raise ValueError(
                f"norm {self.name!r} is domain_batch, which takes the site of every patch, and the "
                "comparison's probes tell of none; train it by itself with network.norm=domain_batch"
            )
        return self

    def describe(self) -> str:
        """What it is, in one line: its description, and the options that it sets where there is none."""
        options = self.network | {f"training.{key}": value for key, value in self.training.items()}
        return self.description or ", ".join(f"{key} {value}" for key, value in options.items())


def _norm(
    name: str, description: str, *, training: dict[str, Any] | None = None, **network: Any
) -> NormConfig:
    return NormConfig(name=name, description=description, network=network, training=training or {})


NORMS = {
    norm.name: norm
    for norm in (
        _norm("batch", "BatchNorm, momentum 0.1", norm="batch", momentum=0.1),
        _norm(
            "batch_slow",
            "BatchNorm, momentum 0.01 (torch's, which begins with mean 0 and variance 1)",
            norm="batch",
            momentum=0.01,
        ),
        _norm(
            "batch_population",
            "BatchNorm, momentum 0.1, statistics recalibrated on 200 more patches (PreciseBN)",
            norm="batch",
            momentum=0.1,
            training={"recalibration_patches": 200},
        ),
        _norm(
            "batch_frozen",
            "BatchNorm, momentum 0.01, statistics frozen for the last fifth of the run",
            norm="batch",
            momentum=0.01,
            training={"freeze_statistics_at": 0.8},
        ),
        _norm("batch_renorm", "Batch renormalization, limits (3, 5), momentum 0.01", **_RENORM),
        _norm(
            "batch_renorm_tight",
            "Batch renormalization, limits (1.5, 0.5), momentum 0.01",
            **_RENORM | {"r_max": 1.5, "d_max": 0.5},
        ),
        _norm(
            "batch_renorm_ws",
            "Batch renormalization, limits (3, 5), with weight standardization",
            **_RENORM | {"weight_standardization": True},
        ),
        _norm("group", "GroupNorm, 8 groups", norm="group"),
        _norm(
            "group_ws",
            "GroupNorm, 8 groups, with weight standardization",
            norm="group",
            weight_standardization=True,
        ),
        _norm("instance", "InstanceNorm, affine", norm="instance"),
        _norm("layer", "LayerNorm over channels and voxels", norm="layer"),
        _norm(
            "mabn",
            "Moving-average batch normalization, with weight standardization, momentum 0.02",
            norm="mabn",
            momentum=0.02,
            weight_standardization=True,
        ),
        _norm("none", "no normalization", norm="none"),
    )
}
"""What a comparison may name; a new norm is one entry here, or in the comparison's own file."""


class BudgetConfig(Section):
    """What every run may spend; exactly one of the two is given."""

    patches: PositiveInt | None = None
    """Patches seen, whatever the batch size: a run makes patches / batch size steps."""
    steps: PositiveInt | None = None
    """Optimizer steps, whatever the batch size: a run sees steps × batch size patches."""

    @model_validator(mode="after")
    def _one_is_given(self) -> Self:
        if (self.patches is None) == (self.steps is None):
            raise ValueError("give either patches or steps")
        return self

    def count_steps(self, batch_size: int) -> int:
        """Optimizer steps of a run."""
        return self.steps or max(1, round((self.patches or 0) / batch_size))


class ProbesConfig(Section):
    """How closely runs are looked at."""

    samples: PositiveInt = 20
    """Steps of a run at which the norms are watched, evenly spread."""
    patches: Annotated[int, Field(ge=4)] = 96
    """Training patches on which a finished network is examined."""
    volumes: PositiveInt = 4
    """Held-out volumes on which tiles are compared with the volume in one piece."""
    tile_size: Size3 | None = None
    """Size in voxels of these tiles; null takes the patch size."""


class ComparisonConfig(Section):
    """Norms × batch sizes × seeds × inputs on one experiment."""

    name: str = "comparison"
    """Title of the report."""
    description: str = ""
    """One line on what is compared on what."""
    norms: Annotated[tuple[str | NormConfig, ...], Field(min_length=1)]
    """Names of known norms, or entries with `name`, `description`, `network`, `training`."""
    reference: str | None = None
    """The norm that each other one is compared with; null takes batch_renorm, or else the first."""
    batch_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 2, 3, 4)
    """Patches per optimizer step."""
    seeds: PositiveInt = 3
    """Runs of each cell; seed k gives the same initial weights and patches to every norm."""
    inputs: dict[Input, tuple[PositiveInt, ...] | None] = Field(default={"zscored": None})
    """Intensities as the network gets them, each with its batch sizes; null takes all of `batch_sizes`."""
    budget: BudgetConfig
    """What every run may spend."""
    learning_rate_rule: Literal["constant", "sqrt", "linear"] = "sqrt"
    """How the experiment's learning rate, meant for its batch size, follows the run's."""
    probes: ProbesConfig = ProbesConfig()
    experiment: dict[str, Any] = Field(default_factory=dict)
    """The experiment that all runs share; the comparison sets norm, batch size, steps, rate, seed and
    intensities."""

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        names = [norm if isinstance(norm, str) else norm.name for norm in self.norms]
        unknown = [norm for norm in self.norms if isinstance(norm, str) and norm not in NORMS]
        if unknown:
            raise ValueError(
                f"norm {unknown[0]!r} is not known; choose from {', '.join(NORMS)}, or define it"
            )
        repeated = {name for name in names if names.count(name) > 1}
        if repeated:
            raise ValueError(f"norms repeat {', '.join(sorted(repeated))}; name each once")
        if self.reference is not None and self.reference not in names:
            raise ValueError(f"reference {self.reference!r} is none of the norms {', '.join(names)}")
        if not self.inputs:
            raise ValueError("inputs is empty; name zscored or raw")
        for sizes in (self.batch_sizes, *self.inputs.values()):
            if sizes is not None and (not sizes or len(set(sizes)) < len(sizes)):
                raise ValueError(f"batch sizes {list(sizes)} are to be at least one, each named once")
        return self

    @model_validator(mode="after")
    def _patches_fill_batches(self) -> Self:
        largest = max(size for sizes in (self.batch_sizes, *self.inputs.values()) for size in sizes or ())
        if self.probes.patches < 4 * largest:
            raise ValueError(
                f"probes.patches {self.probes.patches} do not fill four batches of {largest}; give at least "
                f"{4 * largest}"
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_set_twice(self) -> Self:
        for section, keys in SET_BY_COMPARISON.items():
            values = self.experiment.get(section) or {}
            twice = [key for key in keys if key in values]
            if twice:
                raise ValueError(
                    f"experiment.{section}.{twice[0]} is set by the comparison (by norms, inputs, budget,"
                    " probes); leave it out"
                )
        return self

    @property
    def arms(self) -> dict[str, NormConfig]:
        """The norms by name, in their order."""
        found = (NORMS[norm] if isinstance(norm, str) else norm for norm in self.norms)
        return {norm.name: norm for norm in found}

    @property
    def reference_norm(self) -> str:
        """The norm that each other one is compared with."""
        names = list(self.arms)
        return self.reference or ("batch_renorm" if "batch_renorm" in names else names[0])


def load_comparison(source: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> ComparisonConfig:
    """Comparison read from a YAML file, or from a shipped one by its name, with overrides applied.

    Raises:
        ConfigError: no such file or name, not YAML, an unknown key, or a value against its rule.
    """
    path = find_config(source)
    options = read_yaml(path)
    if "norms" not in options:
        raise ConfigError(
            f"{path} names no norms, so it is no comparison; to train one experiment use medseg-brn train"
        )
    for override in overrides:
        apply_override(options, override)
    try:
        return ComparisonConfig.model_validate(options)
    except ValidationError as error:
        raise ConfigError(explain_errors(error, str(path), ComparisonConfig)) from None
