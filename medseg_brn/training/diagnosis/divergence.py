"""Where a loss or gradient that is not finite comes from: the step's passes again, watched layer by layer."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medseg_brn.networks.domain_norm import set_sites
from medseg_brn.patches.stream import PatchBatch
from medseg_brn.training.losses import Loss

Kind = Literal[
    "input",
    "weights",
    "statistics",
    "precision",
    "overflow",
    "loss",
    "gradient",
    "norm",
    "discriminator",
    "not repeated",
]

_LOWER = "go on from the last checkpoint with --resume and a lower training.learning_rate or"
REMEDIES: dict[Kind, str] = {
    "input": "Look at these cases with `medseg-brn check` and correct or remove their images; if they are"
    " sound, train with patches.augmentation=null to see whether an augmentation makes the values",
    "weights": f"An earlier step made them so: {_LOWER} training.gradient_clip; if the checkpoint holds them"
    " already, start anew with either",
    "statistics": "Look at these cases with `medseg-brn check` for extreme values, and correct or remove"
    " their images; if they are sound, start anew with a lower training.learning_rate or another norm",
    "precision": "The number format is too narrow for these values: start a new run with"
    " training.precision=fp32",
    "overflow": f"The features have grown without bounds: {_LOWER} training.gradient_clip, or start anew"
    " with network.norm=batch_renorm where there is no norm",
    "loss": f"The logits have grown too large for the loss: {_LOWER} training.gradient_clip",
    "gradient": f"The backward pass overflows: {_LOWER} training.gradient_clip; in bf16, a new run with"
    " training.precision=fp32",
    "norm": f"Every gradient is finite, but not their squares' sum: {_LOWER} training.gradient_clip",
    "discriminator": "Start anew with a lower training.adversarial.learning_rate or"
    " training.adversarial.weight, or another training.adversarial.norm",
    "not repeated": "Where several processes train, the message of another one may tell more; else look at"
    f" these cases with `medseg-brn check`, or {_LOWER} training.gradient_clip",
}


@dataclass(frozen=True)
class Cause:
    """What is not finite, and in which layer it is so first."""

    kind: Kind
    found: str
    """What was seen, in words."""
    layer: str | None = None
    """The module's path in the network, None where no layer is to blame."""
    cases: tuple[str, ...] = ()
    """The cases whose patches show it; empty where they cannot be told from the step's other cases."""


