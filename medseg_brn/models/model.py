"""A loaded model: from a scan to a label map on the scan's own grid."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, overload

import numpy as np
import torch
from torch import nn

from medseg_brn.cases.preprocessing import Preprocessing
from medseg_brn.cases.restoring import LabelMapRestorer, ProbabilityRestorer
from medseg_brn.errors import ConfigError
from medseg_brn.inference.machine import default_budget_bytes, resident_bytes
from medseg_brn.inference.postprocessing import postprocess_label_map
from medseg_brn.inference.prediction import Options, Progress, compute_scores
from medseg_brn.inference.predictor import Predictor
from medseg_brn.models.description import Description, ModelDescription
from medseg_brn.models.scan import AIR_BLOCK, Images, PreparedScan, prepare_scan
from medseg_brn.networks.domain_norm import take_site
from medseg_brn.volumes.scratch import Scratch
from medseg_brn.volumes.volume import Volume

# Of the memory allowed, the arrays of the scan may take this share; what is more goes to files.
SCAN_SHARE = 0.4
# Classes, and label values beside them.
LABEL_MAP_BYTES = 2
# For libraries, their buffers and what the allocator keeps.
RESERVED_BYTES = 200e6


@dataclass(frozen=True)
class Member:
    """One network of a model, with the preprocessing it was trained on.

    Attributes:
        predictor: the network, of the model's site where it has statistics of it.
        preprocessing: what it was trained on.
        sites: those that it has statistics of (norm `domain_batch`).
    """

    predictor: Predictor
    preprocessing: Preprocessing
    sites: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says of one scan.

    Attributes:
        label_map: with the label values of the training data, on exactly the scan's grid.
        probabilities: (K, X, Y, Z) float32 in [0, 1] on that grid, where asked for.
        plan: how it was computed, in a line.
        predicted_peak_bytes: what the process was planned to have in memory at once; None for overlapping
            windows.
    """

    label_map: Volume
    probabilities: np.ndarray | None
    plan: str
    predicted_peak_bytes: int | None


