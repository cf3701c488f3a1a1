"""Merges of running statistics in training with two real processes, against news pooled here."""

import copy
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from medseg_brn.cases.targets import Targets
from medseg_brn.config import Experiment, NetworkConfig, TrainingConfig
from medseg_brn.networks.normalization import make_normalization
from medseg_brn.patches.stream import PatchBatch
from medseg_brn.training.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from medseg_brn.training.distributed import Processes, join_processes
from medseg_brn.training.loop import run_steps
from medseg_brn.training.losses import make_loss
from medseg_brn.training.state import TrainingState, make_state
from medseg_brn.training.statistics_merge import StatisticsMerge

CPU = torch.device("cpu")
STEPS = 7
OPTIONS: dict[str, dict[str, Any]] = {
    "every step": {"checkpoint_every": 5},
    "every third": {"merge_statistics_every": 3, "checkpoint_every": 5},
    "every third, averaged": {"merge_statistics_every": 3, "checkpoint_every": 5, "ema_decay": 0.9},
    "every third, two passes": {"merge_statistics_every": 3, "checkpoint_every": 5, "accumulation": 2},
    "every third, computed twice": {
        "merge_statistics_every": 3,
        "checkpoint_every": 5,
        "activation_checkpointing": True,
    },
    "never": {"merge_statistics_every": None, "validate_every": 4},
    "frozen": {"merge_statistics_every": 3, "freeze_statistics_at": 0.5},
}
MERGES = {
    "every step": [1, 2, 3, 4, 5, 6, 7],
    "never": [4, 7],
    "frozen": [3, 4],
    **{name: [3, 5, 6, 7] for name in OPTIONS if name.startswith("every third")},
}


def make_experiment(norm: Any, options: dict[str, Any]) -> Experiment:
    return Experiment(
        network=NetworkConfig(channels=(4, 8), norm=norm, momentum=0.1, renorm_schedule=(0, 0, 0)),
        training=TrainingConfig(**{"steps": STEPS, "ema_decay": None, "warmup_fraction": 0, **options}),
    )


def draw_batches(rank: int, first: int, experiment: Experiment) -> list[PatchBatch]:
    """Patches whose contrast and brightness differ between the two processes."""
    batches = []
    for number in range(first * experiment.training.accumulation, STEPS * experiment.training.accumulation):
        generator = torch.Generator().manual_seed(100 * rank + number)
        image = torch.randn(1, 1, 8, 8, 8, generator=generator) * (1 + rank) + 2 * rank
        batches.append(PatchBatch(image=image, label=(image > 1).long(), cases=["a"]))
    return batches


def list_statistics(network: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in network.named_buffers() if "running" in name}


class Recorder:
    """What each step leaves, and the collectives that the toolkit itself calls."""

    def __init__(self, state: TrainingState) -> None:
        self.state = state
        self.calls: list[int] = []
        self.before: list[dict[str, Tensor]] = []
        self.after: list[dict[str, Tensor]] = []
        self.averaged: list[dict[str, Tensor]] = []
        self.counted = 0
        self.began_before_backward = True

    def after_pass(self, *_: object) -> None:
        self.latest = list_statistics(self.state.network)

    def after_step(self, record) -> None:
        self.before.append(self.latest)
        self.after.append(list_statistics(self.state.network))
        if self.state.averaged is not None:
            self.averaged.append(list_statistics(self.state.averaged.module))
        self.calls.append(self.counted)
        self.counted = 0

    def count(self, function):
        """The function itself, counting its calls."""

        def counted(*arguments, **options):
            self.counted += 1
            gradients = [parameter.grad for parameter in self.state.network.parameters()]
            self.began_before_backward &= all(gradient is None for gradient in gradients)
            return function(*arguments, **options)

        return counted


def train(processes: Processes, experiment: Experiment, state: TrainingState, first: int = 0, last=None):
    """A record of the steps from `first` to the end, or to step `last`."""
    recorder = Recorder(state)
    original = dist.all_reduce
    dist.all_reduce = recorder.count(original)

    def after_step(record) -> None:
        recorder.after_step(record)
        if record.step == last:
            raise KeyboardInterrupt

    try:
        with suppress(KeyboardInterrupt):
            run_steps(
                state,
                iter(draw_batches(processes.rank, first, experiment)),
                experiment,
                first,
                loss_function=make_loss(Targets(("background", "structure"))),
                dtype=torch.float32,
                processes=processes,
                after_pass=recorder.after_pass,
                after_step=after_step,
            )
    finally:
        dist.all_reduce = original
    return recorder


