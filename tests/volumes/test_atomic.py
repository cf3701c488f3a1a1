"""Outputs appear whole or not at all."""

import os
from pathlib import Path

import pytest

from medseg_brn.errors import DataError
from medseg_brn.volumes.atomic import atomic_path, write_text_atomic


def test_a_file_appears_when_the_block_ends(tmp_path):
    with atomic_path(tmp_path / "a.nii.gz") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.endswith("a.nii.gz")
        temporary.write_text("new")
        assert not (tmp_path / "a.nii.gz").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]
    assert (tmp_path / "a.nii.gz").read_text() == "new"


def test_a_failure_keeps_the_old_file_and_leaves_nothing(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(KeyError), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_folder_replaces_a_folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    with atomic_path(tmp_path / "model") as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new"]


def test_a_failed_folder_is_removed(tmp_path):
    with pytest.raises(KeyError), atomic_path(tmp_path / "model") as temporary:
        (temporary / "deep").mkdir(parents=True)
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_missing_parents_are_made(tmp_path):
    write_text_atomic(tmp_path / "a" / "b" / "c.txt", "é")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == "é".encode()


def test_a_file_never_replaces_a_folder(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="a folder is there, and a file is to be written"):
        write_text_atomic(tmp_path / "out", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_never_replaces_a_file(tmp_path):
    (tmp_path / "out").touch()
    with (
        pytest.raises(DataError, match="a file is there, and a folder is to be written"),
        atomic_path(tmp_path / "out") as temporary,
    ):
        temporary.mkdir()


def test_a_parent_that_is_a_file_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"Cannot make the folder .*file"):
        write_text_atomic(tmp_path / "file" / "a.txt", "text")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_told(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="no permission"):
        write_text_atomic(tmp_path / "a.txt", "text")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told(tmp_path):
    with (
        pytest.raises(DataError, match=r"a\.txt: the disk is full"),
        atomic_path(tmp_path / "a.txt"),
        Path("/dev/full").open("w") as full,
    ):
        full.write("text")


def test_any_other_failure_of_the_system_is_one_message(tmp_path):
    with pytest.raises(DataError, match=r"^Cannot write .*long\.txt: File name too long; .*another place\.$"):
        write_text_atomic(tmp_path / ("very " * 60 + "long.txt"), "text")
    assert list(tmp_path.iterdir()) == []


def test_another_file_that_fails_is_named(tmp_path):
    with (
        pytest.raises(DataError, match=r"a\.txt: No such file or directory \(.*gone\.txt\)"),
        atomic_path(tmp_path / "a.txt") as temporary,
    ):
        temporary.write_text((tmp_path / "gone.txt").read_text())
    assert list(tmp_path.iterdir()) == []


def test_the_temporary_name_is_not_told(tmp_path):
    with (
        pytest.raises(DataError, match=r"a\.txt: Is a directory; "),
        atomic_path(tmp_path / "a.txt") as temporary,
    ):
        temporary.mkdir()
        temporary.write_text("text")
