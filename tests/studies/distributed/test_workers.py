"""Real workers: synchronized batches are one batch, messages are counted, the toolkit's loop trains."""

import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from medseg_brn.networks.unet3d import UNet3d
from medseg_brn.studies.distributed.arms import (
    ARMS,
    LOCAL_BATCH,
    LOCAL_RENORM,
    MERGED_1,
    MERGED_10,
    SYNC_BATCH,
)
from medseg_brn.studies.distributed.counting import TrafficCounter
from medseg_brn.studies.distributed.study import list_trials
from medseg_brn.studies.distributed.sync_batch_norm import synchronize_batch_norms
from medseg_brn.studies.distributed.training import Trial
from medseg_brn.studies.distributed.workers import train_all

WORKERS = 2


def make_layers() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4, momentum=0.3), nn.Conv3d(4, 3, 1))
    nn.init.uniform_(network[1].weight, 0.5, 2)
    nn.init.normal_(network[1].bias)
    return network.double()


def draw_inputs() -> list[torch.Tensor]:
    """Batches of 1 and 2 items, so that the workers' batches differ in size too."""
    generator = torch.Generator().manual_seed(1)
    return [
        (rank + 1) * torch.randn(rank + 1, 2, 5, 4, 6, generator=generator).double() + rank
        for rank in range(WORKERS)
    ]


def in_worker(rank: int, folder: str) -> None:
    """What synchronized layers compute of this worker's share, and what is sent meanwhile."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORKERS)
    network = make_layers()
    synchronize_batch_norms(network, torch.device("cpu"))
    image = draw_inputs()[rank].requires_grad_()
    with TrafficCounter() as counter:
        output = network(image)
        output.square().sum().backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    wrapped = DistributedDataParallel(nn.Linear(5, 7))
    with TrafficCounter() as of_gradients:
        wrapped(torch.randn(2, 5)).sum().backward()
        work = dist.all_reduce(torch.zeros(10, dtype=torch.float64), async_op=True)
        work.wait()
    found = {
        "output": output.detach(),
        "image": image.grad,
        "gradients": gradients,
        "buffers": dict(network[1].named_buffers()),
        "traffic": vars(counter.traffic),
        "of gradients": vars(of_gradients.traffic),
    }
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("workers")
    # This file itself is what each worker runs (see its end): a spawned one could not import it.
    commands = [[sys.executable, __file__, str(rank), str(folder)] for rank in range(WORKERS)]
    workers = [subprocess.Popen(command) for command in commands]
    assert [worker.wait(timeout=120) for worker in workers] == [0] * WORKERS
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORKERS)]


def test_a_synchronized_batch_is_the_workers_batches_in_one(found):
    network = make_layers()
    image = torch.cat(draw_inputs()).requires_grad_()
    output = network(image)
    output.square().sum().backward()
    torch.testing.assert_close(torch.cat([each["output"] for each in found]), output.detach())
    torch.testing.assert_close(torch.cat([each["image"] for each in found]), image.grad)
    for index, parameter in enumerate(network.parameters()):
        torch.testing.assert_close(sum(each["gradients"][index] for each in found), parameter.grad)
    for each in found:
        torch.testing.assert_close(each["buffers"], dict(network[1].named_buffers()))


def test_a_synchronized_layer_sends_two_messages(found):
    channels, bytes_each = 4, 8
    for each in found:
        assert each["traffic"]["collectives"] == {"allgather_": 1, "allreduce_": 1}
        assert each["traffic"]["bytes"] == {
            "allgather_": (2 * channels + 1) * bytes_each,
            "allreduce_": 2 * channels * bytes_each,
        }


def test_the_gradients_messages_are_counted_too(found):
    for each in found:
        # a layer's 5 · 7 + 7 float32 gradients in one bucket, and ten float64 numbers
        assert each["of gradients"]["collectives"] == {"allreduce_": 2}
        assert each["of gradients"]["bytes"] == {"allreduce_": 42 * 4 + 80}


def test_a_synchronized_network_keeps_parameters_and_names():
    network = UNet3d(1, 2, (4, 8), norm="batch")
    parameters, names = list(network.parameters()), list(network.state_dict())
    synchronize_batch_norms(network, torch.device("cpu"))
    assert all(one is other for one, other in zip(network.parameters(), parameters, strict=True))
    assert list(network.state_dict()) == names
    assert not any(type(layer) is nn.BatchNorm3d for layer in network.modules())


@pytest.mark.slow
def test_workers_train_and_are_watched():
    trials = [trial for trial in list_trials(0, 1, 10) if trial.counted or trial.shards == "skewed"]
    assert len(trials) == 2 * len(ARMS)
    done: list = []
    train_all(trials, 2, done.append)
    traffic = {trial.arm: counted for trial, _, counted in done[: len(ARMS)]}
    results = {result.trial.arm: result for result in done[len(ARMS) :]}
    norm_layers = 8
    extra = {arm: traffic[arm].total_collectives - traffic[LOCAL_BATCH].total_collectives for arm in ARMS}
    assert extra == {
        LOCAL_BATCH: 0,
        LOCAL_RENORM: 0,
        SYNC_BATCH: 10 * 2 * norm_layers,
        MERGED_1: 10,
        MERGED_10: 1,
    }
    channels = 6 + 6 + 12 + 12 + 24 + 24 + 12 + 6
    merged = traffic[MERGED_10].total_bytes - traffic[LOCAL_BATCH].total_bytes
    assert merged == (2 * channels + 2 * norm_layers) * 4
    for arm, result in results.items():
        assert 0 <= result.dice <= 1
        assert result.watched_steps == [5, 10]
        assert result.divergence_after[1] == 0  # the last step merges in every arm
        assert (result.divergence_before[0] == 0) == arm.synchronized
    assert results[MERGED_1].divergence_after == [0, 0]
    assert results[LOCAL_RENORM].divergence_before[1] > results[MERGED_1].divergence_before[1] > 0
    assert results[SYNC_BATCH].dice == results[SYNC_BATCH].dice_own


def test_all_arms_of_a_repetition_start_alike():
    seeds = {Trial(arm, "iid", 4, 1, 10).experiment.seed for arm in ARMS}
    assert len(seeds) == 1
    assert seeds != {Trial(LOCAL_BATCH, "iid", 5, 1, 10).experiment.seed}


if __name__ == "__main__":
    in_worker(int(sys.argv[1]), sys.argv[2])
