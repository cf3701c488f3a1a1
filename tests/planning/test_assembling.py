"""All rules together: any dataset's fingerprint gives a valid experiment, told in YAML that is read back."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg_brn.cases.case import Case
from medseg_brn.cases.dataset import Dataset
from medseg_brn.cases.fingerprint import CaseFacts, ChannelStatistics, Fingerprint
from medseg_brn.experiment import load_experiment, parse_experiment
from medseg_brn.planning.assembling import Draft, assemble
from medseg_brn.planning.candidates import Budget, Problem, choose_candidate
from medseg_brn.planning.choice import Choice, nest
from medseg_brn.planning.machine import Machine
from medseg_brn.planning.planner import Plan
from medseg_brn.planning.prediction import Prediction
from medseg_brn.planning.requests import Request
from medseg_brn.planning.rules_space import choose_spacing, coarsen_spacing
from medseg_brn.planning.rules_training import Pace
from medseg_brn.planning.writing import describe_plan, dump_plan
from medseg_brn.training.state import check_network

MACHINE = Machine("cpu", "bf16", 2, 2, 2e-11, True, 8e9, "a machine")


def draft_for(fingerprint, modalities, time_seconds=1800.0, name="Blocks"):
    names = tuple(fingerprint.class_voxels)
    cases = tuple(Case(case.name, (Path("image.nii"),), Path("label.nii")) for case in fingerprint.cases)
    dataset = Dataset(name, Path("/data"), cases, names, tuple(range(len(names))), modalities)
    budget = Budget(time_seconds / 1000, 8e9, 2e-11)

    def pose(spacing):
        shape = fingerprint.shapes_at(spacing.value)[0]
        return Problem(shape, spacing.value, len(modalities), len(names), "cpu", "bf16")

    first = choose_spacing(fingerprint)
    patch = choose_candidate(pose(first), budget).patch
    spacing = coarsen_spacing(first, fingerprint, pose(first).shape, patch)
    problem = pose(spacing)
    candidate = choose_candidate(problem, budget)
    return Draft(
        path="/data",
        layout="auto",
        modalities=None,
        dataset=dataset,
        fingerprint=fingerprint,
        machine=MACHINE,
        problem=problem,
        candidate=candidate,
        spacing=spacing,
        crop=Choice("none", "a test"),
        pace=Pace(candidate.cost.step_seconds, 10, 10, time_seconds),
        name="blocks",
        device="auto",
    )


def plan_for(draft):
    choices, warnings = assemble(draft)
    return Plan(
        Request("/data"), draft.dataset, draft.fingerprint, MACHINE, 8e9,
        parse_experiment(nest(choices), "a test"), choices,
        Prediction(0.5, 900.0, 800.0, 10.0, 10.0, 820.0, True, "a machine"), (), tuple(warnings),
    )  # fmt: skip


@st.composite
def fingerprints(draw):
    """Datasets as strange as they come, each with some foreground."""
    num_cases, num_classes = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    num_channels = draw(st.integers(1, 4))
    words = st.sampled_from(["liver", "left kidney", "right kidney", "lesion", "# x: {", "lung_r", "ü"])
    names = draw(st.lists(words, min_size=num_classes, max_size=num_classes, unique=True))
    cases = []
    for number in range(num_cases):
        shape = draw(st.tuples(*[st.integers(1, 300)] * 3))
        voxels = [draw(st.integers(0, 100_000)) for _ in names]
        voxels[0] += number == 0
        spacing = draw(st.tuples(*[st.floats(1e-3, 9)] * 3))
        cases.append(CaseFacts(f"case_{number}", None, spacing, shape, (10**6, *voxels), 0.0))
    totals = [sum(case.class_voxels[index] for case in cases) for index in range(len(names) + 1)]
    import numpy as np

    return Fingerprint(
        num_cases,
        tuple(np.median([case.spacing_mm for case in cases], axis=0).tolist()),
        cases[0].shape,
        (ChannelStatistics(0, 1, -1, 1, -2, 2),) * num_channels,
        dict(zip(("background", *names), totals, strict=True)),
        tuple(cases),
    )


@given(fingerprints(), st.data(), st.floats(1, 1e6))
@settings(deadline=None, max_examples=20)
def test_any_fingerprint_gives_a_valid_experiment_that_yaml_keeps(
    tmp_path_factory, found, data, time_seconds
):
    modalities = tuple(data.draw(st.sampled_from(["mri", "ct"])) for _ in found.channels)
    draft = draft_for(found, modalities, time_seconds, name="Blocks\n: # {")
    plan = plan_for(draft)
    check_network(plan.experiment, torch.device("cpu"))
    training, pace = plan.experiment.training, draft.pace
    validations = 1 + (training.steps // training.validate_every if training.validate_every else 0)
    needed = training.steps * pace.step_seconds + validations * pace.validation_seconds + pace.setup_seconds
    assert training.steps >= 200
    assert needed <= time_seconds or "too short" in "".join(plan.warnings)
    path = tmp_path_factory.mktemp("plan") / "plan.yaml"
    path.write_text(dump_plan(plan, Path("plan.yaml")), encoding="utf-8")
    assert load_experiment(path) == plan.experiment
    assert describe_plan(plan)["choices"].keys() == plan.choices.keys()


def test_every_option_is_written_and_every_choice_told(make_fingerprint):
    plan = plan_for(draft_for(make_fingerprint([(1, 1, 1)] * 8, (35, 50, 36)), ("mri",)))
    text = dump_plan(plan, Path("plan.yaml"))
    assert yaml.safe_load(text)["training"].keys() == plan.experiment.training.model_dump().keys()
    lines = text.splitlines()
    (size,) = (line for line in lines if line.startswith("  size: [32, 48, 32] "))
    assert size.endswith("# all of a scan of 35 × 50 × 36 voxels (78%), in multiples of the strides")
    above = lines[lines.index("  kernels: [[3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]]") - 1]
    assert above.startswith("  # 3 voxels along every axis"), "where there is no room behind it"
    unwrapped = " ".join(line.strip().lstrip("#").strip() for line in lines)
    for key, choice in plan.choices.items():
        assert choice.reason in unwrapped, key
    assert max(map(len, lines)) <= 110


def test_the_recipe_comes_out_for_the_hippocampus(make_fingerprint):
    found = make_fingerprint(
        [(1, 1, 1)] * 208, (35, 50, 36), {"anterior": [1700] * 208, "posterior": [1600] * 208}
    )
    plan = plan_for(draft_for(found, ("mri",)))
    shipped = load_experiment("hippocampus_mri")
    experiment = plan.experiment
    assert experiment.patches.augmentation == shipped.patches.augmentation
    assert experiment.patches.foreground_fraction == shipped.patches.foreground_fraction
    levels = {"strides", "kernels"}  # the shipped experiment has the defaults, which are the same ones
    assert experiment.network.model_dump(exclude=levels) == shipped.network.model_dump(exclude=levels)
    same = {"steps", "validate_every", "checkpoint_every"}
    assert experiment.training.model_dump(exclude=same) == shipped.training.model_dump(exclude=same)


@pytest.mark.parametrize(
    ("shape", "seconds", "reason"),
    [
        ((35, 50, 36), 1800, "all of a scan of"),
        ((200, 200, 200), 1800, "as the budgets allow"),
        ((200, 200, 200), 10**7, "no patch has many more than 2,097,152 voxels"),
    ],
)
def test_what_keeps_a_patch_from_being_larger(make_fingerprint, shape, seconds, reason):
    draft = draft_for(make_fingerprint([(1, 1, 1)] * 5, shape), ("mri",), seconds)
    draft = replace(draft, candidate=choose_candidate(draft.problem, Budget(seconds / 1000, 1e12, 2e-11)))
    assert reason in assemble(draft)[0]["patches.size"].reason


def test_a_case_named_as_a_patient_is_another_patient(make_fingerprint):
    draft = draft_for(make_fingerprint([(1, 1, 1)] * 3), ("mri",))
    names = [("patient 3", None), ("a", "3"), ("b", "3")]
    files = (Path("image.nii"),), Path("label.nii")
    cases = tuple(Case(name, *files, patient=patient) for name, patient in names)
    choices, _ = assemble(replace(draft, dataset=replace(draft.dataset, cases=cases)))
    assert choices["dataset.folds"] == Choice(2, "2 patients")


def test_a_hundred_classes_and_four_channels(make_fingerprint):
    classes = {f"bone {number}": [10 + number**3] * 3 for number in range(104)}
    draft = draft_for(make_fingerprint([(1.5, 1.5, 1.5)] * 3, (200, 200, 180), classes), ("mri",) * 4)
    experiment = plan_for(draft).experiment
    assert experiment.patches.foreground_fraction == 0.5
    assert experiment.training.class_weights["bone 0"] == 3
    assert "bone 103" not in experiment.training.class_weights


def test_a_single_case_is_not_split(make_fingerprint):
    experiment = plan_for(draft_for(make_fingerprint(), ("ct",))).experiment
    assert experiment.dataset.fold is None
    assert experiment.patches.augmentation is not None and experiment.patches.augmentation.bias_field == 0


@pytest.mark.parametrize("seconds", [10.0, 100.0])
def test_a_budget_that_is_too_short_is_told(make_fingerprint, seconds):
    draft = draft_for(make_fingerprint([(1, 1, 1)] * 5), ("ct",), seconds)
    short = Draft(**(draft.__dict__ | {"pace": Pace(5.0, 1, 1, seconds)}))
    (warning,) = assemble(short)[1]
    assert "give more --time" in warning
    assert f"# Warning: {warning}"[:60] in dump_plan(plan_for(short), Path("plan.yaml"))
