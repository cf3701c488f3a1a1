"""How far the training gradient is from the one that evaluation mode would follow, and how noisy it is."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from medseg_brn.errors import DataError, ModelError
from medseg_brn.probes.layers import compute_logits, eval_mode, training_norms

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of logits (N, K, ...) and classes (N, 1, ...): a number."""


def gradient_fidelity(
    network: nn.Module, batch_images: Sequence[Tensor], batch_classes: Sequence[Tensor], loss: Loss
) -> float:
    """Cosine between the training-mode gradient and the gradient of the evaluation-mode function.

    Of the loss with respect to all parameters together, at the same weights and batch; mean over batches.

    Args:
        network: any module with parameters that want a gradient; unchanged, `.grad` too.
        batch_images: batches (N, C, ...).
        batch_classes: their classes (N, 1, ...).
        loss: of logits and classes.

    Returns:
        In [-1, 1]; 1 where training and evaluation are the same function with the same gradient. NaN
        where a gradient is 0.

    Raises:
        DataError: no batches.
        ModelError: no parameter wants a gradient.
    """
    if not batch_images:
        raise DataError("gradient fidelity got no batches; give it at least one")
    cosines = []
    for images, classes in zip(batch_images, batch_classes, strict=True):
        in_training = _compute_gradient(network, training_norms(network), images, classes, loss)
        in_evaluation = _compute_gradient(network, eval_mode(network), images, classes, loss)
        norms = in_training.norm() * in_evaluation.norm()
        cosines.append(float((in_training @ in_evaluation / norms).clamp(-1, 1)))
    return math.fsum(cosines) / len(cosines)


def noise_scale(small_square: float, big_square: float, small: int, big: int) -> float:
    """B_simple = S/|G|², the batch size at which a gradient's noise equals the gradient.

        |G|² = (B_b·|G_b|² - B_s·|G_s|²) / (B_b - B_s)       S = (|G_s|² - |G_b|²) / (1/B_s - 1/B_b)

    Source: McCandlish et al. 2018, arXiv:1812.06162, appendix A. For independent items it estimates
    tr(Σ)/|G|², with G the true gradient and Σ one item's gradient covariance.

    Args:
        small_square: |G_s|², mean squared norm of the gradients at batch size `small`.
        big_square: |G_b|², the same at batch size `big`.
        small: B_s, items.
        big: B_b, items, more than B_s.

    Returns:
        Items. NaN where the estimate of |G|² is not positive: too few batches to see the gradient through
        its noise. It may be slightly negative where there is next to no noise.

    Raises:
        ValueError: batch sizes out of order.
    """
    if not 1 <= small < big:
        raise ValueError(f"batch sizes {small} and {big} must be at least 1, the second the larger")
    square = (big * big_square - small * small_square) / (big - small)
    noise = (small_square - big_square) / (1 / small - 1 / big)
    return noise / square if square > 0 else math.nan


def gradient_noise_scale(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: Loss) -> float:
    """`noise_scale` of the training-mode gradient: single batches (B_s) against all of them (B_b = n·B_s).

    Args:
        network: any module with parameters that want a gradient; unchanged, `.grad` too.
        batches: at least 2 pairs of images (N, C, ...) and classes (N, 1, ...), of the same N.
        loss: of logits and classes, a mean over items; for one that pools its items, such as Dice over the
            batch, the result is that of the batches as they are.

    Raises:
        DataError: fewer than 2 batches, or of different sizes.
        ModelError: no parameter wants a gradient.
    """
    total, squares, sizes = None, [], []
    for images, classes in batches:
        gradient = _compute_gradient(network, training_norms(network), images, classes, loss)
        total = gradient if total is None else total + gradient
        squares.append(float(gradient.square().sum()))
        sizes.append(len(images))
    if total is None or len(sizes) < 2 or len(set(sizes)) > 1:
        raise DataError(f"batch sizes {sizes}: the noise scale needs two batches or more, of one size")
    count = len(sizes)
    mean_square = float((total / count).square().sum())
    return noise_scale(math.fsum(squares) / count, mean_square, sizes[0], count * sizes[0])


def _compute_gradient(
    network: nn.Module, mode: AbstractContextManager[None], images: Tensor, classes: Tensor, loss: Loss
) -> Tensor:
    """∂loss/∂parameters as one vector in float64; zeros where a parameter has no part in the loss."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not parameters:
        raise ModelError(f"no parameter of {type(network).__name__} wants a gradient; call requires_grad_()")
    with torch.enable_grad(), mode:
        logits = compute_logits(network, images)
        value = loss(logits, classes.to(logits.device))
        gradients = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.flatten().double() for gradient in gradients])
