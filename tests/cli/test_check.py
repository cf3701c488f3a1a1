"""`medseg-brn check` as a person runs it."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from medseg_brn.cli.check import check
from medseg_brn.errors import DataError

app = typer.Typer()
app.command()(check)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three good cases in the nnU-Net layout."""
    for n in range(3):
        image = np.random.default_rng(n).integers(0, 1000, (6, 7, 8)).astype(np.int16)
        label_map = (image > 700).astype(np.uint8) * 255
        for kind, name, array in (("imagesTr", f"p{n}_0000", image), ("labelsTr", f"p{n}", label_map)):
            (tmp_path / kind).mkdir(exist_ok=True)
            nib.Nifti1Image(array, np.diag([1, 1, 3, 1])).to_filename(tmp_path / kind / f"{name}.nii.gz")
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 255}, "name": "Livers"}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    return tmp_path


@pytest.fixture
def empty_case(folder: Path) -> Path:
    """The same, with an empty label map in p1."""
    path = folder / "labelsTr" / "p1.nii.gz"
    nib.Nifti1Image(np.zeros((6, 7, 8), np.uint8), np.diag([1, 1, 3, 1])).to_filename(path)
    return folder


def run(*arguments: object) -> tuple[int, str, BaseException | None]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.exception


def test_a_good_dataset_is_summed_up(folder: Path) -> None:
    code, output, error = run(folder)
    assert (code, error) == (0, None)
    for part in (
        "Livers: 3 cases, 3 with a label map",
        "channels  ct",
        "background = 0, liver = 255",
        "1 × 1 × 3 mm",
        "6 × 7 × 8 voxels",
        "0 errors, 0 warnings",
    ):
        assert part in output


def test_errors_are_listed_and_end_in_one_message(empty_case: Path) -> None:
    code, output, error = run(empty_case)
    assert code == 1
    assert isinstance(error, DataError)
    assert str(error).startswith("1 error in 1 of the 3 cases of Livers")
    assert "p1" in output
    assert "Label map p1.nii.gz is empty: all 336 voxels are background." in output
    assert "--allow-empty" in output


def test_warnings_leave_the_exit_code_alone(empty_case: Path) -> None:
    code, output, error = run(empty_case, "--allow-empty")
    assert (code, error) == (0, None)
    assert "warning: Label map p1.nii.gz is empty" in output
    assert "0 errors, 1 warning" in output


def test_json_is_for_programs(empty_case: Path) -> None:
    code, output, _ = run(empty_case, "--json")
    assert code == 1
    told = json.loads(output)
    assert (told["cases"], told["errors"], told["warnings"]) == (3, 1, 0)
    assert told["classes"] == {"background": 0, "liver": 255}
    assert told["spacing_mm"]["median"] == [1, 1, 3]
    assert told["shape"]["max"] == [6, 7, 8]
    (problem,) = told["problems"]
    assert (problem["case"], problem["severity"]) == ("p1", "error")
    assert "336 voxels" in problem["message"]


def test_regions_and_the_ignore_label_are_told(folder: Path) -> None:
    description = json.loads((folder / "dataset.json").read_text())
    description["labels"] = {"background": 0, "liver": [255, 7], "tumour": 7, "ignore": 9}
    description["regions_class_order"] = [255, 7]
    (folder / "dataset.json").write_text(json.dumps(description))
    code, output, _ = run(folder)
    assert code == 0
    assert "classes   background = 0, tumour = 7, label 255 = 255" in output
    assert "regions   liver = 7 + 255 (written as 255), tumour = 7 (written as 7)" in output
    assert "ignored   9" in output
    told = json.loads(run(folder, "--json")[1])
    assert told["regions"][0] == {"name": "liver", "label_values": [7, 255], "written_value": 255}
    assert told["ignore_value"] == 9


def test_paths_are_told_from_the_datasets_folder_on(folder: Path) -> None:
    (folder / "imagesTr" / "p2_0000.nii.gz").write_bytes(b"not an image")
    _, output, _ = run(folder)
    assert "imagesTr/p2_0000.nii.gz" in output
    assert str(folder) not in output


def test_a_broken_description_is_one_message(folder: Path) -> None:
    (folder / "dataset.json").write_text('{"labels": ')
    code, output, error = run(folder)
    assert (code, output) == (1, "")
    assert isinstance(error, DataError)
    assert "dataset.json, line 1, column 12" in str(error)


def test_the_layout_can_be_told(folder: Path) -> None:
    _, _, error = run(folder, "--layout", "decathlon")
    assert '"training" lists no cases' in str(error)


def test_a_dataset_that_cannot_be_read_at_all_has_facts_nonetheless(folder: Path) -> None:
    for path in (folder / "imagesTr").iterdir():
        path.write_bytes(b"")
    code, output, _ = run(folder, "--json")
    assert code == 1
    assert json.loads(output)["spacing_mm"] is None
    assert json.loads(output)["errors"] == 3


def test_help_teaches_with_an_example() -> None:
    _, output, _ = run("--help")
    assert "medseg-brn check Task04_Hippocampus" in output


def test_modalities_can_be_told(folder: Path) -> None:
    path = folder / "imagesTr" / "p1_0000.nii.gz"
    nib.Nifti1Image(np.asarray(nib.load(path).dataobj) - 1024, np.diag([1, 1, 3, 1])).to_filename(path)
    code, output, _ = run(folder, "--modalities", "mri", "--json")
    assert code == 0
    (problem,) = json.loads(output)["problems"]
    assert "Hounsfield" in problem["message"] and "--modalities ct" in problem["remedy"]
    assert json.loads(run(folder, "--modalities", " ct", "--json")[1])["problems"] == []
    _, _, error = run(folder, "--modalities", "ct,pet")
    assert isinstance(error, DataError) and "('ct', 'pet') do not fit" in str(error)
