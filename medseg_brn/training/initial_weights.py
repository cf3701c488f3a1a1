"""Weights of an earlier model that training begins with: what fits is taken, and all is told."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from medseg_brn.cases.dataset import Dataset
from medseg_brn.config import Experiment
from medseg_brn.errors import ConfigError
from medseg_brn.models.description import ModelDescription
from medseg_brn.models.package import find_model_folder, load_unet
from medseg_brn.networks.domain_norm import find_sites
from medseg_brn.training.state import TrainingState
from medseg_brn.volumes.atomic import write_text_atomic

FILE_NAME = "initial_weights.json"
STATISTICS = ("running_mean", "running_var", "num_batches_tracked", "recent_squares", "recent_psi")
BATCH_NORMS = {"batch", "sync_batch", "batch_renorm"}
"""Norms whose running statistics mean the same."""
HEADS = ("head.", "coarser_heads.")
FIRST = "stem.0.weight"
"""Names of the tensors whose rows are of structures (beginnings), and whose columns are of input channels."""


@dataclass(frozen=True)
class InitialModel:
    """The model whose weights training begins with."""

    folder: Path
    weights: Mapping[str, Tensor]
    description: ModelDescription


@dataclass(frozen=True)
class Transfer:
    """What a network took from a model; a tensor's other values are the fresh ones of the run's seed."""

    model: str
    """The model's name."""
    weights_sha256: str
    whole: tuple[str, ...]
    """Tensors that were taken whole."""
    in_part: dict[str, tuple[str, ...]]
    """Tensors of which some rows or columns were taken -> the structures, or input channels, these are of."""
    fresh: tuple[str, ...]
    """Tensors of the network that the model does not have, or has in another shape."""
    left: tuple[str, ...]
    """Tensors of the model that the network has no place for."""
    notes: tuple[str, ...]
    """What else a reader of the run should know."""

    def tell(self) -> str:
        """One line."""
        total = len(self.whole) + len(self.in_part) + len(self.fresh)
        in_part = f", {len(self.in_part)} in part" if self.in_part else ""
        return f"weights of {self.model}: {len(self.whole)} of {total} tensors{in_part}"


@dataclass(frozen=True)
class _Pair:
    """A name, and its places in the network and in the model."""

    name: str
    own: int
    other: int


def read_initial_model(experiment: Experiment) -> InitialModel | None:
    """The model of `training.initial_weights`, or None where there is none.

    Raises:
        ModelError: it is missing, damaged, an ensemble, or a network of another toolkit.
        ConfigError: it sees scans in other axes than the experiment lays them out in, or one of both
            standardizes weights.
    """
    source = experiment.training.initial_weights
    if source is None:
        return None
    network, description = load_unet(source)
    theirs, own = description.preprocessing.orientation, experiment.preprocessing.orientation
    if theirs != own:
        raise ConfigError(
            f"training.initial_weights {source} sees scans in the axes {theirs}, and here "
            f"preprocessing.orientation is {own}, so that it would see them mirrored; set "
            f"preprocessing.orientation={theirs}"
        )
    standardizes = description.unet.weight_standardization
    if standardizes != experiment.network.weight_standardization:
        raise ConfigError(
            f"training.initial_weights {source} has other filters: set network.weight_standardization="
            f"{str(standardizes).lower()}, as in the model"
        )
    return InitialModel(find_model_folder(source), network.state_dict(), description)


