"""Samples of what the norms do while a network trains: an observer on the layers, one step in many.

A sampled step costs one more pass over each BatchNorm layer's input; renorm layers tell what they computed
anyway. Steps that are not sampled cost nothing.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from medseg_brn.networks.batch_renorm import BatchRenorm, RenormObservation
from medseg_brn.networks.operator import batch_statistics, compute_corrections
from medseg_brn.networks.recomputation import inside_backward
from medseg_brn.probes.layers import find_norm_layers
from medseg_brn.probes.statistics import as_tracked, compute_drift, is_centred

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
    batch is from the running statistics (MABN: √E[x²] in the place of σ, and no shift); renorm's
    `clip_rate_r`, `clip_rate_d`, `clipped_mass_r` (mean |ln r_raw - ln r|) and `clipped_mass_d`
    (mean |d_raw - d|) say how much of that its limits cut off; `statistics_drift` is how far the step moved
    the running statistics. Of a layer that is called several times in a step (gradient accumulation) the
    last call is sampled; the drift is that of the whole step.
    """

    def __init__(self, network: nn.Module, every: int) -> None:
        self._layers: dict[str, Any] = {
            name: layer
            for name, layer in find_norm_layers(network).items()
            if getattr(layer, "running_var", None) is not None
        }
        self._every = every
        self._handles: list[RemovableHandle] = []
        self._before: dict[str, tuple[Tensor, Tensor]] = {}
        self._found: dict[str, dict[str, Tensor]] = {}

    def before_step(self, step: int) -> None:
        """Begin to watch where `step` (from 1) is to be sampled."""
        if step % self._every:
            return
        for name, layer in self._layers.items():
            self._before[name] = layer.running_mean.clone(), layer.running_var.clone()
            if isinstance(layer, BatchRenorm):
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
            if name in self._found:
                samples += self._read(step, name)
        self._found.clear()
        self._before.clear()
        return samples + _average(samples)

    def _observe(self, name: str, seen: RenormObservation) -> None:
        self._found[name] = {
            "scale_departure": seen.r_raw.log().abs().mean(),
            "shift_departure": seen.d_raw.abs().mean(),
            "clip_rate_r": seen.r_clipped,
            "clip_rate_d": seen.d_clipped,
            "clipped_mass_r": (seen.r_raw.log() - seen.r.log()).abs().mean(),
            "clipped_mass_d": (seen.d_raw - seen.d).abs().mean(),
        }

    def _measure(self, name: str, layer: Any, inputs: tuple[Tensor, ...]) -> None:
        if inside_backward():
            return  # activation checkpointing repeats a pass; the statistics have taken it in by now
        mean, var = as_tracked(layer, *batch_statistics(inputs[0]))
        running = layer.running_mean.to(mean.dtype), layer.running_var.to(var.dtype)
        r_raw, d_raw = compute_corrections(mean, var, *running, layer.eps)
        self._found[name] = {"scale_departure": r_raw.log().abs().mean()}
        if is_centred(layer):
            self._found[name]["shift_departure"] = d_raw.abs().mean()

    def _read(self, step: int, name: str) -> list[Sample]:
        layer, found = self._layers[name], self._found[name]
        now = layer.running_mean, layer.running_var
        found["statistics_drift"] = compute_drift(*self._before[name], *now, eps=layer.eps)
        # In one tensor, as the device is waited for once for each that is read.
        values = torch.stack([value.double() for value in found.values()]).tolist()
        return [Sample(step, name, metric, value) for metric, value in zip(found, values, strict=True)]


def _average(samples: list[Sample]) -> list[Sample]:
    """Each metric's mean over the layers."""
    values: dict[tuple[int, str], list[float]] = {}
    for sample in samples:
        values.setdefault((sample.step, sample.metric), []).append(sample.value)
    return [
        Sample(step, EVERY_LAYER, metric, math.fsum(found) / len(found))
        for (step, metric), found in values.items()
    ]