@dataclass(frozen=True)
class Divergence:
    """A step that the optimizer did not make, and why."""

    step: int
    loss: float
    gradient_norm: float
    cases: tuple[str, ...]
    """All cases of the step's patches, or those that show the cause, where they can be told."""
    cause: Cause

    def message(self) -> str:
        """Step, numbers, cases, place, remedy."""
        numbers = f"Loss {self.loss} and gradient norm {self.gradient_norm} at step {self.step}"
        both = math.isfinite(self.loss) and math.isfinite(self.gradient_norm)
        others = "the discriminator's" if self.cause.kind == "discriminator" else "running statistics"
        return (
            f"{numbers} are {f'finite, but {others} are not' if both else 'not both finite'}; its"
            f" patches came from {', '.join(self.cases)}. {self.cause.found}."
            f" {REMEDIES[self.cause.kind]}"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; numbers that are not finite as text."""
        return {
            "step": self.step,
            "loss": _tell(self.loss),
            "gradient_norm": _tell(self.gradient_norm),
            **{key: value for key, value in asdict(self.cause).items() if key != "cases"},
            "cases": list(self.cases),
            "remedy": REMEDIES[self.cause.kind],
        }


def trace_divergence(
    network: nn.Module, batches: Sequence[PatchBatch], loss_function: Loss, dtype: torch.dtype
) -> Cause:
    """The first thing in a step that is not finite, in the order in which it is computed.

    Input patches, then weights as they are before the step, then each layer's output, the loss, and the
    gradients in the order of the backward pass. The passes are made again, in training mode; the network's
    buffers and gradients are afterwards what they were before.

    Args:
        network: as it is when the optimizer was about to step.
        batches: all forward passes of the step.
        loss_function: what the step minimizes.
        dtype: the number format of the features.
    """
    found = _check_inputs(batches) or _check_weights(network)
    if found is not None:
        return found
    if _talks_to_others(network):
        return Cause("not repeated", "Inputs and weights of this process are finite")
    try:
        with _restored(network):
            return _repeat_step(network, batches, loss_function, dtype)
    except torch.OutOfMemoryError:
        return Cause("not repeated", "Inputs and weights are finite; memory did not suffice to look further")


@torch.no_grad()
def find_spoilt_statistics(network: nn.Module, batches: Sequence[PatchBatch]) -> Cause | None:
    """The first running statistic that is not finite after a step's passes, or None.

    Renorm normalizes by statistics of the steps before, so that a step whose values spoil them may have a
    finite loss and gradient, and the next step's cases would be accused. One maximum over all buffers tells.

    Args:
        network: after the passes of the step.
        batches: of the step.
    """
    buffers = {name: buffer for name, buffer in network.named_buffers() if buffer.is_floating_point()}
    if not buffers or math.isfinite(nn.utils.get_total_norm(buffers.values(), math.inf)):
        return None
    path = next(name for name, buffer in buffers.items() if not _is_finite(buffer))
    layer, _, name = path.rpartition(".")
    largest, case = max(
        (float(image.abs().max()), case)
        for batch in batches
        for case, image in zip(batch["cases"], batch["image"], strict=True)
    )
    return Cause(
        "statistics",
        f"The passes of this step have spoilt the {name} of {_say(network, layer)}; the largest input value"
        f" is {largest:.3g}, of {case}",
        layer,
    )


def _check_inputs(batches: Sequence[PatchBatch]) -> Cause | None:
    cases: dict[str, int] = {}
    for batch in batches:
        for case, image in zip(batch["cases"], batch["image"], strict=True):
            broken = int((~image.isfinite()).sum())
            if broken:
                cases[case] = cases.get(case, 0) + broken
    if not cases:
        return None
    told = ", ".join(f"{count} voxels of {case}" for case, count in cases.items())
    return Cause("input", f"The input patches themselves are not finite: {told}", None, tuple(cases))


def _check_weights(network: nn.Module) -> Cause | None:
    broken = [name for name, weight in network.named_parameters() if not _is_finite(weight)]
    if not broken:
        return None
    layer, _, weight = broken[0].rpartition(".")
    more = f" (and {len(broken) - 1} more tensors)" if len(broken) > 1 else ""
    return Cause(
        "weights", f"Before the step, the {weight} of {_say(network, layer)} was not finite{more}", layer
    )


def _talks_to_others(network: nn.Module) -> bool:
    """Whether a pass waits for other processes, which need not make it again."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return together and any(isinstance(layer, nn.SyncBatchNorm) for layer in network.modules())


def _repeat_step(
    network: nn.Module, batches: Sequence[PatchBatch], loss_function: Loss, dtype: torch.dtype
) -> Cause:
    for batch in batches:
        cause = _repeat(network, batch, loss_function, dtype, len(batches))
        if cause is not None:
            return cause
    squares = [float(g.square().sum()) for p in network.parameters() if (g := p.grad) is not None]
    if not math.isfinite(math.fsum(squares)):
        return Cause("norm", "All gradients are finite, but their norm overflows")
    return Cause("not repeated", "The same passes, made again, are finite from the input to the gradient")


def _repeat(
    network: nn.Module, batch: PatchBatch, loss_function: Loss, dtype: torch.dtype, passes: int
) -> Cause | None:
    """One forward and backward pass, watched."""
    device = next(network.parameters()).device
    image = batch["image"].to(device, memory_format=torch.channels_last_3d)
    set_sites(network, batch.get("sites", ()))
    with _watch(network) as seen:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            logits = network(image)
        if seen.output is not None:
            layer = seen.output[0]
            wide = (
                seen.kind == "overflow" and dtype != torch.float32 and _is_finite_in_float32(network, image)
            )
            name = str(dtype).removeprefix("torch.")
            return Cause(
                "precision" if wide else seen.kind,
                f"The first output that is not finite is that of {_say(network, layer)}: {seen.output[1]}"
                + (f"; in float32 every layer's output is finite, so {name} overflows" if wide else ""),
                layer,
            )
        loss = loss_function(logits, batch["label"].to(device))
        finest = logits if isinstance(logits, Tensor) else logits[0]
        if not _is_finite(loss):
            largest = float(finest.detach().abs().max())
            return Cause(
                "loss", f"All layers' outputs are finite (logits up to {largest:.3g}), the loss is not"
            )
        (loss / passes).backward()
    if seen.gradient is None:
        return None
    what, layer = seen.gradient
    return Cause(
        "gradient",
        f"Forward pass and loss are finite; the first gradient that is not is that of {what} of"
        f" {_say(network, layer)}",
        layer,
    )


class _Seen:
    """What hooks on the layers met first that is not finite."""

    def __init__(self) -> None:
        self.output: tuple[str, str] | None = None
        """Layer, and how much of its output."""
        self.kind: Kind = "overflow"
        self.gradient: tuple[str, str] | None = None
        """What, and of which layer."""

    def take_output(self, name: str, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """A forward hook."""
        if not isinstance(output, Tensor):
            return
        if self.output is None and not _is_finite(output):
            count = int((~output.isfinite()).sum())
            values = [x for x in inputs if isinstance(x, Tensor)]
            # an activation in place has written over its input
            overwritten = any(x.data_ptr() == output.data_ptr() for x in values)
            largest = max((float(x.detach().abs().max()) for x in values), default=math.nan)
            told = "" if overwritten else f", its inputs being up to {largest:.3g}"
            weights = [float(weight.detach().abs().max()) for weight in layer.parameters()]
            told += f" and its weights up to {max(weights):.3g}" if weights and told else ""
            self.output = name, f"{count} of {output.numel()} values{told}"
            broken = [key for key, buffer in layer.named_buffers() if not _is_finite(buffer)]
            if broken and math.isfinite(largest):
                self.output = name, f"its {broken[0]} is not finite"
                self.kind = "statistics"
        if output.requires_grad:
            output.register_hook(lambda gradient: self.take_gradient("the output", name, gradient))

    def take_gradient(self, what: str, name: str, gradient: Tensor) -> None:
        """A hook on a tensor."""
        if self.gradient is None and not _is_finite(gradient):
            self.gradient = what, name


@contextmanager
def _watch(network: nn.Module) -> Iterator[_Seen]:
    """What passes within the block meet, by hooks on the layers without layers of their own."""
    seen = _Seen()
    handles = []
    for name, layer in network.named_modules():
        if next(layer.children(), None) is not None:
            continue

        def hook(layer: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
            seen.take_output(name, layer, inputs, output)

        handles.append(layer.register_forward_hook(hook))
    for path, weight in network.named_parameters():
        if weight.requires_grad:
            layer_name, _, what = path.rpartition(".")

            def listen(gradient: Tensor, what: str = f"the {what}", name: str = layer_name) -> None:
                seen.take_gradient(what, name, gradient)

            handles.append(weight.register_hook(listen))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _restored(network: nn.Module) -> Iterator[None]:
    """Whatever passes do to buffers and gradients within the block is undone; it begins without gradients."""
    gradients = [(weight, weight.grad) for weight in network.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    for weight, _ in gradients:
        weight.grad = None
    try:
        yield
    finally:
        for weight, gradient in gradients:
            weight.grad = gradient
        for buffer, value in buffers:
            buffer.copy_(value)


@torch.no_grad()
def _is_finite_in_float32(network: nn.Module, image: Tensor) -> bool:
    with _watch(network) as seen:
        network(image)
    return seen.output is None


def _is_finite(values: Tensor) -> bool:
    return bool(values.isfinite().all())


def _say(network: nn.Module, layer: str) -> str:
    """A layer's path and class: `encoder.1.0.0 (Conv3d)`."""
    return f"{layer} ({type(network.get_submodule(layer)).__name__})"


def _tell(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
