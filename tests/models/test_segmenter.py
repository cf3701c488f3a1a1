"""The steps of a case with a real model: from its files to its files, with settings and details."""

import pickle
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from medseg_brn.errors import ConfigError, ModelError
from medseg_brn.inference.inputs import InputCase
from medseg_brn.models.package import load_model, save_model
from medseg_brn.models.segmenter import ModelSegmenter
from medseg_brn.volumes.reading import read_channels, read_volume
from medseg_brn.volumes.volume import Grid, Volume
from medseg_brn.volumes.writing import write_volume


@pytest.fixture
def model_folder(tmp_path, network, description):
    save_model(tmp_path / "model", network, description)
    return tmp_path / "model"


@pytest.fixture
def case(tmp_path) -> InputCase:
    array = np.random.default_rng(0).normal(100, 20, (11, 9, 7)).astype(np.float32)
    write_volume(Volume(array, Grid((11, 9, 7), np.diag([-1.0, 1.0, 2.0, 1.0]))), tmp_path / "p1.nii.gz")
    return InputCase("p1", (tmp_path / "p1.nii.gz",), "p1.nii.gz")


def _segment(segmenter: ModelSegmenter, case: InputCase, target):
    return segmenter.write(segmenter.segment(segmenter.read(case), None), target)


def test_a_case_becomes_files_and_details(tmp_path, model_folder, case):
    segmenter = ModelSegmenter(model_folder, precision="fp32", probabilities=True, measurements=True)
    paths, details = _segment(segmenter, case, tmp_path / "out" / "p1.nrrd")
    assert [path.name for path in paths] == ["p1.nrrd", "p1_probabilities.nii.gz"]
    model, scan = load_model(model_folder, precision="fp32"), read_volume(case.image_paths[0])
    label_map, probabilities = model.predict(case.image_paths[0], probabilities=True)
    found = read_volume(paths[0])
    np.testing.assert_array_equal(found.array, label_map.array)
    for channel, expected in zip(read_channels(paths[1]), probabilities, strict=True):
        np.testing.assert_allclose(channel.array, expected, atol=1e-6)
    assert details["plan"].startswith("exact")
    assert details["predicted_peak_bytes"] > 1e8
    tumour, cyst = details["measurements"]
    assert (tumour["structure"], tumour["label"], cyst["label"]) == ("tumour", 2, 500)
    mask = found.array == 500
    assert cyst["volume_ml"] == pytest.approx(mask.sum() * 2 / 1000)
    assert cyst["mean_intensity"][0] == pytest.approx(scan.array[mask].mean(dtype=float))


def test_the_scan_s_own_values_are_kept_only_where_they_are_measured(model_folder, case):
    assert ModelSegmenter(model_folder).read(case).channels == ()
    (kept,) = ModelSegmenter(model_folder, measurements=True).read(case).channels
    np.testing.assert_array_equal(kept.array, read_volume(case.image_paths[0]).array)


def test_settings_are_overridden_and_told(tmp_path, model_folder, case):
    plain = ModelSegmenter(model_folder, precision="fp32")
    mirrored = ModelSegmenter(
        model_folder,
        precision="fp32",
        overrides=("mirror_axes=[0, 2]", "postprocessing.cyst.keep_largest=true"),
    )
    settings = mirrored.describe_settings()
    assert settings["precision"] == "float32"
    assert settings["inference"]["mirror_axes"] == [0, 2]
    assert settings["inference"]["postprocessing"]["cyst"]["keep_largest"] is True
    assert plain.describe_settings()["inference"]["mirror_axes"] == []
    assert plain.describe_model() == mirrored.describe_model()
    _, details = _segment(mirrored, case, tmp_path / "out.nii.gz")
    assert details["plan"].endswith("4 passes averaged")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mirror_axes=[3]", "inference.mirror_axes"),
        ("postprocessing.liver.fill_holes=true", "'liver', which is no structure"),
        ("skipair=false", "did you mean 'skip_air'"),
    ],
)
def test_wrong_overrides_are_told_when_the_model_is_loaded(model_folder, override, message):
    with pytest.raises(ConfigError, match=message):
        ModelSegmenter(model_folder, overrides=(override,)).load()


def test_a_model_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ModelError, match="nowhere"):
        ModelSegmenter(tmp_path / "nowhere").load()


def test_processes_share_the_memory(model_folder, case):
    alone = ModelSegmenter(model_folder, memory_bytes=3 * 10**9)
    shared = ModelSegmenter(model_folder, memory_bytes=3 * 10**9, processes=100)
    alone.segment(alone.read(case), None)
    with pytest.raises(ConfigError, match="raise --memory"):  # 30 MB are less than torch itself takes
        shared.segment(shared.read(case), None)


def test_it_can_be_sent_to_another_process(model_folder):
    segmenter = ModelSegmenter(model_folder, overrides=("skip_air=false",), threads=1).with_chosen_precision()
    assert segmenter.precision in ("fp32", "bf16")
    assert pickle.loads(pickle.dumps(segmenter)) == segmenter  # noqa: S301


MEASURE = """
import sys
from pathlib import Path
from medseg_brn.inference.inputs import InputCase
from medseg_brn.inference.machine import peak_resident_bytes, reset_peak, resident_bytes
from medseg_brn.models.segmenter import ModelSegmenter

segmenter = ModelSegmenter(Path(sys.argv[1]), precision="fp32", memory_bytes=int(sys.argv[3]), threads=1)
segmenter.load()
reset_peak()
prepared = segmenter.read(InputCase("p1", (Path(sys.argv[2]),), "p1.nii.gz"))
reading = peak_resident_bytes()
reset_peak()
details = segmenter.segment(prepared, None).details
print(reading, peak_resident_bytes(), details["predicted_peak_bytes"], details["plan"])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks are read from /proc")
@pytest.mark.parametrize("scaled", [False, True], ids=["as it is", "scaled and four times as fine"])
def test_the_process_stays_within_its_memory(tmp_path, model_folder, scaled):
    """The features of 23 million voxels alone would take 740 MB in fp32, the scores 280 MB."""
    shape = (288, 284, 280)
    image = nib.Nifti1Image(
        np.random.default_rng(0).integers(0, 1000, shape, np.int16),
        np.diag([0.5, 0.5, 1.0, 1.0] if scaled else [1.0, 1.0, 2.0, 1.0]),
    )
    if scaled:
        image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "scan.nii")
    allowed = 930_000_000  # 16 MB of it for pydicom, which nibabel loads where it is installed
    command = [sys.executable, "-c", MEASURE, model_folder, tmp_path / "scan.nii", allowed]
    told = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout
    reading, peak, predicted, *plan = told.split()
    assert int(reading) <= allowed
    assert int(peak) <= allowed
    assert int(predicted) <= allowed
    assert plan[0] == "exact,"
