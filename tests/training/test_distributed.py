"""Several processes: statistics pooled as mixtures, and a run under torchrun with real processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from medseg_brn.cases.targets import Targets
from medseg_brn.config import Experiment, NetworkConfig, TrainingConfig
from medseg_brn.patches.stream import PatchBatch
from medseg_brn.training.distributed import Processes, StatisticsMerge, join_processes
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


def run_twice(work: str, folder: Path) -> None:
    """Run this file as two processes that find each other, each doing `work`."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_port())}
    command = [sys.executable, __file__, work, str(folder)]
    processes = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    assert [process.wait(300) for process in processes] == [0, 0]


def merge_in_process(rank: int, folder: str) -> None:
    layers = nn.Sequential(nn.BatchNorm3d(2), nn.BatchNorm3d(1))
    # process 0 saw the values -1, 1 in channel 0; process 1 saw 3, 5
    layers[0].running_mean.copy_(torch.tensor([0.0, 7.0]) if rank == 0 else torch.tensor([4.0, 7.0]))
    layers[0].running_var.copy_(torch.tensor([1.0, 2.0]))
    layers[1].running_mean.fill_(rank)
    with join_processes(torch.device("cpu")) as processes:
        merge = StatisticsMerge([layers], processes)
        merge.start()
        merge.finish()
    torch.save(layers.state_dict(), f"{folder}/{rank}.pt")


def test_statistics_become_those_of_the_pooled_values(tmp_path):
    run_twice("merge", tmp_path)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    pooled = torch.tensor([-1.0, 1.0, 3.0, 5.0])
    for state in found:
        assert state["0.running_mean"].tolist() == [pooled.mean().item(), 7.0]
        assert state["0.running_var"].tolist() == pytest.approx([pooled.var(unbiased=False).item(), 2.0])
        assert state["1.running_mean"].tolist() == [0.5]
        assert state["1.running_var"].tolist() == [1.25]


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
    run_twice("train", tmp_path)
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
    {"merge": merge_in_process, "train": train_in_process}[sys.argv[1]](int(os.environ["RANK"]), sys.argv[2])
