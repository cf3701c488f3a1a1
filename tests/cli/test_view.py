"""`medseg-brn view` and `infer --view`, run as a person runs them."""

import base64
import json
import re
import subprocess
import sys
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from medseg_brn.cases.preprocessing import Preprocessing
from medseg_brn.cli.main import app
from medseg_brn.config import NetworkConfig
from medseg_brn.errors import MedsegError
from medseg_brn.models.architecture import build_network
from medseg_brn.models.description import ModelDescription
from medseg_brn.models.package import save_model
from medseg_brn.volumes.reading import read_volume

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
SHAPE = (6, 7, 8)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    description = ModelDescription(
        name="tiny",
        network=NetworkConfig(channels=(4, 6), norm="none"),
        class_names=("background", "tumour"),
        label_values=(0, 7),
        modalities=("ct",),
        preprocessing=Preprocessing.model_validate(
            {"spacing_mm": (1, 1, 2), "intensity": [{"scheme": "zscore"}]}
        ),
        patch_size=(8, 8, 8),
    )
    folder = tmp_path_factory.mktemp("run") / "model"
    save_model(folder, build_network(description.network, 1, 2), description)
    return folder


@pytest.fixture
def scan(tmp_path) -> Path:
    return write(tmp_path / "scan.nii.gz", np.random.default_rng(0).integers(-1000, 1000, SHAPE, np.int16))


@pytest.fixture
def label_map(tmp_path) -> Path:
    array = np.zeros(SHAPE, np.uint8)
    array[2, 3, :5] = 7
    return write(tmp_path / "labels.nii.gz", array)


