"""Every stability measure of one network on one loader's patches, with nothing changed in the network."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor, nn

from medseg_brn.cases.targets import Targets
from medseg_brn.errors import DataError
from medseg_brn.probes.dependence import backward_cross_talk, batchmate_dependence, train_eval_disparity
from medseg_brn.probes.gradients import Loss, gradient_fidelity, gradient_noise_scale
from medseg_brn.probes.layers import (
    collect_inputs,
    compute_logits,
    eval_mode,
    find_norm_layers,
    has_batch_statistics,
)
from medseg_brn.probes.layerwise import Pool, examine_layers

NOISE_METRICS = (
    "variance_noise_measured", "variance_noise_theory", "variance_noise_first_order",
    "mean_noise_measured", "mean_noise_theory", "variance_noise_in_training", "mean_noise_in_training",
    "intraclass_correlation", "effective_sample_size",
)  # fmt: skip
"""Per layer the median over channels, per network the median over layers."""
STATISTICS_METRICS = (
    "estimation_shift_mean", "estimation_shift_var", "worker_divergence",
    "clip_rate_r", "clip_rate_d", "clipped_mass_r", "clipped_mass_d",
)  # fmt: skip
"""Per network the mean over layers."""
NETWORK_METRICS = (
    "train_eval_disparity", "dice_disparity", "batchmate_dependence", "backward_cross_talk",
    "gradient_fidelity", "gradient_noise_scale",
)  # fmt: skip
"""Of the network as a whole, not of its layers."""

_DISPARITY_BATCHES = 32
_FIDELITY_BATCHES = 4
_NOISE_SCALE_BATCHES = 8


@dataclass(frozen=True)
class Examination:
    """The results of `probe`."""

    network: dict[str, float | None]
    """Metric → value; None where the metric does not apply to this network or these patches.

    The metrics are those of NOISE_METRICS, STATISTICS_METRICS and NETWORK_METRICS, described in `probe`."""
    layers: dict[str, dict[str, float]]
    """Norm layer → metric → value; metrics that do not apply to the layer are left out."""


def probe(
    network: nn.Module,
    loader: Iterable[Any],
    *,
    batch_size: int | None = None,
    loss: Loss | None = None,
    targets: Targets | None = None,
    patches: int = 96,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Examination:
    """Measure what the norms of a network do to it, at fixed weights and statistics.

    The loader's batches are taken apart into a pool of single patches, from which batches are drawn anew.
    The network is used as it is and where it is: no weight, statistic, gradient or mode is changed.

    - `variance_noise_*`, `mean_noise_*`: noise of σ_B² and μ_B over batches; `theory` predicts from one half
      of the pool what is `measured` on the other, both at the features of evaluation mode, where items are
      independent; `first_order` predicts it by the literature's formula sqrt((κ - 1)/(B·m_eff)), which is
      wrong for few items of different means; `in_training` is at the features of training mode, where
      earlier batch norms have already evened out the batches. At the input of *every* norm layer, whatever
      its kind; medians.
    - `intraclass_correlation`, `effective_sample_size`: where the noise comes from (`probes.noise`).
    - `estimation_shift_*`: running statistics against those of the measured half in training mode
      (PreciseBN, arXiv:2105.07576, at renorm's current limits), mean over layers. MABN has no running
      mean; its running second moment is compared with the features'.
    - `worker_divergence`: divergence between the statistics of two workers that have the same weights and
      have each seen half of the measured patches (iid shards), not of workers that were trained apart.
    - `clip_rate_*`, `clipped_mass_*`: what renorm's current limits cut off.
    - `train_eval_disparity`, `dice_disparity`: answers in training mode against evaluation mode.
    - `batchmate_dependence`, `backward_cross_talk`: what batchmates do to an item, forward and backward.
    - `gradient_fidelity`, `gradient_noise_scale`: of the training gradient; with classes only.

    Norms that `freeze_statistics` has marked are examined as frozen: their training function is that of
    evaluation mode. If a network has only such norms, disparity, dependence and cross-talk are 0 and fidelity
    is 1. Their running statistics are compared with the population's; `worker_divergence` and clipping do
    not apply, as they take no batch in.

    Where a batch leaves a layer with batch statistics one value per channel, it cannot be trained: what
    needs a pass in training mode is None.

    Args:
        network: any module that answers images (N, C, ...) with logits (N, K, ...); of several outputs the
            first counts. Parameters that want no gradient have no part in gradient metrics.
        loader: yields pairs (images, classes), dictionaries with "image" and "label", or images alone.
            Classes are integers (N, 1, ...) or (N, ...).
        batch_size: items per batch; the first batch's own by default.
        loss: of logits and classes; by default Dice without background, pooled over the batch, +
            cross-entropy. With regions or an ignore class it must be given.
        targets: what the channels are, and which class is ignored; by default each channel is a class of its
            own, and none is ignored.
        patches: most items to take, in the loader's order.
        seed: of every random choice here; global random states are left to the loader.
        progress: called with the name of each part before it is measured.

    Raises:
        DataError: no batches, patches of different shapes, fewer than a batch has, or no loss for targets
            that the default one is not for.
    """
    if loss is None and targets is not None and (targets.regions or targets.ignore_class is not None):
        raise DataError(
            "the default loss knows no regions and no ignored voxels; give the loss that was trained with"
        )
    pool = _gather(loader, patches, batch_size)
    tell = progress or (lambda part: None)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pool.images), generator=generator)
    trainable = _can_train(network, pool)
    tell("noise and statistics of the layers")
    layers = examine_layers(network, pool, order, trainable, generator)
    results: dict[str, float | None] = dict.fromkeys(NETWORK_METRICS)
    if trainable:
        results |= _examine_answers(network, pool, order, seed, targets, tell)
        if pool.classes is not None and any(parameter.requires_grad for parameter in network.parameters()):
            tell("gradients")
            results |= _examine_gradients(network, pool, order, loss or default_loss)
    summary = _summarize(layers)
    return Examination(summary | {name: _finite_or_none(value) for name, value in results.items()}, layers)


def default_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Dice pooled over the batch + cross-entropy of logits (N, K, ...) against classes (N, 1, ...).

    With several channels after softmax and without background; with one after the sigmoid.
    """
    from monai.losses import DiceCELoss  # slow to import, and only needed with classes

    if logits.size(1) == 1:
        return DiceCELoss(sigmoid=True, batch=True)(logits.float(), classes.float())
    dice_ce = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    return dice_ce(logits.float(), classes)


def _gather(loader: Iterable[Any], patches: int, batch_size: int | None) -> Pool:
    images: list[Tensor] = []
    classes: list[Tensor] = []
    for batch in loader:
        image, label = _read_batch(batch)
        batch_size = batch_size or len(image)
        images.append(image)
        if label is not None:
            classes.append(label if label.dim() == image.dim() else label.unsqueeze(1))
        if sum(map(len, images)) >= patches:
            break
    shapes = sorted({tuple(image.shape[1:]) for image in images})
    if len(shapes) != 1 or len(classes) not in (0, len(images)):
        raise DataError(
            f"the loader gave {len(images)} batches, {len(classes)} with classes, of item shapes {shapes}; "
            "a probe needs patches of one shape, all with classes or all without"
        )
    pooled = torch.cat(images)[:patches]
    if not batch_size or not 1 <= batch_size <= len(pooled):
        raise DataError(f"{len(pooled)} patches do not fill a batch of {batch_size}; give more patches")
    return Pool(pooled, torch.cat(classes)[:patches] if classes else None, batch_size)


def _read_batch(batch: Any) -> tuple[Tensor, Tensor | None]:
    if isinstance(batch, dict):
        image, label = batch["image"], batch.get("label")
    elif isinstance(batch, Tensor):
        image, label = batch, None
    else:
        image, label = batch[0], batch[1] if len(batch) > 1 else None
    plain = [x.detach().as_subclass(Tensor).cpu() for x in (image, label) if x is not None]
    return plain[0], plain[1].long() if len(plain) > 1 else None


def _can_train(network: nn.Module, pool: Pool) -> bool:
    """Whether every layer with batch statistics gets more than one value per channel."""
    sizes = []
    layers = find_norm_layers(network)

    def take(name: str, features: Tensor) -> None:
        if has_batch_statistics(layers[name]):
            sizes.append(features.numel() // features.size(1))

    with torch.no_grad(), eval_mode(network), collect_inputs(network, take):
        compute_logits(network, pool.images[: pool.batch_size])
    return all(size > 1 for size in sizes)


def _examine_answers(
    network: nn.Module,
    pool: Pool,
    order: Tensor,
    seed: int,
    targets: Targets | None,
    tell: Callable[[str], None],
) -> dict[str, float | None]:
    tell("training against evaluation mode")
    chosen = order[: _DISPARITY_BATCHES * pool.batch_size]
    classes = None if pool.classes is None else pool.classes[chosen]
    disparity = train_eval_disparity(network, pool.images[chosen], pool.batch_size, classes, targets)
    results = {"train_eval_disparity": disparity.probability, "dice_disparity": disparity.dice}
    tell("dependence on batchmates")
    if pool.batch_size == 1 or len(pool.images) > pool.batch_size:  # else there is one set of batchmates
        dependence = batchmate_dependence(network, pool.images, pool.batch_size, seed=seed)
        results["batchmate_dependence"] = dependence
    results["backward_cross_talk"] = backward_cross_talk(network, pool.images, pool.batch_size, seed)
    return results


def _examine_gradients(network: nn.Module, pool: Pool, order: Tensor, loss: Loss) -> dict[str, float | None]:
    assert pool.classes is not None
    chosen = pool.batches(order)[:_NOISE_SCALE_BATCHES]
    images, classes = [pool.images[batch] for batch in chosen], [pool.classes[batch] for batch in chosen]
    few = slice(_FIDELITY_BATCHES)
    results: dict[str, float | None] = {
        "gradient_fidelity": gradient_fidelity(network, images[few], classes[few], loss)
    }
    if len(chosen) > 1:
        batches = zip(images, classes, strict=True)
        results["gradient_noise_scale"] = gradient_noise_scale(network, batches, loss)
    return results


def _summarize(layers: dict[str, dict[str, float]]) -> dict[str, float | None]:
    """Per metric the network's one value: noise by the median over layers, the others by the mean."""
    summary: dict[str, float | None] = {}
    for name in (*NOISE_METRICS, *STATISTICS_METRICS):
        values = [found[name] for found in layers.values() if name in found]
        average = median if name in NOISE_METRICS else fmean
        summary[name] = average(values) if values else None
    return summary


def _finite_or_none(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
