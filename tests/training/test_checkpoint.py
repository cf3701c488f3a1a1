"""Checkpoints: what goes in comes out, and what is broken says so."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from medseg_brn.config import Experiment, NetworkConfig, TrainingConfig
from medseg_brn.errors import TrainingError
from medseg_brn.training.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from medseg_brn.training.state import TrainingState, make_state


def make_trained_state(optimizer: str = "sgd", channels=(2, 4), seed: int = 0) -> TrainingState:
    """A state after two steps, so that the optimizer has moments."""
    experiment = Experiment(
        seed=seed,
        network=NetworkConfig(channels=channels),
        training=TrainingConfig(optimizer=optimizer, learning_rate=0.01),
    )
    state = make_state(experiment, 1, 2, torch.device("cpu"))
    for _ in range(2):
        state.network(torch.randn(1, 1, 8, 8, 8)).square().mean().backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.averaged.update_parameters(state.network)
    return state


def save(folder, step: int, state: TrainingState):
    return save_checkpoint(folder, step, state.network, state.averaged, state.optimizer)


def load(path, state: TrainingState) -> int:
    return load_checkpoint(path, state.network, state.averaged, state.optimizer)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_checkpoint_restores_network_average_and_optimizer(tmp_path, optimizer):
    saved, fresh = make_trained_state(optimizer), make_trained_state(optimizer, seed=1)
    assert load(save(tmp_path, 7, saved), fresh) == 7
    for one, other in ((saved.network, fresh.network), (saved.averaged, fresh.averaged)):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    for index, state in saved.optimizer.state_dict()["state"].items():
        for name, value in state.items():
            assert torch.equal(value, fresh.optimizer.state_dict()["state"][index][name])


def test_only_the_newest_is_kept_and_unfinished_ones_are_never_found(tmp_path):
    state = make_trained_state()
    (tmp_path / ".step_00000009-half").mkdir()
    assert find_checkpoint(tmp_path) is None
    save(tmp_path, 5, state)
    save(tmp_path, 10, state)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000010"]
    assert find_checkpoint(tmp_path).name == "step_00000010"
    assert find_checkpoint(tmp_path / "nowhere") is None


def truncate(path):
    file = path / "state.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def forget_a_tensor(path):
    tensors = load_file(path / "state.safetensors")
    tensors.pop("network.head.weight")
    save_file(tensors, path / "state.safetensors")


def write_other_format(path):
    (path / "state.json").write_text(json.dumps({"format": 99, "step": 1}))


def write_nonsense(path):
    (path / "state.json").write_text("{")


@pytest.mark.parametrize("damage", [truncate, forget_a_tensor, write_other_format, write_nonsense])
def test_a_damaged_checkpoint_is_one_message_with_its_path(tmp_path, damage):
    path = save(tmp_path, 3, make_trained_state())
    damage(path)
    with pytest.raises(TrainingError, match=r"step_00000003.*delete"):
        load(path, make_trained_state())


def test_moments_come_back_in_the_layout_of_their_weights(tmp_path):
    state = make_trained_state("adamw")
    path = save(tmp_path, 3, state)
    fresh = make_trained_state("adamw", seed=1)
    load(path, fresh)
    for parameter, moments in fresh.optimizer.state.items():
        assert moments["exp_avg"].stride() == parameter.stride()


def test_a_checkpoint_of_other_processes_is_refused(tmp_path):
    state = make_trained_state()
    path = save(tmp_path, 3, state)
    with pytest.raises(TrainingError, match=r"run with 1 processes.*resume with as many"):
        load_checkpoint(path, state.network, state.averaged, state.optimizer, world_size=2)


def test_another_networks_checkpoint_does_not_fit(tmp_path):
    path = save(tmp_path, 3, make_trained_state())
    with pytest.raises(TrainingError, match="does not fit this run"):
        load(path, make_trained_state(channels=(2, 6)))
