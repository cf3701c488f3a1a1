"""Regions that overlap and slices that nobody annotated, from dataset.json to the evaluated label maps."""

import json

import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from medseg_brn.cases.checking import check_dataset
from medseg_brn.cases.dataset import read_dataset
from medseg_brn.cases.phantom import make_phantom
from medseg_brn.errors import DataError
from medseg_brn.evaluation.evaluate import evaluate_folders
from medseg_brn.experiment import parse_experiment
from medseg_brn.models.package import load_model, load_network
from medseg_brn.training.data import prepare_training_data
from medseg_brn.training.run import train_run
from medseg_brn.volumes.reading import read_volume
from medseg_brn.volumes.volume import Volume
from medseg_brn.volumes.writing import write_volume

IGNORED = 99
REGIONS = {"head": [10, 20], "core": [20]}
OPTIONS = {
    "dataset": {"folds": 3},
    "patches": {"size": [16, 16, 16], "workers": 0},
    "network": {"channels": [8, 16]},
    "training": {"steps": 150, "optimizer": "adamw", "learning_rate": 0.01, "validate_every": 75},
}


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    """Three small heads and what lies deeper in them; of five axial slices, four are not annotated."""
    folder = make_phantom(tmp_path_factory.mktemp("phantom") / "heads", cases=3, voxel_mm=6.0)
    for path in (folder / "labelsTr").iterdir():
        volume = read_volume(path)
        head = volume.array > 0
        label_map = np.where(binary_erosion(head, iterations=2), 20, 10 * head).astype(np.uint8)
        label_map[:, :, np.arange(label_map.shape[2]) % 5 != 2] = IGNORED
        path.unlink()
        write_volume(Volume(label_map, volume.grid), path)
    path = folder / "dataset.json"
    labels = {"background": 0, **REGIONS, "ignore": IGNORED}
    content = json.loads(path.read_text()) | {"labels": labels, "regions_class_order": [10, 20]}
    path.write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def run(sparse, tmp_path_factory):
    """A run of 150 steps on two of them."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = OPTIONS | {"dataset": {**OPTIONS["dataset"], "path": str(sparse)}}
    train_run(parse_experiment(options, "test"), folder)
    return folder


def _dice(prediction: np.ndarray, reference: np.ndarray) -> float:
    return 2 * np.count_nonzero(prediction & reference) / (prediction.sum() + reference.sum())


@pytest.mark.slow
def test_the_dataset_is_found_good(sparse):
    dataset = read_dataset(sparse)
    assert [problem for problem in check_dataset(dataset) if problem.severity == "error"] == []
    assert dataset.targets.ignore_class == 3


@pytest.mark.slow
def test_the_network_has_a_channel_for_each_region(run):
    network, description = load_network(run)
    assert network.num_classes == 2
    assert [(one.name, one.written_value) for one in description.regions] == [
        ("head", 10),
        ("core", 20),
    ]


@pytest.mark.slow
def test_held_out_cases_are_evaluated_by_region_where_they_are_annotated(run, sparse):
    found = json.loads((run / "validation.json").read_text())
    (case,) = found["cases"]
    prediction, reference = (
        read_volume(path).array for path in (run / case["prediction"], case["reference"])
    )
    assert set(np.unique(prediction)) == {0, 10, 20}
    annotated = reference != IGNORED
    assert 0.1 < annotated.mean() < 0.3
    assert list(case["classes"]) == list(REGIONS)
    for name, values in REGIONS.items():
        masks = [np.isin(array, values)[annotated] for array in (prediction, reference)]
        assert case["classes"][name]["dice"] == pytest.approx(_dice(*masks))
    # slices that nobody annotated are segmented as well: the head goes on through them
    assert case["classes"]["head"]["dice"] > 0.8
    assert case["classes"]["core"]["dice"] > 0.6
    assert np.isin(prediction, REGIONS["head"])[~annotated].mean() > 0.1
    folders = evaluate_folders(run / "validation", sparse / "labelsTr")
    assert folders.cases[0].as_dict()["classes"] == case["classes"]


@pytest.mark.slow
def test_inference_writes_the_values_of_the_regions(run, sparse):
    image = next((sparse / "imagesTr").iterdir())
    label_map, probabilities = load_model(run).predict(image, probabilities=True)
    assert probabilities.shape == (2, *label_map.shape)
    expected = np.zeros(label_map.shape, int)
    for value, probability in zip((10, 20), probabilities, strict=True):
        expected[probability > 0.5] = value
    np.testing.assert_array_equal(label_map.array, expected)
    assert set(np.unique(label_map.array)) == {0, 10, 20}


@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_regions(run, sparse):
    path = sparse / "dataset.json"
    before = path.read_text()
    path.write_text(before.replace('"core"', '"deep"'))
    try:
        experiment = parse_experiment(OPTIONS | {"dataset": {"folds": 3, "path": str(sparse)}}, "test")
        with pytest.raises(DataError, match=r"the one that the run of .* began with .*'core'.*'deep'"):
            prepare_training_data(experiment, run, lambda *_: None)
    finally:
        path.write_text(before)


@pytest.mark.slow
def test_the_split_says_what_was_learnt(run):
    split = json.loads((run / "split.json").read_text())
    assert (split["structures"], split["ignore_value"]) == (REGIONS, IGNORED)
