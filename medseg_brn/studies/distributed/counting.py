"""Counts what workers say to each other, below every library: at torch's own collective operators."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What each collective sends is this argument of its operator; the others are results and options.
_SENT = {"allgather_": 1, "_allgather_base_": 1}


@dataclass
class Traffic:
    """Collectives that one worker took part in, and the bytes that it handed over to them."""

    collectives: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, size: int) -> None:
        """Count one collective of `size` bytes."""
        self.collectives[name] = self.collectives.get(name, 0) + 1
        self.bytes[name] = self.bytes.get(name, 0) + size

    @property
    def total_collectives(self) -> int:
        """All of them."""
        return sum(self.collectives.values())

    @property
    def total_bytes(self) -> int:
        """Of all collectives."""
        return sum(self.bytes.values())


class TrafficCounter(TorchDispatchMode):
    """While it is entered, counts the collectives of this worker, those of its gradients' averaging too.

    A collective is what it was without the counter; its bytes are those of the tensors that the worker hands
    over, however many copies of them the network carries.
    """

    def __init__(self) -> None:
        super().__init__()
        self.traffic = Traffic()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count, then do what was asked for."""
        if func.namespace == "c10d":
            name = func._schema.name.removeprefix("c10d::")
            sent = [leaf for leaf in tree_leaves(args[_SENT.get(name, 0)]) if isinstance(leaf, Tensor)]
            self.traffic.add(name, sum(tensor.numel() * tensor.element_size() for tensor in sent))
        return func(*args, **(kwargs or {}))
