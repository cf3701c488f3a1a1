from pathlib import Path

import pytest

from medseg_brn.errors import DataError
from medseg_brn.inference.inputs import InputCase, find_inputs, plan_jobs


def _touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def _found(paths, in_channels=1) -> dict[str, list[str]]:
    """Output name → names of the images."""
    cases = find_inputs(paths, in_channels).cases
    return {case.output_name: [path.name for path in case.image_paths] for case in cases}


def test_a_folder_gives_a_case_per_image_under_its_own_name(tmp_path):
    _touch(tmp_path, "b.nii.gz", "a.nii", "c.nrrd", "d.mha", "e.mhd", "notes.txt", "._a.nii")
    assert _found([tmp_path]) == {
        "a.nii": ["a.nii"],
        "b.nii.gz": ["b.nii.gz"],
        "c.nrrd": ["c.nrrd"],
        "d.mha": ["d.mha"],
        "e.mha": ["e.mhd"],
    }
    passed_over = find_inputs([tmp_path], 1).passed_over
    assert sorted(path.name for path in passed_over) == ["._a.nii", "notes.txt"]


def test_numbered_channels_are_one_case(tmp_path):
    _touch(tmp_path, "p1_0000.nii.gz", "p1_0001.nii.gz", "p2_0001.nii.gz", "p2_0000.nii.gz", "p3.nii.gz")
    assert _found([tmp_path], in_channels=2) == {
        "p1.nii.gz": ["p1_0000.nii.gz", "p1_0001.nii.gz"],
        "p2.nii.gz": ["p2_0000.nii.gz", "p2_0001.nii.gz"],
        "p3.nii.gz": ["p3.nii.gz"],
    }


def test_nnunet_s_ending_of_a_single_channel_is_no_part_of_the_name(tmp_path):
    _touch(tmp_path, "p1_0000.nii.gz", "p2_0000.nii.gz")
    assert list(_found([tmp_path])) == ["p1.nii.gz", "p2.nii.gz"]


def test_numbers_that_are_no_channels_are_names(tmp_path):
    _touch(tmp_path, "case_0000.nii.gz", "case_0001.nii.gz", "case_0017.nii.gz")
    assert list(_found([tmp_path])) == ["case_0000.nii.gz", "case_0001.nii.gz", "case_0017.nii.gz"]


def test_an_incomplete_case_is_left_to_fail_by_itself(tmp_path):
    _touch(tmp_path, "p1_0000.nii.gz", "p2_0000.nii.gz", "p2_0001.nii.gz")
    assert _found([tmp_path], in_channels=2) == {
        "p1_0000.nii.gz": ["p1_0000.nii.gz"],
        "p2.nii.gz": ["p2_0000.nii.gz", "p2_0001.nii.gz"],
    }


def test_channels_of_other_folders_are_other_cases(tmp_path):
    _touch(tmp_path / "one", "p1_0000.nii.gz", "p1_0001.nii.gz")
    _touch(tmp_path / "two", "p2_0000.nii.gz", "p2_0001.nii.gz")
    assert list(_found([tmp_path / "one", tmp_path / "two"], 2)) == ["p1.nii.gz", "p2.nii.gz"]


def test_a_dicom_folder_is_a_case_named_like_the_folder(data_folder):
    folder = data_folder / "abdomen_ct" / "dicom"
    assert [(case.output_name, case.image_paths) for case in find_inputs([folder], 1).cases] == [
        ("dicom.nii.gz", (folder,))
    ]


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        ([], "nowhere", "nowhere does not exist"),
        (["a.png"], "a.png", r"a\.png is none of \.nii\.gz"),
        (["a.png"], ".", "holds no image"),
        (["a.nii", "a.nrrd"], ".", r"2 inputs .* case 'a': .*a\.nii, .*a\.nrrd"),
        (["Scan.nii", "scan.nii.gz"], ".", "2 inputs"),
    ],
)
def test_inputs_that_cannot_be_are_refused(tmp_path, names, given, message):
    _touch(tmp_path, *names)
    with pytest.raises(DataError, match=message):
        find_inputs([tmp_path / given], 1)


def test_a_scan_given_twice_is_told(tmp_path):
    _touch(tmp_path, "a.nii")
    with pytest.raises(DataError, match="case 'a'"):
        find_inputs([tmp_path, tmp_path / "a.nii"], 1)


def _cases(folder: Path, *names: str) -> list[InputCase]:
    return [InputCase(name, (folder / f"{name}.nii.gz",), f"{name}.nii.gz") for name in names]


def test_one_case_may_go_to_a_file_and_several_to_a_folder(tmp_path):
    one, two = _cases(tmp_path, "a"), _cases(tmp_path, "a", "b")
    assert [job.target for job in plan_jobs(one, tmp_path / "out.nrrd")] == [tmp_path / "out.nrrd"]
    assert [job.target for job in plan_jobs(one, tmp_path / "out")] == [tmp_path / "out" / "a.nii.gz"]
    jobs = plan_jobs(two, tmp_path / "out")
    assert [job.case for job in jobs] == two
    assert [job.target for job in jobs] == [tmp_path / "out" / "a.nii.gz", tmp_path / "out" / "b.nii.gz"]


@pytest.mark.parametrize(
    ("names", "output", "message"),
    [
        (["a", "b"], "out.nii.gz", "one file, but there are 2 cases"),
        (["a"], "out.mhd", r"must end in one of \.nii\.gz, \.nii, \.nrrd, \.mha"),
        (["a"], "notes.txt", r"notes\.txt is a file"),
        (["a", "b"], ".", r"b\.nii\.gz would replace an input|a\.nii\.gz would replace an input"),
        (["a"], "a.nii.gz", r"a\.nii\.gz would replace an input"),
    ],
)
def test_outputs_that_would_do_harm_are_refused(tmp_path, names, output, message):
    _touch(tmp_path, "notes.txt")
    with pytest.raises(DataError, match=message):
        plan_jobs(_cases(tmp_path, *names), tmp_path / output)


def test_a_manifest_gives_its_cases_under_their_names(tmp_path):
    (tmp_path / "cohort.csv").write_text(
        "case,image_0,image_1,site\np2,scans/x.mha,scans/y.mha,A\np1,u.nii,/far/v.nii,\n"
    )
    _touch(tmp_path / "other", "a.nrrd")
    found = find_inputs([tmp_path / "cohort.csv", tmp_path / "other"], 2)
    assert found.cases == (
        InputCase("a", (tmp_path / "other" / "a.nrrd",), "a.nrrd"),
        InputCase("p1", (tmp_path / "u.nii", Path("/far/v.nii")), "p1.nii.gz"),
        InputCase("p2", (tmp_path / "scans" / "x.mha", tmp_path / "scans" / "y.mha"), "p2.nii.gz", "A"),
    )
    assert found.passed_over == ()


def test_a_manifest_that_is_missing_or_names_a_case_twice_is_told(tmp_path):
    with pytest.raises(DataError, match=r"cohort\.csv does not exist"):
        find_inputs([tmp_path / "cohort.csv"], 1)
    (tmp_path / "cohort.csv").write_text("case,image\np1,a.nii\np1,b.nii\n")
    with pytest.raises(DataError, match=r"2 inputs .* case 'p1': .*a\.nii, .*b\.nii"):
        find_inputs([tmp_path / "cohort.csv"], 1)