def train_all_ways(processes: Processes) -> dict[str, dict[str, Any]]:
    found = {}
    for name, options in OPTIONS.items():
        experiment = make_experiment("batch_renorm", options)
        recorder = train(processes, experiment, make_state(experiment, 1, 2, CPU))
        kept = ("calls", "before", "after", "averaged", "began_before_backward")
        found[name] = {key: getattr(recorder, key) for key in kept}
    return found


def resume(processes: Processes, folder: Path) -> dict[str, dict[str, Any]]:
    """Final states of runs left alone, and of runs that go on from the first process's checkpoint."""
    found = {}
    for norm in ("batch_renorm", "mabn", "batch"):
        options = {"merge_statistics_every": 3, "checkpoint_every": 5, "ema_decay": 0.9}
        experiment = make_experiment(norm, options)
        alone, stopped, resumed = (make_state(experiment, 1, 2, CPU) for _ in range(3))
        train(processes, experiment, alone)
        train(processes, experiment, stopped, last=5)
        if processes.is_first:
            save_checkpoint(folder / norm, 5, stopped.network, stopped.averaged, stopped.optimizer, 2)
        dist.barrier()
        path = find_checkpoint(folder / norm)
        assert path is not None
        load_checkpoint(path, resumed.network, resumed.averaged, resumed.optimizer, 2)
        differs = {
            key
            for key, value in stopped.network.state_dict().items()
            if not value.equal(resumed.network.state_dict()[key])
        }
        train(processes, experiment, resumed, first=5)
        found[norm] = {
            "not in checkpoint": differs,
            "alone": {**alone.network.state_dict(), **_prefixed(alone)},
            "resumed": {**resumed.network.state_dict(), **_prefixed(resumed)},
        }
    return found


def _prefixed(state: TrainingState) -> dict[str, Tensor]:
    assert state.averaged is not None
    return {f"averaged.{key}": value for key, value in state.averaged.state_dict().items()}


def overlap(processes: Processes) -> dict[str, dict[str, Tensor]]:
    """Statistics merged while the gradients are on their way, and merged at once."""
    torch.manual_seed(0)
    layers = [nn.Conv3d(1, 5, 3), make_normalization("batch_renorm", 5), nn.Conv3d(5, 7, 3)]
    network = nn.Sequential(*layers, make_normalization("batch", 7))
    twin = copy.deepcopy(network)
    merge, blocking = StatisticsMerge(network, processes), StatisticsMerge(twin, processes)
    image = torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(processes.rank))
    twin(image)
    blocking.note_pass()
    output = DistributedDataParallel(network, broadcast_buffers=False)(image)
    merge.note_pass(merges=True)
    output.square().mean().backward()
    merge.finish()
    blocking.start()
    blocking.finish()
    return {"overlapping": list_statistics(network), "blocking": list_statistics(twin)}


def merge_by_hand(processes: Processes) -> dict[str, Tensor]:
    """Memories of momentum 1/2 that have taken in one batch each, or none."""
    layers = nn.Sequential(nn.BatchNorm3d(2, momentum=0.5), nn.BatchNorm3d(1, momentum=0.5))
    merge = StatisticsMerge(layers, processes)
    # from mean 0 and variance 1: process 0 saw the values -1 and 1 in channel 0, process 1 saw 3 and 5
    layers[0].running_mean.copy_(torch.tensor([0.0, 3.0] if processes.is_first else [2.0, 3.0]))
    layers[0].running_var.copy_(torch.tensor([1.0, 7.0]))
    layers[0].num_batches_tracked.add_(1)
    if processes.is_first:  # the other process has seen nothing of the second layer's
        layers[1].running_mean.fill_(3.0)
        layers[1].running_var.fill_(2.0)
        layers[1].num_batches_tracked.add_(1)
    merge.start()
    merge.finish()
    return list_statistics(layers)


def draw_shifted(step: int, rank: int) -> Tensor:
    return torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(10 * step + rank)) + 3 * rank


def merge_every_step(processes: Processes) -> dict[str, Tensor]:
    """A renorm's memory after four merged batches."""
    layer = make_normalization("batch_renorm", 3)
    merge = StatisticsMerge(layer, processes)
    for step in range(4):
        layer(draw_shifted(step, processes.rank))
        merge.note_pass(merges=True)
        merge.finish()
    return list_statistics(layer)


