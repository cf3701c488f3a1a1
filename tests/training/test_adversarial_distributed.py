"""A discriminator in two processes: the same in both, and that of one process with all patches."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

from medseg_brn.cases.targets import Targets
from medseg_brn.config import AdversarialConfig, Experiment, NetworkConfig, TrainingConfig
from medseg_brn.patches.stream import PatchBatch
from medseg_brn.training.adversarial import make_adversary
from medseg_brn.training.distributed import Processes, join_processes
from medseg_brn.training.loop import run_steps
from medseg_brn.training.losses import make_loss
from medseg_brn.training.state import TrainingState, make_state

CPU = torch.device("cpu")
TARGETS = Targets(("background", "structure"))


def make_experiment(norm: str) -> Experiment:
    adversarial = AdversarialConfig(begin=0.0, channels=4, layers=1, norm=norm, weight=0.1)
    return Experiment(
        network=NetworkConfig(channels=(4, 8), norm="none"),
        training=TrainingConfig(steps=3, gradient_clip=None, learning_rate=0.01, adversarial=adversarial),
    )


def make_batch(numbers: list[int]) -> PatchBatch:
    """The same patch for both processes of a step, as the network's Dice pools: number // 2 tells it."""
    images = [torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(n // 2)) for n in numbers]
    image = torch.stack(images)
    return PatchBatch(image=image, label=(image > 0).long(), cases=[""] * len(numbers))


def train(norm: str, batches: list[PatchBatch], processes: Processes) -> TrainingState:
    experiment = make_experiment(norm)
    state = make_state(experiment, 1, 2, CPU)
    state.adversary = make_adversary(experiment, 1, TARGETS, CPU)
    run_steps(
        state,
        iter(batches),
        experiment,
        0,
        loss_function=make_loss(TARGETS),
        dtype=torch.float32,
        processes=processes,
    )
    return state


def train_in_process(rank: int, folder: str) -> None:
    with join_processes(CPU) as processes:
        for norm in ("none", "batch_renorm"):
            shift = 0 if norm == "none" else 7 * rank  # with renorm, each process has patches of its own
            state = train(norm, [make_batch([2 * step + rank + 2 * shift]) for step in range(3)], processes)
            torch.save(state.network.state_dict(), f"{folder}/{norm}_network_{rank}.pt")
            torch.save(state.adversary.discriminator.state_dict(), f"{folder}/{norm}_discriminator_{rank}.pt")


def find_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_two_processes_have_one_discriminator(tmp_path: Path):
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_port())}
    command = [sys.executable, __file__, str(tmp_path)]
    processes = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    assert [process.wait(300) for process in processes] == [0, 0]

    def load(name: str) -> list[dict]:
        return [torch.load(tmp_path / f"{name}_{rank}.pt", weights_only=True) for rank in range(2)]

    alone = train("none", [make_batch([2 * step, 2 * step + 1]) for step in range(3)], Processes())
    for name, module in (("network", alone.network), ("discriminator", alone.adversary.discriminator)):
        for key, value in module.state_dict().items():
            first, second = (state[key] for state in load(f"none_{name}"))
            assert torch.equal(first, second), key
            torch.testing.assert_close(first, value, rtol=1e-4, atol=1e-5)
    first, second = load("batch_renorm_discriminator")
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


if __name__ == "__main__":
    train_in_process(int(os.environ["RANK"]), sys.argv[1])
