"""`medseg-brn infer`, run as a person runs it."""

import csv
import json
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from typer.testing import CliRunner

from medseg_brn.cases.preprocessing import Preprocessing
from medseg_brn.cli.main import app
from medseg_brn.config import NetworkConfig
from medseg_brn.errors import MedsegError
from medseg_brn.models.architecture import build_network
from medseg_brn.models.description import ModelDescription
from medseg_brn.models.package import load_model, save_model
from medseg_brn.volumes.reading import read_channels, read_volume
from medseg_brn.volumes.volume import Grid, Volume
from medseg_brn.volumes.writing import write_volume

LPS = np.array([[-1, 0, 0, 90], [0, -1, 0, 126], [0, 0, 1.5, -72], [0, 0, 0, 1.0]])


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    description = ModelDescription(
        name="tiny",
        network=NetworkConfig(channels=(4, 6), norm="none"),
        class_names=("background", "tumour"),
        label_values=(0, 7),
        modalities=("mri",),
        preprocessing=Preprocessing.model_validate(
            {"spacing_mm": (1, 1, 2), "intensity": [{"scheme": "zscore"}]}
        ),
        patch_size=(8, 8, 8),
    )
    folder = tmp_path_factory.mktemp("run") / "model"
    save_model(folder, build_network(description.network, 1, 2), description)
    return folder


@pytest.fixture
def scans(tmp_path) -> Path:
    """A folder with two scans, one truncated file and a note."""
    folder = tmp_path / "scans"
    for seed, name in enumerate(("a.nii.gz", "b.nrrd")):
        array = np.random.default_rng(seed).normal(100, 20, (9, 8, 7)).astype(np.float32)
        write_volume(Volume(array, Grid((9, 8, 7), LPS)), folder / name)
    (folder / "broken.nii.gz").write_bytes((folder / "a.nii.gz").read_bytes()[:100])
    (folder / "notes.txt").write_text("from the other scanner")
    return folder


def _infer(*arguments):
    return CliRunner().invoke(app, ["infer", *map(str, arguments)])


def test_one_scan_into_a_file(tmp_path, model_folder, scans):
    result = _infer(model_folder.parent, scans / "a.nii.gz", "-o", tmp_path / "out.nii.gz", "--device", "cpu")
    assert result.exit_code == 0, result.output
    found = read_volume(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(found.affine, LPS)
    expected = load_model(model_folder).predict(scans / "a.nii.gz").array
    np.testing.assert_array_equal(found.array, expected)
    assert set(np.unique(found.array)) == {0, 7}
    assert str(tmp_path / "out.nii.gz") in result.stdout.replace("\n", "")


def test_a_folder_with_a_bad_scan_segments_the_others_and_says_so(tmp_path, model_folder, scans):
    result = _infer(model_folder, scans, "-o", tmp_path / "out", "--probabilities")
    assert isinstance(result.exception, MedsegError)
    assert "1 of 3 scans could not be segmented" in str(result.exception)
    assert "broken.nii.gz" in str(result.exception)
    assert "2 of 3 scans segmented" in result.stdout
    assert "notes.txt" in result.stdout
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == [
        "a.nii.gz", "a_probabilities.nii.gz", "b.nrrd", "b_probabilities.nii.gz", "manifest.json",
    ]  # fmt: skip
    probabilities = read_channels(tmp_path / "out" / "b_probabilities.nii.gz")
    assert len(probabilities) == 2
    np.testing.assert_array_equal(
        read_volume(tmp_path / "out" / "b.nrrd").array, 7 * (probabilities[1].array > probabilities[0].array)
    )


def test_the_exit_code_is_1_with_one_message_and_no_traceback(tmp_path, model_folder, scans):
    command = [sys.executable, "-m", "medseg_brn", "infer"]
    arguments = [str(model_folder), str(scans / "broken.nii.gz"), "-o", str(tmp_path / "out.nii.gz")]
    result = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stdout == ""
    (message,) = result.stderr.strip().splitlines()
    assert message.startswith("medseg-brn: ") and "broken.nii.gz" in message
    assert not (tmp_path / "out.nii.gz").exists()


def test_options_change_what_is_predicted(tmp_path, model_folder, scans):
    _infer(model_folder, scans / "a.nii.gz", "-o", tmp_path / "plain", "--probabilities")
    mirrored = _infer(
        model_folder, scans / "a.nii.gz", "-o", tmp_path / "tta", "--probabilities", "--mirror", "0,2",
        "--overlap", "0.25", "--threads", torch.get_num_threads(), "--precision", "fp32",
    )  # fmt: skip
    assert mirrored.exit_code == 0, mirrored.output
    _, expected = load_model(model_folder, precision="fp32").predict(
        scans / "a.nii.gz", probabilities=True, mirror_axes=(0, 2), overlap=0.25
    )
    plain, tta = (
        np.stack([c.array for c in read_channels(tmp_path / name / "a_probabilities.nii.gz")])
        for name in ("plain", "tta")
    )
    np.testing.assert_allclose(tta, expected, atol=1e-6)
    assert not np.allclose(plain, tta, atol=1e-6)


def test_the_manifest_tells_model_versions_and_each_scan(tmp_path, model_folder, scans):
    _infer(model_folder, scans, "-o", tmp_path / "out", "--memory", "2GB", "-s", "skip_air=false")
    content = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert content["model"]["name"] == "tiny"
    assert content["settings"]["inference"]["skip_air"] is False
    assert {name: case["outcome"] for name, case in content["cases"].items()} == {
        "a": "done", "b": "done", "broken": "failed",
    }  # fmt: skip
    assert "broken.nii.gz" in content["cases"]["broken"]["error"]
    done = content["cases"]["a"]
    assert set(done["seconds"]) == {"read", "segment", "write"}
    assert done["plan"].startswith("exact") and done["peak_memory_bytes"] > 0
    (label_map,) = done["outputs"]
    assert label_map["path"] == "a.nii.gz"
    assert label_map["sha256"] == sha256((tmp_path / "out" / "a.nii.gz").read_bytes()).hexdigest()


def test_a_second_call_goes_on_where_the_first_one_stopped(tmp_path, model_folder, scans):
    first = _infer(model_folder, scans, "-o", tmp_path / "out")
    assert "2 of 3 scans segmented" in first.stdout
    before = (tmp_path / "out" / "a.nii.gz").stat().st_mtime_ns
    write_volume(read_volume(scans / "a.nii.gz"), scans / "broken.nii.gz")
    second = _infer(model_folder, scans, "-o", tmp_path / "out")
    assert second.exit_code == 0, second.output
    assert "3 of 3 scans segmented, 2 of them before" in second.stdout.replace("\n", " ")
    assert (tmp_path / "out" / "a.nii.gz").stat().st_mtime_ns == before
    _infer(model_folder, scans, "-o", tmp_path / "out", "--precision", "fp32", "-s", "skip_air=false")
    assert (tmp_path / "out" / "a.nii.gz").stat().st_mtime_ns > before


@pytest.mark.slow
def test_a_killed_call_leaves_whole_files_only_and_is_gone_on_with(tmp_path, model_folder):
    for seed in range(12):
        array = np.random.default_rng(seed).normal(100, 20, (90, 80, 70)).astype(np.float32)
        write_volume(Volume(array, Grid((90, 80, 70), LPS)), tmp_path / "scans" / f"{seed:02}.nii.gz")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "medseg_brn", "infer", model_folder, tmp_path / "scans", "-o", out]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
    while len(list(out.glob("[0-9]*.nii.gz"))) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9
    whole = sorted(path.name for path in out.glob("[0-9]*.nii.gz"))
    assert 3 <= len(whole) < 12
    for name in whole:
        assert read_volume(out / name).shape == (90, 80, 70)
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    assert "12 of 12 scans segmented" in result.stdout
    assert sorted(path.name for path in out.glob("[0-9]*.nii.gz")) == [f"{n:02}.nii.gz" for n in range(12)]


