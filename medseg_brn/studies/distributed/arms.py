"""What is compared: norms, how workers share their statistics, and how scans are shared among the workers."""

from dataclasses import dataclass
from typing import Literal

Shards = Literal["iid", "skewed"]
SHARDS: tuple[Shards, ...] = ("iid", "skewed")


@dataclass(frozen=True)
class Arm:
    """One way to normalize in data-parallel training."""

    name: str
    norm: Literal["batch", "batch_renorm"]
    merge_every: int | None = None
    """Steps between merges of the running statistics; None merges them at the end only."""
    synchronized: bool = False
    """Whether every batch is normalized by the statistics of all workers' batches together."""


LOCAL_BATCH = Arm("local BatchNorm", "batch")
SYNC_BATCH = Arm("SyncBatchNorm", "batch", synchronized=True)
LOCAL_RENORM = Arm("local renorm", "batch_renorm")
MERGED_1 = Arm("renorm, merged every step", "batch_renorm", merge_every=1)
MERGED_10 = Arm("renorm, merged every 10 steps", "batch_renorm", merge_every=10)
ARMS = (LOCAL_BATCH, SYNC_BATCH, LOCAL_RENORM, MERGED_1, MERGED_10)
MERGED = (MERGED_1, MERGED_10)