def write(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.Nifti1Image(array, affine).to_filename(path)
    return path


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def read_page(path: Path) -> tuple[dict, np.ndarray, np.ndarray | None]:
    """Facts, values and classes (0 is the background) of a page."""
    html = path.read_text(encoding="utf-8")
    facts, image, labels = re.findall(r'<script type="[^"]*" id="[^"]*">(.*?)</script>', html, re.DOTALL)
    facts = json.loads(facts)
    low, high = np.frombuffer(zlib.decompress(base64.b64decode(image)), np.uint8).reshape(2, -1).astype(int)
    values = facts["offset"] + facts["step"] * (low + 256 * high).reshape(facts["shape"], order="F")
    if not labels:
        return facts, values, None
    classes = np.frombuffer(zlib.decompress(base64.b64decode(labels)), np.uint8)
    return facts, values, classes.reshape(facts["shape"], order="F")


def test_a_page_holds_the_scan_and_its_label_map(tmp_path, scan, label_map, model_folder):
    page = tmp_path / "pages" / "page.html"
    result = run("view", scan, label_map, "-o", page, "--names", model_folder.parent)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip().startswith(str(page))
    facts, values, classes = read_page(page)
    np.testing.assert_array_equal(values, read_volume(scan).array)
    np.testing.assert_array_equal(classes == 1, read_volume(label_map).array == 7)
    assert [one["name"] for one in facts["classes"]] == ["tumour"]
    assert facts["start"] == 1  # the model says that its scans are CTs
    html = page.read_text()
    assert "<h1>scan.nii.gz</h1>" in html and "labels.nii.gz" in html
    assert '<td class="number">0.01</td><td class="number">5</td>' in html  # 5 voxels of 2 mm³ are 0.01 ml


def test_without_a_label_map_or_names_there_is_the_image_alone(tmp_path, scan, label_map):
    assert run("view", scan, "-o", tmp_path / "image.html").exit_code == 0
    facts, values, classes = read_page(tmp_path / "image.html")
    np.testing.assert_array_equal(values, read_volume(scan).array)
    assert classes is None and facts["classes"] == []
    assert run("view", scan, label_map, "-o", tmp_path / "both.html").exit_code == 0
    assert [one["name"] for one in read_page(tmp_path / "both.html")[0]["classes"]] == ["label 7"]


def test_a_channel_of_a_4d_image_is_chosen_and_told(tmp_path):
    array = np.random.default_rng(0).integers(0, 100, (*SHAPE, 3), np.int16)
    path = write(tmp_path / "scan.nii.gz", array)
    for arguments, channel in (((), 0), (("--channel", 2), 2)):
        result = run("view", path, "-o", tmp_path / "page.html", *arguments)
        assert f"3 channels, 0 to 2; this is channel {channel}" in result.stdout
        np.testing.assert_array_equal(read_page(tmp_path / "page.html")[1], array[..., channel])
    result = run("view", path, "-o", tmp_path / "page.html", "--channel", 3)
    assert "has 3 channels, counted from 0, and no channel 3" in str(result.exception)


@pytest.mark.parametrize(
    ("labels", "output", "told"),
    [
        ("missing.nii.gz", "page.html", "missing.nii.gz does not exist"),
        ("shifted.nii.gz", "page.html", r"origin \(0, 0, 0\) mm against \(3, 0, 0\) mm"),
        ("short.nii.gz", "page.html", r"shape \(6, 7, 8\) against \(6, 7, 7\)"),
        ("halves.nii.gz", "page.html", "336 voxels that are no integers, such as 0.5"),
        ("labels.nii.gz", "scan.nii.gz", "must end in .html"),
    ],
)
def test_what_cannot_be_shown_is_one_error_and_no_page(tmp_path, scan, label_map, labels, output, told):
    shift = AFFINE.copy()
    shift[0, 3] = 3
    write(tmp_path / "shifted.nii.gz", np.zeros(SHAPE, np.uint8), shift)
    write(tmp_path / "short.nii.gz", np.zeros((6, 7, 7), np.uint8))
    write(tmp_path / "halves.nii.gz", np.full(SHAPE, 0.5, np.float32))
    before = scan.read_bytes()
    result = run("view", scan, tmp_path / labels, "-o", tmp_path / output)
    assert isinstance(result.exception, MedsegError)
    assert re.search(told, str(result.exception))
    assert not (tmp_path / "page.html").exists()
    assert scan.read_bytes() == before


def test_errors_are_one_line_without_traceback(tmp_path, scan):
    command = [
        sys.executable,
        "-m",
        "medseg_brn",
        "view",
        str(tmp_path / "no.nii"),
        "-o",
        str(tmp_path / "p.html"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "medseg-brn: " in result.stderr and "does not exist" in result.stderr
    assert "Traceback" not in result.stderr


def test_infer_writes_the_page_beside_the_label_map(tmp_path, scan, model_folder):
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("a.nii.gz", "b.nii.gz"):
        (folder / name).write_bytes(scan.read_bytes())
    arguments = ("infer", model_folder, folder, "-o", tmp_path / "out", "--device", "cpu")
    assert run(*arguments, "--view").exit_code == 0
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["a.html", "a.nii.gz", "b.html", "b.nii.gz", "manifest.json"]
    facts, values, classes = read_page(tmp_path / "out" / "a.html")
    np.testing.assert_array_equal(values, read_volume(scan).array)
    found = read_volume(tmp_path / "out" / "a.nii.gz").array
    np.testing.assert_array_equal(classes == 1, found == 7)
    assert [one["name"] for one in facts["classes"]] == ["tumour"] * int((found == 7).any())

    # The page is part of what is done: where it is gone, the scan is done again, and the other is not.
    (tmp_path / "out" / "a.html").unlink()
    again = run(*arguments, "--view")
    assert "2 of 2 scans segmented, 1 of them before" in again.stdout
    assert (tmp_path / "out" / "a.html").is_file()


def test_infer_for_one_scan_into_a_file_tells_the_page(tmp_path, scan, model_folder):
    result = run("infer", model_folder, scan, "-o", tmp_path / "out.nii.gz", "--view", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == [str(tmp_path / "out.nii.gz"), str(tmp_path / "out.html")]