def test_jobs_give_what_one_process_gives(tmp_path, model_folder, scans):
    one = _infer(model_folder, scans, "-o", tmp_path / "one")
    two = _infer(model_folder, scans, "-o", tmp_path / "two", "--jobs", "2", "--memory", "4GB")
    assert isinstance(one.exception, MedsegError) and isinstance(two.exception, MedsegError)
    assert str(one.exception) == str(two.exception)
    for name in ("a.nii.gz", "b.nrrd"):
        found, expected = (read_volume(tmp_path / folder / name) for folder in ("two", "one"))
        np.testing.assert_array_equal(found.array, expected.array)


def test_measurements_are_a_table_beside_the_label_maps(tmp_path, model_folder, scans):
    (scans / "broken.nii.gz").unlink()
    result = _infer(model_folder, scans, "-o", tmp_path / "out", "--measurements")
    assert result.exit_code == 0, result.output
    with (tmp_path / "out" / "measurements.csv").open(newline="") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"a", "b"}
    scan, label_map = read_volume(scans / "a.nii.gz"), read_volume(tmp_path / "out" / "a.nii.gz")
    mask = label_map.array == 7
    assert rows["a"]["structure"] == "tumour"
    assert float(rows["a"]["volume_ml"]) == pytest.approx(mask.sum() * 1.5 / 1000)
    assert float(rows["a"]["mean_intensity"]) == pytest.approx(scan.array[mask].mean(), rel=1e-4)


def test_verbose_tells_plan_and_memory(tmp_path, model_folder, scans):
    result = _infer(model_folder, scans / "a.nii.gz", "-o", tmp_path / "a.nii.gz", "-v", "--memory", "3GB")
    assert "exact, " in result.stderr and "GB predicted" in result.stderr
    assert not (tmp_path / "manifest.json").exists()


