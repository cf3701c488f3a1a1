"""The three files of a plan: whole, readable, and never written over without being told."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from medseg_brn.cases.dataset import read_dataset
from medseg_brn.cases.fingerprint import compute_fingerprint
from medseg_brn.cases.phantom import make_phantom
from medseg_brn.errors import ConfigError, DataError
from medseg_brn.experiment import load_experiment, parse_experiment
from medseg_brn.planning.assembling import Draft, assemble
from medseg_brn.planning.candidates import Budget, Problem, choose_candidate
from medseg_brn.planning.choice import nest
from medseg_brn.planning.machine import Machine
from medseg_brn.planning.planner import Plan
from medseg_brn.planning.prediction import Prediction
from medseg_brn.planning.requests import Request
from medseg_brn.planning.rules_space import choose_crop, choose_spacing
from medseg_brn.planning.rules_training import Pace
from medseg_brn.planning.writing import check_outputs, dump_plan, write_plan


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> Plan:
    """A plan for three coarse phantom abdomens; nothing is measured."""
    folder = make_phantom(tmp_path_factory.mktemp("data") / "ct", modality="ct", cases=3, voxel_mm=10)
    dataset = replace(read_dataset(folder), name="<b>Abdomen</b>")
    found = compute_fingerprint(dataset, dataset.cases, contents=True)
    machine = Machine("cpu", "fp32", 2, 2, 2e-11, False, 8e9, "no machine")
    spacing = choose_spacing(found)
    problem = Problem(found.shapes_at(spacing.value)[0], spacing.value, 1, 4, "cpu", "fp32")
    candidate = choose_candidate(problem, Budget(1.8, 8e9, 2e-11))
    pace = Pace(candidate.cost.step_seconds, 5, 5, 1800)
    draft = Draft(
        str(folder), "auto", None, dataset, found, machine, problem, candidate, spacing,
        choose_crop(found, ["ct"]), pace, "abdomen", "cpu",
    )  # fmt: skip
    choices, warnings = assemble(draft)
    cost = Prediction(0.5, 900.0, 800.0, 10.0, 10.0, 820.0, False, "no machine")
    return Plan(
        request=Request(str(folder)),
        dataset=dataset,
        fingerprint=found,
        machine=machine,
        memory_bytes=8e9,
        experiment=parse_experiment(nest(choices), "a test"),
        choices=choices,
        prediction=cost,
        trials=(),
        warnings=("not measured", *warnings),
    )


def test_three_files_stand_side_by_side(plan, tmp_path):
    path = tmp_path / "new" / "plan.yaml"
    write_plan(plan, path)
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "plan.plan.html",
        "plan.plan.json",
        "plan.yaml",
    ]
    assert load_experiment(path) == plan.experiment
    told = json.loads(path.with_suffix(".plan.json").read_text(encoding="utf-8"))
    assert told["prediction"]["step_seconds"] == 0.5
    assert told["choices"]["preprocessing.crop"]["reason"] == plan.choices["preprocessing.crop"].reason
    assert told["warnings"][0] == "not measured"
    assert [len(shape) for shape in told["shapes_at_target_spacing"]] == [3, 3, 3]


def test_the_page_tells_of_everything(plan, tmp_path):
    write_plan(plan, tmp_path / "plan.yaml")
    page = (tmp_path / "plan.plan.html").read_text(encoding="utf-8")
    assert page.count("<img") == 3
    assert page.count("<svg") == 6, "three of sizes, two of intensities, one of volumes"
    assert "Plan for &lt;b&gt;Abdomen&lt;/b&gt;" in page and "<b>" not in page
    for text in (
        "of the training process, not measured",
        "liver",
        "Warning: not measured.",
        "patches.size",
        "Channel 0 (ct), HU",
        "network.strides",
    ):
        assert text in page


def test_what_is_there_is_kept_unless_told_otherwise(tmp_path):
    path = tmp_path / "plan.yaml"
    check_outputs(path, force=False)
    (tmp_path / "plan.plan.html").write_text("mine")
    with pytest.raises(ConfigError, match=r"plan\.plan\.html is there already; .* --force"):
        check_outputs(path, force=False)
    check_outputs(path, force=True)


def test_a_datasets_own_description_is_never_overwritten(plan, tmp_path):
    """Neither beside a plan called after it, nor where it has the name of a plan's file."""
    path, own = tmp_path / "dataset.yaml", tmp_path / "dataset.json"
    own.write_text('{"labels": {}}')
    write_plan(plan, path)
    check_outputs(path, force=True)
    assert own.read_text() == '{"labels": {}}'
    (tmp_path / "dataset.plan.json").write_text('{"labels": {}}')
    with pytest.raises(ConfigError, match=r"dataset\.plan\.json is there already and is no plan's"):
        check_outputs(path, force=True)


def test_a_folder_that_is_not_there_is_found_before_any_work(tmp_path):
    with pytest.raises(ConfigError, match=r"new, where plan\.yaml is to be written, is no folder"):
        check_outputs(tmp_path / "new" / "plan.yaml", force=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_found_before_any_work(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="cannot be written to"):
        check_outputs(tmp_path / "plan.yaml", force=False)


def test_the_command_can_be_copied_into_a_shell(plan):
    first, second = dump_plan(plan, Path("my plans/a.yaml")), dump_plan(plan, Path("x\n\x1b[2Jtraining.yaml"))
    assert "#   medseg-brn train 'my plans/a.yaml' -o RUN\n" in first
    assert "\x1b" not in second and yaml.safe_load(first) == yaml.safe_load(second)


def test_a_case_that_cannot_be_drawn_leaves_nothing(plan, tmp_path):
    gone = tuple(replace(case, image_paths=(tmp_path / "gone.nii.gz",)) for case in plan.dataset.cases)
    broken = replace(plan, dataset=replace(plan.dataset, cases=gone))
    with pytest.raises(DataError, match=r"gone\.nii\.gz"):
        write_plan(broken, tmp_path / "plan.yaml")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_would_not_be_read_back_is_not_written(plan, tmp_path):
    """A path that reading makes absolute is not the one that was planned."""
    dataset = plan.experiment.dataset.model_copy(update={"path": "relative"})
    other = replace(plan, experiment=plan.experiment.model_copy(update={"dataset": dataset}))
    with pytest.raises(ConfigError, match="not be read back"):
        write_plan(other, tmp_path / "plan.yaml")
    assert list(tmp_path.iterdir()) == []
