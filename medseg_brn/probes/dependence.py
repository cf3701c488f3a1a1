"""How far an item's answer in training depends on training itself, on its batchmates, and they on it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medseg_brn.cases.targets import REGION_THRESHOLD, Targets
from medseg_brn.errors import DataError
from medseg_brn.probes.layers import apply_activation, compute_logits, eval_mode, training_norms

_ANCHORS = 8
"""Items whose batchmates are exchanged."""
_CROSS_TALK_BATCHES = 4
_PROJECTIONS = 4
"""Random directions per batch, of which each gives an unbiased estimate of the squared norms."""


@dataclass(frozen=True)
class Disparity:
    """How far the network in training mode is from the network in evaluation mode."""

    probability: float
    """Mean |p_train - p_eval| over items, voxels and channels (classes, or regions), in [0, 1]."""
    dice: float | None
    """Dice in evaluation minus Dice in training, mean over the foreground classes (or regions) that occur, in
    [-1, 1]; None where no classes were given or none of them is foreground."""


def train_eval_disparity(
    network: nn.Module,
    images: Tensor,
    batch_size: int,
    classes: Tensor | None = None,
    targets: Targets | None = None,
) -> Disparity:
    """The difference that the norms' training mode makes to the answers, all else in evaluation mode.

    Source: Buglakova et al. 2025, arXiv:2503.19545 (train/eval disparity).

    Args:
        network: any module; unchanged.
        images: (N, C, ...); passed in batches of `batch_size`, the last incomplete one dropped.
        batch_size: items per batch.
        classes: (N, 1, ...) integers; Dice is that of all items' voxels together.
        targets: what the channels are, and which class is ignored and counts in no Dice; by default each
            channel is a class of its own, and none is ignored.

    Raises:
        DataError: fewer images than a batch has.
    """
    _check_enough(images, batch_size)
    difference, overlaps, batches = 0.0, [], len(images) // batch_size
    for start in range(0, batches * batch_size, batch_size):
        batch = images[start : start + batch_size]
        with torch.no_grad(), training_norms(network):
            in_training = apply_activation(compute_logits(network, batch), targets)
        with torch.no_grad(), eval_mode(network):
            in_evaluation = apply_activation(compute_logits(network, batch), targets)
        difference += float((in_training.float() - in_evaluation.float()).abs().mean())
        if classes is not None:
            reference = classes[start : start + batch_size].to(in_training.device)
            answers = in_training, in_evaluation
            pair = [_overlap(probabilities, reference, targets) for probabilities in answers]
            overlaps.append(torch.stack(pair))
    return Disparity(difference / batches, _dice_difference(overlaps))


def _overlap(probabilities: Tensor, reference: Tensor, targets: Targets | None) -> Tensor:
    """(3, foreground classes, or regions): voxels in prediction and reference, in the one, in the other."""
    if targets is not None and targets.regions:
        return _overlap_of_regions(probabilities, reference, targets)
    if probabilities.size(1) == 1:
        predicted, count = (probabilities > 0.5).long(), 2
    else:
        predicted, count = probabilities.argmax(dim=1, keepdim=True), probabilities.size(1)
    if targets is not None and targets.ignore_class is not None:
        annotated = reference != targets.ignore_class
        predicted, reference = predicted[annotated], reference[annotated]
    agreed = reference[predicted == reference]
    voxels = [torch.bincount(x.flatten().long(), minlength=count) for x in (agreed, predicted, reference)]
    return torch.stack([number[1:count] for number in voxels]).double()


def _overlap_of_regions(probabilities: Tensor, reference: Tensor, targets: Targets) -> Tensor:
    """(3, regions), as `_overlap`; a voxel lies in each region of more than 1/2."""
    members = torch.from_numpy(targets.members()).to(reference.device)  # the ignore class is in no region
    referenced = members[:, reference[:, 0]]  # (regions, N, ...)
    predicted = (probabilities > REGION_THRESHOLD).movedim(1, 0)
    if targets.ignore_class is not None:
        predicted = predicted & (reference[:, 0] != targets.ignore_class)
    counts = [mask.flatten(1).sum(1) for mask in (predicted & referenced, predicted, referenced)]
    return torch.stack(counts).double()


def _dice_difference(overlaps: list[Tensor]) -> float | None:
    if not overlaps:
        return None
    both, predicted, reference = torch.stack(overlaps).sum(dim=0).unbind(dim=1)  # each (train/eval, classes)
    occurs = reference[0] > 0
    dice = (2 * both / (predicted + reference))[:, occurs].mean(dim=1)
    return float(dice[1] - dice[0]) if occurs.any() else None


def batchmate_dependence(
    network: nn.Module,
    images: Tensor,
    batch_size: int,
    mates: int = 4,
    seed: int = 0,
    resolution: float = 64,
) -> float:
    """sqrt(E_x Var_mates f(x)) / sd(f): how far an item's logits in training depend on its batchmates.

    Up to 8 items x are each passed first in a batch with `mates` random sets of other items. Var_mates is
    the unbiased variance of a logit over those sets, E_x the mean over items, voxels and classes, and
    sd(f)² the variance of a class's logits over items and voxels, mean over classes.

    0 is no dependence. The item's place and the batch's shape never change, so a network whose items do not
    meet gives 0 exactly. Where batch statistics cancel but for rounding (renorm within its limits), the ratio
    is some units in the last place: below `resolution` of them, 7.6e-6 in float32, 0 is returned. Logits in
    a narrower dtype are judged as float32: 64 of bfloat16's units are 0.5, more than real dependence has.

    Args:
        network: any module; unchanged.
        images: (N, C, ...), more than `batch_size` unless that is 1.
        batch_size: items per batch; alone, an item has no batchmates and the answer is 0.
        mates: sets of batchmates per item, at least 2.
        seed: of the choice of items.
        resolution: units in the last place of float32 (of float64 for logits of that dtype) below which the
            ratio is taken for rounding; 0 for the ratio as it is.

    Raises:
        DataError: too few images for two different sets, or fewer than 2 sets asked for.
    """
    if batch_size == 1:
        return 0.0
    if len(images) <= batch_size or mates < 2:
        raise DataError(
            f"{mates} sets of batchmates from {len(images)} images at batch size {batch_size}; "
            "needed are 2 sets or more and more images than a batch has"
        )
    generator = torch.Generator().manual_seed(seed)
    variances, answers = [], []
    for anchor in torch.randperm(len(images), generator=generator)[:_ANCHORS].tolist():
        others = torch.tensor([index for index in range(len(images)) if index != anchor])
        logits = []
        for _ in range(mates):
            chosen = others[torch.randperm(len(others), generator=generator)[: batch_size - 1]]
            with torch.no_grad(), training_norms(network):
                batch = torch.cat([images[anchor : anchor + 1], images[chosen]])
                logits.append(compute_logits(network, batch)[0])
        varied = torch.stack(logits).double()  # (mates, K, ...)
        # Around the first set's: equal logits then have a variance of exactly 0.
        variances.append((varied - varied[0]).var(dim=0).mean())
        answers.append(varied.flatten(2))
    spread = torch.cat(answers).transpose(0, 1).flatten(1).var(dim=1).mean()
    ratio = float((torch.stack(variances).mean() / spread).sqrt())
    wide = torch.promote_types(logits[0].dtype, torch.float32)
    return 0.0 if ratio < resolution * torch.finfo(wide).eps else ratio


def backward_cross_talk(network: nn.Module, images: Tensor, batch_size: int, seed: int = 0) -> float:
    """‖∂f_i/∂x_j‖ / ‖∂f_i/∂x_i‖, j ≠ i: how far the gradient of one item's logits leaks to its batchmates.

    Frobenius norms of the Jacobians in training mode, by random projections v: E‖∂(v·f_i)/∂x_j‖² is
    ‖∂f_i/∂x_j‖² for standard normal v. i is the first item of up to 4 batches; mean over j and batches.
    Renorm leaks where its forward pass does not depend on the batch: its backward pass is batch norm's.

    Args:
        network: any module; unchanged.
        images: (N, C, ...); at least a batch.
        batch_size: items per batch; alone, an item has no batchmates and the answer is 0.
        seed: of the choice of items and of the projections.

    Raises:
        DataError: fewer images than a batch has.
    """
    if batch_size == 1:
        return 0.0
    _check_enough(images, batch_size)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    batches = order[: len(order) // batch_size * batch_size].split(batch_size)[:_CROSS_TALK_BATCHES]
    ratios = []
    for chosen in batches:
        squares = _squared_jacobian_norms(network, images[chosen], generator)
        ratios.append((squares[1:] / squares[0]).sqrt().mean())
    return float(torch.stack(ratios).mean())


def _squared_jacobian_norms(network: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
    """‖∂f_0/∂x_j‖² for each item j of the batch, (N,), estimated, in float64."""
    leaf = batch.detach().clone().requires_grad_()
    squares = torch.zeros(len(batch), dtype=torch.float64)
    with torch.enable_grad(), training_norms(network):
        logits = compute_logits(network, leaf.clone())[0]  # a copy, as a leaf cannot be changed in place
        for repetition in range(_PROJECTIONS):
            direction = torch.randn(logits.shape, generator=generator).to(logits)
            more = repetition < _PROJECTIONS - 1
            (gradient,) = torch.autograd.grad(logits, leaf, direction, retain_graph=more)
            squares += gradient.flatten(1).double().square().sum(dim=1).cpu()
    return squares


def _check_enough(images: Tensor, batch_size: int) -> None:
    if batch_size < 1 or len(images) < batch_size:
        raise DataError(
            f"{len(images)} images do not fill one batch of {batch_size}; give more images or a batch size "
            f"from 1 to {len(images)}"
        )
