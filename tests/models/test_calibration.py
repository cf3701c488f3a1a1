"""Calibration: a copy of the model with ranges of its features, which infers in int8."""

import json
import re

import numpy as np
import pytest
import torch

from medseg_brn.config import InferenceConfig, NetworkConfig
from medseg_brn.errors import ConfigError, DataError, ModelError
from medseg_brn.inference.prediction import Options, compute_scores
from medseg_brn.models.architecture import build_network
from medseg_brn.models.calibration import save_calibrated
from medseg_brn.models.description import ModelDescription, read_description
from medseg_brn.models.ensemble import save_ensemble
from medseg_brn.models.package import load_model, load_network, save_model
from medseg_brn.networks.folding import fold
from medseg_brn.networks.quantization import measure_ranges
from medseg_brn.networks.quantized_layers import weight_limit
from medseg_brn.volumes.scratch import Scratch
from medseg_brn.volumes.volume import Grid, Volume
from medseg_brn.volumes.writing import write_volume

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
SHAPE = (16, 12, 10)
needs_int8 = pytest.mark.skipif(weight_limit() is None, reason="this processor has no 8-bit convolutions")


def _array(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(100 + 10 * seed, 30, SHAPE).astype(np.float32)


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for seed in range(3):
        write_volume(Volume(_array(seed), Grid(SHAPE, AFFINE)), folder / f"scan{seed}.nii.gz")
    return folder


@pytest.fixture
def source(tmp_path, network, description):
    save_model(tmp_path / "run" / "model", network, description)
    return tmp_path / "run"


def _read(folder) -> ModelDescription:
    found = read_description(folder / "model.json")
    assert isinstance(found, ModelDescription)
    return found


def test_the_ranges_are_those_of_the_scans_as_the_network_sees_them(tmp_path, source, scans):
    """z-scored by hand; the network's grid is the scans' own, a multiple of its strides."""
    told = []
    count = save_calibrated(tmp_path / "int8", source, [scans], progress=lambda *call: told.append(call))
    assert count == 3
    assert told == [(0, 3, "scan0"), (1, 3, "scan1"), (2, 3, "scan2"), (3, 3, "")]
    network, _ = load_network(source)
    images = [(array - array.mean()) / array.std() for array in map(_array, range(3))]
    folded = fold(network.eval(), (1, 1, 8, 8, 8))
    expected = measure_ranges(folded, [torch.from_numpy(image)[None, None] for image in images])
    found = _read(tmp_path / "int8").activation_ranges
    assert found is not None
    assert set(found) == set(expected)
    for name, limits in expected.items():
        np.testing.assert_allclose(found[name], limits, rtol=0.03, atol=0.03)  # measured in bf16, maybe


def test_weights_and_all_else_stay_as_they_were(tmp_path, source, scans):
    save_calibrated(tmp_path / "int8", source, [scans / "scan0.nii.gz"])
    before, after = _read(source / "model"), _read(tmp_path / "int8")
    assert before.activation_ranges is None
    assert after.model_copy(update={"activation_ranges": None}) == before
    weights = [folder / "model.safetensors" for folder in (source / "model", tmp_path / "int8")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    images = scans / "scan1.nii.gz"
    maps = [load_model(folder, "cpu", "fp32").predict(images).array for folder in (source, tmp_path / "int8")]
    np.testing.assert_array_equal(*maps)


@needs_int8
def test_a_calibrated_model_infers_in_int8_nearly_as_in_fp32(tmp_path, source, scans):
    save_calibrated(tmp_path / "int8", source, [scans])
    model = load_model(tmp_path / "int8", "cpu", "int8")
    assert model.members[0].predictor.dtype == torch.uint8
    expected, found = (
        load_model(tmp_path / "int8", "cpu", precision).predict(scans / "scan1.nii.gz", probabilities=True)[1]
        for precision in ("fp32", "int8")
    )
    assert 0 < abs(found - expected).max() < 0.15
    assert abs(found - expected).mean() < 0.02


def test_a_model_can_be_calibrated_in_place_and_anew(tmp_path, source, scans):
    save_calibrated(source / "model", source, [scans / "scan0.nii.gz"])
    first = _read(source / "model").activation_ranges
    save_calibrated(source / "model", source, [scans])
    assert _read(source / "model").activation_ranges != first
    assert sorted(path.name for path in source.iterdir()) == ["model"]


@needs_int8
def test_members_of_an_ensemble_keep_their_ranges(tmp_path, description, scans):
    folders = []
    for seed in range(2):
        torch.manual_seed(seed)
        network = build_network(description.network, 1, 3)
        network(torch.randn(2, 1, 8, 8, 8))
        save_model(tmp_path / f"fold{seed}", network, description)
        folders.append(tmp_path / f"int8-{seed}")
        save_calibrated(folders[-1], tmp_path / f"fold{seed}", [scans])
    save_ensemble(tmp_path / "both", folders)
    image = (_array(1) - _array(1).mean()) / _array(1).std()

    def scores(folder) -> np.ndarray:
        predictors = [member.predictor for member in load_model(folder, "cpu", "int8").members]
        with Scratch() as scratch:
            slabs = compute_scores(predictors, [image[None]] * len(predictors), Options(), scratch).slabs
            return np.concatenate(list(slabs), axis=1)

    np.testing.assert_allclose(
        scores(tmp_path / "both"), (scores(folders[0]) + scores(folders[1])) / 2, atol=1e-6
    )
    save_ensemble(tmp_path / "mixed", [folders[0], tmp_path / "fold1"])
    with pytest.raises(ConfigError, match="no activation_ranges"):
        load_model(tmp_path / "mixed", "cpu", "int8")
    with pytest.raises(ModelError, match=r"both is an ensemble of 2 models, .*members/0"):
        save_calibrated(tmp_path / "again", tmp_path / "both", [scans])


@needs_int8
def test_a_model_without_ranges_says_how_to_get_them(source):
    with pytest.raises(ConfigError, match=r"no activation_ranges.*medseg-brn models quantize MODEL SCANS"):
        load_model(source, "cpu", "int8")


@pytest.mark.parametrize(
    ("options", "message"), [({"norm": "group"}, "tile"), ({"encoder": "residual"}, "residual")]
)
def test_what_cannot_compute_in_int8_is_refused_before_any_scan_is_read(
    tmp_path, description, options, message
):
    changed = description.model_copy(update={"network": NetworkConfig(channels=(4, 6), **options)})
    save_model(tmp_path / "model", build_network(changed.network, 1, 3), changed)
    with pytest.raises(ConfigError, match=f"cannot compute in int8: .*{message}"):
        save_calibrated(tmp_path / "int8", tmp_path / "model", [tmp_path / "nowhere"])


def test_nothing_is_left_where_a_scan_is_bad(tmp_path, source, scans):
    (scans / "scan9.nii.gz").write_bytes(b"no image")
    with pytest.raises(DataError, match="scan9"):
        save_calibrated(tmp_path / "int8", source, [scans])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "scans"]


def test_a_folder_of_something_else_is_never_replaced(tmp_path, source, scans):
    with pytest.raises(ModelError, match="holds files that are no model"):
        save_calibrated(tmp_path, source, [scans])


def test_mirrorings_of_inference_are_measured_too(tmp_path, network, description, scans):
    mirrored = description.model_copy(update={"inference": InferenceConfig(mirror_axes=(0,))})
    for name, own in (("plain", description), ("mirrored", mirrored)):
        save_model(tmp_path / name, network, own)
        save_calibrated(tmp_path / f"{name}8", tmp_path / name, [scans])
    plain, both = (_read(tmp_path / f"{name}8").activation_ranges or {} for name in ("plain", "mirrored"))
    wider = [name for name in plain if both[name][0] < plain[name][0] or both[name][1] > plain[name][1]]
    assert wider
    assert all(both[name][0] <= plain[name][0] and both[name][1] >= plain[name][1] for name in plain)


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ('{"head.input": [2.0, -1.0]}', r"activation_ranges\.head\.input is \(2\.0, -1\.0\), from a greater"),
        ('{"head.input": [0.0, NaN]}', r"activation_ranges\.head\.input\.1: .*finite"),
        ('{"head.input": [-Infinity, 1.0]}', r"activation_ranges\.head\.input\.0: .*finite"),
        ('{"head.input": [1.0]}', r"activation_ranges\.head\.input"),
    ],
)
def test_ranges_that_are_none_are_found(source, ranges, message):
    path = source / "model" / "model.json"
    plain = json.loads(path.read_text())
    path.write_text(re.sub(r'"activation_ranges": null', f'"activation_ranges": {ranges}', json.dumps(plain)))
    with pytest.raises(ModelError, match=f"is damaged: .*{message}"):
        load_model(source)
