"""Short timed trials of a typical convolution: what is faster here, which number format, which layout."""

import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from medseg_brn.inference.lowering import lower
from medseg_brn.networks.unet3d import Size3

LayoutName = Literal["contiguous", "channels_last"]

LAYOUTS: dict[LayoutName, torch.memory_format] = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last_3d,
}
CHANNELS = 32
# A tile as inference takes them: its features leave the caches, as they do there. And a short one.
TYPICAL_TILE = (16, 64, 64)
SHORT_TILE = (8, 32, 32)
ROUNDS = 6


@dataclass(frozen=True)
class Way:
    """A way to compute a convolution."""

    dtype: torch.dtype
    layout: LayoutName


@functools.cache
def time_formats(device: torch.device) -> dict[torch.dtype, float]:
    """Return the seconds of a short convolution in fp32 and in bf16, channels last as inference computes.

    It takes some tens of milliseconds, once per process and device, so that the answer stays the same.
    """
    ways = [Way(dtype, "channels_last") for dtype in (torch.float32, torch.bfloat16)]
    return {way.dtype: seconds for way, seconds in time_ways(device, ways, SHORT_TILE, 0.1).items()}


def time_ways(
    device: torch.device, ways: Sequence[Way], tile: Size3 = TYPICAL_TILE, enough_seconds: float = 1.5
) -> dict[Way, float]:
    """Return the seconds that one convolution of `CHANNELS` channels, kernel 3, takes in each way.

    What else the machine does must not decide. Hence the ways take turns, the least of several rounds
    counts, and one thread computes: several that wait for each other on busy cores took 20 ms for a
    convolution of 2 ms, in whatever format.

    Args:
        device: where to compute.
        ways: what to compare.
        tile: voxels along each axis.
        enough_seconds: no round starts later, except the first.

    Returns:
        The least seconds of each way; infinite where torch refuses to compute it.
    """
    best = dict.fromkeys(ways, math.inf)
    # The caller's random numbers stay what they would have been: a seeded training may call this.
    with torch.random.fork_rng(devices=[]), torch.inference_mode(), _single_thread():
        calls = {way: _prepare(device, way, tile) for way in ways}
        for call in calls.values():
            _time(call, device)  # the first call looks for a kernel
        end = time.perf_counter() + enough_seconds
        for _ in range(ROUNDS):
            for way, call in calls.items():
                best[way] = min(best[way], _time(call, device))
            if time.perf_counter() > end:
                break
    return best


def _prepare(device: torch.device, way: Way, tile: Size3) -> Callable[[], Tensor]:
    """A convolution as a lowered network has it, on a tile of random features."""
    layout = LAYOUTS[way.layout]
    network = nn.Sequential(nn.Conv3d(CHANNELS, CHANNELS, kernel_size=3, padding=1))
    lowered = lower(network, device, way.dtype).to(memory_format=layout)
    features = torch.rand(1, CHANNELS, *tile).to(device, way.dtype, memory_format=layout)
    return functools.partial(lowered, features)


def _time(call: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds of one call; infinite where torch refuses it, as oneDNN does what it has no kernel for."""
    start = time.perf_counter()
    try:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except RuntimeError:
        return math.inf
    return time.perf_counter() - start


@contextmanager
def _single_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
