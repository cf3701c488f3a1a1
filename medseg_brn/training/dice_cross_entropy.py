"""Dice + cross-entropy of many classes in little memory: slab by slab, with the gradient written out.

As a chain of torch operations the loss keeps softmax, its logarithm and a one-hot volume, each as large as
the logits. Here a few sums per channel are all that is kept beside the logits and the classes, for the
gradient to a voxel's logits needs nothing else of the other voxels. A slab is some voxels of one patch.

Per channel k, with p_k a voxel's probability, t_k its membership (0 or 1), and sums over the annotated
voxels of the batch:

    I_k = Σ p_k t_k      P_k = Σ p_k      T_k = Σ t_k
    Dice_k = (2 I_k + s) / (P_k + T_k + s)
    L_k = Σ t_k ln p_k                                softmax: exclusive classes,       n_k = T_k terms
    L_k = Σ t_k ln p_k + (1 - t_k) ln(1 - p_k)        sigmoid: regions that may overlap, n_k = all voxels
    loss = Σ_k u_k (1 - Dice_k) - Σ_k w_k L_k / Σ_k w_k n_k

with Dice weights u of sum 1 and cross-entropy weights w.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

SMOOTHING = 1e-5
"""s, as in MONAI's DiceLoss: a class that is nowhere and predicted nowhere has Dice 1."""
_SLAB_VALUES = 2**18
"""Voxels × channels of a slab on a CPU, to fit a core's cache."""
_SLAB_VALUES_ON_GPU = 2**24
"""Fewer and larger ones, as each operation has to be started; 64 MiB in float32."""
_CHANNELS_IN_ROWS = 16
"""From how many channels on a softmax along contiguous memory is faster than one across it."""


@dataclass(frozen=True, eq=False)
class Membership:
    """What the K channels of the logits stand for.

    Attributes:
        members: (K, L), 1 where a voxel of class l of the label map belongs to channel k, else 0; the ignored
            class belongs to none.
        dice_weights: u, (K,), of sum 1.
        weights: w, (K,).
        exclusive: whether a voxel belongs to one channel (softmax) or to any number of them (sigmoid).
        ignore_class: class of the voxels that do not count, or None.
    """

    members: Tensor
    dice_weights: Tensor
    weights: Tensor
    exclusive: bool = True
    ignore_class: int | None = None

    def to(self, device: torch.device) -> "Membership":
        """The same, on a device."""
        names = ("members", "dice_weights", "weights")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def dice_cross_entropy(logits: Tensor, classes: Tensor, membership: Membership) -> Tensor:
    """Dice loss pooled over the batch + mean cross-entropy, 0-dim, in float32 or wider.

    Memory beside the arguments: one slab; in the backward pass the gradient (in the logits' dtype and memory
    format) and one slab. A batch without an annotated voxel has loss 0 and gradient 0.

    Args:
        logits: (N, K, X, Y, Z), of any floating dtype; computed with in float32 or wider.
        classes: (N, 1, X, Y, Z), whole numbers of any dtype.
        membership: what the K channels stand for.

    Raises:
        RuntimeError: a class that `membership` does not know.
    """
    # In either memory format these are views, as the axes of space follow each other.
    return _DiceCrossEntropy.apply(logits.flatten(2), classes.flatten(1), membership.to(logits.device))


