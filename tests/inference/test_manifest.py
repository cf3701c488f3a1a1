"""The run manifest: what it holds, that it can be moved with its label maps, and what it refuses."""

import hashlib
import json
import shutil

import pytest

from medseg_brn.errors import DataError
from medseg_brn.inference.manifest import Manifest, digest

MODEL, SETTINGS = {"name": "m", "description_sha256": "0" * 64}, {"precision": "bfloat16"}


@pytest.fixture
def cohort(tmp_path):
    """An image, a label map in a folder, and the folder's manifest."""
    (tmp_path / "scan.nii").write_bytes(b"image")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scan.nii").write_bytes(b"labels")
    manifest = Manifest(tmp_path / "out" / "manifest.json", MODEL, SETTINGS)
    manifest.add(
        "scan",
        [tmp_path / "scan.nii"],
        outputs=[tmp_path / "out" / "scan.nii"],
        error=None,
        details={"plan": "exact"},
    )
    manifest.write()
    return tmp_path


def test_the_file_tells_model_versions_checksums_and_outcome(cohort):
    content = json.loads((cohort / "out" / "manifest.json").read_text())
    assert (content["model"], content["settings"]) == (MODEL, SETTINGS)
    assert {"python", "torch", "medseg-brn"} <= set(content["versions"])
    case = content["cases"]["scan"]
    assert (case["outcome"], case["plan"]) == ("done", "exact")
    assert case["images"] == [
        {"path": str(cohort / "scan.nii"), "sha256": hashlib.sha256(b"image").hexdigest()}
    ]
    assert case["outputs"] == [{"path": "scan.nii", "sha256": hashlib.sha256(b"labels").hexdigest()}]


def test_a_folder_of_label_maps_may_be_moved(cohort):
    shutil.move(cohort / "out", cohort / "elsewhere")
    manifest = Manifest(cohort / "elsewhere" / "manifest.json", MODEL, SETTINGS)
    target = cohort / "elsewhere" / "scan.nii"
    assert manifest.find_done("scan", [cohort / "scan.nii"], target) == (target,)


def test_other_settings_other_images_and_other_targets_are_not_done(cohort):
    image, target = cohort / "scan.nii", cohort / "out" / "scan.nii"
    path = cohort / "out" / "manifest.json"
    assert Manifest(path, MODEL, SETTINGS).find_done("scan", [image], target) == (target,)
    assert Manifest(path, MODEL, {"precision": "float32"}).find_done("scan", [image], target) is None
    assert Manifest(path, {"name": "m"}, SETTINGS).find_done("scan", [image], target) is None
    assert Manifest(path, MODEL, SETTINGS).find_done("scan", [image, image], target) is None
    assert Manifest(path, MODEL, SETTINGS).find_done("scan", [image], cohort / "other.nii") is None
    assert Manifest(path, MODEL, SETTINGS).find_done("other", [image], target) is None
    assert Manifest(path, MODEL, SETTINGS).find_done("scan", [image], target, site="a") is None


def test_a_case_is_done_for_the_site_that_it_was_done_for(cohort):
    image, target = cohort / "scan.nii", cohort / "out" / "scan.nii"
    manifest = Manifest(cohort / "out" / "manifest.json", MODEL, SETTINGS)
    manifest.add("scan", [image], outputs=[target], error=None, details={"site": "a"})
    assert manifest.find_done("scan", [image], target, site="a") == (target,)
    assert manifest.find_done("scan", [image], target, site="b") is None
    assert manifest.find_done("scan", [image], target) is None


def test_a_file_that_is_no_manifest_is_not_replaced(tmp_path):
    path = tmp_path / "manifest.json"
    for text, message in (('{"a": 1}', "is no run manifest"), ("not JSON", "cannot be read")):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            Manifest(path, MODEL, SETTINGS)
        assert path.read_text() == text


def test_a_manifest_of_no_file_keeps_to_memory(tmp_path):
    manifest = Manifest(None, MODEL, SETTINGS)
    manifest.add("scan", [], outputs=[], error="bad", details={})
    manifest.write()
    assert manifest.cases["scan"]["error"] == "bad"
    assert list(tmp_path.iterdir()) == []


def test_the_digest_of_a_folder_is_that_of_its_files(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    before = digest(tmp_path)
    assert digest(tmp_path) == before
    (tmp_path / "b").write_bytes(b"3")
    assert digest(tmp_path) != before
    (tmp_path / "b").rename(tmp_path / "c")
    (tmp_path / "c").write_bytes(b"2")
    assert digest(tmp_path) != before


def test_entries_that_are_none_are_done_again(cohort):
    path = cohort / "out" / "manifest.json"
    content = json.loads(path.read_text())
    for broken in (5, {"outcome": "done"}, {**content["cases"]["scan"], "outputs": [5]}):
        content["cases"]["scan"] = broken
        path.write_text(json.dumps(content))
        manifest = Manifest(path, MODEL, SETTINGS)
        assert manifest.find_done("scan", [cohort / "scan.nii"], cohort / "out" / "scan.nii") is None


def test_a_name_that_is_no_text_is_written(tmp_path):
    path = tmp_path / "manifest.json"
    manifest = Manifest(path, MODEL, SETTINGS)
    manifest.add("caf\udce9", [], outputs=[], error="bad", details={})
    manifest.write()
    assert list(Manifest(path, MODEL, SETTINGS).cases) == ["caf\udce9"]


def test_an_image_whose_voxels_are_in_another_file_is_known_by_both(tmp_path):
    header, voxels = tmp_path / "a.mhd", tmp_path / "a.raw"
    header.write_text("NDims = 3\nElementDataFile = a.raw\n")
    voxels.write_bytes(b"1")
    before = digest(header)
    voxels.write_bytes(b"2")
    assert digest(header) != before
