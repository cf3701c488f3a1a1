"""Records of a run: written, read back, and cut at the checkpoint that a resumed run starts from."""

import pytest

from medseg_brn.reports.step_records import PatchRecord, StepRecord, read_metrics, read_patches
from medseg_brn.training.recording import Recorder


def make_record(step: int, dice: float | None = None) -> StepRecord:
    return StepRecord(step, 1 / step, 0.01, 2.5, 0.1, 0.25, dice)


def test_records_read_back(tmp_path):
    records = [make_record(1), make_record(2, dice=0.5), make_record(3)]
    with Recorder(tmp_path, 0) as recorder:
        for record in records:
            recorder.write(record)
    found = read_metrics(tmp_path / "metrics.csv")
    assert [(row.step, row.dice) for row in found] == [(1, None), (2, 0.5), (3, None)]
    assert [row.loss for row in found] == pytest.approx([1, 1 / 2, 1 / 3])


def test_reopening_drops_what_came_after_the_checkpoint(tmp_path):
    with Recorder(tmp_path, 0) as recorder:
        for step in range(1, 6):
            recorder.write(make_record(step))
    with Recorder(tmp_path, 3) as recorder:
        recorder.write(make_record(4, dice=0.9))
    assert [(row.step, row.dice) for row in read_metrics(tmp_path / "metrics.csv")] == [
        (1, None),
        (2, None),
        (3, None),
        (4, 0.9),
    ]


def test_patches_after_the_checkpoint_are_dropped_too(tmp_path):
    patches = [PatchRecord(step, case, 0.5, {0: 7, 2: 1}) for step in range(1, 5) for case in ("a", "b")]
    with Recorder(tmp_path, 0) as recorder:
        recorder.write_patches(patches)
    whole = (tmp_path / "patches.csv").read_text()
    assert read_patches(tmp_path / "patches.csv") == patches
    with Recorder(tmp_path, 2) as recorder:
        recorder.write_patches(patches[4:])
    assert (tmp_path / "patches.csv").read_text() == whole


@pytest.mark.parametrize("cut", range(1, 30, 4))
def test_a_line_cut_by_a_kill_is_passed_over(tmp_path, cut):
    with Recorder(tmp_path, 0) as recorder:
        recorder.write(make_record(1))
        recorder.write(make_record(2))
    path = tmp_path / "metrics.csv"
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[:2]) + whole[2][:cut])
    assert [row.step for row in read_metrics(path)][:1] == [1]
    assert len(read_metrics(path)) in (1, 2)
    with Recorder(tmp_path, 1) as recorder:
        recorder.write(make_record(2))
    assert path.read_text() == "".join(whole)


def test_no_file_is_no_records(tmp_path):
    assert read_metrics(tmp_path / "metrics.csv") == []
