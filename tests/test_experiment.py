"""Experiment files: every shipped one, overrides, and what a mistake is told."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from medseg_brn.config import Experiment
from medseg_brn.errors import ConfigError
from medseg_brn.experiment import (
    dump_experiment,
    experiment_schema,
    find_config,
    load_experiment,
    shipped_comparisons,
    shipped_configs,
)

ROOT = Path(__file__).parents[1]


@pytest.fixture
def write_config(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return write


def test_the_shipped_experiments_are_those_of_the_folder():
    assert {path.name for path in (*shipped_configs(), *shipped_comparisons())} == {
        path.name for path in (ROOT / "configs").glob("*.yaml")
    }
    assert {"demo", "hippocampus_mri", "abdomen_ct"} <= {path.stem for path in shipped_configs()}


@pytest.mark.parametrize("path", shipped_configs(), ids=lambda path: path.stem)
def test_each_shipped_experiment_passes_the_parser_by_name_and_by_path(path):
    assert load_experiment(path.stem) == load_experiment(path)


def test_a_dumped_experiment_reads_back_as_itself(tmp_path):
    experiment = load_experiment("hippocampus_mri", ["training.steps=7", "patches.augmentation=null"])
    path = tmp_path / "dumped.yaml"
    path.write_text(dump_experiment(experiment))
    assert load_experiment(path) == experiment


def test_a_dataset_path_is_taken_from_the_current_folder(write_config, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert load_experiment(write_config("dataset: {path: scans}")).dataset.path == str(tmp_path / "scans")
    assert load_experiment(write_config("dataset: {path: phantom_ct}")).dataset.path == "phantom_ct"


def test_overrides_win_and_are_yaml(write_config):
    path = write_config("training: {steps: 10, batch_size: 1}")
    experiment = load_experiment(
        path, ["training.steps=20", "patches.size=[16, 24, 32]", "dataset.fold=null"]
    )
    assert experiment.training.steps == 20
    assert experiment.training.batch_size == 1
    assert experiment.patches.size == (16, 24, 32)
    assert experiment.dataset.fold is None
    assert load_experiment(path, ["training.weight_decay=3e-5"]).training.weight_decay == 3e-5


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("training: {step: 3}", ["mine.yaml", "'training.step'", "did you mean 'steps'"]),
        ("trainning: {steps: 3}", ["'trainning'", "did you mean 'training'"]),
        ("steps: 3", ["'steps'", "belongs to section 'training'"]),
        ("patches: {augmentation: {rotation: 3}}", ["'patches.augmentation.rotation'", "'rotation_degrees'"]),
        ("training: {steps: 0}", ["training.steps", "greater than or equal to 1", "got 0"]),
        ("training: {steps: many}", ["training.steps", "valid integer", "'many'"]),
        ("dataset: {folds: 3, fold: 3}", ["fold 3", "folds - 1 = 2"]),
        ("network: {channels: [8, 16], strides: [[1, 1, 1]]}", ["strides has 1 entries", "channels has 2"]),
        ("network: {channels: [8], kernels: [[3, 2, 3]]}", ["even", "(3, 2, 3)"]),
        ("network: {renorm_schedule: [0.5, 0.1, 0.2]}", ["(0.5, 0.1, 0.2)", "must not decrease"]),
        ("inference: {mirror_axes: [0, 0]}", ["inference.mirror_axes", "(0, 0) repeat one"]),
        ("training: {learning_rate: .inf}", ["training.learning_rate", "finite"]),
        ("patches: {augmentation: {scale: [1.2, 0.8]}}", ["scale is a range from low to high", "(1.2, 0.8)"]),
        ("network: {channels: []}", ["network.channels", "at least 1"]),
        ("a: 2024-13-45", ["mine.yaml", "not a plain YAML file"]),
        ("- 1\n- 2", ["mine.yaml", "list", "mapping"]),
        ("a: [", ["mine.yaml", "not a plain YAML file"]),
        ("a: !!python/object/apply:os.system ['true']", ["not a plain YAML file", "python/object"]),
    ],
)
def test_a_mistake_names_the_key_the_file_and_the_remedy(write_config, text, fragments):
    with pytest.raises(ConfigError) as caught:
        load_experiment(write_config(text))
    assert all(fragment in str(caught.value) for fragment in fragments), str(caught.value)


@pytest.mark.parametrize("override", ["training.steps", "=3", "training.steps=[1"])
def test_a_malformed_override_is_refused(write_config, override):
    with pytest.raises(ConfigError, match=r"Override"):
        load_experiment(write_config(""), [override])


def test_an_unknown_name_lists_the_shipped_ones_and_the_nearest():
    with pytest.raises(ConfigError, match=r"abdomen_ct.*did you mean 'hippocampus_mri'"):
        find_config("hipocampus_mri")


def test_the_schema_describes_every_option():
    schema = json.loads(experiment_schema())
    sections = [schema, *schema["$defs"].values()]
    undescribed = [
        name
        for section in sections
        for name, option in section["properties"].items()
        if "description" not in option and "$ref" not in option
    ]
    assert undescribed == []


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8), st.none() | st.integers() | st.text(max_size=5), max_size=3
    )
)
def test_any_mapping_is_an_experiment_or_a_config_error(tmp_path_factory, options):
    path = tmp_path_factory.mktemp("any") / "any.yaml"
    path.write_text(yaml.safe_dump(options), encoding="utf-8")
    try:
        assert isinstance(load_experiment(path), Experiment)
    except ConfigError as error:
        assert str(path) in str(error)


def test_mirrored_classes_are_for_a_mirrored_axis_0(write_config):
    text = "patches: {{augmentation: {{flip_axes: {}, mirrored_classes: [[left, right]]}}}}"
    with pytest.raises(ConfigError, match="flip_axes \\(1,\\) does not have it; add 0 to flip_axes"):
        load_experiment(write_config(text.format("[1]")))
    load_experiment(write_config(text.format("[1, 0]")))
