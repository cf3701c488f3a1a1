"""What the machine that is planned for has, and how fast it is: a small network, timed."""

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

from medseg_brn.config import NetworkConfig
from medseg_brn.planning.costs import count_work

# Large enough to be a network of the usual kind, small enough to take about a second on a slow CPU.
NETWORK = NetworkConfig(channels=(16, 48, 96), encoder_blocks=(1, 2, 2), decoder_blocks=(1, 2))
PATCH = (32, 32, 32)
BATCH_SIZE = 2
REPETITIONS = 6
# Where a GPU is planned for that is not there: a unit of work on a recent one (about 3e12 a second).
GPU_UNIT_SECONDS = 3e-13
GPU_MEMORY_BYTES = 8 * 10**9


@dataclass(frozen=True)
class Machine:
    """Where a run is planned to take place.

    Attributes:
        device: "cpu" or "cuda".
        precision: "bf16" or "fp32".
        cores: that this process may use.
        threads: of training.
        unit_seconds: of one unit of work, see `costs.py`.
        measured: whether that was measured here; if not, nothing that follows is.
        memory_bytes: that the training process may take (on a GPU: of the GPU) unless told otherwise.
    """

    device: str
    precision: str
    cores: int
    threads: int
    unit_seconds: float
    measured: bool
    memory_bytes: float
    name: str

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def examine_machine(device: str) -> Machine:
    """The machine for a device of "auto", "cpu" or "cuda"; time is measured where the device is here."""
    import torch

    from medseg_brn.inference.machine import available_memory_bytes, core_count, processor_name
    from medseg_brn.inference.precision import choose_device, choose_precision

    cores = core_count()
    if device == "cuda" and not torch.cuda.is_available():
        return Machine(
            "cuda", "bf16", cores, cores, GPU_UNIT_SECONDS, False, GPU_MEMORY_BYTES, "a GPU that is not here"
        )
    chosen = choose_device(device)
    dtype = choose_precision("auto", chosen)
    if chosen.type == "cuda":
        memory, name = 0.9 * torch.cuda.mem_get_info()[0], torch.cuda.get_device_name()
    else:
        memory, name = 0.7 * available_memory_bytes(), processor_name()
    return Machine(
        device=chosen.type,
        precision="bf16" if dtype == torch.bfloat16 else "fp32",
        cores=cores,
        threads=torch.get_num_threads(),
        unit_seconds=_time_unit(chosen, dtype),
        measured=True,
        memory_bytes=memory,
        name=name,
    )


def _time_unit(device: Any, dtype: Any) -> float:
    """Seconds of one unit of work: the least of a few training steps of a small network."""
    import torch

    from medseg_brn.models.architecture import build_network

    network = build_network(NETWORK, 1, 2).to(device)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # torch's stubs lack it
    optimizer = torch.optim.AdamW(network.parameters())
    image = torch.zeros(BATCH_SIZE, 1, *PATCH, device=device)
    least = math.inf
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            logits = network(image)
        logits.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        least = min(least, time.perf_counter() - start)
    return least / count_work(NETWORK, PATCH, BATCH_SIZE, 1, 2).units
