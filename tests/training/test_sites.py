"""Training that asks for sites: what it refuses, folds by site, and norms of sites up to inference."""

import csv
import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from medseg_brn.cases.dataset import read_dataset
from medseg_brn.cases.phantom import make_phantom
from medseg_brn.cases.targets import Targets
from medseg_brn.config import Experiment, NetworkConfig, TrainingConfig
from medseg_brn.errors import ConfigError, DataError
from medseg_brn.experiment import parse_experiment
from medseg_brn.models.package import load_model
from medseg_brn.patches.stream import PatchBatch
from medseg_brn.training.checkpoint import load_checkpoint, save_checkpoint
from medseg_brn.training.data import prepare_training_data
from medseg_brn.training.distributed import Processes, join_processes
from medseg_brn.training.loop import run_steps
from medseg_brn.training.losses import make_loss
from medseg_brn.training.sites import hold_out_site, list_fold_sites
from medseg_brn.training.state import TrainingState, make_state
from medseg_brn.volumes.reading import read_volume

CPU = torch.device("cpu")
LOSS = make_loss(Targets(("background", "structure")))
DOMAINS = Experiment(
    network=NetworkConfig(channels=(4, 8), norm="domain_batch", momentum=0.5),
    training=TrainingConfig(steps=6, learning_rate=0.1, ema_decay=0.9),
)
SITES = ("a", "b", "c")


def make_batches(sites: list[list[str]]) -> list[PatchBatch]:
    """Bright half against dark half; the n-th batch is always the same."""
    batches = []
    for number, own in enumerate(sites):
        image = torch.randn(len(own), 1, 8, 8, 8, generator=torch.Generator().manual_seed(number))
        image[:, :, 4:] += 4
        batches.append(PatchBatch(image=image, label=(image > 2).long(), cases=list(own), sites=list(own)))
    return batches


def train(
    state: TrainingState, batches, first: int = 0, last: int | None = None, processes: Processes | None = None
) -> None:
    """Steps `first` to `last`, or to the end."""

    def stop(record) -> None:
        if record.step == last:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        run_steps(
            state, iter(batches[first:]), DOMAINS, first, loss_function=LOSS, dtype=torch.float32,
            processes=processes or Processes(), after_step=stop,
        )  # fmt: skip


def list_tensors(state: TrainingState) -> dict[str, torch.Tensor]:
    assert state.averaged is not None
    return state.network.state_dict() | {f"mean {k}": v for k, v in state.averaged.state_dict().items()}


def test_only_the_sites_of_a_batch_learn(tmp_path):
    state = make_state(DOMAINS, 1, 2, CPU, SITES)
    before = {name: value.clone() for name, value in state.network.state_dict().items()}
    train(state, make_batches([["a", "b"], ["b", "b"]] * 3))
    after = state.network.state_dict()
    for name, value in after.items():
        if "domains" in name:
            assert torch.equal(value, before[name]) == ("domains.2" in name), name
    assert int(after["stem.1.domains.0.num_batches_tracked"]) == 3
    assert int(after["stem.1.domains.1.num_batches_tracked"]) == 6


def test_a_resumed_run_equals_one_that_never_stopped(tmp_path):
    """Though one site's first patch comes after the checkpoint, whose optimizer knows nothing of it."""
    batches = make_batches([["a", "b"], ["b", "a"], ["a", "a"], ["c", "a"], ["b", "c"], ["c", "c"]])
    whole = make_state(DOMAINS, 1, 2, CPU, SITES)
    train(whole, batches)
    begun = make_state(DOMAINS, 1, 2, CPU, SITES)
    train(begun, batches, last=3)
    path = save_checkpoint(tmp_path, 3, begun.network, begun.averaged, begun.optimizer)
    resumed = make_state(DOMAINS, 1, 2, CPU, SITES)
    assert load_checkpoint(path, resumed.network, resumed.averaged, resumed.optimizer) == 3
    train(resumed, batches, first=3)
    for name, value in list_tensors(whole).items():
        assert torch.equal(value, list_tensors(resumed)[name]), name


