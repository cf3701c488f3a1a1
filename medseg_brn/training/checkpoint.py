"""Checkpoints that are whole or absent: tensors in safetensors, numbers in JSON, nothing executed on loading.

A checkpoint is a folder `checkpoint/step_00000500`; it appears by one rename, and the one before it is
removed only afterwards. Whatever moment a run is killed at, the newest complete checkpoint is found again.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from medseg_brn.errors import TrainingError
from medseg_brn.training.adversarial import Adversary
from medseg_brn.volumes.atomic import atomic_path

_FORMAT = 1


def save_checkpoint(
    folder: Path,
    step: int,
    network: nn.Module,
    averaged: nn.Module | None,
    optimizer: Optimizer,
    world_size: int = 1,
    adversary: Adversary | None = None,
) -> Path:
    """Write the state after `step` optimizer steps below `folder` and remove older ones; return its path."""
    tensors = {
        **_flatten("network", network.state_dict()),
        **_flatten("averaged", averaged.state_dict() if averaged is not None else {}),
        **_flatten_optimizer("optimizer", optimizer),
    }
    if adversary is not None:
        tensors.update(_flatten("discriminator", adversary.discriminator.state_dict()))
        tensors.update(_flatten_optimizer("discriminator_optimizer", adversary.optimizer))
    target = folder / f"step_{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        temporary.mkdir()
        save_file(tensors, temporary / "state.safetensors")
        numbers = {"format": _FORMAT, "step": step, "processes": world_size}
        (temporary / "state.json").write_text(json.dumps(numbers), encoding="utf-8")
    for other in folder.iterdir():
        if other != target:
            shutil.rmtree(other, ignore_errors=True)
    return target


def find_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint below `folder`, or None."""
    complete = [path for path in folder.glob("step_*") if path.name[5:].isdigit()] if folder.is_dir() else []
    return max(complete, default=None)


def load_checkpoint(
    path: Path,
    network: nn.Module,
    averaged: nn.Module | None,
    optimizer: Optimizer,
    world_size: int = 1,
    adversary: Adversary | None = None,
) -> int:
    """Put the checkpoint's state into the given objects; return the number of steps it was taken after.

    Raises:
        TrainingError: the checkpoint is damaged, or of another network, optimizer or number of processes.
    """
    remedy = f"delete {path} to start over, or use another run folder"
    try:
        numbers = json.loads((path / "state.json").read_text(encoding="utf-8"))
        tensors = load_file(path / "state.safetensors")
        if numbers["format"] != _FORMAT:
            raise TrainingError(f"Checkpoint {path} has format {numbers['format']}, not {_FORMAT}; {remedy}")
        if numbers["processes"] != world_size:
            raise TrainingError(
                f"Checkpoint {path} is of a run with {numbers['processes']} processes, which share the"
                f" patches differently than {world_size}; resume with as many as before"
            )
        network.load_state_dict(_unflatten("network", tensors))
        if averaged is not None:
            averaged.load_state_dict(_unflatten("averaged", tensors))
        _load_optimizer("optimizer", optimizer, tensors)
        if adversary is not None:
            adversary.discriminator.load_state_dict(_unflatten("discriminator", tensors))
            _load_optimizer("discriminator_optimizer", adversary.optimizer, tensors)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(f"Checkpoint {path} does not fit this run: {reason}; {remedy}") from None
    return int(numbers["step"])


def _load_optimizer(prefix: str, optimizer: Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for name, value in _unflatten(prefix, tensors).items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    # in the weights' own memory layout, as an uninterrupted run has them
    for parameter, moments in optimizer.state.items():
        for name, moment in moments.items():
            if moment.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter).copy_(moment).detach()


def _flatten_optimizer(prefix: str, optimizer: Optimizer) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for index, state in optimizer.state_dict()["state"].items():
        values = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
        tensors.update(_flatten(f"{prefix}.{index}", values))
    return tensors


def _flatten(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # safetensors stores contiguous tensors; the values of a channels-last weight do not change by this
    return {f"{prefix}.{name}": value.detach().cpu().contiguous() for name, value in tensors.items()}


def _unflatten(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
