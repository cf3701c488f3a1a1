"""What a study leaves behind, and what it refuses to write over."""

import csv
import json
import math

import pytest

from medseg_brn.errors import DataError
from medseg_brn.reports.page import Paragraph, Section
from medseg_brn.studies.claims import Bounds, claim_mean
from medseg_brn.studies.outcome import Outcome, check_folder, do_all, write_outcome


def make_outcome() -> Outcome:
    return Outcome(
        study="toy",
        title="A toy",
        question="Is three above two?",
        settings={"seed": 0, "steps": [1, 2]},
        claims=[
            claim_mean("three", "above 2", [3.0, 3.1, 2.9], Bounds(above=2)),
            claim_mean("less", "below 2", [3.0, 3.1, 2.9], Bounds(below=2)),
            claim_mean("<script>", "above 3", [3.0, 3.1, 2.9], Bounds(above=3)),
        ],
        rows=[{"norm": "batch", "dice": 0.5}, {"norm": "group", "seconds": 1 / 3}],
        sections=[Section("Details", [Paragraph("A picture would stand here.")])],
    )


def test_the_three_files_say_the_same(tmp_path):
    write_outcome(make_outcome(), tmp_path / "study")
    summary = json.loads((tmp_path / "study" / "summary.json").read_text())
    assert summary["study"] == "toy"
    assert [claim["holds"] for claim in summary["claims"]] == [True, False, None]
    with (tmp_path / "study" / "measurements.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["norm", "dice", "seconds"],
            ["batch", "0.5", ""],
            ["group", "", "0.33333333"],
        ]
    page = (tmp_path / "study" / "report.html").read_text()
    for text in ("Is three above two?", "does not hold", "not settled", "A picture would stand here."):
        assert text in page
    assert "<td><script>" not in page


def test_an_earlier_outcome_is_replaced_and_nothing_else(tmp_path):
    check_folder(tmp_path / "new", "toy")
    check_folder(tmp_path, "toy")  # empty
    write_outcome(make_outcome(), tmp_path)
    check_folder(tmp_path, "toy")
    with pytest.raises(DataError, match="'other'"):
        check_folder(tmp_path, "other")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").touch()
    with pytest.raises(DataError, match="photos"):
        check_folder(tmp_path / "photos", "toy")
    with pytest.raises(DataError, match="is a file"):
        check_folder(tmp_path / "report.html", "toy")


def test_work_is_done_in_order_and_told():
    told = []
    assert do_all(math.sqrt, [4.0, 9.0, 16.0], "roots", lambda *stage: told.append(stage)) == [2, 3, 4]
    assert told == [("roots", done, 3) for done in range(4)]
