"""A model of regions: described, saved, averaged, and written with the regions' own values."""

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from medseg_brn.cases.preprocessing import Preprocessing
from medseg_brn.errors import ModelError
from medseg_brn.inference.inputs import InputCase
from medseg_brn.models.architecture import build_network
from medseg_brn.models.description import ModelDescription, RegionEntry, read_description
from medseg_brn.models.ensemble import save_ensemble
from medseg_brn.models.model import Model
from medseg_brn.models.package import load_model, load_network, save_model
from medseg_brn.models.segmenter import ModelSegmenter
from medseg_brn.volumes.reading import read_channels, read_volume
from medseg_brn.volumes.volume import Grid, Volume
from medseg_brn.volumes.writing import write_volume

CPU = torch.device("cpu")
SHAPE = (12, 10, 8)


@pytest.fixture(scope="session")
def regions() -> ModelDescription:
    """The whole tumour and its core, whose label values are not consecutive."""
    return ModelDescription.model_validate(
        {
            "name": "regions",
            "network": {"channels": (4, 6)},
            "class_names": ("background", "label 10", "core"),
            "label_values": (0, 10, 40),
            "regions": [
                {"name": "tumour", "label_values": (10, 40), "written_value": 10},
                {"name": "core", "label_values": (40,), "written_value": 40},
            ],
            "modalities": ("mri",),
            "preprocessing": Preprocessing.model_validate(
                {"spacing_mm": (1, 1, 1), "intensity": [{"scheme": "none"}]}
            ),
            "patch_size": (8, 8, 8),
        }
    )


@pytest.fixture
def save(tmp_path, regions):
    """A function that saves a model of random weights and returns its folder."""

    def save(name: str, seed: int, **changes):
        own = regions.model_copy(update=changes)
        torch.manual_seed(seed)
        network = build_network(own.network, 1, own.num_outputs)
        for _ in range(3):
            network(torch.randn(2, 1, 8, 8, 8))
        with torch.no_grad():
            network.head.weight *= 4  # so that both regions occur
        save_model(tmp_path / name, network, own)
        return tmp_path / name

    return save


def _scan(spacing=1.0) -> Volume:
    array = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    return Volume(array, Grid(SHAPE, np.diag([spacing, spacing, spacing, 1.0])))


def _logits(folder, image: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return load_network(folder)[0].eval()(torch.from_numpy(image.copy())[None, None])[0]


def _write(probabilities: np.ndarray) -> np.ndarray:
    """By hand: the tumour first, the core over it."""
    label_map = np.zeros(probabilities.shape[1:], int)
    label_map[probabilities[0] > 0.5] = 10
    label_map[probabilities[1] > 0.5] = 40
    return label_map


@pytest.mark.parametrize("overlap", [None, 0.0])
def test_regions_are_written_in_their_order(save, overlap):
    folder = save("model", 0)
    expected = _logits(folder, _scan().array).sigmoid().numpy()
    assert expected.shape[0] == 2
    model = load_model(folder, "cpu", "fp32")
    label_map, probabilities = model.predict(_scan(), probabilities=True, overlap=overlap)
    if overlap is None:
        np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    np.testing.assert_array_equal(label_map.array, _write(probabilities))
    assert set(np.unique(label_map.array)) == {0, 10, 40}
    np.testing.assert_array_equal(model.predict(_scan(), overlap=overlap).array, label_map.array)


def test_mirrorings_and_members_are_averaged_as_probabilities(tmp_path, save):
    folders = [save("a", 0), save("b", 1)]
    save_ensemble(tmp_path / "both", folders)
    image = _scan().array
    passes = []
    for folder in folders:
        passes.append(_logits(folder, image).sigmoid().numpy())
        passes.append(_logits(folder, image[::-1]).sigmoid().numpy()[:, ::-1])
    ensemble = load_model(tmp_path / "both", "cpu", "fp32")
    label_map, probabilities = ensemble.predict(_scan(), probabilities=True, mirror_axes=(0,))
    np.testing.assert_allclose(probabilities, np.mean(passes, axis=0), atol=1e-5)
    np.testing.assert_array_equal(label_map.array, _write(probabilities))


def test_on_another_grid_probabilities_are_interpolated(save):
    label_map, probabilities = load_model(save("model", 0), "cpu", "fp32").predict(
        _scan(spacing=0.8), probabilities=True
    )
    assert probabilities.shape == (2, *SHAPE)
    np.testing.assert_array_equal(label_map.array, _write(probabilities))


def test_air_is_in_no_region(save):
    """The last 32 planes are zeros: more than a block from anything else."""
    scan = Volume(np.zeros((64, 16, 16), np.float32), Grid((64, 16, 16), np.eye(4)))
    scan.array[:16] = np.random.default_rng(0).normal(size=(16, 16, 16))
    label_map, probabilities = load_model(save("model", 0), "cpu", "fp32").predict(scan, probabilities=True)
    assert (probabilities[:, 48:] == 0).all()
    assert (label_map.array[48:] == 0).all()
    assert probabilities[:, :16].max() > 0.5


def test_the_description_survives_saving(save, regions):
    found = read_description(save("model", 0) / "model.json")
    assert isinstance(found, ModelDescription)
    assert found.regions == regions.regions
    assert (found.num_classes, found.num_outputs) == (3, 2)
    assert found.labels.structures.label_values == {"tumour": (10, 40), "core": (40,)}


def test_a_model_of_classes_says_nothing_of_regions(tmp_path, network, description):
    save_model(tmp_path / "model", network, description)
    assert "regions" not in json.loads((tmp_path / "model" / "model.json").read_text())
    assert "regions" not in description.model_dump()
    assert (description.num_outputs, description.labels.targets.regions) == (3, ())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_values": (10, 50)}, r"'tumour' has the values \[50\], which no class has"),
        ({"label_values": (0, 10)}, r"'tumour' has the values \[0\]"),
        ({"written_value": 7}, r"'tumour' has the values \[7\]"),
        ({"written_value": 40}, r"written with \[40, 40\], which repeats"),
        ({"label_values": ()}, "at least 1 item"),
        ({"label_values": (40,), "written_value": 10}, "written as 10, which is none of its values"),
        ({"name": "core"}, "called core, core, which repeats a name"),
    ],
)
def test_regions_that_cannot_be_are_refused(regions, changes, message):
    plain = regions.model_dump(mode="json")
    plain["regions"][0] |= changes
    with pytest.raises(ValidationError, match=message):
        ModelDescription.model_validate(plain)