def test_a_structure_is_postprocessed_on_request(tmp_path, model_folder, scans):
    _infer(model_folder, scans / "a.nii.gz", "-o", tmp_path / "plain.nii.gz")
    _infer(
        model_folder, scans / "a.nii.gz", "-o", tmp_path / "kept.nii.gz",
        "-s", "postprocessing.tumour.keep_largest=true",
    )  # fmt: skip
    plain, kept = (read_volume(tmp_path / f"{name}.nii.gz").array == 7 for name in ("plain", "kept"))
    assert ndimage.label(plain)[1] > 1
    assert ndimage.label(kept)[1] == 1
    assert (plain | kept == plain).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--memory", "lots"], "'lots' is no amount of memory"),
        (["--memory", "1MB"], "raise --memory"),
        (["-s", "skip_airs=false"], "did you mean 'skip_air'"),
        (["-s", "postprocessing.tumor.keep_largest=true"], "nearest: tumour"),
        (["-s", "overlap=2"], "inference.overlap"),
    ],
)
def test_settings_that_cannot_be_are_one_message(tmp_path, model_folder, scans, options, message):
    result = _infer(model_folder, scans / "a.nii.gz", "-o", tmp_path / "out", *options)
    assert isinstance(result.exception, MedsegError)
    assert message in str(result.exception)
    assert not list((tmp_path / "out").glob("*.nii.gz"))


@pytest.mark.parametrize(
    "options", [["--mirror", "3"], ["--mirror", "x"], ["--mirror", "0,0"], ["--overlap", "1"]]
)
def test_wrong_usage_is_exit_code_2(tmp_path, model_folder, scans, options):
    result = _infer(model_folder, scans / "a.nii.gz", "-o", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_a_missing_model_is_told(tmp_path, scans):
    result = _infer(tmp_path / "nowhere", scans, "-o", tmp_path / "out")
    assert isinstance(result.exception, MedsegError)
    assert "nowhere" in str(result.exception)


def test_a_manifest_is_segmented_and_evaluated(tmp_path, model_folder, scans):
    """The reference of each case is its prediction, so that whatever was found, Dice is 1."""
    (tmp_path / "cohort.csv").write_text("case,image\none,scans/a.nii.gz\ntwo,scans/b.nrrd\n")
    out = tmp_path / "out"
    result = _infer(model_folder, tmp_path / "cohort.csv", "-o", out, "--probabilities")
    assert result.exit_code == 0, result.output
    (tmp_path / "references.csv").write_text(
        "case,image,label\none,scans/a.nii.gz,out/one.nii.gz\ntwo,scans/b.nrrd,out/two.nii.gz\n"
    )
    arguments = ["evaluate", str(out), str(tmp_path / "references.csv"), "-o", str(tmp_path / "metrics.json")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert [case["case"] for case in content["cases"]] == ["one", "two"]
    assert content["summary"]["dice_mean"] == 1
    assert content["failed"] == []


def test_a_dicom_series_gives_a_segmentation_that_refers_to_it(tmp_path, model_folder, write_dicom_series):
    highdicom = pytest.importorskip("highdicom", reason="needs highdicom, which is in the extra dicom")
    series = write_dicom_series(tmp_path / "series", 6, [1, 0, 0, 0, 1, 0])
    arguments = ["infer", str(model_folder), str(series), "-o", str(tmp_path / "out.nii.gz"), "--dicom-seg"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert "out_seg.dcm" in done.output
    found = highdicom.seg.segread(tmp_path / "out_seg.dcm")
    assert [one.SegmentLabel for one in found.SegmentSequence] == ["tumour"]
    labels = read_volume(tmp_path / "out.nii.gz").array
    assert np.count_nonzero(found.pixel_array) == np.count_nonzero(labels == 7)


def test_dicom_segmentation_of_a_file_is_refused_before_anything_is_computed(tmp_path, model_folder):
    pytest.importorskip("highdicom", reason="needs highdicom, which is in the extra dicom")
    write_volume(Volume(np.zeros((8, 8, 8), np.float32), Grid((8, 8, 8), LPS)), tmp_path / "scan.nii.gz")
    arguments = ["infer", str(model_folder), str(tmp_path / "scan.nii.gz"), "-o", str(tmp_path / "out")]
    with pytest.raises(MedsegError, match=r"slices of a DICOM series, and .*scan\.nii\.gz is a file"):
        CliRunner().invoke(app, [*arguments, "--dicom-seg"], catch_exceptions=False)
    assert not (tmp_path / "out").exists()


def test_a_series_that_cannot_be_referred_to_still_gives_its_label_map(
    tmp_path, model_folder, write_dicom_series
):
    pytest.importorskip("highdicom", reason="needs highdicom, which is in the extra dicom")
    series = write_dicom_series(tmp_path / "series", 6, [1, 0, 0, 0, 1, 0], FrameOfReferenceUID=None)
    arguments = ["infer", str(model_folder), str(series), "-o", str(tmp_path / "out.nii.gz"), "--dicom-seg"]
    with pytest.raises(MedsegError, match=r"Frame Of Reference UID.*The label map is in .*out\.nii\.gz"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert read_volume(tmp_path / "out.nii.gz").shape == (16, 8, 6)
    assert not (tmp_path / "out_seg.dcm").exists()
