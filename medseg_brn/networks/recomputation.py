"""Recognizes passes that activation checkpointing repeats, so that they repeat what the first pass did.

`torch.utils.checkpoint` calls a layer twice for one batch: first as usual, and again within backward, to
recompute activations. A layer that carries state from batch to batch must then neither take the batch
in twice nor use the state that later batches left behind.

Nothing tells the second call which first call it repeats. But the batch does: a repeated pass has the
first one's batch statistics. Where several first passes had the same (one batch passed twice), autograd's
sequence numbers decide: backward works on a node of the region that it repeats, which is the region's
last where the region has a graph, and stands for the whole of it, before the first, where it has none.
"""

import weakref
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_PASSES_WITHOUT_GRAPH = 64
"""Passes kept where no graph tells how long they are needed; each is four to six vectors of C numbers."""


def inside_backward() -> bool:
    """Whether this thread runs a backward pass, so that a forward pass now is a repeated one."""
    return torch._C._current_graph_task_id() != -1


def may_be_repeated() -> bool:
    """Whether a pass now may lie in a checkpointed region.

    A region runs under hooks on saved tensors, or without gradient where it is `use_reentrant=True`.
    """
    under_hooks = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    return under_hooks or not torch.is_grad_enabled()


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class _Pass:
    """One training pass: what identifies it and what it corrected with."""

    mean: Tensor
    var: Tensor
    r: Tensor
    d: Tensor
    sequence_number: int


class FirstPasses:
    """The corrections of those training passes of one layer that backward may yet repeat."""

    def __init__(self) -> None:
        self._in_graphs: list[weakref.ref[_Pass]] = []
        self._without_graph: deque[_Pass] = deque(maxlen=_PASSES_WITHOUT_GRAPH)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return FirstPasses, ()  # a copy of the layer has made no passes

    def remember(self, output: Tensor, mean: Tensor, var: Tensor, r: Tensor, d: Tensor) -> None:
        """Keeps what the pass that made `output` corrected with, for as long as its graph lives."""
        node: Any = output.grad_fn
        if node is not None:
            first_pass = _Pass(mean, var, r, d, node._sequence_nr())
            node.metadata[self] = first_pass
            alive = [reference for reference in self._in_graphs if reference() is not None]
            self._in_graphs = [*alive, weakref.ref(first_pass)]
        elif not torch.is_grad_enabled():
            number = torch.autograd._get_sequence_nr()
            self._without_graph.append(_Pass(mean, var, r, d, number))

    def recall(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor] | None:
        """The r and d of the pass that a batch with these statistics repeats; None if there is none."""
        passes = self._passes_by_preference()
        if len(passes) < 2:
            return (passes[0].r, passes[0].d) if passes else None
        names = ("mean", "var", "r", "d")
        means, variances, r, d = (torch.stack([getattr(one, name) for one in passes]) for name in names)
        # On the device throughout, as reading the index would wait for it. argmin takes the first of equals.
        nearest = ((means - mean).abs() + (variances - var).abs()).sum(1).argmin().view(1)
        return r.index_select(0, nearest)[0], d.index_select(0, nearest)[0]

    def _passes_by_preference(self) -> list[_Pass]:
        """The passes that may be the one repeated, the most likely among equals first."""
        in_graphs = [first_pass for reference in self._in_graphs if (first_pass := reference()) is not None]
        node = torch._C._current_autograd_node()
        if node is None:
            return [*in_graphs, *self._without_graph]
        at = node._sequence_nr()
        before = [first_pass for first_pass in in_graphs if first_pass.sequence_number <= at]
        after = [first_pass for first_pass in self._without_graph if first_pass.sequence_number >= at]
        return [*sorted(before, key=lambda first_pass: -first_pass.sequence_number), *after]