@dataclass(frozen=True)
class Model:
    """One network or several ready to predict, and the description they came with.

    Attributes:
        members: the network; or those of an ensemble, whose probabilities are averaged.
        description: classes, label values, inference settings and all else.
        site: where the scans come from, whose statistics normalize them; None, and in members that do not
            have the site, the mixture of all sites. Without effect on members without sites.
    """

    members: tuple[Member, ...]
    description: Description
    site: str | None = None

    @classmethod
    def from_network(
        cls, network: nn.Module, description: ModelDescription, device: torch.device, dtype: torch.dtype
    ) -> "Model":
        """Make a model of a trained network, which stays as it is: a copy is folded."""
        return cls.from_networks([(network, description)], description, device, dtype)

    @classmethod
    def from_networks(
        cls,
        members: Sequence[tuple[nn.Module, ModelDescription]],
        description: Description,
        device: torch.device,
        dtype: torch.dtype,
        site: str | None = None,
    ) -> "Model":
        """Make a model of the trained networks of an ensemble, each with its own description."""
        made = tuple(
            Member(
                Predictor(
                    take_site(network, site),
                    own.patch_size,
                    device,
                    dtype,
                    own.activation_ranges,
                    own.mirrored_channels if own.mirrored_classes else None,
                ),
                own.preprocessing,
                own.sites,
            )
            for network, own in members
        )
        return cls(made, description, site)

    @property
    def sites(self) -> tuple[str, ...]:
        """Those that some member has statistics of, sorted."""
        return tuple(sorted({site for member in self.members for site in member.sites}))

    @property
    def site_note(self) -> str | None:
        """How scans of no known site are normalized, where the model has statistics of sites; else None."""
        if not self.sites:
            return None
        return (
            f"The model has statistics of the sites {', '.join(self.sites)}; a scan of which no such site is "
            "told is normalized by their mixture"
        )

    @property
    def method_note(self) -> str | None:
        """Why overlapping windows are blended, where a network's answer depends on the tile; else None."""
        reason = next(filter(None, (member.predictor.tile_dependence for member in self.members)), None)
        return reason and f"Overlapping windows are blended: {reason}"

    @overload
    def predict(
        self,
        images: Images,
        *,
        affine: np.ndarray | None = None,
        probabilities: Literal[False] = False,
        overlap: float | None = None,
        mirror_axes: Sequence[int] | None = None,
        memory_bytes: int | None = None,
        progress: Progress | None = None,
    ) -> Volume: ...

    @overload
    def predict(
        self,
        images: Images,
        *,
        affine: np.ndarray | None = None,
        probabilities: Literal[True],
        overlap: float | None = None,
        mirror_axes: Sequence[int] | None = None,
        memory_bytes: int | None = None,
        progress: Progress | None = None,
    ) -> tuple[Volume, np.ndarray]: ...

    def predict(
        self,
        images: Images,
        *,
        affine: np.ndarray | None = None,
        probabilities: bool = False,
        overlap: float | None = None,
        mirror_axes: Sequence[int] | None = None,
        memory_bytes: int | None = None,
        progress: Progress | None = None,
    ) -> Volume | tuple[Volume, np.ndarray]:
        """Segment one scan.

        Args:
            images: a file or a folder with a DICOM series; or a Volume, an image of nibabel or SimpleITK, a
                MetaTensor of MONAI, or an array (X, Y, Z) or (channels, X, Y, Z); or a list of either, one
                per channel in the order of the training data. One 4D image may hold all channels.
            affine: (4, 4) voxel index to RAS+ mm, of arrays, which do not tell theirs.
            probabilities: also return the probability of each class, or of each region.
            overlap: blend windows with this overlap, a share in [0, 1), instead of evaluating exactly.
            mirror_axes: axes 0, 1, 2 (canonical: left-right, front-back, up-down) mirrored for test-time
                augmentation; the model's own by default.
            memory_bytes: what the process may take; by default what it has and half of what is free.
            progress: called with (parts done, parts in all).

        Returns:
            The label map, with the label values of the training data, on exactly the grid of the (first)
            image; with `probabilities` also their array (K, X, Y, Z), float32 in [0, 1], on that grid: one
            channel per class, the background first, or per region.

        Raises:
            DataError: a file cannot be read, the channels do not fit the model or each other, or voxels are
                NaN or infinite.
            ConfigError: the memory does not suffice.
        """
        prediction = self.segment(
            self.prepare(images, affine=affine, memory_bytes=memory_bytes),
            probabilities=probabilities,
            overlap=overlap,
            mirror_axes=mirror_axes,
            memory_bytes=memory_bytes,
            progress=progress,
        )
        if prediction.probabilities is None:
            return prediction.label_map
        return prediction.label_map, prediction.probabilities

    def prepare(
        self,
        images: Images,
        *,
        affine: np.ndarray | None = None,
        memory_bytes: int | None = None,
        scans_at_once: int = 1,
        keep_channels: bool = False,
    ) -> PreparedScan:
        """Read and preprocess a scan: the part of `predict` that needs no network.

        Args:
            images: as for `predict`.
            affine: as for `predict`.
            memory_bytes: as for `predict`.
            scans_at_once: so many scans share the memory for scans: 2 where one is read while another is
                segmented.
            keep_channels: keep the scan's own values too.
        """
        allowed = default_budget_bytes() if memory_bytes is None else memory_bytes
        scratch = Scratch(in_memory_bytes=int(SCAN_SHARE * allowed / scans_at_once))
        preprocessings = [member.preprocessing for member in self.members]
        settings = self.description.inference
        return prepare_scan(
            images,
            preprocessings,
            skip_air=settings.skip_air,
            keep_channels=keep_channels,
            scratch=scratch,
            model_name=self.description.name,
            modalities=self.description.modalities,
            affine=affine,
        )

    def segment(
        self,
        scan: PreparedScan,
        *,
        probabilities: bool = False,
        overlap: float | None = None,
        mirror_axes: Sequence[int] | None = None,
        memory_bytes: int | None = None,
        scans_at_once: int = 1,
        progress: Progress | None = None,
    ) -> Prediction:
        """Segment a prepared scan; the arguments are those of `predict` and `prepare`."""
        settings = self.description.inference
        targets = self.description.labels.targets
        allowed = default_budget_bytes() if memory_bytes is None else memory_bytes
        taken = resident_bytes() + LABEL_MAP_BYTES * math.prod(scan.grid.shape) + RESERVED_BYTES
        # What the other scans may take in the meantime.
        elsewhere = SCAN_SHARE * allowed * (scans_at_once - 1) / scans_at_once
        if allowed <= taken + elsewhere:
            raise ConfigError(
                f"{allowed / 1e9:.3g} GB of memory are allowed, and this process and its scans take "
                f"{(taken + elsewhere) / 1e9:.3g} GB before a feature is computed; raise --memory above "
                "that, or close other programs"
            )
        labels = LabelMapRestorer(scan.record, targets, scan.scratch)
        restored = ProbabilityRestorer(scan.record, targets, scan.scratch) if probabilities else None
        options = Options(
            windows=overlap is not None,
            overlap=settings.overlap if overlap is None else overlap,
            mirror_axes=tuple(settings.mirror_axes if mirror_axes is None else mirror_axes),
            budget_bytes=allowed - taken - elsewhere,
            occupied=scan.occupied,
            block=AIR_BLOCK,
            exclusive=not targets.regions,
            probabilities=probabilities or scan.record.network_shape != scan.record.cropped_shape,
        )
        predictors = [member.predictor for member in self.members]
        scores = compute_scores(predictors, scan.images, options, scan.scratch, progress)
        for slab in scores.slabs:
            labels.take(slab)
            if restored is not None:
                restored.take(slab)
        classes = postprocess_label_map(Volume(labels.finish(), scan.grid), settings.postprocessing, targets)
        values = _to_label_values(classes.array, self.description.label_values)
        return Prediction(
            Volume(values, scan.grid),
            None if restored is None else restored.finish(),
            scores.plan,
            None if scores.predicted_bytes is None else int(taken + scores.predicted_bytes),
        )


def _to_label_values(classes: np.ndarray, label_values: Sequence[int]) -> np.ndarray:
    """Return the label map with each class replaced by its value, in the smallest integer type for all."""
    smallest = np.result_type(*(np.min_scalar_type(value) for value in label_values))
    if classes.dtype == smallest and list(label_values) == list(range(len(label_values))):
        return classes
    return np.asarray(label_values, dtype=smallest)[classes]
