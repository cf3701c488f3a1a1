"""The network of a model folder in the form in which it is exported: folded, in plain torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medseg_brn.errors import ConfigError, ModelError
from medseg_brn.models.description import EnsembleDescription, ModelDescription, read_description
from medseg_brn.models.exporting.bundle_scripts.network import FoldedUNet
from medseg_brn.models.package import DESCRIPTION_NAME, MEMBERS_NAME, find_model_folder, load_unet
from medseg_brn.networks.domain_norm import take_site
from medseg_brn.networks.folding import fold
from medseg_brn.networks.unet3d import Size3, UNet3d

UNFOLDABLE_NORMS = ("instance", "group", "layer")
# Where an exported network may differ from the trained one: float32 in another order, and no more.
LOGITS_TOLERANCE = 1e-4  # of the largest logit
LABELS_AGREE = 0.9999  # of the voxels

Run = Callable[[np.ndarray], np.ndarray]
"""An exported network at work: image (N, C, X, Y, Z) -> logits (N, K, X, Y, Z), both float32."""


@dataclass(frozen=True)
class Exportable:
    """One trained network, ready to be exported.

    Attributes:
        network: folded, in evaluation mode, on the CPU.
        trained: as it was saved, one site's where it has statistics of sites; exports must agree with it.
        description: of the model.
        site: whose statistics were taken; None is the mixture of all.
        strides_total: sizes of images are multiples of it.
    """

    network: FoldedUNet
    trained: nn.Module
    description: ModelDescription
    site: str | None
    strides_total: Size3

    @property
    def folds(self) -> bool:
        """Whether all norms were folded, so that a volume can be computed in one piece or in any."""
        return self.description.unet.norm not in UNFOLDABLE_NORMS


@dataclass(frozen=True)
class Agreement:
    """How an exported network compares with the trained one, on noise of two sizes.

    Attributes:
        largest_difference: of logits.
        largest_logit: by magnitude.
        voxels: compared.
        differing: of these, with another class or in other regions.
    """

    largest_difference: float
    largest_logit: float
    voxels: int
    differing: int

    def describe(self) -> str:
        """Say it in a line."""
        return (
            f"logits up to {self.largest_logit:.3g} differ by {self.largest_difference:.2g} at most; "
            f"{self.voxels - self.differing} of {self.voxels} voxels have the same label"
        )


def load_exportable(path: Path | str, site: str | None = None) -> Exportable:
    """Load a model to be exported.

    Args:
        path: a model folder, or a run folder with one inside.
        site: whose statistics, of a model that has them of each training site; None takes their mixture.

    Raises:
        ModelError: there is none, it is damaged, an ensemble, or calibrated for int8.
        ConfigError: it has no statistics of the site.
    """
    folder = find_model_folder(path)
    _refuse_other_kinds(folder)
    saved, description = load_unet(folder)
    if site is not None and site not in description.sites:
        known = ", ".join(description.sites)
        raise ConfigError(
            f"Site {site!r} was asked for, and the model {folder} has "
            + (f"statistics of the sites {known}; name one of them, or none for the mixture of all" if known
               else "the same statistics for all sites; leave out --site")
        )  # fmt: skip
    trained = take_site(saved, site).eval()
    return Exportable(_fold(trained, saved, description), trained, description, site, saved.strides_total)


def check_agreement(run: Run, exportable: Exportable, output: Path | str) -> Agreement:
    """Compare an exported network with the trained one, on images of two sizes, one and two at a time.

    Raises:
        ModelError: they disagree.
    """
    generator = torch.Generator().manual_seed(0)
    parts = []
    for items, steps in ((1, (2, 2, 2)), (2, (3, 2, 4))):
        sizes = (size * step for size, step in zip(exportable.strides_total, steps, strict=True))
        image = torch.randn(items, exportable.description.in_channels, *sizes, generator=generator)
        with torch.inference_mode():
            parts.append((exportable.trained(image), torch.from_numpy(run(image.numpy()))))
    agreement = _compare(parts, exclusive=not exportable.description.regions)
    allowed = LOGITS_TOLERANCE * agreement.largest_logit
    too_many = agreement.differing > (1 - LABELS_AGREE) * agreement.voxels
    if not agreement.largest_difference <= allowed or too_many:
        raise ModelError(
            f"The exported network disagrees with the trained one: {agreement.describe()}, and differences "
            f"up to {allowed:.2g} and {LABELS_AGREE:.2%} of the voxels are what float32 explains. {output} "
            "was not written; try another --format or another version of its packages"
        )
    return agreement


def _refuse_other_kinds(folder: Path) -> None:
    """Raise ModelError for models that are more than one float32 network."""
    described = read_description(folder / DESCRIPTION_NAME)
    if isinstance(described, EnsembleDescription):
        first = folder / MEMBERS_NAME / described.members[0].folder
        raise ModelError(
            f"{folder} is an ensemble of {len(described.members)} models, and one network is exported at a "
            f"time; export each member, as in {first}, and average the probabilities"
        )
    if isinstance(described, ModelDescription) and described.activation_ranges is not None:
        raise ModelError(
            f"{folder} is calibrated for int8, and exports compute in float32; export the model that it was "
            "quantized from"
        )
    if isinstance(described, ModelDescription) and described.preprocessing.orientation != "RAS":
        raise ModelError(
            f"{folder} sees scans in other axes ({described.preprocessing.orientation}) than exports do "
            "(RAS); use it with infer"
        )


def _fold(trained: nn.Module, saved: UNet3d, description: ModelDescription) -> FoldedUNet:
    """Return the network with all norms folded that fold, and without the heads of deep supervision."""
    blank = (1, saved.in_channels, *(2 * step for step in saved.strides_total))
    weights = {
        name: tensor.detach().contiguous()
        for name, tensor in fold(trained, blank).state_dict().items()
        if not name.startswith("coarser_heads.")
    }
    with torch.device("meta"):
        network = FoldedUNet(**network_arguments(description))
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False)


def network_arguments(description: ModelDescription) -> dict[str, Any]:
    """Return what `FoldedUNet` is made with, in plain JSON types."""
    network = description.unet
    depth = len(network.channels)
    norm = network.norm if network.norm in UNFOLDABLE_NORMS else "none"
    return {
        "in_channels": description.in_channels,
        "out_channels": description.num_outputs,
        "channels": list(network.channels),
        "strides": _as_lists(network.strides or [(1, 1, 1)] + [(2, 2, 2)] * (depth - 1)),
        "kernels": _as_lists(network.kernels or [(3, 3, 3)] * depth),
        "encoder": network.encoder,
        "encoder_blocks": _per_level(network.encoder_blocks, depth),
        "decoder_blocks": _per_level(network.decoder_blocks, depth - 1),
        "norm": norm,
    }


def _as_lists(sizes: Sequence[Size3]) -> list[list[int]]:
    return [list(size) for size in sizes]


def _per_level(counts: int | Sequence[int], levels: int) -> list[int]:
    return [counts] * levels if isinstance(counts, int) else list(counts)


def _compare(parts: list[tuple[Tensor, Tensor]], *, exclusive: bool) -> Agreement:
    """Compare logits (N, K, X, Y, Z) of the trained and of the exported network."""

    def decide(logits: Tensor) -> Tensor:
        return logits.argmax(1, keepdim=True) if exclusive else logits > 0

    differing = sum(int((decide(trained) != decide(exported)).any(1).sum()) for trained, exported in parts)
    return Agreement(
        float(torch.stack([(trained - exported).abs().max() for trained, exported in parts]).max()),
        float(torch.stack([trained.abs().max() for trained, _ in parts]).max()),
        sum(trained[:, 0].numel() for trained, _ in parts),
        differing,
    )
