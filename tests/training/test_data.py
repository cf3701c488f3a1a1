"""What a run begins with: its split and preprocessing, kept, found again and never swapped for others."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from medseg_brn.cases.dataset import read_dataset
from medseg_brn.errors import ConfigError, DataError
from medseg_brn.experiment import parse_experiment
from medseg_brn.training.data import SPLIT_NAME, prepare_training_data, split_dataset
from medseg_brn.volumes.reading import read_volume
from medseg_brn.volumes.volume import Volume
from medseg_brn.volumes.writing import write_volume


def make_experiment(path: Path, **sections):
    options = {"dataset": {"path": str(path), "folds": 3}, "patches": {"size": [8, 8, 8]}}
    return parse_experiment(options | sections, "test")


def silent(*_) -> None:
    """No progress."""


def prepare(experiment, run: Path, data: Path | None = None):
    return prepare_training_data(experiment, run, silent, data_folder=data)


def read_split(folder: Path) -> dict:
    return json.loads((folder / SPLIT_NAME).read_text())


def make_previous(phantom: Path, folder: Path) -> tuple[Path, Path]:
    """A run and its data folder as they once were: records beside the cache, another split than today's."""
    run, data = folder / "runs" / "a", folder / "data"
    prepare(make_experiment(phantom), run, data)
    split = read_split(run)
    training, (held_out,) = split["training"], split["validation"]
    split["training"], split["validation"] = [held_out, training[1]], [training[0]]
    for place in (run, data):
        shutil.copyfile(run / "preprocessing.json", data / "preprocessing.json")
        kept = {name: split[name] for name in ("training", "validation", "contents")}
        (place / SPLIT_NAME).write_text(json.dumps(kept))
    shutil.rmtree(data / "fold_0")
    return run, data


@pytest.mark.parametrize("known_by", ["the run", "the data folder", "both"])
def test_a_run_of_the_previous_layout_keeps_its_split(phantom, tmp_path, known_by):
    run, data = make_previous(phantom, tmp_path)
    expected = read_split(run)
    if known_by == "the run":
        (data / SPLIT_NAME).unlink()
    if known_by == "the data folder":
        shutil.rmtree(run)
    found = prepare(make_experiment(phantom), run, data)
    assert [case.name for case in found.validation_cases] == expected["validation"]
    for place in (run, data / "fold_0"):
        assert read_split(place)["validation"] == expected["validation"]
    assert json.loads((run / "preprocessing.json").read_text()) == found.preprocessing.as_dict()


@pytest.mark.parametrize("name", [SPLIT_NAME, "preprocessing.json"])
def test_the_records_of_a_run_are_never_overwritten_by_others(phantom, tmp_path, name):
    run, data = make_previous(phantom, tmp_path)
    prepare(make_experiment(phantom), tmp_path / "runs" / "b", data)
    path = data / "fold_0" / name
    content = json.loads(path.read_text())
    if name == SPLIT_NAME:
        content["training"] = content["training"][::-1]
    else:
        content["spacing_mm"] = [9.0, 9.0, 9.0]
    path.write_text(json.dumps(content))
    before = (run / name).read_text()
    with pytest.raises(DataError, match=r"not the one that the run of .* began with"):
        prepare(make_experiment(phantom), run, data)
    assert (run / name).read_text() == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (SPLIT_NAME, "{}", "does not list the cases of training and validation"),
        (SPLIT_NAME, '{"training": "a", "validation": []}', "does not list the cases"),
        (SPLIT_NAME, '{"training": [', "cannot be used: Expecting value"),
        (SPLIT_NAME, "[]", "holds no JSON object"),
        ("preprocessing.json", "{}", "cannot be used: preprocessing"),
    ],
)
def test_damaged_records_are_told_with_a_remedy(phantom, tmp_path, name, content, message):
    prepare(make_experiment(phantom), tmp_path / "run")
    path = tmp_path / "run" / name
    path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        prepare(make_experiment(phantom), tmp_path / "run")
    assert str(path) in str(caught.value)
    assert "restore the file to go on, or start a new run" in str(caught.value)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"training": {"class_weights": {"head": 2}}}, "training.class_weights names 'head'"),
        (
            {"patches": {"augmentation": {"flip_axes": [0], "mirrored_classes": [["head", "left"]]}}},
            "mirrored_classes names 'head'",
        ),
        ({"inference": {"postprocessing": {"head": {}}}}, "inference.postprocessing names 'head'"),
    ],
)
def test_wrong_names_are_told_before_a_case_is_prepared(phantom, tmp_path, section, message):
    with pytest.raises(ConfigError, match=message):
        prepare(make_experiment(phantom, **section), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fold", [0, None])
def test_a_case_of_which_nothing_is_annotated_is_refused_by_name(phantom, tmp_path, fold):
    folder = tmp_path / "cohort"
    shutil.copytree(phantom, folder)
    description = json.loads((folder / "dataset.json").read_text())
    description["labels"]["9"] = "ignore"
    (folder / "dataset.json").write_text(json.dumps(description))
    experiment = make_experiment(folder, dataset={"path": str(folder), "folds": 3, "fold": fold})
    assert split_dataset(read_dataset(folder), experiment, tmp_path / "data", silent)
    path = sorted((folder / "labelsTr").iterdir())[1]
    volume = read_volume(path)
    write_volume(Volume(np.full_like(volume.array, 9), volume.grid), path)
    with pytest.raises(DataError, match=rf"label map of {path.name.split('.')[0]} have the value 9"):
        split_dataset(read_dataset(folder), experiment, tmp_path / "data", silent)