def work_in_process(processes: Processes, folder: Path) -> dict[str, Any]:
    return {
        "trained": train_all_ways(processes),
        "resumed": resume(processes, folder),
        "overlap": overlap(processes),
        "by hand": merge_by_hand(processes),
        "every step": merge_every_step(processes),
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    """What two processes that find each other return, each running this file."""
    folder = tmp_path_factory.mktemp("found")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait(300) for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def trained(found) -> list[dict]:
    return [each["trained"] for each in found]


def pool_news(before: list[dict[str, Tensor]], common: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """What one process would remember: the old share of what was common, and the mixture of the news."""
    pooled = {}
    for name in common:
        if name.endswith("running_mean"):
            means = torch.stack([each[name] for each in before]).double()
            name_of_var = name.removesuffix("mean") + "var"
            variances = torch.stack([each[name_of_var] for each in before]).double()
            news = (means - (1 - share) * common[name]) / share
            pooled[name] = means.mean(0).float()
            pooled[name_of_var] = (variances.mean(0) + share * news.var(0, correction=0)).float()
    return pooled


@pytest.mark.parametrize("name", OPTIONS)
def test_a_merge_pools_what_is_new_in_the_processes_memories(trained, name):
    first, second = (found[name] for found in trained)
    common = {key: torch.zeros_like(value) for key, value in first["before"][0].items()}
    passes, last = OPTIONS[name].get("accumulation", 1), 0
    for done in MERGES[name]:
        # momentum 0.1; the first batch is all that a renorm remembers
        share = 1 - 0.9 ** (passes * (done - last)) if last else 1
        expected = pool_news([first["before"][done - 1], second["before"][done - 1]], common, share)
        for found in (first, second):
            torch.testing.assert_close(found["after"][done - 1], expected)
        common, last = first["after"][done - 1], done


def test_numbers_that_a_person_can_check(found):
    for each in (process["by hand"] for process in found):
        # the batch -1, 1, 3, 5 has mean 2 and variance 5; half of it, and half of mean 0 and variance 1
        # channel 1: both processes saw the same, so nothing is between them
        assert each["0.running_mean"].tolist() == [1, 3]
        assert each["0.running_var"].tolist() == [3, 7]
        # one process alone has seen this layer's batches, and the other takes over what it remembers
        assert each["1.running_mean"].tolist() == [3]
        assert each["1.running_var"].tolist() == [2]


def test_merged_at_every_step_is_the_memory_of_the_pooled_batches(found):
    layer = make_normalization("batch_renorm", 3)
    for step in range(4):
        layer(torch.cat([draw_shifted(step, rank) for rank in range(2)]))
    for process in found:
        torch.testing.assert_close(process["every step"], list_statistics(layer))


@pytest.mark.parametrize("name", OPTIONS)
def test_statistics_are_equal_after_a_merge_and_follow_their_own_patches_in_between(trained, name):
    first, second = (found[name] for found in trained)
    for step in range(1, STEPS + 1):
        pairs = [(first["after"][step - 1], second["after"][step - 1])]
        if first["averaged"]:
            pairs.append((first["averaged"][step - 1], second["averaged"][step - 1]))
        equal_by_now = step in MERGES[name] or (name == "frozen" and step > 4)
        for ours, theirs in pairs:
            assert all(ours[key].equal(theirs[key]) for key in ours) == equal_by_now
        if not equal_by_now:
            for found in (first, second):
                assert all(
                    found["after"][step - 1][key].equal(value)
                    for key, value in found["before"][step - 1].items()
                )


@pytest.mark.parametrize("name", OPTIONS)
def test_a_merge_is_one_collective_and_begins_before_the_backward_pass(trained, name):
    for found in trained:
        assert found[name]["calls"] == [int(step in MERGES[name]) for step in range(1, STEPS + 1)]
        assert found[name]["began_before_backward"] == (name != "every third, two passes")


def test_computing_activations_twice_changes_no_merge(trained):
    once, twice = (trained[0][name]["after"] for name in ("every third", "every third, computed twice"))
    torch.testing.assert_close(twice, once, rtol=1e-5, atol=1e-6)


def test_overlapping_and_blocking_merges_are_the_same(found):
    for each in found:
        overlapping, blocking = (each["overlap"][name] for name in ("overlapping", "blocking"))
        assert overlapping.keys() == blocking.keys()
        assert all(value.equal(blocking[key]) for key, value in overlapping.items())


@pytest.mark.parametrize("norm", ["batch_renorm", "mabn", "batch"])
def test_a_run_resumed_from_the_checkpoint_ends_as_one_left_alone(found, norm):
    results = [each["resumed"][norm] for each in found]
    for each in results:
        # the first process has written it, and it is what both have
        assert each["not in checkpoint"] == set()
        assert all(value.equal(each["resumed"][key]) for key, value in each["alone"].items())
    first, second = (each["alone"] for each in results)
    assert all(value.equal(second[key]) for key, value in first.items())


if __name__ == "__main__":
    with join_processes(CPU) as joined:
        result = work_in_process(joined, Path(sys.argv[1]))
    torch.save(result, Path(sys.argv[1]) / f"{joined.rank}.pt")