def begin_with(model: InitialModel, state: TrainingState, dataset: Dataset, own_norm: str) -> Transfer:
    """Put the model's weights and statistics, as far as they fit, into the network and into its average.

    A tensor is taken whole where the network has one of its name and shape. Of the heads, the rows of the
    structures that both know by name are taken; of the first convolutions, the columns of the input channels
    that correspond, the first CT channel to the first and so on, unless none does and there are as many.
    Statistics are taken between norms that mean the same by them, and of sites those of the same name.

    Args:
        model: to begin with.
        state: before the first step; changed.
        dataset: to train on.
        own_norm: the network's norm, as the experiment names it.
    """
    theirs = model.description
    rows = _pair(_name_outputs(dataset), _name_outputs(theirs))
    columns = _pair(_number_channels(dataset.modalities), _number_channels(theirs.modalities))
    whole, in_part, fresh = [], {}, []
    find = partial(_find_tensor, model, find_sites(state.network), own_norm)
    for name, tensor in state.network.state_dict().items():
        taken = _take(name, tensor, find(name), rows, columns)
        if taken is None:
            whole.append(name)
        elif taken:
            in_part[name] = taken
        else:
            fresh.append(name)
    if state.averaged is not None:
        state.averaged.module.load_state_dict(state.network.state_dict())
    return Transfer(
        theirs.name,
        theirs.weights_sha256,
        tuple(whole),
        in_part,
        tuple(fresh),
        tuple(name for name in model.weights if name not in state.network.state_dict()),
        tuple(_note(theirs, dataset, own_norm)),
    )


def _find_tensor(model: InitialModel, sites: Sequence[str], own_norm: str, name: str) -> Tensor | None:
    """The model's tensor that a tensor of the network corresponds to, None where there is none."""
    their_norm = model.description.unet.norm
    if name.endswith(STATISTICS) and their_norm != own_norm and not {their_norm, own_norm} <= BATCH_NORMS:
        return None
    before, found, after = name.partition(".domains.")
    if found:
        number, _, rest = after.partition(".")
        if sites[int(number)] not in model.description.sites:
            return None
        name = f"{before}.domains.{model.description.sites.index(sites[int(number)])}.{rest}"
    return model.weights.get(name)


def write_transfer(transfer: Transfer, run_folder: Path) -> None:
    """Write `initial_weights.json` into the run folder."""
    write_text_atomic(run_folder / FILE_NAME, json.dumps(asdict(transfer), indent=1) + "\n")


@torch.no_grad()
def _take(
    name: str, own: Tensor, other: Tensor | None, rows: Sequence[_Pair], columns: Sequence[_Pair]
) -> tuple[str, ...] | None:
    """Copy what corresponds; None for all of a tensor, else the names of the rows or columns taken."""
    if other is None or own.ndim != other.ndim:
        return ()
    if name.startswith(HEADS) and own.shape[1:] == other.shape[1:]:
        for pair in rows:
            own[pair.own] = other[pair.other]
        return None if len(rows) == len(own) else tuple(pair.name for pair in rows)
    if name == FIRST and columns and own[:, 0].shape == other[:, 0].shape:
        for pair in columns:
            own[:, pair.own] = other[:, pair.other]
        return None if len(columns) == own.shape[1] else tuple(pair.name for pair in columns)
    if own.shape == other.shape:
        own.copy_(other)
        return None
    return ()


def _pair(own: Sequence[str], others: Sequence[str]) -> list[_Pair]:
    """What both name, capitals aside."""
    places = {name.casefold(): place for place, name in enumerate(others)}
    return [
        _Pair(name, place, places[name.casefold()])
        for place, name in enumerate(own)
        if name.casefold() in places
    ]


def _name_outputs(described: Dataset | ModelDescription) -> list[str]:
    """What the channels of the logits are called."""
    return [region.name for region in described.regions] or list(described.class_names)


def _number_channels(modalities: Sequence[str]) -> list[str]:
    """`mri 1`, `mri 2`, `ct 1` … for the input channels."""
    return [f"{one} {modalities[: place + 1].count(one)}" for place, one in enumerate(modalities)]


def _note(theirs: ModelDescription, dataset: Dataset, own_norm: str) -> Iterator[str]:
    if theirs.training.get("dataset") == dataset.name:
        yield (
            f"The model was trained on a dataset that is called {dataset.name!r} too: if it saw scans that"
            " are held out here, their metrics are too good"
        )
    if theirs.modalities != dataset.modalities:
        yield f"The model's channels are {_list(theirs.modalities)}, those here {_list(dataset.modalities)}"
    if theirs.unet.norm != own_norm:
        yield f"The model was trained with the norm {theirs.unet.norm}, and here it is {own_norm}"
    if bool(theirs.regions) != bool(dataset.regions):
        yield "The model and this dataset differ in whether structures overlap (regions) or not (classes)"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)
