"""Workers: processes of this machine that train together, started here."""

import tempfile
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.multiprocessing import ProcessExitedException

from medseg_brn.errors import TrainingError
from medseg_brn.studies.distributed.counting import Traffic
from medseg_brn.studies.distributed.shards import draw_cohort
from medseg_brn.studies.distributed.training import Trial, TrialResult, count_traffic, train
from medseg_brn.training.distributed import Processes

Counted = tuple[Trial, int, Traffic]
"""A trial of a few steps, the number of workers, and what the first of them sent."""


def choose_backend(workers: int) -> str:
    """`nccl` where each worker has a GPU of its own, else `gloo`."""
    return "nccl" if torch.cuda.device_count() >= workers else "gloo"


def train_all(
    trials: Sequence[Trial], workers: int, on_result: Callable[[TrialResult | Counted], None]
) -> None:
    """Do all trials with so many workers, of one thread each, which then end.

    Args:
        trials: one after the other.
        workers: processes, at least 2.
        on_result: told of each result when it is there.

    Raises:
        TrainingError: a worker was killed.
    """
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (workers, str(Path(folder) / "meeting_place"), list(trials), queue)
        started = torch.multiprocessing.spawn(_work, args=arguments, nprocs=workers, join=False)
        ended = False
        while not ended:
            try:
                ended = started.join(timeout=0.2)
            except ProcessExitedException as error:
                raise TrainingError(
                    f"worker {error.error_index} of {workers} was killed, probably for want of memory"
                    f" ({error}); free some, or lower --scale"
                ) from None
            while not queue.empty():
                on_result(queue.get())


def _work(rank: int, workers: int, meeting_place: str, trials: list[Trial], queue: Any) -> None:
    """One worker's life."""
    torch.set_num_threads(1)
    # Of the small head's gradient, which is told in every worker and changes nothing.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    backend = choose_backend(workers)
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend,
        init_method=f"file://{meeting_place}",
        rank=rank,
        world_size=workers,
        timeout=timedelta(minutes=10),
    )
    processes = Processes(rank, workers, rank)
    draw = lru_cache(maxsize=1)(draw_cohort)
    try:
        for trial in trials:
            cohort = draw(trial.seed, trial.repetition)
            if trial.counted:
                found: Any = (trial, workers, count_traffic(trial, cohort, processes, device))
            else:
                found = train(trial, cohort, processes, device)
            if processes.is_first:
                queue.put(found)
    finally:
        dist.destroy_process_group()