def train_in_process(rank: int, folder: str) -> None:
    # each process has its own site, then both the same, then one two sites
    sites = [[["a"], ["b"]], [["c"], ["c"]], [["a"], ["b"]]] * 2
    batches = make_batches([pair[rank] for pair in sites])
    with join_processes(CPU) as processes:
        state = make_state(DOMAINS, 1, 2, CPU, SITES)
        train(state, batches, processes=processes)
    torch.save(list_tensors(state), f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_processes_with_different_sites_train_one_network(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(listener.getsockname()[1])}
    shared |= {"WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait(300) for process in processes] == [0, 0]
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, value in one.items():
        if "num_batches_tracked" not in name:  # each process counts its own
            torch.testing.assert_close(value, other[name], msg=name, rtol=0, atol=0)
    initial = make_state(DOMAINS, 1, 2, CPU, SITES).network.state_dict()
    learned = [
        name for name in initial if name.endswith("weight") and not torch.equal(one[name], initial[name])
    ]
    assert learned == [name for name in initial if name.endswith("weight")], (
        "every site's and all shared ones"
    )


# ---------------------------------------------------------------- data


@pytest.fixture(scope="module")
def heads(tmp_path_factory) -> Path:
    """Eight small heads, two of each of four sites."""
    return make_phantom(tmp_path_factory.mktemp("phantom") / "heads", cases=8, voxel_mm=7.0)


def make_experiment(path: Path, **sections) -> Experiment:
    options = {"dataset": {"path": str(path), "folds": 3}, "patches": {"size": [8, 8, 8]}}
    for name, section in sections.items():
        options.setdefault(name, {}).update(section)
    return parse_experiment(options, "test")


@pytest.mark.parametrize(
    ("section", "option"),
    [
        ({"patches": {"sites": "pure"}}, r"patches\.sites=pure"),
        ({"network": {"norm": "domain_batch"}}, r"network\.norm=domain_batch"),
        ({"dataset": {"folds_by": "site"}}, r"dataset\.folds_by=site"),
    ],
)
def test_a_dataset_without_sites_is_refused_before_a_case_is_prepared(phantom, tmp_path, section, option):
    with pytest.raises(DataError, match=rf"{option} needs the site of every case, and \d of \d name none"):
        prepare_training_data(make_experiment(phantom, **section), tmp_path / "run", lambda *_: None)
    assert not list(tmp_path.glob("run/cache/*/"))


def test_a_fold_by_site_holds_out_that_site(heads, tmp_path):
    dataset = read_dataset(heads / "manifest.csv")
    experiment = make_experiment(heads / "manifest.csv", dataset={"folds_by": "site", "fold": 3})
    assert list_fold_sites(experiment, dataset) == ("harbour", "north", "summit", "valley")
    data = prepare_training_data(experiment, tmp_path / "run", lambda *_: None)
    assert [case.name for case in data.validation] == ["head_002", "head_006"]
    assert {case.site for case in data.training} == {"harbour", "north", "summit"}
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert (split["held_out_site"], split["drawn"]) == ("valley", {"fold": 3, "folds_by": "site"})
    assert split["sites"]["head_002"] == "valley"
    again = prepare_training_data(experiment, tmp_path / "run", lambda *_: None)
    assert again.validation == data.validation


def test_there_are_no_more_folds_than_sites(heads):
    cases = read_dataset(heads / "manifest.csv").labelled_cases
    experiment = make_experiment(heads / "manifest.csv", dataset={"folds_by": "site", "fold": 4})
    with pytest.raises(ConfigError, match=r"dataset\.fold is 4, .* 4 sites: 0 \(harbour\), 1 \(north\)"):
        hold_out_site(experiment, cases)


def test_a_case_that_changed_its_site_is_not_the_one_that_the_run_began_with(heads, tmp_path):
    text = (heads / "manifest.csv").read_text().replace("imagesTr", str(heads / "imagesTr"))
    (tmp_path / "c.csv").write_text(text.replace("labelsTr", str(heads / "labelsTr")))
    (tmp_path / "c.json").write_text((heads / "manifest.json").read_text())
    experiment = make_experiment(tmp_path / "c.csv")
    prepare_training_data(experiment, tmp_path / "run", lambda *_: None)
    (tmp_path / "c.csv").write_text((tmp_path / "c.csv").read_text().replace("valley", "hill", 1))
    with pytest.raises(DataError, match=r"not the one that the run of .* began with \(sites "):
        prepare_training_data(experiment, tmp_path / "run", lambda *_: None)


@pytest.mark.slow
def test_from_training_to_inference(heads, tmp_path, run_command):
    """All that may stand beside a norm of sites: freezing aside, which ends what averages would show."""
    options = {
        "dataset": {"path": str(heads / "manifest.csv"), "folds": 4},
        "patches": {"size": [16, 16, 16], "workers": 1, "sites": "balanced"},
        "network": {"channels": [4, 8], "norm": "domain_batch", "momentum": 0.1},
        "training": {
            "steps": 12, "batch_size": 3, "accumulation": 2, "activation_checkpointing": True,
            "validate_every": 6, "probe_every": 4, "recalibration_patches": 12, "precision": "fp32",
        },
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(options))
    run = tmp_path / "run"
    done = run_command("train", tmp_path / "tiny.yaml", "-o", run)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "model" / "model.json").read_text())["sites"] == [
        "harbour", "north", "summit", "valley",
    ]  # fmt: skip
    with (heads / "manifest.csv").open() as file:
        site_of = {row["case"]: row["site"] for row in csv.DictReader(file)}

    for case in json.loads((run / "validation.json").read_text())["cases"]:
        expected = load_model(run, "cpu", site=site_of[case["case"]]).predict(case["image"])
        assert np.array_equal(read_volume(run / case["prediction"]).array, expected.array)

    image = heads / "imagesTr" / "head_000.nii.gz"
    maps = {}
    for site in ("north", "summit", None):
        target = tmp_path / f"{site}.nii.gz"
        told = run_command("infer", run, image, "-o", target, *(["--site", site] if site else []))
        assert told.returncode == 0, told.stderr
        assert ("normalized by their mixture" in told.stdout + told.stderr) == (site is None)
        maps[site] = read_volume(target).array
        assert np.array_equal(maps[site], load_model(run, site=site).predict(image).array)
    assert (maps["north"] != maps["summit"]).any() and (maps["north"] != maps[None]).any()

    unknown = run_command("infer", run, image, "-o", tmp_path / "x.nii.gz", "--site", "hill")
    assert unknown.returncode == 1
    assert "Site 'hill' was asked for" in unknown.stderr and "harbour, north" in unknown.stderr

    cohort = run_command("infer", run, heads / "manifest.csv", "-o", tmp_path / "maps")
    assert cohort.returncode == 0, cohort.stderr
    told = json.loads((tmp_path / "maps" / "manifest.json").read_text())["cases"]
    assert {name: case["site"] for name, case in told.items()} == site_of
    assert np.array_equal(read_volume(tmp_path / "maps" / "head_000.nii.gz").array, maps["north"])
    again = run_command("infer", run, heads / "manifest.csv", "-o", tmp_path / "maps")
    assert "8 of them before" in again.stdout


if __name__ == "__main__":
    train_in_process(int(os.environ["RANK"]), sys.argv[1])
