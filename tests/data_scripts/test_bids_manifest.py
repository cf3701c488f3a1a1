"""`data_scripts/bids_manifest.py` as a person runs it, and what the toolkit then reads."""

import csv
from pathlib import Path

import numpy as np
import pytest

from medseg_brn.cases.dataset import read_dataset
from medseg_brn.volumes.volume import Grid, Volume
from medseg_brn.volumes.writing import write_volume


def write(path: Path, label: bool = False) -> None:
    array = np.arange(27, dtype=np.int16).reshape(3, 3, 3)
    write_volume(Volume(array // 20 if label else array, Grid((3, 3, 3), np.eye(4))), path)


def scan(root: Path, name: str, *, derivatives: str | None = None) -> None:
    """Puts a file where BIDS has it: sub-01_ses-a_T1w in sub-01/ses-a/anat."""
    parts = [part for part in name.split("_") if part.startswith(("sub-", "ses-"))]
    folder = root / "derivatives" / derivatives if derivatives else root
    write(folder.joinpath(*parts, "anat", f"{name}.nii.gz"), label=derivatives is not None)


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    """Two participants with sessions, one without; the last session lacks its label map."""
    root = tmp_path / "bids"
    for name in ("sub-01_ses-a", "sub-01_ses-b", "sub-02", "sub-03_ses-a"):
        scan(root, f"{name}_T1w")
        scan(root, f"{name}_acq-3d_FLAIR")
        if name != "sub-03_ses-a":
            scan(root, f"{name}_desc-lesion_mask", derivatives="manual")
    (root / "participants.tsv").write_text(
        "participant_id\tage\tsite\nsub-01\t34\tBasel\nsub-02\t51\tn/a\nsub-03\t47\tOslo\n"
    )
    return root


@pytest.fixture
def make(run_script, bids, tmp_path):
    def make(*arguments, dataset=bids, output=tmp_path / "out" / "cases.csv"):
        return run_script("bids_manifest.py", dataset, "-o", output, *arguments), output

    return make


def rows(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="") as file:
        return list(csv.DictReader(file))


def assert_one_message(result, *parts: str) -> None:
    assert result.returncode == 1, result.stderr
    assert result.stderr.startswith("bids_manifest.py: ") and "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr


def test_sessions_with_all_files_become_cases_and_the_others_are_told(make) -> None:
    result, manifest = make("--image", "T1w", "--image", "FLAIR", "--label", "desc-lesion_mask")
    assert result.returncode == 0, result.stderr
    assert "sub-03_ses-a is left out: it has no desc-lesion_mask" in result.stdout
    assert "3 cases" in result.stdout
    assert rows(manifest)[0] == {
        "case": "sub-01_ses-a",
        "image_0": "../bids/sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz",
        "image_1": "../bids/sub-01/ses-a/anat/sub-01_ses-a_acq-3d_FLAIR.nii.gz",
        "label": "../bids/derivatives/manual/sub-01/ses-a/anat/sub-01_ses-a_desc-lesion_mask.nii.gz",
        "site": "Basel",
        "patient": "sub-01",
    }
    assert [row["case"] for row in rows(manifest)] == ["sub-01_ses-a", "sub-01_ses-b", "sub-02"]


def test_the_toolkit_reads_the_manifest(make, bids) -> None:
    _, manifest = make("--image", "T1w", "--image", "FLAIR", "--label", "mask")
    dataset = read_dataset(manifest, modalities=("mri", "mri"))
    assert [(case.name, case.patient, case.site) for case in dataset.cases] == [
        ("sub-01_ses-a", "sub-01", "Basel"),
        ("sub-01_ses-b", "sub-01", "Basel"),
        ("sub-02", "sub-02", None),
    ]
    for case in dataset.cases:
        assert len(case.image_paths) == 2
        assert all(path.is_file() for path in (*case.image_paths, case.label_path))


def test_one_channel_without_labels_takes_every_session(make) -> None:
    result, manifest = make()
    assert result.returncode == 0, result.stderr
    assert [row["case"] for row in rows(manifest)] == [
        "sub-01_ses-a",
        "sub-01_ses-b",
        "sub-02",
        "sub-03_ses-a",
    ]
    assert list(rows(manifest)[0]) == ["case", "image", "site", "patient"]


def test_two_runs_leave_their_session_out_until_one_is_chosen(make, bids) -> None:
    scan(bids, "sub-02_acq-2d_FLAIR")
    result, manifest = make("--image", "FLAIR")
    assert result.returncode == 0, result.stderr
    (told,) = (line for line in result.stdout.splitlines() if "left out" in line)
    assert "sub-02 is left out: it has 2 files ending in 'FLAIR'" in told
    assert "acq-2d_FLAIR.nii.gz" in told and "acq-3d_FLAIR.nii.gz" in told and "more of the name" in told
    assert [row["case"] for row in rows(manifest)] == ["sub-01_ses-a", "sub-01_ses-b", "sub-03_ses-a"]
    assert "left out" not in make("--image", "acq-3d_FLAIR")[0].stdout
    assert len(rows(manifest)) == 4


def test_where_every_session_is_left_out_the_first_reason_is_told(make, bids) -> None:
    for session in ("sub-01_ses-a", "sub-01_ses-b", "sub-02", "sub-03_ses-a"):
        scan(bids, f"{session}_run-2_T1w")
    result, manifest = make()
    assert_one_message(result, "sub-01_ses-a is left out: it has 2 files ending in 'T1w'", "run-2_T1w.nii.gz")
    assert not manifest.exists()


def test_derivatives_of_one_pipeline_are_chosen_by_their_folder(make, bids) -> None:
    scan(bids, "sub-02_desc-lesion_mask", derivatives="automatic")
    arguments = ("--image", "T1w", "--label", "desc-lesion_mask")
    result, manifest = make(*arguments)
    assert "sub-02 is left out: it has 2 files" in result.stdout and "--derivatives" in result.stdout
    assert [row["case"] for row in rows(manifest)] == ["sub-01_ses-a", "sub-01_ses-b"]
    result, manifest = make(*arguments, "--derivatives", bids / "derivatives" / "automatic")
    assert result.returncode == 0, result.stderr
    assert [row["case"] for row in rows(manifest)] == ["sub-02"]


def test_links_of_datalad_keep_their_names(make, bids) -> None:
    path = bids / "sub-02" / "anat" / "sub-02_T1w.nii.gz"
    target = bids / ".git" / "annex" / "MD5E-s1--00.nii.gz"
    target.parent.mkdir(parents=True)
    path.rename(target)
    path.symlink_to(target)
    _, manifest = make()
    assert rows(manifest)[2]["image"] == "../bids/sub-02/anat/sub-02_T1w.nii.gz"


def test_another_column_tells_the_site(make, bids) -> None:
    (bids / "participants.tsv").write_text(
        "participant_id\tscanner\nsub-01\tPrisma\nsub-02\tAera\nsub-03\tAera\n"
    )
    _, manifest = make("--site-column", "scanner")
    assert [row["site"] for row in rows(manifest)] == ["Prisma", "Prisma", "Aera", "Aera"]


def test_a_dataset_without_participants_has_no_sites(make, bids) -> None:
    (bids / "participants.tsv").unlink()
    assert "site" not in rows(make()[1])[0]


def test_a_folder_that_is_no_bids_dataset_is_told(make, tmp_path) -> None:
    result, manifest = make(dataset=tmp_path / "elsewhere")
    assert_one_message(result, str(tmp_path / "elsewhere"), "no sub-* folders")
    assert not manifest.parent.exists()


def test_an_ending_that_none_has_is_told_with_those_that_are_there(make) -> None:
    assert_one_message(make("--image", "T2w")[0], "one file of each of T2w", "FLAIR, T1w")


def test_a_table_without_participants_column_is_told(make, bids) -> None:
    (bids / "participants.tsv").write_text("id\tsite\n01\tBasel\n")
    assert_one_message(make()[0], "participants.tsv", "no column participant_id", "id, site")


def test_a_manifest_of_another_suffix_is_refused(make, tmp_path) -> None:
    assert_one_message(make(output=tmp_path / "cases.txt")[0], "cases.txt", ".csv")


def test_help_teaches(run_script) -> None:
    text = run_script("bids_manifest.py", "--help").stdout
    for part in ("sub-01_T1w.nii.gz", "--image", "--label", "--site-column", "patient"):
        assert part in text