class _DiceCrossEntropy(torch.autograd.Function):
    """The loss of logits (N, K, V) and classes (N, V)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, classes: Tensor, membership: Membership) -> Tensor:
        sums = torch.zeros(5, logits.size(1), dtype=torch.float64, device=logits.device)
        axis = _channel_axis(logits)
        members = _orient(membership.members, axis, _wide(logits.dtype))
        sum_up = _sum_up_softmax if membership.exclusive else _sum_up_sigmoid
        for item, voxels in _slabs(logits):
            slab = _widen(_cut(logits, item, voxels, axis))
            target, annotated = _look_up(classes[item, voxels], members, axis, membership.ignore_class)
            sums += torch.stack(sum_up(slab, target, annotated, axis))
        ctx.save_for_backward(logits, classes, sums)
        ctx.membership = membership
        overlap, predicted, present, log_likelihood, _ = sums
        dice = (2 * overlap + SMOOTHING) / (predicted + present + SMOOTHING)
        dice_loss = (membership.dice_weights * (1 - dice)).sum()
        cross_entropy = -(_weights_per_term(membership, sums) * log_likelihood).sum()
        return (dice_loss + cross_entropy).to(_wide(logits.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None]:
        logits, classes, sums = ctx.saved_tensors
        gradient, axis = torch.empty_like(logits), _channel_axis(logits)
        factors = (grad_loss * _differentiate(ctx.membership, sums)).to(_wide(logits.dtype))
        by_sums = factors.unsqueeze(2 - axis).unbind()  # each (K, 1) or (1, K), as slabs lie
        members = _orient(ctx.membership.members, axis, factors.dtype)
        differentiate = _differentiate_softmax if ctx.membership.exclusive else _differentiate_sigmoid
        for item, voxels in _slabs(logits):
            slab = _widen(_cut(logits, item, voxels, axis))
            target, annotated = _look_up(classes[item, voxels], members, axis, ctx.membership.ignore_class)
            found = differentiate(slab, target, annotated, axis, *by_sums)
            _cut(gradient, item, voxels, axis).copy_(found)
        return gradient, None, None


def _sum_up_softmax(slab: Tensor, target: Tensor, annotated: Tensor, axis: int) -> list[Tensor]:
    """I, P, T, L and n, (K,) each, of a slab."""
    log_p, voxels = F.log_softmax(slab, axis), 1 - axis
    log_likelihood = (log_p * target).sum(voxels)
    p = log_p.exp_().mul_(annotated)
    predicted, present = p.sum(voxels), target.sum(voxels)
    return [p.mul_(target).sum(voxels), predicted, present, log_likelihood, present]


def _sum_up_sigmoid(slab: Tensor, target: Tensor, annotated: Tensor, axis: int) -> list[Tensor]:
    """I, P, T, L and n, (K,) each, of a slab."""
    voxels = 1 - axis
    log_likelihood = (slab * target).sub_(F.softplus(slab).mul_(annotated)).sum(voxels)
    p = slab.sigmoid_().mul_(annotated)
    predicted, present = p.sum(voxels), target.sum(voxels)
    return [
        p.mul_(target).sum(voxels),
        predicted,
        present,
        log_likelihood,
        annotated.sum().expand_as(present),
    ]


def _differentiate(membership: Membership, sums: Tensor) -> Tensor:
    """∂loss/∂I, ∂loss/∂P and ∂loss/∂L, (3, K)."""
    overlap, predicted, present, _, _ = sums
    total = predicted + present + SMOOTHING
    by_overlap = -2 * membership.dice_weights / total
    by_predicted = membership.dice_weights * (2 * overlap + SMOOTHING) / total.square()
    return torch.stack([by_overlap, by_predicted, -_weights_per_term(membership, sums)])


def _differentiate_softmax(
    slab: Tensor, target: Tensor, annotated: Tensor, axis: int, by_i: Tensor, by_p: Tensor, by_l: Tensor
) -> Tensor:
    """Gradient to a slab: l_k + p_k (g_k - Σ_j (p_j g_j + l_j)); g = ∂loss/∂p, l_k = t_k ∂loss/∂L_k."""
    p = F.softmax(slab, axis).mul_(annotated)
    of_p = (target * by_i).add_(by_p)
    of_l = target.mul_(by_l)
    through = torch.addcmul(of_l, p, of_p).sum(axis, keepdim=True)
    return of_l.addcmul_(p, of_p.sub_(through))


def _differentiate_sigmoid(
    slab: Tensor, target: Tensor, annotated: Tensor, axis: int, by_i: Tensor, by_p: Tensor, by_l: Tensor
) -> Tensor:
    """Gradient to a slab: with g = ∂loss/∂p it is p_k (1 - p_k) g_k + (t_k - p_k) ∂loss/∂L_k."""
    p = slab.sigmoid_().mul_(annotated)
    of_p = (target * by_i).add_(by_p)
    of_l = target.sub_(p).mul_(by_l)
    return of_l.addcmul_(of_p.mul_(p), 1 - p)


def _slabs(logits: Tensor) -> Iterator[tuple[int, slice]]:
    """Patch and voxels of each slab of (N, K, V)."""
    items, channels, voxels = logits.shape
    values = _SLAB_VALUES if logits.device.type == "cpu" else _SLAB_VALUES_ON_GPU
    length = max(1, values // channels)
    for item in range(items):
        for start in range(0, voxels, length):
            yield item, slice(start, start + length)


def _channel_axis(logits: Tensor) -> int:
    """Which axis of a slab has the channels: 1 where a voxel's are many and follow each other in memory."""
    return int(logits.stride(1) == 1 and logits.size(1) >= _CHANNELS_IN_ROWS)


def _cut(values: Tensor, item: int, voxels: slice, axis: int) -> Tensor:
    """A view of a slab of (N, K, V), with the channels along `axis`."""
    slab = values[item, :, voxels]
    return slab.T if axis else slab


def _widen(slab: Tensor) -> Tensor:
    """A contiguous copy in float32 or wider."""
    copy = slab.new_empty(slab.shape, dtype=_wide(slab.dtype))
    return torch.mul(
        slab, 1, out=copy
    )  # three times as fast as `copy_` where the strides are of another order


def _orient(members: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    """The (K, L) table with the channels along `axis`."""
    return (members.T if axis else members).to(dtype).contiguous()


def _look_up(classes: Tensor, members: Tensor, axis: int, ignore_class: int | None) -> tuple[Tensor, Tensor]:
    """A slab's memberships, and whether its voxels count (0 or 1, of one channel), as slabs lie."""
    indices = classes.long()
    target = members.index_select(1 - axis, indices)
    if ignore_class is None:
        return target, target.new_ones(1).expand(len(indices)).unsqueeze(axis)
    return target, (indices != ignore_class).to(target.dtype).unsqueeze(axis)


def _weights_per_term(membership: Membership, sums: Tensor) -> Tensor:
    """w / Σ w n, (K,)."""
    total = (membership.weights * sums[4]).sum()
    return membership.weights / torch.where(total > 0, total, 1.0)  # without any term their sum is 0


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
