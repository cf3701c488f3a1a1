"""What label maps hold, read once."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from medseg_brn.cases.case import Case
from medseg_brn.cases.presence import LabelMapFacts, survey_label_maps
from medseg_brn.errors import DataError
from medseg_brn.volumes.volume import Grid, Volume
from medseg_brn.volumes.writing import write_volume


def make_case(folder: Path, name: str, values: list[int]) -> Case:
    """A case whose label map holds 0 and these values; x and y are exchanged in its file."""
    array = np.zeros((4, 5, 6), np.uint8)
    array.flat[: len(values)] = values
    affine = np.array([[0, 2.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 3.0, 0], [0, 0, 0, 1]])
    path = folder / f"{name}.nii.gz"
    write_volume(Volume(array, Grid(array.shape, affine)), path)
    return Case(name, (folder / "image.nii.gz",), path)


def test_values_and_canonical_voxel_sizes_are_found_and_kept(tmp_path):
    cases = [make_case(tmp_path, "b", [7, 2]), make_case(tmp_path, "a", [])]
    told = []
    found = survey_label_maps(cases, tmp_path / "labels.json", lambda *done: told.append(done))
    assert found == {
        "a": LabelMapFacts((0,), (2.0, 1.0, 3.0)),
        "b": LabelMapFacts((0, 2, 7), (2.0, 1.0, 3.0)),
    }
    assert told == [(1, 2), (2, 2)]
    assert survey_label_maps(cases, tmp_path / "labels.json", lambda *done: told.append(done)) == found
    assert len(told) == 2, "a label map was read again"


def test_only_a_changed_label_map_is_read_again(tmp_path):
    cases = [make_case(tmp_path, "a", [1]), make_case(tmp_path, "b", [1])]
    survey_label_maps(cases, tmp_path / "labels.json")
    make_case(tmp_path, "b", [3])
    os.utime(cases[1].label_path, ns=(1, 1))
    told = []
    found = survey_label_maps(cases, tmp_path / "labels.json", lambda *done: told.append(done))
    assert (found["b"].values, told) == ((0, 3), [(1, 1)])


def test_a_damaged_file_is_made_again(tmp_path):
    cases = [make_case(tmp_path, "a", [1])]
    path = tmp_path / "labels.json"
    for damaged in ("{", "[]", '{"a": {"values": 3}}', '{"a": 1}'):
        path.write_text(damaged)
        assert survey_label_maps(cases, path)["a"].values == (0, 1)
        assert json.loads(path.read_text())["a"]["values"] == [0, 1]


def test_a_case_without_a_label_map_is_refused(tmp_path):
    with pytest.raises(DataError, match="Case 'a' has no label map"):
        survey_label_maps([Case("a", (Path("a.nii"),))], tmp_path / "labels.json")
