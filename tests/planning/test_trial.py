"""What a trial is given: a dataset of one case, twice, described as the real one; and few steps."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medseg_brn.cases.case import Case
from medseg_brn.cases.dataset import Dataset, read_dataset
from medseg_brn.cases.targets import Region
from medseg_brn.config import Experiment
from medseg_brn.errors import TrainingError
from medseg_brn.planning.trial import (
    TrialOrder,
    choose_trial_steps,
    ran_out_of_memory,
    shorten,
    was_killed,
    write_manifest,
)


def dataset_of(tmp_path: Path, **more) -> Dataset:
    case = Case("a", (tmp_path / "t1.nii", tmp_path / "t2.nii"), tmp_path / "label.nii")
    return Dataset(
        "Two", tmp_path, (case,), ("background", "edema", "core"), (0, 2, 7), ("mri", "ct"), **more
    )


@pytest.mark.parametrize(
    "more", [{}, {"regions": (Region("whole", (1, 2), 1), Region("core", (2,), 2)), "ignore_value": 9}]
)
def test_the_dataset_is_described_as_it_is(tmp_path, more):
    dataset = dataset_of(tmp_path, **more)
    found = read_dataset(write_manifest(tmp_path, dataset, dataset.cases[0]), "csv", dataset.modalities)
    assert [case.image_paths for case in found.cases] == [dataset.cases[0].image_paths] * 2
    assert found.label_values == dataset.label_values
    assert found.modalities == dataset.modalities
    assert found.targets.num_outputs == dataset.targets.num_outputs
    assert found.targets.structure_names == dataset.targets.structure_names
    assert found.ignore_value == dataset.ignore_value


@pytest.mark.parametrize(("validate", "fold"), [(True, 0), (False, None)])
def test_the_experiment_keeps_all_that_costs_anything(tmp_path, validate, fold):
    dataset = dataset_of(tmp_path)
    experiment = Experiment.model_validate(
        {
            "patches": {
                "size": [32, 32, 32],
                "augmentation": {"flip_axes": [0], "mirrored_classes": [["edema", "core"]]},
            },
            "training": {"batch_size": 3, "class_weights": {"core": 2}, "validate_every": 5},
        }
    )
    short = shorten(TrialOrder(experiment, dataset, dataset.cases[0], 9, validate), tmp_path / "cases.csv")
    assert (short.training.steps, short.training.batch_size) == (9, 3)
    assert (short.dataset.folds, short.dataset.fold) == (2, fold)
    assert short.training.validate_every is None
    assert short.training.class_weights == {"core": 2}
    assert short.network == experiment.network
    assert short.patches.augmentation is not None and short.patches.augmentation.mirrored_classes == ()
    assert json.loads(short.model_dump_json())["dataset"]["layout"] == "csv"


def test_a_process_without_memory_is_told_from_one_with_a_fault():
    with pytest.raises(RuntimeError) as allocated:
        torch.empty(10**15)
    loader = "A loader process died (DataLoader worker (pid 7) is killed by signal: Killed. ); set …"
    for error in (allocated.value, MemoryError(), torch.cuda.OutOfMemoryError("CUDA"), TrainingError(loader)):
        assert ran_out_of_memory(error), error
    for error in (RuntimeError("Unsupported memory format"), TrainingError("The loss is NaN")):
        assert not ran_out_of_memory(error), error


@pytest.mark.skipif(sys.platform == "win32", reason="signals are of POSIX")
@pytest.mark.parametrize(("name", "killed"), [("SIGKILL", True), ("SIGSEGV", False)])
def test_only_sigkill_is_the_systems(name, killed):
    code = f"import os, signal; os.kill(os.getpid(), signal.{name})"
    assert was_killed(subprocess.run([sys.executable, "-c", code], check=False).returncode) is killed
    assert not was_killed(1)


def test_slow_steps_are_tried_less_often():
    assert [choose_trial_steps(seconds, 3600) for seconds in (0.1, 2.5, 60)] == [30, 15, 8]


def test_a_trial_for_a_short_run_is_short():
    """Three percent of five minutes are nine seconds."""
    assert choose_trial_steps(0.5, 300) == 5 + 18