def test_members_of_an_ensemble_have_the_same_regions(tmp_path, save, regions):
    other = (regions.regions[0], RegionEntry(name="middle", label_values=(40,), written_value=40))
    with pytest.raises(ModelError, match=r"regions is .*middle \(40,\), as 40"):
        save_ensemble(tmp_path / "both", [save("a", 0), save("b", 1, regions=other)])


def test_a_case_becomes_files_of_regions(tmp_path, save):
    write_volume(_scan(), tmp_path / "p1.nii.gz")
    segmenter = ModelSegmenter(save("model", 0), precision="fp32", probabilities=True, measurements=True)
    case = InputCase("p1", (tmp_path / "p1.nii.gz",), "p1.nii.gz")
    (map_path, probabilities_path), details = segmenter.write(
        segmenter.segment(segmenter.read(case), None), tmp_path / "out" / "p1.nii.gz"
    )
    label_map = read_volume(map_path).array
    probabilities = np.stack([channel.array for channel in read_channels(probabilities_path)])
    np.testing.assert_array_equal(label_map, _write(probabilities))
    tumour, core = details["measurements"]
    assert (tumour["structure"], tumour["label"], core["label"]) == ("tumour", "10+40", 40)
    assert tumour["volume_ml"] == pytest.approx((label_map > 0).sum() / 1000)
    assert core["volume_ml"] == pytest.approx((label_map == 40).sum() / 1000)


def test_a_region_written_with_an_inner_region_s_value_is_refused(regions):
    plain = regions.model_dump(mode="json")
    plain |= {"class_names": ["background", "a", "b", "c"], "label_values": [0, 10, 40, 70]}
    plain["regions"] = [
        {"name": "tumour", "label_values": [10, 40, 70], "written_value": 40},
        {"name": "core", "label_values": [40, 70], "written_value": 70},
    ]
    with pytest.raises(ValidationError, match="'tumour' is written as 40, which belongs to 'core'"):
        ModelDescription.model_validate(plain)


def test_rules_are_for_regions_and_tear_no_holes_into_those_around(save, regions):
    """Only the largest piece of the core is kept; the others stay tumour."""
    settings = {"postprocessing": {"core": {"keep_largest": True}}}
    own = ModelDescription.model_validate(regions.model_dump() | {"inference": settings})
    folder = save("model", 0)
    network, _ = load_network(folder)
    before = load_model(folder, "cpu", "fp32").predict(_scan()).array
    after = Model.from_network(network.eval(), own, CPU, torch.float32).predict(_scan()).array
    assert 0 < (after == 40).sum() < (before == 40).sum()
    np.testing.assert_array_equal(after > 0, before > 0)
    with pytest.raises(ValidationError, match=r"names 'label 10', which is no structure.* tumour, core"):
        ModelDescription.model_validate(
            regions.model_dump() | {"inference": {"postprocessing": {"label 10": {}}}}
        )
