"""Samples of what the norms do while a network trains: an observer on the layers, one step in many.

A sampled step costs one more pass over each BatchNorm layer's input; renorm layers tell what they computed
anyway. Steps that are not sampled cost nothing.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from medseg_brn.networks.batch_renorm import BatchRenorm, RenormObservation
from medseg_brn.networks.operator import batch_statistics, compute_corrections
from medseg_brn.probes.clipping import clip_rate_d, clip_rate_r, clipped_mass_d, clipped_mass_r
from medseg_brn.probes.layers import find_norm_layers
from medseg_brn.probes.statistics import statistics_drift

EVERY_LAYER = ""
"""The layer's name in samples that are means over all layers."""


@dataclass(frozen=True)
class Sample:
    """One measurement of one layer at one optimizer step (counted from 1)."""

    step: int
    layer: str
    metric: str
    value: float


class Watcher:
    """Watches the norms with running statistics of a network at every `every`-th step.

    Per layer: `scale_departure`, mean |ln(σ_B/σ)|, and `shift_departure`, mean |μ_B - μ|/σ, say how far the
    batch is from the running statistics; renorm's `clip_rate_r`, `clip_rate_d`, `clipped_mass_r`,
    `clipped_mass_d` say how much of that its limits cut off; `statistics_drift` is how far the step moved
    the running statistics. A layer that is called several times in a step is sampled at the last one.
    """

    def __init__(self, network: nn.Module, every: int) -> None:
        self._layers: dict[str, Any] = {
            name: layer
            for name, layer in find_norm_layers(network).items()
            if getattr(layer, "running_var", None) is not None
        }
        self._every = every
        self._handles: list[RemovableHandle] = []
        self._limits: dict[str, tuple[float, float]] = {}
        self._before: dict[str, tuple[Tensor, Tensor]] = {}
        self._corrections: dict[str, tuple[Tensor, Tensor]] = {}

    def before_step(self, step: int) -> None:
        """Begin to watch where `step` (from 1) is to be sampled."""
        if step % self._every:
            return
        for name, layer in self._layers.items():
            self._before[name] = layer.running_mean.clone(), layer.running_var.clone()
            if isinstance(layer, BatchRenorm):
                self._limits[name] = layer.limits()
                layer.observer = partial(self._observe, name)
            else:
                self._handles.append(layer.register_forward_pre_hook(partial(self._measure, name)))

    def after_step(self, step: int) -> list[Sample]:
        """What was seen of `step`; empty where it was not sampled."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        samples = []
        for name, layer in self._layers.items():
            if isinstance(layer, BatchRenorm):
                layer.observer = None
            if name in self._corrections:
                samples += [Sample(step, name, metric, value) for metric, value in self._describe(name)]
        self._corrections.clear()
        self._before.clear()
        self._limits.clear()
        return samples + _average(samples)

    def _observe(self, name: str, observation: RenormObservation) -> None:
        self._corrections[name] = observation.r_raw, observation.d_raw

    def _measure(self, name: str, layer: Any, inputs: tuple[Tensor, ...]) -> None:
        mean, var = batch_statistics(inputs[0])
        running = layer.running_mean.to(mean.dtype), layer.running_var.to(var.dtype)
        self._corrections[name] = compute_corrections(mean, var, *running, layer.eps)

    def _describe(self, name: str) -> Iterator[tuple[str, float]]:
        r_raw, d_raw = self._corrections[name]
        layer = self._layers[name]
        yield "scale_departure", float(r_raw.log().abs().mean())
        yield "shift_departure", float(d_raw.abs().mean())
        yield (
            "statistics_drift",
            statistics_drift(*self._before[name], layer.running_mean, layer.running_var, eps=layer.eps),
        )
        if name in self._limits:
            r_max, d_max = self._limits[name]
            yield "clip_rate_r", clip_rate_r(r_raw, r_max)
            yield "clip_rate_d", clip_rate_d(d_raw, d_max)
            yield "clipped_mass_r", clipped_mass_r(r_raw, r_max)
            yield "clipped_mass_d", clipped_mass_d(d_raw, d_max)


def _average(samples: list[Sample]) -> list[Sample]:
    """Each metric's mean over the layers."""
    values: dict[tuple[int, str], list[float]] = {}
    for sample in samples:
        values.setdefault((sample.step, sample.metric), []).append(sample.value)
    return [
        Sample(step, EVERY_LAYER, metric, math.fsum(found) / len(found))
        for (step, metric), found in values.items()
    ]
