"""Several real processes: their gradients are those of one, and a run under torchrun."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from medseg_brn.cases.targets import Targets
from medseg_brn.config import Experiment, NetworkConfig, TrainingConfig
from medseg_brn.patches.stream import PatchBatch
from medseg_brn.training.distributed import Processes, join_processes
from medseg_brn.training.loop import run_steps
from medseg_brn.training.losses import make_loss
from medseg_brn.training.state import make_state

CPU = torch.device("cpu")
LOSS = make_loss(Targets(("background", "structure")))
# Without a norm, and with patches so alike that the Dice of two is the mean of their Dices, shares add up.
EXPERIMENT = Experiment(
    network=NetworkConfig(channels=(4, 8), norm="none"),
    training=TrainingConfig(steps=3, gradient_clip=None, learning_rate=0.01),
)


def batch_of(numbers: list[int]) -> PatchBatch:
    """The same patch for both processes of a step: number // 2 tells it."""
    images = [torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(n // 2)) for n in numbers]
    image = torch.stack(images)
    return PatchBatch(image=image, label=(image > 0).long(), cases=[""] * len(numbers))


def find_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_twice(folder: Path) -> None:
    """Run this file as two processes that find each other."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_port())}
    command = [sys.executable, __file__, str(folder)]
    processes = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    assert [process.wait(300) for process in processes] == [0, 0]


def test_two_processes_train_one_model(tiny_config, tmp_path, one_thread):
    run = tmp_path / "run"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "medseg_brn", "train", str(tiny_config), "-o", str(run), "-s", "training.steps=6"),
    ]
    done = subprocess.run(command, env=one_thread, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert load_file(run / "model" / "model.safetensors")
    assert (run / "validation.json").is_file()
    assert len(Path(run / "metrics.csv").read_text().splitlines()) == 1 + 6
    again = subprocess.run(
        [*command, "--resume"], env=one_thread, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    alone = subprocess.run(
        [sys.executable, *command[command.index("2") + 1 :], "--resume"],
        env=one_thread,
        capture_output=True,
        text=True,
        check=False,
    )
    assert alone.returncode == 1
    assert "a run with 2 processes" in alone.stderr


def train_in_process(rank: int, folder: str) -> None:
    with join_processes(CPU) as processes:
        state = make_state(EXPERIMENT, 1, 2, CPU)
        batches = [batch_of([2 * step + rank]) for step in range(3)]
        run_steps(
            state, iter(batches), EXPERIMENT, 0, loss_function=LOSS, dtype=torch.float32, processes=processes
        )
    torch.save(state.network.state_dict(), f"{folder}/{rank}.pt")


def test_two_processes_with_a_patch_each_are_one_with_two(tmp_path):
    run_twice(tmp_path)
    state = make_state(EXPERIMENT, 1, 2, CPU)
    batches = [batch_of([2 * step, 2 * step + 1]) for step in range(3)]
    run_steps(
        state, iter(batches), EXPERIMENT, 0, loss_function=LOSS, dtype=torch.float32, processes=Processes()
    )
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name, value in state.network.state_dict().items():
        assert torch.equal(found[0][name], found[1][name]), name
        torch.testing.assert_close(found[0][name], value, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    train_in_process(int(os.environ["RANK"]), sys.argv[1])
